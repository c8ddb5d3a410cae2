//! What is at hand while one entry is applied.

use super::command::Effect;
use super::meta::MetaRecord;
use crate::records::Changes;

/// The entry that is being applied, and what has come of it so far.
pub(super) struct Step {
    /// As it will be after the entry; `position` and `time` are those of the entry.
    pub(super) meta: MetaRecord,
    pub(super) changes: Changes,
    pub(super) effects: Vec<Effect>,
}

impl Step {
    pub(super) fn new(meta: MetaRecord, hash: u64) -> Step {
        let mut changes = Changes::default();
        changes.add_hash(hash);
        Step { meta, changes, effects: Vec::new() }
    }
}
