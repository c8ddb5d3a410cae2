//! The log database.
//!
//! One column family. A key is the group (4 bytes), the kind (1 byte) and the position (8 bytes), big endian, so that the
//! records of a group lie together in the order of the log; a mark has its own kind and position 0.
//!
//! Records are written once and deleted in ranges soon after, most of them before they ever leave the memtable. What the
//! memtable spilled and a purge has covered goes away by compaction: a small level 0, and a compaction of the purged range
//! whenever a purge leaves much behind. (Dropping whole files would be cheaper, but it does not look at what is in them: one
//! that came late could drop the records of a new log of the same group.)

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use bytes::Bytes;
use fs_err as fs;
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, ReadOptions, WriteBatch, WriteOptions};

use crate::engine::{LogChange, LogEngine, MarkKind};
use crate::health::is_damage;
use crate::ids::GroupId;
use crate::rocks::{base_options, failed, framing, sync_dir};

const KEY_BYTES: usize = 13;
/// The kind of records; marks have the smaller numbers of [`MarkKind`].
const RECORD: u8 = 16;
/// Memory that takes the writes, and the size of the WAL at which it is spilled.
const MEMTABLE_BYTES: usize = 32 << 20;
const CACHE_BYTES: usize = 4 << 20;
/// A file in the directory that says that the database is damaged.
const CONDEMNED: &str = "DAMAGED";
/// After a purge, more than this in files is compacted.
const LEFT_BYTES: u64 = 64 << 20;
const READAHEAD_BYTES: usize = 256 << 10;
/// What the database says on a file system that has no direct reads.
const NO_DIRECT_READS: &str = "Direct I/O is not supported";

type Key = [u8; KEY_BYTES];

fn key(group: GroupId, kind: u8, position: u64) -> Key {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&group.0.to_be_bytes());
    key[4] = kind;
    key[5..].copy_from_slice(&position.to_be_bytes());
    key
}

fn record_key(group: GroupId, position: u64) -> Key {
    key(group, RECORD, position)
}

/// The first key after all records of a group.
fn after_records(group: GroupId) -> Key {
    key(group, RECORD + 1, 0)
}

fn parse(key: &[u8]) -> io::Result<(GroupId, u8, u64)> {
    let strange =
        || io::Error::new(io::ErrorKind::InvalidData, format!("the log database has a strange key {key:02x?}"));
    let (group, rest) = key.split_first_chunk::<4>().ok_or_else(strange)?;
    let (kind, position) = rest.split_first().ok_or_else(strange)?;
    let position: [u8; 8] = position.try_into().map_err(|_| strange())?;
    Ok((GroupId(u32::from_be_bytes(*group)), *kind, u64::from_be_bytes(position)))
}

/// The durable log database. Every commit is one write and one fsync of its WAL.
pub struct RocksLog {
    db: Arc<DB>,
    dir: PathBuf,
    sync: WriteOptions,
    syncs: AtomicU64,
    /// Tells the thread that frees space what was purged; dropped first to end it.
    purged: Option<mpsc::Sender<(GroupId, u64)>>,
    reclaimer: Option<JoinHandle<()>>,
}

impl RocksLog {
    /// Opens the database in a directory, or creates both.
    ///
    /// From the first damaged write in the WAL on nothing is read: a power cut leaves the last writes cut off, and not in
    /// order. Whether anything is missing that was acknowledged is for the floor to say, which knows it for each group.
    ///
    /// # Errors
    /// Of kind `InvalidData` if the database is damaged as a whole, or was found to be when it was used last.
    pub fn open(dir: &Path) -> io::Result<RocksLog> {
        fs::create_dir_all(dir)?;
        if let Ok(found) = fs::read_to_string(dir.join(CONDEMNED)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it was found to be damaged: {found}")));
        }
        framing::guard(dir)?;
        let db = Arc::new(open_database(dir).map_err(failed)?);
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        let (purged, queue) = mpsc::channel();
        let shared = db.clone();
        let reclaimer =
            std::thread::Builder::new().name("log-reclaim".into()).spawn(move || run_reclaimer(&shared, &queue))?;
        let dir = dir.to_owned();
        Ok(RocksLog { db, dir, sync, syncs: AtomicU64::new(0), purged: Some(purged), reclaimer: Some(reclaimer) })
    }

    /// Notes that the database takes no more writes because it is damaged, so that it is not opened once more only to fail
    /// again. Where even that fails, the next start comes to the same end.
    fn condemn(&self, error: &io::Error) {
        let note = || {
            fs::write(self.dir.join(CONDEMNED), error.to_string())?;
            fs::File::open(self.dir.join(CONDEMNED))?.sync_all()?;
            sync_dir(&self.dir)
        };
        if let Err(failed) = note() {
            tracing::error!(error = %failed, "the damage of the log database could not be noted");
        }
    }

    /// Commits made durable so far, each with one fsync.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Frees the space of everything that was purged, at once and whatever it costs. For tests and maintenance: after each
    /// purge a thread does this by itself where it pays.
    pub fn reclaim(&self) {
        self.db.compact_range::<&[u8], &[u8]>(None, None);
    }
}

/// Opens the database so that reads go past the cache of the operating system, where they can: what is read of a log is read
/// once, and a record that the disk has lost must not seem to be there because it was written not long ago.
fn open_database(dir: &Path) -> Result<DB, rocksdb::Error> {
    let mut options = options();
    options.set_use_direct_reads(true);
    DB::open(&options, dir).or_else(|error| {
        if !error.as_ref().contains(NO_DIRECT_READS) {
            return Err(error);
        }
        options.set_use_direct_reads(false);
        DB::open(&options, dir)
    })
}

