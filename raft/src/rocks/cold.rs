//! A second look at a database that is open: at what is on its disk, and not in memory.
//!
//! A block that is in the cache of the database, or in that of the operating system, is read from there, and a disk that has
//! lost it meanwhile is not asked. So who looks for damage opens the same files once more, to read only, without a cache and
//! past that of the system. This also reads what no row needs: the manifest, and the indexes and filters of the tables.
//!
//! The database goes on meanwhile, and a look that began before a compaction ended misses the files that it removed. So a
//! file that is missed counts only if the database itself still counts on it, and other damage only if every one of several
//! looks, each opened anew, comes to it.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use fs_err as fs;
use parking_lot::Mutex;
use rocksdb::{BlockBasedOptions, DB, Options, ReadOptions};

use crate::health::is_damage;
use crate::machine::Reread;
use crate::rocks::{MISSING, failed, framing};

/// So much is read before the files are opened anew: those that are gone meanwhile take space as long as they are open.
const STRETCH_BYTES: u64 = 64 << 20;
/// Tables that are open at the same time; each has its index and filter in memory.
const OPEN_FILES: i32 = 16;
const READAHEAD_BYTES: usize = 256 << 10;
/// Damage must be met by so many looks.
const LOOKS: usize = 3;
/// The file that names the manifest.
const CURRENT: &str = "CURRENT";
/// What the system says where it has no direct reads.
const NO_DIRECT_READS: &str = "Invalid argument";

/// Looks at one database.
pub(super) struct Cold {
    options: Options,
    look: Mutex<Option<Look>>,
    /// Past the cache of the operating system, where it can.
    direct: AtomicBool,
}

struct Look {
    db: DB,
    bytes: u64,
}

impl Cold {
    /// For a database with these options.
    pub(super) fn new(options: &Options) -> Cold {
        let mut options = options.clone();
        let mut table = BlockBasedOptions::default();
        table.disable_cache();
        table.set_bloom_filter(10.0, false);
        options.set_block_based_table_factory(&table);
        options.set_max_open_files(OPEN_FILES);
        Cold { options, look: Mutex::default(), direct: AtomicBool::new(true) }
    }

    /// Reads what lies from a key on; `live` is the database that is open in `dir`.
    pub(super) fn reread(&self, live: &DB, dir: &Path, from: &[u8], max_bytes: usize) -> io::Result<Reread> {
        let mut look = self.look.lock();
        let mut met = None;
        for _ in 0..LOOKS {
            let error = match self.read(&mut look, dir, from, max_bytes) {
                Ok(reread) => return Ok(reread),
                Err(error) => error,
            };
            *look = None;
            if self.direct.load(Ordering::Relaxed) && error.to_string().contains(NO_DIRECT_READS) {
                self.direct.store(false, Ordering::Relaxed);
                return self.read(&mut look, dir, from, max_bytes);
            }
            if !is_damage(&error) {
                return Err(error);
            }
            let excused = error.to_string().contains(MISSING) && missing(live, dir)?.is_none();
            met = Some(if excused { io::Error::new(io::ErrorKind::ResourceBusy, error) } else { error });
        }
        Err(met.unwrap_or_else(|| io::ErrorKind::Other.into()))
    }

    fn read(&self, look: &mut Option<Look>, dir: &Path, from: &[u8], max_bytes: usize) -> io::Result<Reread> {
        if look.as_ref().is_some_and(|look| look.bytes >= STRETCH_BYTES) {
            *look = None;
        }
        let opened = match look {
            Some(opened) => opened,
            None => look.insert(self.open(dir)?),
        };
        let reread = opened.read(from, max_bytes)?;
        opened.bytes += reread.bytes;
        if reread.next.is_none() {
            *look = None;
        }
        Ok(reread)
    }

    fn open(&self, dir: &Path) -> io::Result<Look> {
        framing::guard_manifests(dir)?;
        let mut options = self.options.clone();
        options.set_use_direct_reads(self.direct.load(Ordering::Relaxed));
        let db = DB::open_for_read_only(&options, dir, false).map_err(failed)?;
        Ok(Look { db, bytes: 0 })
    }
}

impl Look {
    fn read(&self, from: &[u8], max_bytes: usize) -> io::Result<Reread> {
        let mut options = ReadOptions::default();
        options.set_readahead_size(READAHEAD_BYTES);
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek(from);
        let mut bytes = 0;
        while let Some((key, value)) = iterator.item() {
            if bytes >= max_bytes as u64 {
                return Ok(Reread { bytes, next: Some(Bytes::copy_from_slice(key)) });
            }
            bytes += (key.len() + value.len()) as u64;
            iterator.next();
        }
        iterator.status().map_err(failed)?;
        Ok(Reread { bytes, next: None })
    }
}

