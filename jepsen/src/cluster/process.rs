//! One node process: a child of this one in a network namespace, which ends with it.
//!
//! Somebody who ends a process, or does to it what may end it, says so before. Every other end is the node's own doing, and is
//! kept with what the node said last.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

/// How long a node may take to say that it is ready. Loading is quick; a machine with several runs on it is not.
const READY: Duration = Duration::from_secs(60);

/// How many lines of its log an end is told with.
const LAST_LINES: usize = 5;

/// A node did not start, or ended: its own doing, and not that of the machine or of the harness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFailed(String);

impl fmt::Display for NodeFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NodeFailed {}

/// Ends of processes that nobody had reason to expect, a sentence each. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Deaths(Arc<Mutex<Vec<String>>>);

impl Deaths {
    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// Whether a process may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MayEnd {
    Never,
    Until(Instant),
    Always,
}

/// What `quorate node start -o json` prints once it listens. Its addresses are those that we gave it.
#[derive(Deserialize)]
struct Ready {
    node_id: String,
}

/// A running node, or one that ended and was not looked at yet.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) node_id: String,
    signals: mpsc::UnboundedSender<Signal>,
    ended: watch::Receiver<Option<ExitStatus>>,
    may_end: Arc<Mutex<MayEnd>>,
}

/// What must be known of a process where its end is seen.
pub(super) struct Witness {
    label: String,
    /// Gets what the process writes on its standard error, after what is there.
    log: PathBuf,
    may_end: Arc<Mutex<MayEnd>>,
    /// Whether it has a reason of its own to end, such as damage that it has found.
    excused: Box<dyn Fn() -> bool + Send>,
    deaths: Deaths,
}

impl Process {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// [`NodeFailed`] if the process ends before it is ready, or is not ready in time.
    pub(super) async fn start(mut command: Command, witness: Witness) -> Result<Process> {
        let (label, log) = (witness.label.as_str(), witness.log.as_path());
        let file = fs_err::OpenOptions::new().create(true).append(true).open(log)?;
        let from = file.metadata()?.len();
        // The node ends when the pipe to its standard input closes, so that no crash of ours leaves it behind.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file.into_parts().0).kill_on_drop(true);
        // Who interrupts the harness by its group, as a terminal does, must not end the node beside it, which would be taken for
        // an end of its own.
        command.process_group(0);
        let mut child = command.spawn().with_context(|| format!("starting {label}"))?;
        let pid = child.id().context("a process that nobody waited for has an id")?;
        let mut lines = BufReader::new(child.stdout.take().context("a piped standard output")?).lines();
        let first = tokio::time::timeout(READY, lines.next_line())
            .await
            .map_err(|_| NodeFailed(format!("{label} is not ready within {READY:?}; see {}", log.display())))??;
        let Some(first) = first else {
            let status = child.wait().await?;
            let said = last_lines(log, from, 1);
            return Err(NodeFailed(format!("{label} ended with {status} before it was ready: {said}")).into());
        };
        let ready: Ready =
            serde_json::from_str(&first).map_err(|error| NodeFailed(format!("{label} printed {first:?}: {error}")))?;
        let (signals, wanted) = mpsc::unbounded_channel();
        let (ending, ended) = watch::channel(None);
        let may_end = Arc::clone(&witness.may_end);
        tokio::spawn(async move {
            // Read on, so that the pipe never fills.
            let drain = async { while let Ok(Some(_)) = lines.next_line().await {} };
            tokio::join!(drain, attend(child, wanted, ending, witness));
        });
        Ok(Process { pid, node_id: ready.node_id, signals, ended, may_end })
    }

    /// Something is done to it that ends it or may end it: from now on its end is no news.
    pub(super) fn may_end(&self) {
        *self.may_end.lock() = MayEnd::Always;
    }

