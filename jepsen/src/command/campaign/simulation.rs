//! Pieces that the simulation runs: seeds, and planted bugs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::plan::{SIM_SEEDS_A_BUG, SIM_STEPS};
use crate::command::piece::{limit_of, output_of};
use crate::command::runs_folder;
use crate::ledger::{Entry, valid_but};

/// What a seed takes at most, on a machine that does other things too.
const SEED_TAKES: Duration = Duration::from_secs(60);
/// How long the simulation may take to say which bugs it has.
const LISTED: Duration = Duration::from_secs(60);

/// The simulation, and how many seeds it may run at once.
pub(super) struct Simulation<'a> {
    pub(super) program: &'a Path,
    pub(super) jobs: Option<usize>,
}

impl Simulation<'_> {
    /// The bugs that are compiled into it.
    pub(super) async fn bugs(&self, interrupted: &CancellationToken) -> Result<Vec<String>> {
        let told = self.told(&["--planted", "list"], "sim-list.log", LISTED, interrupted).await?;
        serde_json::from_value(told).context("the simulation lists its planted bugs")
    }

    /// A slice of the seeds.
    pub(super) async fn seeds(&self, blank: Entry, interrupted: &CancellationToken) -> Result<Entry> {
        let range = blank.range().unwrap_or(0..0);
        let (seeds, first, steps) = (range.end - range.start, range.start.to_string(), SIM_STEPS.to_string());
        let log = format!("sim-{first}.log");
        let limit = limit_of(SEED_TAKES * u32::try_from(seeds)?);
        let words = ["--seeds", &seeds.to_string(), "--steps", &steps, "--seed", &first];
        let told = self.told(&words, &log, limit, interrupted).await?;
        keep_violations(&told, &format!("sim-{first}.json"))?;
        let (operations, faults, verdict) = (count(&told["operations"]), count(&told["faults"]), verdict(&told, seeds));
        Ok(Entry { seed: range.start, operations, faults, verdict, ..blank })
    }

    /// The hunt for one planted bug. One that was missed before gets seeds that it has not had.
    pub(super) async fn hunt(&self, blank: Entry, in_vain: u64, interrupted: &CancellationToken) -> Result<Entry> {
        let first = 1 + in_vain * SIM_SEEDS_A_BUG;
        let (seeds, from) = (SIM_SEEDS_A_BUG.to_string(), first.to_string());
        let log = format!("sim-planted-{}.log", blank.piece);
        // Of a seed that shows something it is seen whether it is sound.
        let limit = limit_of(2 * SEED_TAKES * u32::try_from(SIM_SEEDS_A_BUG)?);
        let words = ["--planted", &blank.piece, "--seeds", &seeds, "--seed", &from];
        let told = self.told(&words, &log, limit, interrupted).await?;
        let (seed, verdict) = caught(&told, &blank.piece);
        Ok(Entry { seed: seed.unwrap_or(first), verdict, ..blank })
    }

    async fn told(&self, words: &[&str], log: &str, limit: Duration, interrupted: &CancellationToken) -> Result<Value> {
        let mut command = Command::new(self.program);
        command.args(words).args(["-o", "json"]);
        if let Some(jobs) = self.jobs {
            command.args(["--jobs", &jobs.to_string()]);
        }
        fs_err::create_dir_all(runs_folder())?;
        output_of(command, &runs_folder().join(log), limit, interrupted).await
    }
}

/// What was wrong in each seed is too long for the ledger.
fn keep_violations(told: &Value, name: &str) -> Result<()> {
    if count(&told["violations"]) > 0 {
        fs_err::write(runs_folder().join(name), serde_json::to_vec_pretty(&told["violations"])?)?;
    }
    Ok(())
}

