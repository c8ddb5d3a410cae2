//! What nodes say to each other beside Raft, and who is refused.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quorate_raft::memory::{MemoryFloor, MemoryLog, MemoryStates};
use quorate_raft::{
    ClusterId, Groups, GroupsConfig, Identity, NodeId, PeerError, PeerHandler, Seams, TaskHooks, TcpConnector,
    WriterMode,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::cluster::{CLUSTER, LONG};

struct Echo;

#[async_trait]
impl PeerHandler for Echo {
    async fn call(&self, from: NodeId, kind: u16, body: Bytes) -> Result<Bytes, PeerError> {
        match kind {
            1 => Ok([&from.0.to_be_bytes()[..], &body].concat().into()),
            2 => Err(PeerError::Refused { reason: "not today".to_owned() }),
            3 => Err(PeerError::ShuttingDown),
            _ => {
                std::future::pending::<()>().await;
                Ok(body)
            }
        }
    }

    async fn stream(&self, _: NodeId, kind: u16, mut inbound: mpsc::Receiver<Bytes>, outbound: mpsc::Sender<Bytes>) {
        while let Some(body) = inbound.recv().await {
            let answer = [&kind.to_be_bytes()[..], &body].concat();
            if outbound.send(answer.into()).await.is_err() {
                return;
            }
        }
        // The other side has closed; it still hears the last word.
        let _ = outbound.send(Bytes::from_static(b"bye")).await;
    }
}

async fn node(id: u64, cluster: Option<ClusterId>, incarnation: u64, dir: &std::path::Path) -> Groups {
    let identity = Identity::fixed(NodeId(id), cluster, incarnation);
    let data = dir.join(format!("{id}-{incarnation}"));
    let seams = Seams {
        log: Arc::new(MemoryLog::new()),
        floor: Arc::new(MemoryFloor::new()),
        states: Arc::new(MemoryStates::new(data.join("scratch"))),
        connector: Arc::new(TcpConnector),
        writer: WriterMode::Task(TaskHooks::instant()),
    };
    Groups::open(GroupsConfig::new(identity, data, String::new()), seams).await.unwrap()
}

/// A node that serves; returns its address.
async fn serve(groups: &Groups) -> String {
    groups.set_handler(Arc::new(Echo));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let groups = groups.clone();
    tokio::spawn(async move { groups.serve(listener, CancellationToken::new()).await });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_call_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (node(1, Some(CLUSTER), 1, dir.path()).await, node(2, Some(CLUSTER), 1, dir.path()).await);
    let address = serve(&two).await;
    let peer = one.peer(NodeId(2), &address);
    let answer = peer.call(1, Bytes::from_static(b"hello"), LONG).await.unwrap();
    assert_eq!(answer, [&1_u64.to_be_bytes()[..], b"hello"].concat());
    match peer.call(2, Bytes::new(), LONG).await {
        Err(PeerError::Refused { reason }) => assert_eq!(reason, "not today"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(peer.call(3, Bytes::new(), LONG).await, Err(PeerError::ShuttingDown)));
    let late = peer.call(4, Bytes::new(), Duration::from_millis(50)).await;
    assert!(matches!(late, Err(PeerError::TimedOut)), "{late:?}");
    let nobody = one.peer(NodeId(9), "127.0.0.1:1").call(1, Bytes::new(), LONG).await;
    assert!(matches!(nobody, Err(PeerError::Unreachable { .. })), "{nobody:?}");
    let other = one.peer(NodeId(5), &address).call(1, Bytes::new(), LONG).await;
    assert!(matches!(other, Err(PeerError::Refused { .. })), "node 2 is not node 5: {other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_stream_to_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (node(1, Some(CLUSTER), 1, dir.path()).await, node(2, Some(CLUSTER), 1, dir.path()).await);
    let address = serve(&two).await;
    let (outbound, mut inbound) = one.peer(NodeId(2), &address).stream(7).await.unwrap();
    for number in 0..200_u8 {
        outbound.send(vec![number].into()).await.unwrap();
        assert_eq!(inbound.recv().await.unwrap(), [0, 7, number].as_slice());
    }
    drop(outbound);
    assert_eq!(inbound.recv().await.unwrap(), "bye");
    assert_eq!(inbound.recv().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = node(2, Some(CLUSTER), 1, dir.path()).await;
    let address = serve(&server).await;
    let call = async |from: &Groups| from.peer(NodeId(2), &address).call(1, Bytes::new(), LONG).await;

    let foreign = node(1, Some(ClusterId(9)), 1, dir.path()).await;
    match call(&foreign).await {
        Err(PeerError::OtherCluster { ours, theirs }) => assert_eq!((ours, theirs), (ClusterId(9), CLUSTER)),
        other => panic!("{other:?}"),
    }
    let empty = node(3, None, 1, dir.path()).await;
    assert!(matches!(call(&empty).await, Err(PeerError::Refused { .. })));
    empty.adopt_cluster(CLUSTER).unwrap();
    call(&empty).await.unwrap();
    assert!(empty.adopt_cluster(ClusterId(9)).is_err());

    let old = node(4, Some(CLUSTER), 1, dir.path()).await;
    let (open, mut answers) = old.peer(NodeId(2), &address).stream(1).await.unwrap();
    open.send(Bytes::from_static(b"a")).await.unwrap();
    assert!(answers.recv().await.is_some());
    let new = node(4, Some(CLUSTER), 2, dir.path()).await;
    call(&new).await.unwrap();
    assert!(matches!(call(&old).await, Err(PeerError::Refused { .. })));
    // A stream from before ends with the next thing that it says.
    let _ = open.send(Bytes::from_static(b"b")).await;
    let rest = async { while answers.recv().await.is_some_and(|answer| answer == "bye") {} };
    tokio::time::timeout(LONG, rest).await.unwrap();
    call(&new).await.unwrap();
}
