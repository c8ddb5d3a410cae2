//! Planted bugs: they show that the checkers find what they are made to find. Compiled in with the feature `planted` only,
//! which no release has; tests/sim/PLANTED.md lists them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_raft::{Observer, failpoint};

/// The bugs of this crate.
pub const NAMES: [&str; 9] = [
    "reused-replica",
    "convicting-leader",
    "jumping-clock",
    "early-acknowledge",
    "early-grant",
    "cut-off-renewals",
    "unconfirmed-attach",
    "late-close",
    "silent-expiry",
];

/// The variable by which `quorate-planted` is told which bug it has. It is no key of a node's configuration.
pub const VARIABLE: &str = "QUORATE_PLANTED";

/// The variable by which `quorate-planted` is told at which [`failpoint`] it ends: its name, and after a colon how often it is
/// passed before. It is no key of a node's configuration either.
pub const FAILPOINT_VARIABLE: &str = "QUORATE_FAILPOINT";

/// Where the process ends, and how often it passes there before.
struct Ending {
    point: &'static str,
    passes: AtomicU64,
}

static ENDING: OnceLock<Ending> = OnceLock::new();

/// Lets the process end at a failpoint, given as in [`FAILPOINT_VARIABLE`]. The first choice stands.
///
/// # Errors
/// Says what is wrong with it.
pub fn end_at(told: &str) -> Result<(), String> {
    let (name, passes) = told.split_once(':').unwrap_or((told, "0"));
    let point = failpoint::ALL.into_iter().find(|point| *point == name);
    let point = point.ok_or_else(|| format!("{name:?} is no failpoint; there are: {}", failpoint::ALL.join(", ")))?;
    let passes = passes.parse().map_err(|_| format!("{passes:?} is no number of passes"))?;
    ENDING.get_or_init(|| Ending { point, passes: AtomicU64::new(passes) });
    Ok(())
}

/// Ends the process where it is to end, as a crash does: nothing is flushed, nobody is told.
pub(crate) fn observer() -> Option<Observer> {
    let ending = ENDING.get()?;
    Some(Observer::new(|_| {}).ending_at(|point| {
        if point == ending.point
            && ending.passes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
        {
            eprintln!("quorate-planted: this process ends at the failpoint {point}");
            std::process::abort();
        }
        false
    }))
}

static CHOSEN: OnceLock<String> = OnceLock::new();

/// The bugs that a node can have: those of this crate and of the crates below it.
pub fn names() -> impl Iterator<Item = &'static str> {
    quorate_raft::planted::NAMES.into_iter().chain(quorate_state::planted::NAMES).chain(NAMES)
}

/// Chooses the bug that the nodes of this process have, here and in the crates below, or several that are separated by commas.
/// The first choice stands; a name that is not among [`names`] is no bug.
pub fn choose(name: &str) {
    CHOSEN.get_or_init(|| name.to_owned());
    quorate_raft::planted::choose(name);
    quorate_state::planted::choose(name);
}

/// Whether this is the chosen bug, or one of several.
pub(crate) fn is(name: &str) -> bool {
    CHOSEN.get().is_some_and(|chosen| chosen.split(',').any(|chosen| chosen == name))
}
