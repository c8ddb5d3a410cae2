//! Which shard of its collection a point lives in: its id alone decides.
//!
//! Ids hash to [`BUCKETS`] fixed buckets, and the collection's list of shards shares the buckets out in order. Widening a
//! collection will move whole buckets, so the number of buckets and the hash are frozen: they are part of the format.

/// Buckets of every collection. At least the most shards that a cluster may have, and fixed for ever.
pub const BUCKETS: usize = 256;

const _: () = assert!(BUCKETS >= quorate_api::limits::SHARDS as usize);

/// The bucket of a point: CRC-32C of its id. Evenly spread, cheap, and the same in every version.
pub fn bucket_of(id: &str) -> usize {
    crc32c::crc32c(id.as_bytes()) as usize % BUCKETS
}

/// Which of a collection's `shards` shards holds the point, as an index into the collection's list.
///
/// # Panics
/// When `shards` is 0 or above [`BUCKETS`]; the control machine makes no such collection.
pub fn slot_of(id: &str, shards: usize) -> usize {
    assert!((1..=BUCKETS).contains(&shards), "a collection has 1..={BUCKETS} shards, not {shards}");
    bucket_of(id) * shards / BUCKETS
}

/// Shares items out over `shards` shards by their ids: for each shard the places of its items, in the order given.
pub fn split<'a>(ids: impl IntoIterator<Item = &'a str>, shards: usize) -> Vec<Vec<usize>> {
    let mut parts = vec![Vec::new(); shards];
    for (place, id) in ids.into_iter().enumerate() {
        parts[slot_of(id, shards)].push(place);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_frozen() {
        // CRC-32C of "123456789" is the published check value: whoever changes the hash moves every stored point.
        assert_eq!(bucket_of("123456789"), 0xE306_9283 % 256);
        assert_eq!(bucket_of(""), 0);
    }

    #[test]
    fn buckets_are_shared_out_in_order_and_evenly() {
        for shards in [1, 2, 3, 7, 8, 64, 256] {
            let mut counts = vec![0_usize; shards];
            let mut last = 0;
            for bucket in 0..BUCKETS {
                let slot = bucket * shards / BUCKETS;
                assert!(slot >= last && slot < shards);
                last = slot;
                counts[slot] += 1;
            }
            let (least, most) = (counts.iter().min(), counts.iter().max());
            assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{shards}: {counts:?}");
        }
    }

    #[test]
    fn a_split_keeps_every_item_once_in_order_and_together_by_id() {
        let ids: Vec<String> = (0..1_000).map(|n| format!("point-{}", n % 400)).collect();
        let parts = split(ids.iter().map(String::as_str), 8);
        let mut seen: Vec<usize> = parts.iter().flatten().copied().collect();
        for (slot, part) in parts.iter().enumerate() {
            assert!(part.is_sorted());
            assert!(part.len() > 50, "shard {slot} has only {} of 1,000", part.len());
            assert!(part.iter().all(|place| slot_of(&ids[*place], 8) == slot));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..1_000).collect::<Vec<_>>());
    }
}
