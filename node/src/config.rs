//! The configuration of a node: defaults < file < environment (`QUORATE_*`) < values given by the caller (flags).
//!
//! An unknown key, a value that does not parse and a named file that is missing are errors that name the place. The
//! environment knows the same keys as the file, in capitals: `data_dir` is `QUORATE_DATA_DIR`.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// The prefix of environment variables that set a key.
const PREFIX: &str = "QUORATE_";

/// Variables with the prefix that belong to the client side of the same program and are no keys of a node.
const OTHER_VARIABLES: [&str; 4] = ["QUORATE_CONFIG", "QUORATE_ENDPOINTS", "QUORATE_OUTPUT", "QUORATE_LOG"];

/// Less would make checkpoints all the time, more would fill disks.
const SNAPSHOT_LOG_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=64 << 30;

/// Less would make a segment of every few rows, more is more than one segment may hold.
const SEAL_ROWS: std::ops::RangeInclusive<usize> = 128..=quorate_index::MAX_SEGMENT_ROWS;

/// A disk that is never read back may rot, and a month is never.
const SCRUB_EVERY_S: std::ops::RangeInclusive<u64> = 1..=30 * 24 * 3_600;

/// Heartbeat and election times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimersProfile {
    /// 50/150/300 ms: any disk whose fsync stays below some 25 ms.
    #[default]
    Default,
    /// 30/100/150 ms: local disks whose fsync stays below some 10 ms.
    Fast,
}

impl TimersProfile {
    /// The times of the control group.
    pub fn timers(self) -> quorate_raft::Timers {
        match self {
            TimersProfile::Default => quorate_raft::Timers::default(),
            TimersProfile::Fast => quorate_raft::Timers::fast(),
        }
    }
}

/// The effective configuration of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where everything of the node is kept. One process at a time.
    pub data_dir: PathBuf,
    /// Where clients are served (gRPC), `host:port`; port 0 takes a free one.
    pub client_listen: String,
    /// Where peers are served, `host:port`; port 0 takes a free one.
    pub peer_listen: String,
    /// Where metrics and health are served (HTTP), `host:port`; port 0 takes a free one.
    pub http_listen: String,
    /// The client address that others are told; by default the one listened on.
    pub client_advertise: Option<String>,
    /// The peer address that others are told; by default the one listened on.
    pub peer_advertise: Option<String>,
    /// A name for people. By default the name of the host.
    pub label: String,
    /// Heartbeat and election times.
    pub timers: TimersProfile,
    /// A filter such as `info` or `quorate_node=debug,info`.
    pub log_level: String,
    /// Threads that search, at least 1. By default one for each core.
    pub search_threads: usize,
    /// Threads that build segments, at low priority, at least 1.
    pub build_threads: usize,
    /// So many new rows of a collection are searched one by one before they become a segment with a graph: an even number,
    /// 128 to 1,048,576. Half as many do if nothing is written for a while.
    pub seal_rows: usize,
    /// A group is checkpointed, and its log purged below the checkpoint, when its log has grown by so many bytes.
    pub snapshot_log_bytes: u64,
    /// How many entries stay in the log below the checkpoint, for followers that are a little behind.
    pub purge_tail: u64,
    /// Every so many seconds all logs are read back, in search of damage that nobody has met, and the states every 24th time.
    pub scrub_every_s: u64,
    /// How often the replicas of a group compare the hashes of their states. No key of the file: a simulation, whose faults
    /// come faster, shortens it.
    pub compare_every: Duration,
}

