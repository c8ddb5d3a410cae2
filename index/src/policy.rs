//! Which segments are worth rebuilding into one. Pure, so that its promises are tests.

use crate::settings::MAX_SEGMENT_ROWS;

/// Segments of about one size that are merged when so many have gathered.
const TIER_SEGMENTS: usize = 4;
/// Sizes of one tier differ by less than this factor.
const TIER_FACTOR: usize = 4;
/// A segment is rewritten when more than one row in so many is dead.
const DEAD_ONE_IN: usize = 5;
/// Resting, everything is gathered if the lesser segments hold one row for so many of the greatest.
const REST_ONE_IN: usize = 8;
/// A seal takes in older segments with at most one row for so many new ones.
const ABSORB_ONE_IN: usize = 2;

/// Rows of one segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) live: usize,
    pub(crate) dead: usize,
}

/// More than a fifth of the rows are dead.
pub(crate) fn is_worn(size: Size) -> bool {
    size.dead > (size.live + size.dead) / DEAD_ONE_IN
}

/// The segments (by place, ascending) to rebuild into one, or none. `resting`: no writes came for a while.
pub(crate) fn choose(sizes: &[Size], resting: bool) -> Vec<usize> {
    let mut ordered: Vec<usize> = (0..sizes.len()).collect();
    ordered.sort_by_key(|&place| sizes[place].live);
    let chosen = tier(sizes, &ordered)
        .or_else(|| sizes.iter().position(|&size| is_worn(size)).map(|place| vec![place]))
        .or_else(|| if resting { gather(sizes, &ordered) } else { None });
    let mut chosen = chosen.unwrap_or_default();
    chosen.sort_unstable();
    chosen
}

/// Segments that a seal of `rows` new rows takes in, by place: small ones, as long as the result is bounded.
pub(crate) fn absorb(sizes: &[Size], rows: usize) -> Vec<usize> {
    let mut ordered: Vec<usize> = (0..sizes.len()).filter(|&place| sizes[place].live * ABSORB_ONE_IN <= rows).collect();
    ordered.sort_by_key(|&place| sizes[place].live);
    let mut total = rows;
    let fits = ordered.into_iter().take_while(|&place| {
        total += sizes[place].live;
        total <= MAX_SEGMENT_ROWS
    });
    let mut taken: Vec<usize> = fits.collect();
    taken.sort_unstable();
    taken
}

fn total(sizes: &[Size], places: &[usize]) -> usize {
    places.iter().map(|&place| sizes[place].live).sum()
}

/// The first run of neighbours in size that is long enough.
fn tier(sizes: &[Size], ordered: &[usize]) -> Option<Vec<usize>> {
    ordered
        .windows(TIER_SEGMENTS)
        .find(|run| {
            let (least, greatest) = (sizes[run[0]].live, sizes[run[TIER_SEGMENTS - 1]].live);
            greatest < least.max(1) * TIER_FACTOR && total(sizes, run) <= MAX_SEGMENT_ROWS
        })
        .map(<[usize]>::to_vec)
}

/// All segments, if the gain is worth the greatest; else all but that.
fn gather(sizes: &[Size], ordered: &[usize]) -> Option<Vec<usize>> {
    let (&greatest, lesser) = ordered.split_last()?;
    if lesser.is_empty() {
        return None;
    }
    let gain = total(sizes, lesser);
    if gain * REST_ONE_IN >= sizes[greatest].live && gain + sizes[greatest].live <= MAX_SEGMENT_ROWS {
        return Some(ordered.to_vec());
    }
    gather(sizes, lesser)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(live: &[usize]) -> Vec<Size> {
        live.iter().map(|&live| Size { live, dead: 0 }).collect()
    }

    #[test]
    fn four_of_a_size_are_merged_and_three_are_left() {
        assert_eq!(choose(&sizes(&[30_000, 33_000, 32_000]), false), Vec::<usize>::new());
        assert_eq!(choose(&sizes(&[30_000, 900_000, 33_000, 32_000, 31_000]), false), vec![0, 2, 3, 4]);
    }

    #[test]
    fn no_merge_exceeds_the_bound() {
        assert_eq!(choose(&sizes(&[400_000, 400_000, 400_000, 400_000]), false), Vec::<usize>::new());
        assert_eq!(choose(&sizes(&[400_000, 400_000, 400_000]), true), vec![0, 1]);
        assert_eq!(absorb(&sizes(&[300_000, 200_000]), 800_000), vec![1]);
    }

    #[test]
    fn a_worn_segment_is_rewritten_alone() {
        let worn = [Size { live: 100_000, dead: 10_000 }, Size { live: 79, dead: 21 }, Size { live: 80, dead: 20 }];
        assert_eq!(choose(&worn, false), vec![1]);
    }

    #[test]
    fn at_rest_small_ones_do_not_drag_the_great_one_along() {
        assert_eq!(choose(&sizes(&[32_000, 85_000]), true), vec![0, 1]);
        assert_eq!(choose(&sizes(&[20_000, 900_000]), true), Vec::<usize>::new());
        assert_eq!(choose(&sizes(&[20_000, 900_000, 17_000]), true), vec![0, 2]);
        assert_eq!(choose(&sizes(&[20_000]), true), Vec::<usize>::new());
    }

    #[test]
    fn a_rest_ends() {
        let mut live = vec![32_000, 900_000, 17_000, 70_000, 20_000, 20_001, 400_000];
        for _ in 0..live.len() {
            let chosen = choose(&sizes(&live), true);
            if chosen.is_empty() {
                return;
            }
            assert!(chosen.len() > 1, "a merge makes fewer segments: {chosen:?} of {live:?}");
            let merged = chosen.iter().map(|&place| live[place]).sum();
            live =
                live.iter().enumerate().filter(|(place, _)| !chosen.contains(place)).map(|(_, &rows)| rows).collect();
            live.push(merged);
        }
        panic!("merges go on for ever: {live:?}");
    }
}
