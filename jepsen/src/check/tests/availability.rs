use super::{passes, script::Script, sees};
use crate::{
    check::{Rules, availability},
    event::{Injection, Micros, Operation, Verdict},
};

const S: Micros = 1_000_000;

fn judge(script: Script) -> Verdict {
    availability(&script.build(), &Rules::default())
}

/// Writes that are tried from second `stops` to second `goes` and end then, and go through every tenth of a second else.
fn load(stops: Micros, goes: Micros) -> Script {
    let mut script = Script::new();
    let mut at = 0;
    while at < 30 * S {
        let to = if at >= stops && at < goes { goes } else { at + S / 10 };
        script = script.ok(0, at + 1, to, Operation::Write { key: 1, value: at });
        at = to;
    }
    script
}

#[test]
fn a_majority_that_writes_within_the_time_passes() {
    let verdict = judge(load(10 * S, 11 * S).fault(10 * S, 20 * S, Injection::Installed, ""));
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults measured"], 1);
    assert_eq!(verdict.counts["availability slowest write after a fault, ms"], 1_000);
}

#[test]
fn a_majority_that_does_not_write_is_seen() {
    let verdict = judge(load(10 * S, 13 * S).fault(10 * S, 20 * S, Injection::Installed, ""));
    sees(&verdict, "acknowledged after 3.000000s, not within 2.000000s, of kill kill -9 at 10.000000s");
    let never = judge(load(10 * S, 31 * S).fault(10 * S, 20 * S, Injection::Installed, ""));
    sees(&never, "acknowledged after 21");
}

#[test]
fn without_a_majority_nothing_is_asked() {
    let verdict = judge(load(10 * S, 21 * S).fault(10 * S, 20 * S, Injection::Installed, "halves, majority=false"));
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults without a majority"], 1);
}

#[test]
fn a_fault_that_did_not_bite_or_stands_beside_another_is_not_measured() {
    passes(&judge(load(10 * S, 13 * S).fault(10 * S, 20 * S, Injection::Skipped, "")));
    let script = load(10 * S, 13 * S).fault(10 * S, 20 * S, Injection::Installed, "").fault(
        11 * S + 500_000,
        20 * S,
        Injection::Indeterminate,
        "",
    );
    let verdict = judge(script);
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults beside another"], 1);
    let early = judge(load(10 * S, 13 * S).fault(10 * S, 11 * S, Injection::Installed, ""));
    passes(&early);
    assert_eq!(early.counts["availability faults that ended early"], 1);
}

#[test]
fn a_nemesis_that_may_leave_no_majority_is_measured_if_it_says_that_it_did() {
    let judge = |detail: &str| {
        let mut history = load(10 * S, 13 * S).fault(10 * S, 20 * S, Injection::Installed, detail).build();
        history.faults[0].nemesis = "links".into();
        availability(&history, &Rules::default())
    };
    let verdict = judge("0→1");
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults that may leave no majority"], 1);
    sees(&judge("0→1 majority=true"), "acknowledged after 3.000000s");
}

#[test]
fn a_client_that_knows_one_node_may_be_cut_off_with_it() {
    let mut history = load(10 * S, 13 * S).fault(10 * S, 20 * S, Injection::Installed, "").build();
    for event in &mut history.events {
        event.node = Some(1);
    }
    let verdict = availability(&history, &Rules::default());
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults without load"], 1);
}

#[test]
fn without_load_nothing_is_measured() {
    let script = Script::new()
        .ok(0, 1, 2, Operation::Write { key: 1, value: 1 })
        .ok(0, 30 * S, 31 * S, Operation::Write { key: 1, value: 2 })
        .fault(10 * S, 20 * S, Injection::Installed, "");
    let verdict = judge(script);
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults without load"], 1);
}

fn hash(node: usize, position: u64, hash: u64) -> Operation {
    Operation::Hash { group: 1, node, at: Some((position, hash)) }
}

/// Two replicas, asked every second after a fault that ends at second 10; they are equal from second `equal` on.
fn healing(equal: Micros) -> Verdict {
    let mut script = load(0, 0).fault(5 * S, 10 * S, Injection::Installed, "");
    for second in 11..25 {
        script = script.instant(1, second * S, hash(0, 50, 5));
        let position = if second * S >= equal { 50 } else { 40 };
        script = script.instant(1, second * S + 1, hash(1, position, position / 10));
    }
    judge(script)
}

#[test]
fn replicas_are_equal_soon_after_the_heal() {
    let verdict = healing(14 * S);
    passes(&verdict);
    assert_eq!(verdict.counts["availability equal after heal, ms"], 4_000);
    sees(&healing(16 * S), "the 2 replicas were equal 6.000001s after the last fault");
    sees(
        &healing(100 * S),
        "were never equal at one position in the 14.000001s after the last fault: group 1: node 0 0000000000000005 at 50, node 1 0000000000000004 at 40",
    );
}

#[test]
fn a_heal_that_nobody_looked_at_is_counted() {
    let script = load(0, 0).fault(5 * S, 10 * S, Injection::Installed, "");
    let late = script.instant(1, 25 * S, hash(0, 50, 5)).instant(1, 26 * S, hash(1, 50, 5));
    let verdict = judge(late);
    passes(&verdict);
    assert_eq!(verdict.counts["availability heals not measured"], 1);
}
