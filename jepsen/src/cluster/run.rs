//! A run's place on this machine: its number, from which all names follow, who owns it, and how it is swept away.
//!
//! Run 17 has the folder `/run/quorate-jepsen/17`, the bridge `qj17`, the subnet 198.18.17.0/24 (from the block that is
//! reserved for benchmarks) and, for its node 0, the network namespace `qj17n0`, the interface of the same name and the
//! mount `/run/quorate-jepsen/17/disk-0`. The folder is made whole under another name and renamed into place: that is
//! how two harnesses never take one number, and how [`clean`] always finds an owner in it. Numbers are taken and
//! cleaned under one lock, so that nobody cleans what another has just taken.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::tool;

const ROOT: &str = "/run/quorate-jepsen";
const LOCK: &str = "lock";
const PREFIX: &str = "qj";
/// What a run copies into its directory, and removes at its end.
const COPIES: [&str; 2] = ["quorate", "quorate-planted"];
/// What a node keeps in its folder there, and what goes with the run.
const DISKS: [&str; 2] = ["disk.img", "disk"];
const RUNS: u32 = 512;
/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(20);

/// The harness that a run belongs to. The start time tells it from a later process with the same number.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    started: String,
    /// Where the run's files are.
    #[serde(default)]
    directory: Option<PathBuf>,
}

/// A run's number and the names that follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    number: u32,
}

impl Run {
    /// Takes a free number for this process, and a run whose files are in `directory`.
    pub(super) fn reserve(directory: &Path) -> Result<Run> {
        let pid = std::process::id();
        let started = start_time(pid).context("/proc says when this process began")?;
        let owner = Owner { pid, started, directory: Some(directory.to_owned()) };
        let _one_at_a_time = lock()?;
        let made = tempfile::Builder::new().prefix(".new-").tempdir_in(ROOT)?;
        fs_err::write(made.path().join("owner"), serde_json::to_vec(&owner)?)?;
        for step in 0..RUNS {
            let run = Run { number: (pid + step) % RUNS };
            // Refused if it exists, as it is never empty.
            if std::fs::rename(made.path(), run.folder()).is_ok() {
                return Ok(run);
            }
        }
        bail!("all {RUNS} runs are taken: `quorate-jepsen clean` removes what dead ones left in {ROOT}")
    }

    /// A run that nobody reserved: nothing of it is on this machine.
    #[cfg(test)]
    pub(super) fn nowhere() -> Run {
        Run { number: RUNS }
    }

    pub(super) fn folder(self) -> PathBuf {
        Path::new(ROOT).join(self.number.to_string())
    }
    pub(super) fn bridge(self) -> String {
        format!("{PREFIX}{}", self.number)
    }
    pub(super) fn namespace(self, node: usize) -> String {
        format!("{PREFIX}{}n{node}", self.number)
    }
    pub(super) fn mount_point(self, node: usize) -> PathBuf {
        self.folder().join(format!("disk-{node}"))
    }
    pub(super) fn clock_file(self, node: usize) -> PathBuf {
        self.folder().join(format!("clock-{node}"))
    }
    /// The address of a node, or of this machine (254) on the run's bridge.
    pub(super) fn address(self, host: u8) -> Ipv4Addr {
        let [high, low] = u16::try_from(self.number).expect("fewer than 512 runs").to_be_bytes();
        Ipv4Addr::new(198, 18 + high, low, host)
    }
    pub(super) fn node_address(self, node: usize) -> Ipv4Addr {
        self.address(u8::try_from(node + 1).expect("fewer than 200 nodes"))
    }

