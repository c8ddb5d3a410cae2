//! The numbers of the control machine's tables. They are in stored databases: never change one, never use one again.

pub(super) const META: u8 = 1;
pub(super) const MEMBER: u8 = 2;
pub(super) const SHARD: u8 = 3;
pub(super) const COLLECTION: u8 = 4;
pub(super) const QUEUE: u8 = 5;
pub(super) const ROLE: u8 = 6;
pub(super) const SESSION: u8 = 7;
pub(super) const LIVE_TASK: u8 = 8;
pub(super) const FINISHED_TASK: u8 = 9;
pub(super) const REQUEST: u8 = 10;
pub(super) const REMOVED_NODE: u8 = 11;
/// Contents, which are not in memory: `load` does not need them.
pub(super) const PAYLOAD: u8 = 20;
pub(super) const RESULT: u8 = 21;
pub(super) const ERROR: u8 = 22;
