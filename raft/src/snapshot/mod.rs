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
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// A directory of immutable files, deleted with its last user.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    dir: PathBuf,
    manifest: OnceLock<Vec<proto::SnapshotFile>>,
    verified: OnceLock<()>,
}

impl Checkpoint {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Checkpoint { dir, manifest: OnceLock::new(), verified: OnceLock::new() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads all of it, once.
    pub(crate) fn verify(&self, states: &dyn StateStores) -> io::Result<()> {
        if self.verified.get().is_none() {
            states.verify(&self.dir)?;
            self.verified.get_or_init(|| ());
        }
        Ok(())
    }

    /// The files with their checksums, read once.
    pub(crate) fn manifest(&self) -> io::Result<&[proto::SnapshotFile]> {
        if let Some(manifest) = self.manifest.get() {
            return Ok(manifest);
        }
        let manifest = read_manifest(&self.dir)?;
        Ok(self.manifest.get_or_init(|| manifest))
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        // Installed ones have been renamed away; what stays behind otherwise goes at the next start.
        let _ = std::fs::remove_dir_all(&self.dir);
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

/// Where the checkpoints of this node's groups are made.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointDirs {
    root: PathBuf,
}

/// One for the process, not for the node: a node that is started again in the same process, as tests do, must not reuse
/// a name that a last user of the earlier one is about to delete.
static NEXT_CHECKPOINT: AtomicU64 = AtomicU64::new(0);

impl CheckpointDirs {
    /// Removes what an earlier process left in `root`: checkpoints are made anew when they are needed.
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        match fs_err::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs_err::create_dir_all(&root)?,
        }
        Ok(CheckpointDirs { root })
    }

    /// A path where nothing is yet.
    pub(crate) fn next(&self, group: GroupId) -> PathBuf {
        self.root.join(format!("{group}-{}", NEXT_CHECKPOINT.fetch_add(1, Ordering::Relaxed)))
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