/// Values for keys, each of which may be absent. The shape of the file, of the environment and of flags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Values {
    /// See [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// See [`Config::client_listen`].
    pub client_listen: Option<String>,
    /// See [`Config::peer_listen`].
    pub peer_listen: Option<String>,
    /// See [`Config::http_listen`].
    pub http_listen: Option<String>,
    /// See [`Config::client_advertise`].
    pub client_advertise: Option<String>,
    /// See [`Config::peer_advertise`].
    pub peer_advertise: Option<String>,
    /// See [`Config::label`].
    pub label: Option<String>,
    /// See [`Config::timers`].
    pub timers: Option<TimersProfile>,
    /// See [`Config::log_level`].
    pub log_level: Option<String>,
    /// See [`Config::search_threads`].
    pub search_threads: Option<usize>,
    /// See [`Config::build_threads`].
    pub build_threads: Option<usize>,
    /// See [`Config::seal_rows`].
    pub seal_rows: Option<usize>,
    /// See [`Config::snapshot_log_bytes`].
    pub snapshot_log_bytes: Option<u64>,
    /// See [`Config::purge_tail`].
    pub purge_tail: Option<u64>,
    /// See [`Config::scrub_every_s`].
    pub scrub_every_s: Option<u64>,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The named file cannot be read.
    #[error(
        "cannot read the configuration file {path}: {source}; correct the path, or leave it out to use the defaults"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}, line {line}: {reason}; correct the file, nothing was started")]
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// An environment variable is not what it should be.
    #[error("environment variable {variable}: {reason}; correct or unset it, nothing was started")]
    Variable {
        /// The variable.
        variable: String,
        /// What is wrong.
        reason: String,
    },
    /// A value is out of bounds, wherever it came from.
    #[error("configuration key `{key}`: {reason}; nothing was started")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Default for Config {
    /// The values of a node about which nothing is said.
    fn default() -> Config {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Config {
            data_dir: PathBuf::from("quorate-data"),
            client_listen: "127.0.0.1:7700".into(),
            peer_listen: "127.0.0.1:7701".into(),
            http_listen: "127.0.0.1:7702".into(),
            client_advertise: None,
            peer_advertise: None,
            label: host_name(),
            timers: TimersProfile::Default,
            log_level: "info".into(),
            search_threads: cores,
            build_threads: cores.div_ceil(2),
            seal_rows: 32_768,
            snapshot_log_bytes: 64 << 20,
            purge_tail: 1_000,
            scrub_every_s: 3_600,
            compare_every: Duration::from_secs(1),
        }
    }
}

fn host_name() -> String {
    let name = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "node".into() } else { name.trim().into() }
}

impl Config {
    /// Defaults < `file` < the process's environment < `given`.
    ///
    /// # Errors
    /// A named file that is missing, an unknown key, a value that does not parse or that makes no sense.
    pub fn load(file: Option<&Path>, given: Values) -> Result<Config, ConfigError> {
        Config::load_with(
            file,
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))),
            given,
        )
    }

    /// The same with an environment of the caller's.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_with(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        given: Values,
    ) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        if let Some(path) = file {
            config.set(read_file(path)?);
        }
        config.set(read_environment(environment)?);
        config.set(given);
        config.validate()?;
        Ok(config)
    }

    fn set(&mut self, values: Values) {
        fn put<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        put(&mut self.data_dir, values.data_dir);
        put(&mut self.client_listen, values.client_listen);
        put(&mut self.peer_listen, values.peer_listen);
        put(&mut self.http_listen, values.http_listen);
        put(&mut self.client_advertise, values.client_advertise.map(Some));
        put(&mut self.peer_advertise, values.peer_advertise.map(Some));
        put(&mut self.label, values.label);
        put(&mut self.timers, values.timers);
        put(&mut self.log_level, values.log_level);
        put(&mut self.search_threads, values.search_threads);
        put(&mut self.build_threads, values.build_threads);
        put(&mut self.seal_rows, values.seal_rows);
        put(&mut self.snapshot_log_bytes, values.snapshot_log_bytes);
        put(&mut self.purge_tail, values.purge_tail);
        put(&mut self.scrub_every_s, values.scrub_every_s);
    }

    /// Checks what can be checked without touching the disk or the network.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key, reason: String| Err(ConfigError::Invalid { key, reason });
        if self.data_dir.as_os_str().is_empty() {
            return invalid("data_dir", "it is empty; name a directory".into());
        }
        for (key, address) in [
            ("client_listen", Some(&self.client_listen)),
            ("peer_listen", Some(&self.peer_listen)),
            ("http_listen", Some(&self.http_listen)),
            ("client_advertise", self.client_advertise.as_ref()),
            ("peer_advertise", self.peer_advertise.as_ref()),
        ] {
            let Some(address) = address else { continue };
            if let Err(reason) = check_address(address, key.ends_with("_listen")) {
                return invalid(key, reason);
            }
        }
        if let Err(error) = quorate_api::limits::check_name("label", &self.label) {
            return invalid("label", error.message);
        }
        for (key, threads) in [("search_threads", self.search_threads), ("build_threads", self.build_threads)] {
            if !(1..=256).contains(&threads) {
                return invalid(key, format!("{threads} is not within 1..=256"));
            }
        }
        let rows = self.seal_rows;
        if !SEAL_ROWS.contains(&rows) || !rows.is_multiple_of(2) {
            return invalid("seal_rows", format!("{rows} is not an even number within 128..=1048576"));
        }
        let bytes = self.snapshot_log_bytes;
        if !SNAPSHOT_LOG_BYTES.contains(&bytes) {
            let (least, most) = (SNAPSHOT_LOG_BYTES.start(), SNAPSHOT_LOG_BYTES.end());
            return invalid("snapshot_log_bytes", format!("{bytes} is not within {least}..={most}"));
        }
        let seconds = self.scrub_every_s;
        if !SCRUB_EVERY_S.contains(&seconds) {
            let (least, most) = (SCRUB_EVERY_S.start(), SCRUB_EVERY_S.end());
            return invalid("scrub_every_s", format!("{seconds} is not within {least}..={most}"));
        }
        Ok(())
    }
}

