//! The peer addresses of the members, kept beside the log.
//!
//! Who is a member is a fact of the control state. A node whose replica of control is damaged cannot read it, and has to
//! ask somebody for another replica: for that moment the addresses are in a file of their own. It is a cache. Without it the
//! node waits until it is told of a member by `quorate cluster join`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use quorate_raft::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use super::formation::parse_id;

const FILE: &str = "peers.json";
const VERSION: u32 = 1;

/// The members of the cluster with their peer addresses, as this node last knew them.
pub struct Contacts {
    dir: PathBuf,
    known: Mutex<BTreeMap<NodeId, String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    cluster: String,
    members: Vec<Contact>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contact {
    node: String,
    peer: String,
}

impl Contacts {
    /// Reads what the directory holds for `cluster`. A file that is missing or damaged, or that is about another cluster, is
    /// as good as none.
    pub fn open(dir: &Path, cluster: Option<ClusterId>) -> Contacts {
        let known = match (cluster, fs_err::read(dir.join(FILE))) {
            (Some(cluster), Ok(bytes)) => decode(&bytes, cluster).unwrap_or_else(|| {
                tracing::warn!(file = FILE, "the addresses of the other members do not read and are learned anew");
                BTreeMap::new()
            }),
            _ => BTreeMap::new(),
        };
        Contacts { dir: dir.to_owned(), known: Mutex::new(known) }
    }

    /// The members that are known.
    pub fn known(&self) -> BTreeMap<NodeId, String> {
        self.known.lock().clone()
    }

    /// Takes note of the members of `cluster`, on disk if that is news. A failure is logged: the next change tries again.
    pub fn learn(&self, cluster: ClusterId, members: BTreeMap<NodeId, String>) {
        let mut known = self.known.lock();
        if *known == members || members.is_empty() {
            return;
        }
        match self.write(cluster, &members) {
            Ok(()) => *known = members,
            Err(error) => tracing::warn!(%error, file = FILE, "the addresses of the members cannot be kept"),
        }
    }

    /// Writes beside the file, syncs, renames over it and syncs the directory: a crash leaves the old or the new one.
    fn write(&self, cluster: ClusterId, members: &BTreeMap<NodeId, String>) -> io::Result<()> {
        let contact = |(node, peer): (&NodeId, &String)| Contact { node: node.to_string(), peer: peer.clone() };
        let members = members.iter().map(contact).collect();
        let record = Record { version: VERSION, cluster: cluster.to_string(), members };
        let new = self.dir.join("peers.json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(&record)?)?;
        file.sync_all()?;
        fs_err::rename(&new, self.dir.join(FILE))?;
        File::open(&self.dir)?.sync_all()
    }
}

fn decode(bytes: &[u8], cluster: ClusterId) -> Option<BTreeMap<NodeId, String>> {
    let record: Record = serde_json::from_slice(bytes).ok()?;
    if record.version != VERSION || parse_id(&record.cluster) != Some(cluster.0) {
        return None;
    }
    record.members.into_iter().map(|contact| Some((NodeId(parse_id(&contact.node)?), contact.peer))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId(0xabc);

    fn members(nodes: &[u64]) -> BTreeMap<NodeId, String> {
        nodes.iter().map(|node| (NodeId(*node), format!("host-{node}:7701"))).collect()
    }

    #[test]
    fn what_was_learned_is_there_after_a_restart_and_news_replace_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let contacts = Contacts::open(dir.path(), Some(CLUSTER));
        assert!(contacts.known().is_empty());
        contacts.learn(CLUSTER, members(&[1, 2]));
        contacts.learn(CLUSTER, members(&[1, 2, 3]));
        contacts.learn(CLUSTER, BTreeMap::new());
        assert_eq!(Contacts::open(dir.path(), Some(CLUSTER)).known(), members(&[1, 2, 3]));
    }

    #[test]
    fn a_damaged_file_or_one_of_another_cluster_is_as_good_as_none() {
        let dir = tempfile::tempdir().expect("a directory");
        Contacts::open(dir.path(), Some(CLUSTER)).learn(CLUSTER, members(&[1]));
        assert!(Contacts::open(dir.path(), Some(ClusterId(9))).known().is_empty());
        assert!(Contacts::open(dir.path(), None).known().is_empty());
        let path = dir.path().join(FILE);
        let whole = fs_err::read(&path).expect("it is there");
        for cut in 0..whole.len() {
            fs_err::write(&path, &whole[..cut]).expect("written");
            assert!(Contacts::open(dir.path(), Some(CLUSTER)).known().is_empty(), "cut to {cut}");
        }
    }
}
