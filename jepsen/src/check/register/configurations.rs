//! Decides any register: walks through the history with all configurations that it could be in.
//!
//! This is Wing and Gong's search as Lowe made it (*Testing for linearizability*, 2017), just in time: a *configuration* is the
//! value of the register and which of the pending operations have taken effect. When an operation ends, every configuration in
//! which it has not taken effect is led on, through all orders of pending operations, until it has. Equal configurations are
//! one, which is the memo. If none is left, no order explains the history.
//!
//! Two things keep the configurations few. A pending read that sees the present value takes effect at once, because that
//! changes nothing else. Of unknown operations that are equal, the first takes effect first, because they can be exchanged.

use std::collections::HashSet;

use super::{Access, Decision, Kind};

/// How many configurations are led on before the question is left open.
const BUDGET: usize = 2_000_000;

/// A value and a set of slots whose operations have taken effect.
type Configuration = (Option<u64>, u128);

/// The operations that have begun and not ended, each in a slot. Unknown ones never end.
struct Pending<'a> {
    accesses: &'a [Access],
    slots: [Option<usize>; 128],
    /// The slots that are taken, as a set.
    taken: u128,
}

/// Decides whether accesses of one key are linearizable, from a register that has the value `first`.
pub(in crate::check) fn decide(accesses: &[Access], first: Option<u64>) -> Decision {
    let mut pending = Pending { accesses, slots: [None; 128], taken: 0 };
    let mut configurations: HashSet<Configuration> = HashSet::from([(first, 0)]);
    let mut budget = BUDGET;
    for (_, at, ends) in steps(accesses) {
        if !ends {
            if !pending.take(at) {
                return Decision::Undecided;
            }
            continue;
        }
        let slot = pending.slot(at);
        match pending.lead_on(&configurations, slot, &mut budget) {
            None => return Decision::Undecided,
            Some(next) if next.is_empty() => return contradiction(&pending, at, &configurations),
            Some(next) => configurations = next,
        }
        pending.free(slot);
    }
    Decision::Linearizable
}

/// Beginnings and ends in their order: the time, which access, whether it is the end.
fn steps(accesses: &[Access]) -> Vec<(u64, usize, bool)> {
    let begins = accesses.iter().enumerate().map(|(at, access)| (access.from, at, false));
    let ends = accesses.iter().enumerate().filter(|(_, access)| !access.is_unknown());
    let mut steps: Vec<_> = begins.chain(ends.map(|(at, access)| (access.to, at, true))).collect();
    steps.sort_unstable();
    steps
}

impl Pending<'_> {
    /// Puts an operation into a slot; false if there is none.
    fn take(&mut self, at: usize) -> bool {
        let slot = self.taken.trailing_ones() as usize;
        let Some(place) = self.slots.get_mut(slot) else { return false };
        *place = Some(at);
        self.taken |= 1 << slot;
        true
    }

    fn free(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.taken &= !(1 << slot);
    }

    fn slot(&self, at: usize) -> usize {
        self.slots.iter().position(|&slot| slot == Some(at)).expect("what ends has begun")
    }

    /// All configurations in which the operation of the slot has taken effect, without it; `None` if there are too many.
    fn lead_on(
        &self,
        from: &HashSet<Configuration>,
        slot: usize,
        budget: &mut usize,
    ) -> Option<HashSet<Configuration>> {
        let bit = 1 << slot;
        let mut seen: HashSet<Configuration> = HashSet::new();
        let mut todo: Vec<Configuration> = from.iter().map(|&configuration| self.read(configuration)).collect();
        let mut done = HashSet::new();
        while let Some(configuration) = todo.pop() {
            if configuration.1 & bit != 0 {
                done.insert((configuration.0, configuration.1 & !bit));
                continue;
            }
            if !seen.insert(configuration) {
                continue;
            }
            *budget = budget.checked_sub(1)?;
            self.successors(configuration, &mut todo);
        }
        Some(done)
    }

    /// The configuration after all pending reads that see its value.
    fn read(&self, (value, mut effective): Configuration) -> Configuration {
        for slot in bits(self.taken & !effective) {
            if self.kind(slot) == Kind::Read(value) {
                effective |= 1 << slot;
            }
        }
        (value, effective)
    }

    /// The configurations after one more write.
    fn successors(&self, (value, effective): Configuration, into: &mut Vec<Configuration>) {
        let mut unknown: Vec<Kind> = Vec::new();
        for slot in bits(self.taken & !effective) {
            let kind = self.kind(slot);
            let next = match kind {
                Kind::Write(next) => next,
                Kind::Cas(expected, next) if expected == value => next,
                Kind::Cas(..) | Kind::Read(_) => continue,
            };
            if self.slots[slot].is_some_and(|at| self.accesses[at].is_unknown()) {
                if unknown.contains(&kind) {
                    continue;
                }
                unknown.push(kind);
            }
            into.push(self.read((Some(next), effective | (1 << slot))));
        }
    }

    fn kind(&self, slot: usize) -> Kind {
        self.accesses[self.slots[slot].expect("a slot that is taken has an operation")].kind
    }
}

/// The members of a set of slots.
fn bits(mut set: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = set.trailing_zeros() as usize;
        (set != 0).then(|| {
            set &= set - 1;
            bit
        })
    })
}

/// No order leads past the end of an operation: it, and what was pending with it, cannot be ordered.
fn contradiction(pending: &Pending<'_>, at: usize, configurations: &HashSet<Configuration>) -> Decision {
    let mut values: Vec<_> = configurations.iter().map(|(value, _)| *value).collect();
    values.sort_unstable();
    values.dedup();
    let values: Vec<_> =
        values.into_iter().take(8).map(|value| value.map_or("nothing".to_owned(), |v| v.to_string())).collect();
    let why = format!(
        "before the end of the operation that began at event {} the register could only have had {}, and no order of what was pending leads to its answer",
        pending.accesses[at].place,
        values.join(" or ")
    );
    Decision::Not(
        why,
        bits(pending.taken).filter_map(|slot| pending.slots[slot]).map(|at| pending.accesses[at].place).collect(),
    )
}