/// The verdict on a slice of so many seeds. One under a floor is counted apart, and voids nothing: the same seeds once
/// more would be the same.
fn verdict(told: &Value, seeds: u64) -> String {
    let (violations, apart) = (count(&told["violations"]), count(&told["invalid"]));
    if violations > 0 {
        return format!("{violations} violations{}", wrong_seeds(&told["violations"]));
    }
    if count(&told["seeds"]) != seeds {
        return "void: not all of its seeds were run".into();
    }
    if apart >= seeds {
        return format!("void: {apart} seeds under a floor, and no other");
    }
    valid_but(apart)
}

/// Every seed that broke a promise, because each may have another cause, and what the first one said.
fn wrong_seeds(violations: &Value) -> String {
    let said = violations.as_object().into_iter().flatten();
    let mut seeds: Vec<(u64, &str)> = said
        .filter(|(_, said)| count(said) > 0)
        .filter_map(|(seed, said)| Some((seed.parse().ok()?, said.get(0)?.as_str()?)))
        .collect();
    seeds.sort_unstable();
    let Some((first, what)) = seeds.first() else { return String::new() };
    let named: Vec<String> = seeds.iter().map(|(seed, _)| seed.to_string()).collect();
    format!(" in seed{} {}: seed {first}: {what}", if named.len() > 1 { "s" } else { "" }, named.join(", "))
}

/// Where a bug was caught, and the verdict.
fn caught(told: &Value, name: &str) -> (Option<u64>, String) {
    let bugs = told["bugs"].as_array().map_or(&[][..], Vec::as_slice);
    match bugs.iter().find(|bug| bug["name"] == name) {
        Some(bug) if bug["caught"] == true => (bug["seed"].as_u64(), "caught".into()),
        Some(_) => (None, "missed".into()),
        None => (None, "void: the simulation says nothing about the bug".into()),
    }
}

/// A number, the length of a list, or the sum of what an object has.
fn count(value: &Value) -> u64 {
    match value {
        Value::Array(items) => items.len() as u64,
        Value::Object(parts) => parts.values().map(count).sum(),
        other => other.as_u64().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn counts_are_numbers_lists_or_sums() {
        let told = json!({"a": 3, "b": [1, 2], "c": {"x": 1, "y": 4}});
        assert_eq!((count(&told["a"]), count(&told["b"]), count(&told["c"]), count(&told["d"])), (3, 2, 5, 0));
    }

    #[test]
    fn a_seed_under_a_floor_is_counted_apart_and_a_violation_is_told() {
        let told =
            |invalid: Value, violations: Value| json!({"seeds": 3, "invalid": invalid, "violations": violations});
        assert_eq!(verdict(&told(json!([]), json!({})), 3), "valid");
        assert_eq!(verdict(&told(json!([7]), json!({})), 3), "valid, 1 seed apart");
        assert_eq!(verdict(&told(json!([6, 7]), json!({})), 3), "valid, 2 seeds apart");
        assert_eq!(verdict(&told(json!([6, 7, 8]), json!({})), 3), "void: 3 seeds under a floor, and no other");
        assert_eq!(verdict(&told(json!([]), json!({})), 4), "void: not all of its seeds were run");
        let wrong = verdict(&told(json!([6]), json!({"7": ["step 3: leases: x", "y"]})), 3);
        assert_eq!(wrong, "2 violations in seed 7: seed 7: step 3: leases: x");
        let two = verdict(&told(json!([]), json!({"262": ["y"], "1000": ["z"], "259": ["x", "y"]})), 3);
        assert_eq!(two, "4 violations in seeds 259, 262, 1000: seed 259: x");
        assert!(crate::ledger::is_broken(&two));
    }

    #[test]
    fn a_bug_is_caught_missed_or_not_there() {
        let told = json!({"planted": 1, "caught": 1, "bugs": [{"name": "a", "caught": true, "seed": 4, "within": 4}]});
        assert_eq!(caught(&told, "a"), (Some(4), "caught".into()));
        let missed = json!({"bugs": [{"name": "a", "caught": false, "seed": null}]});
        assert_eq!(caught(&missed, "a").1, "missed");
        assert!(caught(&missed, "b").1.starts_with("void"));
    }
}
