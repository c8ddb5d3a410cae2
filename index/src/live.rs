//! The live bitmap: which rows of a head or a segment still count.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A bit for each slot, cleared when its row is removed. Readers see changes at once and never wait.
///
/// One writer at a time changes it (the index's write lock); so the count is exact for that writer and at most one
/// change behind for readers.
pub(crate) struct Live {
    words: Box<[AtomicU64]>,
    count: AtomicUsize,
}

impl Live {
    /// `slots` bits, all clear.
    pub(crate) fn new(slots: usize) -> Live {
        Live { words: (0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), count: AtomicUsize::new(0) }
    }

    pub(crate) fn get(&self, slot: usize) -> bool {
        self.words[slot / 64].load(Ordering::Relaxed) >> (slot % 64) & 1 == 1
    }

    /// Sets the bit; says whether it was clear.
    pub(crate) fn set(&self, slot: usize) -> bool {
        let bit = 1 << (slot % 64);
        let changed = self.words[slot / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0;
        if changed {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        changed
    }

    /// Clears the bit; says whether it was set.
    pub(crate) fn clear(&self, slot: usize) -> bool {
        let bit = 1 << (slot % 64);
        let changed = self.words[slot / 64].fetch_and(!bit, Ordering::Relaxed) & bit != 0;
        if changed {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        changed
    }

    /// Number of set bits.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// The words, 64 slots each, lowest bit first.
    #[cfg(feature = "faiss")]
    pub(crate) fn words(&self) -> &[AtomicU64] {
        &self.words
    }
}
