//! Memory points by the log: a model of each point that shares no code with the machine, and what reads may say of it.
//!
//! - A write takes effect once for its request, with a version that is new; a condition is kept.
//! - What a client was told is in the log. What it was told has certainly not happened is not.
//! - A read shows a state that the point had at one moment after everything that was acknowledged before the read began.

use std::collections::{BTreeMap, BTreeSet};

use quorate_state::RequestId;
use quorate_state::shard::{Command, PointReject, PointWrite, Reply, Version};
use quorate_state::{Operation, Reject};

use super::Wrong;
use super::names::Reading;

/// What a point is: its version and what is stored with it.
pub(crate) type Point = (u64, Vec<u8>);

/// A place in the history of points: counts the changes of all of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

#[derive(Debug, Default)]
struct History {
    /// What it became, and when.
    changes: Vec<(Moment, Option<Point>)>,
    /// What is acknowledged, or was read: no later read may show less.
    floor: Moment,
}

impl History {
    fn now(&self) -> Option<&Point> {
        self.changes.last().and_then(|(_, point)| point.as_ref())
    }
}

/// The model.
#[derive(Debug, Default)]
pub(crate) struct Points {
    points: BTreeMap<String, History>,
    /// What each request came to, and in which step.
    requests: BTreeMap<(RequestId, u32), (u64, Reply)>,
    /// The version of each value; values are unique.
    values: BTreeMap<Vec<u8>, u64>,
    not_done: BTreeSet<Vec<u8>>,
    moment: Moment,
}

impl Points {
    /// An entry of a shard with the replies that it was given.
    pub(crate) fn entry(
        &mut self,
        step: u64,
        shard: u32,
        operations: &[Operation<Command>],
        replies: &[Result<Reply, Reject>],
    ) -> Wrong {
        let mut wrong = Wrong::new();
        for (operation, reply) in operations.iter().zip(replies) {
            let Ok(reply) = reply else { continue };
            if let Some(request) = operation.request {
                if let Some((_, before)) = self.requests.get(&(request, shard)) {
                    if before != reply {
                        wrong.push(format!("points: request {request} took effect twice: {before:?}, then {reply:?}"));
                    }
                    continue;
                }
                self.requests.insert((request, shard), (step, reply.clone()));
            }
            match (&operation.command, reply) {
                (Command::Upsert { points, .. }, Reply::Upserted(outcomes)) => {
                    for (point, outcome) in points.iter().zip(outcomes) {
                        self.upsert(point, outcome, &mut wrong);
                    }
                }
                (Command::Delete { ids, .. }, Reply::Deleted { existed }) => {
                    for (id, existed) in ids.iter().zip(existed) {
                        self.delete(id, *existed, &mut wrong);
                    }
                }
                _ => {}
            }
        }
        wrong
    }

    fn change(&mut self, id: &str, to: Option<Point>) {
        self.moment.0 += 1;
        let history = self.points.entry(id.to_owned()).or_default();
        history.changes.push((self.moment, to));
    }

    fn upsert(&mut self, point: &PointWrite, outcome: &Result<Version, PointReject>, wrong: &mut Wrong) {
        let now = self.points.get(&point.id).and_then(History::now).map_or(0, |(version, _)| *version);
        let conflicts = point.expected.is_some_and(|expected| expected != now);
        let id = &point.id;
        match outcome {
            Ok(Version(_)) if conflicts => wrong.push(format!(
                "points: {id} has version {now} and was put on condition of version {:?}",
                point.expected
            )),
            Err(PointReject::VersionConflict { actual }) if conflicts && *actual == now => return,
            Err(reject) => {
                wrong.push(format!("points: {id} at version {now}: {:?} was refused: {reject}", point.expected));
                return;
            }
            Ok(_) => {}
        }
        let Ok(Version(version)) = outcome else { return };
        if *version <= now {
            wrong.push(format!("points: {id} goes from version {now} to {version}"));
        }
        if let Some(before) = self.values.insert(point.payload.clone(), *version) {
            wrong.push(format!("points: a value of {id} took effect twice, as version {before} and {version}"));
        }
        if self.not_done.contains(&point.payload) {
            wrong
                .push(format!("points: a write of {id} that was told to have failed took effect as version {version}"));
        }
        self.change(&point.id, Some((*version, point.payload.clone())));
    }

