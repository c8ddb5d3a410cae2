//! A whole power cut: whatever was acknowledged before it is there after it. kill -9 alone proves no fsync.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use quorate::local_cluster::{Launch, LocalCluster};
use quorate_client::{Client, NewCollection, NewTask, v1 as api};
use quorate_tests::{LoopDisk, binary, eventually};

const WRITERS: usize = 8;
const DIMENSION: u32 = 16;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_in_a_power_cut() -> Result<()> {
    let mut disk = LoopDisk::new(1024)?;
    let launch = Launch { binary: Some(binary()?), directory: disk.path(), arguments: Vec::new() };
    let mut cluster = LocalCluster::start(launch, 1).await?;
    let client = cluster.client()?;
    client.create_collection(NewCollection::new("points", DIMENSION)).await?;
    for round in 0..2 {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| tokio::spawn(write(client.clone(), round, writer, stop.clone()))).collect();
        let seen = eventually("some hundred tasks are acknowledged", async || {
            let queued: u64 = client.list_queues().await?.iter().map(|queue| queue.ready).sum();
            Ok((queued > 500 * (round as u64 + 1)).then_some(queued))
        })
        .await?;
        disk.power_off()?;
        stop.store(true, Ordering::Relaxed);
        cluster.nodes[0].kill().await?;
        let mut acknowledged = Acknowledged::default();
        for writer in writers {
            acknowledged.add(writer.await?);
        }
        ensure!(
            acknowledged.tasks.len() > 100,
            "the load was too light to prove anything: {} of {seen}",
            acknowledged.tasks.len()
        );
        disk.power_on()?;
        cluster.restart(0).await?;
        cluster.wait_healthy().await?;
        acknowledged.find(&client).await?;
    }
    cluster.stop().await
}

#[derive(Default)]
struct Acknowledged {
    tasks: Vec<u64>,
    points: Vec<String>,
}

impl Acknowledged {
    fn add(&mut self, more: Acknowledged) {
        self.tasks.extend(more.tasks);
        self.points.extend(more.points);
    }

    async fn find(&self, client: &Client) -> Result<()> {
        for task in &self.tasks {
            let found = client.get_task(*task).await?;
            ensure!(
                found.payload.as_ref() == payload(found.queue.as_str()).as_slice(),
                "task {task} came back with another payload"
            );
        }
        for ids in self.points.chunks(100) {
            let found = client
                .get_points(&api::GetPointsRequest {
                    collection: "points".into(),
                    ids: ids.to_vec(),
                    ..Default::default()
                })
                .await?;
            ensure!(
                found.len() == ids.len(),
                "{} of {} acknowledged points are gone",
                ids.len() - found.len(),
                ids.len()
            );
        }
        Ok(())
    }
}

fn payload(queue: &str) -> Vec<u8> {
    queue.repeat(64).into_bytes()
}

/// Writes tasks and points until told to stop or until the node is gone; what comes back was acknowledged.
async fn write(client: Client, round: usize, writer: usize, stop: Arc<AtomicBool>) -> Acknowledged {
    let mut acknowledged = Acknowledged::default();
    let queue = format!("queue-{writer}");
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if let Ok(task) = client.enqueue(NewTask::new(queue.clone(), payload(&queue))).await {
            acknowledged.tasks.push(task);
        }
        let id = format!("{round}-{writer}-{number}");
        let vector = (0..DIMENSION).map(|place| (place as f32 + number as f32).sin()).collect();
        let point = api::PointInput { id: id.clone(), vector, ..Default::default() };
        match client.upsert("points", vec![point]).await {
            Ok(response) if response.outcomes.iter().all(|outcome| outcome.error.is_none()) => {
                acknowledged.points.push(id)
            }
            _ => {}
        }
    }
    acknowledged
}
