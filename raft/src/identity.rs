//! Who this node is: minted once, counted at every start, never taken from a host name.
//!
//! It is kept twice, each copy with a checksum: a node without its identity would be another node, and its disk useless.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, NodeId};

const FILE: &str = "identity.json";
const COPY: &str = "identity-copy.json";
/// Version 1 had no checksum.
const VERSION: u32 = 2;
/// What else a data directory holds that was used before.
const TRACES: [&str; 2] = ["floor", "log"];

/// The identity of a node, kept in its data directory.
///
/// - `node` is random, minted at the first start and never changed.
/// - `cluster` is set once, by `cluster init` or by joining, and never changed.
/// - `incarnation` grows by one at each start and is on disk before [`Identity::open`] returns, so peers can refuse
///   what an earlier process of this node, or a copy of its directory, still says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// The cluster, once there is one.
    pub cluster: Option<ClusterId>,
    /// Which start of the node this is, from 1.
    pub incarnation: u64,
    /// Where it is kept; `None` for one that a simulation keeps itself.
    dir: Option<PathBuf>,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file could not be read or written.
    #[error("cannot read or write {path}: {source}; check that the data directory exists and belongs to this user")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there and does not say what it must.
    #[error(
        "{path} is damaged ({reason}); restore it from a backup, or empty the data directory and join the node again as a new one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The directory belongs to another cluster.
    #[error(
        "this is a data directory of another cluster ({found}, not {wanted}); use an empty directory, or connect to the nodes of cluster {found}"
    )]
    OtherCluster {
        /// The cluster in the directory.
        found: ClusterId,
        /// The cluster asked for.
        wanted: ClusterId,
    },
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    node: String,
    cluster: Option<String>,
    incarnation: u64,
    /// CRC32C over the fields above, from version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<u32>,
}

impl Record {
    fn sum(&self) -> u32 {
        let cluster = self.cluster.as_deref().unwrap_or("-");
        crc32c::crc32c(format!("{}/{}/{cluster}/{}", self.version, self.node, self.incarnation).as_bytes())
    }
}

/// What is found where a copy should be.
enum Found {
    Missing,
    Whole(Identity),
    Damaged(IdentityError),
}

impl Identity {
    /// Reads the identity in `dir`, or mints one in a directory that has none, and counts this start durably. A copy that is
    /// damaged or missing is made anew from the other one.
    ///
    /// # Errors
    /// [`IdentityError::Damaged`] if no copy can be read, also where both are gone from a directory that was used.
    pub fn open(dir: &Path) -> Result<Identity, IdentityError> {
        let path = dir.join(FILE);
        fs_err::create_dir_all(dir).map_err(|source| io_error(&path, source))?;
        let mut identity = match (read(&path)?, read(&dir.join(COPY))?) {
            (Found::Whole(first), Found::Whole(second)) if first.node != second.node => {
                let reason = format!("it names node {}, its copy names node {}", first.node, second.node);
                return Err(IdentityError::Damaged { path, reason });
            }
            // A crash can have left one of them a step behind.
            (Found::Whole(first), Found::Whole(second)) => {
                if first.incarnation >= second.incarnation {
                    first
                } else {
                    second
                }
            }
            (Found::Whole(found), other) | (other, Found::Whole(found)) => {
                match other {
                    Found::Damaged(error) => {
                        tracing::warn!(%error, "one copy of the identity is damaged; it is made anew from the other");
                    }
                    _ => tracing::warn!("one copy of the identity is missing: it is written again"),
                }
                found
            }
            (Found::Damaged(error), _) | (_, Found::Damaged(error)) => return Err(error),
            (Found::Missing, Found::Missing) => {
                if let Some(trace) = TRACES.iter().find(|name| dir.join(name).exists()) {
                    let reason = format!("it is gone, but {trace} beside it is not");
                    return Err(IdentityError::Damaged { path, reason });
                }
                Identity { node: NodeId(random_id()), cluster: None, incarnation: 0, dir: None }
            }
        };
        identity.incarnation += 1;
        identity.dir = Some(dir.to_owned());
        identity.save(dir)?;
        Ok(identity)
    }

    /// Whether it is kept on disk.
    pub(crate) fn is_kept(&self) -> bool {
        self.dir.is_some()
    }

    /// An identity that is kept nowhere, for simulations that keep it themselves.
    pub fn fixed(node: NodeId, cluster: Option<ClusterId>, incarnation: u64) -> Identity {
        Identity { node, cluster, incarnation, dir: None }
    }

    /// Makes the node a member of `cluster`, durably. Does nothing when it is one already, and refuses when it is a
    /// member of another.
    pub fn adopt_cluster(&mut self, cluster: ClusterId) -> Result<(), IdentityError> {
        match self.cluster {
            Some(found) if found == cluster => Ok(()),
            Some(found) => Err(IdentityError::OtherCluster { found, wanted: cluster }),
            None => {
                self.cluster = Some(cluster);
                match self.dir.clone() {
                    Some(dir) => self.save(&dir),
                    None => Ok(()),
                }
            }
        }
    }

    /// Writes both copies, one after the other: a crash leaves at least one of them whole.
    fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let mut record = Record {
            version: VERSION,
            node: self.node.to_string(),
            cluster: self.cluster.map(|cluster| cluster.to_string()),
            incarnation: self.incarnation,
            checksum: None,
        };
        record.checksum = Some(record.sum());
        for name in [FILE, COPY] {
            put(dir, name, &record).map_err(|source| io_error(&dir.join(name), source))?;
        }
        Ok(())
    }
}

