//! Damage to the files of a node that does not run, as a bad disk does it: for `bench heal` and the whole-cluster tests.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Flips all bits of one byte.
pub fn flip(path: &Path, at: u64) -> Result<()> {
    let change = || -> std::io::Result<()> {
        let mut file = File::options().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut byte)?;
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&[!byte[0]])?;
        file.sync_all()
    };
    change().with_context(|| format!("flipping byte {at} of {}", path.display()))
}

/// Flips a byte in the middle of what a file holds.
pub fn flip_middle(path: &Path) -> Result<()> {
    flip(path, used(path)? / 2)
}

/// Cuts a file in the middle of what it holds.
pub fn cut_middle(path: &Path) -> Result<()> {
    let middle = used(path)? / 2;
    let file = File::options().write(true).open(path).with_context(|| path.display().to_string())?;
    file.set_len(middle)?;
    Ok(file.sync_all()?)
}

/// The write-ahead log of the log database that holds most.
pub fn write_ahead_log(data_dir: &Path) -> Result<PathBuf> {
    fullest(&data_dir.join("log"), |name| name.ends_with(".log"))
}

/// The largest table file of the log database.
pub fn log_table(data_dir: &Path) -> Result<PathBuf> {
    fullest(&data_dir.join("log"), |name| name.ends_with(".sst"))
}

/// The manifest of the log database.
pub fn log_manifest(data_dir: &Path) -> Result<PathBuf> {
    fullest(&data_dir.join("log"), |name| name.starts_with("MANIFEST"))
}

/// The largest table file of a group's state database; group 0 is control.
pub fn state_table(data_dir: &Path, group: u32) -> Result<PathBuf> {
    let home = data_dir.join("state").join(format!("group-{group}"));
    let database = fs_err::read_dir(&home)?.filter_map(Result::ok).map(|entry| entry.path());
    let database =
        database.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("db-")));
    fullest(&database.max().with_context(|| format!("no database in {}", home.display()))?, |name| {
        name.ends_with(".sst")
    })
}

/// The file of a directory that holds most, among those with such a name.
fn fullest(directory: &Path, is_one: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let mut best: Option<(u64, PathBuf)> = None;
    for entry in fs_err::read_dir(directory)? {
        let path = entry?.path();
        let named = path.file_name().is_some_and(|name| is_one(&name.to_string_lossy()));
        if named && path.is_file() {
            best = best.max(Some((used(&path)?, path)));
        }
    }
    let (used, path) = best.with_context(|| format!("no such file in {}", directory.display()))?;
    ensure!(used > 0, "{} is empty", path.display());
    Ok(path)
}

/// How far a file is used: databases allocate ahead, and what they have not written is zeros.
fn used(path: &Path) -> Result<u64> {
    let bytes = fs_err::read(path)?;
    Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_that_of_what_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        fs_err::create_dir(&log).expect("made");
        let mut bytes = vec![7; 100];
        bytes.resize(10_000, 0);
        fs_err::write(log.join("000004.log"), &bytes).expect("written");
        fs_err::write(log.join("000003.log"), [1]).expect("written");
        let wal = write_ahead_log(dir.path()).expect("there are two");
        flip_middle(&wal).expect("flipped");
        let flipped = fs_err::read(&wal).expect("read");
        let changed: Vec<usize> = (0..10_000).filter(|at| flipped[*at] != bytes[*at]).collect();
        assert_eq!((wal, changed), (log.join("000004.log"), vec![50]));
        cut_middle(&log.join("000004.log")).expect("cut");
        assert_eq!(fs_err::metadata(log.join("000004.log")).expect("there").len(), 50);
        assert!(log_table(dir.path()).is_err());
    }
}
