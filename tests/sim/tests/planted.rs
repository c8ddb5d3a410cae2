//! Planted bugs: PLANTED.md, the code and the program name the same ones, and the simulation catches them.

#![cfg(feature = "planted")]
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Fewer steps than by default: the program is what runs many.
const STEPS: &str = "12000";

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quorate-sim")).args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}\n{errors}"))
}

/// The names in the first column of PLANTED.md.
fn documented() -> BTreeSet<String> {
    let page = std::fs::read_to_string("PLANTED.md").unwrap();
    let row = |line: &str| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name.to_owned());
    page.lines().filter_map(row).collect()
}

fn listed() -> BTreeSet<String> {
    serde_json::from_value(json(&sim(&["--planted", "list", "-o", "json"]))).unwrap()
}

fn sources(folder: PathBuf) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Every string that is asked for as a planted bug somewhere in the code.
fn asked_for() -> BTreeSet<String> {
    let root = Path::new("../..");
    let crates = ["raft/src", "raft/state/src", "node/src", "client/rust/src"];
    let mut names = BTreeSet::new();
    for file in crates.into_iter().flat_map(|folder| sources(root.join(folder))) {
        let text = std::fs::read_to_string(file).unwrap();
        for call in ["planted::is(\"", " is(\"", "!is(\"", "planted::without_rows(\""] {
            let after = text.split(call).skip(1);
            names.extend(after.filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.to_owned()));
        }
    }
    names
}

#[test]
fn page_code_and_program_name_the_same_bugs() {
    let (documented, listed, asked) = (documented(), listed(), asked_for());
    assert!(documented.len() >= 25, "{documented:?}");
    assert_eq!(documented, listed, "PLANTED.md and the names compiled in");
    assert_eq!(listed, asked, "the names compiled in and the places that ask for them");
}

#[test]
fn a_bug_that_nobody_planted_is_refused() {
    let output = sim(&["--planted", "no-such-bug"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("PLANTED.md") && said.contains("unsynced-log"), "{said}");
}

/// One at each seam. All of them take a quarter of an hour: `make planted`.
#[test]
fn planted_bugs_are_caught() {
    for name in ["unsynced-log", "acknowledge-before-flush", "stale-token", "clock-in-apply", "early-acknowledge"] {
        let output = sim(&["--planted", name, "--steps", STEPS, "--seeds", "8", "-o", "json"]);
        let table = json(&output);
        assert!(output.status.success(), "{table:#}");
        assert_eq!(table["caught"], 1, "{table:#}");
        assert!(table["bugs"][0]["seed"].is_u64(), "{table:#}");
    }
}

#[test]
fn nothing_is_planted_by_default() {
    let root = Path::new("../..");
    for folder in ["raft", "raft/state", "node", "client/rust", "cli"] {
        let manifest = std::fs::read_to_string(root.join(folder).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("\nplanted = ["), "{folder} has no feature `planted`");
        let default = manifest.lines().filter(|line| line.starts_with("default"));
        assert!(default.clone().count() <= 1 && default.clone().all(|line| !line.contains("planted")), "{folder}");
    }
}
