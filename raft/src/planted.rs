//! Planted bugs: they show that the simulation finds what it is made to find. Compiled in with the feature `planted` only,
//! which no release has; tests/sim/PLANTED.md lists them.

use std::sync::OnceLock;

static CHOSEN: OnceLock<String> = OnceLock::new();

/// Chooses the bug that this process has. The first choice stands.
pub fn choose(name: &str) {
    CHOSEN.get_or_init(|| name.to_owned());
}

/// Whether this is the chosen bug.
pub(crate) fn is(name: &str) -> bool {
    CHOSEN.get().is_some_and(|chosen| chosen == name)
}