/// `host:port`, where only an address that is listened on may have port 0 or stand for all interfaces.
fn check_address(address: &str, listen: bool) -> Result<(), String> {
    let Some((host, port)) = address.rsplit_once(':') else {
        return Err(format!("{address:?} is not an address; write host:port"));
    };
    let Ok(port) = port.parse::<u16>() else {
        return Err(format!("{address:?} has no valid port; write host:port"));
    };
    if host.is_empty() {
        return Err(format!("{address:?} has no host; write host:port, with 0.0.0.0 for all interfaces"));
    }
    if listen {
        return Ok(());
    }
    if port == 0 || matches!(host, "0.0.0.0" | "[::]") {
        return Err(format!("others cannot reach {address:?}; name a host and a port"));
    }
    Ok(())
}

fn read_file(path: &Path) -> Result<Values, ConfigError> {
    let text =
        fs_err::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count() + 1;
        ConfigError::File { path: path.to_owned(), line, reason: error.message().to_owned() }
    })
}

fn read_environment(environment: impl IntoIterator<Item = (String, String)>) -> Result<Values, ConfigError> {
    let mut values = Values::default();
    // In a fixed order, so that of two wrong variables always the same one is named.
    for (variable, value) in environment.into_iter().collect::<BTreeMap<_, _>>() {
        let Some(key) = variable.strip_prefix(PREFIX) else { continue };
        #[cfg(feature = "planted")]
        if [crate::planted::VARIABLE, crate::planted::FAILPOINT_VARIABLE].contains(&variable.as_str()) {
            continue;
        }
        if OTHER_VARIABLES.contains(&variable.as_str()) {
            continue;
        }
        set_variable(&mut values, &key.to_lowercase(), value)
            .map_err(|reason| ConfigError::Variable { variable: variable.clone(), reason })?;
    }
    Ok(values)
}

fn set_variable(values: &mut Values, key: &str, value: String) -> Result<(), String> {
    fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
        value.parse().map_err(|_| format!("{value:?} is not a number"))
    }
    match key {
        "data_dir" => values.data_dir = Some(value.into()),
        "client_listen" => values.client_listen = Some(value),
        "peer_listen" => values.peer_listen = Some(value),
        "http_listen" => values.http_listen = Some(value),
        "client_advertise" => values.client_advertise = Some(value),
        "peer_advertise" => values.peer_advertise = Some(value),
        "label" => values.label = Some(value),
        "timers" => {
            values.timers = Some(match value.as_str() {
                "default" => TimersProfile::Default,
                "fast" => TimersProfile::Fast,
                other => return Err(format!("{other:?} is not a profile; use default or fast")),
            });
        }
        "log_level" => values.log_level = Some(value),
        "search_threads" => values.search_threads = Some(number(&value)?),
        "build_threads" => values.build_threads = Some(number(&value)?),
        "seal_rows" => values.seal_rows = Some(number(&value)?),
        "snapshot_log_bytes" => values.snapshot_log_bytes = Some(number(&value)?),
        "purge_tail" => values.purge_tail = Some(number(&value)?),
        "scrub_every_s" => values.scrub_every_s = Some(number(&value)?),
        _ => return Err("there is no such key".into()),
    }
    Ok(())
}

