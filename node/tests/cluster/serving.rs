//! What generic gRPC tools ask of a node: health and reflection.

use quorate_api::v1::agents_service_server::SERVICE_NAME as AGENTS;
use quorate_api::v1::cluster_service_server::SERVICE_NAME as CLUSTER;
use quorate_api::v1::memory_service_server::SERVICE_NAME as MEMORY;
use quorate_api::v1::tasks_service_server::SERVICE_NAME as TASKS;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::harness::{PATIENCE, TestNode};

fn service(name: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: name.to_owned() }
}

async fn health(client: &HealthClient<Channel>, name: &str) -> ServingStatus {
    let answer = client.clone().check(service(name)).await.expect("a service that is known");
    answer.into_inner().status()
}

/// Reads until the stream tells the status.
async fn told(statuses: &mut tonic::Streaming<tonic_health::pb::HealthCheckResponse>, wanted: ServingStatus) {
    let wait =
        async { while statuses.message().await.expect("the stream goes on").expect("a status").status() != wanted {} };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{wanted:?} was never told"));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_what_is_served_before_and_after_init() {
    let node = TestNode::start().await;
    let client = HealthClient::new(node.channel().await);
    // The node as a whole is known from the start. Of the names the memory service is told last, so when the watch of it
    // says something all of them are right.
    let mut whole = client.clone().watch(service("")).await.expect("a watch").into_inner();
    told(&mut whole, ServingStatus::NotServing).await;
    let mut memory = loop {
        match client.clone().watch(service(MEMORY)).await {
            Ok(statuses) => break statuses.into_inner(),
            // Not told yet.
            Err(status) if status.code() == tonic::Code::NotFound => tokio::task::yield_now().await,
            Err(status) => panic!("{status}"),
        }
    };
    told(&mut memory, ServingStatus::NotServing).await;
    for name in ["", TASKS, AGENTS, MEMORY] {
        assert_eq!(health(&client, name).await, ServingStatus::NotServing, "{name:?} before init");
    }
    assert_eq!(health(&client, CLUSTER).await, ServingStatus::Serving, "init itself can be asked for");

    node.init(2).await.expect("init");
    told(&mut memory, ServingStatus::Serving).await;
    for name in ["", TASKS, AGENTS, MEMORY, CLUSTER] {
        assert_eq!(health(&client, name).await, ServingStatus::Serving, "{name:?} after init");
    }
    let unknown = client.clone().check(service("quorate.v1.Nothing")).await.expect_err("no such service");
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    node.handle.shutdown().await;
}

async fn reflect(node: &TestNode, question: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(node.channel().await);
    let answers = client.server_reflection_info(tokio_stream::iter([request])).await.expect("reflection is served");
    let answer: Option<ServerReflectionResponse> = answers.into_inner().message().await.expect("an answer");
    answer.and_then(|answer| answer.message_response).expect("an answer to the question")
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_and_describes_every_service() {
    let node = TestNode::start().await;
    let MessageResponse::ListServicesResponse(listed) = reflect(&node, MessageRequest::ListServices("*".into())).await
    else {
        panic!("no list");
    };
    let names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    for name in [CLUSTER, TASKS, AGENTS, MEMORY] {
        assert!(name.starts_with("quorate.v1."), "{name}");
        assert!(names.contains(&name), "{name} is not in {names:?}");
        let described = reflect(&node, MessageRequest::FileContainingSymbol(name.into())).await;
        let MessageResponse::FileDescriptorResponse(file) = described else { panic!("{name}: {described:?}") };
        assert!(!file.file_descriptor_proto.is_empty(), "{name}");
    }
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
    node.handle.shutdown().await;
}
