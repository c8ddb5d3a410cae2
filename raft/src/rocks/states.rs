//! The state databases: one for each group, sharing one block cache and one limit on memory for writes.
//!
//! A group has the directory `group-N`, and in it `db-K` with the highest K is its database. A snapshot is installed by one
//! rename to the next K, so a crash leaves either the old database or the new one. Lower ones, and what was being received,
//! are removed when the group is opened.
//!
//! There is no write-ahead log: what was not flushed is applied again from the Raft log. One column family holds all tables,
//! so a flush is atomic over them.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use fs_err as fs;
use parking_lot::Mutex;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Options, ReadOptions, WriteBatch, WriteBufferManager, WriteOptions,
};

use crate::ids::GroupId;
use crate::machine::{Reread, RowBatch, RowVisitor, StateStore, StateStores, Table};
use crate::rocks::cold::Cold;
use crate::rocks::{base_options, failed, framing, sync_dir};

/// Blocks of all groups together.
const CACHE_BYTES: usize = 32 << 20;
/// Memory for writes of all groups together; beyond it the fullest group is flushed.
const WRITES_BYTES: usize = 64 << 20;
/// Memory for writes of one group.
const MEMTABLE_BYTES: usize = 16 << 20;
/// The unit in which that memory is taken, so that an idle group has little.
const ARENA_BYTES: usize = 256 << 10;
/// The table number of the applied mark; a machine's own are below 200.
const APPLIED: &[u8] = &[u8::MAX];

const DATABASE: &str = "db-";
const STAGING: &str = "staging-";

/// The state databases of a node.
pub struct RocksStates {
    root: PathBuf,
    options: Options,
    stagings: AtomicU64,
    /// The directories of the open databases.
    open: Mutex<BTreeMap<GroupId, Weak<Home>>>,
}

/// The directory of a database. Removed when its database is closed, if another one has replaced it.
struct Home {
    dir: PathBuf,
    replaced: AtomicBool,
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.replaced.load(Ordering::Acquire)
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(%error, "a replaced state database could not be removed; the next start tries again");
        }
    }
}

impl RocksStates {
    /// Uses a directory for the databases of all groups, and creates it if it is not there.
    pub fn open(root: &Path) -> io::Result<RocksStates> {
        fs::create_dir_all(root)?;
        Ok(RocksStates {
            root: root.to_owned(),
            options: options(),
            stagings: AtomicU64::new(0),
            open: Mutex::default(),
        })
    }

    fn group_dir(&self, group: GroupId) -> PathBuf {
        self.root.join(format!("group-{}", group.0))
    }