/// The first socket address of `host:port`, for places that need a number.
pub(crate) fn resolve(address: &str) -> std::io::Result<std::net::SocketAddr> {
    address.to_socket_addrs()?.next().ok_or_else(|| std::io::Error::other(format!("{address} resolves to nothing")))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quorate.toml");
        fs_err::write(&path, text).unwrap();
        (dir, path)
    }

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn each_source_overrides_the_one_before() {
        let (_dir, path) = file("label = \"file\"\nclient_listen = \"127.0.0.1:1\"\npeer_listen = \"127.0.0.1:2\"\n");
        let environment =
            variables(&[("QUORATE_CLIENT_LISTEN", "127.0.0.1:3"), ("QUORATE_PEER_LISTEN", "127.0.0.1:4")]);
        let given = Values { peer_listen: Some("127.0.0.1:5".into()), ..Values::default() };
        let config = Config::load_with(Some(&path), environment, given).unwrap();
        assert_eq!(config.label, "file");
        assert_eq!(config.client_listen, "127.0.0.1:3");
        assert_eq!(config.peer_listen, "127.0.0.1:5");
        assert_eq!(config.http_listen, Config::default().http_listen);
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("absent.toml");
        let error = Config::load_with(Some(&path), [], Values::default()).unwrap_err();
        assert!(matches!(error, ConfigError::Unreadable { .. }));
        assert!(error.to_string().contains("absent.toml"), "{error}");
    }

    #[test]
    fn a_half_written_file_is_an_error_with_its_line() {
        let (_dir, path) = file("label = \"a\"\n\nclient_listen = \"127.0.");
        let error = Config::load_with(Some(&path), [], Values::default()).unwrap_err();
        assert!(matches!(error, ConfigError::File { line: 3, .. }), "{error}");
    }

    #[test]
    fn an_unknown_key_is_an_error_wherever_it_stands() {
        let (_dir, path) = file("label = \"a\"\nlable = \"b\"\n");
        let error = Config::load_with(Some(&path), [], Values::default()).unwrap_err();
        assert!(matches!(error, ConfigError::File { line: 2, .. }), "{error}");
        assert!(error.to_string().contains("lable"), "{error}");
        let error = Config::load_with(None, variables(&[("QUORATE_LABLE", "b")]), Values::default()).unwrap_err();
        assert!(error.to_string().contains("QUORATE_LABLE"), "{error}");
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_their_key() {
        let with = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(with(|config| config.client_listen = "nowhere".into()).contains("client_listen"));
        assert!(with(|config| config.peer_listen = "a:70000".into()).contains("peer_listen"));
        assert!(with(|config| config.peer_advertise = Some("0.0.0.0:7701".into())).contains("peer_advertise"));
        assert!(with(|config| config.client_advertise = Some("a:0".into())).contains("client_advertise"));
        assert!(with(|config| config.search_threads = 0).contains("search_threads"));
        assert!(with(|config| config.label = String::new()).contains("label"));
        assert!(with(|config| config.scrub_every_s = 0).contains("scrub_every_s"));
        assert!(with(|config| config.data_dir = PathBuf::new()).contains("data_dir"));
    }

    #[test]
    fn a_wrong_profile_and_a_wrong_number_are_refused() {
        let error = Config::load_with(None, variables(&[("QUORATE_TIMERS", "slow")]), Values::default()).unwrap_err();
        assert!(error.to_string().contains("default or fast"), "{error}");
        let error =
            Config::load_with(None, variables(&[("QUORATE_BUILD_THREADS", "two")]), Values::default()).unwrap_err();
        assert!(error.to_string().contains("QUORATE_BUILD_THREADS"), "{error}");
    }
}
