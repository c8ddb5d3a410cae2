//! Disks that fail, are slow, stall or are full.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::{NemesisContext, Strike};

/// How long a node may take to end after its fsync failed.
const ENDS: Duration = Duration::from_secs(10);
/// How long a sync may be in coming under a workload.
const SYNCS: Duration = Duration::from_secs(10);

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    FsyncError,
    SlowFsync,
    Stalled,
    Full,
}

struct DiskFault {
    name: &'static str,
    wrong: Wrong,
}

pub(super) fn named(name: &str) -> Option<Box<dyn Strike>> {
    let (name, wrong) = match name {
        "fsync-error" => ("fsync-error", Wrong::FsyncError),
        "slow-fsync" => ("slow-fsync", Wrong::SlowFsync),
        "stalled-disk" => ("stalled-disk", Wrong::Stalled),
        "disk-full" => ("disk-full", Wrong::Full),
        _ => return None,
    };
    Some(Box::new(DiskFault { name, wrong }))
}

#[async_trait]
impl Strike for DiskFault {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let Some((node, _hold)) = ctx.pick_one(dice) else {
            ctx.skip(self.name, self.name, "every node is held or down");
            return Ok(());
        };
        if matches!(self.wrong, Wrong::Stalled | Wrong::Full) && !ctx.cluster.has_power_switch(node) {
            ctx.skip(self.name, self.name, "the disks are folders");
            return Ok(());
        }
        match self.wrong {
            Wrong::FsyncError => fsync_error(ctx, dice, node, length).await,
            Wrong::SlowFsync => slow_fsync(ctx, dice, node, length).await,
            Wrong::Stalled => stalled(ctx, node, length).await,
            Wrong::Full => full(ctx, node, length).await,
        }
    }
}

/// The n-th fsync of each thread fails. A node must not live on after that: it cannot know what is on its disk.
async fn fsync_error(ctx: &NemesisContext, dice: &mut StdRng, node: usize, length: Duration) -> Result<()> {
    let mut open = ctx.begin("fsync-error", "fsync-error");
    let nth = dice.random_range(1..=3);
    if let Err(error) = ctx.cluster.attach(node, &format!("error=EIO:when={nth}")).await {
        open.end_seen(false, format!("node {node}: {error:#}"));
        return Ok(());
    }
    open.bites_now();
    let end = Instant::now() + SYNCS;
    while ctx.cluster.syncs_hit(node) == 0 && ctx.cluster.is_running(node) && Instant::now() < end {
        if !ctx.wait(Duration::from_millis(50)).await {
            break;
        }
    }
    let ended = match ctx.cluster.syncs_hit(node) {
        0 => None,
        _ => ctx.cluster.wait_exit(node, ENDS).await,
    };
    let hit = ctx.cluster.syncs_hit(node);
    ctx.cluster.detach(node).await?;
    if hit > 0 && ended.is_none() {
        ctx.report.violation(format!("node {node} lives on after {hit} of its fsyncs failed with EIO"));
        ctx.cluster.kill(node).await?;
    }
    if ended.is_some() {
        ctx.wait(length).await;
    }
    ctx.back(node, "a failed fsync").await;
    let how = ended.map_or("did not end".to_owned(), |status| format!("ended with {status}"));
    open.end_seen(hit > 0, format!("node {node}: {hit} fsyncs failed, the {nth}. of a thread; it {how}"));
    Ok(())
}

async fn slow_fsync(ctx: &NemesisContext, dice: &mut StdRng, node: usize, length: Duration) -> Result<()> {
    let mut open = ctx.begin("slow-fsync", "slow-fsync");
    let ms = dice.random_range(5..=200);
    if let Err(error) = ctx.cluster.attach(node, &format!("delay_enter={}", ms * 1000)).await {
        open.end_seen(false, format!("node {node}: {error:#}"));
        return Ok(());
    }
    open.bites_now();
    ctx.wait(length).await;
    let hit = ctx.cluster.syncs_hit(node);
    ctx.cluster.detach(node).await?;
    open.end_seen(hit > 0, format!("node {node}: {hit} fsyncs took {ms} ms longer"));
    Ok(())
}

async fn stalled(ctx: &NemesisContext, node: usize, length: Duration) -> Result<()> {
    let mut open = ctx.begin("stalled-disk", "stalled-disk");
    // What is in memory is written out before it is frozen, and the node goes on until then.
    let frozen = ctx.cluster.freeze(node).await?;
    open.bites_now();
    ctx.wait(length).await;
    let waits = ctx.cluster.thread_states(node).iter().filter(|state| **state == 'D').count();
    ctx.cluster.thaw(node).await?;
    // It may have given up by itself, which is its right.
    ctx.back(node, "a stalled disk").await;
    open.end_seen(
        frozen && waits > 0,
        format!("node {node}: the file system was frozen, {waits} threads waited for it"),
    );
    Ok(())
}

/// Keeps the disk full, whatever becomes free, until the time is over. A node may end over it; it must come back.
async fn full(ctx: &NemesisContext, node: usize, length: Duration) -> Result<()> {
    let mut open = ctx.begin("disk-full", "disk-full");
    let end = Instant::now() + length;
    let mut was_full = false;
    loop {
        let is_full = ctx.cluster.fill_disk(node).await?;
        if is_full && !was_full {
            open.bites_now();
        }
        was_full |= is_full;
        if Instant::now() >= end || !ctx.wait(Duration::from_millis(200)).await {
            break;
        }
    }
    ctx.cluster.free_disk(node)?;
    let ended = !ctx.cluster.is_running(node);
    ctx.back(node, "a full disk").await;
    let how = if ended { "ended, and came back" } else { "went on" };
    open.end_seen(was_full, format!("node {node}: a write failed with ENOSPC; it {how}"));
    Ok(())
}
