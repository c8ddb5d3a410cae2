//! Damage of what a node has on its disk, done while it is down: bits that flip, files that are gone, a state that reads back
//! well and is another one.
//!
//! One node at a time, and only while every other replica is in full service: then a majority is whole, and the cluster owes
//! that the damage is found, that the replica is replaced under a new id, and that nothing of it is ever seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use quorate_raft::{GroupId, MarkKind, ReplicaId};
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::check::{Disks as _, Lost};
use crate::run::members;
use crate::slot::Slot;
use crate::world::World;

/// The voters of a group at rest.
const VOTERS: usize = 3;
/// A node whose damage had no effect has run for so long.
const HARMLESS_AFTER: u64 = 2_500;
/// Tables of replies to requests: of control, of shards.
const REQUESTS: [u8; 2] = [10, 3];

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    /// Bits of a record of a log.
    FlipRecord,
    /// A record of a log is gone.
    RemoveRecord,
    /// Bits of a mark of a log.
    FlipMark,
    /// A mark of a log is gone.
    RemoveMark,
    /// The whole log database is gone.
    LoseLog,
    /// Bits of one copy of the floor, or of both.
    FlipFloor,
    /// The floor is gone.
    LoseFloor,
    /// A row of a state does not read back.
    RotRow,
    /// The state of a group is gone.
    LoseState,
    /// The state of a group has a row that the log did not make.
    Diverge,
}

/// What was damaged in a run, and what is owed for it.
#[derive(Debug, Default)]
pub(crate) struct Damages {
    /// The node whose damage is not made good yet, and since when it is damaged.
    open: Option<(usize, u64)>,
    /// What the open damage hit.
    hit: BTreeSet<(GroupId, ReplicaId)>,
    /// All replicas that were ever hit.
    ever: BTreeSet<(GroupId, ReplicaId)>,
    /// Those whose state is not what the log makes.
    diverged: BTreeSet<(GroupId, ReplicaId)>,
    /// What those that are out of service held before.
    lost: BTreeMap<(GroupId, ReplicaId), Lost>,
    /// Records that were promised and are damaged, with their replicas: none of these may run again.
    owed: BTreeMap<(GroupId, ReplicaId), u64>,
    /// Replicas that were taken out of service.
    quarantined: BTreeSet<(usize, GroupId, Option<ReplicaId>)>,
}

impl Damages {
    /// Whether some damage is not made good yet.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the state of a replica was made another one than the log makes. No other may get its state from it.
    pub(crate) fn is_diverged(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.diverged.contains(&(group, replica))
    }

    /// What replicas of a group held that are out of service.
    pub(crate) fn lost(&self, group: GroupId) -> Vec<Lost> {
        self.lost.range((group, 0)..=(group, ReplicaId::MAX)).map(|(_, lost)| *lost).collect()
    }

    /// How many replicas were taken out of service.
    pub(crate) fn quarantined(&self) -> u64 {
        self.quarantined.len() as u64
    }

    /// A replica is out of service on a node. Says so if its disk was not damaged.
    pub(crate) fn out_of_service(
        &mut self,
        node: usize,
        group: GroupId,
        replica: Option<ReplicaId>,
        reason: &str,
    ) -> Option<String> {
        self.quarantined.insert((node, group, replica));
        self.owed.retain(|(of, damaged), _| *of != group || replica.is_some_and(|replica| replica != *damaged));
        let here = self.open.is_some_and(|(damaged, _)| damaged == node);
        let hit = replica.is_some_and(|replica| self.ever.contains(&(group, replica)));
        (!here && !hit).then(|| {
            format!(
                "quarantine: node-{} takes replica {replica:?} of group {group} out of service, and nobody has damaged \
                 it: {reason}",
                node + 1
            )
        })
    }

    /// A replica runs. Says whether it was thought lost: now it must have again what it promised.
    pub(crate) fn in_service(&mut self, group: GroupId, replica: ReplicaId) -> bool {
        self.lost.remove(&(group, replica)).is_some()
    }

