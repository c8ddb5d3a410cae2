//! Both ways of deciding, against brute force and against violations that are planted.

use proptest::{prelude::*, test_runner::RngSeed};

use super::{Access, Decision, Kind, configurations, decide_key, judge, zones};
use crate::{
    event::{Event, Operation, Phase},
    history::History,
};

/// An access from and to, all by different processes.
fn access(kind: Kind, from: u64, to: u64) -> Access {
    Access { key: 0, kind, from, to, place: usize::try_from(from).expect("small") }
}

/// Tries all orders.
fn brute(accesses: &[Access], done: u32, value: Option<u64>) -> bool {
    let open =
        || accesses.iter().enumerate().filter(move |(at, _)| done & (1 << at) == 0).map(|(at, access)| (at, *access));
    if open().all(|(_, access)| access.is_unknown()) {
        return true;
    }
    let first_end = open().map(|(_, access)| access.to).min().unwrap_or(u64::MAX);
    open().filter(|(_, access)| access.from < first_end).any(|(at, access)| {
        let next = match access.kind {
            Kind::Read(seen) => (seen == value).then_some(value),
            Kind::Write(next) => Some(Some(next)),
            Kind::Cas(seen, next) => (seen == value).then_some(Some(next)),
        };
        next.is_some_and(|next| brute(accesses, done | (1 << at), next))
    })
}

fn is_linearizable(decision: &Decision) -> bool {
    assert_ne!(*decision, Decision::Undecided, "small histories are decided");
    *decision == Decision::Linearizable
}

fn seed(seed: u64, cases: u32) -> ProptestConfig {
    ProptestConfig { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..ProptestConfig::default() }
}

/// Intervals whose beginnings and ends are all different: places in a shuffled line. Some never end.
fn intervals(most: usize) -> impl Strategy<Value = Vec<(u64, u64)>> {
    (1..=most)
        .prop_flat_map(|n| {
            (Just((1..=2 * n as u64).collect::<Vec<_>>()).prop_shuffle(), prop::collection::vec(0..6_u8, n))
        })
        .prop_map(|(line, open)| {
            let pairs = line.chunks(2).map(|pair| (pair[0].min(pair[1]), pair[0].max(pair[1])));
            pairs.zip(open).map(|((from, to), open)| (from, if open == 0 { u64::MAX } else { to })).collect()
        })
}

/// Accesses with random kinds; the value written by access `at` is `at` if they are to be unique.
fn accesses(most: usize, unique: bool) -> impl Strategy<Value = Vec<Access>> {
    (intervals(most), prop::collection::vec((0..3_u8, 0..most as u64 + 1, 0..3_u64), most)).prop_map(
        move |(intervals, kinds)| {
            let n = intervals.len() as u64;
            let made =
                intervals.iter().zip(kinds).enumerate().filter_map(|(at, (&(from, to), (kind, sees, writes)))| {
                    let writes = if unique { at as u64 } else { writes };
                    let sees = if unique { sees % (n + 1) } else { sees % 4 };
                    let sees = sees.checked_sub(1);
                    let kind = match kind {
                        0 => Kind::Read(sees),
                        1 => Kind::Write(writes),
                        _ => Kind::Cas(sees, writes),
                    };
                    // Reads that never ended say nothing and are left out before anybody decides.
                    let silent = matches!(kind, Kind::Read(_)) && to == u64::MAX;
                    (!silent).then(|| access(kind, from, to))
                });
            made.collect()
        },
    )
}

/// Accesses that a register really answers, each at a moment within its interval, of which up to one lies.
fn answered(most: usize) -> impl Strategy<Value = Vec<Access>> {
    (
        prop::collection::vec((0..4_u8, 1..60_u64, 1..60_u64, 0..6_u8), 1..=most),
        prop::option::weighted(0.5, (0..most, 0..most as u64)),
    )
        .prop_map(|(steps, lie)| {
            let mut value = None;
            let mut made = Vec::new();
            for (at, (what, before, after, open)) in steps.into_iter().enumerate() {
                let moment = 100 + 20 * at as u64;
                let kind = match what {
                    0 => Kind::Write(at as u64),
                    1 => Kind::Cas(value, at as u64),
                    _ => Kind::Read(value),
                };
                // Whether an unknown one took effect is random as well.
                let (unknown, effective) = (open <= 1 && what < 2, open != 0);
                if effective || !unknown {
                    value = kind.writes().or(value);
                }
                // Odd beginnings, even ends, and a part of its own for each: all different.
                let from = (moment - before) * 128 + 2 * at as u64 + 1;
                let to = (moment + after) * 128 + 2 * at as u64;
                made.push(access(kind, from, if unknown { u64::MAX } else { to }));
            }
            if let Some((at, saw)) = lie
                && let Some(access) = made.get_mut(at)
                && matches!(access.kind, Kind::Read(_))
            {
                access.kind = Kind::Read(Some(saw));
            }
            made
        })
}

proptest! {
    #![proptest_config(seed(1, 20_000))]

    #[test]
    fn random_accesses_of_unique_values_are_decided_as_by_brute_force(accesses in accesses(6, true)) {
        let truth = brute(&accesses, 0, None);
        prop_assert_eq!(is_linearizable(&zones::decide(&accesses)), truth);
        prop_assert_eq!(is_linearizable(&configurations::decide(&accesses, None)), truth);
    }

    #[test]
    fn random_accesses_of_any_values_are_decided_as_by_brute_force(accesses in accesses(6, false)) {
        prop_assert_eq!(is_linearizable(&decide_key(&accesses)), brute(&accesses, 0, None));
    }

    #[test]
    fn real_answers_with_at_most_one_lie_are_decided_as_by_brute_force(accesses in answered(9)) {
        let truth = brute(&accesses, 0, None);
        prop_assert_eq!(is_linearizable(&zones::decide(&accesses)), truth);
        prop_assert_eq!(is_linearizable(&configurations::decide(&accesses, None)), truth);
    }
}

