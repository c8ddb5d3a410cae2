//! The k best hits of a search out of the answers of its shards.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use quorate_api::v1::Hit;

/// The first hit that is left of one shard's answer. Greater is better, so that a heap gives the best first.
struct Front {
    hit: Hit,
    part: usize,
}

/// Better hits are greater: by score, then the smaller id, so that equal scores come out the same way each time.
fn rank(a: &Hit, b: &Hit) -> Ordering {
    a.score.total_cmp(&b.score).then_with(|| b.id.cmp(&a.id))
}

impl Ord for Front {
    fn cmp(&self, other: &Self) -> Ordering {
        rank(&self.hit, &other.hit).then_with(|| other.part.cmp(&self.part))
    }
}
impl PartialOrd for Front {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Front {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Front {}

/// Merges lists of hits, each best first, into the `k` best of all, best first.
pub(super) fn best_of(parts: Vec<Vec<Hit>>, k: usize) -> Vec<Hit> {
    let mut rest: Vec<_> = parts.into_iter().map(Vec::into_iter).collect();
    let mut fronts: BinaryHeap<Front> =
        rest.iter_mut().enumerate().filter_map(|(part, hits)| hits.next().map(|hit| Front { hit, part })).collect();
    let mut best = Vec::with_capacity(k.min(1_024));
    while best.len() < k {
        let Some(Front { hit, part }) = fronts.pop() else { break };
        if let Some(next) = rest[part].next() {
            fronts.push(Front { hit: next, part });
        }
        best.push(hit);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(id: &str, score: f32) -> Hit {
        Hit { id: id.to_owned(), score, ..Hit::default() }
    }

    #[test]
    fn a_merge_is_the_sorted_whole_cut_at_k() {
        // Scores repeat on purpose: the order among equals must not depend on which shard answered first.
        let mut parts: Vec<Vec<Hit>> = (0..8_u8)
            .map(|part| {
                (0..50_u16).map(|n| hit(&format!("{part}-{n}"), f32::from((n * 7 + u16::from(part)) % 40))).collect()
            })
            .collect();
        for part in &mut parts {
            part.sort_by(|a, b| rank(b, a));
        }
        let mut whole: Vec<Hit> = parts.iter().flatten().cloned().collect();
        whole.sort_by(|a, b| rank(b, a));
        for k in [0, 1, 10, 399, 400, 1_000] {
            assert_eq!(best_of(parts.clone(), k), whole[..k.min(400)]);
            parts.rotate_left(3);
        }
    }

    #[test]
    fn nothing_to_merge_is_nothing() {
        assert!(best_of(vec![], 10).is_empty());
        assert!(best_of(vec![vec![], vec![]], 10).is_empty());
    }
}
