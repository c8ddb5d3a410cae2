//! What is at hand while one entry is applied.

use super::command::{Effect, Reply};
use super::meta::MetaRecord;
use crate::records::Changes;
use crate::{LogTime, Position, Reject, ReplicaId, Token};

/// How many ids of tasks and sessions one entry can give out: their ordinals have 16 bits.
pub(super) const IDS_PER_ENTRY: u32 = 1 << 16;

/// The entry that is being applied, and what has come of it so far.
pub(super) struct Step {
    /// As it will be after the entry; `position` and `time` are those of the entry.
    pub(super) meta: MetaRecord,
    pub(super) changes: Changes,
    pub(super) effects: Vec<Effect>,
    /// To the operations before this one.
    pub(super) replies: Vec<Result<Reply, Reject>>,
    ids: u32,
    grants: u32,
}

impl Step {
    pub(super) fn new(meta: MetaRecord, hash: u64) -> Step {
        let mut changes = Changes::default();
        changes.add_hash(hash);
        Step { meta, changes, effects: Vec::new(), replies: Vec::new(), ids: 0, grants: 0 }
    }

    /// Log time of the entry.
    pub(super) fn now(&self) -> LogTime {
        self.meta.time
    }

    /// Position of the entry.
    pub(super) fn position(&self) -> Position {
        self.meta.position
    }

    /// The first of `count` consecutive new ids of tasks or sessions.
    pub(super) fn mint_ids(&mut self, count: usize) -> Result<u64, Reject> {
        let left = IDS_PER_ENTRY - self.ids;
        let count = u32::try_from(count).ok().filter(|count| *count <= left).ok_or(Reject::EntryFull)?;
        let first = (self.meta.position.0 << 16) | u64::from(self.ids.min(IDS_PER_ENTRY - 1));
        self.ids += count;
        Ok(first)
    }

    /// A new token.
    pub(super) fn mint_token(&mut self) -> Token {
        let ordinal = self.grants;
        self.grants += 1;
        #[cfg(feature = "planted")]
        if crate::planted::is("shared-token") {
            self.grants = 0;
        }
        Token { position: self.meta.position.0, ordinal }
    }

    /// A new replica id.
    pub(super) fn mint_replica(&mut self) -> ReplicaId {
        let replica = self.meta.next_replica;
        self.meta.next_replica += 1;
        replica
    }
}
