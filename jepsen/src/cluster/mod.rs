//! Clusters of real node processes that can be broken in every way that a machine allows.
//!
//! Each node lives in a network namespace of its own with one address on the run's bridge; this process stands on the
//! bridge too, so clients reach every node whatever becomes of the links between nodes. Its data is in a folder or on an ext4
//! file system of its own. Its log and its data are in the run's directory. What a node is started with stays the same over
//! its restarts: addresses, data, clock.
//!
//! Faults come from here as verbs ([`Cluster::kill`], [`Cluster::cut`], [`Cluster::power_cut`], ...) that say what was seen
//! of them; when and how they are combined is the business of [`crate::nemesis`]. [`Cluster::marks`] keep faults that
//! overlap off each other's nodes. [`Cluster::heal`] ends everything that any of them left.
//!
//! Everything a run makes has a name with the run's number in it (see `run.rs`) and goes with the cluster: at
//! [`Cluster::stop`], at drop, or by [`clean`] when the harness was killed. The node processes end with the harness, whose
//! end closes their standard input. Only the logs stay.
//!
//! Needs root. The host's own packet filter must let bridged packets pass.

mod clock;
mod damage;
mod disk;
mod doubler;
mod links;
mod living;
mod marks;
mod members;
mod outages;
mod packets;
mod process;
mod run;
mod tool;
mod trace;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::{join_all, try_join_all};
use nix::sys::signal::Signal;
use parking_lot::{Mutex, RwLock};
use quorate_client::Client;
use tokio::process::Command;

use clock::NodeClock;
pub use damage::{CLASSES, Damage, Notice};
use disk::Disk;
pub use disk::DiskKind;
use doubler::Doubler;
pub use links::{Cut, Refusal};
pub use marks::{Hold, Mark, Marks};
use outages::{Outage, Outages};
use packets::Disturber;
pub use packets::{Disturbance, Disturbed};
pub use process::NodeFailed;
use process::{Deaths, Process, Witness};
use run::Run;
pub use run::clean;
use trace::Trace;

use crate::history::Recorder;

/// The ports in every namespace.
const CLIENT_PORT: u16 = 7701;
const PEER_PORT: u16 = 7702;
const HTTP_PORT: u16 = 7703;
/// With what a node reads all logs every second, and all states every 24 seconds.
const SCRUB: [&str; 2] = ["--scrub-every-s", "1"];
/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(20);
/// How long a node may take to hand over and stop after SIGTERM.
const STOPPED: Duration = Duration::from_secs(60);
/// How long a node may take to its end over a fault that is over.
const ENDS: Duration = Duration::from_secs(10);
/// How long a cluster may take to be healthy at first.
const FORMED: Duration = Duration::from_secs(60);

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// How many nodes form it.
    pub nodes: usize,
    /// The program. It is copied into the run's directory, so that a rebuild does not change a run.
    pub binary: PathBuf,
    /// The program that can end at a failpoint, if there is one.
    pub failpoints: Option<PathBuf>,
    /// The run's directory: logs, images of disks.
    pub directory: PathBuf,
    /// What data is kept on.
    pub disk: DiskKind,
    /// Planted bugs, separated by commas, told to the nodes as QUORATE_PLANTED; `name@N` is one of node N alone.
    pub planted: Option<String>,
    /// Whether clocks can be moved. It costs each look at the clock a read of a file.
    pub faketime: bool,
    /// Further arguments of `node start`.
    pub arguments: Vec<String>,
}

/// A cluster. Shared by all that use or break it; every method may be called at any time.
#[derive(Debug)]
pub struct Cluster {
    config: ClusterConfig,
    binary: PathBuf,
    failpoints: Option<PathBuf>,
    run: Run,
    nodes: RwLock<Vec<Arc<Node>>>,
    marks: Marks,
    deaths: Deaths,
    /// Where changes of the members are recorded, once they are.
    changes: Mutex<Option<Recorder>>,
}

