//! Damage to the files of a node that does not run: bits flipped, blocks zeroed, files cut short or deleted.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::Cluster;

/// The classes of files that can be damaged, and what they hold.
pub const CLASSES: &[(&str, &str)] = &[
    ("wal", "the write-ahead log of the log database"),
    ("log-sst", "sorted tables of the log database"),
    ("log-manifest", "the manifest of the log database"),
    ("log-current", "which manifest of the log database counts"),
    ("floor", "the file of last synced positions and votes"),
    ("identity", "who the node is (one copy of it)"),
    ("state-sst", "sorted tables of a state database"),
    ("state-manifest", "the manifest of a state database"),
    ("state-current", "which manifest of a state database counts"),
    ("state", "a whole state database, deleted"),
    ("checkpoint", "files of a checkpoint or a snapshot"),
    ("index", "files of a vector index"),
];

const BLOCK: usize = 4096;

/// What was done to which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The class of the file.
    pub class: &'static str,
    /// `flip`, `zero`, `truncate` or `delete`.
    pub how: &'static str,
    /// The file or folder, below the data directory.
    pub path: PathBuf,
    /// Offsets and lengths, for people.
    pub detail: String,
}

impl Cluster {
    /// Damages one file of a node that does not run, of a class of [`CLASSES`] or of any. `None`: it has no such file.
    /// What was done was seen in the file afterwards.
    pub fn damage(&self, node: usize, class: Option<&str>, dice: &mut StdRng) -> Result<Option<Damage>> {
        ensure!(!self.is_running(node), "files are damaged while the node is down");
        let damage = damage(&self.data_dir(node), class, dice)?;
        *self.node(node).damaged.lock() |= damage.is_some();
        Ok(damage)
    }

    /// The damaged node is whole again, as far as can be seen.
    pub fn damage_is_healed(&self, node: usize) {
        *self.node(node).damaged.lock() = false;
    }
}

fn damage(data: &Path, class: Option<&str>, dice: &mut StdRng) -> Result<Option<Damage>> {
    let mut files = Vec::new();
    collect(data, data, &mut files)?;
    files.sort();
    let wanted = |found: &&'static str| class.is_none_or(|class| class == *found);
    let mut found: Vec<(&'static str, PathBuf)> =
        files.into_iter().filter_map(|path| Some((classify(&path).filter(wanted)?, path))).collect();
    found.extend(whole_states(data)?.into_iter().map(|path| ("state", path)).filter(|(class, _)| wanted(class)));
    // The class first: there are more tables than identities.
    let mut classes: Vec<_> = found.iter().map(|(class, _)| *class).collect();
    classes.sort_unstable();
    classes.dedup();
    let Some(class) = classes.choose(dice).copied() else { return Ok(None) };
    let of_class: Vec<_> = found.into_iter().filter(|(of, _)| *of == class).map(|(_, path)| path).collect();
    let path = of_class.choose(dice).context("a class that was found has a file")?.clone();
    let (how, detail) = break_it(&data.join(&path), dice)?;
    Ok(Some(Damage { class, how, path, detail }))
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(root, &entry.path(), files)?;
        } else if entry.metadata()?.len() > 0 {
            files.push(entry.path().strip_prefix(root)?.to_owned());
        }
    }
    Ok(())
}

fn whole_states(data: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(data.join("state")) else { return Ok(Vec::new()) };
    let mut found: Vec<_> =
        entries.map(|entry| Ok(Path::new("state").join(entry?.file_name()))).collect::<Result<_>>()?;
    found.sort();
    Ok(found)
}

/// What a file is, by its path below the data directory.
fn classify(path: &Path) -> Option<&'static str> {
    let top = path.components().next()?.as_os_str().to_str()?;
    let name = path.file_name()?.to_str()?;
    let is = |ending: &str| path.extension().is_some_and(|found| found == ending);
    match top {
        "log" if is("log") => Some("wal"),
        "log" if is("sst") => Some("log-sst"),
        "log" if name.starts_with("MANIFEST") => Some("log-manifest"),
        "log" if name == "CURRENT" => Some("log-current"),
        "state" if is("sst") => Some("state-sst"),
        "state" if name.starts_with("MANIFEST") => Some("state-manifest"),
        "state" if name == "CURRENT" => Some("state-current"),
        "checkpoints" | "snapshots" | "receiving" => Some("checkpoint"),
        "index" | "segments" => Some("index"),
        "floor" => Some("floor"),
        _ if top.starts_with("identity") => Some("identity"),
        _ => None,
    }
}

