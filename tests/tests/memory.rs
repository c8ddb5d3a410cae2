//! Points and searches on clusters of real processes: through any node, over one shard and over eight, across restarts and
//! deaths.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{self as api, ErrorReason};
use quorate_client::{Client, Error, NewCollection, Search};
use quorate_tests::{TestCluster, eventually};
use uuid::Uuid;

const DIMENSION: usize = 8;

/// A vector that is the same for the same seed and unlike those of others.
fn vector(seed: u64) -> Vec<f32> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    (0..DIMENSION).map(|_| next()).collect()
}

fn point(id: impl Into<String>, seed: u64) -> api::PointInput {
    let payload = format!("{{\"seed\":{seed}}}").into();
    api::PointInput { id: id.into(), vector: vector(seed), payload, expected_version: None }
}

fn search(vector: Vec<f32>, k: u32) -> Search {
    Search::new("notes", vector, k).with_payload()
}

async fn make(client: &Client, shards: u32) -> Result<()> {
    client
        .create_collection(NewCollection::new("notes", DIMENSION as u32).metric(api::Metric::L2).shards(shards))
        .await?;
    Ok(())
}

/// Writes points and says which version each got; every outcome must be a success.
async fn write(client: &Client, points: Vec<api::PointInput>) -> Result<api::UpsertResponse> {
    let response = client.upsert("notes", points).await?;
    for outcome in &response.outcomes {
        ensure!(outcome.error.is_none(), "refused: {:?}", outcome.error);
    }
    Ok(response)
}

async fn ids_found(client: &Client, ids: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for some in ids.chunks(500) {
        let request = api::GetPointsRequest { collection: "notes".into(), ids: some.to_vec(), ..Default::default() };
        let points = client.get_points(&request).await?;
        found.extend(points.into_iter().map(|point| point.id));
    }
    Ok(found)
}

/// The ids of the `k` nearest points by comparing with all.
fn nearest(points: &BTreeMap<String, u64>, query: &[f32], k: usize) -> Vec<String> {
    let distance = |seed: u64| vector(seed).iter().zip(query).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
    let mut ranked: Vec<_> = points.iter().map(|(id, seed)| (distance(*seed), id.clone())).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    ranked.into_iter().take(k).map(|(_, id)| id).collect()
}

async fn assert_answers(client: &Client, points: &BTreeMap<String, u64>) -> Result<()> {
    for query in 0..5 {
        let query = vector(900_000 + query);
        let response = client.search(&search(query.clone(), 10)).await?;
        ensure!(response.degraded_shards.is_empty(), "degraded: {:?}", response.degraded_shards);
        let ids: Vec<String> = response.hits.iter().map(|hit| hit.id.clone()).collect();
        assert_eq!(ids, nearest(points, &query, 10));
        for hit in &response.hits {
            assert_eq!(hit.payload, format!("{{\"seed\":{}}}", points[&hit.id]));
        }
    }
    let ids: Vec<String> = points.keys().cloned().collect();
    assert_eq!(ids_found(client, &ids).await?, ids);
    Ok(())
}

fn refusal(answer: Result<impl Sized, Error>) -> Result<(ErrorReason, Error)> {
    let error = answer.err().context("this must be refused")?;
    Ok((error.reason().with_context(|| format!("no reason: {error}"))?, error))
}

