//! `quorate node` and `quorate dev`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use quorate_node::config::Values;
use quorate_node::{Config, TimersProfile};
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::exit::Usage;
use crate::local_cluster::{Launch, LocalCluster};
use crate::output::Format;

/// Verbs on a node.
#[derive(Subcommand)]
pub enum Node {
    /// Runs a node in the foreground until it is told to stop (SIGTERM or Ctrl-C).
    Start(Box<Start>),
}

/// What a node is started with. Defaults < --config < QUORATE_* < flags.
#[derive(Args)]
pub struct Start {
    /// A TOML file with the keys of the flags below, with underscores.
    #[arg(long, env = "QUORATE_CONFIG")]
    config: Option<PathBuf>,
    /// Where everything of the node is kept.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Where clients are served (gRPC), host:port; port 0 takes a free one.
    #[arg(long)]
    client_listen: Option<String>,
    /// Where peers are served.
    #[arg(long)]
    peer_listen: Option<String>,
    /// Where metrics and health are served.
    #[arg(long)]
    http_listen: Option<String>,
    /// The client address that others are told.
    #[arg(long)]
    client_advertise: Option<String>,
    /// The peer address that others are told.
    #[arg(long)]
    peer_advertise: Option<String>,
    /// A name for people.
    #[arg(long)]
    label: Option<String>,
    /// Heartbeat and election times: `fast` suits local disks.
    #[arg(long, value_enum)]
    timers: Option<Timers>,
    /// A filter such as `info` or `quorate_node=debug,info`.
    #[arg(long)]
    log_level: Option<String>,
    /// Threads that search.
    #[arg(long)]
    search_threads: Option<usize>,
    /// Threads that build segments.
    #[arg(long)]
    build_threads: Option<usize>,
    /// New rows of a collection that are searched one by one before they become a segment with a graph.
    #[arg(long)]
    seal_rows: Option<usize>,
    /// Checkpoint a group, and purge its log below the checkpoint, when its log has grown by so many bytes.
    #[arg(long)]
    snapshot_log_bytes: Option<u64>,
    /// Entries that stay in the log below the checkpoint, for followers that are a little behind.
    #[arg(long)]
    purge_tail: Option<u64>,
    /// Read all logs back every so many seconds, in search of damage that nobody has met, and the states every 24th time.
    #[arg(long)]
    scrub_every_s: Option<u64>,
    /// Stop when standard input closes: for processes that must not outlive the one that started them.
    #[arg(long)]
    stop_with_stdin: bool,
}

/// Heartbeat and election times.
#[derive(Clone, Copy, ValueEnum)]
pub enum Timers {
    /// 50/150/300 ms.
    Default,
    /// 30/100/150 ms.
    Fast,
}

/// A cluster on this machine to develop against.
#[derive(Args)]
pub struct Dev {
    /// How many node processes.
    #[arg(long, default_value_t = 1)]
    nodes: usize,
}

impl Start {
    fn values(&self) -> Values {
        Values {
            data_dir: self.data_dir.clone(),
            client_listen: self.client_listen.clone(),
            peer_listen: self.peer_listen.clone(),
            http_listen: self.http_listen.clone(),
            client_advertise: self.client_advertise.clone(),
            peer_advertise: self.peer_advertise.clone(),
            label: self.label.clone(),
            timers: self.timers.map(|timers| match timers {
                Timers::Default => TimersProfile::Default,
                Timers::Fast => TimersProfile::Fast,
            }),
            log_level: self.log_level.clone(),
            search_threads: self.search_threads,
            build_threads: self.build_threads,
            seal_rows: self.seal_rows,
            snapshot_log_bytes: self.snapshot_log_bytes,
            purge_tail: self.purge_tail,
            scrub_every_s: self.scrub_every_s,
        }
    }
}

/// Runs a verb on a node.
pub async fn run(verb: Node, output: Format) -> Result<ExitCode> {
    let Node::Start(start) = verb;
    let config = Config::load(start.config.as_deref(), start.values())?;
    let filter = filter(&config.log_level)?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let node = quorate_node::start(config).await?;
    let addresses = node.addresses();
    output.record(&json!({
        "node_id": node.node().to_string(), "client": addresses.client, "peer": addresses.peer, "http": addresses.http,
    }));
    tokio::select! {
        stopped = wait_for_stop(start.stop_with_stdin) => stopped?,
        reason = node.failed() => {
            node.shutdown().await;
            anyhow::bail!("{reason}; mend or empty the disk, then start the node again");
        }
        () = node.removed() => eprintln!("this node was removed from its cluster; start it on an empty data directory to join again"),
    }
    node.shutdown().await;
    Ok(ExitCode::SUCCESS)
}

/// What is logged. openraft warns at every heartbeat to a peer that is down, which the node says once by itself.
fn filter(level: &str) -> Result<EnvFilter> {
    let quiet = if level.contains("openraft") { level.to_owned() } else { format!("{level},openraft=error") };
    Ok(EnvFilter::try_new(quiet).map_err(|error| Usage(format!("--log-level {level}: {error}")))?)
}

/// Returns on SIGTERM, Ctrl-C or, if asked for, the end of standard input.
async fn wait_for_stop(with_stdin: bool) -> Result<()> {
    let mut terminated =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).context("listening for SIGTERM")?;
    let (closing, closed) = tokio::sync::oneshot::channel::<()>();
    let mut open = Some(closing);
    if with_stdin {
        let closing = open.take();
        // A read of standard input cannot be cancelled, so it has a thread that the process does not wait for.
        std::thread::spawn(move || {
            let end = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            tracing::info!(?end, "standard input was closed");
            drop(closing);
        });
    }
    tokio::select! {
        _ = terminated.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted.context("listening for Ctrl-C")?,
        _ = closed => {}
    }
    Ok(())
}

/// Starts a throw-away cluster and prints how to use it.
pub async fn dev(dev: Dev, output: Format) -> Result<ExitCode> {
    ensure!((1..=9).contains(&dev.nodes), Usage(format!("--nodes {}: 1 to 9 are possible on one machine", dev.nodes)));
    let directory = tempfile::Builder::new().prefix("quorate-dev-").tempdir()?;
    let launch = Launch { binary: None, directory: directory.path().to_owned(), arguments: Vec::new() };
    let mut cluster = LocalCluster::start(launch, dev.nodes).await?;
    let endpoints = cluster.endpoints().join(",");
    output.record(&json!({
        "endpoints": endpoints,
        "http": cluster.nodes.iter().map(|node| format!("http://{}", node.addresses.http)).collect::<Vec<_>>(),
    }));
    eprintln!("data goes with this process; Ctrl-C ends it. Try next:");
    eprintln!("  export QUORATE_ENDPOINTS={endpoints}");
    eprintln!("  quorate cluster status");
    wait_for_stop(false).await?;
    cluster.stop().await?;
    Ok(ExitCode::SUCCESS)
}