    /// A replica runs. Says so if it must not, for its log was damaged where it counts.
    pub(crate) fn unnoticed(&mut self, node: usize, group: GroupId, replica: ReplicaId) -> Option<String> {
        let position = self.owed.remove(&(group, replica))?;
        Some(format!(
            "damage: node-{} runs replica {replica} of group {group} again, whose record at position {position} was durable and \
             is damaged",
            node + 1
        ))
    }

    /// A node is damaged: these are the replicas that are hit, with what they held.
    fn begin(&mut self, node: usize, now: u64, hit: &[(GroupId, ReplicaId, Lost)], diverges: bool) {
        self.open = Some((node, now));
        self.hit.clear();
        for (group, replica, lost) in hit {
            self.hit.insert((*group, *replica));
            self.ever.insert((*group, *replica));
            if diverges {
                self.diverged.insert((*group, *replica));
            } else {
                self.lost.insert((*group, *replica), *lost);
            }
        }
    }
}

/// Whether every node runs, every replica is in full service, and nothing is under way.
pub(crate) fn is_healthy(world: &World) -> bool {
    let Some(members) = members(world) else { return false };
    // A replica that was replaced may vote for a while, though there is nobody any more who would.
    let current: BTreeSet<ReplicaId> = {
        let history = world.history.lock();
        let control = &history.machines.control;
        let shards = control.shards().flat_map(|shard| shard.replicas.iter().map(|replica| replica.replica));
        shards.chain(control.members().map(|member| member.control_replica)).collect()
    };
    let voters = members.iter().all(|member| {
        let groups = member.groups();
        groups.first().is_some_and(|(id, _)| *id == GroupId::CONTROL)
            && groups.iter().all(|(_, group)| {
                let view = group.status();
                view.voters.len() >= VOTERS && !view.joint && view.voters.is_subset(&current)
            })
    });
    voters && members.iter().all(|member| member.context.quarantine.cases().is_empty())
}

/// Whether a node may be damaged now.
pub(crate) fn may_begin(world: &World) -> bool {
    let quiet = world.leave.lock().is_none() && world.slots.iter().all(|slot| !slot.left.load(Ordering::Relaxed));
    quiet && !world.damages.lock().is_open() && is_healthy(world)
}

/// Notes when the damage that is open is made good, or has turned out to harm nothing.
pub(crate) fn close(world: &World, now: u64) {
    let (node, since, hit) = {
        let damages = world.damages.lock();
        let Some((node, since)) = damages.open else { return };
        (node, since, damages.hit.clone())
    };
    let slot = &world.slots[node];
    let gone = !slot.wanted.load(Ordering::Relaxed);
    let good = |(group, replica): &(GroupId, ReplicaId)| {
        let diverged = world.damages.lock().diverged.contains(&(*group, *replica));
        let whole = !slot.states().is_rotten(*group) && is_log_whole(slot, *group);
        let harmless = now >= since + HARMLESS_AFTER && !diverged && whole;
        slot.log().owner(*group) != Some(*replica) || harmless
    };
    if gone || (hit.iter().all(good) && is_healthy(world)) {
        world.damages.lock().open = None;
    }
}

/// Whether a log has all its records, and each reads back. One that does not is found out when somebody needs it.
fn is_log_whole(slot: &Slot, group: GroupId) -> bool {
    let log = slot.log();
    let positions = log.positions(group);
    let first = log.purged(group).map_or(0, |purged| purged + 1);
    positions.iter().zip(first..).all(|(at, expected)| *at == expected && log.record(group, *at).is_some())
}

