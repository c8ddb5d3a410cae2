//! The simulation itself: it passes, and repeats itself.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::process::Command;

use serde_json::Value;

/// Fewer than by default: the program is what runs many.
const STEPS: &str = "12000";

fn sim(arguments: &[&str]) -> (bool, Value) {
    let program = env!("CARGO_BIN_EXE_quorate-sim");
    let output = Command::new(program).args(arguments).args(["--steps", STEPS, "-o", "json"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let document = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}\n{errors}"));
    (output.status.success(), document)
}

#[test]
fn seeds_pass_and_something_happens_in_them() {
    let (clean, summary) = sim(&["--seeds", "3"]);
    assert!(clean, "{summary:#}");
    assert_eq!(summary["seeds"], 3);
    assert_eq!(summary["invalid"], serde_json::json!([]), "{summary:#}");
    for what in ["commits", "elections", "crashes", "operations"] {
        assert!(summary[what].as_u64().unwrap() > 3, "{what}: {summary:#}");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || {
        let output = Command::new(env!("CARGO_BIN_EXE_quorate-sim")).args(["one", "5", "6000"]).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["commits"].as_u64().unwrap() > 0, "{report:#}");
        report
    };
    assert_eq!(run(), run());
}
