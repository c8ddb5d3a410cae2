//! What every call of a client says of itself: until when it waits, and under which id it may be sent again.

use std::time::Duration;

use quorate_api::limits;
use quorate_state::RequestId;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use uuid::{NoContext, Timestamp, Uuid};

use crate::error::Error;

/// A call whose deadline is farther away ends after so long.
const LONGEST_CALL: Duration = Duration::from_secs(3_600);

/// How far a client's clock may be ahead of the time that is known here, microseconds. Replies are forgotten in the order in
/// which their ids were minted, at last: many ids from the future would take the place of everybody else's.
const AHEAD_US: u64 = 3_600_000_000;

/// The request id of a call; one that names none gets a new one, so that what this node sends twice takes effect once.
///
/// `now_us` is [what time it is](crate::context::Context::now_us).
///
/// # Errors
/// `INVALID_ARGUMENT` if it is no UUID of version 7, or was minted more than an hour after that.
pub fn request_id(id: &str, now_us: u64) -> Result<RequestId, Error> {
    if id.is_empty() {
        return Ok(new_request_id(now_us));
    }
    let refused = |why: &str| {
        let shown: String = id.chars().take(64).collect();
        Error::invalid("request_id", format!("`request_id` is no {why}: {shown:?}"))
    };
    let parsed = RequestId(Uuid::try_parse(id).map_err(|_| refused("UUID"))?.as_u128());
    // Only an id that says when it was minted can be refused once its reply is forgotten, instead of being run again.
    let minted = parsed.minted().ok_or_else(|| refused("UUID of version 7"))?;
    let ahead_us = minted.0.saturating_sub(now_us);
    if ahead_us > AHEAD_US {
        let message = format!(
            "`request_id` was minted {} s ahead of the time of this cluster: check the time synchronisation of the hosts",
            ahead_us / 1_000_000
        );
        return Err(Error::invalid("request_id", message));
    }
    Ok(parsed)
}

/// A new request id, minted at `now_us`, which is [what time it is](crate::context::Context::now_us): one that a wrong clock
/// mints is too old to be looked up.
pub fn new_request_id(now_us: u64) -> RequestId {
    let nanos = (now_us % 1_000_000 * 1_000) as u32;
    let at = Timestamp::from_unix(NoContext, now_us / 1_000_000, nanos);
    RequestId(Uuid::new_v7(at).as_u128())
}

/// When a call must be answered: what its client states, else the default.
pub fn deadline(metadata: &MetadataMap) -> Instant {
    let stated = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse_timeout);
    Instant::now() + stated.unwrap_or(limits::DEADLINE_DEFAULT).min(LONGEST_CALL)
}

/// The header's format is at most eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_US: u64 = 1_795_000_000_123_456;

    #[test]
    fn timeouts_of_every_unit_are_read_and_nonsense_is_not() {
        assert_eq!(parse_timeout("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(parse_timeout("2M"), Some(Duration::from_secs(120)));
        for bad in ["", "S", "1", "1x", "123456789S", "-1S", "1é"] {
            assert_eq!(parse_timeout(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_call_without_an_id_gets_a_new_one_and_nonsense_is_refused() {
        let given = new_request_id(NOW_US);
        assert_eq!(request_id(&Uuid::from_u128(given.0).to_string(), NOW_US), Ok(given));
        let minted = request_id("", NOW_US).expect("a new id").minted().expect("of version 7");
        assert!((NOW_US - 1_000..=NOW_US).contains(&minted.0), "{minted:?}");
        let refused = request_id("not an id", NOW_US).expect_err("no UUID");
        assert_eq!(refused.metadata["field"], "request_id");
    }

    #[test]
    fn an_id_from_the_future_is_refused_before_it_takes_the_place_of_others() {
        let minted = |ahead_s: u64| {
            let id = new_request_id(NOW_US + ahead_s * 1_000_000);
            request_id(&Uuid::from_u128(id.0).to_string(), NOW_US)
        };
        minted(3_590).expect("clocks differ");
        let refused = minted(3_700).expect_err("by so much they must not");
        assert_eq!(refused.metadata["field"], "request_id");
        assert!(refused.message.contains("time synchronisation"), "{refused}");
    }
}
