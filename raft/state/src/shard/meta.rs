//! The one record of things that there is one of.

use crate::codec::{Decode, Encode};
use crate::records::{Only, Record};
use crate::{LogTime, Position};

/// See the module. Written with every entry.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct MetaRecord {
    /// Of the last entry.
    pub(super) position: Position,
    /// Of the last entry.
    pub(super) time: LogTime,
    /// Requests minted before it are refused: their replies may be forgotten.
    pub(super) horizon: LogTime,
}

impl MetaRecord {
    pub(super) const BEFORE_FIRST: MetaRecord =
        MetaRecord { position: Position(0), time: LogTime(0), horizon: LogTime(0) };
}

impl Record for MetaRecord {
    const TABLE: u8 = super::table::META;
    type Key = Only;
}
