//! What goes into a machine and what comes out of it.

use bytes::Bytes;

use crate::codec::{Decode, Encode};
use crate::{LogTime, Reject, RequestId};

/// The most operations that one entry may hold.
pub const MAX_OPERATIONS: usize = 4_096;

/// One entry of the log: operations that were gathered while the proposal before was in flight.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Entry<C> {
    /// The leader's time. See [`LogTime`].
    pub time: LogTime,
    /// At most [`MAX_OPERATIONS`], applied in order; each one sees the ones before it.
    pub operations: Vec<Operation<C>>,
}

/// A command with the id of the request that asked for it.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Operation<C> {
    /// With an id the command takes effect once, however often it is proposed. Operations of the leader itself need none.
    pub request: Option<RequestId>,
    /// What to do.
    pub command: C,
}

impl<C> Operation<C> {
    /// An operation without a request id.
    pub fn new(command: C) -> Self {
        Operation { request: None, command }
    }
}

/// A changed record for the state database. Within an outcome a later row of the same key replaces an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The machine's numbering of its tables, below 200.
    pub table: u8,
    /// The key within the table.
    pub key: Bytes,
    /// The encoded record; `None` deletes.
    pub value: Option<Bytes>,
}

/// What an entry came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome<R, E> {
    /// One for each operation, in order. A rejected operation has changed nothing.
    pub replies: Vec<Result<R, Reject>>,
    /// The changed records, on every replica alike.
    pub rows: Vec<Row>,
    /// What is to be done about it. See the machine's `Effect` for who does it.
    pub effects: Vec<E>,
}

/// A local failure: this replica must not go on, because its state is no longer a function of the log. Unlike a
/// [`Reject`] it is not an answer and may differ from replica to replica.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Something stored does not decode.
    #[error(
        "{what} does not decode ({source}): this replica's storage is damaged or was written by a newer version; replace the replica or start the newer version"
    )]
    Undecodable {
        /// What was being read.
        what: String,
        /// The codec's complaint.
        source: crate::codec::Error,
    },
    /// An entry came again or out of order.
    #[error(
        "entry {at} was given to a machine that has applied {last}: entries must be applied in order, each once; report this as a bug"
    )]
    OutOfOrder {
        /// The position that was given.
        at: u64,
        /// The last position that was applied.
        last: u64,
    },
    /// An entry holds more operations than the machine takes.
    #[error(
        "entry {at} holds {operations} operations, more than {MAX_OPERATIONS}: the proposer must split it; report this as a bug"
    )]
    TooManyOperations {
        /// The position of the entry.
        at: u64,
        /// How many it holds.
        operations: usize,
    },
    /// Stored records contradict each other.
    #[error("the stored state contradicts itself: {what}; replace this replica")]
    Broken {
        /// The contradiction.
        what: String,
    },
}
