//! Keeps the log short.
//!
//! When a group has applied enough bytes since its last checkpoint, a new one is made. Once a majority has confirmed it (see
//! [`crate::checkpoints`]) openraft is told of it, and purges the log up to its position, less a tail for followers that are a
//! little behind. The checkpoint flushes and syncs the state store first, so what is purged is never needed to replay.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::group::Running;

/// After a checkpoint that could not be made the next one is tried after this time.
const RETRY: Duration = Duration::from_secs(5);

/// Makes checkpoints when they are due, and has the log purged when they are confirmed, until the group stops.
pub(crate) async fn run_purge(group: Arc<Running>) {
    let (applied, checkpoints) = (&group.applied, &group.checkpoints);
    loop {
        let is_due = applied.grown_bytes.load(Ordering::Relaxed) >= applied.limit_bytes;
        if is_due && !checkpoints.has_candidate() {
            match checkpoints.make().await {
                Ok(Some(_)) => {}
                Ok(None) => tokio::time::sleep(RETRY).await,
                Err(error) => {
                    tracing::warn!(group = %group.id, %error, "a checkpoint could not be made; the log grows until one is");
                    tokio::time::sleep(RETRY).await;
                }
            }
            continue;
        }
        tokio::select! {
            () = applied.purge_due.notified() => {}
            () = checkpoints.promoted.notified() => {
                checkpoints.may_purge().await;
                if group.raft.trigger().snapshot().await.is_err() {
                    return;
                }
            }
        }
    }
}
