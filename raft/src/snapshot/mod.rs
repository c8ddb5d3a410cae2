//! Snapshots: checkpoints of a state store, shipped as files.
//!
//! A checkpoint is a directory of files that never change. Its manifest names each file with length and CRC32C. The
//! receiver puts the files into a staging directory, checks each against the manifest, syncs them, and only a whole
//! set is installed; what it has verified survives a broken connection, so the next attempt sends only the rest.

mod receive;
mod send;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use prost::Message as _;

pub(crate) use receive::{Receiving, receive_snapshot};
pub(crate) use send::send_snapshot;

use crate::ids::{GroupId, ReplicaId};
use crate::machine::StateStores;
use crate::proto;
use crate::types::{LeaderId, LogId, Member, StoredMembership};

/// Bytes of a file in one message.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// A checkpoint with the place in the log that it reflects.
pub(crate) type Snapshot = openraft::Snapshot<LeaderId, ReplicaId, Member, Arc<Checkpoint>>;
/// That place, and the members there.
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, ReplicaId, Member>;

/// A directory of immutable files. It goes with its last user, unless it is kept.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    dir: PathBuf,
    manifest: Mutex<Option<Arc<[proto::SnapshotFile]>>>,
    verified: AtomicBool,
    standing: Mutex<Standing>,
}

/// Whether a checkpoint outlives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It goes with its last user.
    Loose,
    /// It stays, and a marker beside it says so to the next process.
    Kept,
    /// It goes with its last user, and is never kept again.
    Forgotten,
}