    /// What was done to it is over. It may still be on its way to its end, for so long; after that it lives on.
    pub(super) fn may_end_for(&self, grace: Duration) {
        let mut may_end = self.may_end.lock();
        if *may_end == MayEnd::Always {
            *may_end = MayEnd::Until(Instant::now() + grace);
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// Sends a signal, unless the process has ended.
    pub(super) fn signal(&self, signal: Signal) {
        // Nobody attends a process that has ended.
        let _ = self.signals.send(signal);
    }

    /// How it ended, if it does so in time.
    pub(super) async fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let mut ended = self.ended.clone();
        let status = tokio::time::timeout(limit, ended.wait_for(Option::is_some)).await.ok()?;
        status.ok().and_then(|status| *status)
    }
}

/// Sends signals and waits for the end in one place, so that no signal ever meets another process of the same number.
async fn attend(
    mut child: Child,
    mut wanted: mpsc::UnboundedReceiver<Signal>,
    ending: watch::Sender<Option<ExitStatus>>,
    witness: Witness,
) {
    let input = child.stdin.take();
    loop {
        tokio::select! {
            status = child.wait() => {
                drop(input);
                let status = status.ok();
                witness.saw(status);
                ending.send_replace(status);
                return;
            }
            signal = wanted.recv() => {
                let Some(signal) = signal else {
                    // The cluster is gone.
                    let _ = child.start_kill();
                    let _ = child.wait().await;
                    return;
                };
                if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
        }
    }
}

impl Witness {
    /// A witness of a process that is to live. `excused` is asked when it has ended.
    pub(super) fn new(
        label: &str,
        log: PathBuf,
        deaths: &Deaths,
        excused: impl Fn() -> bool + Send + 'static,
    ) -> Witness {
        let may_end = Arc::new(Mutex::new(MayEnd::Never));
        Witness { label: label.to_owned(), log, may_end, excused: Box::new(excused), deaths: deaths.clone() }
    }

    /// The same of a process that is to end by itself.
    pub(super) fn of_one_that_ends(self) -> Witness {
        *self.may_end.lock() = MayEnd::Always;
        self
    }

    /// The process has ended.
    fn saw(&self, status: Option<ExitStatus>) {
        let was_expected = match *self.may_end.lock() {
            MayEnd::Never => false,
            MayEnd::Until(end) => Instant::now() < end,
            MayEnd::Always => true,
        };
        if !was_expected && !(self.excused)() {
            let status = status.map_or_else(|| "a status that is not known".to_owned(), |status| status.to_string());
            let said = last_lines(&self.log, 0, LAST_LINES);
            self.deaths.0.lock().push(format!("{} ended by itself with {status}; it said last: {said}", self.label));
        }
    }
}

/// The last things that were logged from a place on.
fn last_lines(log: &Path, from: u64, count: usize) -> String {
    let logged = std::fs::read(log).unwrap_or_default();
    let new = String::from_utf8_lossy(logged.get(usize::try_from(from).unwrap_or(0)..).unwrap_or_default());
    let mut last = VecDeque::with_capacity(count);
    for line in new.lines().filter(|line| !line.trim().is_empty()) {
        if last.len() == count {
            last.pop_front();
        }
        last.push_back(line);
    }
    if last.is_empty() { "nothing".to_owned() } else { last.make_contiguous().join(" / ") }
}

/// The state letters of a process's threads, as /proc has them: `T` stopped, `D` waiting for a disk.
pub(super) fn thread_states(pid: u32) -> Vec<char> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats.filter_map(|stat| stat.rsplit(')').next()?.trim_start().chars().next()).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    const READY_LINE: &str = r#"echo '{"node_id":"a"}'; echo first >&2; echo second >&2;"#;

    /// Starts a shell that stands for a node. What it reads from its standard input lets it go on.
    async fn start(script: &str, witness: Witness) -> Result<Process> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command, witness).await
    }

    #[tokio::test]
    async fn an_end_that_nobody_expected_is_told_with_the_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let deaths = Deaths::default();
        let witness = || Witness::new("node-7", folder.path().join("log"), &deaths, || false);
        let node = start(&format!("{READY_LINE} exit 3"), witness()).await.unwrap();
        assert_eq!(node.wait(READY).await.unwrap().code(), Some(3));
        let told = deaths.all();
        assert_eq!(told, ["node-7 ended by itself with exit status: 3; it said last: first / second"]);
    }

    #[tokio::test]
    async fn a_signal_to_the_group_of_the_harness_does_not_reach_a_node() {
        let folder = tempfile::tempdir().unwrap();
        let witness = Witness::new("node-7", folder.path().join("log"), &Deaths::default(), || false);
        let node = start(&format!("{READY_LINE} exec cat"), witness.of_one_that_ends()).await.unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid)).unwrap();
        // The name, which is in brackets, may have blanks; behind it are the state, the parent and the group.
        let group = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(2).unwrap();
        assert_eq!(group, node.pid.to_string());
        node.signal(Signal::SIGKILL);
        node.wait(READY).await.unwrap();
    }

    #[tokio::test]
    async fn an_end_that_was_announced_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let deaths = Deaths::default();
        let witness = || Witness::new("node-7", folder.path().join("log"), &deaths, || false);
        let to_end = start(&format!("{READY_LINE} exit 3"), witness().of_one_that_ends()).await.unwrap();
        to_end.wait(READY).await.unwrap();
        let killed = start(&format!("{READY_LINE} exec cat"), witness()).await.unwrap();
        killed.may_end();
        killed.signal(Signal::SIGKILL);
        killed.wait(READY).await.unwrap();
        let damaged = Witness::new("node-7", folder.path().join("log"), &deaths, || true);
        let damaged = start(&format!("{READY_LINE} exit 3"), damaged).await.unwrap();
        damaged.wait(READY).await.unwrap();
        assert_eq!(deaths.all(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_fault_that_is_over_excuses_no_end_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let deaths = Deaths::default();
        let witness = || Witness::new("node-7", folder.path().join("log"), &deaths, || false);
        for (grace, told) in [(READY, 0), (Duration::ZERO, 1)] {
            let node = start(&format!("{READY_LINE} exec cat"), witness()).await.unwrap();
            node.may_end();
            node.may_end_for(grace);
            node.signal(Signal::SIGTERM);
            node.wait(READY).await.unwrap();
            assert_eq!(deaths.all().len(), told);
        }
        // What was never announced is not excused by the end of a fault either.
        let node = start(&format!("{READY_LINE} exec cat"), witness()).await.unwrap();
        node.may_end_for(READY);
        node.signal(Signal::SIGTERM);
        node.wait(READY).await.unwrap();
        assert_eq!(deaths.all().len(), 2);
    }

    #[tokio::test]
    async fn a_node_that_does_not_start_is_told_from_a_tool_that_does_not_work() {
        let folder = tempfile::tempdir().unwrap();
        let deaths = Deaths::default();
        let witness = || Witness::new("node-7", folder.path().join("log"), &deaths, || false);
        let refused = start("echo 'error: no' >&2; exit 1", witness()).await.unwrap_err();
        let told = refused.downcast_ref::<NodeFailed>().unwrap().to_string();
        assert_eq!(told, "node-7 ended with exit status: 1 before it was ready: error: no");
        let missing = Command::new("/no/such/program");
        let broken = Process::start(missing, witness()).await.unwrap_err();
        assert!(broken.downcast_ref::<NodeFailed>().is_none(), "{broken:#}");
    }
}
