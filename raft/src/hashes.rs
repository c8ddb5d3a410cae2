//! What a replica's machine hashed to at certain positions, for its peers to compare.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// How many positions are kept.
const KEPT: usize = 64;

/// The hashes of one replica. Only what is in the state store too is in here.
pub(crate) struct Hashes {
    every: u64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Ascending.
    noted: VecDeque<(u64, u64)>,
    current: Option<(u64, u64)>,
}

impl Hashes {
    /// Notes positions that are multiples of `every`.
    pub(crate) fn new(every: u64) -> Self {
        Hashes { every, inner: Mutex::default() }
    }

    pub(crate) fn is_due(&self, position: u64) -> bool {
        position.is_multiple_of(self.every)
    }

    /// A batch was applied: what was noted in it, and where it ended.
    pub(crate) fn advance(&self, noted: Vec<(u64, u64)>, current: (u64, u64)) {
        let mut inner = self.inner.lock();
        inner.noted.extend(noted);
        let surplus = inner.noted.len().saturating_sub(KEPT);
        inner.noted.drain(..surplus);
        inner.current = Some(current);
    }

    /// The state is another one: what was noted before says nothing about it.
    pub(crate) fn restart(&self, current: Option<(u64, u64)>) {
        let mut inner = self.inner.lock();
        inner.noted.clear();
        inner.current = current;
    }

    pub(crate) fn noted(&self) -> Vec<(u64, u64)> {
        self.inner.lock().noted.iter().copied().collect()
    }

    pub(crate) fn current(&self) -> Option<(u64, u64)> {
        self.inner.lock().current
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_positions_are_kept_and_a_new_state_forgets_them() {
        let hashes = Hashes::new(4);
        assert_eq!((hashes.is_due(8), hashes.is_due(9)), (true, false));
        hashes.advance((0..50).map(|at| (at * 4, at)).collect(), (201, 1));
        hashes.advance((50..80).map(|at| (at * 4, at)).collect(), (317, 2));
        let noted = hashes.noted();
        assert_eq!((noted.len(), noted[0], noted[63]), (64, (64, 16), (316, 79)));
        assert_eq!(hashes.current(), Some((317, 2)));
        hashes.restart(Some((400, 3)));
        assert_eq!((hashes.noted(), hashes.current()), (Vec::new(), Some((400, 3))));
    }
}
