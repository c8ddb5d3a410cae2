//! A cluster of real processes on loopback, for `dev`, `demo`, `bench --spawn` and the whole-cluster tests.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quorate_client::{Client, v1 as api};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long a node may take to print that it is ready, or a cluster to be healthy.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What `quorate node start -o json` prints once it listens.
#[derive(Debug, Clone, Deserialize)]
pub struct Addresses {
    /// Its id, 16 hexadecimal digits.
    pub node_id: String,
    /// Where clients connect.
    pub client: String,
    /// Where its peers connect.
    pub peer: String,
    /// Metrics and health.
    pub http: String,
}

/// One node process. Dropping it ends the process.
#[derive(Debug)]
pub struct LocalNode {
    label: String,
    directory: PathBuf,
    /// Where it listens; the same after a restart.
    pub addresses: Addresses,
    child: Option<Child>,
}

impl LocalNode {
    /// Whether its process runs, as far as we started and stopped it.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }
    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }
    /// Its label, for messages.
    pub fn label(&self) -> &str {
        &self.label
    }
    /// The URL for clients.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addresses.client)
    }
    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }
    /// Ends the process at once, as a crash does (SIGKILL), and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await.with_context(|| format!("killing {}", self.label))?;
        }
        Ok(())
    }
    /// Whether its process has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }
    /// Lets the process end in good order, and waits until it is gone.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        // It ends when its standard input does.
        drop(child.stdin.take());
        let ended = tokio::time::timeout(START_TIMEOUT, child.wait()).await;
        ended.with_context(|| format!("{} does not stop", self.label))??;
        Ok(())
    }
}

/// What the nodes of a local cluster are started with.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The binary. `None`: this one.
    pub binary: Option<PathBuf>,
    /// Each node has a folder in here.
    pub directory: PathBuf,
    /// Further arguments of `node start`.
    pub arguments: Vec<String>,
}

/// Nodes that run as children of this process and end with it.
#[derive(Debug)]
pub struct LocalCluster {
    launch: Launch,
    /// In the order in which they joined.
    pub nodes: Vec<LocalNode>,
}

impl LocalCluster {
    /// Starts `size` nodes with empty data, makes a cluster of them with the default number of shards and waits until it is
    /// healthy.
    pub async fn start(launch: Launch, size: usize) -> Result<Self> {
        Self::start_with(launch, size, 0).await
    }

    /// The same with so many shards.
    pub async fn start_with(launch: Launch, size: usize, shards: u32) -> Result<Self> {
        ensure!(size > 0, "a cluster has at least one node");
        let mut cluster = LocalCluster { launch, nodes: Vec::new() };
        for _ in 0..size {
            cluster.add_process().await?;
        }
        cluster.client_of(0)?.cluster_init(shards).await.context("initialising the first node")?;
        for joining in 1..size {
            cluster.join(joining).await?;
        }
        cluster.wait_healthy().await?;
        Ok(cluster)
    }

    /// Starts one more process, which is no member yet.
    pub async fn add_process(&mut self) -> Result<usize> {
        let label = format!("node-{}", self.nodes.len() + 1);
        let directory = self.launch.directory.join(&label);
        fs_err::create_dir_all(&directory)?;
        let (child, addresses) = spawn(&self.launch, &label, &directory, None).await?;
        self.nodes.push(LocalNode { label, directory, addresses, child: Some(child) });
        Ok(self.nodes.len() - 1)
    }

    /// Lets a started process join the first node's cluster.
    pub async fn join(&self, node: usize) -> Result<()> {
        let seed = self.nodes.iter().enumerate().find(|(index, other)| *index != node && other.is_running());
        let (_, seed) = seed.context("no node runs that could be joined")?;
        self.client_of(node)?
            .cluster_join(&seed.addresses.client)
            .await
            .with_context(|| format!("joining {}", self.nodes[node].label))?;
        Ok(())
    }

