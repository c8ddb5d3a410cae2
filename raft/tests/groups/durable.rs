//! The same on RocksDB, with restarts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use quorate_raft::{
    Group, GroupConfig, Groups, GroupsConfig, Identity, Member, NodeId, OpenError, ProposeError, Seams, Stop, Timers,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cluster::{CLUSTER, Counter, GROUP, LONG, SCRUB_EVERY, agree, number, own_address, stored_sum};

pub(crate) struct Running {
    pub(crate) groups: Groups,
    pub(crate) group: Group,
    pub(crate) registry: prometheus::Registry,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Running {
    pub(crate) async fn shut_down(self) {
        self.stop.cancel();
        self.groups.shutdown().await;
        self.server.await.unwrap().unwrap();
    }
}

/// Opens the groups of a member of the cluster.
async fn open_groups(dir: &Path) -> Result<Groups, OpenError> {
    open_registered(dir, prometheus::Registry::new()).await
}

/// The same with a registry of its metrics.
async fn open_registered(dir: &Path, registry: prometheus::Registry) -> Result<Groups, OpenError> {
    let identity = Identity::open(dir).unwrap();
    let mut config = GroupsConfig::new(identity, dir.to_owned(), String::new());
    config.timers = Timers::default().slower(2);
    config.snapshot_log_bytes = 100_000;
    config.purge_tail = 10;
    (config.scrub_every, config.scrub_state_every) = (SCRUB_EVERY, SCRUB_EVERY);
    config.registry = registry;
    let groups = Groups::open(config, Seams::durable(dir)?).await?;
    groups.adopt_cluster(CLUSTER).unwrap();
    Ok(groups)
}

pub(crate) async fn open(dir: &Path, listener: TcpListener, replica: u64) -> Running {
    let registry = prometheus::Registry::new();
    let groups = open_registered(dir, registry.clone()).await.unwrap();
    let machine = Counter::boxed(&Arc::new(AtomicUsize::new(0)));
    let group = groups.start_group_with(GROUP, replica, machine, GroupConfig::default()).await.unwrap();
    tokio::spawn(agree(group.clone()));
    let stop = CancellationToken::new();
    let server = tokio::spawn({
        let (groups, stop) = (groups.clone(), stop.clone());
        async move { groups.serve(listener, stop).await }
    });
    Running { groups, group, registry, stop, server }
}

async fn leader(nodes: &[Running]) -> &Group {
    let found = async {
        loop {
            if let Some(node) = nodes.iter().find(|node| node.group.leadership().borrow().mine) {
                return &node.group;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, found).await.unwrap()
}

/// Proposes to whoever leads. Returns the sum.
pub(crate) async fn propose(nodes: &[Running], payload: &[u8]) -> u64 {
    loop {
        match leader(nodes).await.propose(payload.to_vec().into()).await {
            Ok(committed) => return committed.reply.downcast::<u64>().unwrap(),
            // On a busy machine it may have lost the lead meanwhile; then nothing was written.
            Err(ProposeError::NotLeader { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_on_disk_restart_with_everything() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut addresses: Vec<String> = (0..3).map(|_| own_address()).collect();
    let mut sum = 0;
    for life in 0..3 {
        let mut nodes = Vec::new();
        for (place, dir) in dirs.iter().enumerate() {
            let listener = TcpListener::bind(&addresses[place]).await.unwrap();
            addresses[place] = listener.local_addr().unwrap().to_string();
            nodes.push(open(dir.path(), listener, place as u64 + 1).await);
        }
        if life == 0 {
            let member =
                |place: usize| Member { node: nodes[place].groups.identity().node, address: addresses[place].clone() };
            let members = (0..3).map(|place| (place as u64 + 1, member(place))).collect();
            nodes[0].group.initialize(members).await.unwrap();
        }
        assert_ne!(nodes[0].groups.identity().node, NodeId(0));
        assert_eq!(nodes[0].groups.identity().incarnation, life + 1);
        let mut payload = number(1).to_vec();
        payload.resize(1_000, 0);
        for _ in 0..300 {
            sum += 1;
            assert_eq!(propose(&nodes, &payload).await, sum);
        }
        for node in &nodes {
            let position = node.group.read_position(LONG).await.unwrap();
            node.group.wait_applied(position, LONG).await.unwrap();
            assert_eq!(stored_sum(&*node.group.store()), sum);
        }
        for node in nodes {
            node.shut_down().await;
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

/// The only voter of a group, with a purged log, a state and a tail that is not in it, and the sum.
pub(crate) async fn alone(dir: &Path) -> (Running, u64) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let node = open(dir, listener, 1).await;
    let member = Member { node: node.groups.identity().node, address };
    node.group.initialize([(1, member)].into()).await.unwrap();
    let nodes = [node];
    let mut payload = number(1).to_vec();
    payload.resize(1_000, 0);
    let mut sum = 0;
    let mut add = async || {
        sum += 1;
        assert_eq!(propose(&nodes, &payload).await, sum);
    };
    let purging = async {
        while nodes[0].group.status().purged == 0 {
            add().await;
        }
    };
    tokio::time::timeout(LONG, purging).await.expect("the log is purged");
    for _ in 0..10 {
        add().await;
    }
    let [node] = nodes;
    (node, sum)
}

/// The data directory of such a voter. Returns the sum.
async fn written(dir: &Path) -> u64 {
    let (node, sum) = alone(dir).await;
    node.shut_down().await;
    sum
}

/// Starts the group on a directory. The sum that it comes to, or why it is damaged.
async fn revived(dir: &Path) -> Result<u64, String> {
    let groups = open_groups(dir).await.unwrap();
    let machine = Counter::boxed(&Arc::new(AtomicUsize::new(0)));
    let outcome = match groups.start_group(GROUP, 1, machine).await {
        Err(OpenError::Damaged { reason, .. }) => Err(reason),
        Err(error) => panic!("{error}"),
        Ok(group) => {
            let mut leadership = group.leadership();
            tokio::select! {
                led = tokio::time::timeout(LONG, leadership.wait_for(|now| now.mine)) => {
                    led.unwrap().unwrap();
                    group.store().get(1, b"sum").map_err(|error| error.to_string())
                        .map(|row| u64::from_le_bytes(row.unwrap()[..8].try_into().unwrap()))
                }
                stop = group.stopped() => match stop {
                    Stop::Damaged(reason) => Err(reason),
                    other => panic!("{other:?}"),
                },
            }
        }
    };
    groups.shutdown().await;
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_whose_files_are_harmed_is_whole_again_or_damaged() {
    let template = tempfile::tempdir().unwrap();
    let sum = written(template.path()).await;
    assert_eq!(revived(template.path()).await, Ok(sum));
    let mut random = StdRng::seed_from_u64(0x57a7e);
    let (mut damaged, mut whole) = (0, 0);
    for file in files(&template.path().join("state")) {
        let name = file.strip_prefix(template.path()).unwrap();
        for how in ["flip", "flip", "cut", "delete"] {
            let dir = tempfile::tempdir().unwrap();
            copy(template.path(), dir.path());
            let path = dir.path().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = random.random_range(0..bytes.len().max(1));
            match how {
                "flip" if !bytes.is_empty() => bytes[at] ^= 1 << random.random_range(0..8),
                "cut" => bytes.truncate(at),
                _ => bytes.clear(),
            }
            std::fs::write(&path, &bytes).unwrap();
            if how == "delete" {
                std::fs::remove_file(&path).unwrap();
            }
            match revived(dir.path()).await {
                Ok(found) => {
                    assert_eq!(found, sum, "{how} at {at} of {}", name.display());
                    whole += 1;
                }
                Err(_) => {
                    damaged += 1;
                    assert!(revived(dir.path()).await.is_err(), "{how} at {at} of {}: it is back", name.display());
                }
            }
        }
    }
    println!("{damaged} damaged, {whole} whole");
    assert!(damaged >= 4 && whole >= 4, "{damaged} damaged, {whole} whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_database_that_is_gone_is_noticed_and_deleted_when_its_replicas_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    let manifest = files(&dir.path().join("log")).into_iter().find(|path| path.to_string_lossy().contains("MANIFEST"));
    std::fs::write(manifest.unwrap(), b"rubbish").unwrap();
    let reason = revived(dir.path()).await.unwrap_err();
    assert!(reason.contains("gone"), "{reason}");
    assert!(dir.path().join("damaged-log-1").is_dir());
    let groups = open_groups(dir.path()).await.unwrap();
    assert!(dir.path().join("damaged-log-1").is_dir(), "its replica waits for a successor");
    groups.destroy_group(GROUP).await.unwrap();
    assert!(!dir.path().join("damaged-log-1").exists());
    let fresh = groups.start_group(GROUP, 2, Counter::boxed(&Arc::new(AtomicUsize::new(0)))).await.unwrap();
    assert_eq!(fresh.applied(), 0);
    assert!(fresh.store().get(1, b"sum").unwrap().is_none(), "nothing of the old state is left");
    groups.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_floor_and_log_never_starts() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path()).await;
    std::fs::remove_dir_all(dir.path().join("log")).unwrap();
    std::fs::remove_file(dir.path().join("floor")).unwrap();
    let refused = open_groups(dir.path()).await.map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::Lost { cluster: CLUSTER }), "{refused}");
    // Nor at the second try, when there is a floor again.
    let refused = open_groups(dir.path()).await.map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::Lost { .. }), "{refused}");
}
