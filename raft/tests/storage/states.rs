//! The state stores, the real one and the one in memory, do the same.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use quorate_raft::memory::MemoryStates;
use quorate_raft::{GroupId, RowBatch, StateStore, StateStores};

const GROUP: GroupId = GroupId(2);

fn batch(changes: &[(u8, &str, Option<&str>)]) -> RowBatch {
    let owned = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    RowBatch { changes: changes.iter().map(|(table, key, value)| (*table, owned(key), value.map(owned))).collect() }
}

fn all(store: &dyn StateStore, table: u8, from: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    store
        .scan(table, from.as_bytes(), &mut |key, value| {
            found.insert(text(key), text(value));
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn rows(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn rows_are_kept_by_table_in_order(states: &dyn StateStores) {
    let store = states.open(GROUP).unwrap();
    assert_eq!(store.applied().unwrap(), None);
    store
        .write(
            &batch(&[(1, "b", Some("1b")), (1, "a", Some("1a")), (2, "a", Some("2a")), (199, "z", Some("end"))]),
            b"5",
        )
        .unwrap();
    assert_eq!(all(&*store, 1, ""), rows(&[("a", "1a"), ("b", "1b")]));
    assert_eq!(all(&*store, 1, "aa"), rows(&[("b", "1b")]));
    assert_eq!(all(&*store, 3, ""), rows(&[]));
    assert_eq!(all(&*store, 199, ""), rows(&[("z", "end")]));
    assert_eq!(store.get(2, b"a").unwrap().as_deref(), Some(&b"2a"[..]));
    assert_eq!(store.get(2, b"b").unwrap(), None);
    let many = store.get_many(1, &[b"b", b"none", b"a"]).unwrap();
    assert_eq!(many, [Some(Bytes::from("1b")), None, Some(Bytes::from("1a"))]);
    // A later change of a key in a batch replaces an earlier one.
    store.write(&batch(&[(1, "a", Some("x")), (1, "a", None), (1, "b", None), (1, "b", Some("y"))]), b"6").unwrap();
    assert_eq!(all(&*store, 1, ""), rows(&[("b", "y")]));
    assert_eq!(store.applied().unwrap().as_deref(), Some(&b"6"[..]));
    let mut visited = 0;
    let mut stop = |_: &[u8], _: &[u8]| {
        visited += 1;
        ControlFlow::Break(())
    };
    store.scan(1, b"", &mut stop).unwrap();
    assert_eq!(visited, 1);
}

fn a_checkpoint_replaces_the_store_of_another(states: &dyn StateStores, other: &dyn StateStores, dir: &Path) {
    let source = states.open(GROUP).unwrap();
    source.write(&batch(&[(1, "k", Some("from the snapshot"))]), b"70").unwrap();
    let checkpoint = dir.join("checkpoint");
    source.checkpoint(&checkpoint).unwrap();
    source.write(&batch(&[(1, "k", Some("later"))]), b"71").unwrap();
    assert_eq!(states.applied_of(&checkpoint).unwrap().as_deref(), Some(&b"70"[..]));

    let old = other.open(GROUP).unwrap();
    old.write(&batch(&[(1, "old", Some("row"))]), b"3").unwrap();
    let reader = old.clone();
    let staging = other.staging(GROUP).unwrap();
    assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 0);
    for file in std::fs::read_dir(&checkpoint).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), staging.join(file.file_name())).unwrap();
    }
    let new = other.replace(GROUP, old, &staging).unwrap();
    assert_eq!(all(&*new, 1, ""), rows(&[("k", "from the snapshot")]));
    assert_eq!(new.applied().unwrap().as_deref(), Some(&b"70"[..]));
    // Who still reads the old one is not disturbed.
    assert_eq!(all(&*reader, 1, ""), rows(&[("old", "row")]));
    drop((reader, new));
    let again = other.open(GROUP).unwrap();
    assert_eq!(again.applied().unwrap().as_deref(), Some(&b"70"[..]));
    drop(again);
    other.destroy(GROUP).unwrap();
    assert_eq!(other.open(GROUP).unwrap().applied().unwrap(), None);
}

#[test]
fn in_memory() {
    let dir = tempfile::tempdir().unwrap();
    rows_are_kept_by_table_in_order(&MemoryStates::new(dir.path()));
    let (a, b) = (MemoryStates::new(dir.path().join("a")), MemoryStates::new(dir.path().join("b")));
    a_checkpoint_replaces_the_store_of_another(&a, &b, dir.path());
}

#[test]
fn a_crash_forgets_what_was_not_flushed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = MemoryStates::new(dir.path());
    let store = disk.open(GROUP).unwrap();
    store.write(&batch(&[(1, "k", Some("flushed"))]), b"1").unwrap();
    store.flush().unwrap();
    store.write(&batch(&[(1, "k", Some("lost"))]), b"2").unwrap();
    let disk = disk.crash();
    store.flush().expect_err("the node is dead");
    let store = disk.open(GROUP).unwrap();
    assert_eq!(all(&*store, 1, ""), rows(&[("k", "flushed")]));
    assert_eq!(store.applied().unwrap().as_deref(), Some(&b"1"[..]));
}

#[cfg(feature = "rocksdb")]
mod on_disk {
    use quorate_raft::rocks::RocksStates;

    use super::*;

    #[test]
    fn on_rocksdb() {
        let dir = tempfile::tempdir().unwrap();
        rows_are_kept_by_table_in_order(&RocksStates::open(&dir.path().join("rows")).unwrap());
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let (a, b) = (RocksStates::open(&a).unwrap(), RocksStates::open(&b).unwrap());
        a_checkpoint_replaces_the_store_of_another(&a, &b, dir.path());
    }

    #[test]
    fn what_was_flushed_is_there_after_a_restart_with_its_applied_mark() {
        let dir = tempfile::tempdir().unwrap();
        let states = RocksStates::open(dir.path()).unwrap();
        let store = states.open(GROUP).unwrap();
        store.write(&batch(&[(1, "k", Some("v"))]), b"1").unwrap();
        store.flush().unwrap();
        drop((store, states));
        let store = RocksStates::open(dir.path()).unwrap().open(GROUP).unwrap();
        assert_eq!(all(&*store, 1, ""), rows(&[("k", "v")]));
        assert_eq!(store.applied().unwrap().as_deref(), Some(&b"1"[..]));
    }

    #[test]
    fn a_replacement_leaves_one_database_and_no_staging() {
        let dir = tempfile::tempdir().unwrap();
        let states = RocksStates::open(&dir.path().join("state")).unwrap();
        let names = || {
            let entries = std::fs::read_dir(dir.path().join("state/group-2")).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        let mut store = states.open(GROUP).unwrap();
        for round in 0..3 {
            store.write(&batch(&[(1, "k", Some("v"))]), format!("{round}").as_bytes()).unwrap();
            let staging = states.staging(GROUP).unwrap();
            store.checkpoint(&staging).unwrap();
            store = states.replace(GROUP, store, &staging).unwrap();
            assert_eq!(names(), [format!("db-{}", round + 2)]);
        }
        drop(store);
        // A snapshot that was being received when the node stopped is gone after the next start.
        states.staging(GROUP).unwrap();
        assert_eq!(names().len(), 2);
        let store = states.open(GROUP).unwrap();
        assert_eq!(names(), ["db-4"]);
        assert_eq!(store.applied().unwrap().as_deref(), Some(&b"2"[..]));
    }
}
