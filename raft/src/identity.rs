//! Who this node is: minted once, counted at every start, never taken from a host name.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, NodeId};

const FILE: &str = "identity.json";
const VERSION: u32 = 1;

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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    node: String,
    cluster: Option<String>,
    incarnation: u64,
}

impl Identity {
    /// Reads the identity in `dir`, or mints one in a directory that has none, and counts this start durably.
    pub fn open(dir: &Path) -> Result<Identity, IdentityError> {
        let path = dir.join(FILE);
        fs_err::create_dir_all(dir).map_err(|source| io_error(&path, source))?;
        let mut identity = match fs_err::read(&path) {
            Ok(bytes) => decode(&path, &bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Identity { node: NodeId(random_id()), cluster: None, incarnation: 0, dir: None }
            }
            Err(source) => return Err(io_error(&path, source)),
        };
        identity.incarnation += 1;
        identity.dir = Some(dir.to_owned());
        identity.save(dir)?;
        Ok(identity)
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

    /// Writes beside the file, syncs, renames over it and syncs the directory: a crash leaves the old or the new one.
    fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let path = dir.join(FILE);
        let record = Record {
            version: VERSION,
            node: self.node.to_string(),
            cluster: self.cluster.map(|cluster| cluster.to_string()),
            incarnation: self.incarnation,
        };
        let write = || -> io::Result<()> {
            let new = dir.join("identity.json.new");
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(&record)?)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(dir)?.sync_all()
        };
        write().map_err(|source| io_error(&path, source))
    }
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Identity, IdentityError> {
    let damaged = |reason: String| IdentityError::Damaged { path: path.to_owned(), reason };
    let record: Record = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    if record.version != VERSION {
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
    fn a_half_written_file_is_named_and_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Identity::open(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let whole = fs_err::read(&path).unwrap();
        fs_err::write(&path, &whole[..whole.len() / 2]).unwrap();
        let refused = Identity::open(dir.path()).unwrap_err();
        assert!(matches!(&refused, IdentityError::Damaged { .. }), "{refused}");
        assert_eq!(fs_err::read(&path).unwrap().len(), whole.len() / 2);
    }
}
