//! Planted bugs: they show that the checkers find what they are made to find. Compiled in with the feature `planted` only,
//! which no release has; tests/sim/PLANTED.md lists them.

use std::io;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use bytes::Bytes;
use openraft::raft::VoteResponse;

use crate::ids::GroupId;
use crate::machine::{RowBatch, StateStore};
use crate::types::{TC, Vote};

/// The bugs of this crate.
pub const NAMES: [&str; 15] = [
    "unsynced-log",
    "acknowledge-before-flush",
    "forgotten-vote",
    "dropped-truncate",
    "ignored-floor",
    "unchecked-record",
    "purge-ahead",
    "generous-vote",
    "minority-commit",
    "stale-read",
    "early-read",
    "premature-lead",
    "half-snapshot",
    "unconfirmed-snapshot",
    "blind-scrub",
];

static CHOSEN: OnceLock<String> = OnceLock::new();

/// Chooses the bug that this process has, or several that are separated by commas. The first choice stands; the name of another
/// crate's bug is none here.
pub fn choose(name: &str) {
    CHOSEN.get_or_init(|| name.to_owned());
}

/// Whether this is the chosen bug, or one of several.
pub(crate) fn is(name: &str) -> bool {
    CHOSEN.get().is_some_and(|chosen| chosen.split(',').any(|chosen| chosen == name))
}

/// `generous-vote`: a refused candidate of a term that is not over is told that it has the vote.
pub(crate) fn granted_anyway(mut reply: VoteResponse<TC>, asked: Vote) -> VoteResponse<TC> {
    if is("generous-vote") && asked.leader_id.term >= reply.vote.leader_id.term {
        (reply.vote, reply.vote_granted) = (asked, true);
    }
    reply
}

/// `half-snapshot`: the finished tasks of control, or the points of a shard, are not in the store that was installed.
pub(crate) fn lose_a_table(group: GroupId, store: &dyn StateStore) -> io::Result<()> {
    if !is("half-snapshot") {
        return Ok(());
    }
    let table = if group == GroupId::CONTROL { 9 } else { 4 };
    let mut lost = RowBatch::default();
    store.scan(table, &[], &mut |key, _| {
        lost.changes.push((table, Bytes::copy_from_slice(key), None));
        ControlFlow::Continue(())
    })?;
    let applied = store.applied()?.unwrap_or_default();
    store.write(&lost, &applied)?;
    store.flush()
}
