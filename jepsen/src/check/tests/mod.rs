//! Each checker sees a violation that is planted, and none where there is none.

mod availability;
mod bite;
mod finals;
mod freshness;
mod hashes;
mod leases;
mod members;
mod queue;
mod script;
mod set;

use super::{Outcome, all, recorded, run};
use crate::{
    check::Rules,
    event::{Asked, Event, Injection, Note, Operation, Part, Phase, Stage, Verdict},
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
    let event = Event { time: 1, process: 0, phase: Phase::Ok, operation: write, part: None, node: None, error: None };
    let history = History { events: vec![event], ..History::default() };
    voids(&all(&history), "not well formed");
}

#[test]
fn an_empty_history_proves_nothing() {
    voids(&run(&History::default(), &Rules::default()), "no operation ended well");
}

/// A run of registers under kills, as its history says.
fn run_of_registers() -> Script {
    let asked = Asked {
        workload: "register".into(),
        parts: vec![Part::Register],
        nemeses: vec!["kill".into(), "links:17@2".into(), "none".into()],
        nodes: 3,
        seed: 1,
        seconds: 2.0,
        rate: 10.0,
        floor: 5.0,
        planted: None,
    };
    let members = Operation::Members { node: 0, ids: Some(vec!["a".into(), "b".into()]) };
    let script = Script::new().note(Note::Asked(asked)).ok(6, 0, 0, members.clone());
    let mut script = script.reached(Stage::Load, 1).by(Part::Register);
    for n in 0..10 {
        let at = n * 100_000 + 2;
        let read = Operation::Read { key: 1, value: Some(Some(n)) };
        script = script.ok(0, at, at + 1, Operation::Write { key: 1, value: n }).ok(0, at + 2, at + 3, read);
    }
    script
        .fault_of("links", 10, 20, Injection::Installed, "")
        .fault(30, 40, Injection::Installed, "")
        .reached(Stage::LoadEnded, 1_000_000)
        .reached(Stage::Finals, 1_000_001)
        .ok(0, 1_000_002, 1_000_003, Operation::Read { key: 1, value: Some(Some(9)) })
        .instant(5, 1_000_010, Operation::Hash { group: 0, node: 0, at: Some((9, 9)) })
        .instant(5, 1_000_011, Operation::Hash { group: 0, node: 1, at: Some((9, 9)) })
        .ok(6, 1_000_012, 1_000_013, members)
}

#[test]
fn a_history_says_by_itself_what_its_run_comes_to() {
    passes(&recorded(&run_of_registers().build()));
    let mut missed = run_of_registers().build();
    missed.faults.retain(|fault| fault.nemesis != "links");
    voids(&recorded(&missed), "nemesis links never struck");
    let mut slow = run_of_registers().build();
    slow.events.retain(|event| !(100_000..900_000).contains(&event.time));
    voids(&recorded(&slow), "under the floor of 5.0");
    let mut unheard = run_of_registers().build();
    unheard.events.retain(|event| !matches!(event.operation, Operation::Hash { .. }));
    voids(&recorded(&unheard), "the states of no group were compared");
    let mut unnamed = run_of_registers().build();
    unnamed.events.retain(|event| !matches!(event.operation, Operation::Members { .. }));
    voids(&recorded(&unnamed), "nobody said who the members are");
}

#[test]
fn what_the_harness_saw_counts_whoever_judges() {
    let violation = || Note::Violation { what: "node 1 panicked".into(), time: 5 };
    sees(&recorded(&run_of_registers().note(violation()).build()), "node 1 panicked");
    voids(
        &recorded(&run_of_registers().note(Note::Void { why: "it was interrupted".into(), time: 5 }).build()),
        "interrupted",
    );
}

#[test]
fn a_node_is_replaced_by_hand_only_where_nobody_could_know_who_it_is() {
    let replaced = |refusal: &str| {
        let note = Note::Replaced { node: 2, refusal: refusal.into(), time: 5 };
        recorded(&run_of_registers().note(note).build())
    };
    let rightly =
        replaced("node-2 ended with exit status: 1 before it was ready: error: /x/identity.json is damaged (...)");
    passes(&rightly);
    assert_eq!(rightly.counts["run nodes replaced by hand"], 1);
    sees(
        &replaced("error: the log database does not open"),
        "node 2 was damaged in one file and had to be replaced by hand",
    );
}

#[test]
fn a_history_that_does_not_say_what_was_asked_proves_nothing() {
    voids(&recorded(&History::default()), "does not say what was asked");
    let mut anonymous = run_of_registers().build();
    anonymous.notes.clear();
    voids(&recorded(&anonymous), "does not say what was asked");
    let stale = Script::new().ok(0, 1, 2, Operation::Write { key: 1, value: 1 }).ok(
        0,
        3,
        4,
        Operation::Read { key: 1, value: Some(None) },
    );
    assert_eq!(recorded(&stale.build()).outcome(), Outcome::Invalid, "what is wrong is wrong");
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
