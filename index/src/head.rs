//! The head: new rows in memory, searched exactly, readable while it grows.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::live::Live;

/// Slots of one block of memory. Blocks are made as the head grows and never move, so readers need no lock.
const CHUNK_SLOTS: usize = 256;

struct Chunk {
    rows: Box<[AtomicU64]>,
    /// `CHUNK_SLOTS` vectors, one after another. A slot is written once, before `Head::published` passes it.
    vectors: Box<[UnsafeCell<f32>]>,
}

// SAFETY: a slot's floats are written by the one thread that holds `Head::slots`, before `Head::published` is stored with
// Release; they are read only for slots below a value of `Head::published` loaded with Acquire, and never written again.
unsafe impl Sync for Chunk {}

impl Chunk {
    fn new(stride: usize) -> Chunk {
        Chunk {
            rows: (0..CHUNK_SLOTS).map(|_| AtomicU64::new(0)).collect(),
            vectors: (0..CHUNK_SLOTS * stride).map(|_| UnsafeCell::new(0.0)).collect(),
        }
    }
}

/// Rows in the order of their arrival. One thread writes, any number search.
///
/// - A slot below `published` holds its row and vector for ever; only its live bit changes.
/// - A row is in `slots` exactly while its live bit is set.
pub(crate) struct Head {
    stride: usize,
    capacity: usize,
    chunks: Box<[OnceLock<Chunk>]>,
    published: AtomicUsize,
    live: Live,
    slots: Mutex<HashMap<u64, u32>>,
}

impl Head {
    /// An empty head for at most `capacity` vectors of `stride` floats.
    pub(crate) fn new(stride: usize, capacity: usize) -> Head {
        Head {
            stride,
            capacity,
            chunks: (0..capacity.div_ceil(CHUNK_SLOTS)).map(|_| OnceLock::new()).collect(),
            published: AtomicUsize::new(0),
            live: Live::new(capacity),
            slots: Mutex::new(HashMap::new()),
        }
    }

    /// Adds a row that the head does not hold; it is visible to searches on return. `false`: the head is full.
    pub(crate) fn push(&self, row: u64, vector: &[f32]) -> bool {
        assert_eq!(vector.len(), self.stride, "a stored vector has the stride's length");
        let mut slots = self.slots.lock();
        let slot = self.published.load(Ordering::Relaxed);
        if slot == self.capacity {
            return false;
        }
        let chunk = self.chunks[slot / CHUNK_SLOTS].get_or_init(|| Chunk::new(self.stride));
        chunk.rows[slot % CHUNK_SLOTS].store(row, Ordering::Relaxed);
        let start = slot % CHUNK_SLOTS * self.stride;
        for (cell, &value) in chunk.vectors[start..start + self.stride].iter().zip(vector) {
            // SAFETY: the slot is not published yet, so nobody reads it, and `slots` is locked, so nobody else writes it.
            unsafe { *cell.get() = value };
        }
        self.live.set(slot);
        slots.insert(row, slot as u32);
        self.published.store(slot + 1, Ordering::Release);
        true
    }

    /// Takes the row out of every later search; says whether it was here.
    pub(crate) fn remove(&self, row: u64) -> bool {
        let slot = self.slots.lock().remove(&row);
        slot.is_some_and(|slot| self.live.clear(slot as usize))
    }

    pub(crate) fn contains(&self, row: u64) -> bool {
        self.slots.lock().contains_key(&row)
    }

    /// Slots in use, dead ones among them.
    pub(crate) fn len(&self) -> usize {
        self.published.load(Ordering::Acquire)
    }

    pub(crate) fn live(&self) -> &Live {
        &self.live
    }

    fn chunk(&self, slot: usize) -> &Chunk {
        assert!(slot < self.len(), "slot {slot} is not published");
        self.chunks[slot / CHUNK_SLOTS].get().expect("a published slot has its chunk")
    }

    pub(crate) fn row(&self, slot: usize) -> u64 {
        self.chunk(slot).rows[slot % CHUNK_SLOTS].load(Ordering::Relaxed)
    }

    pub(crate) fn vector(&self, slot: usize) -> &[f32] {
        let start = slot % CHUNK_SLOTS * self.stride;
        let cells = &self.chunk(slot).vectors[start..start + self.stride];
        // SAFETY: `chunk` saw the slot published with Acquire, so its floats are written and never change again; a cell has
        // the layout of its float.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<f32>(), cells.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_head_refuses_and_keeps_what_it_has() {
        let head = Head::new(16, 300);
        for row in 0..300 {
            assert!(head.push(row * 2, &[row as f32; 16]));
        }
        assert!(!head.push(9999, &[0.0; 16]));
        assert!(head.remove(20) && !head.remove(20) && !head.contains(20));
        assert_eq!((head.len(), head.live().count()), (300, 299));
        assert_eq!((head.row(299), head.vector(299)), (598, &[299.0; 16][..]));
    }

    #[test]
    fn a_reader_sees_whole_rows_while_the_head_grows() {
        let head = Head::new(16, 5_000);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                while head.len() < 5_000 {
                    let seen = head.len();
                    for slot in seen.saturating_sub(50)..seen {
                        assert_eq!(head.vector(slot), &[head.row(slot) as f32; 16][..]);
                    }
                }
            });
            for row in 0..5_000 {
                assert!(head.push(row, &[row as f32; 16]));
            }
            reader.join().expect("the reader saw no torn row");
        });
    }
}
