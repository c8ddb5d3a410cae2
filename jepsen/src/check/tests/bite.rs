use super::{passes, script::Script, voids};
use crate::{
    check::{Rules, bite},
    event::{Injection, Micros, Operation, Part, Stage},
};

const S: Micros = 1_000_000;

fn asked(nemesis: &str) -> Rules {
    Rules { asked: vec![nemesis.to_owned()], ..Rules::default() }
}

fn load() -> Script {
    (0..20).fold(Script::new(), |script, n| {
        script.ok(0, n * 100_000 + 1, n * 100_000 + 2, Operation::Write { key: 1, value: n })
    })
}

#[test]
fn a_nemesis_that_struck_once_is_enough() {
    let script = load().fault(1, 2, Injection::Skipped, "").fault(3, 4, Injection::Installed, "");
    let verdict = bite(&script.build(), &asked("kill"));
    passes(&verdict);
    assert_eq!(verdict.counts["run faults installed"], 1);
    assert_eq!(verdict.counts["run operations"], 20);
}

#[test]
fn a_nemesis_that_never_struck_voids_the_run() {
    let script = || load().fault(1, 2, Injection::Skipped, "").fault(3, 4, Injection::Indeterminate, "");
    voids(&bite(&script().build(), &asked("kill")), "kill never struck: of 2 faults");
    voids(&bite(&script().build(), &asked("clock")), "clock never struck: of 0 faults");
}

#[test]
fn chaos_strikes_once_in_every_minute_that_has_begun() {
    let judge = |faults: u64, length: Micros| {
        let script = load().reached(Stage::Load, 0).reached(Stage::LoadEnded, length);
        let script = (0..faults).fold(script, |script, n| script.fault(n + 1, n + 2, Injection::Installed, ""));
        bite(&script.build(), &Rules { floor: 0.0, ..asked("chaos") })
    };
    voids(&judge(0, 10 * S), "chaos hardly struck: 0 faults were installed in 1 minutes");
    passes(&judge(1, 60 * S));
    voids(&judge(1, 61 * S), "1 faults were installed in 2 minutes");
    passes(&judge(3, 180 * S));
}

#[test]
fn each_of_several_chaoses_is_to_strike() {
    let rules = Rules { asked: vec!["chaos".to_owned(); 2], ..Rules::default() };
    let script = || load().fault(1, 2, Injection::Installed, "");
    voids(&bite(&script().build(), &rules), "chaos hardly struck: 1 faults were installed in 1 minutes");
    let verdict = bite(&script().fault(3, 4, Injection::Installed, "").build(), &rules);
    assert!(!verdict.void.iter().any(|why| why.contains("chaos")), "{verdict:#?}");
}

#[test]
fn chaos_does_not_strike_by_what_is_asked_for_beside_it() {
    let rules = |beside: &str| Rules { asked: vec!["chaos".to_owned(), beside.to_owned()], ..Rules::default() };
    let script = || load().fault(1, 2, Injection::Installed, "");
    voids(&bite(&script().build(), &rules("kill")), "chaos hardly struck: 0 faults were installed");
    let verdict = bite(&script().build(), &rules("pause"));
    assert!(!verdict.void.iter().any(|why| why.contains("chaos")), "{verdict:#?}");
}

#[test]
fn too_little_done_voids_the_run() {
    let rules = |floor| Rules { floor, ..Rules::default() };
    passes(&bite(&load().build(), &rules(10.0)));
    voids(&bite(&load().build(), &rules(11.0)), "under the floor of 11.0");
    let nothing = Script::new().info(0, 1, 2, Operation::Write { key: 1, value: 1 });
    voids(&bite(&nothing.build(), &rules(0.0)), "no operation ended well");
}

#[test]
fn only_what_clients_of_the_load_do_counts_as_done() {
    let mut script = load().reached(Stage::Load, 0).reached(Stage::LoadEnded, 2 * S);
    for n in 0..1_000 {
        let at = n * 1_000 + 10;
        let token = || format!("{n}.0");
        script = script
            .instant(7, at, Operation::Deliver { value: n, task: n, token: token(), attempt: 1 })
            .instant(7, at, Operation::Effect { task: n, token: token(), held: true })
            .instant(7, at, Operation::Hash { group: 0, node: 0, at: Some((1, 1)) })
            // At the end, and by probes.
            .ok(8, 2 * S + n * 10 + 1, 2 * S + n * 10 + 2, Operation::Read { key: 1, value: Some(None) });
    }
    script = script.by(Part::Probe(1));
    for n in 0..1_000 {
        script = script.ok(9, n * 1_000 + 1, n * 1_000 + 2, Operation::Write { key: 1 << 40, value: n });
    }
    let verdict = bite(&script.build(), &Rules { floor: 11.0, ..Rules::default() });
    voids(&verdict, "10.0 operations a second of the load ended well");
    assert_eq!(verdict.counts["run ok of the load"], 20);
    assert_eq!(verdict.counts["run operations"], 2_020, "hashes are none");
}

#[test]
fn a_load_that_did_nothing_that_its_checker_looks_at_voids_the_run() {
    let rules = Rules { parts: vec![Part::Register, Part::Lease, Part::Search], ..Rules::default() };
    let mut script = load().by(Part::Register);
    for n in 0..10 {
        let at = n * 1_000 + 10;
        script = script.ok(1, at, at + 1, Operation::Write { key: 1, value: 100 + n }).ok(
            1,
            at + 2,
            at + 3,
            Operation::Read { key: 1, value: Some(Some(100 + n)) },
        );
    }
    let verdict = bite(&script.build(), &rules);
    for reason in ["the load lease did too little: 0 effects", "0 completions", "the load search", "0 whole searches"] {
        voids(&verdict, reason);
    }
    assert!(!verdict.void.iter().any(|why| why.contains("register")), "{verdict:#?}");
    // In a long run a few are too few.
    let long = |script: Script| script.reached(Stage::Load, 0).reached(Stage::LoadEnded, 100 * S);
    let few = (0..10).fold(Script::new().by(Part::Register), |script, n| {
        script.ok(1, n * 10 + 1, n * 10 + 2, Operation::Write { key: 1, value: n })
    });
    let rules = Rules { parts: vec![Part::Register], floor: 0.0, ..Rules::default() };
    voids(&bite(&long(few).build(), &rules), "10 writes ended well, not 20");
}
