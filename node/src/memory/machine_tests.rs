//! A machine, its rows and its indexes together, as the group drives them: apply, write the rows, publish.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate_api::v1;
use quorate_index::Builder;
use quorate_raft::memory::MemoryStates;
use quorate_raft::{GroupId, LogPosition, Machine, Reread, RowBatch, RowVisitor, StateStore, StateStores, Table};
use quorate_state::shard::{Command, PointWrite, Reply, Version};
use quorate_state::{CollectionId, Entry, LogTime, Metric, Operation, Reject, ShardId, codec};
use tempfile::TempDir;

use super::machine::ShardMachine;
use super::replica::{IndexPlan, Replica};
use super::wire::{GetCall, SearchCall};
use crate::error::ErrorReason;

const COLLECTION: CollectionId = CollectionId(3);
const GENERATION: u64 = 17;
const DIMENSION: usize = 8;

/// A replica with its machine, its rows and its directory.
struct Rig {
    directory: TempDir,
    store: Arc<dyn StateStore>,
    machine: ShardMachine,
    replica: Arc<Replica>,
    position: u64,
    /// Every command so far.
    log: Vec<Command>,
}

impl Rig {
    fn new() -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let store = MemoryStates::new(directory.path().join("states")).open(GroupId(1)).unwrap();
        let (machine, replica) = open(&directory, &store);
        Rig { directory, store, machine, replica, position: 0, log: Vec::new() }
    }

    fn with_collection() -> Rig {
        let mut rig = Rig::new();
        rig.run(put());
        rig
    }

    /// What a restart does: everything but the rows and the files is gone.
    fn restarted(self) -> Rig {
        let Rig { directory, store, machine, replica, position, log } = self;
        replica.close();
        drop((machine, replica));
        let (machine, replica) = open(&directory, &store);
        Rig { directory, store, machine, replica, position, log }
    }

    /// Applies one entry; its rows are not written yet.
    fn apply(&mut self, command: Command) -> (Result<Reply, Reject>, RowBatch) {
        self.position += 1;
        self.log.push(command.clone());
        let entry = Entry { time: LogTime(self.position * 1_000), operations: vec![Operation::new(command)] };
        let mut rows = RowBatch::default();
        let payload = codec::encode(&entry).unwrap();
        let reply = self.machine.apply(at(self.position), &payload, &mut rows).unwrap();
        (reply.downcast::<Vec<Result<Reply, Reject>>>().unwrap().remove(0), rows)
    }

    fn write(&self, rows: &RowBatch) {
        self.store.write(rows, &self.position.to_be_bytes()).unwrap();
    }

    /// Applies, writes and publishes.
    fn run(&mut self, command: Command) -> Reply {
        let (reply, rows) = self.apply(command);
        self.write(&rows);
        self.machine.applied(at(self.position));
        reply.unwrap()
    }

    fn search(&self, vector: &[f32], k: u32) -> Vec<v1::Hit> {
        self.replica.search(&search(vector, k)).unwrap()
    }

    fn get(&self, ids: &[&str]) -> Vec<v1::Point> {
        self.replica.get(&get(ids)).unwrap()
    }
}

fn open(directory: &TempDir, store: &Arc<dyn StateStore>) -> (ShardMachine, Arc<Replica>) {
    let plan = IndexPlan {
        directory: directory.path().join("index"),
        builder: Builder::new(1),
        // Small, so that a test has segments and not only a head.
        seal_rows: 256,
    };
    let replica = Arc::new(Replica::new(ShardId(1), plan));
    let mut machine = ShardMachine::new(replica.clone());
    machine.load(store.clone(), None).unwrap();
    (machine, replica)
}

fn at(position: u64) -> LogPosition {
    LogPosition { term: 1, position }
}

fn put() -> Command {
    Command::PutCollection { id: COLLECTION, generation: GENERATION, dimension: DIMENSION as u32, metric: Metric::L2 }
}