/// For reads that leave nothing in the block cache, for the same reason.
fn read_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options
}

fn options() -> rocksdb::Options {
    let mut options = base_options();
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_write_buffer_number(3);
    // There is one writer: nothing is gained by letting writers help one another.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_write_thread_adaptive_yield(false);
    options.set_level_zero_file_num_compaction_trigger(2);
    options.set_level_zero_slowdown_writes_trigger(24);
    options.set_level_zero_stop_writes_trigger(48);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
    table.set_block_size(32 << 10);
    options.set_block_based_table_factory(&table);
    options
}

/// Waits for purges and frees the space they left, until the database is closed.
fn run_reclaimer(db: &DB, queue: &mpsc::Receiver<(GroupId, u64)>) {
    while let Ok((group, upto)) = queue.recv() {
        let left = db.property_int_value(rocksdb::properties::TOTAL_SST_FILES_SIZE).ok().flatten().unwrap_or(0);
        if left > LEFT_BYTES {
            db.compact_range(Some(record_key(group, 0)), Some(record_key(group, upto)));
        }
    }
}

impl Drop for RocksLog {
    fn drop(&mut self) {
        drop(self.purged.take());
        self.db.cancel_all_background_work(false);
        if let Some(thread) = self.reclaimer.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that frees purged log space panicked");
        }
    }
}

impl LogEngine for RocksLog {
    fn commit(&self, changes: &[LogChange]) -> io::Result<()> {
        let bytes: usize = changes
            .iter()
            .map(|change| match change {
                LogChange::Append { record, .. } => record.len() + 2 * KEY_BYTES,
                _ => 4 * KEY_BYTES,
            })
            .sum();
        let mut batch = WriteBatch::with_capacity_bytes(bytes);
        for change in changes {
            match change {
                LogChange::Append { group, position, record } => batch.put(record_key(*group, *position), record),
                LogChange::Truncate { group, from } => {
                    batch.delete_range(record_key(*group, *from), after_records(*group));
                }
                LogChange::Purge { group, upto } => {
                    batch.delete_range(record_key(*group, 0), record_key(*group, upto.saturating_add(1)));
                }
                LogChange::Mark { group, kind, value } => batch.put(key(*group, *kind as u8, 0), value),
                LogChange::Destroy { group } => batch.delete_range(key(*group, 0, 0), key(*group, u8::MAX, u64::MAX)),
            }
        }
        let sync = &self.sync;
        #[cfg(feature = "planted")]
        let unsynced = WriteOptions::default();
        #[cfg(feature = "planted")]
        let sync = if crate::planted::is("unsynced-log") { &unsynced } else { sync };
        self.db.write_opt(batch, sync).map_err(failed).inspect_err(|error| {
            if is_damage(error) {
                self.condemn(error);
            }
        })?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if let Some(purged) = &self.purged {
            for change in changes {
                let (group, upto) = match change {
                    LogChange::Purge { group, upto } => (*group, *upto),
                    LogChange::Destroy { group } => (*group, u64::MAX),
                    _ => continue,
                };
                // The receiver lives as long as this engine.
                purged.send((group, upto)).ok();
            }
        }
        Ok(())
    }

    fn read(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<(u64, Bytes)>> {
        let mut records = Vec::new();
        if from >= to {
            return Ok(records);
        }
        let mut options = read_options();
        options.set_iterate_upper_bound(if to == u64::MAX { after_records(group) } else { record_key(group, to) });
        options.set_readahead_size(max_bytes.min(READAHEAD_BYTES));
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek(record_key(group, from));
        let mut bytes = 0;
        while let Some((key, value)) = iterator.item() {
            bytes += value.len();
            if !records.is_empty() && bytes > max_bytes {
                break;
            }
            let (_, _, position) = parse(key)?;
            records.push((position, Bytes::copy_from_slice(value)));
            iterator.next();
        }
        iterator.status().map_err(failed)?;
        Ok(records)
    }

    fn last(&self, group: GroupId) -> io::Result<Option<(u64, Bytes)>> {
        let mut options = read_options();
        options.set_iterate_lower_bound(record_key(group, 0));
        options.set_iterate_upper_bound(after_records(group));
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek_to_last();
        let last = match iterator.item() {
            Some((key, value)) => Some((parse(key)?.2, Bytes::copy_from_slice(value))),
            None => None,
        };
        iterator.status().map_err(failed)?;
        Ok(last)
    }

    fn mark(&self, group: GroupId, kind: MarkKind) -> io::Result<Option<Bytes>> {
        let value = self.db.get_pinned_opt(key(group, kind as u8, 0), &read_options()).map_err(failed)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn groups(&self) -> io::Result<Vec<GroupId>> {
        let mut groups = Vec::new();
        let mut iterator = self.db.raw_iterator_opt(read_options());
        iterator.seek_to_first();
        while let Some((found, _)) = iterator.item() {
            let (group, _, _) = parse(found)?;
            groups.push(group);
            let Some(next) = group.0.checked_add(1) else { break };
            iterator.seek(key(GroupId(next), 0, 0));
        }
        iterator.status().map_err(failed)?;
        Ok(groups)
    }

    /// Nothing but the write-ahead log keeps what is in memory, and while the process lives nobody reads that.
    fn spill(&self) -> io::Result<()> {
        self.db.flush().map_err(failed)
    }
}
