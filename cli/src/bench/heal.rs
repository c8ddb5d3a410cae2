//! `quorate bench heal`.

use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use quorate_client::{Client, NewCollection, v1 as api};
use serde_json::{Value, json};

use super::{Measured, Target};
use crate::damage;
use crate::exit::Usage;
use crate::local_cluster::LocalCluster;
use crate::output::Format;

const COLLECTION: &str = "heal";
/// A point is a vector of so many numbers and a payload; about `POINT_BYTES` together.
const DIMENSION: usize = 64;
const POINT_BYTES: usize = 4 << 10;
const PAYLOAD_BYTES: usize = POINT_BYTES - 4 * DIMENSION;
/// Points in one upsert, and upserts under way at once.
const BATCH: usize = 128;
const WRITERS: usize = 8;
/// How long the replicas may take to be equal again.
const HEAL: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_millis(20);

/// Damages the files of one node of a spawned cluster and watches how it heals.
#[derive(Args)]
pub struct Heal {
    #[command(flatten)]
    target: Target,
    /// How much is loaded before, in MiB of points, all of them into one shard.
    #[arg(long, default_value_t = 256)]
    mib: usize,
}

/// Within this a damaged replica is a voter again, up to [`PROMISED_MIB`]. More data may take longer.
const PROMISED: Duration = Duration::from_secs(60);
const PROMISED_MIB: usize = 1_024;

/// Runs the damage and prints the figures; fails if the replicas do not become equal, or not as fast as is promised.
pub(super) async fn run(bench: Heal, endpoints: &[String], output: Format) -> Result<ExitCode> {
    ensure!((1..=65_536).contains(&bench.mib), Usage(format!("--mib {}: 1 to 65536 are possible", bench.mib)));
    ensure!(
        bench.target.spawn.is_some_and(|size| size >= 3),
        Usage("bench heal damages a node, and others must have its data: it needs --spawn 3".into())
    );
    let Measured { client, spawned } = bench.target.reach(endpoints).await?;
    let (mut cluster, _directory) = spawned.context("it was started just now")?;
    let figures = measure(&bench, &client, &mut cluster).await?;
    output.record(&figures.record);
    let late = bench.mib <= PROMISED_MIB && figures.voting > PROMISED;
    ensure!(!late, "the replica voted again after {:?}, and {PROMISED:?} is promised", figures.voting);
    Ok(ExitCode::SUCCESS)
}

/// What is printed, and how long the replica did not vote.
struct Figures {
    record: Value,
    voting: Duration,
}

async fn measure(bench: &Heal, client: &Client, cluster: &mut LocalCluster) -> Result<Figures> {
    client.create_collection(NewCollection::new(COLLECTION, DIMENSION as u32)).await?;
    let points = (bench.mib << 20) / POINT_BYTES;
    let started = Instant::now();
    load(client, 0..points).await?;
    let loaded = started.elapsed();
    eprintln!("{points} points loaded in {:.0} s", loaded.as_secs_f64());
    let group = fullest_shard(client).await?;
    // A node that has stopped in good order has all of its state in files that can be damaged.
    let victim = holder(client, cluster, group).await?;
    cluster.nodes[victim].stop().await?;
    cluster.restart(victim).await?;
    cluster.wait_healthy().await?;
    // The restart has moved its log into tables; these are in the log's newest file again.
    load(client, points..points + WRITERS * BATCH).await?;
    let old = voter_of(&client.cluster_status().await?, cluster, victim, group).context("the victim is a voter")?;

    cluster.nodes[victim].kill().await?;
    let data_dir = cluster.nodes[victim].data_dir();
    // The log's newest file is empty for a moment after its memory was written to a table.
    let newest = damage::write_ahead_log(&data_dir).or_else(|_| damage::log_table(&data_dir))?;
    damage::flip_middle(&newest)?;
    damage::flip_middle(&damage::state_table(&data_dir, group)?)?;
    let damaged = Instant::now();
    cluster.restart(victim).await?;
    let watched = watch(cluster, victim, group, old, damaged);
    let times = tokio::time::timeout(HEAL, watched).await.with_context(|| format!("not healed after {HEAL:?}"))??;
    let record = json!({
        "mib": bench.mib, "points": points, "load_s": loaded.as_secs_f64(),
        "detected_s": times.detected.as_secs_f64(), "voter_again_s": times.voting.as_secs_f64(),
        "hashes_equal_s": times.equal.as_secs_f64(), "replicas_replaced": times.replaced,
    });
    Ok(Figures { record, voting: times.voting })
}

