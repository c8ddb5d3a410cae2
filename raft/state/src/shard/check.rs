//! The invariants of a shard's state, all walked.

use std::collections::BTreeSet;

use super::Shard;
use super::collections::share;

impl Shard {
    /// Walks all invariants. Takes time in proportion to the state: for tests, the simulator and `quorate doctor`.
    ///
    /// # Errors
    /// Says everything that is wrong.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        let mut hash = [self.meta.hash(), self.collections.records().hash(), self.requests.hash()]
            .into_iter()
            .fold(0u64, u64::wrapping_add);
        for (id, record) in self.collections.records().iter() {
            if record.dropped == self.collections.points(id).is_some() {
                wrong.push(format!("collection {id} is dropped and has points, or neither"));
            }
        }
        for (id, points) in self.collections.all_points() {
            let next_row = self.collections.live(id).map_or(0, |record| record.next_row);
            let mut rows = BTreeSet::new();
            for (point, slot) in points {
                hash = hash.wrapping_add(share(id, *slot));
                if slot.row == 0 || slot.row >= next_row || !rows.insert(slot.row) {
                    wrong.push(format!(
                        "row {} of point {point:?} in collection {id} was not given out, or twice",
                        slot.row
                    ));
                }
            }
        }
        if hash != self.hash {
            wrong.push("the set hash is not that of the rows".to_owned());
        }
        self.requests.check(&mut wrong);
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}
