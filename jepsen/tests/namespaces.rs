//! Real processes in namespaces: needs root, like the program itself, and the binary `quorate` beside the tests' folder
//! (`cargo build --release -p quorate`) or in QUORATE_BINARY.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate_jepsen::cluster::{Cluster, ClusterConfig, DiskKind, Disturbance, Refusal};
use quorate_jepsen::event::{Fault, Injection};
use quorate_jepsen::nemesis::{self, NemesisContext, Pace, Report};
use tokio_util::sync::CancellationToken;

const WELL: Duration = Duration::from_secs(60);

fn binary() -> PathBuf {
    let beside = || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("quorate");
    let binary = std::env::var_os("QUORATE_BINARY").map_or_else(beside, PathBuf::from);
    assert!(binary.exists(), "{} is not there: cargo build --release -p quorate", binary.display());
    binary
}

async fn start(directory: &Path, disk: DiskKind, faketime: bool) -> Cluster {
    let directory = directory.to_owned();
    let config = ClusterConfig {
        nodes: 3,
        binary: binary(),
        failpoints: None,
        directory,
        disk,
        planted: None,
        faketime,
        arguments: Vec::new(),
    };
    Cluster::start(config).await.expect("three nodes become a cluster")
}

/// The number of the run, out of the addresses that it chose.
fn namespaces_of(cluster: &Cluster) -> String {
    let address = cluster.endpoints().remove(0);
    let parts: Vec<u32> =
        address.trim_start_matches("http://").split(['.', ':']).filter_map(|part| part.parse().ok()).collect();
    format!("qj{}n", (parts[1] - 18) * 256 + parts[2])
}

