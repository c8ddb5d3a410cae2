//! What is in a set, or not, by what was done to one element of it.
//!
//! An element is added and removed by operations of which some were acknowledged and some have an unknown outcome. Those that
//! certainly took no effect are left out by who asks. A look at the set has a beginning and an end too, and what overlaps it
//! may or may not be seen.

use crate::{event::Phase, history::Span};

/// When something took effect, on the line of [`Span::earliest`].
#[derive(Debug, Clone, Copy)]
pub(super) struct When {
    from: u64,
    /// `u64::MAX` if nobody knows whether it ever does.
    to: u64,
}

impl When {
    pub(super) fn of(span: &Span<'_>) -> When {
        When { from: span.earliest(), to: span.latest() }
    }

    /// Before everything that was recorded.
    pub(super) const BEFORE: When = When { from: 0, to: 0 };

    fn is_before(&self, other: &When) -> bool {
        self.to < other.from
    }

    /// Whether it may take effect after another one and before the end of a look.
    fn may_come_between(&self, other: &When, look: &When) -> bool {
        self.to > other.from && self.from < look.to
    }
}

/// Why an element cannot have been seen as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It was added before, and is not there.
    Lost,
    /// It was removed before, and is there.
    Back,
    /// Nobody had added it, and it is there.
    Unknown,
}

/// What was done to one element.
#[derive(Debug, Clone, Default)]
pub(super) struct Presence {
    added: Vec<When>,
    removed: Vec<When>,
}

impl Presence {
    /// It was added, or that was tried and nobody knows.
    pub(super) fn add(&mut self, when: When) {
        self.added.push(when);
    }

    /// It was removed, or that was tried and nobody knows.
    pub(super) fn remove(&mut self, when: When) {
        self.removed.push(when);
    }

    /// What contradicts that a look saw it, or did not.
    pub(super) fn contradiction(&self, look: &When, is_there: bool) -> Option<Wrong> {
        let decides = |one: &[When], other: &[When]| {
            one.iter()
                .any(|done| done.is_before(look) && !other.iter().any(|undone| undone.may_come_between(done, look)))
        };
        match is_there {
            false if decides(&self.added, &self.removed) => Some(Wrong::Lost),
            true if !self.added.iter().any(|added| added.from < look.to) => Some(Wrong::Unknown),
            true if decides(&self.removed, &self.added) => Some(Wrong::Back),
            _ => None,
        }
    }

    /// Whether the look could only see it in one way.
    pub(super) fn is_certain(&self, look: &When) -> bool {
        self.contradiction(look, true).is_some() || self.contradiction(look, false).is_some()
    }
}

/// Whether a change may have taken effect.
pub(super) fn may_count(span: &Span<'_>) -> bool {
    span.outcome() != Phase::Fail
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNKNOWN: u64 = u64::MAX;

    fn presence(added: &[(u64, u64)], removed: &[(u64, u64)]) -> Presence {
        let all = |changes: &[(u64, u64)]| changes.iter().map(|&(from, to)| When { from, to }).collect();
        Presence { added: all(added), removed: all(removed) }
    }

    #[test]
    fn what_is_known_decides_and_what_is_not_excuses() {
        let look = When { from: 10, to: 20 };
        let seen = |presence: Presence| [true, false].map(|is_there| presence.contradiction(&look, is_there));
        assert_eq!(seen(presence(&[(1, 2)], &[])), [None, Some(Wrong::Lost)]);
        assert_eq!(seen(presence(&[(1, 2)], &[(3, 4)])), [Some(Wrong::Back), None]);
        assert_eq!(seen(presence(&[], &[])), [Some(Wrong::Unknown), None]);
        assert_eq!(seen(presence(&[(21, 22)], &[])), [Some(Wrong::Unknown), None], "it came later");
        assert_eq!(seen(presence(&[(1, UNKNOWN)], &[])), [None, None]);
        assert_eq!(seen(presence(&[(1, 2)], &[(3, UNKNOWN)])), [None, None]);
        assert_eq!(seen(presence(&[(1, UNKNOWN)], &[(3, 4)])), [None, None], "the write may come after the deletion");
        assert_eq!(seen(presence(&[(1, 2)], &[(12, 14)])), [None, None], "beside the look");
        assert_eq!(seen(presence(&[(1, 2)], &[(21, 22)])), [None, Some(Wrong::Lost)], "removed after the look");
        assert_eq!(seen(presence(&[(1, 2), (5, 6)], &[(3, 4)])), [None, Some(Wrong::Lost)]);
        assert_eq!(seen(presence(&[(1, 4)], &[(2, 3)])), [None, None], "beside each other");
    }
}
