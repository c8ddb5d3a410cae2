//! What every call of a client says of itself: until when it waits, and under which id it may be sent again.

use std::time::Duration;

use quorate_api::limits;
use quorate_state::RequestId;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::error::Error;
use crate::log_clock::Clock;

/// A call whose deadline is farther away ends after so long.
const LONGEST_CALL: Duration = Duration::from_secs(3_600);

/// How far a client's clock may be ahead of this node's, microseconds. Replies are forgotten in the order in which their ids
/// were minted, at last: many ids from the future would take the place of everybody else's.
const AHEAD_US: u64 = 3_600_000_000;

/// The request id of a call; one that names none gets a new one, so that what this node sends twice takes effect once.
///
/// # Errors
/// `INVALID_ARGUMENT` if it is no UUID of version 7, or was minted more than an hour ahead of this node's clock.
pub fn request_id(id: &str, clock: &dyn Clock) -> Result<RequestId, Error> {
    if id.is_empty() {
        return Ok(RequestId(Uuid::now_v7().as_u128()));
    }
    let refused = |why: &str| {
        let shown: String = id.chars().take(64).collect();
        Error::invalid("request_id", format!("`request_id` is no {why}: {shown:?}"))
    };
    let parsed = RequestId(Uuid::try_parse(id).map_err(|_| refused("UUID"))?.as_u128());
    // Only an id that says when it was minted can be refused once its reply is forgotten, instead of being run again.
    let minted = parsed.minted().ok_or_else(|| refused("UUID of version 7"))?;
    let ahead_us = minted.0.saturating_sub(clock.wall_us());
    if ahead_us > AHEAD_US {
        let message = format!(
            "`request_id` was minted {} s ahead of this node's clock: check the time synchronisation of both hosts",
            ahead_us / 1_000_000
        );
        return Err(Error::invalid("request_id", message));
    }
    Ok(parsed)
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
    use crate::log_clock::SystemClock;

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
        let clock = SystemClock::new();
        let given = Uuid::now_v7();
        assert_eq!(request_id(&given.to_string(), &clock), Ok(RequestId(given.as_u128())));
        let minted = request_id("", &clock).expect("a new id");
        assert!(minted.minted().is_some());
        let refused = request_id("not an id", &clock).expect_err("no UUID");
        assert_eq!(refused.metadata["field"], "request_id");
    }

    #[test]
    fn an_id_from_the_future_is_refused_before_it_takes_the_place_of_others() {
        let clock = SystemClock::new();
        let minted = |ahead_s: u64| {
            let at = uuid::Timestamp::from_unix(uuid::NoContext, clock.wall_us() / 1_000_000 + ahead_s, 0);
            request_id(&Uuid::new_v7(at).to_string(), &clock)
        };
        minted(3_590).expect("clocks differ");
        let refused = minted(3_700).expect_err("by so much they must not");
        assert_eq!(refused.metadata["field"], "request_id");
        assert!(refused.message.contains("time synchronisation"), "{refused}");
    }
}
