//! State stores in memory. What was not flushed is lost at a crash, as it is with RocksDB without its WAL.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fs_err as fs;
use parking_lot::Mutex;

use crate::ids::GroupId;
use crate::machine::{RowBatch, RowVisitor, StateStore, StateStores, Table};

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
    /// Rows that do not read back until they are written again.
    rotten: BTreeMap<GroupId, BTreeSet<(Table, Bytes)>>,
    life: u64,
    stagings: u64,
}

struct MemoryStore {
    states: MemoryStates,
    group: GroupId,
    current: Mutex<Arc<Rows>>,
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

    /// Makes one durable row of a group unreadable, as bit-rot does: every read that meets it fails until the row is written
    /// again, in this life and the next. `choose` says which, of so many. False if there is none.
    pub fn damage(&self, group: GroupId, choose: impl FnOnce(usize) -> usize) -> bool {
        let mut disk = self.disk.lock();
        let Some(rows) = disk.durable.get(&group).filter(|rows| !rows.rows.is_empty()) else { return false };
        let Some(key) = rows.rows.keys().nth(choose(rows.rows.len())).cloned() else { return false };
        disk.rotten.entry(group).or_default().insert(key);
        true
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
        Arc::new(MemoryStore { states: self.clone(), group, current: Mutex::new(rows) })
    }
}

impl StateStores for MemoryStates {
    fn open(&self, group: GroupId) -> io::Result<Arc<dyn StateStore>> {
        let rows = self.alive()?.durable.entry(group).or_default().clone();
        Ok(self.store(group, rows))
    }

    fn staging(&self, group: GroupId) -> io::Result<PathBuf> {
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
        drop(self.states.alive()?);
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
        let rows = self.rows()?;
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
    fn byte(rest: &mut &[u8]) -> io::Result<u8> {
        let mut one = [0];
        rest.read_exact(&mut one)?;
        Ok(one[0])
    }
    fn field(rest: &mut &[u8]) -> io::Result<Bytes> {
        let mut length = [0; 8];
        rest.read_exact(&mut length)?;
        let length = usize::try_from(u64::from_le_bytes(length)).map_err(io::Error::other)?;
        let Some((bytes, after)) = rest.split_at_checked(length) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        *rest = after;
        Ok(Bytes::copy_from_slice(bytes))
    }
    let bytes = fs::read(dir.join(CHECKPOINT_FILE))?;
    let mut rest = bytes.as_slice();
    let has_applied = byte(&mut rest)? == 1;
    let applied = field(&mut rest)?;
    let mut rows = Rows { applied: has_applied.then_some(applied), ..Rows::default() };
    while !rest.is_empty() {
        let table = byte(&mut rest)?;
        let key = field(&mut rest)?;
        let value = field(&mut rest)?;
        rows.rows.insert((table, key), value);
    }
    Ok(rows)
}
