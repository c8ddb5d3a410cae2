//! `quorate-jepsen run`.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{Format, Usage, any_seed, beside, exit, runs_folder, table};
use crate::nemesis::Pace;
use crate::run::{self, RunConfig, RunReport};

/// What nodes are started with unless they are told otherwise: checkpoints, purged logs, snapshots and files of vector
/// indexes are to come up within a minute of load, not within an hour.
const SMALL: [(&str, &str); 3] = [("--snapshot-log-bytes", "262144"), ("--purge-tail", "100"), ("--seal-rows", "256")];

/// One workload under some nemeses.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// What clients do: `quorate-jepsen list` names them.
    #[arg(long)]
    workload: String,
    /// What breaks meanwhile, several at once if separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "none")]
    nemesis: Vec<String>,
    /// For how many seconds things break.
    #[arg(long, default_value_t = 60.0, allow_negative_numbers = true)]
    time_limit: f64,
    /// What everything random follows from; absent: any.
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// The program of the nodes; absent: `quorate` beside this program, or `quorate-planted` with --planted.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// The program that can end at a failpoint; absent: `quorate-planted` beside this program, if it is there.
    #[arg(long)]
    failpoints: Option<PathBuf>,
    /// A bug that the nodes are to have, or several that are separated by commas; `name@N` is one of node N alone.
    #[arg(long)]
    planted: Option<String>,
    /// Keeps the nodes' data too.
    #[arg(long)]
    keep: bool,
    /// Operations a second that clients aim at.
    #[arg(long, default_value_t = 150.0, allow_negative_numbers = true)]
    rate: f64,
    /// Operations a second that must end well, else nothing is proved.
    #[arg(long, default_value_t = 5.0, allow_negative_numbers = true)]
    floor: f64,
    /// How long a fault lasts, in seconds: `FROM..TO`.
    #[arg(long, value_parser = seconds_range)]
    fault: Option<(f64, f64)>,
    /// How long it is calm between faults, in seconds: `FROM..TO`.
    #[arg(long, value_parser = seconds_range)]
    calm: Option<(f64, f64)>,
    /// Where to put the history, the plots and the logs.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Ends the run when standard input closes: for runs that must not outlive the program that started them.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
    /// How the verdict is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Further arguments of `quorate node start`, after `--`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

fn seconds_range(text: &str) -> Result<(f64, f64), String> {
    let parts = text.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match parts {
        Some((from, to)) if (0.0..=3_600.0).contains(&from) && (from..=3_600.0).contains(&to) => Ok((from, to)),
        _ => Err(format!("{text:?} is no range of seconds: write it as 1..6")),
    }
}

impl Run {
    pub(super) async fn execute(self, interrupted: CancellationToken) -> Result<ExitCode> {
        let output = self.output;
        if self.stop_with_stdin {
            cancel_with_stdin(interrupted.clone());
        }
        let config = self.config()?;
        run::validate(&config).map_err(|error| Usage(format!("{error:#}")))?;
        let report = Box::pin(run::run(&config, interrupted)).await?;
        match output {
            // Nobody may be there any more to read it.
            Format::Json => writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?,
            Format::Table => print(&report),
        }
        Ok(exit(report.outcome))
    }

    fn config(self) -> Result<RunConfig> {
        if !(0.0..=100_000.0).contains(&self.time_limit) {
            return Err(Usage("--time-limit is between 0 and 100000 seconds".into()).into());
        }
        let seed = self.seed.unwrap_or_else(any_seed);
        let program = if self.planted.is_some() { "quorate-planted" } else { "quorate" };
        let name = format!(
            "{}-{}-{seed}-{}",
            self.workload,
            self.nemesis.join("+").replace([':', '/'], "_"),
            std::process::id()
        );
        let range = |(from, to)| Duration::from_secs_f64(from)..=Duration::from_secs_f64(to);
        let usual = Pace::default();
        Ok(RunConfig {
            workload: self.workload,
            nemeses: self.nemesis,
            time_limit: Duration::from_secs_f64(self.time_limit),
            seed,
            nodes: self.nodes,
            binary: self.binary.map_or_else(|| beside(program), Ok)?,
            failpoints: match self.failpoints {
                Some(program) => Some(program),
                None => Some(beside("quorate-planted")?).filter(|program| program.is_file()),
            },
            planted: self.planted,
            rate: self.rate,
            floor: self.floor,
            pace: Pace { fault: self.fault.map_or(usual.fault, range), calm: self.calm.map_or(usual.calm, range) },
            directory: self.directory.unwrap_or_else(|| runs_folder().join(name)),
            arguments: with_small(self.arguments),
            keep: self.keep,
        })
    }
}

/// Interrupts the run when standard input ends. A thread of its own reads it: nothing waits for that at the end.
fn cancel_with_stdin(interrupted: CancellationToken) {
    std::thread::spawn(move || {
        // An error is as much of an end.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        interrupted.cancel();
    });
}

/// The arguments of a node, with those of [`SMALL`] that it was not told otherwise.
fn with_small(told: Vec<String>) -> Vec<String> {
    let is_told = |flag: &str| told.iter().any(|word| word.split('=').next() == Some(flag));
    let usual = SMALL.iter().filter(|(flag, _)| !is_told(flag));
    let mut arguments: Vec<String> =
        usual.flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]).collect();
    arguments.extend(told);
    arguments
}

fn print(report: &RunReport) {
    let mut rows = vec![
        vec!["verdict".into(), report.words()],
        vec!["workload".into(), report.workload.clone()],
        vec!["operations".into(), format!("{} ({} ok) in {:.0} s", report.operations, report.ok, report.seconds)],
    ];
    for (nemesis, struck) in &report.faults {
        let what = format!(
            "{} installed, {} skipped, {} indeterminate",
            struck.installed, struck.skipped, struck.indeterminate
        );
        rows.push(vec![nemesis.clone(), what]);
    }
    rows.extend(report.counts.iter().map(|(name, count)| vec![name.clone(), count.to_string()]));
    rows.extend(report.violations.iter().map(|what| vec!["violation".into(), what.clone()]));
    rows.extend(report.void.iter().map(|why| vec!["void".into(), why.clone()]));
    rows.push(vec!["seed".into(), report.seed.to_string()]);
    rows.push(vec!["directory".into(), report.directory.display().to_string()]);
    table(&rows);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_keeps_is_small_unless_they_are_told_otherwise() {
        let words = |text: &str| text.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(with_small(Vec::new()), words("--snapshot-log-bytes 262144 --purge-tail 100 --seal-rows 256"));
        let told = words("--purge-tail=7 --timers fast");
        assert_eq!(with_small(told), words("--snapshot-log-bytes 262144 --seal-rows 256 --purge-tail=7 --timers fast"));
    }

    #[test]
    fn a_range_of_seconds_has_two_ends_in_order() {
        assert_eq!(seconds_range("1..2.5"), Ok((1.0, 2.5)));
        for bad in ["", "1", "2..1", "a..b", "-1..2", "1..99999"] {
            assert!(seconds_range(bad).is_err(), "{bad}");
        }
    }
}