/// Writes beside the file, syncs, renames over it and syncs the directory: a crash leaves the old or the new one.
fn put(dir: &Path, name: &str, record: &Record) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec_pretty(record)?)?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(name))?;
    File::open(dir)?.sync_all()
}

fn read(path: &Path) -> Result<Found, IdentityError> {
    match fs_err::read(path) {
        Ok(bytes) => Ok(decode(path, &bytes).map_or_else(Found::Damaged, Found::Whole)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Missing),
        Err(source) => Err(io_error(path, source)),
    }
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Identity, IdentityError> {
    let damaged = |reason: String| IdentityError::Damaged { path: path.to_owned(), reason };
    let record: Record = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    match record.checksum {
        Some(sum) if sum != record.sum() => return Err(damaged("its checksum does not match".to_owned())),
        None if record.version >= 2 => return Err(damaged("it has no checksum".to_owned())),
        _ => {}
    }
    if record.version > VERSION || record.version == 0 {
        return Err(damaged(format!("version {}, this program knows {VERSION}", record.version)));
    }
    let id = |text: &str| u64::from_str_radix(text, 16).map_err(|_| damaged(format!("{text:?} is not an id")));
    Ok(Identity {
        node: NodeId(id(&record.node)?),
        cluster: record.cluster.as_deref().map(id).transpose()?.map(ClusterId),
        incarnation: record.incarnation,
        dir: None,
    })
}

fn io_error(path: &Path, source: io::Error) -> IdentityError {
    IdentityError::Io { path: path.to_owned(), source }
}

/// Never 0, so that 0 can mean "none" in messages.
fn random_id() -> u64 {
    rand::random_range(1..=u64::MAX)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_id_and_counts_its_starts() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::open(dir.path()).unwrap();
        let second = Identity::open(dir.path()).unwrap();
        assert_eq!(first.node, second.node);
        assert_eq!((first.incarnation, second.incarnation), (1, 2));
        assert_eq!(first.cluster, None);
    }

    #[test]
    fn a_cluster_is_adopted_once_and_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity::open(dir.path()).unwrap();
        identity.adopt_cluster(ClusterId(7)).unwrap();
        let mut again = Identity::open(dir.path()).unwrap();
        assert_eq!(again.cluster, Some(ClusterId(7)));
        again.adopt_cluster(ClusterId(7)).unwrap();
        let refused = again.adopt_cluster(ClusterId(8)).unwrap_err();
        assert!(matches!(refused, IdentityError::OtherCluster { found: ClusterId(7), wanted: ClusterId(8) }));
        assert!(refused.to_string().contains("data directory of another cluster"));
    }

    #[test]
    fn one_damaged_copy_is_mended_from_the_other() {
        for name in [FILE, COPY] {
            for harm in 0..3 {
                let dir = tempfile::tempdir().unwrap();
                let mut first = Identity::open(dir.path()).unwrap();
                first.adopt_cluster(ClusterId(7)).unwrap();
                let path = dir.path().join(name);
                let whole = fs_err::read(&path).unwrap();
                match harm {
                    0 => fs_err::remove_file(&path).unwrap(),
                    1 => fs_err::write(&path, &whole[..whole.len() / 2]).unwrap(),
                    _ => fs_err::write(&path, b"").unwrap(),
                }
                let second = Identity::open(dir.path()).unwrap();
                assert_eq!((second.node, second.cluster, second.incarnation), (first.node, Some(ClusterId(7)), 2));
                let (one, other) = (fs_err::read(dir.path().join(FILE)), fs_err::read(dir.path().join(COPY)));
                assert_eq!(one.unwrap(), other.unwrap());
            }
        }
    }

    #[test]
    fn a_flipped_bit_changes_nothing_that_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Identity::open(dir.path()).unwrap();
        first.adopt_cluster(ClusterId(0x12)).unwrap();
        let path = dir.path().join(FILE);
        let whole = fs_err::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = decode(&path, &bytes) {
                // White space and the case of a digit may change, what is meant not.
                assert_eq!((read.node, read.cluster, read.incarnation), (first.node, first.cluster, 1), "bit {bit}");
            }
        }
    }

    #[test]
    fn two_damaged_copies_are_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Identity::open(dir.path()).unwrap();
        for name in [FILE, COPY] {
            let path = dir.path().join(name);
            let whole = fs_err::read(&path).unwrap();
            fs_err::write(&path, &whole[..whole.len() / 2]).unwrap();
        }
        let before = fs_err::read(dir.path().join(FILE)).unwrap();
        let refused = Identity::open(dir.path()).unwrap_err();
        assert!(matches!(&refused, IdentityError::Damaged { .. }), "{refused}");
        assert_eq!(fs_err::read(dir.path().join(FILE)).unwrap(), before);
    }

    #[test]
    fn a_used_directory_never_becomes_another_node() {
        let dir = tempfile::tempdir().unwrap();
        Identity::open(dir.path()).unwrap();
        fs_err::write(dir.path().join("floor"), b"").unwrap();
        fs_err::remove_file(dir.path().join(FILE)).unwrap();
        fs_err::remove_file(dir.path().join(COPY)).unwrap();
        let refused = Identity::open(dir.path()).unwrap_err();
        assert!(matches!(&refused, IdentityError::Damaged { .. }), "{refused}");
    }

    #[test]
    fn an_identity_of_version_1_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let old = br#"{ "version": 1, "node": "00000000000000ab", "cluster": null, "incarnation": 4 }"#;
        fs_err::write(dir.path().join(FILE), old).unwrap();
        let identity = Identity::open(dir.path()).unwrap();
        assert_eq!((identity.node, identity.incarnation), (NodeId(0xab), 5));
        assert!(fs_err::read_to_string(dir.path().join(COPY)).unwrap().contains("checksum"));
    }
}
