//! State stores in memory. What was not flushed is lost at a crash, as it is with RocksDB without its WAL.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use fs_err as fs;
use parking_lot::Mutex;

use crate::ids::GroupId;
use crate::machine::{Reread, RowBatch, RowVisitor, StateStore, StateStores, Table};
use crate::snapshot::decode_mark;

/// The one file of a checkpoint.
const CHECKPOINT_FILE: &str = "rows";

#[derive(Clone, Default)]
struct Rows {
    rows: BTreeMap<(Table, Bytes), Bytes>,
    applied: Option<Bytes>,
}

fn rotten() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the simulated disk holds another block here than was written")
}

/// State stores of one node in memory. Checkpoints and received snapshots are real files below the scratch directory.
#[derive(Clone)]
pub struct MemoryStates {
    disk: Arc<Mutex<Disk>>,
    scratch: PathBuf,
    /// The life of the node that uses this handle; the disk refuses a handle of an earlier life.
    life: u64,
}

#[derive(Default)]
struct Disk {
    durable: BTreeMap<GroupId, Arc<Rows>>,
    /// What the running node has written, flushed or not.
    written: BTreeMap<GroupId, Weak<Mutex<Arc<Rows>>>>,
    /// Rows that do not read back until they are written again.
    rotten: BTreeMap<GroupId, BTreeSet<(Table, Bytes)>>,
    life: u64,
    stagings: u64,
    full: bool,
    unreadable: bool,
}

struct MemoryStore {
    states: MemoryStates,
    group: GroupId,
    current: Arc<Mutex<Arc<Rows>>>,
}

impl MemoryStates {
    /// An empty disk. `scratch` must be a directory that nobody else uses.
    pub fn new(scratch: impl Into<PathBuf>) -> Self {
        MemoryStates { disk: Arc::default(), scratch: scratch.into(), life: 0 }
    }

    /// Kills the node: what was not flushed is lost and every handle so far fails from now on. Returns the handle for the
    /// next start.
    pub fn crash(&self) -> MemoryStates {
        let mut disk = self.disk.lock();
        disk.life += 1;
        MemoryStates { disk: self.disk.clone(), scratch: self.scratch.clone(), life: disk.life }
    }

    /// The same, but a database that flushes its memory when it likes had done so with this group just before.
    pub fn crash_flushed(&self, group: GroupId) -> MemoryStates {
        {
            let mut disk = self.disk.lock();
            if let Some(written) = disk.written.get(&group).and_then(Weak::upgrade) {
                let rows = written.lock().clone();
                disk.durable.insert(group, rows);
            }
        }
        self.crash()
    }

    /// Lets the disk take nothing more from the node that uses it, which is about to be killed.
    pub fn cut_off(&self) {
        self.disk.lock().life += 1;
    }

    /// While the disk is full every flush, checkpoint and received snapshot fails.
    pub fn set_full(&self, full: bool) {
        self.disk.lock().full = full;
    }

    /// While the disk is unreadable every read of rows fails, and says nothing about what they are; writes go on.
    pub fn set_unreadable(&self, unreadable: bool) {
        self.disk.lock().unreadable = unreadable;
    }

    /// The groups that have something stored.
    pub fn groups(&self) -> Vec<GroupId> {
        self.disk.lock().durable.keys().copied().collect()
    }

    /// The position that the durable rows of a group reflect.
    pub fn flushed_position(&self, group: GroupId) -> Option<u64> {
        let disk = self.disk.lock();
        let applied = disk.durable.get(&group)?.applied.clone();
        position_of_mark(applied.as_deref())
    }

