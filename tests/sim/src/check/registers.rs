//! Linearizability of each point, by nothing but what clients saw (Wing and Gong, with memory of what was tried).
//!
//! A point is a register of versions; 0 is none. Every operation has an interval in which it took effect. One whose outcome
//! its client never learnt is told by the log, at the end, whether and when it did; so all intervals have an end.

use std::collections::{BTreeMap, HashSet};

use super::Wrong;

/// What an operation did, as its client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// It put the point, on condition of a version or none, and made this version.
    Put { expected: Option<u64>, version: u64 },
    /// It was refused, because the point had this version.
    Conflict { expected: u64, actual: u64 },
    /// It deleted the point, which was there or not.
    Delete { existed: bool },
    /// It read this version.
    Read { version: u64 },
}

impl Action {
    /// What it makes of a register, if it can take effect on it.
    fn on(self, register: u64) -> Option<u64> {
        match self {
            Action::Put { expected, version } => {
                expected.is_none_or(|expected| expected == register).then_some(version)
            }
            Action::Conflict { expected, actual } => (register == actual && actual != expected).then_some(register),
            Action::Delete { existed } => (existed == (register != 0)).then_some(0),
            Action::Read { version } => (version == register).then_some(register),
        }
    }
}

/// An operation, from the step in which it was invoked to the one in which it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operation {
    /// When it was invoked.
    pub(crate) from: u64,
    /// When it was answered.
    pub(crate) to: u64,
    /// What it did.
    pub(crate) action: Action,
}

/// The operations on all points.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    operations: BTreeMap<String, Vec<Operation>>,
}

impl Registers {
    /// Takes an operation in.
    pub(crate) fn add(&mut self, id: &str, operation: Operation) {
        self.operations.entry(id.to_owned()).or_default().push(operation);
    }

    /// How many there are.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.operations.values().map(Vec::len).sum()
    }

    /// Looks for an order of the operations of each point.
    pub(crate) fn check(&self) -> Wrong {
        let failed = self.operations.iter().filter_map(|(id, operations)| {
            let stuck = linearize(operations).err()?;
            Some(format!("linearizability: the operations on {id} have no order; none goes beyond {stuck:?}"))
        });
        failed.collect()
    }
}

/// A set of operations by number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Done(Vec<u64>);

impl Done {
    fn has(&self, nth: usize) -> bool {
        self.0[nth / 64] >> (nth % 64) & 1 == 1
    }

    fn flip(&mut self, nth: usize) {
        self.0[nth / 64] ^= 1 << (nth % 64);
    }
}

