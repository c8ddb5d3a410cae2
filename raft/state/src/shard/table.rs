//! The numbers of the shard machine's tables. They are in stored databases: never change one, never use one again.

pub(super) const META: u8 = 1;
pub(super) const COLLECTION: u8 = 2;
pub(super) const REQUEST: u8 = 3;
pub(super) const POINT: u8 = 4;