fn break_it(path: &Path, dice: &mut StdRng) -> Result<(&'static str, String)> {
    if path.is_dir() {
        fs_err::remove_dir_all(path)?;
        return Ok(("delete", "the whole folder".into()));
    }
    let before = fs_err::read(path)?;
    let mut bytes = before.clone();
    let (how, detail) = match dice.random_range(0..10) {
        0..5 => ("flip", flip(&mut bytes, dice)),
        5..7 => {
            let length = dice.random_range(0..bytes.len());
            bytes.truncate(length);
            ("truncate", format!("from {} to {length} bytes", before.len()))
        }
        7..9 => {
            let from = dice.random_range(0..bytes.len());
            let to = bytes.len().min(from + BLOCK);
            bytes[from..to].fill(0);
            // What is zero already is not damaged by zeros.
            let detail = if bytes == before { flip(&mut bytes, dice) } else { format!("bytes {from}..{to}") };
            ("zero", detail)
        }
        _ => {
            fs_err::remove_file(path)?;
            ensure!(!path.exists(), "{} was deleted and is still there", path.display());
            return Ok(("delete", format!("{} bytes", before.len())));
        }
    };
    // In place, as rot does it: no new file.
    let file = fs_err::OpenOptions::new().write(true).open(path)?;
    file.set_len(u64::try_from(bytes.len())?)?;
    std::os::unix::fs::FileExt::write_all_at(file.file(), &bytes, 0)?;
    file.sync_all()?;
    let after = fs_err::read(path)?;
    ensure!(after == bytes && after != before, "{} did not keep the damage", path.display());
    Ok((how, detail))
}

/// Flips one to eight bits. Two flips of one bit would undo each other, so places differ.
fn flip(bytes: &mut [u8], dice: &mut StdRng) -> String {
    let count = dice.random_range(1..=8);
    let places = rand::seq::index::sample(dice, bytes.len(), bytes.len().min(count));
    let mut places = places.into_vec();
    places.sort_unstable();
    for place in &places {
        bytes[*place] ^= 1 << dice.random_range(0..8);
    }
    format!("a bit each of the bytes {places:?}")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_class_is_found_by_its_path() {
        let paths = [
            ("log/000004.log", Some("wal")),
            ("log/000012.sst", Some("log-sst")),
            ("log/MANIFEST-000005", Some("log-manifest")),
            ("log/CURRENT", Some("log-current")),
            ("log/LOG", None),
            ("log/OPTIONS-000007", None),
            ("state/group-3/db-1/000009.sst", Some("state-sst")),
            ("state/group-3/db-1/CURRENT", Some("state-current")),
            ("floor", Some("floor")),
            ("identity.json", Some("identity")),
            ("checkpoints/x/000009.sst", Some("checkpoint")),
            ("lock", None),
        ];
        for (path, class) in paths {
            assert_eq!(classify(Path::new(path)), class, "{path}");
        }
    }

    #[test]
    fn damage_changes_one_file_and_the_seed_says_which() {
        let outcome = |seed| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("log")).unwrap();
            std::fs::write(folder.path().join("log/1.log"), [7; 9000]).unwrap();
            std::fs::write(folder.path().join("floor"), [0; 100]).unwrap();
            std::fs::write(folder.path().join("lock"), "").unwrap();
            let damage = damage(folder.path(), None, &mut StdRng::seed_from_u64(seed)).unwrap().unwrap();
            let log = std::fs::read(folder.path().join("log/1.log")).ok();
            let floor = std::fs::read(folder.path().join("floor")).ok();
            let changed = [log != Some(vec![7; 9000]), floor != Some(vec![0; 100])];
            assert_eq!(changed.iter().filter(|changed| **changed).count(), 1, "{damage:?}");
            damage
        };
        let all: Vec<_> = (0..40).map(outcome).collect();
        assert!((0..40).map(outcome).eq(all.iter().cloned()));
        for how in ["flip", "zero", "truncate", "delete"] {
            assert!(all.iter().any(|damage| damage.how == how), "{how} never happens");
        }
    }
}