/// Damages a node that is down. False if there was nothing to damage.
pub(crate) fn strike(rng: &mut StdRng, world: &World, node: usize, harm: Harm, now: u64) -> bool {
    let slot = &world.slots[node];
    let replica = |group: GroupId| Some((group, slot.log().owner(group)?));
    let mut all: Vec<(GroupId, ReplicaId)> = (0..=world.shards).map(GroupId).filter_map(replica).collect();
    if harm == Harm::Diverge {
        // Only what is on the disk can be another state after the restart.
        all.retain(|(group, _)| slot.states().flushed_position(*group).is_some());
    }
    if all.is_empty() {
        return false;
    }
    let one = all[rng.random_range(0..all.len())];
    let hit = match harm {
        Harm::LoseLog | Harm::FlipFloor | Harm::LoseFloor => all,
        _ => vec![one],
    };
    let held: Vec<_> =
        hit.iter().map(|(group, replica)| (*group, *replica, held(world, node, *group, *replica))).collect();
    let promised = slot.floor().promised(one.0);
    let (done, owed) = match harm {
        Harm::FlipRecord | Harm::RemoveRecord => {
            let at = harm_record(rng, slot, one.0, harm);
            (at.is_some(), at.filter(|at| promised >= Some(*at)))
        }
        _ => (harm_slot(rng, slot, one.0, harm), None),
    };
    if done {
        let mut damages = world.damages.lock();
        damages.begin(node, now, &held, harm == Harm::Diverge);
        damages.owed.extend(owed.map(|at| (one, at)));
    }
    done
}

/// Damages a record of a log, the last one as often as all others. Says which.
fn harm_record(rng: &mut StdRng, slot: &Slot, group: GroupId, harm: Harm) -> Option<u64> {
    let positions = slot.log().positions(group);
    let last = positions.len().checked_sub(1)?;
    let at = positions[if rng.random_bool(0.5) { last } else { rng.random_range(0..=last) }];
    let mut changed = harm == Harm::RemoveRecord;
    let found = slot.log().damage(group, at, |bytes| {
        let flipped = flip(rng, bytes.clone());
        changed |= flipped != bytes;
        (harm == Harm::FlipRecord).then_some(flipped)
    });
    (found && changed).then_some(at)
}

fn held(world: &World, node: usize, group: GroupId, replica: ReplicaId) -> Lost {
    let last = [world.last(node, group), world.purged(node, group), world.flushed(node, group)];
    Lost { replica, upto: last.into_iter().flatten().max(), vote: world.vote(node, group) }
}

fn harm_slot(rng: &mut StdRng, slot: &Slot, group: GroupId, harm: Harm) -> bool {
    let (log, floor, states) = (slot.log(), slot.floor(), slot.states());
    match harm {
        Harm::FlipRecord | Harm::RemoveRecord => harm_record(rng, slot, group, harm).is_some(),
        Harm::FlipMark | Harm::RemoveMark => {
            let kinds = [MarkKind::Vote, MarkKind::Committed, MarkKind::Purged, MarkKind::Replica];
            let kind = kinds[rng.random_range(0..kinds.len())];
            log.damage_mark(group, kind, |bytes| (harm == Harm::FlipMark).then(|| flip(rng, bytes)))
        }
        Harm::LoseLog => {
            log.lose();
            true
        }
        Harm::FlipFloor => {
            let slots = [0..1, 1..2, 0..2][rng.random_range(0..3)].clone();
            let mut flipped = false;
            for slot in slots {
                flipped |= floor.damage(slot, |bytes| *bytes = flip(rng, std::mem::take(bytes)));
            }
            flipped
        }
        Harm::LoseFloor => {
            floor.delete();
            true
        }
        Harm::RotRow => states.damage(group, |rows| rng.random_range(0..rows)),
        Harm::LoseState => states.lose(group),
        Harm::Diverge => {
            let table = if group == GroupId::CONTROL { REQUESTS[0] } else { REQUESTS[1] };
            states.alter(group, |rows| add_request(rows, table)).unwrap_or(false)
        }
    }
}

/// Flips a bit or two.
fn flip(rng: &mut StdRng, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..rng.random_range(1..3) {
        let length = bytes.len();
        if length > 0 {
            bytes[rng.random_range(0..length)] ^= 1 << rng.random_range(0..8);
        }
    }
    bytes
}