    /// The numbers of a group's databases, the current one last.
    fn generations(&self, group: GroupId) -> io::Result<Vec<u64>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.group_dir(group))? {
            let name = entry?.file_name();
            if let Some(number) = name.to_str().and_then(|name| name.strip_prefix(DATABASE)) {
                found.extend(number.parse::<u64>().ok());
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn open_generation(&self, group: GroupId, generation: u64) -> io::Result<Arc<dyn StateStore>> {
        let dir = self.group_dir(group).join(format!("{DATABASE}{generation}"));
        let store = RocksState::open(&self.options, dir)?;
        self.open.lock().insert(group, Arc::downgrade(&store.home));
        Ok(Arc::new(store))
    }

    /// Removes what was being received when the node stopped.
    fn remove_stagings(&self, group: GroupId) -> io::Result<()> {
        for entry in fs::read_dir(self.group_dir(group))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(STAGING) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

fn options() -> Options {
    let cache = Cache::new_lru_cache(CACHE_BYTES);
    let mut options = base_options();
    options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager(WRITES_BYTES, false));
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_arena_block_size(ARENA_BYTES);
    options.set_atomic_flush(true);
    options.set_max_open_files(256);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_zero_slowdown_writes_trigger(24);
    options.set_level_zero_stop_writes_trigger(48);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_bloom_filter(10.0, false);
    table.set_block_size(16 << 10);
    options.set_block_based_table_factory(&table);
    options
}

impl StateStores for RocksStates {
    fn open(&self, group: GroupId) -> io::Result<Arc<dyn StateStore>> {
        let dir = self.group_dir(group);
        fs::create_dir_all(&dir)?;
        sync_dir(&self.root)?;
        self.remove_stagings(group)?;
        let mut generations = self.generations(group)?;
        let current = generations.pop().unwrap_or(1);
        for old in generations {
            fs::remove_dir_all(dir.join(format!("{DATABASE}{old}")))?;
        }
        let store = self.open_generation(group, current)?;
        sync_dir(&dir)?;
        Ok(store)
    }

    fn holds(&self, group: GroupId) -> bool {
        self.group_dir(group).exists()
    }

    fn staging(&self, group: GroupId) -> io::Result<PathBuf> {
        let number = self.stagings.fetch_add(1, Ordering::Relaxed);
        let dir = self.group_dir(group).join(format!("{STAGING}{number}"));
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    fn replace(&self, group: GroupId, old: Arc<dyn StateStore>, from: &Path) -> io::Result<Arc<dyn StateStore>> {
        for entry in fs::read_dir(from)? {
            fs::File::open(entry?.path())?.sync_all()?;
        }
        sync_dir(from)?;
        let dir = self.group_dir(group);
        let last = self.generations(group)?.pop().unwrap_or(0);
        let next = last + 1;
        fs::rename(from, dir.join(format!("{DATABASE}{next}")))?;
        // From here on a restart opens the new one.
        sync_dir(&dir)?;
        // Whoever still reads the old database keeps its files until it lets go of it.
        if let Some(home) = self.open.lock().get(&group).and_then(Weak::upgrade) {
            home.replaced.store(true, Ordering::Release);
        }
        drop(old);
        self.open_generation(group, next)
    }

    fn verify(&self, checkpoint: &Path) -> io::Result<()> {
        framing::guard(checkpoint)?;
        let db = DB::open_for_read_only(&self.options, checkpoint, false).map_err(failed)?;
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let mut iterator = db.raw_iterator_opt(options);
        iterator.seek_to_first();
        while iterator.valid() {
            iterator.next();
        }
        iterator.status().map_err(failed)
    }

    fn applied_of(&self, checkpoint: &Path) -> io::Result<Option<Bytes>> {
        framing::guard(checkpoint)?;
        let db = DB::open_for_read_only(&self.options, checkpoint, false).map_err(failed)?;
        applied(&db)
    }

    fn destroy(&self, group: GroupId) -> io::Result<()> {
        let dir = self.group_dir(group);
        // A half-deleted directory must not look like a database after a crash. One that a crash has left goes now.
        let doomed = self.root.join(format!("destroyed-{}", group.0));
        if doomed.exists() {
            fs::remove_dir_all(&doomed)?;
        }
        if dir.exists() {
            fs::rename(&dir, &doomed)?;
            sync_dir(&self.root)?;
            fs::remove_dir_all(&doomed)?;
        }
        Ok(())
    }
}

/// The state database of one group.
struct RocksState {
    // Before `home`: they are closed before its directory goes.
    cold: Cold,
    db: DB,
    home: Arc<Home>,
    write: WriteOptions,
}

fn row_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(1 + key.len());
    full.push(table);
    full.extend_from_slice(key);
    full
}

fn applied(db: &DB) -> io::Result<Option<Bytes>> {
    let value = db.get_pinned(APPLIED).map_err(failed)?;
    Ok(value.map(|value| Bytes::copy_from_slice(&value)))
}

impl RocksState {
    fn open(options: &Options, dir: PathBuf) -> io::Result<RocksState> {
        framing::guard(&dir)?;
        let db = DB::open(options, &dir).map_err(failed)?;
        let mut write = WriteOptions::default();
        write.disable_wal(true);
        Ok(RocksState {
            cold: Cold::new(options),
            db,
            home: Arc::new(Home { dir, replaced: AtomicBool::new(false) }),
            write,
        })
    }
}

impl StateStore for RocksState {
    fn get(&self, table: Table, key: &[u8]) -> io::Result<Option<Bytes>> {
        let value = self.db.get_pinned(row_key(table, key)).map_err(failed)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn get_many(&self, table: Table, keys: &[&[u8]]) -> io::Result<Vec<Option<Bytes>>> {
        let keys: Vec<Vec<u8>> = keys.iter().map(|key| row_key(table, key)).collect();
        let values = self.db.multi_get(&keys);
        values.into_iter().map(|value| Ok(value.map_err(failed)?.map(Bytes::from))).collect()
    }

    fn scan(&self, table: Table, from: &[u8], visit: &mut RowVisitor<'_>) -> io::Result<()> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(vec![table + 1]);
        options.fill_cache(false);
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek(row_key(table, from));
        while let Some((key, value)) = iterator.item() {
            if visit(&key[1..], value) == ControlFlow::Break(()) {
                return Ok(());
            }
            iterator.next();
        }
        iterator.status().map_err(failed)
    }

    fn write(&self, rows: &RowBatch, mark: &[u8]) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        let mut full = Vec::new();
        for (table, key, value) in &rows.changes {
            full.clear();
            full.push(*table);
            full.extend_from_slice(key);
            match value {
                Some(value) => batch.put(&full, value),
                None => batch.delete(&full),
            }
        }
        batch.put(APPLIED, mark);
        self.db.write_opt(batch, &self.write).map_err(failed)
    }

    fn applied(&self) -> io::Result<Option<Bytes>> {
        applied(&self.db)
    }

    fn flush(&self) -> io::Result<()> {
        self.db.flush().map_err(failed)
    }

    fn checkpoint(&self, dir: &Path) -> io::Result<()> {
        if dir.exists() {
            // RocksDB wants to make it; this refuses one that is not empty.
            fs::remove_dir(dir)?;
        }
        // Flushes, because nothing of the memtables is in a WAL.
        Checkpoint::new(&self.db).and_then(|checkpoint| checkpoint.create_checkpoint(dir)).map_err(failed)?;
        for entry in fs::read_dir(dir)? {
            fs::File::open(entry?.path())?.sync_all()?;
        }
        sync_dir(dir)?;
        match dir.parent() {
            Some(parent) => sync_dir(parent),
            None => Ok(()),
        }
    }

    fn reread(&self, from: &[u8], max_bytes: usize) -> io::Result<Reread> {
        self.cold.reread(&self.db, &self.home.dir, from, max_bytes)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    #[test]
    fn what_a_deletion_left_that_was_cut_off_goes_with_the_next() {
        let root = tempfile::tempdir().unwrap();
        let states = RocksStates::open(root.path()).unwrap();
        let left = root.path().join("destroyed-5");
        fs::create_dir_all(left.join("old")).unwrap();
        assert!(!states.holds(GroupId(5)), "it is no database");
        states.destroy(GroupId(5)).unwrap();
        assert!(!left.exists());
        drop(states.open(GroupId(5)).unwrap());
        assert!(states.holds(GroupId(5)));
        fs::create_dir_all(&left).unwrap();
        states.destroy(GroupId(5)).unwrap();
        assert!(!left.exists() && !states.holds(GroupId(5)));
    }
}