    /// Looks at what the running node has written of a group, flushed or not: returns the position that it reflects, and what
    /// `look` says of its rows, which come in order. `None` if the group does not run.
    pub fn written<R>(
        &self,
        group: GroupId,
        look: impl FnOnce(&mut dyn Iterator<Item = (Table, &Bytes, &Bytes)>) -> R,
    ) -> Option<(Option<u64>, R)> {
        let written = self.disk.lock().written.get(&group).and_then(Weak::upgrade)?;
        let rows = written.lock().clone();
        let looked = look(&mut rows.rows.iter().map(|((table, key), value)| (*table, key, value)));
        Some((position_of_mark(rows.applied.as_deref()), looked))
    }

    fn has_room(&self) -> io::Result<()> {
        if self.alive()?.full {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full"));
        }
        Ok(())
    }

    /// Makes one durable row of a group unreadable, as bit-rot does: every read that meets it fails until the row is written
    /// again, in this life and the next. `choose` says which, of so many. False if there is none.
    pub fn damage(&self, group: GroupId, choose: impl FnOnce(usize) -> usize) -> bool {
        let mut disk = self.disk.lock();
        let Some(rows) = disk.durable.get(&group).filter(|rows| !rows.rows.is_empty()) else { return false };
        let Some(key) = rows.rows.keys().nth(choose(rows.rows.len())).cloned() else { return false };
        disk.rotten.entry(group).or_default().insert(key);
        true
    }

    /// Changes the durable rows of a group behind everybody's back: what comes of it reads back well, and is wrong. `None` if
    /// there are none.
    pub fn alter<R>(
        &self,
        group: GroupId,
        change: impl FnOnce(&mut BTreeMap<(Table, Bytes), Bytes>) -> R,
    ) -> Option<R> {
        let mut disk = self.disk.lock();
        let rows = disk.durable.get_mut(&group).filter(|rows| !rows.rows.is_empty())?;
        Some(change(&mut Arc::make_mut(rows).rows))
    }

    /// Whether rows of a group do not read back.
    pub fn is_rotten(&self, group: GroupId) -> bool {
        self.disk.lock().rotten.get(&group).is_some_and(|rows| !rows.is_empty())
    }

    /// Loses the durable state of a group, as if its directory had been deleted. False if there is none.
    pub fn lose(&self, group: GroupId) -> bool {
        let mut disk = self.disk.lock();
        disk.rotten.remove(&group);
        disk.durable.remove(&group).is_some()
    }

    fn alive(&self) -> io::Result<parking_lot::MutexGuard<'_, Disk>> {
        let disk = self.disk.lock();
        if disk.life == self.life {
            Ok(disk)
        } else {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, "the simulated node has crashed"))
        }
    }

    fn store(&self, group: GroupId, rows: Arc<Rows>) -> Arc<dyn StateStore> {
        let current = Arc::new(Mutex::new(rows));
        self.disk.lock().written.insert(group, Arc::downgrade(&current));
        Arc::new(MemoryStore { states: self.clone(), group, current })
    }
}

fn position_of_mark(applied: Option<&[u8]>) -> Option<u64> {
    decode_mark(applied).ok()?.last_log_id.map(|at| at.index)
}

impl StateStores for MemoryStates {
    fn open(&self, group: GroupId) -> io::Result<Arc<dyn StateStore>> {
        let rows = self.alive()?.durable.entry(group).or_default().clone();
        Ok(self.store(group, rows))
    }

    fn holds(&self, group: GroupId) -> bool {
        self.alive().is_ok_and(|disk| disk.durable.contains_key(&group))
    }

