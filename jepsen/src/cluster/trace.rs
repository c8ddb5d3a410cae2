//! Failing and slow syncs: strace, attached to a node, answers or delays its system calls.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::outages::Outage;
use super::{Cluster, tool};

const ATTACHED: Duration = Duration::from_secs(10);
const DETACHED: Duration = Duration::from_secs(10);

/// An strace that is attached to a node.
#[derive(Debug)]
pub(super) struct Trace {
    child: Child,
    output: PathBuf,
}

impl Cluster {
    /// Attaches strace to a running node; `inject` is what strace does to each fsync and fdatasync, such as
    /// `error=EIO:when=3` (counted for each thread) or `delay_enter=50000` (microseconds). Until [`Cluster::detach`].
    ///
    /// Every system call of the node is slower meanwhile.
    pub async fn attach(&self, node: usize, inject: &str) -> Result<()> {
        if !inject.starts_with("error=") {
            return self.trace(node, inject).await;
        }
        // A node ends over a sync that failed; over one that is slow it has no reason to.
        self.may_end(node);
        self.begin_outage(node, Outage::FailedSyncs);
        let attached = self.trace(node, inject).await;
        if attached.is_err() {
            self.end_outage(node, Outage::FailedSyncs);
        }
        attached
    }

    async fn trace(&self, node: usize, inject: &str) -> Result<()> {
        let pid = self.pid(node).with_context(|| format!("node {node} does not run"))?;
        let output = self.directory_of(node).join("strace");
        let enter = self.enter(node);
        let mut command = Command::new(&enter[0]);
        command.args([enter[1].as_str(), "strace", "-f", "-p", &pid.to_string()]);
        command
            .args(["-e", "trace=fsync,fdatasync", "-e", &format!("inject=fsync,fdatasync:{inject}"), "-o"])
            .arg(&output);
        command.env("PATH", tool::search_path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting strace")?;
        let mut said = BufReader::new(child.stderr.take().context("a piped standard error")?).lines();
        let attached = async {
            let mut last = String::new();
            while let Some(line) = said.next_line().await? {
                if line.contains("attached") {
                    return Ok(());
                }
                last = line;
            }
            bail!("strace ended: {last}");
        };
        tokio::time::timeout(ATTACHED, attached).await.context("strace does not say that it is attached")??;
        // Read on, so that strace never waits for us.
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        *self.node(node).trace.lock() = Some(Trace { child, output });
        Ok(())
    }

    /// How many syncs were failed or delayed since [`Cluster::attach`].
    pub fn syncs_hit(&self, node: usize) -> usize {
        let trace = self.node(node);
        let trace = trace.trace.lock();
        let Some(trace) = trace.as_ref() else { return 0 };
        let written = std::fs::read_to_string(&trace.output).unwrap_or_default();
        written.lines().filter(|line| line.contains("(INJECTED)") || line.contains("(DELAYED)")).count()
    }

    /// Lets a node go. Does nothing if nothing is attached.
    pub async fn detach(&self, node: usize) -> Result<()> {
        let Some(Trace { mut child, .. }) = self.node(node).trace.lock().take() else { return Ok(()) };
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It lets go and ends.
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
        if tokio::time::timeout(DETACHED, child.wait()).await.is_err() {
            child.kill().await.context("ending strace")?;
        }
        self.end_outage(node, Outage::FailedSyncs);
        self.lives_on(node);
        Ok(())
    }
}
