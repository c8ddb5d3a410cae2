//! The databases on RocksDB: one for the logs of all groups, and one for the state of each.
//!
//! The log database fsyncs every commit. The state databases have no write-ahead log at all, because the Raft log is theirs.

mod cold;
mod framing;
mod log;
mod states;

use std::io;
use std::path::Path;

use fs_err as fs;

pub use log::RocksLog;
pub use states::RocksStates;

/// What RocksDB says of a file that it has written and that is not there any more.
const MISSING: &str = "No such file or directory";

/// The error of a database as one of the operating system's kind, which the traits above speak. `InvalidData` means that
/// what is on the disk is not what was written; a file of the database that has gone counts.
fn failed(error: rocksdb::Error) -> io::Error {
    let kind = match error.kind() {
        rocksdb::ErrorKind::Corruption => io::ErrorKind::InvalidData,
        rocksdb::ErrorKind::IOError if error.as_ref().contains(MISSING) => io::ErrorKind::InvalidData,
        rocksdb::ErrorKind::Busy => io::ErrorKind::ResourceBusy,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.into_string())
}

/// Options that every database here has: small, quiet, and few threads.
fn base_options() -> rocksdb::Options {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.set_max_background_jobs(2);
    options.set_max_file_opening_threads(1);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(rocksdb::LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_skip_stats_update_on_db_open(true);
    options
}

/// Makes the entries of a directory durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}
