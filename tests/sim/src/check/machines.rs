//! State machine safety: replicas apply the same entries in the same order, and come to the same state by them.
//!
//! The first telling of a position makes the history; all others must agree with it. The entries are applied to reference
//! machines that are never restarted: each replica of any group must have the reference's state hash at every position at which
//! it is seen, and the reference's rows, byte for byte, when it is looked at whole.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quorate_raft::{GroupId, ReplicaId};
use quorate_state::control::{self, Control};
use quorate_state::shard::{self, Shard};
use quorate_state::{Entry, Outcome, Position, codec};

use super::{Id, Wrong};
use crate::digest::Digest;

/// One applied entry, as all replicas must see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    id: Id,
    payload: u64,
}

/// What the first telling of an entry came to.
#[derive(Debug)]
pub(crate) enum Applied {
    /// It was told before.
    Again,
    /// An entry of Raft's own.
    Nothing,
    /// An entry of control.
    Control(Entry<control::Command>, Outcome<control::Reply, control::Effect>),
    /// An entry of a shard.
    Shard(Entry<shard::Command>, Outcome<shard::Reply, shard::Effect>),
}

/// The rows of a group.
type Rows = BTreeMap<(u8, Bytes), Bytes>;

/// The references.
#[derive(Debug, Default)]
pub(crate) struct Machines {
    entries: BTreeMap<(GroupId, u64), Seen>,
    leaders: BTreeSet<(GroupId, (u64, ReplicaId))>,
    /// The control machine.
    pub(crate) control: Control,
    shards: BTreeMap<GroupId, Shard>,
    rows: BTreeMap<GroupId, Rows>,
    /// The state hash of a group after each position at which its machine was told something.
    hashes: BTreeMap<(GroupId, u64), u64>,
}

