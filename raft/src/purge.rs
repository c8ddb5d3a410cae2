//! Keeps the log short.
//!
//! When a group has applied enough bytes since its last checkpoint, a new one is made; openraft then purges the log up to
//! the position of the checkpoint, less a tail for followers that are a little behind. The checkpoint flushes and syncs
//! the state store first, so what is purged is never needed to replay.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::group::Running;

/// A checkpoint that did not shrink the count, because it failed or is still being made, is tried again after this time.
const RETRY: Duration = Duration::from_secs(5);

/// Asks for checkpoints until the group stops.
pub(crate) async fn run_purge(group: Arc<Running>) {
    let applied = &group.applied;
    loop {
        while applied.grown_bytes.load(Ordering::Relaxed) < applied.limit_bytes {
            applied.purge_due.notified().await;
        }
        if group.raft.trigger().snapshot().await.is_err() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}