/// Finds an order in which the operations can have taken effect, each within its interval. The error is the operation that
/// the longest attempt could not place.
fn linearize(operations: &[Operation]) -> Result<(), Operation> {
    let mut sorted = operations.to_vec();
    sorted.sort_by_key(|operation| (operation.from, operation.to));
    let mut done = Done(vec![0; sorted.len().div_ceil(64)]);
    let mut tried = HashSet::new();
    // What was placed, with the register before it, and where to look for the next candidate.
    let mut placed: Vec<(usize, u64)> = Vec::new();
    let (mut register, mut candidate) = (0, 0);
    let (mut longest, mut stuck) = (0, None);
    while placed.len() < sorted.len() {
        // Nothing that begins after the end of an operation that is not placed may go before that one.
        let open = || (0..sorted.len()).filter(|nth| !done.has(*nth));
        let horizon = open().map(|nth| sorted[nth].to).min().unwrap_or(u64::MAX);
        let next = (candidate..sorted.len())
            .take_while(|nth| sorted[*nth].from <= horizon)
            .filter(|nth| !done.has(*nth))
            .find_map(|nth| Some((nth, sorted[nth].action.on(register)?)));
        if placed.len() >= longest {
            longest = placed.len();
            stuck = open().min_by_key(|nth| sorted[*nth].to).map(|nth| sorted[nth]);
        }
        let Some((nth, after)) = next else {
            let Some((nth, before)) = placed.pop() else { return Err(stuck.unwrap_or(sorted[0])) };
            done.flip(nth);
            (register, candidate) = (before, nth + 1);
            continue;
        };
        done.flip(nth);
        if tried.insert((done.clone(), after)) {
            placed.push((nth, register));
            (register, candidate) = (after, 0);
        } else {
            done.flip(nth);
            candidate = nth + 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(from: u64, to: u64, action: Action) -> Operation {
        Operation { from, to, action }
    }

    fn put(from: u64, to: u64, version: u64) -> Operation {
        operation(from, to, Action::Put { expected: None, version })
    }

    fn read(from: u64, to: u64, version: u64) -> Operation {
        operation(from, to, Action::Read { version })
    }

    #[test]
    fn orders_are_found_where_there_are_some() {
        assert_eq!(linearize(&[]), Ok(()));
        assert_eq!(linearize(&[put(1, 5, 1), read(2, 3, 0), read(4, 6, 1)]), Ok(()));
        assert_eq!(linearize(&[put(1, 9, 1), put(1, 9, 2), read(3, 4, 2), read(5, 6, 1)]), Ok(()));
        let swap = operation(6, 8, Action::Put { expected: Some(1), version: 3 });
        let conflict = operation(6, 9, Action::Conflict { expected: 1, actual: 3 });
        let gone = operation(10, 11, Action::Delete { existed: true });
        assert_eq!(linearize(&[put(1, 2, 1), swap, conflict, gone, read(12, 13, 0)]), Ok(()));
    }

    #[test]
    fn what_cannot_be_is_seen() {
        assert!(linearize(&[put(1, 2, 1), read(3, 4, 0)]).is_err(), "a stale read");
        assert!(linearize(&[put(1, 9, 1), read(2, 3, 1), read(4, 5, 0)]).is_err(), "a read that goes back");
        let swap = |from, version| operation(from, from + 9, Action::Put { expected: Some(1), version });
        assert!(linearize(&[put(1, 2, 1), swap(3, 2), swap(3, 3)]).is_err(), "two of one version");
        let delete = operation(3, 4, Action::Delete { existed: false });
        assert!(linearize(&[put(1, 2, 1), delete]).is_err(), "a delete that finds nothing");
        let conflict = operation(3, 4, Action::Conflict { expected: 5, actual: 5 });
        assert!(linearize(&[put(1, 2, 5), conflict]).is_err(), "a conflict that is none");
    }

    #[test]
    fn it_agrees_with_trying_all_orders() {
        // All histories of three operations with small intervals and versions.
        let actions = [
            Action::Put { expected: None, version: 1 },
            Action::Put { expected: Some(1), version: 2 },
            Action::Delete { existed: true },
            Action::Read { version: 0 },
            Action::Read { version: 1 },
            Action::Conflict { expected: 0, actual: 2 },
        ];
        let intervals = [(1, 2), (1, 4), (3, 4), (2, 3)];
        let all: Vec<Operation> =
            actions.iter().flat_map(|action| intervals.map(|(from, to)| operation(from, to, *action))).collect();
        let mut found = [0, 0];
        for one in &all {
            for two in &all {
                for three in &all {
                    let history = [*one, *two, *three];
                    let expected = by_force(&history);
                    assert_eq!(linearize(&history).is_ok(), expected, "{history:?}");
                    found[usize::from(expected)] += 1;
                }
            }
        }
        assert!(found.iter().all(|count| *count > 1_000), "{found:?}");
    }

    fn by_force(history: &[Operation; 3]) -> bool {
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        orders.iter().any(|order| {
            let in_time = (0..3).all(|a| (a + 1..3).all(|b| history[order[b]].to >= history[order[a]].from));
            let mut register = Some(0);
            for nth in order {
                register = register.and_then(|register| history[*nth].action.on(register));
            }
            in_time && register.is_some()
        })
    }

    #[test]
    fn operations_are_kept_by_point() {
        let mut registers = Registers::default();
        registers.add("a", put(1, 2, 1));
        registers.add("b", read(3, 4, 0));
        assert!(registers.check().is_empty());
        assert_eq!(registers.count(), 2);
        registers.add("a", read(3, 4, 0));
        assert!(registers.check()[0].contains("linearizability: the operations on a"));
    }
}
