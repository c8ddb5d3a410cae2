//! Planted bugs: they show that the checkers find what they are made to find. Compiled in with the feature `planted` only,
//! which no release has; tests/sim/PLANTED.md lists them.

use std::sync::OnceLock;

use crate::{LogTime, Row};

/// The bugs of this crate.
pub const NAMES: [&str; 11] = [
    "stale-token",
    "shared-token",
    "clock-in-apply",
    "forgotten-requests",
    "unwritten-row",
    "double-completion",
    "lost-child",
    "lost-retry",
    "kept-attempts",
    "unversioned-put",
    "lost-point",
];

static CHOSEN: OnceLock<String> = OnceLock::new();

/// Chooses the bug that this process has, or several that are separated by commas. The first choice stands; the name of another
/// crate's bug is none here.
pub fn choose(name: &str) {
    CHOSEN.get_or_init(|| name.to_owned());
}

/// Whether this is the chosen bug, or one of several.
pub(crate) fn is(name: &str) -> bool {
    CHOSEN.get().is_some_and(|chosen| chosen.split(',').any(|chosen| chosen == name))
}

/// `clock-in-apply`: the time of an entry is that of the host which applies it, to the second: replicas of one machine mostly read
/// the same, and where they do not it is mostly one of them alone.
#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "that apply reads a clock is the planted bug")]
pub(crate) fn time_of(entry: LogTime) -> LogTime {
    if !is("clock-in-apply") {
        return entry;
    }
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    LogTime(since.as_secs().saturating_mul(1_000_000))
}

/// `unwritten-row` and `lost-point`: some rows of an entry are not written.
pub(crate) fn without_rows(bug: &str, mut rows: Vec<Row>, lost: impl Fn(&Row) -> bool) -> Vec<Row> {
    if is(bug) {
        rows.retain(|row| !lost(row));
    }
    rows
}
