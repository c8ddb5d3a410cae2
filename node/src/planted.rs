//! Planted bugs: they show that the checkers find what they are made to find. Compiled in with the feature `planted` only,
//! which no release has; tests/sim/PLANTED.md lists them.

use std::sync::OnceLock;

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

static CHOSEN: OnceLock<String> = OnceLock::new();

/// The bugs that a node can have: those of this crate and of the crates below it.
pub fn names() -> impl Iterator<Item = &'static str> {
    quorate_raft::planted::NAMES.into_iter().chain(quorate_state::planted::NAMES).chain(NAMES)
}

/// Chooses the bug that the nodes of this process have, here and in the crates below. The first choice stands; a name
/// that is not among [`names`] is no bug.
pub fn choose(name: &str) {
    CHOSEN.get_or_init(|| name.to_owned());
    quorate_raft::planted::choose(name);
    quorate_state::planted::choose(name);
}

/// Whether this is the chosen bug.
pub(crate) fn is(name: &str) -> bool {
    CHOSEN.get().is_some_and(|chosen| chosen == name)
}
