//! Damage of what a node has on its disk, done while it is down or under a node that runs: bits that flip, files that are
//! gone, a state that reads back well and is another one.
//!
//! One node at a time, and only while every other replica is in full service: then a majority is whole, and the cluster owes
//! that the damage is found, that the replica is replaced under a new id, and that nothing of it is ever seen.
//!
//! A node that starts on a damaged log must find that at once; one that runs must find all damage within two passes of its
//! scrub, also where nobody asks for what is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use quorate_raft::memory::{RecordView, VoteView};
use quorate_raft::{GroupId, LogChange, MarkKind, ReplicaId};
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::check::{Disks as _, Lost};
use crate::run::members;
use crate::slot::{Running, Slot};
use crate::world::World;

/// The voters of a group at rest.
const VOTERS: usize = 3;
/// A node whose damage had no effect has run for so long.
const HARMLESS_AFTER: u64 = 2_500;
/// A node that has run for so long has read back twice all that it has, though a commit stalled meanwhile.
const FOUND_WITHIN: u64 = 5_000;
/// Tables of replies to requests: of control, of shards.
const REQUESTS: [u8; 2] = [10, 3];

/// A table, and a key in it.
type Row = (u8, Bytes);

/// A replica of a group.
type Replica = (GroupId, ReplicaId);

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

impl Harm {
    /// Whether it may happen under a node that runs. A database that disappears is noticed by nobody before a restart, and
    /// the state of a running node is what it has in memory as well.
    pub(crate) fn may_strike_running(self) -> bool {
        use Harm::{FlipFloor, FlipMark, FlipRecord, RemoveMark, RemoveRecord, RotRow};
        matches!(self, FlipRecord | RemoveRecord | FlipMark | RemoveMark | FlipFloor | RotRow)
    }
}

/// Damage that is not made good yet.
#[derive(Debug)]
struct Open {
    node: usize,
    harm: Harm,
    /// Since when it is damaged.
    since: u64,
    /// Since when it runs.
    up: Option<u64>,
    /// What the process knew to be on its disk, if it ran when that was damaged and runs still.
    known: Option<Known>,
}

/// Marks that a log had when something of it was damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Had {
    vote: bool,
    purged: bool,
}

/// What stood where something is damaged now, as long as nothing else was written there. As long as the process lives that
/// wrote it, it has it in memory and acts on that, whatever the disk holds.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    group: GroupId,
    records: BTreeMap<u64, RecordView>,
    vote: Option<VoteView>,
    purged: Option<u64>,
}

/// A replica that is hit.
#[derive(Debug, Clone, Copy)]
struct Hit {
    group: GroupId,
    replica: ReplicaId,
    held: Lost,
    had: Had,
}

/// What was damaged in a run, and what is owed for it.
#[derive(Debug, Default)]
pub(crate) struct Damages {
    open: Option<Open>,
    /// What the open damage hit.
    hit: BTreeMap<Replica, Had>,
    /// All replicas that were ever hit.
    ever: BTreeSet<Replica>,
    /// Those whose state is not what the log makes, with the row that the log did not make.
    diverged: BTreeMap<Replica, Row>,
    /// What those that are out of service held before.
    lost: BTreeMap<Replica, Lost>,
    /// Records that were promised and are damaged, with their replicas: none of these may run again.
    owed: BTreeMap<Replica, u64>,
    /// Replicas that were taken out of service.
    quarantined: BTreeSet<(usize, GroupId, Option<ReplicaId>)>,
}

impl Damages {
    /// Whether some damage is not made good yet.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// What is not made good yet, for people.
    pub(crate) fn told(&self) -> String {
        let Some(Open { node, harm, since, up, .. }) = &self.open else { return "none".to_owned() };
        format!("{harm:?} of node-{} since {since}, which runs since {up:?}, hit {:?}", node + 1, self.hit)
    }

