//! A run as a process of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::runs_folder;
use crate::check::Outcome;
use crate::run::RunReport;

/// What a run is started with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece {
    pub(super) workload: String,
    pub(super) nemeses: Vec<String>,
    pub(super) seconds: f64,
    pub(super) seed: u64,
    pub(super) nodes: usize,
    pub(super) rate: f64,
    pub(super) floor: f64,
    pub(super) fault: Option<&'static str>,
    pub(super) calm: Option<&'static str>,
    pub(super) planted: Option<String>,
    pub(super) binary: Option<PathBuf>,
}

impl Piece {
    /// A run with what is usual.
    pub(super) fn new(workload: &str, nemeses: &[&str], seconds: f64, seed: u64) -> Piece {
        Piece {
            workload: workload.into(),
            nemeses: nemeses.iter().map(|name| (*name).to_owned()).collect(),
            seconds,
            seed,
            nodes: 3,
            rate: 150.0,
            floor: 5.0,
            fault: None,
            calm: None,
            planted: None,
            binary: None,
        }
    }

    fn directory(&self) -> PathBuf {
        let nemeses = self.nemeses.join("+").replace([':', '/'], "_");
        let planted = self.planted.as_ref().map(|name| format!("-{name}")).unwrap_or_default();
        runs_folder().join(format!("{}-{nemeses}{planted}-{}", self.workload, self.seed))
    }

    fn arguments(&self, directory: &Path) -> Vec<String> {
        let mut words = vec!["run".into(), "-o".into(), "json".into()];
        let mut add = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
        add("--workload", self.workload.clone());
        add("--nemesis", self.nemeses.join(","));
        add("--time-limit", self.seconds.to_string());
        add("--seed", self.seed.to_string());
        add("--nodes", self.nodes.to_string());
        add("--rate", self.rate.to_string());
        add("--floor", self.floor.to_string());
        add("--directory", directory.display().to_string());
        if let Some(fault) = self.fault {
            add("--fault", fault.into());
        }
        if let Some(calm) = self.calm {
            add("--calm", calm.into());
        }
        if let Some(planted) = &self.planted {
            add("--planted", planted.clone());
        }
        if let Some(binary) = &self.binary {
            add("--binary", binary.display().to_string());
        }
        words
    }

    /// Runs it. Its files stay only if it is not valid.
    ///
    /// # Errors
    /// If it cannot be started, or ended without a report.
    pub(super) async fn run(&self, interrupted: &CancellationToken) -> Result<RunReport> {
        let directory = self.directory();
        fs_err::create_dir_all(&directory)?;
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.args(self.arguments(&directory));
        if let Some(name) = &self.planted {
            // Some planted bugs are in the client, which is in the harness.
            command.env("QUORATE_PLANTED", name);
        }
        let log = directory.join("harness.log");
        let report: RunReport =
            output_of(command, &log, interrupted).await.with_context(|| format!("see {}", log.display()))?;
        if report.valid == Outcome::Valid {
            fs_err::remove_dir_all(&directory)?;
        }
        Ok(report)
    }
}

/// What a program prints as JSON. When this program is interrupted that one is asked to end, and waited for.
pub(super) async fn output_of<T: DeserializeOwned>(
    mut command: Command,
    log: &Path,
    interrupted: &CancellationToken,
) -> Result<T> {
    ensure!(!interrupted.is_cancelled(), "it was interrupted");
    let errors = fs_err::File::create(log)?.into_parts().0;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
    let child = command.spawn().context("starting a run")?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let output = child.wait_with_output();
    tokio::pin!(output);
    let output = tokio::select! {
        output = &mut output => output?,
        () = interrupted.cancelled() => {
            if let Some(pid) = pid {
                // It may have ended just now.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            output.await?
        }
    };
    match serde_json::from_slice(&output.stdout) {
        Ok(value) => Ok(value),
        Err(error) => bail!("it ended with {} and without a report ({error})", output.status),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::Arguments;

    #[test]
    fn a_piece_is_a_command_that_is_understood() {
        let piece = Piece {
            fault: Some("1..2"),
            calm: Some("0.5..1"),
            planted: Some("stale-read".into()),
            binary: Some("/bin/true".into()),
            ..Piece::new("mixed", &["kill", "links:17@2"], 300.0, 7)
        };
        let words = piece.arguments(Path::new("/tmp/x"));
        Arguments::try_parse_from(std::iter::once("quorate-jepsen".to_owned()).chain(words)).expect("understood");
    }
}