impl Machines {
    /// Entries of all groups.
    pub(crate) fn entries(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Leaders of all groups of whom at least one entry took effect.
    pub(crate) fn leaders(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// The committed entries of a group, in order.
    pub(crate) fn committed(&self, group: GroupId) -> impl Iterator<Item = Id> {
        self.entries.range((group, 0)..=(group, u64::MAX)).map(|(_, seen)| seen.id)
    }

    /// The last committed position of a group.
    pub(crate) fn last(&self, group: GroupId) -> Option<u64> {
        self.entries.range((group, 0)..=(group, u64::MAX)).next_back().map(|((_, position), _)| *position)
    }

    /// The term of the committed entry at a position.
    pub(crate) fn term_at(&self, group: GroupId, position: u64) -> Option<u64> {
        self.entries.get(&(group, position)).map(|seen| seen.id.term)
    }

    /// A replica applies an entry.
    pub(crate) fn applying(&mut self, node: usize, group: GroupId, id: Id, payload: Option<&[u8]>) -> (Applied, Wrong) {
        let seen = Seen { id, payload: payload.map_or(0, |payload| Digest::of(payload).value()) };
        match self.entries.get(&(group, id.position)) {
            Some(before) if *before == seen => (Applied::Again, Wrong::new()),
            Some(before) => {
                let wrong = format!(
                    "state machine safety: node-{} applies {seen:?} in group {group}, another replica {before:?}",
                    node + 1
                );
                (Applied::Again, vec![wrong])
            }
            None => self.first(group, seen, payload),
        }
    }

    fn first(&mut self, group: GroupId, seen: Seen, payload: Option<&[u8]>) -> (Applied, Wrong) {
        let mut wrong = Wrong::new();
        let id = seen.id;
        let before = self.entries.range((group, 0)..(group, id.position)).next_back().map(|(_, before)| before.id);
        if let Some(before) = before {
            if before.position + 1 != id.position {
                wrong.push(format!("state machine safety: group {group} goes from {before} to {id}"));
            }
            if id.lead() < before.lead() {
                wrong.push(format!(
                    "election safety: {id} of group {group} follows {before}: a deposed leader committed"
                ));
            }
        }
        self.entries.insert((group, id.position), seen);
        self.leaders.insert((group, id.lead()));
        let applied = match payload {
            None => Ok(Applied::Nothing),
            Some(payload) if group == GroupId::CONTROL => self.apply_control(id, payload),
            Some(payload) => self.apply_shard(group, id, payload),
        };
        let applied = applied.unwrap_or_else(|fault| {
            wrong.push(format!("state machine safety: {id} of group {group} is a fault: {fault}"));
            Applied::Nothing
        });
        (applied, wrong)
    }

    fn apply_control(&mut self, id: Id, payload: &[u8]) -> Result<Applied, String> {
        let entry: Entry<control::Command> = codec::decode(payload).map_err(|error| error.to_string())?;
        let told = entry.clone();
        let outcome = self.control.apply(Position(id.position), entry).map_err(|fault| fault.to_string())?;
        keep(self.rows.entry(GroupId::CONTROL).or_default(), &outcome.rows);
        self.hashes.insert((GroupId::CONTROL, id.position), self.control.hash());
        Ok(Applied::Control(told, outcome))
    }

    fn apply_shard(&mut self, group: GroupId, id: Id, payload: &[u8]) -> Result<Applied, String> {
        let entry: Entry<shard::Command> = codec::decode(payload).map_err(|error| error.to_string())?;
        let told = entry.clone();
        let machine = self.shards.entry(group).or_default();
        let outcome = machine.apply(Position(id.position), entry).map_err(|fault| fault.to_string())?;
        self.hashes.insert((group, id.position), machine.hash());
        keep(self.rows.entry(group).or_default(), &outcome.rows);
        Ok(Applied::Shard(told, outcome))
    }

    /// A replica of a group has reached a position.
    pub(crate) fn reached(&self, node: usize, group: GroupId, position: u64, hash: u64) -> Wrong {
        if position > 0 && !self.entries.contains_key(&(group, position)) {
            let what = format!("node-{} is at position {position} of group {group}, which nobody applied", node + 1);
            return vec![format!("state hashes: {what}")];
        }
        // Entries of Raft's own change no state; before the first other one it is empty.
        let told = self.hashes.range((group, 0)..=(group, position)).next_back();
        let expected = told.map_or(0, |(_, hash)| *hash);
        if expected == hash {
            return Wrong::new();
        }
        vec![format!(
            "state hashes: node-{} has {hash:016x} at position {position} of group {group}, the log says {expected:016x}",
            node + 1
        )]
    }

    /// A replica's rows at a position. They are compared if that is where the reference stands.
    pub(crate) fn compare_rows(
        &self,
        node: usize,
        group: GroupId,
        position: u64,
        rows: &mut dyn Iterator<Item = (u8, &Bytes, &Bytes)>,
    ) -> Wrong {
        if self.last(group) != Some(position) {
            return Wrong::new();
        }
        let none = Rows::new();
        let mut expected = self.rows.get(&group).unwrap_or(&none).iter();
        loop {
            match (rows.next(), expected.next()) {
                (None, None) => return Wrong::new(),
                (Some((table, key, value)), Some(((their_table, their_key), their_value)))
                    if (table, key, value) == (*their_table, their_key, their_value) => {}
                (mine, theirs) => {
                    let mine = mine.map(|(table, key, _)| (table, key.clone()));
                    let theirs = theirs.map(|((table, key), _)| (*table, key.clone()));
                    return vec![format!(
                        "rows: node-{} has row {mine:?} of group {group} at position {position} where the log makes {theirs:?}",
                        node + 1
                    )];
                }
            }
        }
    }

    /// Asks the references whether they contradict themselves.
    pub(crate) fn check(&self) -> Wrong {
        let mut wrong = Wrong::new();
        wrong.extend(self.control.check().err().into_iter().flatten());
        for shard in self.shards.values() {
            wrong.extend(shard.check().err().into_iter().flatten());
        }
        wrong.into_iter().map(|what| format!("self-check: the reference machine contradicts itself: {what}")).collect()
    }
}

fn keep(rows: &mut Rows, changes: &[quorate_state::Row]) {
    for row in changes {
        match &row.value {
            Some(value) => rows.insert((row.table, row.key.clone()), value.clone()),
            None => rows.remove(&(row.table, row.key.clone())),
        };
    }
}

#[cfg(test)]
mod tests {
    use quorate_state::{LogTime, Operation};

    use super::*;

    const GROUP: GroupId = GroupId::CONTROL;

    fn id(position: u64, term: u64) -> Id {
        Id { position, term, leader: 1 }
    }

    fn payload(time: u64) -> Bytes {
        let operations = vec![Operation::new(control::Command::Tick)];
        codec::encode(&Entry { time: LogTime(time), operations }).expect("encodes")
    }

    #[test]
    fn replicas_that_disagree_are_seen() {
        let mut machines = Machines::default();
        let (one, other) = (payload(1), payload(2));
        assert!(machines.applying(0, GROUP, id(1, 1), Some(&one)).1.is_empty());
        assert!(machines.applying(1, GROUP, id(1, 1), Some(&one)).1.is_empty());
        assert!(machines.applying(2, GROUP, id(1, 1), Some(&other)).1[0].contains("state machine safety"));
        assert!(machines.applying(2, GROUP, id(1, 2), Some(&one)).1[0].contains("state machine safety"));
        assert!(machines.applying(0, GROUP, id(3, 1), None).1[0].contains("goes from"));
        assert!(machines.applying(0, GROUP, id(4, 0), None).1[0].contains("a deposed leader committed"));
    }

    #[test]
    fn a_state_or_a_row_that_differs_is_seen() {
        let mut machines = Machines::default();
        let (_, wrong) = machines.applying(0, GROUP, id(1, 1), Some(&payload(1)));
        assert!(wrong.is_empty());
        let hash = machines.control.hash();
        assert!(machines.reached(0, GROUP, 1, hash).is_empty());
        assert!(machines.reached(0, GROUP, 1, hash ^ 1)[0].contains("state hashes"));
        assert!(machines.reached(0, GROUP, 2, hash)[0].contains("nobody applied"));
        assert!(machines.applying(0, GROUP, id(2, 1), None).1.is_empty());
        assert!(machines.reached(0, GROUP, 2, hash).is_empty(), "an entry of Raft's own changes nothing");
        assert!(machines.reached(0, GroupId(1), 0, 0).is_empty(), "a shard of which nothing is applied");
        let rows: Vec<_> = machines.rows[&GROUP].clone().into_iter().collect();
        assert!(!rows.is_empty());
        let compare = |rows: &[((u8, Bytes), Bytes)]| {
            machines.compare_rows(0, GROUP, 2, &mut rows.iter().map(|((table, key), value)| (*table, key, value)))
        };
        assert!(compare(&rows).is_empty());
        assert!(compare(&rows[1..])[0].contains("rows"));
        let mut changed = rows.clone();
        changed[0].1 = Bytes::from_static(b"other");
        assert!(compare(&changed)[0].contains("rows"));
    }
}
