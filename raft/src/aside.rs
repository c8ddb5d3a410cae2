//! Log databases that were found unreadable as a whole. They are moved aside, for who wants to look at them, and deleted when
//! all replicas that they held have been replaced.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

const PREFIX: &str = "damaged-log-";

fn all(data_dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data_dir)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    Ok(found)
}

/// Renames the directory `log` of the data directory to one that nothing else uses, durably. Returns its new path.
#[cfg(feature = "rocksdb")]
pub(crate) fn move_log(data_dir: &Path, log: &Path) -> io::Result<PathBuf> {
    let next = all(data_dir)?.into_iter().map(|(number, _)| number + 1).max().unwrap_or(1);
    let aside = data_dir.join(format!("{PREFIX}{next}"));
    fs::rename(log, &aside)?;
    fs::File::open(data_dir)?.sync_all()?;
    Ok(aside)
}

/// Deletes what was moved aside.
pub(crate) fn clear(data_dir: &Path) -> io::Result<()> {
    for (_, path) in all(data_dir)? {
        tracing::info!(path = %path.display(), "all replicas of a damaged log database are replaced; deleting it");
        fs::remove_dir_all(path)?;
    }
    Ok(())
}
