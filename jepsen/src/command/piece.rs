//! A run as a process of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::runs_folder;
use crate::check::Outcome;
use crate::run::RunReport;

/// How many valid runs are kept, a report and a plot of each.
const KEPT: usize = 50;
/// Where, below the folder of the runs.
const VALID: &str = "valid";
/// What of them.
const KEPT_FILES: [&str; 2] = ["report.json", "plot.html"];
/// What a program may take beside its length: making a cluster, final reads, checking.
const BESIDE: Duration = Duration::from_secs(600);
/// How long a program that was asked to end may take to end its faults and remove what it made.
const ENDS: Duration = Duration::from_secs(600);

/// Tells apart the folders of pieces that this process has begun.
static BEGUN: AtomicU64 = AtomicU64::new(0);

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
    /// Further arguments of the nodes.
    pub(super) node: &'static [&'static str],
    /// The program that runs it; absent: this one.
    pub(super) harness: Option<PathBuf>,
}

/// A run that has ended. Its files are there until it is dropped, and stay after that if it was void or broke a
/// promise.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) report: RunReport,
    directory: PathBuf,
    is_wanted: bool,
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
            node: &[],
            harness: None,
        }
    }

    /// A folder that no other piece has, whose name ends with the process that began it: see [`remove_lost`].
    fn directory(&self) -> PathBuf {
        let nemeses = self.nemeses.join("+").replace([':', '/'], "_");
        let planted = self.planted.as_ref().map(|name| format!("-{name}")).unwrap_or_default();
        let begun = BEGUN.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{nemeses}{planted}-{}-{begun}-{}", self.workload, self.seed, std::process::id());
        runs_folder().join(name)
    }

    fn arguments(&self, directory: &Path) -> Vec<String> {
        let mut words = vec!["run".into(), "-o".into(), "json".into(), "--stop-with-stdin".into()];
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
        if !self.node.is_empty() {
            words.push("--".into());
            words.extend(self.node.iter().map(|word| (*word).to_owned()));
        }
        words
    }

    /// Runs it.
    ///
    /// # Errors
    /// If it cannot be started, or ended without a report.
    pub(super) async fn run(&self, interrupted: &CancellationToken) -> Result<Ended> {
        let directory = self.directory();
        if directory.exists() {
            // Of an earlier process with our number, which was killed.
            fs_err::remove_dir_all(&directory)?;
        }
        fs_err::create_dir_all(&directory)?;
        let program = self.harness.clone().map_or_else(std::env::current_exe, Ok).context("finding this program")?;
        let mut command = Command::new(program);
        command.args(self.arguments(&directory));
        if let Some(name) = &self.planted {
            // Some planted bugs are in the client, which is in the harness.
            command.env("QUORATE_PLANTED", name);
        }
        let log = directory.join("harness.log");
        let limit = limit_of(Duration::from_secs_f64(self.seconds));
        let report: RunReport =
            output_of(command, &log, limit, interrupted).await.with_context(|| format!("see {}", log.display()))?;
        // A bug that was planted is no news.
        let is_wanted = match report.outcome {
            Outcome::Valid => false,
            Outcome::Invalid => self.planted.is_none(),
            Outcome::Void => true,
        };
        Ok(Ended { report, directory, is_wanted })
    }
}

impl Ended {
    /// Where its files are.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Lets its files stay.
    pub(super) fn keep(&mut self) {
        self.is_wanted = true;
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if self.is_wanted {
            return;
        }
        if let Err(error) = keep_small(&self.directory, &runs_folder().join(VALID)) {
            eprintln!("the files of {} stay: {error:#}", self.directory.display());
        }
    }
}

/// Keeps the report and the plot of a run, those of the last [`KEPT`] runs at most, and removes everything else.
fn keep_small(directory: &Path, to: &Path) -> Result<()> {
    let name = directory.file_name().context("a run's folder has a name")?;
    let kept = to.join(name);
    fs_err::create_dir_all(&kept)?;
    for file in KEPT_FILES.iter().filter(|file| directory.join(file).exists()) {
        fs_err::copy(directory.join(file), kept.join(file))?;
    }
    fs_err::remove_dir_all(directory)?;
    let mut all: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs_err::read_dir(to)? {
        let entry = entry?;
        all.push((entry.metadata()?.modified()?, entry.path()));
    }
    all.sort();
    let surplus = all.len().saturating_sub(KEPT);
    all.into_iter().take(surplus).try_for_each(|(_, oldest)| Ok(fs_err::remove_dir_all(oldest)?))
}

/// Removes the folders of pieces that never came to a report because the process that began them was killed. Says
/// which.
pub(super) fn remove_lost() -> Result<Vec<String>> {
    remove_lost_in(&runs_folder())
}

fn remove_lost_in(folder: &Path) -> Result<Vec<String>> {
    let mut said = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let begun_by = name.rsplit_once('-').and_then(|(_, number)| number.parse::<i32>().ok());
        let is_lost = begun_by.is_some_and(|process| kill(Pid::from_raw(process), None) == Err(Errno::ESRCH));
        // One that was recorded and never judged is worth nothing either: its seed is run again.
        if is_lost && path.is_dir() && !path.join("report.json").exists() {
            fs_err::remove_dir_all(&path)?;
            said.push(path.display().to_string());
        }
    }
    Ok(said)
}