    fn delete(&mut self, id: &str, existed: bool, wrong: &mut Wrong) {
        let exists = self.points.get(id).is_some_and(|history| history.now().is_some());
        if exists != existed {
            wrong.push(format!("points: a delete of {id} found it: {existed}, and it was there: {exists}"));
        }
        if exists {
            self.change(id, None);
        }
    }

    /// A client was told that its write has this version.
    pub(crate) fn acknowledged(&mut self, id: &str, payload: &[u8], version: u64) -> Wrong {
        match self.values.get(payload) {
            Some(found) if *found == version => {}
            Some(found) => {
                return vec![format!("points: {id} was acknowledged with version {version} and has {found}")];
            }
            None => {
                return vec![format!("points: version {version} of {id} was acknowledged and nobody has applied it")];
            }
        }
        if let Some(moment) = self.moment_of(id, version) {
            let history = self.points.entry(id.to_owned()).or_default();
            history.floor = history.floor.max(moment);
        }
        Wrong::new()
    }

    /// A client was told for certain that its write was not done.
    pub(crate) fn refused(&mut self, id: &str, payload: &[u8]) -> Wrong {
        self.not_done.insert(payload.to_vec());
        match self.values.get(payload) {
            Some(version) => vec![format!(
                "points: a write of {id} was told to have failed and has taken effect as version {version}"
            )],
            None => Wrong::new(),
        }
    }

    /// What a request came to, and in which step it took effect, if it did.
    pub(crate) fn outcome(&self, request: RequestId) -> Option<&(u64, Reply)> {
        self.requests.range((request, 0)..=(request, u32::MAX)).next().map(|(_, outcome)| outcome)
    }

    /// When a point got a version.
    pub(crate) fn moment_of(&self, id: &str, version: u64) -> Option<Moment> {
        let mut changes = self.points.get(id)?.changes.iter().rev();
        let of = |(_, point): &&(Moment, Option<Point>)| point.as_ref().is_some_and(|point| point.0 == version);
        changes.find(of).map(|(moment, _)| *moment)
    }

    /// What a read of a point that begins now may not fall behind.
    pub(crate) fn floor(&self, id: &str) -> Moment {
        self.points.get(id).map_or(Moment::default(), |history| history.floor)
    }

