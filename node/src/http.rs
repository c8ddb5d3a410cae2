//! Metrics and health over HTTP, for machines that watch the node.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::TextEncoder;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// Serves `GET /metrics`, `/health` and `/ready` until `stop`.
///
/// # Errors
/// If the listener fails.
pub async fn serve(context: Context, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .with_state(context);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn metrics(State(context): State<Context>) -> Response {
    context.metrics.observe_process();
    match TextEncoder::new().encode_to_string(&context.metrics.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The process lives. Never asks for a quorum: a restart would not bring one back.
async fn health() -> &'static str {
    "alive\n"
}

/// Whether calls can be served now, or why not.
async fn ready(State(context): State<Context>) -> Response {
    match readiness(&context) {
        Ok(()) => (StatusCode::OK, "ready\n").into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

/// `Err` says why this node cannot serve calls now.
///
/// # Errors
/// If it is stopping, belongs to no cluster or sees no leader.
pub fn readiness(context: &Context) -> Result<(), &'static str> {
    if context.shutdown.is_cancelled() {
        return Err("the node is stopping");
    }
    if context.control.group().is_none() && context.groups.identity().cluster.is_some() {
        return Err("this node's replica of control is out of service; see `quorate cluster status`");
    }
    if context.control.group().is_none() {
        return Err("the node belongs to no cluster; run `quorate cluster init` or `quorate cluster join`");
    }
    if context.control.leader().is_none() {
        return Err("control has no leader that this node knows; see `quorate cluster status`");
    }
    Ok(())
}
