//! Points and searches on clusters of real processes: through any node, across restarts and deaths. Every test is about a
//! collection of one shard and about one of eight.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quorate_client::v1::{self as api, ErrorReason};
use quorate_client::{Client, Error, NewCollection, Search};
use quorate_tests::{TestCluster, eventually};
use uuid::Uuid;

const DIMENSION: usize = 8;
/// The collections of each test, and their shards.
const COLLECTIONS: [(&str, u32); 2] = [("one", 1), ("eight", 8)];

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

fn search(collection: &str, vector: Vec<f32>, k: u32) -> Search {
    Search::new(collection, vector, k).with_payload()
}

async fn make(client: &Client, collection: &str, shards: u32) -> Result<()> {
    let collection = NewCollection::new(collection, DIMENSION as u32).metric(api::Metric::L2).shards(shards);
    client.create_collection(collection).await?;
    Ok(())
}

/// A healthy cluster with both collections.
async fn cluster(size: usize) -> Result<TestCluster> {
    let test = TestCluster::start(size).await?;
    let client = test.cluster.client_of(0)?;
    for (collection, shards) in COLLECTIONS {
        make(&client, collection, shards).await?;
    }
    Ok(test)
}

/// Writes points and says which version each got; every outcome must be a success.
async fn write(client: &Client, collection: &str, points: Vec<api::PointInput>) -> Result<api::UpsertResponse> {
    let response = client.upsert(collection, points).await?;
    for outcome in &response.outcomes {
        ensure!(outcome.error.is_none(), "refused: {:?}", outcome.error);
    }
    Ok(response)
}

/// Writes a point for each seed, in one batch, and keeps account of them in `points`.
async fn write_seeds(
    client: &Client,
    collection: &str,
    points: &mut BTreeMap<String, u64>,
    seeds: Range<u64>,
) -> Result<api::UpsertResponse> {
    let batch = seeds.clone().map(|seed| point(format!("p{seed}"), seed)).collect();
    points.extend(seeds.map(|seed| (format!("p{seed}"), seed)));
    write(client, collection, batch).await
}

async fn listed(client: &Client, collection: &str) -> Result<api::Collection> {
    let listed = client.list_collections().await?;
    listed.into_iter().find(|listed| listed.name == collection && !listed.deleting).context("it is listed")
}