impl Checkpoint {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Checkpoint::with(dir, Standing::Loose)
    }

    /// One that an earlier process has kept.
    pub(crate) fn kept(dir: PathBuf) -> Self {
        Checkpoint::with(dir, Standing::Kept)
    }

    /// One that is not there, and is never confirmed.
    pub(crate) fn absent() -> Self {
        Checkpoint::with(PathBuf::new(), Standing::Forgotten)
    }

    fn with(dir: PathBuf, standing: Standing) -> Self {
        let (manifest, verified, standing) = (Mutex::default(), AtomicBool::new(false), Mutex::new(standing));
        Checkpoint { dir, manifest, verified, standing }
    }

    /// Lets it outlive the process, durably. Does nothing to one that is to go.
    pub(crate) fn keep(&self) -> io::Result<()> {
        let mut standing = self.standing.lock();
        if *standing == Standing::Loose {
            File::create(marker(&self.dir))?.sync_all()?;
            sync_parent(&self.dir)?;
            *standing = Standing::Kept;
        }
        Ok(())
    }

    /// Lets it go with its last user.
    pub(crate) fn forget(&self) {
        let mut standing = self.standing.lock();
        if *standing == Standing::Kept {
            // The marker first: what is half deleted must not count. One that comes back after a crash marks a checkpoint that
            // is older than its log, or does not read, and the next start drops it.
            let _ = std::fs::remove_file(marker(&self.dir));
        }
        *standing = Standing::Forgotten;
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads all of it, once, or again after [`Checkpoint::doubt`].
    pub(crate) fn verify(&self, states: &dyn StateStores) -> io::Result<()> {
        if !self.verified.load(Ordering::Acquire) {
            states.verify(&self.dir)?;
            self.verified.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// What was read before may not be what is there now.
    pub(crate) fn doubt(&self) {
        *self.manifest.lock() = None;
        self.verified.store(false, Ordering::Release);
    }

    /// The files with their checksums, read once.
    pub(crate) fn manifest(&self) -> io::Result<Arc<[proto::SnapshotFile]>> {
        let mut manifest = self.manifest.lock();
        if let Some(manifest) = &*manifest {
            return Ok(manifest.clone());
        }
        let read: Arc<[_]> = read_manifest(&self.dir)?.into();
        *manifest = Some(read.clone());
        Ok(read)
    }

    /// Another checkpoint of the same files, which are linked and not copied.
    pub(crate) fn link(&self, dir: PathBuf) -> io::Result<Checkpoint> {
        fs_err::create_dir_all(&dir)?;
        let linked = Checkpoint::new(dir);
        for entry in fs_err::read_dir(&self.dir)? {
            let entry = entry?;
            fs_err::hard_link(entry.path(), linked.dir.join(entry.file_name()))?;
        }
        File::open(&linked.dir)?.sync_all()?;
        Ok(linked)
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        if *self.standing.lock() != Standing::Kept && !self.dir.as_os_str().is_empty() {
            // Installed ones have been renamed away; what stays behind otherwise goes at the next start.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn read_manifest(dir: &Path) -> io::Result<Vec<proto::SnapshotFile>> {
    let mut files = Vec::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    for entry in fs_err::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|name| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the checkpoint has a file of the name {name:?}"))
        })?;
        let mut file = File::open(entry.path())?;
        let (mut length, mut crc) = (0, 0);
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            length += read as u64;
            crc = crc32c::crc32c_append(crc, &buffer[..read]);
        }
        files.push(proto::SnapshotFile { name, length, crc });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// Says that the checkpoint of this directory outlives the process.
fn marker(dir: &Path) -> PathBuf {
    dir.with_extension(MARKER)
}

const MARKER: &str = "confirmed";

fn sync_parent(dir: &Path) -> io::Result<()> {
    let parent = dir.parent().ok_or_else(|| io::Error::other("a checkpoint has a parent directory"))?;
    File::open(parent)?.sync_all()
}

/// What is gone is gone: its last user in an earlier life of the node, in the same process, may be deleting it too.
fn removed(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Where the checkpoints of this node's groups are: `group-replica-number`, with the file `group-replica-number.confirmed`
/// beside those that outlive the process.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointDirs {
    root: PathBuf,
}

/// One for the process, not for the node: a node that is started again in the same process, as tests do, must not reuse
/// a name that a last user of the earlier one is about to delete.
static NEXT_CHECKPOINT: AtomicU64 = AtomicU64::new(0);

impl CheckpointDirs {
    /// Removes what an earlier process left in `root` and did not keep.
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        fs_err::create_dir_all(&root)?;
        for entry in fs_err::read_dir(&root)? {
            let path = entry?.path();
            if path.is_dir() {
                if !marker(&path).try_exists()? {
                    removed(fs_err::remove_dir_all(&path))?;
                }
            } else if !path.with_extension("").try_exists()? {
                removed(fs_err::remove_file(&path))?;
            }
        }
        Ok(CheckpointDirs { root })
    }

    /// A path where nothing is yet, in a directory that is there.
    pub(crate) fn next(&self, group: GroupId, replica: ReplicaId) -> io::Result<PathBuf> {
        // Somebody may have deleted it: that costs checkpoints, and is no damage of a state.
        fs_err::create_dir_all(&self.root)?;
        loop {
            let number = NEXT_CHECKPOINT.fetch_add(1, Ordering::Relaxed);
            let path = self.root.join(format!("{}{number}", prefix(group, Some(replica))));
            if !path.try_exists()? {
                return Ok(path);
            }
        }
    }

    /// The checkpoints of a replica that an earlier process has kept, in no order. What else there is of the group goes.
    pub(crate) fn kept(&self, group: GroupId, replica: ReplicaId) -> io::Result<Vec<PathBuf>> {
        let (own, all) = (prefix(group, Some(replica)), prefix(group, None));
        fs_err::create_dir_all(&self.root)?;
        let mut kept = Vec::new();
        for entry in fs_err::read_dir(&self.root)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !name.starts_with(&all) || !path.is_dir() {
                continue;
            }
            if name.starts_with(&own) && marker(&path).try_exists()? {
                kept.push(path);
            } else {
                Checkpoint::kept(path).forget();
            }
        }
        Ok(kept)
    }

    /// Deletes all checkpoints of a group, which does not run.
    pub(crate) fn destroy(&self, group: GroupId) -> io::Result<()> {
        // No replica has this id, so all of them belong to others.
        self.kept(group, ReplicaId::MAX).map(drop)
    }
}

