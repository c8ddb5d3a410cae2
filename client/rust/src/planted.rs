//! Planted bugs: they show that the checkers find what they are made to find. Compiled in with the feature `planted` only,
//! which no release has; tests/sim/PLANTED.md lists them.

use std::sync::OnceLock;

/// The bugs of this crate.
pub const NAMES: [&str; 3] = ["fresh-request-id", "failed-on-timeout", "late-surrender"];

static CHOSEN: OnceLock<String> = OnceLock::new();

/// Chooses the bug that the clients and agents of this process have, or several that are separated by commas. The first choice
/// stands; the name of another crate's bug is none here.
pub fn choose(name: &str) {
    CHOSEN.get_or_init(|| name.to_owned());
}

/// Whether this is the chosen bug, or one of several.
pub(crate) fn is(name: &str) -> bool {
    CHOSEN.get().is_some_and(|chosen| chosen.split(',').any(|chosen| chosen == name))
}