    /// What the process of a node knows of a group that is damaged under it.
    pub(crate) fn known(&self, node: usize, group: GroupId) -> Option<&Known> {
        let open = self.open.as_ref().filter(|open| open.node == node)?;
        open.known.as_ref().filter(|known| known.group == group)
    }

    /// A disk has made something durable: what stood there before is no longer what counts.
    pub(crate) fn written(&mut self, node: usize, change: &LogChange) {
        let open = self.open.as_mut().filter(|open| open.node == node);
        if let Some(known) = open.and_then(|open| open.known.as_mut()) {
            known.written(change);
        }
    }

    /// Whether the state of a replica was made another one than the log makes. No other may get its state from it.
    pub(crate) fn is_diverged(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.diverged.contains_key(&(group, replica))
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
        let here = self.open.as_ref().is_some_and(|open| open.node == node);
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

    /// What stood on the disk before is nobody's any more.
    fn forget_known(&mut self) {
        if let Some(open) = &mut self.open {
            open.known = None;
        }
    }

    /// A node that is down is damaged: these are the replicas that are hit, with what they held.
    fn begin(&mut self, node: usize, harm: Harm, now: u64, hit: &[Hit], added: Option<Row>) {
        self.begin_under(node, harm, now, hit, None);
        for Hit { group, replica, held, .. } in hit {
            match &added {
                Some(row) => drop(self.diverged.insert((*group, *replica), row.clone())),
                None => drop(self.lost.insert((*group, *replica), *held)),
            }
        }
    }

    /// A node is damaged that runs, if something is known of it. What its replicas hold they go on to hold.
    fn begin_under(&mut self, node: usize, harm: Harm, now: u64, hit: &[Hit], known: Option<Known>) {
        self.open = Some(Open { node, harm, since: now, up: None, known });
        self.hit = hit.iter().map(|hit| ((hit.group, hit.replica), hit.had)).collect();
        self.ever.extend(self.hit.keys());
    }
}

impl Hit {
    fn of(world: &World, node: usize, group: GroupId, replica: ReplicaId) -> Hit {
        let had = Had { vote: world.vote(node, group).is_some(), purged: world.purged(node, group).is_some() };
        Hit { group, replica, held: held(world, node, group, replica), had }
    }
}

impl Known {
    fn of(slot: &Slot, group: GroupId) -> Known {
        let log = slot.log();
        let record = |position: u64| Some((position, log.record(group, position)?));
        let records = log.positions(group).into_iter().filter_map(record).collect();
        Known { group, records, vote: log.vote(group), purged: log.purged(group) }
    }

    fn written(&mut self, change: &LogChange) {
        match *change {
            LogChange::Append { group, position, .. } if group == self.group => drop(self.records.remove(&position)),
            LogChange::Truncate { group, from } if group == self.group => drop(self.records.split_off(&from)),
            LogChange::Purge { group, upto } if group == self.group => {
                self.records.retain(|position, _| *position > upto)
            }
            LogChange::Mark { group, kind: MarkKind::Vote, .. } if group == self.group => self.vote = None,
            LogChange::Mark { group, kind: MarkKind::Purged, .. } if group == self.group => self.purged = None,
            LogChange::Destroy { group } if group == self.group => {
                (self.records, self.vote, self.purged) = (BTreeMap::new(), None, None);
            }
            _ => {}
        }
    }

    /// The record that was known to be at a position.
    pub(crate) fn record(&self, position: u64) -> Option<RecordView> {
        self.records.get(&position).cloned()
    }

    /// The last position that was known to have a record.
    pub(crate) fn last(&self) -> Option<u64> {
        self.records.keys().next_back().copied()
    }

    /// The vote that was known.
    pub(crate) fn vote(&self) -> Option<VoteView> {
        self.vote
    }

