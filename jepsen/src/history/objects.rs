//! Writes histories of one object each, which is what the command lines of Knossos and Elle and the checkers of Jepsen take: a
//! register, the queue, the points of a collection. The whole history in one file is for programs that take it apart.
//!
//! Faults are left out: those readers take every line for an operation on the object.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    Error, History, Span,
    edn::{Dialect, Lines, number, phase, register_op},
};
use crate::event::{Event, Operation, Part, Phase};

/// Processes that an operation within an operation is told of under: one has one operation at a time.
const BESIDE: u64 = 1 << 40;

type Object = Lines<Vec<u8>>;

impl History {
    /// Writes one file for each object into a folder, which is made: `register-KEY.edn` for each register of the load,
    /// `queue.edn` and `set-REST.edn`.
    ///
    /// # Errors
    /// [`Error::File`] if one cannot be written, [`Error::Malformed`] if the history is not well formed.
    pub fn write_objects(&self, folder: &Path) -> Result<(), Error> {
        let spans = self.spans()?;
        let mut objects: BTreeMap<String, Object> = BTreeMap::new();
        for event in &self.events {
            self.register_line(event, &mut objects);
        }
        queue(&self.events, &mut objects);
        for rest in [0, 1] {
            set(&spans, rest, &mut objects);
        }
        let failed = |source| Error::File { path: folder.to_owned(), source };
        fs_err::create_dir_all(folder).map_err(failed)?;
        objects
            .into_iter()
            .try_for_each(|(name, lines)| fs_err::write(folder.join(format!("{name}.edn")), lines.out))
            .map_err(failed)
    }

    /// A probe writes each of its registers once: a file for each would be thousands of files that say nothing.
    fn register_line(&self, event: &Event, objects: &mut BTreeMap<String, Object>) {
        if matches!(event.part, Some(Part::Probe(_))) {
            return;
        }
        if let Some((key, f, value)) = register_op(event, Dialect::Single) {
            put(objects, &format!("register-{key}"), event.phase, f, &value, event.process, event.time);
        }
    }
}

fn put(objects: &mut BTreeMap<String, Object>, name: &str, of: Phase, f: &str, value: &str, process: u64, time: u64) {
    let lines = objects.entry(name.to_owned()).or_insert_with(|| Lines { out: Vec::new(), number: 0 });
    lines.put(phase(of), f, value, &process.to_string(), time).expect("memory takes what is written to it");
}

/// The queue, as a total queue: what is enqueued, by requests and with the completion of a parent, and what is dequeued, which
/// is completed. A completion that was never acknowledged and turns out to have taken effect is told of at the end.
fn queue(events: &[Event], objects: &mut BTreeMap<String, Object>) {
    let mut dequeued: BTreeSet<(u64, Option<&str>)> = BTreeSet::new();
    for event in events {
        let mut line = |of, f, value: Option<u64>, process| {
            put(objects, "queue", of, f, &number(value), process, event.time);
        };
        match &event.operation {
            Operation::Enqueue { value, .. } => line(event.phase, "enqueue", Some(*value), event.process),
            Operation::Complete { value, token, child, .. } => {
                if let Some(child) = child {
                    line(event.phase, "enqueue", Some(*child), event.process + BESIDE);
                }
                // The same attempt may be acknowledged again.
                let again = event.phase == Phase::Ok && !dequeued.insert((*value, Some(token)));
                let of = if again { Phase::Fail } else { event.phase };
                line(of, "dequeue", Some(*value).filter(|_| event.phase == Phase::Ok), event.process);
            }
            Operation::Final { value, state: Some(state), .. } if event.phase == Phase::Ok && state == "COMPLETED" => {
                // A payload may be any number, the greatest one too: there is none after it that a range could end before.
                let is_known = dequeued.range((*value, None)..).next().is_some_and(|(known, _)| known == value);
                if !is_known && dequeued.insert((*value, None)) {
                    line(Phase::Invoke, "dequeue", None, event.process + BESIDE);
                    line(Phase::Ok, "dequeue", Some(*value), event.process + BESIDE);
                }
            }
            _ => {}
        }
    }
}