/// Payloads that no compression makes smaller, the same in every run.
fn payload(number: usize) -> Vec<u8> {
    let mut state = number as u64 + 1;
    let mut text = br#"{"text":""#.to_vec();
    while text.len() < PAYLOAD_BYTES - 2 {
        // xorshift64*: good enough to look random to a compressor.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let word = state.wrapping_mul(0x2545_f491_4f6c_dd1d);
        text.extend(
            word.to_le_bytes().map(|byte| b'0' + byte % 64).map(|byte| if byte == b'\\' { b'~' } else { byte }),
        );
    }
    text.truncate(PAYLOAD_BYTES - 2);
    text.extend(br#""}"#);
    text
}

fn vector(number: usize) -> Vec<f32> {
    (0..DIMENSION).map(|place| ((number * 7 + place * 13) as f32).sin()).collect()
}

async fn load(client: &Client, points: Range<usize>) -> Result<()> {
    let end = points.end;
    stream::iter(points.step_by(BATCH).map(|first| {
        let client = client.clone();
        async move {
            let batch = (first..(first + BATCH).min(end)).map(|number| api::PointInput {
                id: number.to_string(),
                vector: vector(number),
                payload: payload(number).into(),
                ..Default::default()
            });
            let response = client.upsert(COLLECTION, batch.collect()).await?;
            let refused = response.outcomes.iter().find_map(|outcome| outcome.error.as_ref());
            ensure!(refused.is_none(), "a point was refused: {}", refused.map_or("", |error| &error.message));
            Ok::<(), anyhow::Error>(())
        }
    }))
    .buffer_unordered(WRITERS)
    .try_collect()
    .await
}

/// The shard whose log is longest: the one that has the points.
async fn fullest_shard(client: &Client) -> Result<u32> {
    let status = client.cluster_status().await?;
    let fullest = status.shards.iter().max_by_key(|shard| shard.last_position);
    Ok(fullest.context("a cluster has shards")?.group)
}

/// A node that holds the shard and leads neither it nor control.
async fn holder(client: &Client, cluster: &LocalCluster, group: u32) -> Result<usize> {
    let status = client.cluster_status().await?;
    let shard = status.shards.iter().find(|shard| shard.group == group).context("the shard is there")?;
    let control = status.control.as_ref().map(|control| control.leader_node_id.as_str()).unwrap_or_default();
    let leads = |node: &str| node == shard.leader_node_id || node == control;
    let held = shard.replicas.iter().filter(|replica| replica.voter && !leads(&replica.node_id));
    let held: Vec<&str> = held.map(|replica| replica.node_id.as_str()).collect();
    let place = cluster.nodes.iter().position(|node| held.contains(&node.addresses.node_id.as_str()));
    place.context("of three voters one leads nothing")
}

/// The replica with which a node votes in a shard.
fn voter_of(status: &api::StatusResponse, cluster: &LocalCluster, node: usize, group: u32) -> Option<u64> {
    let id = &cluster.nodes[node].addresses.node_id;
    let shard = status.shards.iter().find(|shard| shard.group == group)?;
    let votes =
        |replica: &&api::ReplicaStatus| &replica.node_id == id && replica.voter && replica.quarantined.is_empty();
    shard.replicas.iter().find(votes).map(|replica| replica.replica_id)
}

struct Times {
    detected: Duration,
    voting: Duration,
    equal: Duration,
    replaced: usize,
}

/// Follows the healing until all replicas of all groups are equal.
async fn watch(cluster: &mut LocalCluster, victim: usize, group: u32, old: u64, since: Instant) -> Result<Times> {
    let id = cluster.nodes[victim].addresses.node_id.clone();
    let others: Vec<usize> = (0..cluster.nodes.len()).filter(|node| *node != victim).collect();
    let (own, other) = (cluster.client_of(victim)?, cluster.client_of(others[0])?);
    let (mut detected, mut voting) = (None, None);
    let mut replaced = 0;
    let mut tick = tokio::time::interval(PAUSE);
    loop {
        tick.tick().await;
        // A log database that takes no more writes ends the process; the next start puts it aside.
        cluster.revive(victim).await?;
        if detected.is_none()
            && let Ok(status) = own.cluster_status().await
        {
            let ailing: usize = groups(&status).map(|group| quarantined(group, &id)).sum();
            replaced = replaced.max(ailing);
            let gone = voter_of(&status, cluster, victim, group).is_some_and(|voter| voter != old);
            detected = (ailing > 0 || gone).then(|| since.elapsed());
        }
        let Ok(status) = other.cluster_status().await else { continue };
        replaced = replaced.max(groups(&status).map(|group| quarantined(group, &id)).sum());
        let votes = voter_of(&status, cluster, victim, group).is_some_and(|voter| voter != old);
        if voting.is_none() && votes {
            voting = Some(since.elapsed());
        }
        if let (Some(detected), Some(voting)) = (detected, voting)
            && status.health() == api::Health::Healthy
            && groups(&status).all(is_equal)
        {
            return Ok(Times { detected, voting, equal: since.elapsed(), replaced });
        }
    }
}

fn groups(status: &api::StatusResponse) -> impl Iterator<Item = &api::GroupStatus> {
    status.control.iter().chain(&status.shards)
}

fn quarantined(group: &api::GroupStatus, node: &str) -> usize {
    group.replicas.iter().filter(|replica| replica.node_id == node && !replica.quarantined.is_empty()).count()
}

/// Whether all replicas of a group have said that they have the same state at the same position.
pub fn is_equal(group: &api::GroupStatus) -> bool {
    let mut hashes = group.replicas.iter().map(|replica| (replica.hash_position, replica.state_hash));
    let first = hashes.next();
    first.is_some_and(|(position, _)| position > 0) && hashes.all(|hash| Some(hash) == first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_json_of_the_size_that_is_stated() {
        for number in [0, 1, 77] {
            let payload = payload(number);
            assert_eq!(payload.len(), PAYLOAD_BYTES);
            let value: Value = serde_json::from_slice(&payload).expect("an object");
            assert!(value["text"].as_str().is_some_and(|text| text.len() > PAYLOAD_BYTES / 2));
        }
    }

    #[test]
    fn replicas_are_equal_at_one_position_only() {
        let of = |hash_position, state_hash| api::ReplicaStatus { hash_position, state_hash, ..Default::default() };
        let group = |replicas| api::GroupStatus { replicas, ..Default::default() };
        assert!(is_equal(&group(vec![of(4, 9), of(4, 9)])));
        for other in [of(5, 9), of(4, 8), of(0, 0)] {
            assert!(!is_equal(&group(vec![of(4, 9), other])));
        }
        assert!(!is_equal(&group(vec![])) && !is_equal(&group(vec![of(0, 0), of(0, 0)])));
    }
}