/// How long a program may take whose work takes so long.
pub(super) fn limit_of(length: Duration) -> Duration {
    3 * length + BESIDE
}

/// What a program prints as JSON. When this program is interrupted that one is asked to end, and waited for; so it is
/// when it does not end in time. Its standard input is a pipe that closes with this process, whatever becomes of it.
pub(super) async fn output_of<T: DeserializeOwned>(
    mut command: Command,
    log: &Path,
    limit: Duration,
    interrupted: &CancellationToken,
) -> Result<T> {
    ensure!(!interrupted.is_cancelled(), "it was interrupted");
    let errors = fs_err::File::create(log)?.into_parts().0;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors).kill_on_drop(true);
    let mut child = command.spawn().context("starting a run")?;
    let input = child.stdin.take();
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let mut output = Box::pin(child.wait_with_output());
    let late = tokio::select! {
        output = &mut output => return parse(&output?),
        () = tokio::time::sleep(limit) => true,
        () = interrupted.cancelled() => false,
    };
    if let Some(pid) = pid {
        // It may have ended just now.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    drop(input);
    // Dropped, it is killed.
    let output = tokio::time::timeout(ENDS, output).await;
    ensure!(!late, "it did not end within {limit:?}");
    parse(&output.with_context(|| format!("it did not end within {ENDS:?} of being asked to"))??)
        .context("it was interrupted")
}

fn parse<T: DeserializeOwned>(output: &std::process::Output) -> Result<T> {
    match serde_json::from_slice(&output.stdout) {
        Ok(value) => Ok(value),
        Err(error) => bail!("it ended with {} and without a report ({error})", output.status),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
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
            node: &["--purge-tail", "20"],
            ..Piece::new("mixed", &["kill", "links:17@2"], 300.0, 7)
        };
        let words = piece.arguments(Path::new("/tmp/x"));
        Arguments::try_parse_from(std::iter::once("quorate-jepsen".to_owned()).chain(words)).expect("understood");
    }

    #[test]
    fn two_pieces_never_share_a_folder() {
        let piece = Piece::new("mixed", &["kill"], 1.0, 7);
        assert_ne!(piece.directory(), piece.directory());
    }

    #[test]
    fn of_valid_runs_the_last_ones_are_kept_and_little_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("valid");
        for number in 0..KEPT + 3 {
            let run = folder.path().join(format!("run-{number}"));
            fs_err::create_dir(&run).unwrap();
            for file in ["report.json", "plot.html", "history.jsonl"] {
                fs_err::write(run.join(file), "x").unwrap();
            }
            keep_small(&run, &to).unwrap();
            assert!(!run.exists());
        }
        assert_eq!(fs_err::read_dir(&to).unwrap().count(), KEPT);
        let last = to.join(format!("run-{}", KEPT + 2));
        assert!(last.join("plot.html").exists() && !last.join("history.jsonl").exists());
    }

    #[test]
    fn what_a_killed_campaign_left_half_done_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        // No process has a number beyond the kernel's limit of 2^22.
        let (dead, own) = (i32::MAX, std::process::id());
        let make = |name: String, has_report: bool| {
            let run = folder.path().join(name);
            fs_err::create_dir(&run).unwrap();
            if has_report {
                fs_err::write(run.join("report.json"), "{}").unwrap();
            }
            run
        };
        let lost = make(format!("mixed-kill-7-0-{dead}"), false);
        let stay = [
            make(format!("mixed-kill-8-0-{dead}"), true),
            make(format!("mixed-kill-9-0-{own}"), false),
            make("valid".into(), false),
        ];
        assert_eq!(remove_lost_in(folder.path()).unwrap(), [lost.display().to_string()]);
        assert!(!lost.exists() && stay.iter().all(|run| run.exists()));
        assert_eq!(remove_lost_in(&folder.path().join("nothing")).unwrap(), Vec::<String>::new());
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn a_program_that_does_not_end_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let limit = Duration::from_millis(100);
        let never = CancellationToken::new();
        let ended: Result<u32> = output_of(shell("exec sleep 1000"), &log, limit, &never).await;
        assert!(format!("{:#}", ended.unwrap_err()).contains("did not end within 100ms"));
        let told: u32 = output_of(shell("echo 7"), &log, Duration::from_secs(60), &never).await.unwrap();
        assert_eq!(told, 7);
    }

    #[tokio::test]
    async fn a_program_notices_that_who_started_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let interrupted = CancellationToken::new();
        // It ignores the signal, and sees only that its input has ended.
        let script = "trap '' TERM; echo ready >&2; read line; echo 7";
        let output = output_of::<u32>(shell(script), &log, Duration::from_secs(60), &interrupted);
        let interrupt = async {
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            while !fs_err::read_to_string(&log).is_ok_and(|said| said.contains("ready")) {
                tick.tick().await;
            }
            interrupted.cancel();
        };
        assert_eq!(tokio::join!(output, interrupt).0.unwrap(), 7);
    }
}