    /// Ends all processes of the run and removes its mounts, namespaces, bridge and folder. Says what was there. Goes
    /// on after a failure, and reports the first one.
    pub(super) fn sweep(self) -> Result<Vec<String>> {
        let mut said = Vec::new();
        let mut first = None;
        let mut note = |done: Result<()>, what: String| match done {
            Ok(()) => said.push(what),
            Err(error) => {
                first.get_or_insert(error);
            }
        };
        let mounts = mounts_below(&self.folder())?;
        for mount in &mounts {
            // A frozen disk would hold up the end of the processes on it. It is an error when it is not frozen.
            let _ = tool::run(&["fsfreeze".as_ref(), "-u".as_ref(), mount.as_os_str()]);
        }
        let namespaces = self.namespaces()?;
        for namespace in &namespaces {
            match end_processes(namespace) {
                Ok(0) => {}
                ended => note(ended.map(|_| ()), format!("processes of {namespace}")),
            }
        }
        for mount in &mounts {
            note(tool::run(&["umount".as_ref(), mount.as_os_str()]).map(|_| ()), format!("mount {}", mount.display()));
        }
        // With a namespace the kernel removes its links too, but some time later; with one end of a link the other at once.
        for interface in self.interfaces()? {
            let removed = match tool::run(&["ip", "link", "del", &interface]) {
                Err(error) if Path::new("/sys/class/net").join(&interface).exists() => Err(error),
                _ => Ok(()),
            };
            note(removed, format!("interface {interface}"));
        }
        for namespace in &namespaces {
            note(tool::run(&["ip", "netns", "del", namespace]).map(|_| ()), format!("namespace {namespace}"));
        }
        if Path::new("/sys/class/net").join(self.bridge()).exists() {
            note(tool::run(&["ip", "link", "del", &self.bridge()]).map(|_| ()), format!("bridge {}", self.bridge()));
        }
        match first {
            Some(error) => Err(error.context(format!("removing what is left of run {}", self.number))),
            None => {
                if self.folder().exists() {
                    fs_err::remove_dir_all(self.folder())?;
                    said.push(self.folder().display().to_string());
                }
                Ok(said)
            }
        }
    }

    fn namespaces(self) -> Result<Vec<String>> {
        let start = format!("{PREFIX}{}n", self.number);
        Ok(namespaces()?.into_iter().filter(|name| name.starts_with(&start)).collect())
    }

    /// The ends on this machine of the links into the namespaces.
    fn interfaces(self) -> Result<Vec<String>> {
        let start = format!("{PREFIX}{}n", self.number);
        Ok(interfaces()?.into_iter().filter(|name| name.starts_with(&start)).collect())
    }

    fn owner(self) -> Option<Owner> {
        std::fs::read(self.folder().join("owner")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
    }
}

impl Owner {
    fn lives(&self) -> bool {
        start_time(self.pid).is_some_and(|started| started == self.started)
    }
}

/// Nobody takes a number or cleans up while this is held.
fn lock() -> Result<File> {
    fs_err::create_dir_all(ROOT)?;
    let file = fs_err::OpenOptions::new().create(true).append(true).open(Path::new(ROOT).join(LOCK))?.into_parts().0;
    file.lock().context("waiting for another harness to take a number or to clean up")?;
    Ok(file)
}

/// Removes what runs left behind whose harness is gone, the images of their disks and their copies of programs too;
/// with `force` also those whose harness still lives. Says what was removed, a line each.
///
/// # Errors
/// If something cannot be removed, e.g. for want of root.
pub fn clean(force: bool) -> Result<Vec<String>> {
    let _one_at_a_time = lock()?;
    let mut numbers = BTreeSet::new();
    if let Ok(entries) = std::fs::read_dir(ROOT) {
        for entry in entries {
            numbers.extend(entry?.file_name().to_string_lossy().parse::<u32>().ok());
        }
    }
    for name in namespaces()?.into_iter().chain(interfaces()?) {
        let digits: String =
            name.strip_prefix(PREFIX).unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
        numbers.extend(digits.parse::<u32>().ok());
    }
    let runs = numbers.into_iter().filter(|number| *number < RUNS).map(|number| Run { number });
    let (living, dead): (Vec<_>, Vec<_>) =
        runs.map(|run| (run, run.owner())).partition(|(_, owner)| !force && owner.as_ref().is_some_and(Owner::lives));
    let used: Vec<PathBuf> = living.into_iter().filter_map(|(_, owner)| owner?.directory).collect();
    let mut said = Vec::new();
    for (run, owner) in dead {
        said.extend(run.sweep()?);
        // A directory may have been named again for another run.
        if let Some(directory) = owner.and_then(|owner| owner.directory).filter(|directory| !used.contains(directory)) {
            said.extend(remove_bulk(&directory)?);
        }
    }
    Ok(said)
}

/// Removes what is large from the directory of a run that was killed: its logs and what was recorded stay.
fn remove_bulk(directory: &Path) -> Result<Vec<String>> {
    let mut bulk: Vec<PathBuf> = COPIES.iter().map(|name| directory.join(name)).collect();
    let nodes = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_node = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("node-"));
    bulk.extend(nodes.filter(is_node).flat_map(|node| DISKS.map(|name| node.join(name))));
    let mut said = Vec::new();
    for path in bulk.into_iter().filter(|path| path.exists()) {
        if path.is_dir() {
            fs_err::remove_dir_all(&path)?
        } else {
            fs_err::remove_file(&path)?
        }
        said.push(path.display().to_string());
    }
    Ok(said)
}