fn left(names: &str) -> Vec<String> {
    let in_folder =
        |folder: &str| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let all = in_folder("/run/netns").chain(in_folder("/sys/class/net"));
    all.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.starts_with(names)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_seen_and_healed_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = start(folder.path(), DiskKind::Folder, false).await;
    let names = namespaces_of(&cluster);
    assert_eq!(left(&names).len(), 6, "a namespace and an interface for each node");

    let leader = cluster.leader().await.expect("a healthy cluster has a leader");
    let other = (leader + 1) % 3;
    let cut = cluster.cut(&[(leader, other)], Refusal::Drop).await.unwrap();
    tokio::time::timeout(WELL, async {
        while cluster.packets_taken(&cut).await.unwrap()[&(leader, other)] == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("heartbeats run into the cut");
    cluster.mend(&cut).await.unwrap();
    let reset = cluster.cut(&[(other, leader)], Refusal::Reset).await.unwrap();
    assert_eq!(reset.links, [(other, leader)]);

    let slow = Disturbance { loss: 0.0, delay: Duration::from_millis(20), jitter: Duration::ZERO };
    cluster.disturb(leader, slow, 1).await.unwrap();
    tokio::time::timeout(WELL, async {
        while cluster.disturbed(leader).unwrap().held == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("packets are held");
    assert!(cluster.pause(other).await.unwrap(), "all threads are stopped");
    cluster.kill(leader).await.unwrap();
    assert!(!cluster.is_running(leader));

    assert!(nemesis::heal(&cluster).await.unwrap().refused.is_empty());
    cluster.wait_healthy(WELL).await.unwrap();
    assert!(cluster.disturbed(leader).is_none());
    let rules = std::process::Command::new("nsenter")
        .args([&format!("--net=/run/netns/{names}{leader}"), "/usr/sbin/iptables-save"])
        .output()
        .unwrap();
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(!rules.contains("DROP") && !rules.contains("REJECT") && !rules.contains("NFQUEUE"), "{rules}");

    cluster.stop().await.unwrap();
    assert_eq!(left(&names), Vec::<String>::new());
    assert!(folder.path().join("node-0/log").exists(), "logs stay");
    assert!(!folder.path().join("quorate").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_ends_or_does_not_start_is_told_and_no_error_of_the_harness() {
    let folder = tempfile::tempdir().unwrap();
    let config = ClusterConfig {
        nodes: 3,
        binary: binary(),
        // Any program will do: it is only copied here.
        failpoints: Some(binary()),
        directory: folder.path().to_owned(),
        disk: DiskKind::Folder,
        planted: None,
        faketime: false,
        arguments: Vec::new(),
    };
    let cluster = Cluster::start(config).await.expect("three nodes become a cluster");
    let pid = i32::try_from(cluster.pid(1).unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    cluster.wait_exit(1, WELL).await.expect("it was killed");
    cluster.kill(2).await.unwrap();
    let [told] = &cluster.ended_by_themselves()[..] else { panic!("{:?}", cluster.ended_by_themselves()) };
    assert!(told.starts_with("node-1 ended by itself with signal: 9 (SIGKILL); it said last: "), "{told}");

    for name in ["identity.json", "identity-copy.json"] {
        std::fs::write(cluster.data_dir(2).join(name), "{").unwrap();
    }
    let healing = nemesis::heal(&cluster).await.expect("all that the harness does works");
    let [refused] = &healing.refused[..] else { panic!("{healing:?}") };
    assert!(refused.contains("node 2 does not start") && refused.contains("is damaged"), "{refused}");
    assert!(cluster.is_running(1) && !cluster.is_running(2));
    cluster.stop().await.unwrap();
    for copy in ["quorate", "quorate-planted"] {
        assert!(!folder.path().join(copy).exists(), "{copy} is removed with the run");
    }
}

#[derive(Default)]
struct Told {
    faults: Mutex<Vec<Fault>>,
    violations: Mutex<Vec<String>>,
}

impl Report for Told {
    fn fault(&self, fault: Fault) {
        self.faults.lock().push(fault);
    }
    fn violation(&self, sentence: String) {
        self.violations.lock().push(sentence);
    }
    fn void(&self, why: String) {
        self.violations.lock().push(why);
    }
    fn moment(&self, _: &str, _: quorate_jepsen::event::Moment, _: quorate_jepsen::event::Micros) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_failed_syncs_and_clocks_bite() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Arc::new(start(folder.path(), DiskKind::Loop { mib: 256 }, true).await);
    let names = namespaces_of(&cluster);
    let told = Arc::new(Told::default());
    let brief = Duration::from_millis(200)..=Duration::from_millis(400);
    for name in ["power-cut-all", "fsync-error", "stalled-disk", "clock-jump"] {
        let ctx = NemesisContext {
            cluster: Arc::clone(&cluster),
            stop: CancellationToken::new(),
            began: tokio::time::Instant::now(),
            report: Arc::clone(&told) as Arc<dyn Report>,
            pace: Pace { fault: brief.clone(), calm: brief.clone() },
        };
        let stop = ctx.stop.clone();
        let mut nemesis = nemesis::by_name(name, 7).unwrap();
        let running = tokio::spawn(async move { nemesis.run(&ctx).await });
        let bit = |fault: &Fault| fault.nemesis == name && fault.injection == Injection::Installed;
        let seen = tokio::time::timeout(WELL, async {
            while !told.faults.lock().iter().any(bit) {
                // An fsync fails only where there is one.
                let _ = cluster.client().enqueue(quorate_client::NewTask::new("work", "x")).await;
            }
        });
        assert!(seen.await.is_ok(), "{name} did not bite: {:?}", told.faults.lock());
        stop.cancel();
        running.await.unwrap().unwrap();
        assert!(nemesis::heal(&cluster).await.unwrap().refused.is_empty());
        cluster.wait_healthy(WELL).await.unwrap();
    }
    assert_eq!(*told.violations.lock(), Vec::<String>::new());
    assert_eq!(cluster.ended_by_themselves(), Vec::<String>::new(), "what ended was made to end");
    drop(cluster);
    assert_eq!(left(&names), Vec::<String>::new(), "a cluster that is dropped leaves nothing either");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_counts_when_the_node_has_noticed_it_and_healed_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Arc::new(start(folder.path(), DiskKind::Folder, false).await);
    let told = Arc::new(Told::default());
    let brief = Duration::from_millis(200)..=Duration::from_millis(400);
    let seen = [("corruption:log-manifest", "noticed=quarantine healed=self"), ("corruption:identity", "noticed=")];
    for (name, words) in seen {
        let ctx = NemesisContext {
            cluster: Arc::clone(&cluster),
            stop: CancellationToken::new(),
            began: tokio::time::Instant::now(),
            report: Arc::clone(&told) as Arc<dyn Report>,
            pace: Pace { fault: brief.clone(), calm: brief.clone() },
        };
        let stop = ctx.stop.clone();
        let mut nemesis = nemesis::by_name(name, 7).unwrap();
        let running = tokio::spawn(async move { nemesis.run(&ctx).await });
        let bit = |fault: &Fault| fault.injection == Injection::Installed && fault.detail.contains(words);
        let seen = tokio::time::timeout(WELL, async {
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            while !told.faults.lock().iter().any(bit) {
                tick.tick().await;
            }
        });
        assert!(seen.await.is_ok(), "{name} did not bite: {:?}", told.faults.lock());
        stop.cancel();
        running.await.unwrap().unwrap();
        nemesis::heal(&cluster).await.unwrap();
        cluster.wait_healthy(WELL).await.unwrap();
    }
    assert_eq!(*told.violations.lock(), Vec::<String>::new());
    cluster.stop().await.unwrap();
}
