//! What the whole-cluster tests share: clusters of real processes of the binary that `make test` has built.

mod disk;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use quorate::local_cluster::{Launch, LocalCluster};
use tempfile::TempDir;

pub use disk::LoopDisk;

/// A cluster whose processes and files go when it is dropped.
#[derive(Debug)]
pub struct TestCluster {
    /// The processes.
    pub cluster: LocalCluster,
    /// Their files. Dropped after the processes.
    pub directory: TempDir,
}

impl TestCluster {
    /// A healthy cluster of `size` fresh nodes on loopback, on ports that the kernel chose.
    pub async fn start(size: usize) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("quorate-test-").tempdir()?;
        let launch = Launch { binary: Some(binary()?), directory: directory.path().to_owned(), arguments: Vec::new() };
        Ok(TestCluster { cluster: LocalCluster::start(launch, size).await?, directory })
    }
}

/// The binary of the same build as the running test: `target/<profile>/quorate` beside `target/<profile>/deps/<test>`.
pub fn binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test.parent().and_then(|deps| deps.parent()).context("a test lies in target/<profile>/deps")?;
    let binary = profile.join("quorate");
    ensure!(
        binary.exists(),
        "{} is not built: run make test, or cargo build --release -p quorate first",
        binary.display()
    );
    Ok(binary)
}

/// Ends with the value once `probe` gives one, asked again every 20 ms; fails after 60 s with what was waited for.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(20));
    let asked = async {
        loop {
            tick.tick().await;
            if let Some(value) = probe().await? {
                return Ok(value);
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), asked)
        .await
        .with_context(|| format!("after 60 s: {what}"))?
}