/// A file that the database counts on and that is not there. It stops counting on a file before it removes it.
fn missing(live: &DB, dir: &Path) -> io::Result<Option<String>> {
    let tables = || -> io::Result<Vec<String>> {
        let files = live.live_files().map_err(failed)?;
        Ok(files.into_iter().map(|file| file.name.trim_start_matches('/').to_owned()).collect())
    };
    let manifest = || match fs::read_to_string(dir.join(CURRENT)) {
        Ok(name) => Ok(name.trim().to_owned()),
        // Another one takes its place by a rename, so it is there at any moment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(CURRENT.to_owned()),
        Err(error) => Err(error),
    };
    let is_gone = |name: &String| !dir.join(name).exists();
    if let Some(gone) = tables()?.into_iter().find(is_gone)
        && tables()?.contains(&gone)
    {
        return Ok(Some(gone));
    }
    let current = manifest()?;
    Ok((is_gone(&current) && manifest()? == current).then_some(current))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use crate::ids::GroupId;
    use crate::machine::{RowBatch, StateStore, StateStores as _};
    use crate::rocks::RocksStates;

    use super::*;

    const GROUP: GroupId = GroupId(1);
    const CHUNK: usize = 10_000;

    fn write(store: &dyn StateStore, from: u64, to: u64) {
        // Bytes that do not compress, so that they take their place on the disk.
        let value = |at: u64| (0..400).map(|byte| crc32c::crc32c(&(at * 400 + byte).to_le_bytes()) as u8).collect();
        let row = |at: u64| (1, Bytes::copy_from_slice(&at.to_be_bytes()), Some(value(at)));
        store.write(&RowBatch { changes: (from..to).map(row).collect() }, &to.to_be_bytes()).unwrap();
    }

    /// Everything that is stored, and how many parts that were.
    fn reread_all(store: &dyn StateStore) -> io::Result<(u64, usize)> {
        let (mut bytes, mut parts, mut next) = (0, 0, Some(Bytes::new()));
        while let Some(from) = next {
            let reread = store.reread(&from, CHUNK)?;
            bytes += reread.bytes;
            parts += 1;
            next = reread.next;
        }
        Ok((bytes, parts))
    }

    fn written(dir: &Path) -> Arc<dyn StateStore> {
        let store = RocksStates::open(dir).unwrap().open(GROUP).unwrap();
        write(&*store, 0, 500);
        store.flush().unwrap();
        store
    }

    fn file(dir: &Path, part: &str) -> PathBuf {
        let files = std::fs::read_dir(dir.join("group-1/db-1")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.to_string_lossy().contains(part)).max().unwrap()
    }

    fn flip(path: &Path, at: usize) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn everything_is_read_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let store = written(dir.path());
        let (bytes, parts) = reread_all(&*store).unwrap();
        // 500 rows of a table, a key and a value, and the applied mark.
        assert_eq!(bytes, 500 * (1 + 8 + 400) + 1 + 8);
        assert!((bytes as usize / CHUNK..=bytes as usize / CHUNK + 2).contains(&parts), "{parts}");
    }

    #[test]
    fn rot_is_found_under_a_block_that_is_in_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let store = written(dir.path());
        let keys: Vec<[u8; 8]> = (0..500_u64).map(u64::to_be_bytes).collect();
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        store.get_many(1, &keys).unwrap();
        let table = file(dir.path(), ".sst");
        let bytes = std::fs::read(&table).unwrap().len();
        for at in [100, bytes / 2] {
            flip(&table, at);
            store.get_many(1, &keys).expect("what is in memory reads back");
            let error = reread_all(&*store).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            flip(&table, at);
            reread_all(&*store).expect("it is whole again");
        }
    }

    #[test]
    fn a_manifest_that_rots_and_a_table_that_is_gone_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = written(dir.path());
        let manifest = file(dir.path(), "MANIFEST-");
        for at in [6, 20] {
            flip(&manifest, at);
            assert_eq!(reread_all(&*store).unwrap_err().kind(), io::ErrorKind::InvalidData, "byte {at}");
            flip(&manifest, at);
            reread_all(&*store).unwrap();
        }
        std::fs::remove_file(file(dir.path(), ".sst")).unwrap();
        assert_eq!(reread_all(&*store).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_current_file_that_is_gone_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = written(dir.path());
        std::fs::remove_file(file(dir.path(), CURRENT)).unwrap();
        assert_eq!(reread_all(&*store).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_written_and_compacted_meanwhile_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let store = written(dir.path());
        let rounds = AtomicU64::new(0);
        let (mut passes, mut failures) = (0, Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..150 {
                    write(&*store, round * 7, round * 7 + 300);
                    // Each flush makes a table, and every few of them are compacted into others.
                    store.flush().unwrap();
                    rounds.store(round, Ordering::Release);
                }
            });
            while rounds.load(Ordering::Acquire) < 149 {
                failures.extend(reread_all(&*store).err().filter(is_damage));
                passes += 1;
            }
        });
        assert!(failures.is_empty(), "{failures:?}");
        assert!(passes > 3, "{passes}");
        assert!(reread_all(&*store).unwrap().0 > 1_000 * 400);
    }
}
