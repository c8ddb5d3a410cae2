//! Each checker sees a violation that is planted, and none where there is none.

mod availability;
mod bite;
mod freshness;
mod hashes;
mod leases;
mod queue;
mod script;

use super::{Outcome, all, run};
use crate::{
    check::Rules,
    event::{Event, Operation, Phase, Verdict},
    history::History,
};
use script::Script;

/// The verdict holds one violation that says this.
#[track_caller]
fn sees(verdict: &Verdict, sentence: &str) {
    let fits = verdict.violations.len() == 1 && verdict.violations[0].contains(sentence);
    assert!(fits, "wanted one violation with {sentence:?}, got {verdict:#?}");
}

/// The verdict is valid.
#[track_caller]
fn passes(verdict: &Verdict) {
    assert_eq!(verdict.outcome(), Outcome::Valid, "{verdict:#?}");
}

/// The verdict is void, and a reason says this.
#[track_caller]
fn voids(verdict: &Verdict, reason: &str) {
    assert_eq!(verdict.outcome(), Outcome::Void, "{verdict:#?}");
    assert!(verdict.void.iter().any(|why| why.contains(reason)), "wanted {reason:?}, got {verdict:#?}");
}

#[test]
fn a_history_that_is_not_well_formed_is_void_and_not_a_violation() {
    let write = Operation::Write { key: 1, value: 1 };
    let event = Event { time: 1, process: 0, phase: Phase::Ok, operation: write, node: None, error: None };
    let history = History { events: vec![event], faults: Vec::new() };
    voids(&all(&history), "not well formed");
}

#[test]
fn an_empty_history_proves_nothing() {
    voids(&run(&History::default(), &Rules::default()), "no operation ended well");
}

#[test]
fn all_checkers_look_at_one_history() {
    let history = Script::new()
        .ok(0, 1, 2, Operation::Write { key: 1, value: 1 })
        .ok(0, 3, 4, Operation::Read { key: 1, value: Some(None) })
        .ok(1, 5, 6, Operation::Upsert { point: 4 })
        .ok(1, 7, 8, Operation::Search { point: 4, found: Some(false), missing: 0 })
        .instant(2, 9, Operation::Deliver { value: 3, task: 30, token: "5.0".into(), attempt: 1 })
        .build();
    let verdict = all(&history);
    for checker in ["registers: ", "search: ", "queue: "] {
        assert!(verdict.violations.iter().any(|told| told.starts_with(checker)), "{checker} saw nothing: {verdict:#?}");
    }
}

#[test]
fn merging_adds_counts_and_keeps_each_sentence_once() {
    let one = Verdict { violations: vec!["a".into()], void: vec!["b".into()], counts: [("n".to_owned(), 2)].into() };
    let merged = one.clone().merge(one.clone());
    assert_eq!((merged.violations, merged.void), (one.violations, one.void));
    assert_eq!(merged.counts["n"], 4);
}
