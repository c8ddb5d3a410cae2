//! Decides a register whose values are unique, in the time of a sort.
//!
//! After Gibbons and Korach, *Testing shared memories* (1997), extended by compare-and-set and unknown outcomes.
//!
//! **Unknown outcomes.** Values are unique, so an unknown write took effect if somebody saw its value, and else it may be left
//! out: whatever order explains the history with it explains it without it. What an unknown compare-and-set that took effect
//! saw was written as well, and so on. After that nothing is unknown.
//!
//! **Clusters and blocks.** A *cluster* is a write and all that saw its value. While a value is in the register nothing else
//! is, so no write may come between the operations of a cluster. A compare-and-set belongs to the cluster of the value that it
//! saw, as the last of it, and begins its own: so the clusters of a chain of compare-and-sets follow each other without
//! anything between and make a *block*. What was never written is the first cluster of the first block.
//!
//! **Within a block** the order is given: each write before those that saw its value, each cluster before the next. It can be
//! kept if and only if no operation ends before one begins that must come earlier.
//!
//! **Between blocks.** A block cannot begin after the first end of one of its operations, and cannot end before the last
//! beginning of one. If the last beginning comes after the first end, then the block fills all the time between: a *forward*
//! zone. Otherwise it fits any moment between: a *backward* zone. The history is linearizable if and only if no two forward
//! zones overlap and no backward zone lies within a forward one.

use std::collections::HashMap;

use super::{Access, Decision, Kind};

/// A cluster: what is known of one value. Cluster 0 is that of the register that was never written.
#[derive(Debug, Clone)]
struct Cluster {
    /// Who wrote it; `None` for cluster 0.
    writer: Option<usize>,
    /// Who read it.
    readers: Vec<usize>,
    /// The compare-and-set that saw it, as cluster.
    next: Option<usize>,
}

/// What a block asks for.
#[derive(Debug, Clone, Copy)]
struct Zone {
    /// The first end of an operation of the block, and whose it is; the beginning of time for the first block.
    end: (u64, Option<usize>),
    /// The last beginning, and whose.
    begin: (u64, usize),
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.end.0 < self.begin.0
    }

    fn places(&self, accesses: &[Access]) -> impl Iterator<Item = usize> {
        let places = [self.end.1.map(|access| accesses[access].place), Some(accesses[self.begin.1].place)];
        places.into_iter().flatten()
    }
}

/// Decides whether accesses of one key are linearizable. Written values must be unique.
pub(super) fn decide(accesses: &[Access]) -> Decision {
    match zones(accesses).and_then(|zones| compatible(accesses, zones)) {
        Ok(()) => Decision::Linearizable,
        Err((why, places)) => Decision::Not(why, places),
    }
}

/// Why accesses are not linearizable, and which.
type Contradiction = (String, Vec<usize>);

/// The zones of all blocks that keep the order within.
fn zones(accesses: &[Access]) -> Result<Vec<Zone>, Contradiction> {
    let (clusters, roots) = clusters(accesses)?;
    let mut seen = 0;
    let mut zones = Vec::with_capacity(roots.len());
    for &root in &roots {
        let mut walk = Walk::new(accesses, clusters[root].writer.is_none());
        let mut at = Some(root);
        while let Some(cluster) = at {
            seen += 1;
            let cluster = &clusters[cluster];
            walk.step(cluster.writer.as_slice())?;
            walk.step(&cluster.readers)?;
            at = cluster.next;
        }
        zones.extend(walk.zone());
    }
    if seen < clusters.len() {
        // What no walk reached goes round in a circle.
        let mut reached = vec![false; clusters.len()];
        for &root in &roots {
            let mut at = Some(root);
            while let Some(cluster) = at {
                reached[cluster] = true;
                at = clusters[cluster].next;
            }
        }
        let circle = clusters.iter().zip(reached).filter(|(_, reached)| !reached);
        let places = circle.filter_map(|(cluster, _)| cluster.writer).map(|writer| accesses[writer].place).collect();
        return Err(("compare-and-sets saw each other's values in a circle".to_owned(), places));
    }
    Ok(zones)
}

