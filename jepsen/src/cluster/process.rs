//! One node process: a child of this one in a network namespace, which ends with it.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

/// How long a node may take to say that it is ready. Loading is quick; a machine with several runs on it is not.
const READY: Duration = Duration::from_secs(60);

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
}

impl Process {
    /// Starts it and waits until it is ready. `log` gets what it writes on its standard error, after what is there.
    pub(super) async fn start(mut command: Command, label: &str, log: &Path) -> Result<Process> {
        let file = fs_err::OpenOptions::new().create(true).append(true).open(log)?;
        let from = file.metadata()?.len();
        // The node ends when the pipe to its standard input closes, so that no crash of ours leaves it behind.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file.into_parts().0).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("starting {label}"))?;
        let pid = child.id().context("a process that nobody waited for has an id")?;
        let mut lines = BufReader::new(child.stdout.take().context("a piped standard output")?).lines();
        let first = tokio::time::timeout(READY, lines.next_line())
            .await
            .with_context(|| format!("{label} is not ready within {READY:?}; see {}", log.display()))??;
        let Some(first) = first else {
            let status = child.wait().await?;
            bail!("{label} ended with {status} before it was ready: {}", last_line(log, from));
        };
        let ready: Ready = serde_json::from_str(&first).with_context(|| format!("{label} printed {first:?}"))?;
        let (signals, wanted) = mpsc::unbounded_channel();
        let (ending, ended) = watch::channel(None);
        tokio::spawn(async move {
            // Read on, so that the pipe never fills.
            let drain = async { while let Ok(Some(_)) = lines.next_line().await {} };
            tokio::join!(drain, attend(child, wanted, ending));
        });
        Ok(Process { pid, node_id: ready.node_id, signals, ended })
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
) {
    let input = child.stdin.take();
    loop {
        tokio::select! {
            status = child.wait() => {
                drop(input);
                ending.send_replace(status.ok());
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

/// The last thing that was logged from a place on.
fn last_line(log: &Path, from: u64) -> String {
    let logged = std::fs::read(log).unwrap_or_default();
    let new =
        String::from_utf8_lossy(logged.get(usize::try_from(from).unwrap_or(0)..).unwrap_or_default()).into_owned();
    new.lines().last().unwrap_or("it logged nothing").to_owned()
}

/// The state letters of a process's threads, as /proc has them: `T` stopped, `D` waiting for a disk.
pub(super) fn thread_states(pid: u32) -> Vec<char> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats.filter_map(|stat| stat.rsplit(')').next()?.trim_start().chars().next()).collect()
}