async fn every_node_writes_and_finds(shards: u32) -> Result<()> {
    let test = TestCluster::start(3).await?;
    make(&test.cluster.client_of(0)?, shards).await?;
    let mut points = BTreeMap::new();
    for node in 0..3 {
        let client = test.cluster.client_of(node)?;
        let batch: Vec<u64> = (0..200).map(|n| node as u64 * 200 + n).collect();
        points.extend(batch.iter().map(|seed| (format!("p{seed}"), *seed)));
        write(&client, batch.iter().map(|seed| point(format!("p{seed}"), *seed)).collect()).await?;
    }
    // Overwritten and deleted through yet another node.
    let client = test.cluster.client_of(1)?;
    write(&client, (0..50).map(|n| point(format!("p{n}"), 5_000 + n)).collect()).await?;
    points.extend((0..50).map(|n| (format!("p{n}"), 5_000 + n)));
    let gone: Vec<String> = (50..80).map(|n| format!("p{n}")).collect();
    assert_eq!(client.delete_points("notes", gone.clone()).await?.deleted, 30);
    assert_eq!(client.delete_points("notes", gone.clone()).await?.deleted, 0);
    points.retain(|id, _| !gone.contains(id));
    for node in 0..3 {
        assert_answers(&test.cluster.client_of(node)?, &points).await?;
    }
    let listed = client.list_collections().await?;
    assert_eq!((listed.len(), listed[0].shards.len(), listed[0].points), (1, shards as usize, points.len() as u64));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_writes_and_finds_over_one_shard() -> Result<()> {
    every_node_writes_and_finds(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_writes_and_finds_over_eight_shards() -> Result<()> {
    every_node_writes_and_finds(8).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_read_at_once_through_another_node() -> Result<()> {
    let test = TestCluster::start(3).await?;
    make(&test.cluster.client_of(0)?, 1).await?;
    let clients = (0..3).map(|node| test.cluster.client_of(node)).collect::<Result<Vec<_>>>()?;
    for round in 0..60_u64 {
        let (writer, reader) = (&clients[round as usize % 3], &clients[(round as usize + 1) % 3]);
        let response = write(writer, vec![point("changing", round)]).await?;
        let version = response.outcomes[0].version;
        // Linearizable, which is the default.
        let hits = reader.search(&search(vector(round), 1)).await?.hits;
        assert_eq!((hits[0].id.as_str(), hits[0].version), ("changing", version));
        // In the session of the write, through the third node.
        let session = search(vector(round), 1).session(response.positions);
        let hits = clients[(round as usize + 2) % 3].search(&session).await?.hits;
        assert_eq!((hits[0].version, hits[0].score), (version, 0.0));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conditional_write_and_a_repeated_one_take_effect_once() -> Result<()> {
    let test = TestCluster::start(1).await?;
    let client = test.cluster.client_of(0)?;
    make(&client, 1).await?;
    let conditional = |seed: u64, expected: u64| {
        let point = api::PointInput { expected_version: Some(expected), ..point("a", seed) };
        let client = client.clone();
        async move { anyhow::Ok(client.upsert("notes", vec![point]).await?.outcomes.remove(0)) }
    };
    let conflict = |outcome: api::WriteOutcome, actual: u64| {
        let error = outcome.error.expect("a conflict");
        assert_eq!(
            (error.reason.as_str(), error.metadata["actual"].as_str()),
            ("VERSION_CONFLICT", actual.to_string().as_str())
        );
    };
    conflict(conditional(1, 7).await?, 0);
    let made = conditional(1, 0).await?.version;
    assert!(made > 0);
    conflict(conditional(2, 0).await?, made);
    conflict(conditional(2, made + 1).await?, made);
    let changed = conditional(2, made).await?.version;
    assert!(changed > made);

    // The same request twice is one write, although its condition would not hold the second time.
    let once = client.retry_as(Uuid::now_v7());
    let point = api::PointInput { expected_version: Some(changed), ..point("a", 3) };
    let first = once.upsert("notes", vec![point.clone()]).await?.outcomes;
    let again = once.upsert("notes", vec![point]).await?.outcomes;
    assert!(first[0].error.is_none() && first == again, "{first:?} and {again:?}");

    assert_eq!(client.delete_points("notes", vec!["a".into()]).await?.deleted, 1);
    conflict(conditional(4, first[0].version).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_all_nodes_keeps_all_points() -> Result<()> {
    let mut test = TestCluster::start(3).await?;
    make(&test.cluster.client_of(0)?, 8).await?;
    let client = test.cluster.client()?;
    let mut points = BTreeMap::new();
    for batch in 0..4 {
        let seeds = batch * 250..(batch + 1) * 250;
        write(&client, seeds.clone().map(|seed| point(format!("p{seed}"), seed)).collect()).await?;
        points.extend(seeds.map(|seed| (format!("p{seed}"), seed)));
    }
    for node in &mut test.cluster.nodes {
        node.kill().await?;
    }
    for node in 0..3 {
        test.cluster.restart(node).await?;
    }
    test.cluster.wait_healthy().await?;
    for node in 0..3 {
        assert_answers(&test.cluster.client_of(node)?, &points).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_a_shards_leader_loses_nothing_and_stops_nothing_for_long() -> Result<()> {
    let mut test = TestCluster::start(3).await?;
    make(&test.cluster.client_of(0)?, 1).await?;
    let client = test.cluster.client()?;
    let shard = client.list_collections().await?[0].shards[0];
    let writer = tokio::spawn({
        let client = client.with_deadline(Duration::from_secs(20));
        async move {
            let mut points = BTreeMap::new();
            for seed in 0..1_500 {
                write(&client, vec![point(format!("p{seed}"), seed)]).await?;
                points.insert(format!("p{seed}"), seed);
            }
            anyhow::Ok(points)
        }
    });
    eventually("some points are written", async || {
        Ok(client.list_collections().await.ok().filter(|listed| listed[0].points > 50))
    })
    .await?;
    let status = client.cluster_status().await?;
    let group = status.shards.iter().find(|group| group.group == shard).context("the shard has a status")?;
    let leader = test.cluster.nodes.iter().position(|node| node.addresses.node_id == group.leader_node_id);
    let leader = leader.context("the shard has a leader")?;
    test.cluster.nodes[leader].kill().await?;
    let points = writer.await??;
    assert_eq!(points.len(), 1_500);
    let survivor = test.cluster.client_of((leader + 1) % 3)?;
    assert_answers(&survivor, &points).await?;
    // The dead node comes back and catches up.
    test.cluster.restart(leader).await?;
    test.cluster.wait_healthy().await?;
    assert_answers(&test.cluster.client_of(leader)?, &points).await
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_without_a_quorum_are_named_and_weaker_reads_go_on() -> Result<()> {
    let mut test = TestCluster::start(3).await?;
    make(&test.cluster.client_of(0)?, 8).await?;
    let points: BTreeMap<String, u64> = (0..100).map(|seed| (format!("p{seed}"), seed)).collect();
    let written =
        write(&test.cluster.client()?, points.iter().map(|(id, seed)| point(id.as_str(), *seed)).collect()).await?;
    let last = test.cluster.client_of(0)?;
    // The survivor has all that was written: a session read waits for it.
    let session = search(vector(1), 100).session(written.positions);
    assert_eq!(last.search(&session).await?.hits.len(), 100);
    for node in [1, 2] {
        test.cluster.nodes[node].kill().await?;
    }
    let (reason, error) = refusal(last.search(&search(vector(1), 10)).await)?;
    assert_eq!(reason, ErrorReason::ShardUnavailable, "{error}");
    let brief = last.with_deadline(Duration::from_secs(3));
    let unwritten = brief.upsert("notes", vec![point("late", 1)]).await;
    assert!(unwritten.is_err(), "a write without a quorum was acknowledged");
    let any = search(vector(1), 10).consistency(api::Consistency::Any);
    let response = last.search(&any).await?;
    assert!(response.degraded_shards.is_empty());
    assert_eq!(response.hits.iter().map(|hit| hit.id.clone()).collect::<Vec<_>>(), nearest(&points, &vector(1), 10));
    test.cluster.restart(1).await?;
    eventually("the shards have a quorum again", async || {
        Ok(last.search(&search(vector(1), 10)).await.ok().filter(|response| response.degraded_shards.is_empty()))
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_collection_is_gone_and_its_name_is_free() -> Result<()> {
    let test = TestCluster::start(1).await?;
    let client = test.cluster.client_of(0)?;
    make(&client, 8).await?;
    write(&client, (0..100).map(|seed| point(format!("p{seed}"), seed)).collect()).await?;
    client.delete_collection("notes").await?;
    let (reason, _) = refusal(client.search(&search(vector(1), 1)).await)?;
    assert_eq!(reason, ErrorReason::CollectionNotFound);
    assert_eq!(refusal(client.delete_collection("notes").await)?.0, ErrorReason::CollectionNotFound);
    make(&client, 8).await?;
    assert!(client.search(&search(vector(1), 1)).await?.hits.is_empty());
    eventually("the old one has left its shards", async || {
        Ok(Some(client.list_collections().await?).filter(|listed| listed.len() == 1 && !listed[0].deleting))
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_input_has_its_own_reason() -> Result<()> {
    let test = TestCluster::start(1).await?;
    let client = test.cluster.client_of(0)?;
    make(&client, 1).await?;
    let upsert = |point: api::PointInput| {
        let client = client.clone();
        async move { anyhow::Ok(refusal(client.upsert("notes", vec![point]).await)?.0) }
    };
    let with_vector = |vector: Vec<f32>| api::PointInput { vector, ..point("a", 1) };
    assert_eq!(upsert(with_vector(vec![1.0; DIMENSION + 1])).await?, ErrorReason::WrongDimension);
    assert_eq!(upsert(with_vector(vec![f32::NAN; DIMENSION])).await?, ErrorReason::NotFinite);
    assert_eq!(upsert(point("", 1)).await?, ErrorReason::InvalidArgument);
    assert_eq!(upsert(point("x".repeat(257), 1)).await?, ErrorReason::TooLarge);
    let with_payload = |payload: Vec<u8>| api::PointInput { payload: payload.into(), ..point("a", 1) };
    assert_eq!(upsert(with_payload(b"[1]".to_vec())).await?, ErrorReason::InvalidArgument);
    assert_eq!(upsert(with_payload(vec![b' '; (64 << 10) + 1])).await?, ErrorReason::TooLarge);
    let twice = client.upsert("notes", vec![point("a", 1), point("a", 2)]).await;
    assert_eq!(refusal(twice)?.0, ErrorReason::InvalidArgument);
    let many = (0..1_001).map(|n| point(n.to_string(), n)).collect();
    assert_eq!(refusal(client.upsert("notes", many).await)?.0, ErrorReason::TooLarge);
    let elsewhere = client.upsert("nowhere", vec![point("a", 1)]).await;
    assert_eq!(refusal(elsewhere)?.0, ErrorReason::CollectionNotFound);

    assert_eq!(refusal(client.search(&search(vec![1.0], 1)).await)?.0, ErrorReason::WrongDimension);
    assert_eq!(refusal(client.search(&search(vec![f32::INFINITY; DIMENSION], 1)).await)?.0, ErrorReason::NotFinite);
    assert_eq!(refusal(client.search(&search(vector(1), 0)).await)?.0, ErrorReason::InvalidArgument);
    assert_eq!(refusal(client.search(&search(vector(1), 1_001)).await)?.0, ErrorReason::InvalidArgument);

    let create = |name: &str, dimension: u32, shards: u32| {
        let client = client.clone();
        let collection = NewCollection::new(name, dimension).shards(shards);
        async move { anyhow::Ok(refusal(client.create_collection(collection).await)?.0) }
    };
    assert_eq!(create("notes", 4, 1).await?, ErrorReason::CollectionExists);
    assert_eq!(create("wide", 4, 9).await?, ErrorReason::InvalidArgument);
    assert_eq!(create("deep", 4_097, 1).await?, ErrorReason::InvalidArgument);
    assert_eq!(create("flat", 0, 1).await?, ErrorReason::InvalidArgument);
    assert_eq!(create("", 4, 1).await?, ErrorReason::InvalidArgument);
    Ok(())
}