async fn ids_found(client: &Client, collection: &str, ids: &[String]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for some in ids.chunks(500) {
        let request = api::GetPointsRequest { collection: collection.into(), ids: some.to_vec(), ..Default::default() };
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

async fn assert_answers(client: &Client, collection: &str, points: &BTreeMap<String, u64>) -> Result<()> {
    for query in 0..5 {
        let query = vector(900_000 + query);
        let response = client.search(&search(collection, query.clone(), 10)).await?;
        ensure!(response.degraded_shards.is_empty(), "degraded: {:?}", response.degraded_shards);
        let ids: Vec<String> = response.hits.iter().map(|hit| hit.id.clone()).collect();
        assert_eq!(ids, nearest(points, &query, 10), "of {collection}");
        for hit in &response.hits {
            assert_eq!(hit.payload, format!("{{\"seed\":{}}}", points[&hit.id]));
        }
    }
    let ids: Vec<String> = points.keys().cloned().collect();
    assert_eq!(ids_found(client, collection, &ids).await?, ids);
    Ok(())
}

fn refusal(answer: Result<impl Sized, Error>) -> Result<(ErrorReason, Error)> {
    let error = answer.err().context("this must be refused")?;
    Ok((error.reason().with_context(|| format!("no reason: {error}"))?, error))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_writes_and_finds() -> Result<()> {
    let test = cluster(3).await?;
    for (collection, shards) in COLLECTIONS {
        let mut points = BTreeMap::new();
        for node in 0..3 {
            let client = test.cluster.client_of(node)?;
            let first = node as u64 * 200;
            write_seeds(&client, collection, &mut points, first..first + 200).await?;
        }
        // Overwritten and deleted through yet another node.
        let client = test.cluster.client_of(1)?;
        write(&client, collection, (0..50).map(|n| point(format!("p{n}"), 5_000 + n)).collect()).await?;
        points.extend((0..50).map(|n| (format!("p{n}"), 5_000 + n)));
        let gone: Vec<String> = (50..80).map(|n| format!("p{n}")).collect();
        assert_eq!(client.delete_points(collection, gone.clone()).await?.deleted, 30);
        assert_eq!(client.delete_points(collection, gone.clone()).await?.deleted, 0);
        points.retain(|id, _| !gone.contains(id));
        for node in 0..3 {
            assert_answers(&test.cluster.client_of(node)?, collection, &points).await?;
        }
        let listed = listed(&client, collection).await?;
        assert_eq!((listed.shards.len(), listed.points), (shards as usize, points.len() as u64));
    }
    assert_eq!(test.cluster.client_of(1)?.list_collections().await?.len(), COLLECTIONS.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_read_at_once_through_another_node() -> Result<()> {
    let test = cluster(3).await?;
    let clients = (0..3).map(|node| test.cluster.client_of(node)).collect::<Result<Vec<_>>>()?;
    for (round, (collection, _)) in (0..80_u64).zip(COLLECTIONS.into_iter().cycle()) {
        // Each node comes to write, to read and to read in a session, for each collection.
        let turn = (round / 2) as usize;
        let (writer, reader, third) = (&clients[turn % 3], &clients[(turn + 1) % 3], &clients[(turn + 2) % 3]);
        let response = write(writer, collection, vec![point("changing", round)]).await?;
        let version = response.outcomes[0].version;
        // Linearizable, which is the default.
        let hits = reader.search(&search(collection, vector(round), 1)).await?.hits;
        assert_eq!((hits[0].id.as_str(), hits[0].version), ("changing", version));
        // In the session of the write, through the third node.
        let session = search(collection, vector(round), 1).session(response.positions);
        let hits = third.search(&session).await?.hits;
        assert_eq!((hits[0].version, hits[0].score), (version, 0.0));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conditional_write_and_a_repeated_one_take_effect_once() -> Result<()> {
    let test = cluster(1).await?;
    let client = test.cluster.client_of(0)?;
    for (collection, _) in COLLECTIONS {
        let conditional = |seed: u64, expected: u64| {
            let point = api::PointInput { expected_version: Some(expected), ..point("a", seed) };
            let client = client.clone();
            async move { anyhow::Ok(client.upsert(collection, vec![point]).await?.outcomes.remove(0)) }
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
        let first = once.upsert(collection, vec![point.clone()]).await?.outcomes;
        let again = once.upsert(collection, vec![point]).await?.outcomes;
        assert!(first[0].error.is_none() && first == again, "{first:?} and {again:?}");

        assert_eq!(client.delete_points(collection, vec!["a".into()]).await?.deleted, 1);
        conflict(conditional(4, first[0].version).await?, 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_all_nodes_keeps_all_points() -> Result<()> {
    let mut test = cluster(3).await?;
    let client = test.cluster.client()?;
    let mut points = BTreeMap::new();
    for batch in 0..4 {
        for (collection, _) in COLLECTIONS {
            write_seeds(&client, collection, &mut points, batch * 250..(batch + 1) * 250).await?;
        }
    }
    for node in &mut test.cluster.nodes {
        node.kill().await?;
    }
    for node in 0..3 {
        test.cluster.restart(node).await?;
    }
    test.cluster.wait_healthy().await?;
    for node in 0..3 {
        for (collection, _) in COLLECTIONS {
            assert_answers(&test.cluster.client_of(node)?, collection, &points).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_a_shards_leader_loses_nothing_and_stops_nothing_for_long() -> Result<()> {
    const POINTS: u64 = 1_000;
    let mut test = cluster(3).await?;
    let client = test.cluster.client()?;
    // The shard is one of the eight too, so that its leader's death meets both collections.
    let shard = listed(&client, "one").await?.shards[0];
    assert!(listed(&client, "eight").await?.shards.contains(&shard));
    let writers = COLLECTIONS.map(|(collection, _)| {
        let client = client.with_deadline(Duration::from_secs(20));
        tokio::spawn(async move {
            let mut points = BTreeMap::new();
            for seed in 0..POINTS {
                write_seeds(&client, collection, &mut points, seed..seed + 1).await?;
            }
            anyhow::Ok(points)
        })
    });
    eventually("some points are written", async || {
        let Ok(listed) = client.list_collections().await else { return Ok(None) };
        Ok(listed.iter().all(|listed| listed.points > 50).then_some(()))
    })
    .await?;
    let status = client.cluster_status().await?;
    let group = status.shards.iter().find(|group| group.group == shard).context("the shard has a status")?;
    let leader = test.cluster.nodes.iter().position(|node| node.addresses.node_id == group.leader_node_id);
    let leader = leader.context("the shard has a leader")?;
    test.cluster.nodes[leader].kill().await?;
    let survivor = test.cluster.client_of((leader + 1) % 3)?;
    let mut written = Vec::new();
    for ((collection, _), writer) in COLLECTIONS.into_iter().zip(writers) {
        let points = writer.await??;
        assert_eq!(points.len() as u64, POINTS);
        assert_answers(&survivor, collection, &points).await?;
        written.push((collection, points));
    }
    // The dead node comes back and catches up.
    test.cluster.restart(leader).await?;
    test.cluster.wait_healthy().await?;
    for (collection, points) in written {
        assert_answers(&test.cluster.client_of(leader)?, collection, &points).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_without_a_quorum_are_named_and_weaker_reads_go_on() -> Result<()> {
    let mut test = cluster(3).await?;
    let writer = test.cluster.client()?;
    let last = test.cluster.client_of(0)?;
    let mut points = BTreeMap::new();
    for (collection, _) in COLLECTIONS {
        let written = write_seeds(&writer, collection, &mut points, 0..100).await?;
        // The survivor has all that was written: a session read waits for it.
        let session = search(collection, vector(1), 100).session(written.positions);
        assert_eq!(last.search(&session).await?.hits.len(), 100);
    }
    for node in [1, 2] {
        test.cluster.nodes[node].kill().await?;
    }
    let brief = last.with_deadline(Duration::from_secs(3));
    for (collection, _) in COLLECTIONS {
        let (reason, error) = refusal(last.search(&search(collection, vector(1), 10)).await)?;
        assert_eq!(reason, ErrorReason::ShardUnavailable, "{error}");
        let unwritten = brief.upsert(collection, vec![point("late", 1)]).await;
        assert!(unwritten.is_err(), "a write without a quorum was acknowledged");
        let any = search(collection, vector(1), 10).consistency(api::Consistency::Any);
        let response = last.search(&any).await?;
        assert!(response.degraded_shards.is_empty());
        let ids: Vec<String> = response.hits.iter().map(|hit| hit.id.clone()).collect();
        assert_eq!(ids, nearest(&points, &vector(1), 10));
    }
    test.cluster.restart(1).await?;
    for (collection, _) in COLLECTIONS {
        eventually("the shards have a quorum again", async || {
            let response = last.search(&search(collection, vector(1), 10)).await.ok();
            Ok(response.filter(|response| response.degraded_shards.is_empty()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_collection_is_gone_at_every_node_and_its_name_is_free() -> Result<()> {
    let test = cluster(3).await?;
    let clients = (0..3).map(|node| test.cluster.client_of(node)).collect::<Result<Vec<_>>>()?;
    for (collection, shards) in COLLECTIONS {
        let found = |client: &Client| {
            let client = client.clone();
            async move { client.search(&search(collection, vector(1), 200)).await.map(|response| response.hits.len()) }
        };
        write_seeds(&clients[0], collection, &mut BTreeMap::new(), 0..100).await?;
        assert_eq!(found(&clients[1]).await?, 100);
        clients[0].delete_collection(collection).await?;
        // At once, whatever these nodes have heard.
        assert_eq!(refusal(found(&clients[1]).await)?.0, ErrorReason::CollectionNotFound);
        let late = clients[2].upsert(collection, vec![point("late", 1)]).await;
        assert_eq!(refusal(late)?.0, ErrorReason::CollectionNotFound);
        assert_eq!(refusal(clients[1].delete_collection(collection).await)?.0, ErrorReason::CollectionNotFound);

        make(&clients[1], collection, shards).await?;
        assert_eq!(found(&clients[2]).await?, 0);
        write_seeds(&clients[0], collection, &mut BTreeMap::new(), 0..10).await?;
        assert_eq!(found(&clients[2]).await?, 10);
        // Deleted and made anew by others: the next write through a node goes to the new one.
        clients[0].delete_collection(collection).await?;
        make(&clients[0], collection, shards).await?;
        write_seeds(&clients[2], collection, &mut BTreeMap::new(), 0..20).await?;
        assert_eq!(found(&clients[1]).await?, 20);
    }
    eventually("the old ones have left their shards", async || {
        let listed = clients[0].list_collections().await?;
        Ok((listed.len() == COLLECTIONS.len() && listed.iter().all(|listed| !listed.deleting)).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_input_has_its_own_reason() -> Result<()> {
    let test = cluster(1).await?;
    let client = test.cluster.client_of(0)?;
    for (collection, _) in COLLECTIONS {
        bad_points_and_searches_are_refused(&client, collection).await?;
    }
    let elsewhere = client.upsert("nowhere", vec![point("a", 1)]).await;
    assert_eq!(refusal(elsewhere)?.0, ErrorReason::CollectionNotFound);
    let create = |name: &str, dimension: u32, shards: u32| {
        let client = client.clone();
        let collection = NewCollection::new(name, dimension).shards(shards);
        async move { anyhow::Ok(refusal(client.create_collection(collection).await)?.0) }
    };
    assert_eq!(create("one", 4, 1).await?, ErrorReason::CollectionExists);
    assert_eq!(create("wide", 4, 9).await?, ErrorReason::InvalidArgument);
    assert_eq!(create("deep", 4_097, 1).await?, ErrorReason::InvalidArgument);
    assert_eq!(create("flat", 0, 1).await?, ErrorReason::InvalidArgument);
    assert_eq!(create("", 4, 1).await?, ErrorReason::InvalidArgument);
    Ok(())
}

async fn bad_points_and_searches_are_refused(client: &Client, collection: &str) -> Result<()> {
    let upsert = async |point: api::PointInput| anyhow::Ok(refusal(client.upsert(collection, vec![point]).await)?.0);
    let with_vector = |vector: Vec<f32>| api::PointInput { vector, ..point("a", 1) };
    assert_eq!(upsert(with_vector(vec![1.0; DIMENSION + 1])).await?, ErrorReason::WrongDimension);
    assert_eq!(upsert(with_vector(vec![f32::NAN; DIMENSION])).await?, ErrorReason::NotFinite);
    assert_eq!(upsert(point("", 1)).await?, ErrorReason::InvalidArgument);
    assert_eq!(upsert(point("x".repeat(257), 1)).await?, ErrorReason::TooLarge);
    let with_payload = |payload: Vec<u8>| api::PointInput { payload: payload.into(), ..point("a", 1) };
    assert_eq!(upsert(with_payload(b"[1]".to_vec())).await?, ErrorReason::InvalidArgument);
    assert_eq!(upsert(with_payload(vec![b' '; (64 << 10) + 1])).await?, ErrorReason::TooLarge);
    let twice = client.upsert(collection, vec![point("a", 1), point("a", 2)]).await;
    assert_eq!(refusal(twice)?.0, ErrorReason::InvalidArgument);
    let many = (0..1_001).map(|n| point(n.to_string(), n)).collect();
    assert_eq!(refusal(client.upsert(collection, many).await)?.0, ErrorReason::TooLarge);

    let search =
        async |vector: Vec<f32>, k: u32| anyhow::Ok(refusal(client.search(&search(collection, vector, k)).await)?.0);
    assert_eq!(search(vec![1.0], 1).await?, ErrorReason::WrongDimension);
    assert_eq!(search(vec![f32::INFINITY; DIMENSION], 1).await?, ErrorReason::NotFinite);
    assert_eq!(search(vector(1), 0).await?, ErrorReason::InvalidArgument);
    assert_eq!(search(vector(1), 1_001).await?, ErrorReason::InvalidArgument);
    Ok(())
}
