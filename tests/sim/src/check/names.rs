//! The names of the checkers. A violation begins with the name of the one that speaks, and PLANTED.md says by these names who
//! may catch which bug.

/// All of them.
pub(crate) const CHECKERS: [&str; 31] = [
    "audit",
    "clients",
    "commit on quorum",
    "damage",
    "durability",
    "election safety",
    "get",
    "halted",
    "hosts",
    "leader completeness",
    "leadership",
    "leases",
    "linearizability",
    "liveness",
    "log matching",
    "log time",
    "panic",
    "points",
    "quarantine",
    "restart",
    "rows",
    "running groups",
    "search",
    "self-check",
    "session get",
    "sessions",
    "stale get",
    "stale read",
    "state hashes",
    "state machine safety",
    "touched records",
];

/// A read of points, which is a checker by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// A linearizable one.
    Get,
    /// One that has to see what its own client wrote.
    SessionGet,
    /// One that may be behind.
    StaleGet,
    /// A linearizable search.
    Search,
}

impl Reading {
    /// The name of the checker.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Reading::Get => "get",
            Reading::SessionGet => "session get",
            Reading::StaleGet => "stale get",
            Reading::Search => "search",
        }
    }
}

/// The checker that speaks: a violation is `step N: CHECKER: what`, or that without its step.
pub(crate) fn checker_of(violation: &str) -> &str {
    let told = violation.strip_prefix("step ").and_then(|rest| rest.split_once(": "));
    let said = told.map_or(violation, |(_, said)| said);
    said.split_once(": ").map_or(said, |(checker, _)| checker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reading_is_a_checker() {
        for reading in [Reading::Get, Reading::SessionGet, Reading::StaleGet, Reading::Search] {
            assert!(CHECKERS.contains(&reading.name()), "{reading:?}");
        }
    }

    #[test]
    fn a_violation_names_its_checker() {
        assert_eq!(checker_of("step 12: state hashes: node-1 has 0 at position 3"), "state hashes");
        assert_eq!(checker_of("audit: task 4 is granted twice: by 7"), "audit");
        assert_eq!(checker_of("step 12: restart: node-3 does not start: its log is purged"), "restart");
    }
}