/// What came of ending all faults, where all that the harness does worked.
#[derive(Debug, Default)]
pub struct Healing {
    /// Who does not start or does not join, or whom the cluster does not let go: a sentence each.
    pub refused: Vec<String>,
    /// Damaged nodes that refused to start and were replaced by hand, and what they said.
    pub replaced: Vec<(usize, String)>,
}

/// Whether a failure is that of nodes, which did not start or did not do what they were asked for, and not that of the machine or
/// the harness.
pub fn is_of_nodes(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<NodeFailed>() || cause.is::<quorate_client::Error>())
}

/// A place for a node: namespace, disk, clock, and the process when there is one.
#[derive(Debug)]
struct Node {
    directory: PathBuf,
    disk: Disk,
    clock: Option<NodeClock>,
    /// Whether it belongs to the cluster, as far as we made it join and leave.
    member: Mutex<bool>,
    /// A change of its membership that was begun and whose end was not seen.
    change: Mutex<Option<members::Change>>,
    /// Whether its files were damaged since it was last seen to be whole.
    damaged: Mutex<bool>,
    /// Whether they ever were.
    ever_damaged: Mutex<bool>,
    /// When it was kept from its disk.
    outages: Outages,
    /// Whether it is started so that its scrub has soon read everything.
    scrubs_soon: Mutex<bool>,
    node_id: Mutex<Option<String>>,
    process: Mutex<Option<Arc<Process>>>,
    /// One start at a time.
    starting: tokio::sync::Mutex<()>,
    trace: Mutex<Option<Trace>>,
    disturber: Mutex<Option<Disturber>>,
    doubler: Mutex<Option<Doubler>>,
}

impl Cluster {
    /// Starts the nodes, makes a cluster of them and waits until it is healthy.
    ///
    /// # Errors
    /// Without root, if a program of the system is missing, or if the nodes do not become a cluster in time.
    pub async fn start(config: ClusterConfig) -> Result<Cluster> {
        ensure!(nix::unistd::geteuid().is_root(), "namespaces and disks need root: run as root");
        ensure!(config.nodes > 0, "a cluster has at least one node");
        fs_err::create_dir_all(&config.directory)?;
        let directory = fs_err::canonicalize(&config.directory)?;
        ensure!(!directory.join("node-0").exists(), "{} has a run in it: name an empty directory", directory.display());
        let binary = directory.join("quorate");
        fs_err::copy(&config.binary, &binary)?;
        let failpoints = config.failpoints.as_ref().map(|_| directory.join("quorate-planted"));
        if let (Some(from), Some(to)) = (&config.failpoints, &failpoints) {
            fs_err::copy(from, to)?;
        }
        let run = Run::reserve(&directory)?;
        let config = ClusterConfig { directory, ..config };
        let (nodes, marks, deaths) = (RwLock::default(), Marks::default(), Deaths::default());
        let cluster = Cluster { config, binary, failpoints, run, nodes, marks, deaths, changes: Mutex::default() };
        let bridge = run.bridge();
        tool::run_async(&["ip", "link", "add", &bridge, "type", "bridge"]).await?;
        tool::run_async(&["ip", "addr", "add", &format!("{}/24", run.address(254)), "dev", &bridge]).await?;
        tool::run_async(&["ip", "link", "set", &bridge, "up"]).await?;
        for _ in 0..cluster.config.nodes {
            cluster.add_node().await?;
        }
        try_join_all((0..cluster.config.nodes).map(|node| cluster.start_node(node))).await?;
        cluster.client_of(0).cluster_init(0).await.context("initialising the first node")?;
        *cluster.node(0).member.lock() = true;
        for joining in 1..cluster.config.nodes {
            cluster.join(joining).await?;
        }
        cluster.wait_healthy(FORMED).await?;
        Ok(cluster)
    }

