//! The outbox of collections: what control has decided reaches the shards, once or more often, whoever leads.
//!
//! The entries are part of control's state, so a new leader finds those that the old one left. Telling a shard twice changes
//! nothing (the generation says what is late), and an entry goes only when its delivery is confirmed through the log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quorate_state::control::{Command, OutboxAction, OutboxEntry};
use quorate_state::{CollectionId, Operation, ShardId, shard};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Inner;
use crate::error::Error;

/// The time that one delivery may take before it is given up and begun anew.
const DELIVERY: Duration = Duration::from_secs(5);
/// The pause after a delivery that failed.
const PAUSE: Duration = Duration::from_millis(200);
/// Entries that are delivered at the same time.
const AT_ONCE: usize = 16;

/// What tells an entry from another.
type Key = (CollectionId, ShardId, u64);

/// Delivers while this node leads control, until the node stops.
pub(super) async fn run(inner: Arc<Inner>) {
    let shutdown = inner.context.shutdown.clone();
    let mut leadership = inner.context.control.leadership();
    let mut changes = inner.context.control.changes();
    let mut under_way: BTreeSet<Key> = BTreeSet::new();
    let mut deliveries: JoinSet<Key> = JoinSet::new();
    loop {
        // Noted before the state is looked at, so that a change in between wakes the next round.
        changes.mark_unchanged();
        if leadership.borrow_and_update().mine {
            let entries: Vec<OutboxEntry> = inner.context.control.read(|control| control.outbox().collect());
            for entry in entries {
                if deliveries.len() < AT_ONCE && under_way.insert(key(&entry)) {
                    let inner = inner.clone();
                    deliveries.spawn(async move {
                        deliver(&inner, &entry).await;
                        key(&entry)
                    });
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = leadership.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            Some(done) = deliveries.join_next() => match done {
                Ok(key) => { under_way.remove(&key); }
                // Ended by the clearing below, and not under way any more.
                Err(error) if error.is_cancelled() => {}
                Err(error) => {
                    tracing::error!(%error, "a delivery ended by a panic; all are begun anew");
                    deliveries.abort_all();
                    under_way.clear();
                }
            }
        }
    }
}

fn key(entry: &OutboxEntry) -> Key {
    (entry.collection, entry.shard, entry.generation)
}

async fn deliver(inner: &Inner, entry: &OutboxEntry) {
    if let Err(error) = try_deliver(inner, entry).await {
        tracing::warn!(collection = %entry.collection, shard = %entry.shard, %error,
            "a shard was not told of a collection; it is told again");
        // The entry stays under way until this returns, so the pause is the least time between two tries.
        tokio::time::sleep(PAUSE).await;
    }
}

async fn try_deliver(inner: &Inner, entry: &OutboxEntry) -> Result<(), Error> {
    let (id, generation) = (entry.collection, entry.generation);
    let command = match entry.action {
        OutboxAction::Put { dimension, metric } => shard::Command::PutCollection { id, generation, dimension, metric },
        OutboxAction::Drop => shard::Command::DropCollection { id, generation },
    };
    let deadline = Instant::now() + DELIVERY;
    inner.write(entry.shard, &Operation::new(command), deadline).await?;
    let confirm = Command::ConfirmCollection { id, shard: entry.shard, generation };
    inner.context.control.propose_anywhere(Operation::new(confirm), deadline).await??;
    Ok(())
}
