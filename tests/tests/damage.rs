//! Damage to the disk of one node: it is found, never answered from, and healed from the peers, whatever file it hits and
//! whatever the node leads.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fs_err as fs;
use quorate::damage;
use quorate::local_cluster::{Launch, LocalCluster};
use quorate_client::{Client, NewCollection, NewTask, Search, v1 as api};
use quorate_tests::{binary, eventually};
use tempfile::TempDir;
use tokio::task::JoinHandle;

const COLLECTION: &str = "points";
const DIMENSION: u32 = 16;
const SHARDS: u32 = 2;
/// Points and tasks that are there before any damage.
const FIRST: usize = 400;

/// Which replicas of the node must be replaced by a damage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hits {
    /// All of them.
    All,
    /// At least one.
    Some,
    /// That of this group and no other.
    Group(u32),
    /// None: the damage is mended in place.
    None,
}

struct Kind {
    name: &'static str,
    hits: Hits,
    hurt: fn(&Path) -> Result<()>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_replaced() -> Result<()> {
    attack(&[
        Kind {
            name: "a byte flipped in the middle of the WAL",
            hits: Hits::Some,
            hurt: |data| damage::flip_middle(&damage::write_ahead_log(data)?),
        },
        Kind {
            name: "the WAL cut off below the floor",
            hits: Hits::Some,
            hurt: |data| damage::cut_middle(&damage::write_ahead_log(data)?),
        },
        Kind {
            name: "a byte flipped in a table of the log",
            hits: Hits::Some,
            hurt: |data| damage::flip_middle(&damage::log_table(data)?),
        },
        Kind {
            name: "a table of the log deleted",
            hits: Hits::All,
            hurt: |data| Ok(fs::remove_file(damage::log_table(data)?)?),
        },
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_gone_and_a_floor_that_says_nothing_are_replaced() -> Result<()> {
    attack(&[
        Kind {
            name: "the manifest of the log deleted",
            hits: Hits::All,
            hurt: |data| Ok(fs::remove_file(damage::log_manifest(data)?)?),
        },
        Kind { name: "the floor deleted", hits: Hits::All, hurt: |data| Ok(fs::remove_file(data.join("floor"))?) },
        Kind { name: "both slots of the floor flipped", hits: Hits::All, hurt: flip_floor },
        Kind { name: "the log deleted", hits: Hits::All, hurt: |data| Ok(fs::remove_dir_all(data.join("log"))?) },
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_is_replaced_and_a_damaged_identity_is_mended() -> Result<()> {
    attack(&[
        Kind {
            name: "a byte flipped in the state of control",
            hits: Hits::Group(0),
            hurt: |data| damage::flip_middle(&damage::state_table(data, 0)?),
        },
        Kind {
            name: "a byte flipped in the state of a shard",
            hits: Hits::Group(1),
            hurt: |data| damage::flip_middle(&damage::state_table(data, 1)?),
        },
        Kind {
            name: "a copy of the identity flipped",
            hits: Hits::None,
            hurt: |data| damage::flip_middle(&data.join("identity.json")),
        },
    ])
    .await
}

fn flip_floor(data: &Path) -> Result<()> {
    let path = data.join("floor");
    let mut bytes = fs::read(&path)?;
    // Whatever the layout: every byte that is not padding.
    bytes.iter_mut().filter(|byte| **byte != 0).for_each(|byte| *byte = !*byte);
    Ok(fs::write(&path, bytes)?)
}

/// A node that holds the only replicas there are: what is left on its disk is never deleted, and it says what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_replica_is_kept_and_says_so() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("quorate-damage-").tempdir()?;
    let mut cluster = LocalCluster::start_with(launch(&directory)?, 1, 1).await?;
    let client = cluster.client()?;
    client.enqueue(NewTask::new("work", b"kept".to_vec())).await?;
    cluster.nodes[0].stop().await?;
    let data = cluster.nodes[0].data_dir();
    damage::flip_middle(&damage::state_table(&data, 0)?)?;
    let before = files(&data.join("state").join("group-0"))?;
    cluster.restart(0).await?;
    let said = eventually("the only node says that it cannot be healed", async || {
        let status = client.cluster_status().await?;
        let steps = status.next_steps.join(" ");
        Ok(steps.contains("only replica of control").then_some((status.problems.join(" "), status.health())))
    })
    .await?;
    ensure!(said.0.contains("quarantined") && said.1 == api::Health::NoQuorum, "{said:?}");
    let refused =
        tokio::time::timeout(Duration::from_secs(15), client.enqueue(NewTask::new("work", b"no".to_vec()))).await;
    ensure!(!matches!(refused, Ok(Ok(_))), "a node without control took a task");
    ensure!(before <= files(&data.join("state").join("group-0"))?, "files of the last replica are gone");
    cluster.stop().await?;

    // With nothing left that says what it has voted, it does not even start.
    fs::remove_file(data.join("floor"))?;
    fs::remove_dir_all(data.join("log"))?;
    let refused = cluster.restart(0).await.err().context("a node without log and floor has started")?;
    ensure!(format!("{refused:#}").contains("are gone"), "{refused:#}");
    ensure!(before <= files(&data.join("state").join("group-0"))?, "files of the last replica are gone");
    Ok(())
}

fn files(directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        count += if path.is_dir() { files(&path)? } else { 1 };
    }
    Ok(count)
}

fn launch(directory: &TempDir) -> Result<Launch> {
    Ok(Launch { binary: Some(binary()?), directory: directory.path().to_owned(), arguments: Vec::new() })
}

/// Applies each kind to a node that leads nothing and to the leader of control, one after the other on one cluster.
async fn attack(kinds: &[Kind]) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("quorate-damage-").tempdir()?;
    let mut cluster = LocalCluster::start_with(launch(&directory)?, 3, SHARDS).await?;
    let client = cluster.client()?;
    client.create_collection(NewCollection::new(COLLECTION, DIMENSION).shards(SHARDS)).await?;
    let mut written = Written::default();
    for number in 0..FIRST {
        written.write(&client, number).await?;
    }
    let mut next = FIRST;
    for kind in kinds {
        for leads in [false, true] {
            let leader = cluster.leader().await?;
            let victim = if leads { leader } else { (leader + 1) % 3 };
            next = strike(&mut cluster, kind, victim, &mut written, next)
                .await
                .with_context(|| format!("{}, of the {}", kind.name, if leads { "leader" } else { "follower" }))?;
        }
    }
    written.find(&client).await?;
    cluster.stop().await
}

/// Damages one node under load and waits until all is well again.
async fn strike(
    cluster: &mut LocalCluster,
    kind: &Kind,
    victim: usize,
    written: &mut Written,
    next: usize,
) -> Result<usize> {
    let client = cluster.client()?;
    // In good order, so that all of its state is in files, and once more at once, so that the log has something new.
    cluster.nodes[victim].stop().await?;
    cluster.restart(victim).await?;
    cluster.wait_healthy().await?;
    for number in next..next + 20 {
        written.write(&client, number).await?;
    }
    let before = replicas_of(&client, cluster, victim).await?;
    cluster.nodes[victim].kill().await?;
    (kind.hurt)(&cluster.nodes[victim].data_dir())?;

    let load = Load::start(cluster, written, next + 20)?;
    cluster.restart(victim).await?;
    let after = eventually("the node is whole again and all replicas are equal", async || {
        // A log database that takes no more writes ends the process; the next start puts it aside.
        cluster.revive(victim).await?;
        if !matches!(client.cluster_status().await, Ok(status) if is_whole(&status)) {
            return Ok(None);
        }
        let after = replicas_of(&client, cluster, victim).await?;
        Ok(is_replaced(kind.hits, &before, &after).then_some(after))
    })
    .await;
    let more = load.stop().await?;
    let after = match after {
        Ok(after) => after,
        Err(error) => {
            let status = client.cluster_status().await?;
            bail!("{error:#}; before {before:?}; {:?} {:?} {status:?}", status.problems, status.next_steps)
        }
    };
    if kind.hits == Hits::None {
        ensure!(after == before, "nothing was to be replaced: {before:?} became {after:?}");
    }
    if let Hits::Group(hit) = kind.hits {
        let others =
            |replicas: &[(u32, u64)]| replicas.iter().filter(|(group, _)| *group != hit).copied().collect::<Vec<_>>();
        ensure!(others(&before) == others(&after), "more than group {hit} was replaced: {before:?} became {after:?}");
    }
    let next = more.next;
    written.take(more);
    eventually("all replicas have the same hash", async || {
        let status = client.cluster_status().await?;
        Ok((is_whole(&status) && groups(&status).all(quorate::bench::is_equal)).then_some(()))
    })
    .await?;
    Ok(next)
}

fn is_replaced(hits: Hits, before: &[(u32, u64)], after: &[(u32, u64)]) -> bool {
    let replaced = |group: u32| {
        let of =
            |replicas: &[(u32, u64)]| replicas.iter().find(|(other, _)| *other == group).map(|(_, replica)| *replica);
        of(after).is_some_and(|after| Some(after) != of(before))
    };
    match hits {
        Hits::All => before.iter().all(|(group, _)| replaced(*group)),
        Hits::Some => before.iter().any(|(group, _)| replaced(*group)) && after.len() == before.len(),
        Hits::Group(group) => replaced(group),
        Hits::None => after.len() == before.len(),
    }
}

fn groups(status: &api::StatusResponse) -> impl Iterator<Item = &api::GroupStatus> {
    status.control.iter().chain(&status.shards)
}

/// Healthy, with three voters of each group and nobody else.
fn is_whole(status: &api::StatusResponse) -> bool {
    let full =
        |group: &api::GroupStatus| group.replicas.len() == 3 && group.replicas.iter().all(|replica| replica.voter);
    status.health() == api::Health::Healthy && groups(status).all(full)
}

/// The replica with which a node votes in each group.
async fn replicas_of(client: &Client, cluster: &LocalCluster, node: usize) -> Result<Vec<(u32, u64)>> {
    let status = client.cluster_status().await?;
    let id = &cluster.nodes[node].addresses.node_id;
    let of = |group: &api::GroupStatus| {
        let own = group.replicas.iter().find(|replica| &replica.node_id == id && replica.voter)?;
        Some((group.group, own.replica_id))
    };
    Ok(groups(&status).filter_map(of).collect())
}

/// What was acknowledged.
#[derive(Clone, Default)]
struct Written {
    tasks: Vec<(u64, usize)>,
    points: Vec<usize>,
    next: usize,
}

impl Written {
    /// Writes a task and a point. An error means that it is not known whether they are there.
    async fn write(&mut self, client: &Client, number: usize) -> Result<()> {
        let task = client.enqueue(NewTask::new("work", payload(number))).await?;
        self.tasks.push((task, number));
        let response = client.upsert(COLLECTION, vec![point(number)]).await?;
        ensure!(response.outcomes.iter().all(|outcome| outcome.error.is_none()), "{response:?}");
        self.points.push(number);
        Ok(())
    }

    fn take(&mut self, more: Written) {
        self.tasks.extend(more.tasks);
        self.points.extend(more.points);
    }

    /// Everything is there, as it was written.
    async fn find(&self, client: &Client) -> Result<()> {
        for (task, number) in &self.tasks {
            let found = client.get_task(*task).await?;
            ensure!(found.payload.as_ref() == payload(*number), "task {task} came back with another payload");
        }
        for numbers in self.points.chunks(100) {
            read_points(client, numbers, true).await?;
        }
        Ok(())
    }
}

fn payload(number: usize) -> Vec<u8> {
    format!(r#"{{"number":{number},"text":"{}"}}"#, "damage ".repeat(20)).into_bytes()
}

fn point(number: usize) -> api::PointInput {
    let vector = (0..DIMENSION).map(|place| ((place as usize * 31 + number * 17) as f32).sin()).collect();
    api::PointInput { id: number.to_string(), vector, payload: payload(number).into(), ..Default::default() }
}

/// Reads points that were acknowledged. An answer without one of them, or with another payload, is wrong; no answer is not.
async fn read_points(client: &Client, numbers: &[usize], must_answer: bool) -> Result<()> {
    let ids = numbers.iter().map(ToString::to_string).collect();
    let request = api::GetPointsRequest { collection: COLLECTION.into(), ids, ..Default::default() };
    let found = match client.get_points(&request).await {
        Ok(found) => found,
        Err(error) if must_answer => return Err(error.into()),
        Err(_) => return Ok(()),
    };
    ensure!(
        found.len() == numbers.len(),
        "{} of {} acknowledged points are gone",
        numbers.len() - found.len(),
        numbers.len()
    );
    for (number, found) in numbers.iter().zip(&found) {
        ensure!(found.payload.as_ref() == payload(*number), "point {number} came back with another payload");
    }
    Ok(())
}

/// Readers at every node that check what they get, and a writer, while a node heals.
struct Load {
    stop: Arc<AtomicBool>,
    checks: Arc<AtomicUsize>,
    readers: Vec<JoinHandle<Result<()>>>,
    writer: JoinHandle<Written>,
}

impl Load {
    fn start(cluster: &LocalCluster, written: &Written, next: usize) -> Result<Load> {
        let stop = Arc::new(AtomicBool::new(false));
        let checks = Arc::new(AtomicUsize::new(0));
        let known = Arc::new(written.clone());
        let mut readers = Vec::new();
        for node in 0..cluster.nodes.len() {
            let (client, known) = (cluster.client_of(node)?, known.clone());
            let (stop, checks) = (stop.clone(), checks.clone());
            readers.push(tokio::spawn(async move { read(&client, &known, &stop, &checks).await }));
        }
        let (client, stopping) = (cluster.client()?, stop.clone());
        let writer = tokio::spawn(async move {
            let mut written = Written { next, ..Written::default() };
            while !stopping.load(Ordering::Relaxed) {
                let number = written.next;
                written.next += 1;
                // What failed may be there or not; nothing was acknowledged.
                let _ = written.write(&client, number).await;
            }
            written
        });
        Ok(Load { stop, checks, readers, writer })
    }

    async fn stop(self) -> Result<Written> {
        self.stop.store(true, Ordering::Relaxed);
        for reader in self.readers {
            reader.await??;
        }
        let written = self.writer.await?;
        ensure!(self.checks.load(Ordering::Relaxed) > 0, "nothing was read while the node healed");
        ensure!(!written.tasks.is_empty(), "nothing was written while the node healed");
        Ok(written)
    }
}

async fn read(client: &Client, known: &Written, stop: &AtomicBool, checks: &AtomicUsize) -> Result<()> {
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let pause = tokio::time::sleep(Duration::from_millis(5));
        let asked = tokio::time::timeout(Duration::from_secs(2), one_check(client, known, turn)).await;
        match asked {
            Ok(Ok(true)) => drop(checks.fetch_add(1, Ordering::Relaxed)),
            Ok(Ok(false)) | Err(_) => {}
            Ok(Err(wrong)) => return Err(wrong),
        }
        pause.await;
    }
    Ok(())
}

/// Reads a task, some points or the nearest neighbour of a point that is there. Says whether there was an answer.
async fn one_check(client: &Client, Written { tasks, points, .. }: &Written, turn: usize) -> Result<bool> {
    match turn % 3 {
        0 => {
            let (task, number) = tasks[turn * 7 % tasks.len()];
            let found = match client.get_task(task).await {
                Ok(found) => found,
                Err(error) if error.reason() == Some(api::ErrorReason::TaskNotFound) => {
                    bail!("the acknowledged task {task} is not found")
                }
                Err(_) => return Ok(false),
            };
            ensure!(found.payload.as_ref() == payload(number), "task {task} came back with another payload");
        }
        1 => {
            let first = turn * 11 % points.len();
            read_points(client, &points[first..(first + 10).min(points.len())], false).await?;
        }
        _ => {
            let number = points[turn * 13 % points.len()];
            let Ok(found) = client.search(&Search::new(COLLECTION, point(number).vector, 1)).await else {
                return Ok(false);
            };
            if found.degraded_shards.is_empty() {
                let hit = found.hits.first().map(|hit| hit.score);
                ensure!(hit.is_some_and(|score| score > 0.999), "the nearest point of {number} is {:?}", found.hits);
            }
        }
    }
    Ok(true)
}
