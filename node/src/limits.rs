//! The limits of a node that no caller sees; the public ones are in `quorate_api::limits`.

use std::time::Duration;

/// Most operations of one entry.
pub const ENTRY_OPERATIONS: usize = 4_096;
/// Bytes after which no further call joins an entry. One larger call has an entry of its own.
pub const ENTRY_BYTES: usize = 1024 * 1024;
/// Operations of an entry that are kept for what the matcher adds.
pub const MATCHER_ROOM: usize = 1_024;
/// Entries that a proposer keeps in flight.
pub const ENTRIES_IN_FLIGHT: usize = 2;
/// Operations that wait in a proposer before it sheds.
pub const QUEUED_OPERATIONS: usize = 16_384;
/// Bytes that wait in a proposer before it sheds.
pub const QUEUED_BYTES: usize = 64 * 1024 * 1024;
/// What a shed caller is told to wait.
pub const OVERLOADED_RETRY_AFTER: Duration = Duration::from_millis(100);
/// Most replicas of a shard.
pub const SHARD_REPLICAS: usize = 3;
/// Most voters of control; further members are learners.
pub const CONTROL_VOTERS: usize = 5;
/// Version of the protocol between peers; nodes of another one are not admitted.
pub const PEER_PROTOCOL: u64 = 1;

const _: () = assert!(MATCHER_ROOM < ENTRY_OPERATIONS);
const _: () = assert!(ENTRY_OPERATIONS <= QUEUED_OPERATIONS);
const _: () = assert!(quorate_api::limits::MESSAGE_BYTES <= QUEUED_BYTES);
const _: () = assert!(quorate_api::limits::BATCH_TASKS <= ENTRY_OPERATIONS);
// What passes the public limits must not be refused by the state.
const _: () = assert!(quorate_api::limits::PAYLOAD_BYTES <= quorate_state::control::MAX_PAYLOAD_BYTES);
const _: () = assert!(quorate_api::limits::PAYLOAD_BYTES <= quorate_state::control::MAX_RESULT_BYTES);