    /// The purged position that was known.
    pub(crate) fn purged(&self) -> Option<u64> {
        self.purged
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
    voters
        && runs_everything(world, &members)
        && members.iter().all(|member| member.context.quarantine.cases().is_empty())
}

/// Whether every replica that is placed runs. A node that has only just come up may not know yet what it has lost.
fn runs_everything(world: &World, members: &[Running]) -> bool {
    let history = world.history.lock();
    let control = &history.machines.control;
    let shards = control.shards().flat_map(|shard| {
        let group = GroupId(shard.shard.0);
        shard.replicas.iter().map(move |replica| (replica.node.0, group, replica.replica))
    });
    let placed =
        control.members().map(|member| (member.node.node.0, GroupId::CONTROL, member.control_replica)).chain(shards);
    let running: BTreeSet<(u64, GroupId, ReplicaId)> = members
        .iter()
        .flat_map(|member| {
            let groups = member.groups().into_iter();
            groups.map(|(id, group)| (member.context.node.0, id, group.replica())).collect::<Vec<_>>()
        })
        .collect();
    placed.into_iter().all(|place| running.contains(&place))
}

/// Whether a node may be damaged now.
pub(crate) fn may_begin(world: &World) -> bool {
    let quiet = world.leave.lock().is_none() && world.slots.iter().all(|slot| !slot.left.load(Ordering::Relaxed));
    quiet && !world.damages.lock().is_open() && is_healthy(world)
}

/// Notes when the damage that is open is made good, or has turned out to harm nothing. Says so if it is not found in time.
pub(crate) fn close(world: &World, now: u64) -> Option<String> {
    let (node, since, up, hit) = {
        let mut damages = world.damages.lock();
        let hit = damages.hit.clone();
        let open = damages.open.as_mut()?;
        let runs = world.slots[open.node].running().is_some();
        open.up = runs.then_some(open.up.unwrap_or(now));
        (open.node, open.since, open.up, hit)
    };
    let slot = &world.slots[node];
    let gone = !slot.wanted.load(Ordering::Relaxed);
    let good = |((group, replica), had): (&Replica, &Had)| {
        let added = world.damages.lock().diverged.get(&(*group, *replica)).cloned();
        let right = added.is_none_or(|row| agrees_again(world, slot, *group, &row));
        let harmless = now >= since + HARMLESS_AFTER && right && is_whole(slot, *group, *had);
        slot.log().owner(*group) != Some(*replica) || harmless
    };
    if gone || (hit.iter().all(good) && is_healthy(world)) {
        world.damages.lock().open = None;
        return None;
    }
    let running = slot.running().filter(|_| up.is_some_and(|up| now >= up + FOUND_WITHIN))?;
    let groups = running.groups();
    let serves = |group, replica| groups.iter().any(|(id, running)| *id == group && running.replica() == replica);
    let mut missed = hit.into_iter();
    let missed = missed.find(|((group, replica), had)| serves(*group, *replica) && !is_whole(slot, *group, *had));
    missed.map(|((group, replica), _)| {
        format!(
            "damage: node-{} runs replica {replica} of group {group} for {FOUND_WITHIN} ms and has not found what is \
             damaged",
            node + 1
        )
    })
}

/// Whether the state of a replica has become what the log makes again, on the disk too: a snapshot has taken its place
/// before anybody compared it with others.
fn agrees_again(world: &World, slot: &Slot, group: GroupId, added: &Row) -> bool {
    let history = world.history.lock();
    let compare = |rows: &mut dyn Iterator<Item = (u8, &Bytes, &Bytes)>| {
        let last = history.machines.last(group)?;
        Some((last, history.machines.compare_rows(slot.node, group, last, rows)))
    };
    let Some((position, Some((last, wrong)))) = slot.states().written(group, compare) else { return false };
    let is_on_disk = slot.states().alter(group, |rows| rows.contains_key(added)).unwrap_or(true);
    position == Some(last) && wrong.is_empty() && !is_on_disk
}

/// A node has lost its process. What it knew in spite of its disk is gone with it.
pub(crate) fn down(world: &World, node: usize) {
    let (hit, known) = {
        let mut damages = world.damages.lock();
        let hit = damages.hit.clone();
        let Some(open) = damages.open.as_mut().filter(|open| open.node == node) else { return };
        open.up = None;
        let Some(known) = open.known.clone() else { return };
        (hit, known)
    };
    let slot = &world.slots[node];
    let is_here = |(group, replica): &Replica| slot.log().owner(*group) == Some(*replica);
    let hold =
        hit.into_keys().filter(is_here).map(|(group, replica)| ((group, replica), held(world, node, group, replica)));
    let hold: Vec<_> = hold.collect();
    let group = known.group;
    let is_owed =
        |position: &u64| slot.floor().promised(group) >= Some(*position) && !is_record_whole(slot, group, *position);
    let owed = known.records.into_keys().find(is_owed);
    let owed = slot.log().owner(group).zip(owed).map(|(replica, position)| ((group, replica), position));
    let mut damages = world.damages.lock();
    damages.lost.extend(hold);
    damages.owed.extend(owed);
    damages.forget_known();
}

/// A replica has been taken out of service by a node that runs: what it held by now counts, and nothing after.
pub(crate) fn found(world: &World, node: usize, group: GroupId, replica: ReplicaId) {
    {
        let damages = world.damages.lock();
        let known = damages.open.as_ref().filter(|open| open.node == node && open.known.is_some());
        if known.is_none() || !damages.hit.contains_key(&(group, replica)) {
            return;
        }
    }
    let held = held(world, node, group, replica);
    let mut damages = world.damages.lock();
    damages.lost.insert((group, replica), held);
    damages.forget_known();
}

/// Whether the record at a position is there or needs not be.
fn is_record_whole(slot: &Slot, group: GroupId, position: u64) -> bool {
    let log = slot.log();
    log.purged(group) >= Some(position) || log.record(group, position).is_some()
}

/// Whether everything reads back that a replica has on its disk: its log up to where it was promised, with the marks that it
/// had, its state, and the floor.
fn is_whole(slot: &Slot, group: GroupId, had: Had) -> bool {
    let log = slot.log();
    let marks = (!had.vote || log.vote(group).is_some()) && (!had.purged || log.purged(group).is_some());
    marks && is_log_whole(slot, group) && !slot.states().is_rotten(group) && slot.floor().is_whole()
}

/// Whether a log has all its records, and each reads back.
fn is_log_whole(slot: &Slot, group: GroupId) -> bool {
    let log = slot.log();
    let positions = log.positions(group);
    let first = log.purged(group).map_or(0, |purged| purged + 1);
    let is_there = |(at, expected): (&u64, u64)| *at == expected && log.record(group, *at).is_some();
    let reaches = log.last_position(group).max(log.purged(group)) >= slot.floor().promised(group);
    reaches && positions.iter().zip(first..).all(is_there)
}

/// Damages a node, which is down or `runs`. False if there was nothing to damage.
pub(crate) fn strike(rng: &mut StdRng, world: &World, node: usize, harm: Harm, now: u64, runs: bool) -> bool {
    // What was written by now stood there before the damage.
    world.with_history(|_| ());
    let slot = &world.slots[node];
    let Some((one, hit)) = choose(rng, slot, world.shards, harm) else { return false };
    let hit: Vec<Hit> = hit.into_iter().map(|(group, replica)| Hit::of(world, node, group, replica)).collect();
    let (promised, mut known) = (slot.floor().promised(one.0), Known::of(slot, one.0));
    let (mut at, mut added) = (None, None);
    let done = match harm {
        Harm::FlipRecord | Harm::RemoveRecord => {
            at = harm_record(rng, slot, one.0, harm);
            at.is_some()
        }
        Harm::Diverge => {
            added = diverge(slot, one.0);
            added.is_some()
        }
        _ => harm_slot(rng, slot, one.0, harm, runs),
    };
    if !done {
        return false;
    }
    let mut damages = world.damages.lock();
    if runs {
        known.records.retain(|position, _| Some(*position) == at);
        damages.begin_under(node, harm, now, &hit, Some(known));
    } else {
        damages.begin(node, harm, now, &hit, added);
        damages.owed.extend(at.filter(|at| promised >= Some(*at)).map(|at| (one, at)));
    }
    true
}

/// Chooses a replica to damage. All that are hit with it are told beside it.
fn choose(rng: &mut StdRng, slot: &Slot, shards: u32, harm: Harm) -> Option<(Replica, Vec<Replica>)> {
    let replica = |group: GroupId| Some((group, slot.log().owner(group)?));
    let mut all: Vec<Replica> = (0..=shards).map(GroupId).filter_map(replica).collect();
    if harm == Harm::Diverge {
        // Only what is on the disk can be another state after the restart.
        all.retain(|(group, _)| slot.states().flushed_position(*group).is_some());
    }
    if all.is_empty() {
        return None;
    }
    let one = all[rng.random_range(0..all.len())];
    let hit = match harm {
        Harm::LoseLog | Harm::FlipFloor | Harm::LoseFloor => all,
        _ => vec![one],
    };
    Some((one, hit))
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

fn harm_slot(rng: &mut StdRng, slot: &Slot, group: GroupId, harm: Harm, runs: bool) -> bool {
    let (log, floor, states) = (slot.log(), slot.floor(), slot.states());
    match harm {
        Harm::FlipRecord | Harm::RemoveRecord => harm_record(rng, slot, group, harm).is_some(),
        Harm::FlipMark | Harm::RemoveMark => {
            // Whose log it is nobody would know any more, the checkers neither, and the committed mark is written all the
            // time.
            let kinds = [MarkKind::Vote, MarkKind::Purged, MarkKind::Committed, MarkKind::Replica];
            let kind = kinds[rng.random_range(0..if runs { 2 } else { kinds.len() })];
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
        Harm::Diverge => diverge(slot, group).is_some(),
    }
}

/// Puts a row into the state of a group. Says which.
fn diverge(slot: &Slot, group: GroupId) -> Option<Row> {
    let table = if group == GroupId::CONTROL { REQUESTS[0] } else { REQUESTS[1] };
    slot.states().alter(group, |rows| add_request(rows, table)).flatten()
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
fn add_request(rows: &mut BTreeMap<Row, Bytes>, table: u8) -> Option<Row> {
    let (key, value) =
        rows.iter().find(|((at, _), _)| *at == table).map(|((_, key), value)| (key.to_vec(), value.clone()))?;
    let mut key = key;
    *key.last_mut()? ^= 1;
    let row = (table, Bytes::from(key));
    rows.insert(row.clone(), value).is_none().then_some(row)
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

    const NOTHING: Had = Had { vote: false, purged: false };

    fn hit(replica: ReplicaId) -> Hit {
        Hit { group: GROUP, replica, held: lost(replica), had: NOTHING }
    }

    #[test]
    fn a_quarantine_without_damage_is_seen() {
        let mut damages = Damages::default();
        assert!(damages.out_of_service(0, GROUP, Some(1), "so").is_some());
        damages.begin(0, Harm::FlipRecord, 5, &[hit(1)], None);
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
        damages.begin(0, Harm::FlipRecord, 5, &[hit(1)], None);
        assert_eq!(damages.lost(GROUP), [lost(1)]);
        assert!(damages.lost(GroupId(2)).is_empty());
        assert!(damages.in_service(GROUP, 1));
        assert!(damages.lost(GROUP).is_empty() && !damages.in_service(GROUP, 1));
    }

    #[test]
    fn a_diverged_replica_is_excused_and_no_other_one() {
        let mut damages = Damages::default();
        damages.begin(0, Harm::FlipRecord, 5, &[hit(1)], Some((10, Bytes::new())));
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
            assert!(!harm_slot(&mut rng, &slot, GROUP, harm, false), "{harm:?}");
        }
        slot.floor().write(0, b"floor").expect("alive");
        slot.floor().write(1, b"floor").expect("alive");
        assert!(harm_slot(&mut rng, &slot, GROUP, Harm::FlipFloor, true));
        let slots = slot.floor().read().expect("alive");
        assert!(slots.iter().any(|slot| slot != b"floor"), "{slots:?}");
        assert!(harm_slot(&mut rng, &slot, GROUP, Harm::LoseFloor, false));
        assert_eq!(slot.floor().read().expect("alive"), [Vec::<u8>::new(), Vec::new()]);
    }

    #[test]
    fn what_is_written_anew_is_known_no_longer() {
        let record = |position| (position, crate::check::fake::record(position, 1, 1));
        let vote = VoteView { term: 1, leader: 1, committed: true };
        let whole = Known { group: GROUP, records: (4..7).map(record).collect(), vote: Some(vote), purged: Some(3) };
        let left = |change: LogChange| {
            let mut known = whole.clone();
            known.written(&change);
            (known.records.into_keys().collect::<Vec<_>>(), known.vote.is_some(), known.purged.is_some())
        };
        let (group, value) = (GROUP, Bytes::new());
        assert_eq!(left(LogChange::Append { group, position: 5, record: value.clone() }), (vec![4, 6], true, true));
        assert_eq!(left(LogChange::Truncate { group, from: 5 }), (vec![4], true, true));
        assert_eq!(left(LogChange::Purge { group, upto: 5 }), (vec![6], true, true));
        assert_eq!(left(LogChange::Destroy { group: GroupId(2) }), (vec![4, 5, 6], true, true), "another group");
        assert_eq!(left(LogChange::Destroy { group }), (vec![], false, false));
        let mark = |kind| LogChange::Mark { group, kind, value: value.clone() };
        assert_eq!(left(mark(MarkKind::Vote)), (vec![4, 5, 6], false, true));
        assert_eq!(left(mark(MarkKind::Purged)), (vec![4, 5, 6], true, false));
        assert_eq!(left(mark(MarkKind::Committed)), (vec![4, 5, 6], true, true));
        assert_eq!((whole.last(), whole.record(7), whole.purged()), (Some(6), None, Some(3)));
    }

    #[test]
    fn only_a_disk_that_reads_back_is_whole() {
        use quorate_raft::{FloorFile as _, LogEngine as _};
        let slot = Slot::new(0, Path::new("unused"), 0);
        assert!(is_whole(&slot, GROUP, NOTHING));
        assert!(!is_whole(&slot, GROUP, Had { vote: true, purged: false }), "a vote that is gone");
        assert!(!is_whole(&slot, GROUP, Had { vote: false, purged: true }), "a mark that is gone");
        // A mark of no bytes, with its version and its checksum.
        let mark = LogChange::Mark { group: GROUP, kind: MarkKind::Vote, value: vec![1, 0, 0, 0, 0].into() };
        slot.log().commit(&[mark]).expect("alive");
        assert!(is_whole(&slot, GROUP, Had { vote: true, purged: false }));
        assert!(slot.log().damage_mark(GROUP, MarkKind::Vote, |_| Some(vec![1, 0, 0, 0, 1])));
        assert!(!is_whole(&slot, GROUP, Had { vote: true, purged: false }), "a vote that does not read back");
        slot.floor().write(1, b"floor").expect("alive");
        assert!(!is_whole(&slot, GROUP, NOTHING), "a floor that does not read back");
        slot.floor().delete();
        assert!(is_whole(&slot, GROUP, NOTHING));
        let record = LogChange::Append { group: GROUP, position: 0, record: b"record".to_vec().into() };
        slot.log().commit(&[record]).expect("alive");
        assert!(!is_whole(&slot, GROUP, NOTHING), "a record that does not read back");
    }

    #[test]
    fn a_request_that_was_never_made_is_added_beside_a_real_one() {
        let mut rows = BTreeMap::from([((10, Bytes::from(vec![4, 2])), Bytes::from(vec![9]))]);
        assert_eq!(add_request(&mut rows, 3), None);
        let added = add_request(&mut rows, 10);
        assert_eq!(added, Some((10, Bytes::from(vec![4, 3]))));
        assert_eq!(rows[&added.expect("it was added")], vec![9]);
    }
}