/// The points of one collection, as a set that only grows: those that nobody asked to delete, and one read of all that was listed
/// at the end. There is no read unless every listing had a whole answer.
fn set(spans: &[Span<'_>], rest: u64, objects: &mut BTreeMap<String, Object>) {
    let name = format!("set-{rest}");
    let deleted: BTreeSet<u64> = spans
        .iter()
        .filter_map(|span| match *span.operation() {
            Operation::Delete { point } => Some(point),
            _ => None,
        })
        .collect();
    let mut lines: Vec<(usize, &Event)> = Vec::new();
    let mut read: BTreeMap<u64, (&Span<'_>, Option<&[u64]>)> = BTreeMap::new();
    for span in spans {
        match span.operation() {
            Operation::Upsert { point } if point % 2 == rest && !deleted.contains(point) => {
                lines.push((span.begin, span.begun));
                lines.extend(span.ended.map(|(event, place)| (place, event)));
            }
            Operation::List { from, rest: of, points, missing, .. } if *of == rest => {
                let whole = points.as_deref().filter(|_| *missing == 0 && span.outcome() == Phase::Ok);
                read.insert(*from, (span, whole));
            }
            _ => {}
        }
    }
    lines.sort_unstable_by_key(|(place, _)| *place);
    for (_, event) in lines {
        if let Operation::Upsert { point } = event.operation {
            put(objects, &name, event.phase, "add", &point.to_string(), event.process, event.time);
        }
    }
    let all: Option<Vec<u64>> =
        read.values().map(|(_, points)| *points).collect::<Option<Vec<_>>>().map(|all| all.concat());
    let times = || read.values().flat_map(|(span, _)| [Some(span.begun.time), span.ended.map(|(event, _)| event.time)]);
    if let (Some(points), Some(from), Some(to)) = (all, times().flatten().min(), times().flatten().max()) {
        let there: BTreeSet<u64> = points.into_iter().filter(|point| !deleted.contains(point)).collect();
        let there: Vec<String> = there.iter().map(u64::to_string).collect();
        put(objects, &name, Phase::Invoke, "read", "nil", BESIDE, from);
        put(objects, &name, Phase::Ok, "read", &format!("#{{{}}}", there.join(" ")), BESIDE, to);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    fn written(events: Vec<Event>) -> BTreeMap<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("objects");
        History { events, ..History::default() }.write_objects(&to).unwrap();
        let files = fs_err::read_dir(&to).unwrap().map(|file| file.unwrap());
        let read = |file: fs_err::DirEntry| {
            (file.file_name().into_string().unwrap(), fs_err::read_to_string(file.path()).unwrap())
        };
        files.map(read).collect()
    }

    /// Operations one after the other, each by the process of that number.
    fn events(operations: &[(u64, Phase, Operation)]) -> Vec<Event> {
        let event = |time, process, phase, operation: &Operation| Event {
            time,
            process,
            phase,
            operation: operation.clone(),
            part: None,
            node: None,
            error: None,
        };
        let both = operations.iter().zip((0..).step_by(2)).flat_map(|((process, phase, operation), at)| {
            [event(at, *process, Phase::Invoke, operation), event(at + 1, *process, *phase, operation)]
        });
        both.collect()
    }

    #[test]
    fn each_register_has_a_file_of_its_own() {
        let mut events = events(&[
            (0, Phase::Ok, Operation::Write { key: 3, value: 1 }),
            (1, Phase::Ok, Operation::Cas { key: 7, expected: None, value: 2 }),
            (0, Phase::Ok, Operation::Read { key: 3, value: Some(Some(1)) }),
            (2, Phase::Ok, Operation::Write { key: 9, value: 3 }),
        ]);
        events[6].part = Some(Part::Probe(1));
        events[7].part = Some(Part::Probe(1));
        let files = written(events);
        assert_eq!(files.keys().collect::<Vec<_>>(), ["register-3.edn", "register-7.edn"]);
        let wanted = "\
{:type :invoke, :f :write, :value 1, :process 0, :time 0, :index 0}
{:type :ok, :f :write, :value 1, :process 0, :time 1000, :index 1}
{:type :invoke, :f :read, :value nil, :process 0, :time 4000, :index 2}
{:type :ok, :f :read, :value 1, :process 0, :time 5000, :index 3}
";
        assert_eq!(files["register-3.edn"], wanted);
        assert!(files["register-7.edn"].contains(":f :cas, :value [nil 2], :process 1"));
    }

    #[test]
    fn a_task_is_dequeued_when_it_is_completed_and_a_child_enqueued() {
        let complete =
            |value, token: &str, child| Operation::Complete { value, task: value, token: token.into(), child };
        let end = |value| Operation::Final { value, task: value, state: Some("COMPLETED".into()), result: None };
        let files = written(events(&[
            (0, Phase::Ok, Operation::Enqueue { value: 1, task: Some(1) }),
            (1, Phase::Ok, complete(1, "5.0", Some(2))),
            (1, Phase::Ok, complete(1, "5.0", None)),
            (1, Phase::Info, complete(2, "6.0", None)),
            (2, Phase::Ok, end(1)),
            (2, Phase::Ok, end(2)),
            (2, Phase::Ok, end(u64::MAX)),
            (2, Phase::Ok, end(u64::MAX)),
        ]));
        let ok: Vec<&str> = files["queue.edn"].lines().filter(|line| line.contains(":type :ok")).collect();
        let fits = |line: &str, f: &str, value: &str| line.contains(&format!(":f :{f}, :value {value},"));
        assert_eq!(ok.len(), 5, "{ok:?}");
        assert!(fits(ok[0], "enqueue", "1") && fits(ok[1], "enqueue", "2"), "{ok:?}");
        assert!(fits(ok[2], "dequeue", "1") && fits(ok[3], "dequeue", "2"), "{ok:?}");
        assert!(fits(ok[4], "dequeue", &u64::MAX.to_string()), "{ok:?}");
    }

    #[test]
    fn what_nobody_deletes_is_a_set_that_grows() {
        let list = |from, rest, points: &[u64]| Operation::List {
            from,
            to: from + 10,
            rest,
            points: Some(points.to_vec()),
            missing: 0,
        };
        let mut operations = vec![
            (0, Phase::Ok, Operation::Upsert { point: 2 }),
            (0, Phase::Ok, Operation::Upsert { point: 4 }),
            (0, Phase::Ok, Operation::Delete { point: 4 }),
            (1, Phase::Ok, Operation::Upsert { point: 12 }),
            (1, Phase::Ok, list(0, 0, &[2])),
            (1, Phase::Ok, list(10, 0, &[12])),
        ];
        let set = written(events(&operations))["set-0.edn"].clone();
        assert!(!set.contains(":value 4") && set.lines().count() == 6, "{set}");
        assert!(set.ends_with(":f :read, :value #{2 12}, :process 1099511627776, :time 11000, :index 5}\n"), "{set}");
        operations.push((1, Phase::Fail, list(20, 0, &[])));
        assert!(!written(events(&operations))["set-0.edn"].contains(":read"), "not all was listed");
    }
}