fn prefix(group: GroupId, replica: Option<ReplicaId>) -> String {
    match replica {
        Some(replica) => format!("{group}-{replica:016x}-"),
        None => format!("{group}-"),
    }
}

/// Encodes what stands beside the rows of a state store.
pub(crate) fn encode_mark(at: Option<&LogId>, membership: &StoredMembership) -> Vec<u8> {
    proto::AppliedMark { at: at.map(Into::into), membership: Some(membership.into()) }.encode_to_vec()
}

/// Decodes what stands beside the rows of a state store; an empty store reflects nothing.
pub(crate) fn decode_mark(bytes: Option<&[u8]>) -> io::Result<SnapshotMeta> {
    let Some(bytes) = bytes else { return Ok(SnapshotMeta::default()) };
    let mark = proto::AppliedMark::decode(bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("the applied mark is damaged: {error}")))?;
    meta_of(mark)
}

pub(crate) fn meta_of(mark: proto::AppliedMark) -> io::Result<SnapshotMeta> {
    let membership = mark.membership.map(StoredMembership::try_from).transpose();
    let membership = membership.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(SnapshotMeta { last_log_id: mark.at.map(Into::into), last_membership: membership.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    const GROUP: GroupId = GroupId(3);
    const REPLICA: ReplicaId = 7;
    /// Who finds a directory gone is decided by chance, so it is tried often.
    const ROUNDS: usize = 20;
    const CHECKPOINTS: usize = 32;

    fn made(dirs: &CheckpointDirs) -> Checkpoint {
        let path = dirs.next(GROUP, REPLICA).expect("a name");
        fs_err::create_dir(&path).expect("nothing is there");
        fs_err::write(path.join("rows"), b"rows").expect("it is there");
        Checkpoint::new(path)
    }

    #[test]
    fn a_checkpoint_that_is_gone_already_is_no_error_where_it_is_destroyed() {
        let dir = tempfile::tempdir().expect("a directory");
        let dirs = CheckpointDirs::open(dir.path().join("checkpoints")).expect("a new directory");
        let (gone, there) = (made(&dirs), made(&dirs));
        gone.keep().expect("it is there");
        there.keep().expect("it is there");
        fs_err::remove_dir_all(gone.dir()).expect("somebody is faster");
        dirs.destroy(GROUP).expect("the other one is left to destroy");
        assert!(!there.dir().exists());
        fs_err::remove_dir_all(&dirs.root).expect("somebody takes them all");
        dirs.destroy(GROUP).expect("none is left to destroy");
        let refused = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(removed(fs_err::remove_dir_all(gone.dir())).is_ok() && removed(Err(refused)).is_err());
    }

    /// A node that is started again in the same process meets the last users of what its earlier life has left.
    #[test]
    fn who_clears_the_checkpoints_up_is_not_held_up_by_others_that_delete_them_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("checkpoints");
        let dirs = CheckpointDirs::open(root.clone()).expect("a new directory");
        for _ in 0..ROUNDS {
            let used: Vec<Checkpoint> = (0..CHECKPOINTS).map(|_| made(&dirs)).collect();
            let together = Barrier::new(3);
            thread::scope(|scope| {
                let clear = || {
                    together.wait();
                    CheckpointDirs::open(root.clone())
                };
                let cleared = [scope.spawn(clear), scope.spawn(clear)];
                together.wait();
                drop(used);
                for cleared in cleared {
                    cleared.join().expect("no panic").expect("what is gone is gone");
                }
            });
            assert_eq!(fs_err::read_dir(&root).expect("it is there").count(), 0);
        }
    }
}