    fn staging(&self, group: GroupId) -> io::Result<PathBuf> {
        self.has_room()?;
        let number = {
            let mut disk = self.alive()?;
            disk.stagings += 1;
            disk.stagings
        };
        let dir = self.scratch.join(format!("staging-{}-{number}", group.0));
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    fn replace(&self, group: GroupId, old: Arc<dyn StateStore>, from: &Path) -> io::Result<Arc<dyn StateStore>> {
        let rows = Arc::new(read_checkpoint(from)?);
        drop(old);
        {
            let mut disk = self.alive()?;
            disk.durable.insert(group, rows.clone());
            disk.rotten.remove(&group);
        }
        fs::remove_dir_all(from)?;
        Ok(self.store(group, rows))
    }

    fn verify(&self, checkpoint: &Path) -> io::Result<()> {
        read_checkpoint(checkpoint).map(drop)
    }

    fn applied_of(&self, checkpoint: &Path) -> io::Result<Option<Bytes>> {
        Ok(read_checkpoint(checkpoint)?.applied)
    }

    fn destroy(&self, group: GroupId) -> io::Result<()> {
        let mut disk = self.alive()?;
        disk.durable.remove(&group);
        disk.rotten.remove(&group);
        Ok(())
    }
}

impl MemoryStore {
    fn rotten(&self) -> io::Result<BTreeSet<(Table, Bytes)>> {
        Ok(self.states.alive()?.rotten.get(&self.group).cloned().unwrap_or_default())
    }

    fn rows(&self) -> io::Result<Arc<Rows>> {
        if self.states.alive()?.unreadable {
            return Err(io::Error::other("the simulated disk cannot be read"));
        }
        Ok(self.current.lock().clone())
    }
}

impl StateStore for MemoryStore {
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        let (rows, at) = (self.rows()?, (table, Bytes::copy_from_slice(key)));
        if self.rotten()?.contains(&at) { Err(rotten()) } else { Ok(rows.rows.get(&at).cloned()) }
    }

    fn get_many(&self, table: Table, keys: &[&[u8]]) -> io::Result<Vec<Option<Bytes>>> {
        keys.iter().map(|key| self.get(table, key)).collect()
    }

    fn scan(&self, table: Table, from: &[u8], visit: &mut RowVisitor<'_>) -> io::Result<()> {
        let (rows, rot) = (self.rows()?, self.rotten()?);
        for ((at, key), value) in rows.rows.range((table, Bytes::copy_from_slice(from))..) {
            if *at == table && !rot.is_empty() && rot.contains(&(table, key.clone())) {
                return Err(rotten());
            }
            if *at != table || visit(key, value) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, batch: &RowBatch, applied: &[u8]) -> io::Result<()> {
        if let Some(rot) = self.states.alive()?.rotten.get_mut(&self.group) {
            rot.retain(|key| !batch.changes.iter().any(|(table, row, _)| (*table, row) == (key.0, &key.1)));
        }
        let mut current = self.current.lock();
        let rows = Arc::make_mut(&mut current);
        for (table, key, value) in &batch.changes {
            match value {
                Some(value) => rows.rows.insert((*table, key.clone()), value.clone()),
                None => rows.rows.remove(&(*table, key.clone())),
            };
        }
        rows.applied = Some(Bytes::copy_from_slice(applied));
        Ok(())
    }

    fn applied(&self) -> io::Result<Option<Bytes>> {
        Ok(self.rows()?.applied.clone())
    }

    fn flush(&self) -> io::Result<()> {
        self.states.has_room()?;
        let rows = self.current.lock().clone();
        self.states.alive()?.durable.insert(self.group, rows);
        Ok(())
    }

    fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        if !self.rotten()?.is_empty() {
            return Err(rotten());
        }
        self.flush()?;
        write_checkpoint(&*self.rows()?, dir)
    }

    /// Meets a row that does not read back also where another has taken its place that is not flushed: it lies on the disk.
    fn reread(&self, from: &[u8], max_bytes: usize) -> io::Result<Reread> {
        let (rows, rot) = (self.rows()?, self.rotten()?);
        let place = |(table, key): &(Table, Bytes)| Bytes::from([&[*table], &key[..]].concat());
        let begin = from.split_first().map(|(table, key)| (*table, Bytes::copy_from_slice(key))).unwrap_or_default();
        let (mut bytes, mut next) = (0, None);
        for (at, value) in rows.rows.range(begin.clone()..) {
            if bytes > 0 && bytes + value.len() as u64 > max_bytes as u64 {
                next = Some(at);
                break;
            }
            bytes += (at.1.len() + value.len()) as u64;
        }
        let is_met = |row: &(Table, Bytes)| *row >= begin && next.is_none_or(|next| row < next);
        if rot.iter().any(is_met) { Err(rotten()) } else { Ok(Reread { bytes, next: next.map(place) }) }
    }
}