/// The clusters of all that took effect, and those that begin a block.
fn clusters(accesses: &[Access]) -> Result<(Vec<Cluster>, Vec<usize>), Contradiction> {
    let writers: HashMap<u64, usize> =
        accesses.iter().enumerate().filter_map(|(at, access)| Some((access.kind.writes()?, at))).collect();
    let writer_of = |at: usize, value: u64| {
        writers.get(&value).copied().ok_or_else(|| {
            (
                format!("somebody saw {value}, which nobody wrote or whose write failed for certain"),
                vec![accesses[at].place],
            )
        })
    };
    let mut happened: Vec<bool> = accesses.iter().map(|access| !access.is_unknown()).collect();
    let mut todo: Vec<usize> = (0..accesses.len()).filter(|&at| happened[at]).collect();
    let mut order = Vec::with_capacity(todo.len());
    while let Some(at) = todo.pop() {
        order.push(at);
        if let Some(Some(value)) = accesses[at].kind.sees() {
            let writer = writer_of(at, value)?;
            if !happened[writer] {
                happened[writer] = true;
                todo.push(writer);
            }
        }
    }
    let mut clusters = vec![Cluster { writer: None, readers: Vec::new(), next: None }];
    let mut cluster_of: HashMap<Option<u64>, usize> = HashMap::from([(None, 0)]);
    for &at in &order {
        if let Some(value) = accesses[at].kind.writes() {
            cluster_of.insert(Some(value), clusters.len());
            clusters.push(Cluster { writer: Some(at), readers: Vec::new(), next: None });
        }
    }
    let mut roots = vec![0];
    for &at in &order {
        match accesses[at].kind {
            Kind::Write(value) => roots.push(cluster_of[&Some(value)]),
            Kind::Read(value) => clusters[cluster_of[&value]].readers.push(at),
            Kind::Cas(expected, value) => {
                let next = cluster_of[&Some(value)];
                if let Some(other) = clusters[cluster_of[&expected]].next.replace(next) {
                    let other = clusters[other].writer.map_or(at, |other| other);
                    let places = vec![accesses[other].place, accesses[at].place];
                    return Err((format!("two compare-and-sets replaced the same value {}", shown(expected)), places));
                }
            }
        }
    }
    Ok((clusters, roots))
}

fn shown(value: Option<u64>) -> String {
    value.map_or_else(|| "(never written)".to_owned(), |value| value.to_string())
}

/// A walk through a block, in the order that is given.
struct Walk<'a> {
    accesses: &'a [Access],
    /// The first end, the last beginning; see [`Zone`].
    end: Option<(u64, Option<usize>)>,
    begin: Option<(u64, usize)>,
}

impl<'a> Walk<'a> {
    fn new(accesses: &'a [Access], first: bool) -> Walk<'a> {
        Walk { accesses, end: first.then_some((0, None)), begin: None }
    }

    /// Goes past operations that all must come after those before, in any order between themselves.
    fn step(&mut self, group: &[usize]) -> Result<(), Contradiction> {
        let before = self.begin;
        for &at in group {
            let access = &self.accesses[at];
            if let Some((_, earlier)) = before.filter(|&(begin, _)| access.to < begin) {
                let places = vec![self.accesses[earlier].place, access.place];
                return Err((
                    "by the values one of these must come before the other, but the other ended before the first began"
                        .to_owned(),
                    places,
                ));
            }
            if self.end.is_none_or(|(end, _)| access.to < end) {
                self.end = Some((access.to, Some(at)));
            }
            if self.begin.is_none_or(|(begin, _)| access.from > begin) {
                self.begin = Some((access.from, at));
            }
        }
        Ok(())
    }

    /// The zone of the block; `None` if nobody saw what was never written.
    fn zone(self) -> Option<Zone> {
        Some(Zone { end: self.end?, begin: self.begin? })
    }
}

/// Whether the blocks fit beside each other.
fn compatible(accesses: &[Access], zones: Vec<Zone>) -> Result<(), Contradiction> {
    let (mut forward, backward): (Vec<Zone>, Vec<Zone>) = zones.into_iter().partition(Zone::is_forward);
    forward.sort_unstable_by_key(|zone| zone.end.0);
    for pair in forward.windows(2) {
        let (one, other) = (&pair[0], &pair[1]);
        if other.end.0 < one.begin.0 {
            let places = one.places(accesses).chain(other.places(accesses)).collect();
            return Err((
                format!(
                    "by what was seen, {} was in the register over a time in which {} was as well",
                    value_at(accesses, one),
                    value_at(accesses, other)
                ),
                places,
            ));
        }
    }
    for zone in &backward {
        // Forward zones do not overlap, so only the last that begins before can hold this one.
        let after = forward.partition_point(|other| other.end.0 < zone.begin.0);
        let holder = after.checked_sub(1).map(|at| &forward[at]).filter(|other| zone.end.0 < other.begin.0);
        if let Some(other) = holder {
            let places = zone.places(accesses).chain(other.places(accesses)).collect();
            return Err((
                format!(
                    "{} was written within a time over which, by what was seen, only {} was in the register",
                    value_at(accesses, zone),
                    value_at(accesses, other)
                ),
                places,
            ));
        }
    }
    Ok(())
}

/// A value of the block of a zone, for people.
fn value_at(accesses: &[Access], zone: &Zone) -> String {
    let kind = accesses[zone.begin.1].kind;
    match kind.sees() {
        Some(value) => shown(value),
        None => shown(kind.writes()),
    }
}