    /// Starts a killed node again on its data and its addresses.
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        let target = &self.nodes[node];
        ensure!(!target.is_running(), "{} runs already", target.label);
        let (child, _) = spawn(&self.launch, &target.label, &target.directory, Some(&target.addresses)).await?;
        self.nodes[node].child = Some(child);
        Ok(())
    }

    /// Starts a node again whose process has ended by itself, as a service manager does.
    pub async fn revive(&mut self, node: usize) -> Result<()> {
        if self.nodes[node].has_ended() {
            self.nodes[node].kill().await?;
            self.restart(node).await?;
        }
        Ok(())
    }

    /// The URLs of all nodes, those that do not run too.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(LocalNode::endpoint).collect()
    }

    /// A client that knows every node.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(self.endpoints())?)
    }

    /// A client that knows one node only.
    pub fn client_of(&self, node: usize) -> Result<Client> {
        Ok(Client::connect([self.nodes[node].endpoint()])?)
    }

    /// The node that leads control, as the running nodes say.
    pub async fn leader(&self) -> Result<usize> {
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while tokio::time::Instant::now() < deadline {
            tick.tick().await;
            for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
                let Ok(status) = self.client_of(index)?.cluster_status().await else { continue };
                if status.nodes.iter().any(|row| row.control_leader && row.node_id == node.addresses.node_id) {
                    return Ok(index);
                }
            }
        }
        bail!("no node leads control within {START_TIMEOUT:?}: see the logs in {}", self.launch.directory.display())
    }

    /// Waits until the status of every running node says healthy.
    pub async fn wait_healthy(&self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let mut problems = Vec::new();
        'again: while tokio::time::Instant::now() < deadline {
            tick.tick().await;
            for index in (0..self.nodes.len()).filter(|index| self.nodes[*index].is_running()) {
                match self.client_of(index)?.cluster_status().await {
                    Ok(status) if status.health() == api::Health::Healthy && status.nodes.len() == self.members() => {}
                    Ok(status) => {
                        problems = status.problems;
                        continue 'again;
                    }
                    Err(error) => {
                        problems = vec![error.to_string()];
                        continue 'again;
                    }
                }
            }
            return Ok(());
        }
        bail!(
            "the cluster is not healthy within {START_TIMEOUT:?}: {}; logs in {}",
            problems.join("; "),
            self.launch.directory.display()
        )
    }

    fn members(&self) -> usize {
        self.nodes.len()
    }

    /// Ends all processes.
    pub async fn stop(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.kill().await?;
        }
        Ok(())
    }
}

async fn spawn(
    launch: &Launch,
    label: &str,
    directory: &Path,
    again: Option<&Addresses>,
) -> Result<(Child, Addresses)> {
    let binary = launch.binary.clone().map_or_else(std::env::current_exe, Ok)?;
    let log = fs_err::OpenOptions::new().create(true).append(true).open(directory.join("log"))?;
    let any = "127.0.0.1:0".to_owned();
    let of = |pick: fn(&Addresses) -> &String| again.map_or_else(|| any.clone(), |known| pick(known).clone());
    let mut command = Command::new(&binary);
    command
        .args(["node", "start", "-o", "json", "--stop-with-stdin", "--label", label])
        .arg("--data-dir")
        .arg(directory.join("data"))
        .args(["--client-listen", &of(|known| &known.client), "--peer-listen", &of(|known| &known.peer)])
        .args(["--http-listen", &of(|known| &known.http)])
        .args(&launch.arguments)
        // The node ends when this pipe closes, so that no crash of ours leaves it behind.
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.into_parts().0)
        .kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("starting {}", binary.display()))?;
    let mut lines = BufReader::new(child.stdout.take().context("the child has a standard output")?).lines();
    let first = tokio::time::timeout(START_TIMEOUT, lines.next_line())
        .await
        .with_context(|| format!("{label} does not say that it is ready; its log is in {}", directory.display()))??;
    let Some(first) = first else {
        let log = fs_err::read_to_string(directory.join("log")).unwrap_or_default();
        bail!("{label} ended before it was ready: {}", log.lines().last().unwrap_or("its log is empty"));
    };
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let addresses = serde_json::from_str(&first).with_context(|| format!("{label} printed {first:?}"))?;
    Ok((child, addresses))
}
