use super::{passes, script::Script, voids};
use crate::{
    check::{Rules, bite},
    event::{Injection, Operation},
};

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
fn too_little_done_voids_the_run() {
    let rules = |floor| Rules { floor, ..Rules::default() };
    passes(&bite(&load().build(), &rules(10.0)));
    voids(&bite(&load().build(), &rules(11.0)), "under the floor of 11.0");
    let nothing = Script::new().info(0, 1, 2, Operation::Write { key: 1, value: 1 });
    voids(&bite(&nothing.build(), &rules(0.0)), "no operation ended well");
}