/// Adds the reply to a request that was never made, beside one that was. Nobody asks for it, so the replica gives no wrong
/// answer before it is found out; its state is another one all the same.
fn add_request<B: AsRef<[u8]> + From<Vec<u8>> + Clone + Ord>(rows: &mut BTreeMap<(u8, B), B>, table: u8) -> bool {
    let real = rows.iter().find(|((at, _), _)| *at == table).map(|((_, key), value)| (key.clone(), value.clone()));
    let Some((key, value)) = real else { return false };
    let mut key = key.as_ref().to_vec();
    let Some(last) = key.last_mut() else { return false };
    *last ^= 1;
    rows.insert((table, key.into()), value).is_none()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::SeedableRng as _;

    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn lost(replica: ReplicaId) -> Lost {
        Lost { replica, upto: Some(7), vote: None }
    }

    #[test]
    fn a_quarantine_without_damage_is_seen() {
        let mut damages = Damages::default();
        assert!(damages.out_of_service(0, GROUP, Some(1), "so").is_some());
        damages.begin(0, 5, &[(GROUP, 1, lost(1))], false);
        assert_eq!(damages.out_of_service(0, GROUP, Some(1), "so"), None);
        assert_eq!(damages.out_of_service(0, GroupId(2), None, "so"), None, "what else the damage has led to");
        assert!(damages.out_of_service(1, GROUP, Some(2), "so").is_some(), "another node");
        damages.open = None;
        assert_eq!(damages.out_of_service(0, GROUP, Some(1), "so"), None);
        assert!(damages.out_of_service(0, GROUP, Some(9), "so").is_some(), "its successor");
        assert_eq!(damages.quarantined(), 4);
    }

    #[test]
    fn a_replica_that_runs_on_a_damaged_log_is_seen() {
        let mut damages = Damages::default();
        damages.owed.insert((GROUP, 1), 4);
        damages.owed.insert((GROUP, 2), 4);
        assert_eq!(damages.unnoticed(0, GROUP, 3), None, "its successor");
        damages.out_of_service(0, GROUP, Some(2), "so");
        assert_eq!(damages.unnoticed(0, GROUP, 2), None, "it was found out before");
        assert!(damages.unnoticed(0, GROUP, 1).is_some_and(|wrong| wrong.contains("position 4")));
    }

    #[test]
    fn a_replica_that_runs_again_is_forgiven_nothing() {
        let mut damages = Damages::default();
        damages.begin(0, 5, &[(GROUP, 1, lost(1))], false);
        assert_eq!(damages.lost(GROUP), [lost(1)]);
        assert!(damages.lost(GroupId(2)).is_empty());
        assert!(damages.in_service(GROUP, 1));
        assert!(damages.lost(GROUP).is_empty() && !damages.in_service(GROUP, 1));
    }

    #[test]
    fn a_diverged_replica_is_excused_and_no_other_one() {
        let mut damages = Damages::default();
        damages.begin(0, 5, &[(GROUP, 1, lost(1))], true);
        assert!(damages.lost(GROUP).is_empty(), "its log is whole");
        assert!(damages.is_diverged(GROUP, 1) && !damages.is_diverged(GROUP, 2));
    }

    #[test]
    fn a_floor_is_flipped_or_gone_and_an_empty_disk_has_nothing_to_damage() {
        use quorate_raft::FloorFile as _;
        let slot = Slot::new(0, Path::new("unused"), 0);
        let mut rng = StdRng::seed_from_u64(1);
        for harm in [Harm::FlipRecord, Harm::RemoveMark, Harm::FlipFloor, Harm::RotRow, Harm::LoseState, Harm::Diverge]
        {
            assert!(!harm_slot(&mut rng, &slot, GROUP, harm), "{harm:?}");
        }
        slot.floor().write(0, b"floor").expect("alive");
        slot.floor().write(1, b"floor").expect("alive");
        assert!(harm_slot(&mut rng, &slot, GROUP, Harm::FlipFloor));
        let slots = slot.floor().read().expect("alive");
        assert!(slots.iter().any(|slot| slot != b"floor"), "{slots:?}");
        assert!(harm_slot(&mut rng, &slot, GROUP, Harm::LoseFloor));
        assert_eq!(slot.floor().read().expect("alive"), [Vec::<u8>::new(), Vec::new()]);
    }

    #[test]
    fn a_request_that_was_never_made_is_added_beside_a_real_one() {
        let mut rows = BTreeMap::from([((10_u8, vec![4_u8, 2]), vec![9_u8])]);
        assert!(!add_request(&mut rows, 3));
        assert!(add_request(&mut rows, 10));
        assert_eq!(rows[&(10, vec![4, 3])], vec![9]);
    }
}
