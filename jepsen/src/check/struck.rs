//! Faults as the checkers look at them: with the moments that were noted beside their records.

use std::ops::Deref;

use crate::event::{Fault, Injection, Micros, Moment, Note};
use crate::history::History;

/// A fault that struck.
pub(super) struct Struck<'a> {
    fault: &'a Fault,
    /// When it began to be made. What it disturbed before it bit is its own doing.
    pub(super) begun: Micros,
    /// When it changed links for the last time; its end, if that was not noted.
    pub(super) last_change: Micros,
}

impl Deref for Struck<'_> {
    type Target = Fault;

    fn deref(&self) -> &Fault {
        self.fault
    }
}

impl<'a> Struck<'a> {
    /// All faults of a history that were not skipped.
    pub(super) fn all(history: &'a History) -> Vec<Struck<'a>> {
        let struck = history.faults.iter().filter(|fault| fault.injection != Injection::Skipped);
        struck.map(|fault| Struck::of(fault, history)).collect()
    }

    fn of(fault: &'a Fault, history: &History) -> Struck<'a> {
        let of_nemesis = history.faults.iter().filter(|other| other.nemesis == fault.nemesis);
        // What was noted before an earlier fault of the nemesis is that one's.
        let since = of_nemesis.map(|other| other.from).filter(|from| *from < fault.from).max();
        let is_own = |time: &Micros| since.is_none_or(|since| *time > since);
        let begun = moments(history, &fault.nemesis, &[Moment::Begun]).filter(|time| *time <= fault.from);
        let changes = moments(history, &fault.nemesis, &[Moment::Cut, Moment::Mended]);
        let within = changes.filter(|time| (fault.from..=fault.to).contains(time));
        Struck {
            fault,
            begun: begun.filter(is_own).max().unwrap_or(fault.from),
            last_change: within.max().unwrap_or(fault.to),
        }
    }
}

/// When a nemesis noted one of these.
fn moments<'a>(history: &'a History, of: &'a str, wanted: &'a [Moment]) -> impl Iterator<Item = Micros> + 'a {
    history.notes.iter().filter_map(move |note| match note {
        Note::Moment { nemesis, moment, time } if nemesis == of && wanted.contains(moment) => Some(*time),
        _ => None,
    })
}
