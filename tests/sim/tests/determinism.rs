//! The same seed is the same run, byte for byte, in whatever process and however often.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Enough for a cluster, some faults and a restart.
const STEPS: &str = "5000";

/// Runs a seed. Returns its trace and its report.
fn run(seed: &str, directory: &Path) -> (Vec<u8>, Value) {
    let file = directory.join(format!("trace-{seed}"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate-sim"));
    let output = command.args(["one", seed, STEPS]).env("QUORATE_SIM_TRACE", &file).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("seed {seed}: {errors}"));
    (std::fs::read(&file).unwrap(), report)
}

/// The first line in which two traces differ.
fn difference<'a>(one: &'a [u8], other: &'a [u8]) -> Option<(String, String)> {
    let lines = |trace: &'a [u8]| trace.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
    let (mut one, mut other) = (lines(one), lines(other));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return None,
            (a, b) if a == b => {}
            (a, b) => return Some((a.unwrap_or_default().into_owned(), b.unwrap_or_default().into_owned())),
        }
    }
}

#[test]
fn the_same_seed_makes_the_same_trace() {
    let scratch = tempfile::tempdir().unwrap();
    // 3 has faults while the cluster is formed.
    for seed in ["3", "5", "8"] {
        let (first, report) = run(seed, scratch.path());
        let (second, again) = run(seed, scratch.path());
        assert_eq!(difference(&first, &second), None, "seed {seed}");
        assert_eq!(report, again, "seed {seed}");
        assert!(report["commits"].as_u64().unwrap() > 100, "{report:#}");
        assert!(first.len() > 10_000, "{} bytes", first.len());
    }
}

#[test]
fn another_seed_makes_another_trace() {
    let scratch = tempfile::tempdir().unwrap();
    assert_ne!(run("5", scratch.path()).1["trace"], run("8", scratch.path()).1["trace"]);
}

#[test]
fn a_difference_between_traces_is_found() {
    assert_eq!(difference(b"1 a\n2 b\n", b"1 a\n2 b\n"), None);
    assert_eq!(difference(b"1 a\n2 b\n", b"1 a\n2 c\n"), Some(("2 b".to_owned(), "2 c".to_owned())));
    assert!(difference(b"1 a\n", b"1 a\n2 b\n").is_some());
}