fn upsert(points: impl IntoIterator<Item = (String, Vec<f32>)>) -> Command {
    let points = points.into_iter().map(|(id, vector)| {
        let payload = format!(r#"{{"id":"{id}"}}"#).into_bytes();
        PointWrite { id, vector, payload, expected: None }
    });
    Command::Upsert { collection: COLLECTION, generation: GENERATION, points: points.collect() }
}

fn delete(ids: &[&str]) -> Command {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    Command::Delete { collection: COLLECTION, generation: GENERATION, ids }
}

fn search(vector: &[f32], k: u32) -> SearchCall {
    SearchCall {
        freshness: Default::default(),
        collection: COLLECTION.0,
        generation: GENERATION,
        vector: vector.to_vec(),
        k,
        ef: 0,
        exact: true,
        with_payload: true,
        with_vector: true,
    }
}

fn get(ids: &[&str]) -> GetCall {
    GetCall {
        freshness: Default::default(),
        collection: COLLECTION.0,
        generation: GENERATION,
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        with_vector: true,
    }
}

/// A vector that is the same for the same seed and unlike those of others.
fn vector(seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    (0..DIMENSION).map(|_| next()).collect()
}

fn point(seed: u64) -> (String, Vec<f32>) {
    (format!("p{seed}"), vector(seed))
}

/// The ids of the `k` nearest by comparing with all.
fn nearest(points: &BTreeMap<String, Vec<f32>>, query: &[f32], k: usize) -> Vec<String> {
    let distance = |vector: &[f32]| vector.iter().zip(query).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
    let mut ranked: Vec<_> = points.iter().map(|(id, vector)| (distance(vector), id.clone())).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    ranked.into_iter().take(k).map(|(_, id)| id).collect()
}

fn ids(hits: &[v1::Hit]) -> Vec<String> {
    hits.iter().map(|hit| hit.id.clone()).collect()
}

/// 500 points with updates and deletes among them; answers what should be there.
fn churn(rig: &mut Rig) -> BTreeMap<String, Vec<f32>> {
    let mut points = BTreeMap::new();
    for batch in 0..10 {
        let fresh: Vec<_> = (0..50).map(|n| point(batch * 50 + n)).collect();
        points.extend(fresh.clone());
        rig.run(upsert(fresh));
        let moved: Vec<_> =
            (0..10).map(|n| (format!("p{}", batch * 40 + n), vector(10_000 + batch * 50 + n))).collect();
        points.extend(moved.clone());
        rig.run(upsert(moved));
        let gone = format!("p{}", batch * 50 + 49);
        points.remove(&gone);
        rig.run(delete(&[&gone]));
    }
    let index = rig.replica.indexes.read()[&COLLECTION].index.clone();
    index.wait_idle();
    assert!(index.stats().segments > 0, "500 points with 256 to a segment fill one");
    points
}

fn assert_answers(rig: &Rig, points: &BTreeMap<String, Vec<f32>>) {
    for query in 0..20 {
        let query = vector(500_000 + query);
        let hits = rig.search(&query, 10);
        assert_eq!(ids(&hits), nearest(points, &query, 10));
        assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
    }
    let wanted: Vec<&str> = points.keys().map(String::as_str).chain(["absent"]).collect();
    let found = rig.get(&wanted);
    assert_eq!(found.len(), points.len());
    for point in &found {
        assert_eq!(point.vector, points[&point.id]);
        assert_eq!(point.payload, format!(r#"{{"id":"{}"}}"#, original_id(&point.payload)));
    }
    let stats = rig.replica.stats();
    assert_eq!((stats.len(), stats[0].points), (1, points.len() as u64));
}

/// The id that the payload names; payloads are written with the id of their point.
fn original_id(payload: &[u8]) -> String {
    let object: serde_json::Value = serde_json::from_slice(payload).unwrap();
    object["id"].as_str().unwrap().to_owned()
}

#[test]
fn searches_and_gets_see_what_was_applied() {
    let mut rig = Rig::with_collection();
    let points = churn(&mut rig);
    assert_answers(&rig, &points);
}

#[test]
fn a_restart_answers_as_before_with_its_files_and_without() {
    let mut rig = Rig::with_collection();
    let points = churn(&mut rig);
    let rig = rig.restarted();
    assert_answers(&rig, &points);
    fs_err::remove_dir_all(rig.replica.directory()).unwrap();
    let mut rig = rig.restarted();
    assert_answers(&rig, &points);
    // And it goes on from there.
    rig.run(upsert([("late".to_owned(), vector(1))]));
    assert_eq!(rig.search(&vector(1), 2).len(), 2);
}

/// The store loses what was not flushed, the index files do not: after a crash the files may know rows that the state will
/// only come to again.
#[test]
fn a_crash_that_leaves_the_index_ahead_of_the_rows_is_made_up_by_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let states = MemoryStates::new(directory.path().join("states"));
    let store = states.open(GroupId(1)).unwrap();
    let (machine, replica) = open(&directory, &store);
    let mut rig = Rig { directory, store, machine, replica, position: 0, log: Vec::new() };
    rig.run(put());
    rig.run(upsert((0..30).map(point)));
    rig.store.flush().unwrap();
    let flushed = rig.log.len();
    let points = churn(&mut rig);
    let Rig { directory, machine, replica, log, .. } = rig;
    replica.close();
    drop((machine, replica));

    let store = states.crash().open(GroupId(1)).unwrap();
    let (machine, replica) = open(&directory, &store);
    let mut rig = Rig { directory, store, machine, replica, position: flushed as u64, log: Vec::new() };
    assert_eq!(rig.replica.stats()[0].points, 30, "the store kept what it should have lost");
    assert_eq!(rig.search(&vector(1), 100).len(), 30);
    for command in log.into_iter().skip(flushed) {
        rig.run(command);
    }
    assert_answers(&rig, &points);
}

#[test]
fn files_that_are_damaged_are_rebuilt_from_the_rows() {
    let mut rig = Rig::with_collection();
    let points = churn(&mut rig);
    let directory = rig.replica.directory();
    rig.replica.close();
    let files = walk(&directory);
    assert!(!files.is_empty(), "a segment has files");
    for file in files {
        fs_err::write(&file, b"not what it was").unwrap();
    }
    let rig = rig.restarted();
    assert_answers(&rig, &points);
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

#[test]
fn a_snapshot_brings_a_replica_that_was_behind_to_the_new_state() {
    let mut ahead = Rig::with_collection();
    let mut behind = Rig::with_collection();
    for rig in [&mut ahead, &mut behind] {
        rig.run(upsert((0..100).map(point)));
    }
    let points = churn(&mut ahead);
    behind.machine.load(ahead.store.clone(), Some(at(ahead.position))).unwrap();
    assert_answers(&behind, &points);
    // A collection that is new to it, and one that is gone.
    let other = CollectionId(9);
    ahead.run(Command::DropCollection { id: COLLECTION, generation: GENERATION + 1 });
    ahead.run(Command::PutCollection { id: other, generation: 30, dimension: 2, metric: Metric::Cosine });
    behind.machine.load(ahead.store.clone(), Some(at(ahead.position))).unwrap();
    assert_eq!(behind.replica.search(&search(&vector(1), 1)).unwrap_err().reason, ErrorReason::StaleRoute);
    let call = SearchCall { collection: other.0, generation: 30, ..search(&[1.0, 0.0], 1) };
    assert!(behind.replica.search(&call).unwrap().is_empty());
    assert!(!behind.replica.directory().join(format!("{}-{GENERATION}", COLLECTION.0)).exists());
}

#[test]
fn a_get_sees_what_is_applied_before_its_rows_are_written() {
    let mut rig = Rig::with_collection();
    rig.run(upsert([("a".to_owned(), vector(1))]));
    let (_, mut rows) = rig.apply(upsert([("a".to_owned(), vector(2)), ("b".to_owned(), vector(3))]));
    let seen = rig.get(&["a", "b"]);
    assert_eq!((&seen[0].vector, &seen[1].vector), (&vector(2), &vector(3)));
    rows.changes.extend(rig.apply(delete(&["b"])).1.changes);
    assert_eq!(rig.get(&["a", "b"]).len(), 1);
    rig.write(&rows);
    rig.machine.applied(at(rig.position));
    let seen = rig.get(&["a", "b"]);
    assert_eq!((seen.len(), &seen[0].vector), (1, &vector(2)));
}

#[test]
fn the_version_of_a_point_is_the_one_that_its_write_was_answered() {
    let mut rig = Rig::with_collection();
    let Reply::Upserted(first) = rig.run(upsert([("a".to_owned(), vector(1))])) else { panic!("not an upsert") };
    let Reply::Upserted(second) = rig.run(upsert([("a".to_owned(), vector(2))])) else { panic!("not an upsert") };
    assert_ne!(first, second);
    let Version(version) = second[0].clone().unwrap();
    assert_eq!(rig.get(&["a"])[0].version, version);
    assert_eq!(rig.search(&vector(2), 1)[0].version, version);
}

#[test]
fn a_reader_with_another_generation_is_told_that_its_route_is_stale() {
    let rig = Rig::with_collection();
    let old = SearchCall { generation: GENERATION - 1, ..search(&vector(1), 1) };
    assert_eq!(rig.replica.search(&old).unwrap_err().reason, ErrorReason::StaleRoute);
    let old = GetCall { generation: GENERATION - 1, ..get(&["a"]) };
    assert_eq!(rig.replica.get(&old).unwrap_err().reason, ErrorReason::StaleRoute);
}

#[test]
fn a_closed_replica_refuses_and_holds_nothing_open() {
    let mut rig = Rig::with_collection();
    rig.run(upsert((0..10).map(point)));
    rig.replica.close();
    assert_eq!(rig.replica.search(&search(&vector(1), 1)).unwrap_err().reason, ErrorReason::ShardUnavailable);
    assert_eq!(rig.replica.get(&get(&["p1"])).unwrap_err().reason, ErrorReason::ShardUnavailable);
    assert_eq!(Arc::strong_count(&rig.store), 1);
}

/// Every point exists at every moment, so a search for all of them must find all of them while each is being replaced.
#[test]
fn a_point_that_is_being_replaced_never_goes_missing() {
    let mut rig = Rig::with_collection();
    let count = 30_u64;
    rig.run(upsert((0..count).map(point)));
    let replica = rig.replica.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (replica, stop) = (replica.clone(), stop.clone());
            std::thread::spawn(move || {
                let wanted: Vec<String> = (0..count).map(|seed| format!("p{seed}")).collect();
                let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
                let mut rounds = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let mut found = ids(&replica.search(&search(&vector(7), count as u32)).unwrap());
                    found.sort();
                    found.dedup();
                    assert_eq!(found.len() as u64, count, "a search lost a point");
                    assert_eq!(replica.get(&get(&wanted)).unwrap().len() as u64, count, "a get lost a point");
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    for round in 0..300 {
        let moved =
            (0..count).filter(|seed| seed % 3 == round % 3).map(|seed| (format!("p{seed}"), vector(seed + round)));
        rig.run(upsert(moved));
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0, "the reader never read");
    }
}

/// A store that keeps what is said of it.
struct Reported {
    store: Arc<dyn StateStore>,
    reports: Arc<Mutex<Vec<String>>>,
}

impl StateStore for Reported {
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.store.get(table, key)
    }
    fn get_many(&self, table: Table, keys: &[&[u8]]) -> io::Result<Vec<Option<Bytes>>> {
        self.store.get_many(table, keys)
    }
    fn scan(&self, table: Table, from: &[u8], visit: &mut RowVisitor<'_>) -> io::Result<()> {
        self.store.scan(table, from, visit)
    }
    fn write(&self, rows: &RowBatch, applied: &[u8]) -> io::Result<()> {
        self.store.write(rows, applied)
    }
    fn applied(&self) -> io::Result<Option<Bytes>> {
        self.store.applied()
    }
    fn flush(&self) -> io::Result<()> {
        self.store.flush()
    }
    fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        self.store.checkpoint(dir)
    }
    fn reread(&self, from: &[u8], max_bytes: usize) -> io::Result<Reread> {
        self.store.reread(from, max_bytes)
    }
    fn report_damage(&self, reason: &str) {
        self.reports.lock().push(reason.to_owned());
    }
}

/// A row that reads back without an error and is none, or is gone, is known to be damage by who knows what it must be. Refusing
/// it for ever would leave the replica in service.
#[test]
fn a_row_that_is_not_what_was_written_is_reported_and_never_answered() {
    let reports: Arc<Mutex<Vec<String>>> = Arc::default();
    let damage = |value: Option<Bytes>| {
        let mut rig = Rig::new();
        let store: Arc<dyn StateStore> = Arc::new(Reported { store: rig.store.clone(), reports: reports.clone() });
        (rig.machine, rig.replica) = open(&rig.directory, &store);
        rig.run(put());
        let (reply, rows) = rig.apply(upsert([point(1)]));
        rig.write(&rows);
        rig.machine.applied(at(rig.position));
        reply.unwrap();
        assert_eq!(rig.get(&["p1"]).len(), 1);
        let written = rows
            .changes
            .into_iter()
            .filter(|(_, _, value)| value.as_ref().is_some_and(|row| row.len() > 4 * DIMENSION));
        let changes = written.map(|(table, key, _)| (table, key, value.clone())).collect();
        rig.write(&RowBatch { changes });
        let refused = rig.replica.get(&get(&["p1"])).unwrap_err();
        assert_eq!(refused.reason, ErrorReason::ShardUnavailable, "{}", refused.message);
        std::mem::take(&mut *reports.lock())
    };
    assert_eq!(damage(None), ["a point that the state knows has no row"]);
    let [told] = &damage(Some(Bytes::from_static(b"x")))[..] else { panic!("one read, one report") };
    assert!(told.starts_with("a point does not decode"), "{told}");
}
