//! What a cluster says of itself when not all is well.

use std::time::{Duration, Instant};

use quorate_api::v1::{ErrorReason, Health};

use crate::harness::{cluster, stop};

#[tokio::test(flavor = "multi_thread")]
async fn one_node_away_is_degraded_and_two_away_is_no_quorum() {
    let mut nodes = cluster(3).await;
    let away = nodes.remove(2);
    let away_id = away.id();
    away.handle.shutdown().await;
    let status = nodes[0]
        .wait_for("one node away is noticed", |status| {
            status.health() == Health::Degraded && status.nodes.iter().filter(|node| node.reachable).count() == 2
        })
        .await;
    assert!(status.problems.iter().any(|problem| problem.contains(&away_id)), "{status:#?}");
    assert!(status.next_steps.iter().any(|step| step.contains("quorate cluster leave")), "{status:#?}");
    nodes[0].enqueue(b"two are enough").await.expect("a majority is there");

    nodes.remove(1).handle.shutdown().await;
    let asked = Instant::now();
    let status = nodes[0].wait_for("no quorum is noticed", |status| status.health() == Health::NoQuorum).await;
    assert!(asked.elapsed() < Duration::from_secs(20));
    assert!(status.problems[0].contains("quorum"), "{status:#?}");
    assert_eq!(status.nodes.len(), 3);
    let refused = nodes[0].enqueue(b"one is not").await.expect_err("no quorum");
    assert!(
        matches!(refused.reason, ErrorReason::NoLeader | ErrorReason::OutcomeUnknown | ErrorReason::NotLeader),
        "{refused}"
    );
    let (alive, _) = nodes[0].http_get("/health").await;
    assert_eq!(alive, 200, "liveness asks for no quorum");
    stop(nodes).await;
}