proptest! {
    #![proptest_config(seed(2, 500))]

    /// Longer ones than brute force can do: the two ways agree.
    #[test]
    fn both_ways_agree_on_long_histories(accesses in answered(40)) {
        prop_assert_eq!(
            is_linearizable(&zones::decide(&accesses)),
            is_linearizable(&configurations::decide(&accesses, None))
        );
    }
}

/// The generators above make enough of both kinds for the comparison to mean something.
#[test]
fn the_histories_that_are_compared_are_mixed() {
    use proptest::{strategy::ValueTree, test_runner::TestRunner};
    let mut runner = TestRunner::new(seed(3, 1));
    let mut share = |strategy: &dyn Fn(&mut TestRunner) -> Vec<Access>| {
        (0..1_000).filter(|_| brute(&strategy(&mut runner), 0, None)).count()
    };
    let random = share(&|runner| accesses(6, true).new_tree(runner).expect("no filters").current());
    let any = share(&|runner| accesses(6, false).new_tree(runner).expect("no filters").current());
    let real = share(&|runner| answered(9).new_tree(runner).expect("no filters").current());
    for valid in [random, any, real] {
        assert!((50..=950).contains(&valid), "of 1000 each: {random}, {any}, {real}");
    }
}

fn refuted(accesses: &[Access], why: &str, places: &[usize]) {
    let Decision::Not(told, mut named) = zones::decide(accesses) else { panic!("linearizable: {accesses:?}") };
    assert!(told.contains(why), "wanted {why:?}, got {told:?}");
    named.sort_unstable();
    named.dedup();
    assert_eq!(named, places, "{told}");
    assert!(!is_linearizable(&configurations::decide(accesses, None)));
}

#[test]
fn a_stale_read_is_explained() {
    use Kind::{Read, Write};
    let accesses =
        [access(Write(1), 1, 2), access(Write(2), 3, 4), access(Read(Some(1)), 5, 6), access(Read(Some(2)), 7, 8)];
    refuted(&accesses, "1 was in the register over a time in which 2 was as well", &[1, 3, 5, 7]);
    refuted(&accesses[..3], "2 was written within a time", &[1, 3, 5]);
}

#[test]
fn a_lost_write_is_explained() {
    use Kind::{Read, Write};
    refuted(&[access(Write(1), 1, 2), access(Read(None), 3, 4)], "(never written)", &[1, 3]);
}

#[test]
fn what_failed_for_certain_is_not_seen() {
    refuted(&[access(Kind::Read(Some(9)), 3, 4)], "nobody wrote", &[3]);
}

#[test]
fn a_read_from_the_future_is_explained() {
    refuted(
        &[access(Kind::Read(Some(9)), 3, 4), access(Kind::Write(9), 5, 6)],
        "ended before the first began",
        &[3, 5],
    );
}

#[test]
fn a_value_is_replaced_once() {
    use Kind::{Cas, Write};
    let accesses = [access(Write(1), 1, 2), access(Cas(Some(1), 2), 3, 4), access(Cas(Some(1), 3), 5, 6)];
    refuted(&accesses, "replaced the same value 1", &[3, 5]);
}

#[test]
fn a_circle_is_explained() {
    refuted(&[access(Kind::Cas(Some(1), 2), 1, 3), access(Kind::Cas(Some(2), 1), 2, 4)], "in a circle", &[1, 2]);
}

fn history(operations: &[(u64, Phase, Operation)]) -> History {
    let mut history = History::default();
    for (process, phase, operation) in operations {
        let time = 1_000 * history.events.len() as u64;
        let (process, phase, operation) = (*process, *phase, operation.clone());
        history.events.push(Event { time, process, phase, operation, part: None, node: Some(1), error: None });
    }
    history
}

#[test]
fn an_explanation_names_the_key_the_window_and_the_operations() {
    use Phase::{Fail, Invoke, Ok};
    let write = |value| Operation::Write { key: 5, value };
    let read = |value| Operation::Read { key: 5, value };
    let history = history(&[
        (0, Invoke, write(1)),
        (0, Ok, write(1)),
        (1, Invoke, Operation::Write { key: 6, value: 9 }),
        (1, Ok, Operation::Write { key: 6, value: 9 }),
        (0, Invoke, write(2)),
        (0, Fail, write(2)),
        (2, Invoke, read(None)),
        (2, Ok, read(Some(Some(2)))),
    ]);
    let verdict = judge(&history, &history.spans().expect("well formed"));
    let [told] = &verdict.violations[..] else { panic!("{verdict:#?}") };
    for part in ["register 5", "failed for certain", "event 6, 0.006000s: process 2 at node 1 Read", "ok at event 7"] {
        assert!(told.contains(part), "{part:?} is missing in {told}");
    }
    assert_eq!((verdict.counts["registers keys"], verdict.counts["registers operations"]), (2, 3));
}

#[test]
fn too_many_open_writes_of_equal_values_leave_the_question_open() {
    let accesses: Vec<Access> = (0..200).map(|at| access(Kind::Write(at % 2), at + 1, u64::MAX)).collect();
    assert_eq!(decide_key(&accesses), Decision::Undecided);
}
