use proptest::{prelude::*, test_runner::RngSeed};

use super::{passes, script::Script, sees};
use crate::{
    check::searches,
    event::{Operation, Phase},
};

const UPSERT: Operation = Operation::Upsert { point: 4 };
const DELETE: Operation = Operation::Delete { point: 4 };

fn search(found: bool) -> Operation {
    Operation::Search { point: 4, found: Some(found), missing: 0 }
}

#[test]
fn an_acknowledged_point_is_found() {
    let script = |found| Script::new().ok(1, 1, 2, UPSERT).ok(2, 3, 4, search(found)).build();
    passes(&searches(&script(true)));
    sees(&searches(&script(false)), "point 4 was not found, but was acknowledged before the search began");
}

#[test]
fn a_search_beside_the_write_may_see_either() {
    for found in [true, false] {
        passes(&searches(&Script::new().ok(1, 1, 3, UPSERT).ok(2, 2, 4, search(found)).build()));
    }
}

#[test]
fn a_deleted_point_is_not_found() {
    let script = |found| Script::new().ok(1, 1, 2, UPSERT).ok(1, 3, 4, DELETE).ok(2, 5, 6, search(found)).build();
    passes(&searches(&script(false)));
    sees(&searches(&script(true)), "was deleted before the search began");
}

#[test]
fn an_unknown_write_excuses_either_answer() {
    for found in [true, false] {
        let script = Script::new().ok(1, 1, 2, UPSERT).info(2, 3, 4, DELETE).ok(3, 50, 60, search(found));
        passes(&searches(&script.build()));
    }
    let failed = Script::new().ok(1, 1, 2, UPSERT).fail(2, 3, 4, DELETE).ok(3, 50, 60, search(false));
    sees(&searches(&failed.build()), "was not found");
}

#[test]
fn a_point_that_nobody_wrote_is_not_found() {
    sees(&searches(&Script::new().ok(1, 1, 2, search(true)).build()), "found and never written");
    sees(&searches(&Script::new().ok(1, 1, 2, search(true)).ok(2, 3, 4, UPSERT).build()), "found and never written");
}

#[test]
fn an_answer_with_missing_shards_is_counted_and_says_nothing() {
    let partial = Operation::Search { point: 4, found: Some(false), missing: 2 };
    let verdict = searches(&Script::new().ok(1, 1, 2, UPSERT).ok(2, 3, 4, partial).build());
    passes(&verdict);
    assert_eq!(verdict.counts["search answers with missing shards"], 1);
    assert_eq!(verdict.counts["search missing shards named"], 2);
    assert!(!verdict.counts.contains_key("search not found"));
}

#[test]
fn searches_together_show_what_none_shows_alone() {
    // The unknown delete explains the second search, and then nothing brings the point back.
    let script =
        Script::new().ok(1, 1, 2, UPSERT).info(2, 3, 4, DELETE).ok(3, 5, 6, search(false)).ok(3, 7, 8, search(true));
    sees(&searches(&script.build()), "no order of its writes explains all searches together");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..ProptestConfig::default() })]

    /// What a single point answers at moments within its operations is never called a violation.
    #[test]
    fn real_answers_pass(steps in prop::collection::vec((0_u8..3, 0_u64..3, 0_u64..3, 0_u8..4), 1..12)) {
        // Steps take effect one after the other; beginnings and ends reach over their neighbours.
        let (mut present, mut script) = (false, Script::new());
        for (at, &(what, before, after, outcome)) in (1_u64..).zip(&steps) {
            let (from, to) = (1_000 + 100 * at - before * 90 - at, 1_000 + 100 * at + after * 90 + at);
            let operation = match what {
                0 => UPSERT,
                1 => DELETE,
                _ => search(present),
            };
            let phase = match outcome {
                0 => Phase::Info,
                1 => Phase::Fail,
                _ => Phase::Ok,
            };
            if phase == Phase::Ok || (phase == Phase::Info && after > 0) {
                present = match what {
                    0 => true,
                    1 => false,
                    _ => present,
                };
            }
            script = script.op(at, from, to, phase, operation);
        }
        let verdict = searches(&script.build());
        prop_assert!(verdict.violations.is_empty(), "{verdict:#?}");
    }
}