    /// A cluster without any node, for what needs one and asks nothing of it.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Cluster {
        let config = ClusterConfig {
            nodes: 0,
            binary: PathBuf::new(),
            failpoints: None,
            directory: PathBuf::new(),
            disk: DiskKind::Folder,
            planted: None,
            faketime: false,
            arguments: Vec::new(),
        };
        let (nodes, marks, deaths) = (RwLock::default(), Marks::default(), Deaths::default());
        let (binary, run) = (PathBuf::new(), Run::nowhere());
        Cluster { config, binary, failpoints: None, run, nodes, marks, deaths, changes: Mutex::default() }
    }

    /// Makes a place for one more node, with an empty disk. Gives its number.
    pub(crate) async fn add_node(&self) -> Result<usize> {
        let number = self.size();
        let name = self.run.namespace(number);
        let address = format!("{}/24", self.run.node_address(number));
        tool::run_async(&["ip", "netns", "add", &name]).await?;
        let veth = ["ip", "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &name];
        tool::run_async(&veth).await?;
        tool::run_async(&["ip", "link", "set", &name, "master", &self.run.bridge(), "up"]).await?;
        for words in [
            &["addr", "add", &address, "dev", "eth0"][..],
            &["link", "set", "eth0", "up"],
            &["link", "set", "lo", "up"],
        ] {
            tool::run_async(&[&["ip", "-n", &name], words].concat()).await?;
        }
        let directory = self.config.directory.join(format!("node-{number}"));
        fs_err::create_dir_all(&directory)?;
        let node = Node {
            disk: Disk::make(self.config.disk, &directory, self.run.mount_point(number))?,
            clock: self.config.faketime.then(|| NodeClock::make(self.run.clock_file(number))).transpose()?,
            directory,
            member: Mutex::new(false),
            change: Mutex::new(None),
            damaged: Mutex::new(false),
            ever_damaged: Mutex::new(false),
            outages: Outages::default(),
            scrubs_soon: Mutex::new(false),
            node_id: Mutex::new(None),
            process: Mutex::new(None),
            starting: tokio::sync::Mutex::new(()),
            trace: Mutex::new(None),
            disturber: Mutex::new(None),
            doubler: Mutex::new(None),
        };
        self.nodes.write().push(Arc::new(node));
        let chain = links::CHAIN;
        self.filter(number, "filter", &format!(":{chain} - [0:0]\n-A INPUT -j {chain}\n")).await?;
        self.filter(number, "mangle", &format!(":{chain} - [0:0]\n-A OUTPUT -j {chain}\n")).await?;
        Ok(number)
    }

    fn node(&self, node: usize) -> Arc<Node> {
        Arc::clone(&self.nodes.read()[node])
    }

    /// The words that run what follows in a node's network namespace.
    fn enter(&self, node: usize) -> [String; 2] {
        ["nsenter".into(), format!("--net=/run/netns/{}", self.run.namespace(node))]
    }

    fn directory_of(&self, node: usize) -> PathBuf {
        self.node(node).directory.clone()
    }

    /// How many places for nodes there are; members have numbers below this.
    pub fn size(&self) -> usize {
        self.nodes.read().len()
    }

    /// The marks of what faults hold.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Where clients reach the nodes, those that do not run too.
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.size()).map(|node| self.endpoint(node)).collect()
    }

    fn endpoint(&self, node: usize) -> String {
        format!("http://{}:{CLIENT_PORT}", self.run.node_address(node))
    }

    /// Where a node serves metrics and health, `address:port`.
    pub fn http(&self, node: usize) -> String {
        format!("{}:{HTTP_PORT}", self.run.node_address(node))
    }

    /// A client that knows every node.
    pub fn client(&self) -> Client {
        Client::connect(self.endpoints()).expect("addresses and ports are endpoints")
    }

    /// A client that knows one node only.
    pub fn client_of(&self, node: usize) -> Client {
        Client::connect([self.endpoint(node)]).expect("an address and a port are an endpoint")
    }

    /// The id that the node said at its last start.
    pub fn node_id(&self, node: usize) -> Option<String> {
        self.node(node).node_id.lock().clone()
    }

    /// Where its data is.
    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.node(node).disk.data()
    }

    /// Whether it has a planted bug that the others have not.
    fn has_bug_of_its_own(&self, node: usize) -> bool {
        let planted = self.config.planted.as_deref().unwrap_or_default();
        planted.split(',').any(|bug| bug.split_once('@').is_some_and(|(_, number)| number.parse() == Ok(node)))
    }

    /// What it logs, over all its starts.
    pub fn log_path(&self, node: usize) -> PathBuf {
        self.node(node).directory.join("log")
    }

    fn process(&self, node: usize) -> Option<Arc<Process>> {
        self.node(node).process.lock().as_ref().filter(|process| process.is_running()).cloned()
    }

    /// Whether its process runs (or is stopped by [`Cluster::pause`]).
    pub fn is_running(&self, node: usize) -> bool {
        self.process(node).is_some()
    }

    /// Its process id, while it runs.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.process(node).map(|process| process.pid)
    }

    /// The states of its threads as /proc has them: `T` stopped, `D` waiting for a disk.
    pub fn thread_states(&self, node: usize) -> Vec<char> {
        self.pid(node).map(process::thread_states).unwrap_or_default()
    }

    /// Starts a node's process on its data and waits until it serves.
    ///
    /// # Errors
    /// If it runs, ends before it serves (with the last line of its log), or is not ready in time.
    pub async fn start_node(&self, number: usize) -> Result<()> {
        self.start_program(number, &self.binary, None).await
    }

    /// Whether nodes can be started so that they end at a failpoint.
    pub fn has_failpoints(&self) -> bool {
        self.failpoints.is_some()
    }

    /// Starts a node as [`Cluster::start_node`], which ends by itself at a failpoint: its name, and after a colon how often
    /// it is passed before.
    ///
    /// # Errors
    /// As there; one that passes the failpoint before it serves ends before it serves.
    pub async fn start_ending(&self, number: usize, failpoint: &str) -> Result<()> {
        let program = self.failpoints.as_ref().context("there is no program that can end at a failpoint")?;
        self.start_program(number, program, Some(failpoint)).await
    }

    async fn start_program(&self, number: usize, program: &Path, failpoint: Option<&str>) -> Result<()> {
        let node = self.node(number);
        let _one = node.starting.lock().await;
        ensure!(!self.is_running(number), "node {number} runs already");
        let address = self.run.node_address(number);
        let enter = self.enter(number);
        let label = format!("node-{number}");
        let mut command = Command::new(&enter[0]);
        command.args([enter[1].as_str(), "--"]);
        if failpoint.is_some() {
            // It ends by a signal, as a crash does, and nobody wants hundreds of cores.
            command.args(["prlimit", "--core=0"]);
        }
        command.arg(program);
        command
            .args(["node", "start", "-o", "json", "--stop-with-stdin", "--label", &label, "--data-dir"])
            .arg(node.disk.data());
        for (flag, port) in [("client", CLIENT_PORT), ("peer", PEER_PORT), ("http", HTTP_PORT)] {
            command.args([format!("--{flag}-listen"), format!("{address}:{port}")]);
        }
        command.args(&self.config.arguments);
        if *node.scrubs_soon.lock() && self.can_scrub_soon() {
            command.args(SCRUB);
        }
        // Nodes refuse settings that they do not know, and those of the harness are none of theirs.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUORATE_")) {
            command.env_remove(name);
        }
        if let Some(bugs) = self.config.planted.as_deref().and_then(|bugs| bugs_of(bugs, number)) {
            command.env("QUORATE_PLANTED", bugs);
        }
        if let Some(failpoint) = failpoint {
            command.env("QUORATE_FAILPOINT", failpoint);
        }
        if let Some(clock) = &node.clock {
            clock.put_under(&mut command);
        }
        // One that was damaged ends where it finds that it cannot go on, and is started again.
        let damaged = Arc::downgrade(&node);
        let excused = move || damaged.upgrade().is_some_and(|node| *node.damaged.lock());
        let witness = Witness::new(&label, node.directory.join("log"), &self.deaths, excused);
        let witness = if failpoint.is_some() { witness.of_one_that_ends() } else { witness };
        let process = Process::start(command, witness).await?;
        *node.node_id.lock() = Some(process.node_id.clone());
        *node.process.lock() = Some(Arc::new(process));
        Ok(())
    }

    /// From its next start on the scrub of a node has soon read everything, or is as slow as it is for others. Its
    /// write-ahead log is not what it else is: each pass begins by spilling it.
    pub fn scrub_soon(&self, node: usize, soon: bool) {
        *self.node(node).scrubs_soon.lock() = soon;
    }

    /// Whether nodes that are to scrub soon do: not where the run's arguments say how often they scrub.
    pub(crate) fn can_scrub_soon(&self) -> bool {
        !self.config.arguments.iter().any(|word| word.starts_with(SCRUB[0]))
    }

    /// Kills a node if it runs and starts it again.
    pub async fn restart(&self, node: usize) -> Result<()> {
        self.kill(node).await?;
        self.start_node(node).await
    }

    /// Ends the process at once (SIGKILL) and waits until it is gone. Does nothing if it does not run.
    pub async fn kill(&self, node: usize) -> Result<()> {
        self.end(node, Signal::SIGKILL, GONE).await.map(|_| ())
    }

    /// Asks the process to stop (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// If it is still there after a minute.
    pub async fn stop_node(&self, node: usize) -> Result<Option<ExitStatus>> {
        self.end(node, Signal::SIGTERM, STOPPED).await
    }

    async fn end(&self, node: usize, signal: Signal, limit: Duration) -> Result<Option<ExitStatus>> {
        let Some(process) = self.process(node) else { return Ok(None) };
        process.may_end();
        process.signal(signal);
        match process.wait(limit).await {
            Some(status) => Ok(Some(status)),
            None => bail!("node {node} (process {}) is still there {limit:?} after {signal}", process.pid),
        }
    }

    /// Something is done to a node over which it may end.
    fn may_end(&self, node: usize) {
        if let Some(process) = self.process(node) {
            process.may_end();
        }
    }

    /// What was done to a node is over: if it ends later, it ends by itself.
    fn lives_on(&self, node: usize) {
        if let Some(process) = self.process(node) {
            process.may_end_for(ENDS);
        }
    }

    /// The nodes that ended although nothing was done to them that ends one: a sentence each, with what they said last.
    pub fn ended_by_themselves(&self) -> Vec<String> {
        self.deaths.all()
    }

    /// How the node's process ended, if it ends by itself in time or did before.
    pub async fn wait_exit(&self, node: usize, limit: Duration) -> Option<ExitStatus> {
        let process = self.node(node).process.lock().clone()?;
        process.wait(limit).await
    }

    /// Stops the process where it is (SIGSTOP). True if all of its threads were seen to be stopped.
    pub async fn pause(&self, node: usize) -> Result<bool> {
        let process = self.process(node).with_context(|| format!("node {node} does not run"))?;
        process.signal(Signal::SIGSTOP);
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        let all_stopped = async {
            loop {
                let states = process::thread_states(process.pid);
                if !states.is_empty() && states.iter().all(|state| matches!(state, 'T' | 't')) {
                    return;
                }
                tick.tick().await;
            }
        };
        Ok(tokio::time::timeout(Duration::from_secs(2), all_stopped).await.is_ok())
    }

    /// Lets a stopped process go on.
    pub fn resume(&self, node: usize) {
        if let Some(process) = self.process(node) {
            process.signal(Signal::SIGCONT);
        }
    }

    /// Whether a node's power can be cut.
    pub fn has_power_switch(&self, node: usize) -> bool {
        self.node(node).disk.has_power_switch()
    }

    /// Cuts the power of some nodes at the same moment: their disks keep what was synced and nothing else, their processes
    /// end. Says of each whether its disk was seen to refuse a write.
    ///
    /// # Errors
    /// If a disk has no power switch.
    pub async fn power_cut(&self, nodes: &[usize]) -> Result<Vec<bool>> {
        let can_be_cut = nodes.iter().all(|node| self.has_power_switch(*node));
        ensure!(can_be_cut, "a folder's power cannot be cut: start the cluster with loop disks");
        for node in nodes {
            self.may_end(*node);
            self.begin_outage(*node, Outage::Cut);
        }
        let cut = nodes.iter().map(|node| self.node(*node));
        let cut: Vec<_> = cut.map(|node| tokio::task::spawn_blocking(move || node.disk.power_off())).collect();
        let mut seen = Vec::new();
        for (node, cut) in nodes.iter().zip(cut) {
            seen.push(cut.await?.with_context(|| format!("cutting the power of node {node}"))?);
        }
        try_join_all(nodes.iter().map(|node| self.kill(*node))).await?;
        Ok(seen)
    }

    /// Brings a node back after a power cut: its disk is mounted again, its process started.
    pub async fn power_on(&self, node: usize) -> Result<()> {
        self.mount_again(node).await?;
        self.start_node(node).await
    }

    /// Mounts a node's disk again after a power cut. That it cannot be mounted is a fault of this machine, not of the node.
    pub(crate) async fn mount_again(&self, number: usize) -> Result<()> {
        let node = self.node(number);
        let mounted = tokio::task::spawn_blocking(move || node.disk.power_on()).await?;
        mounted.with_context(|| format!("switching node {number} on"))?;
        self.end_outage(number, Outage::Cut);
        Ok(())
    }

    /// Stalls a node's disk until [`Cluster::thaw`]. True if it was seen to be stalled.
    pub async fn freeze(&self, node: usize) -> Result<bool> {
        let place = self.node(node);
        ensure!(place.disk.has_power_switch(), "a folder's disk cannot be stalled: start the cluster with loop disks");
        self.may_end(node);
        tokio::task::spawn_blocking(move || place.disk.freeze()).await?
    }

    /// Lets a stalled disk go on. Does nothing if it is not stalled.
    pub async fn thaw(&self, node: usize) -> Result<()> {
        let place = self.node(node);
        let thawed = tokio::task::spawn_blocking(move || place.disk.thaw()).await?;
        self.lives_on(node);
        thawed
    }

    /// Fills a node's disk to the last block, also what became free since the last call. True if a write was seen to fail.
    pub async fn fill_disk(&self, node: usize) -> Result<bool> {
        let place = self.node(node);
        self.may_end(node);
        self.begin_outage(node, Outage::Full);
        tokio::task::spawn_blocking(move || place.disk.fill()).await?
    }

    /// Gives the room back that [`Cluster::fill_disk`] took.
    pub fn free_disk(&self, node: usize) -> Result<()> {
        let freed = self.node(node).disk.free();
        self.end_outage(node, Outage::Full);
        self.lives_on(node);
        freed
    }

    /// Whether a node's clock can be moved.
    pub fn has_clock(&self, node: usize) -> bool {
        self.node(node).clock.is_some()
    }

    /// Puts a node's wall clock so many milliseconds off the true time, at once.
    pub fn set_clock(&self, node: usize, offset_ms: i64) -> Result<()> {
        let node = self.node(node);
        node.clock.as_ref().context("clocks cannot be moved: start the cluster with faketime")?.set(offset_ms)
    }

    /// Whether the process was seen to look at the clock that was set last, if need be because we asked it something.
    pub async fn clock_was_read(&self, number: usize) -> bool {
        let node = self.node(number);
        let Some(clock) = &node.clock else { return false };
        let ask = async {
            let mut tick = tokio::time::interval(Duration::from_millis(200));
            // The first tick comes at once; its own work is to have a chance.
            tick.tick().await;
            loop {
                tick.tick().await;
                // Answers carry the date.
                let _ = self.client_of(number).with_deadline(Duration::from_secs(1)).cluster_status().await;
            }
        };
        tokio::select! {
            seen = clock.was_read() => seen,
            () = ask => false,
        }
    }

    /// Ends every fault: links, packets, traces, stalls, full disks, clocks, pauses; starts every member that is down, and
    /// replaces one that refuses the disk that we damaged; finishes changes of the members.
    ///
    /// # Errors
    /// The first thing of the harness that did not work, after everything was tried. What nodes do not do is no error but in
    /// what is returned.
    pub async fn heal(&self) -> Result<Healing> {
        let mut tools = vec![self.open_all_links().await];
        for node in 0..self.size() {
            tools.push(self.detach(node).await);
            tools.push(self.thaw(node).await);
            tools.push(self.free_disk(node));
            tools.push(self.let_pass(node).await);
            tools.push(self.stop_doubling(node).await);
            if self.has_clock(node) {
                tools.push(self.set_clock(node, 0));
            }
            self.resume(node);
        }
        let mut healing = Healing::default();
        let mut sort = |what: &str, done: Result<()>, refused: &mut Vec<String>| match done {
            Err(error) if is_of_nodes(&error) => refused.push(format!("{what} after all faults had ended: {error:#}")),
            other => tools.push(other),
        };
        let mut damaged = Vec::new();
        for (node, started) in self.start_all_down().await {
            match started {
                Err(refusal) if is_of_nodes(&refusal) && *self.node(node).damaged.lock() => {
                    damaged.push((node, format!("{refusal:#}")));
                }
                // It may have been removed already, and then rightly does not start.
                Err(_) if self.is_leaving(node) => {}
                started => sort(&format!("node {node} does not start"), started, &mut healing.refused),
            }
        }
        // It takes the others to replace one.
        for (node, refusal) in damaged {
            healing.replaced.push((node, refusal));
            sort(&format!("node {node} is not replaced"), self.replace(node).await, &mut healing.refused);
        }
        sort("a change of the members does not end", self.finish_changes().await, &mut healing.refused);
        tools.into_iter().collect::<Result<()>>().map(|()| healing)
    }

    async fn start_all_down(&self) -> Vec<(usize, Result<()>)> {
        let down = self.members().into_iter().filter(|node| !self.is_running(*node));
        let start = |number: usize| async move {
            let started = match self.node(number).disk.is_cut() {
                true => self.power_on(number).await,
                false => self.start_node(number).await,
            };
            (number, started)
        };
        join_all(down.map(start)).await
    }

    /// Ends the run: no process, mount, namespace, image or copy of the program is left, only the logs.
    pub async fn stop(&self) -> Result<()> {
        for node in 0..self.size() {
            // The sweep kills whatever these leave.
            let _ = self.stop_doubling(node).await;
            let _ = self.thaw(node).await;
            let _ = self.detach(node).await;
            let _ = self.kill(node).await;
        }
        let run = self.run;
        tokio::task::spawn_blocking(move || run.sweep()).await??;
        self.remove_files()
    }

    fn remove_files(&self) -> Result<()> {
        for node in self.nodes.write().drain(..) {
            node.disk.remove()?;
        }
        remove_if_there(&self.binary)?;
        self.failpoints.as_deref().map_or(Ok(()), remove_if_there)
    }
}

/// Of the bugs that are planted those that a node has.
fn bugs_of(planted: &str, node: usize) -> Option<String> {
    let of_node = |bug: &str| match bug.split_once('@') {
        Some((name, number)) => (number.parse() == Ok(node)).then(|| name.to_owned()),
        None => Some(bug.to_owned()),
    };
    let bugs: Vec<String> = planted.split(',').filter_map(of_node).collect();
    (!bugs.is_empty()).then(|| bugs.join(","))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("removing the copied program"),
        _ => Ok(()),
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.run.folder().exists() {
            return;
        }
        if let Err(error) = self.run.sweep().and_then(|_| self.remove_files()) {
            tracing::warn!(%error, "a run is not wholly removed; `quorate-jepsen clean` tries again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_of_one_node_is_not_one_of_the_others() {
        assert_eq!(bugs_of("convicting-leader,unwritten-row@0", 0).as_deref(), Some("convicting-leader,unwritten-row"));
        assert_eq!(bugs_of("convicting-leader,unwritten-row@0", 1).as_deref(), Some("convicting-leader"));
        assert_eq!(bugs_of("unwritten-row@0", 1), None);
    }
}
