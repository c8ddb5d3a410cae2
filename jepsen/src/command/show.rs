//! `list`, `check`, `clean` and `ledger`: what needs no cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{Format, exit, planted, table};
use crate::cluster;
use crate::history::History;
use crate::ledger::{Kind, Ledger};
use crate::{check, nemesis, workload};

/// Workloads, nemeses and planted bugs.
#[derive(Debug, Args)]
pub(super) struct List {
    /// How they are printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl List {
    pub(super) fn execute(&self) -> Result<ExitCode> {
        let nemeses: Vec<(&str, &str)> = nemesis::NAMES.iter().map(|(name, what, _)| (*name, *what)).collect();
        let bugs: Vec<(&str, String)> = planted::BUGS.iter().map(|bug| (bug.name, bug.caught_by())).collect();
        if self.output == Format::Json {
            let list = json!({
                "workloads": workload::NAMES.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
                "nemeses": nemeses.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
                "planted": bugs.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            });
            println!("{list}");
            return Ok(ExitCode::SUCCESS);
        }
        let rows = |title: &str, items: Vec<(&str, String)>| {
            let head = vec![title.to_owned(), String::new()];
            let rows: Vec<_> = items.into_iter().map(|(name, what)| vec![name.to_owned(), what]).collect();
            table(&[vec![head], rows].concat());
            println!();
        };
        rows("WORKLOADS", workload::NAMES.iter().map(|(name, what)| (*name, (*what).to_owned())).collect());
        rows("NEMESES", nemeses.into_iter().map(|(name, what)| (name, what.to_owned())).collect());
        rows("PLANTED BUGS", bugs);
        Ok(ExitCode::SUCCESS)
    }
}

/// Checks a history that was recorded.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// A file of JSON lines.
    history: PathBuf,
    /// How the verdict is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Check {
    pub(super) fn execute(&self) -> Result<ExitCode> {
        let history = History::read(&self.history)?;
        let verdict = check::all(&history);
        let outcome = verdict.outcome();
        if self.output == Format::Json {
            println!("{}", serde_json::to_string(&verdict)?);
            return Ok(exit(outcome));
        }
        let mut rows = vec![vec!["verdict".to_owned(), outcome.to_string()]];
        rows.extend(verdict.counts.iter().map(|(name, count)| vec![name.clone(), count.to_string()]));
        rows.extend(verdict.violations.iter().map(|what| vec!["violation".into(), what.clone()]));
        rows.extend(verdict.void.iter().map(|why| vec!["void".into(), why.clone()]));
        table(&rows);
        Ok(exit(outcome))
    }
}

/// Removes what runs left behind.
#[derive(Debug, Args)]
pub(super) struct Clean {
    /// Also of runs whose program still lives.
    #[arg(long)]
    force: bool,
}

impl Clean {
    pub(super) fn execute(&self) -> Result<ExitCode> {
        for removed in cluster::clean(self.force)? {
            println!("removed {removed}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What the ledger adds up to.
#[derive(Debug, Args)]
pub(super) struct Totals {
    /// The ledger.
    #[arg(long, default_value = "jepsen/LEDGER.md")]
    ledger: PathBuf,
    /// How it is printed.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl Totals {
    pub(super) fn execute(&self) -> Result<ExitCode> {
        let ledger = Ledger::read(&self.ledger)?;
        let totals: Vec<_> = Kind::ALL.into_iter().map(|kind| (kind, ledger.total(kind))).collect();
        if self.output == Format::Json {
            let kinds: serde_json::Map<String, serde_json::Value> = totals
                .iter()
                .map(|(kind, total)| {
                    let total = json!({
                        "pieces": total.pieces, "counted": total.counted, "violated": total.violated, "items": total.items,
                        "seconds": total.seconds, "operations": total.operations, "faults": total.faults,
                    });
                    (kind.name().to_owned(), total)
                })
                .collect();
            println!("{}", serde_json::Value::Object(kinds));
            return Ok(ExitCode::SUCCESS);
        }
        let mut rows = vec![Vec::from(
            ["kind", "pieces", "valid", "violated", "items", "hours", "operations", "faults", "goal"]
                .map(str::to_owned),
        )];
        for (kind, total) in totals {
            rows.push(vec![
                kind.to_string(),
                total.pieces.to_string(),
                total.counted.to_string(),
                total.violated.to_string(),
                total.items.to_string(),
                format!("{:.2}", total.seconds as f64 / 3_600.0),
                total.operations.to_string(),
                total.faults.to_string(),
                super::campaign::goal(kind),
            ]);
        }
        table(&rows);
        Ok(ExitCode::SUCCESS)
    }
}
