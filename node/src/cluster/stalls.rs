//! A node whose disk does not answer hands over what it leads.
//!
//! Raft sees nothing of it: the heartbeats of a leader need no disk, so that it would lead on and acknowledge nothing, and no
//! other would be elected, until the disk answers again. As a follower it holds up nobody that has a majority without it.
//! Where the others have none it keeps the lead: nobody could be elected before its disk answers, and until then it goes
//! on confirming reads, which need no disk.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use quorate_raft::Group;
use tokio::time::{sleep, timeout};

use super::hosting::Hosting;
use super::plan::{heir, others_decide};
use crate::context::Context;

/// The disk has stalled if a write is not durable after so long. Far above what a busy one takes: who hands over too readily
/// does so again and again where all disks are slow.
pub const STALLED: Duration = Duration::from_millis(1_000);
const LOOK_EVERY: Duration = Duration::from_millis(100);
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// Watches the disk until the node stops.
pub fn watch(context: Context, hosting: Arc<Hosting>) {
    let shutdown = context.shutdown.clone();
    tokio::spawn(async move { shutdown.run_until_cancelled(run(context, hosting)).await });
}

async fn run(context: Context, hosting: Arc<Hosting>) {
    let mut noticed = false;
    loop {
        sleep(LOOK_EVERY).await;
        let stalled = context.groups.disk_stalled();
        if stalled < STALLED {
            noticed = false;
            continue;
        }
        if !noticed {
            noticed = true;
            context.metrics.disk_stalls.inc();
            tracing::error!(?stalled, "the disk of this node does not answer: it hands over what it leads");
        }
        let control = context.control.group();
        let groups = hosting.running().into_iter().map(|(_, group)| group).chain(control);
        let mine = groups.filter(|group| others_decide(&group.status(), group.replica()));
        join_all(mine.map(hand_over)).await;
    }
}

/// Gives leadership to the voter that has most of the log, of those that answer, so that nobody waits for an election.
pub async fn hand_over(group: Group) {
    let view = group.status();
    if !group.leadership().borrow().mine {
        return;
    }
    let Some(heir) = heir(&view, group.replica(), &view.voters) else { return };
    if !matches!(timeout(HAND_OVER_TIMEOUT, group.transfer_leader(heir)).await, Ok(Ok(()))) {
        tracing::warn!(group = %group.id(), "leadership was not handed over; the others hold an election");
    }
}
