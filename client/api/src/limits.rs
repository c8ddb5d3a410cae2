//! Every public limit, and the checks that turn a value beyond one into an [`ApiError`].
//!
//! A limit here is part of the protocol: raising one is compatible, lowering one is not.

use std::time::Duration;

use crate::ApiError;
use crate::v1::ErrorReason;

/// A gRPC message, in bytes, in either direction.
pub const MESSAGE_BYTES: usize = 8 << 20;
/// A task's payload or result, in bytes.
pub const PAYLOAD_BYTES: usize = 4 << 20;
/// A point's payload, in bytes.
pub const POINT_PAYLOAD_BYTES: usize = 64 << 10;
/// Tasks in one enqueue, and children of one completion.
pub const BATCH_TASKS: usize = 1_000;
/// Points in one upsert, and ids in one get or delete.
pub const BATCH_POINTS: usize = 1_000;
/// Calls in one frame of an enqueue stream, and finishes in one frame of a work stream.
pub const FRAME_ITEMS: usize = 1_000;
/// A name (queue, role, agent, collection, label), in bytes.
pub const NAME_BYTES: usize = 128;
/// A point's id, in bytes.
pub const POINT_ID_BYTES: usize = 256;
/// The text of a failure, in bytes.
pub const ERROR_TEXT_BYTES: usize = 16 << 10;
/// Roles of one agent.
pub const ROLES: usize = 32;
/// Dimensions of a collection's vectors.
pub const DIMENSION: usize = 4_096;
/// Hits of one search.
pub const SEARCH_K: usize = 1_000;
/// Tasks on one page of a listing.
pub const PAGE_TASKS: usize = 1_000;
/// Tasks on one page of a listing that states no size.
pub const PAGE_TASKS_DEFAULT: usize = 100;
/// Slots of one agent: attempts that it runs at once.
pub const SLOTS: u32 = 1_024;
/// Shards of one cluster.
pub const SHARDS: u32 = 64;
/// Shards of a cluster whose init states no number.
pub const SHARDS_DEFAULT: u32 = 8;
/// The shortest time to live of a session.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// The longest time to live of a session.
pub const TTL_MAX: Duration = Duration::from_secs(300);
/// The time to live of a session that states none.
pub const TTL_DEFAULT: Duration = Duration::from_secs(10);
/// The longest wait for a task in one call.
pub const WAIT_MAX: Duration = Duration::from_secs(600);
/// The wait for a task in a call that states none.
pub const WAIT_DEFAULT: Duration = Duration::from_secs(30);
/// The deadline of a call that states none.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// How long a request id is remembered, in log time. An older one is refused, not run again.
pub const REQUEST_ID_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

// A frame that holds one item of the greatest size must pass.
const _: () = assert!(PAYLOAD_BYTES + (1 << 20) <= MESSAGE_BYTES);
const _: () = assert!(POINT_PAYLOAD_BYTES + 4 * DIMENSION < MESSAGE_BYTES);
const _: () = assert!(PAGE_TASKS_DEFAULT <= PAGE_TASKS);

/// Checks a name: 1 to [`NAME_BYTES`] bytes, no control characters.
///
/// # Errors
/// `INVALID_ARGUMENT` or `TOO_LARGE`, both with the field's name in the metadata.
pub fn check_name(field: &str, name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(invalid(field, format!("`{field}` is empty")));
    }
    if name.chars().any(char::is_control) {
        return Err(invalid(field, format!("`{field}` holds a control character")));
    }
    check_size(field, name.len(), NAME_BYTES)
}

/// Checks a point's id: 1 to [`POINT_ID_BYTES`] bytes.
///
/// # Errors
/// `INVALID_ARGUMENT` or `TOO_LARGE`, both with the field's name in the metadata.
pub fn check_point_id(field: &str, id: &str) -> Result<(), ApiError> {
    if id.is_empty() {
        return Err(invalid(field, format!("`{field}` is empty")));
    }
    check_size(field, id.len(), POINT_ID_BYTES)
}

/// Checks that `size` (bytes or items of `field`) is not above `limit`.
///
/// # Errors
/// `TOO_LARGE` with `field`, `limit` and `size` in the metadata.
pub fn check_size(field: &str, size: usize, limit: usize) -> Result<(), ApiError> {
    if size <= limit {
        return Ok(());
    }
    Err(ApiError::new(ErrorReason::TooLarge, format!("`{field}` has size {size}, the limit is {limit}"))
        .with("field", field)
        .with("limit", limit)
        .with("size", size))
}

/// Checks that `value` lies within `least..=greatest`.
///
/// # Errors
/// `INVALID_ARGUMENT` with the field's name in the metadata.
pub fn check_range(field: &str, value: u64, least: u64, greatest: u64) -> Result<(), ApiError> {
    if (least..=greatest).contains(&value) {
        return Ok(());
    }
    Err(invalid(field, format!("`{field}` is {value}, it must be within {least}..={greatest}")))
}

fn invalid(field: &str, what: String) -> ApiError {
    ApiError::new(ErrorReason::InvalidArgument, what).with("field", field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_printable() {
        assert_eq!(check_name("queue", "mail"), Ok(()));
        assert_eq!(check_name("queue", &"q".repeat(NAME_BYTES)), Ok(()));
        let empty = check_name("queue", "").expect_err("empty");
        assert_eq!(empty.reason, ErrorReason::InvalidArgument);
        assert_eq!(empty.metadata["field"], "queue");
        let control = check_name("queue", "a\nb").expect_err("control");
        assert_eq!(control.reason, ErrorReason::InvalidArgument);
        let long = check_name("role", &"q".repeat(NAME_BYTES + 1)).expect_err("long");
        assert_eq!(long.reason, ErrorReason::TooLarge);
        assert_eq!(long.metadata["limit"], "128");
        assert_eq!(long.metadata["size"], "129");
    }

    #[test]
    fn point_ids_and_ranges_are_bounded() {
        assert_eq!(check_point_id("id", &"p".repeat(256)), Ok(()));
        assert!(check_point_id("id", &"p".repeat(257)).is_err());
        assert!(check_point_id("id", "").is_err());
        assert_eq!(check_range("k", 1, 1, 1_000), Ok(()));
        assert_eq!(check_range("k", 1_000, 1, 1_000), Ok(()));
        assert!(check_range("k", 0, 1, 1_000).is_err());
        assert!(check_range("k", 1_001, 1, 1_000).is_err());
    }
}