fn namespaces() -> Result<Vec<String>> {
    names_in("/run/netns")
}

fn interfaces() -> Result<Vec<String>> {
    names_in("/sys/class/net")
}

fn names_in(folder: &str) -> Result<Vec<String>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let table = fs_err::read_to_string("/proc/mounts")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}

/// Kills every process in a namespace and waits until none holds a file any more.
fn end_processes(namespace: &str) -> Result<usize> {
    let begun = Instant::now();
    let mut killed = 0;
    loop {
        let listed = tool::run(&["ip", "netns", "pids", namespace])?;
        let living: Vec<i32> =
            listed.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| lives(*pid)).collect();
        if living.is_empty() {
            return Ok(killed);
        }
        if begun.elapsed() > GONE {
            bail!("processes {living:?} of {namespace} do not end: see their state with `ps`");
        }
        for pid in living {
            killed += usize::from(kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process exists and is more than an entry that its parent has not yet read.
pub(super) fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit(')').next().map(|rest| !rest.trim_start().starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// When a process began, in the kernel's ticks.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22, counted from the name in brackets, which may itself contain anything.
    stat.rsplit(')').next()?.split_whitespace().nth(19).map(str::to_owned)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    #[test]
    fn of_a_killed_run_only_what_was_recorded_stays() {
        let folder = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let path = folder.path().join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(&path, "x").unwrap();
            path
        };
        let gone = [file("quorate"), file("quorate-planted"), file("node-0/disk.img"), file("node-1/disk/data/floor")];
        let stay = [file("history.jsonl"), file("node-0/log"), file("node-1/log"), file("other/disk.img")];
        assert_eq!(remove_bulk(folder.path()).unwrap().len(), gone.len());
        assert!(gone.iter().all(|path| !path.exists()) && stay.iter().all(|path| path.exists()));
        assert_eq!(remove_bulk(&folder.path().join("nothing")).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_a_dead_harness_left_is_removed_and_what_a_living_one_has_is_not() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (mine, other) = (folder.path().join("mine"), folder.path().join("other"));
        for directory in [&mine, &other] {
            fs_err::create_dir_all(directory).unwrap();
            fs_err::write(directory.join("quorate"), "x").unwrap();
        }
        let (living, dead) = (Run::reserve(&mine).unwrap(), Run::reserve(&other).unwrap());
        let owner = Owner { pid: std::process::id(), started: "0".into(), directory: Some(other.clone()) };
        fs_err::write(dead.folder().join("owner"), serde_json::to_vec(&owner).unwrap()).unwrap();
        clean(false).unwrap();
        assert!(living.folder().exists() && mine.join("quorate").exists());
        assert!(!dead.folder().exists() && !other.join("quorate").exists());
        living.sweep().unwrap();
        assert!(!living.folder().exists());
    }
}