    /// A read showed the point so. `floor` is that of the moment in which it began; none for a read that may be stale.
    pub(crate) fn read(&mut self, id: &str, shown: Option<&Point>, floor: Option<Moment>, reading: Reading) -> Wrong {
        let history = self.points.entry(id.to_owned()).or_default();
        let begins = std::iter::once((Moment::default(), None));
        let states: Vec<(Moment, Option<&Point>)> =
            begins.chain(history.changes.iter().map(|(moment, point)| (*moment, point.as_ref()))).collect();
        let least = floor.unwrap_or_default();
        let shows = |nth: &usize| {
            let ends = states.get(nth + 1).map(|(moment, _)| *moment);
            states[*nth].1 == shown && ends.is_none_or(|ends| ends > least)
        };
        // What a read shows, later reads must not fall behind; of several such moments the first is what is known.
        match (0..states.len()).find(shows) {
            Some(nth) => {
                let seen = states[nth].0;
                if floor.is_some() {
                    history.floor = history.floor.max(seen);
                }
                Wrong::new()
            }
            None => {
                let shown = shown.map(|(version, payload)| (*version, String::from_utf8_lossy(payload).into_owned()));
                let now = history.now().map(|(version, _)| *version);
                vec![format!(
                    "{}: {id} was read as {shown:?}, which it was not since {least:?}; now it has {now:?}",
                    reading.name()
                )]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_state::CollectionId;

    const ID: &str = "a";

    fn put(value: &str, expected: Option<u64>) -> Command {
        let point = PointWrite { id: ID.to_owned(), vector: vec![], payload: value.as_bytes().to_vec(), expected };
        Command::Upsert { collection: CollectionId(1), generation: 1, points: vec![point] }
    }

    fn took(points: &mut Points, request: u128, command: Command, reply: Reply) -> Wrong {
        let operation = Operation { request: Some(RequestId(request)), command };
        points.entry(1, 1, &[operation], &[Ok(reply)])
    }

    fn version(version: u64) -> Reply {
        Reply::Upserted(vec![Ok(Version(version))])
    }

    #[test]
    fn a_request_takes_effect_once_and_a_condition_is_kept() {
        let mut points = Points::default();
        assert!(took(&mut points, 1, put("x", Some(0)), version(1)).is_empty());
        assert!(took(&mut points, 1, put("x", Some(0)), version(1)).is_empty(), "the same reply again");
        assert!(took(&mut points, 1, put("x", Some(0)), version(2))[0].contains("twice"));
        assert!(took(&mut points, 2, put("y", Some(7)), version(3))[0].contains("on condition"));
        let conflict = Reply::Upserted(vec![Err(PointReject::VersionConflict { actual: 9 })]);
        assert!(took(&mut points, 3, put("z", Some(7)), conflict)[0].contains("refused"));
        assert!(took(&mut points, 4, put("w", None), version(2))[0].contains("goes from version"));
        assert!(took(&mut points, 5, put("w", None), version(8))[0].contains("took effect twice"));
    }

    #[test]
    fn an_acknowledgement_without_its_entry_is_seen() {
        let mut points = Points::default();
        assert!(points.acknowledged(ID, b"x", 1)[0].contains("nobody has applied it"));
        took(&mut points, 1, put("x", None), version(1));
        assert!(points.acknowledged(ID, b"x", 1).is_empty());
        assert!(points.acknowledged(ID, b"x", 2)[0].contains("has 1"));
        assert!(points.refused(ID, b"x")[0].contains("told to have failed"));
        assert!(points.refused(ID, b"y").is_empty());
        assert!(took(&mut points, 2, put("y", None), version(2))[0].contains("told to have failed"));
    }

    #[test]
    fn a_read_that_falls_behind_is_seen() {
        let mut points = Points::default();
        let x: Point = (1, b"x".to_vec());
        let y: Point = (2, b"y".to_vec());
        took(&mut points, 1, put("x", None), version(1));
        points.acknowledged(ID, b"x", 1);
        took(&mut points, 2, put("y", None), version(2));
        let begun = points.floor(ID);
        assert!(points.read(ID, Some(&x), Some(begun), Reading::Get).is_empty(), "y is not acknowledged");
        assert!(points.read(ID, Some(&y), Some(begun), Reading::Get).is_empty());
        let begun = points.floor(ID);
        assert!(points.read(ID, Some(&x), Some(begun), Reading::Get)[0].contains("get"), "y was read before");
        assert!(!points.read(ID, None, Some(begun), Reading::Get).is_empty());
        assert!(points.read(ID, Some(&x), None, Reading::StaleGet).is_empty());
        assert!(!points.read(ID, Some(&(3, b"z".to_vec())), None, Reading::StaleGet).is_empty(), "it was never that");
        let gone = Reply::Deleted { existed: vec![true] };
        let delete = Command::Delete { collection: CollectionId(1), generation: 1, ids: vec![ID.to_owned()] };
        assert!(took(&mut points, 3, delete, gone).is_empty());
        assert!(points.read(ID, None, Some(begun), Reading::Get).is_empty());
    }
}