fn write_checkpoint(rows: &Rows, dir: &Path) -> io::Result<()> {
    fn field(out: &mut Vec<u8>, bytes: &[u8]) {
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(bytes);
    }
    let mut out = Vec::new();
    out.push(u8::from(rows.applied.is_some()));
    field(&mut out, rows.applied.as_deref().unwrap_or_default());
    for ((table, key), value) in &rows.rows {
        out.push(*table);
        field(&mut out, key);
        field(&mut out, value);
    }
    fs::create_dir_all(dir)?;
    let mut file = fs::File::create(dir.join(CHECKPOINT_FILE))?;
    file.write_all(&out)?;
    file.sync_all()
}

fn read_checkpoint(dir: &Path) -> io::Result<Rows> {
    let bytes = fs::read(dir.join(CHECKPOINT_FILE))?;
    decode_checkpoint(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the checkpoint is cut off"))
}

fn decode_checkpoint(bytes: &[u8]) -> Option<Rows> {
    fn byte(rest: &mut &[u8]) -> Option<u8> {
        let (one, after) = rest.split_first()?;
        *rest = after;
        Some(*one)
    }
    fn field(rest: &mut &[u8]) -> Option<Bytes> {
        let (length, after) = rest.split_first_chunk::<8>()?;
        let (bytes, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        *rest = after;
        Some(Bytes::copy_from_slice(bytes))
    }
    let mut rest = bytes;
    let has_applied = byte(&mut rest)? == 1;
    let applied = field(&mut rest)?;
    let mut rows = Rows { applied: has_applied.then_some(applied), ..Rows::default() };
    while !rest.is_empty() {
        let table = byte(&mut rest)?;
        let key = field(&mut rest)?;
        let value = field(&mut rest)?;
        rows.rows.insert((table, key), value);
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(store: &dyn StateStore, key: &'static [u8]) {
        let changes = vec![(1, Bytes::from_static(key), Some(Bytes::from_static(b"value")))];
        store.write(&RowBatch { changes }, &[]).expect("alive");
    }

    fn has(store: &dyn StateStore, key: &[u8]) -> bool {
        store.get(1, key).expect("alive").is_some()
    }

    #[test]
    fn what_was_not_flushed_is_gone_after_a_crash() {
        let states = MemoryStates::new("unused");
        let group = GroupId(1);
        let store = states.open(group).expect("alive");
        write(&*store, b"flushed");
        store.flush().expect("room");
        write(&*store, b"not flushed");
        assert!(has(&*store, b"not flushed"));
        let next = states.crash();
        store.get(1, b"flushed").expect_err("a dead node reads nothing");
        store.flush().expect_err("a dead node flushes nothing");
        let store = next.open(group).expect("alive");
        assert!(has(&*store, b"flushed"));
        assert!(!has(&*store, b"not flushed"));
        write(&*store, b"lucky");
        let store = next.crash_flushed(group).open(group).expect("alive");
        assert!(has(&*store, b"lucky"), "a database may flush by itself");
    }

    #[test]
    fn a_full_disk_keeps_nothing_and_recovers() {
        let states = MemoryStates::new("unused");
        let store = states.open(GroupId(1)).expect("alive");
        write(&*store, b"a");
        states.set_full(true);
        assert_eq!(store.flush().expect_err("full").kind(), io::ErrorKind::StorageFull);
        states.set_full(false);
        store.flush().expect("room");
        assert!(has(&*states.crash().open(GroupId(1)).expect("alive"), b"a"));
    }
}
