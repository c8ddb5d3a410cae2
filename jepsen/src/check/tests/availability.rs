use super::{passes, script::Script, sees, voids};
use crate::{
    check::{Rules, availability},
    event::{Injection, Injection::Installed, Micros, Moment, Note, Operation, Part, Stage, Verdict},
};

const S: Micros = 1_000_000;

fn judge(script: Script) -> Verdict {
    availability(&script.build(), &Rules::default())
}

/// Nothing broke a promise, and nothing is proved either.
fn unmeasured(verdict: &Verdict) {
    assert_eq!(verdict.violations, Vec::<String>::new());
    voids(verdict, "after no fault it was measured");
}

/// Probes of a lane every 200 ms, each answered within 50 ms, but for those from second `stops` to second `goes`, which are
/// answered then.
fn lane(script: Script, lane: u8, stops: Micros, goes: Micros) -> Script {
    let mut script = script.by(Part::Probe(lane));
    for (number, at) in (0..30 * S).step_by(200_000).enumerate() {
        let at = at + u64::from(lane) + 1;
        let to = if at >= stops && at < goes { goes + at % S / 10 } else { at + 50_000 };
        let value = number as u64;
        let operation = match lane {
            0 => Operation::Enqueue { value, task: Some(value) },
            _ => Operation::Write { key: value, value },
        };
        script = script.ok(1_000 * u64::from(lane) + value, at, to, operation);
    }
    script
}

/// Lane 1, that stops and goes.
fn load(stops: Micros, goes: Micros) -> Script {
    lane(Script::new(), 1, stops, goes)
}

#[test]
fn a_majority_that_writes_within_the_time_passes() {
    let verdict = judge(load(10 * S, 11 * S).fault(10 * S, 20 * S, Installed, ""));
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults measured"], 1);
    assert_eq!(verdict.counts["availability slowest write after a fault, ms"], 1_000);
    assert_eq!(verdict.counts["availability slowest write after a fault to the shard of probes-1, ms"], 1_000);
}

#[test]
fn a_majority_that_does_not_write_is_seen() {
    let verdict = judge(load(10 * S, 13 * S).fault(10 * S, 20 * S, Installed, ""));
    sees(
        &verdict,
        "the next write to the shard of probes-1 was acknowledged after 3.000000s, not within 2.000000s, of kill kill it at 10.000000s",
    );
    sees(&judge(load(10 * S, 31 * S).fault(10 * S, 20 * S, Installed, "")), "acknowledged after 21");
}

#[test]
fn the_others_do_not_wait_for_a_leader_whose_disk_stalls() {
    let verdict = judge(load(10 * S, 13 * S).fault_of("stalled-disk", 10 * S, 20 * S, Installed, ""));
    assert!(!verdict.violations.is_empty(), "{verdict:?}");
}

#[test]
fn a_group_that_goes_on_does_not_hide_one_that_has_no_leader() {
    // The shards answer at once, control does not.
    let script = lane(lane(load(0, 0), 2, 0, 0), 0, 10 * S, 14 * S).fault(10 * S, 20 * S, Installed, "");
    sees(&judge(script), "the next write to control was acknowledged after 4.0");
}

#[test]
fn a_write_that_began_before_the_fault_shows_nothing() {
    // It was decided before, and its answer comes late.
    let script = load(10 * S, 13 * S).by(Part::Probe(1)).ok(
        7,
        10 * S - 1,
        10 * S + S / 2,
        Operation::Write { key: 1 << 40, value: 1 },
    );
    sees(&judge(script.fault(10 * S, 20 * S, Installed, "")), "acknowledged after 3.000000s");
}

#[test]
fn what_others_write_shows_nothing_of_a_lane() {
    let mut script = load(10 * S, 13 * S).by(Part::Register);
    for at in (0..30 * S).step_by(100_000) {
        script = script.ok(7, at + 10, at + 20, Operation::Write { key: 1 << 40, value: at });
    }
    sees(&judge(script.fault(10 * S, 20 * S, Installed, "")), "acknowledged after 3.000000s");
}

#[test]
fn without_a_majority_nothing_is_asked() {
    let verdict = judge(load(10 * S, 21 * S).fault(10 * S, 20 * S, Installed, "halves, majority=false"));
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults without a majority"], 1);
}

#[test]
fn a_fault_that_did_not_bite_or_stands_beside_another_is_not_measured() {
    use Injection::{Indeterminate, Skipped};
    passes(&judge(load(10 * S, 13 * S).fault(10 * S, 20 * S, Skipped, "")));
    let beside = |from, to, detail: &str| {
        let script = load(10 * S, 13 * S).fault(10 * S, 20 * S, Installed, detail);
        judge(script.fault_of("pause", from, to, Indeterminate, ""))
    };
    let verdict = beside(9 * S, 20 * S, "");
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults beside another"], 1);
    let verdict = beside(11 * S + S / 2, 20 * S, "");
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults overtaken by the next"], 1);
    // What was before does not matter where the cluster was seen to be well.
    passes(&beside(5 * S, 9 * S, ""));
    sees(&beside(5 * S, 9 * S, "well=true"), "acknowledged after 3.000000s");
    passes(&beside(5 * S, 11 * S, "well=true"));
    sees(&beside(5 * S, 7 * S, ""), "acknowledged after 3.000000s");
}

#[test]
fn a_run_in_which_nothing_was_measured_proves_nothing() {
    // Kills so close to one another that each is beside the one before.
    let kills = |script: Script| (1..20).fold(script, |script, n| script.fault(n * S, n * S + S / 2, Installed, ""));
    let many = |from: Micros| kills(load(0, 0).fault(from, from + 1, Installed, "majority=false"));
    unmeasured(&judge(many(S - S / 2)));
    // Another nemesis is there all the time, or all leave no majority: nothing was to be measured.
    let beside = kills(load(0, 0)).fault_of("pause-majority", 1, 25 * S, Installed, "");
    passes(&judge(beside));
    passes(&judge(load(0, 0).fault(5 * S, 6 * S, Installed, "majority=false")));
    // Nobody wrote.
    voids(&judge(Script::new().fault(5 * S, 6 * S, Installed, "")), "kill struck alone at 5.0");
}

#[test]
fn damage_to_one_node_leaves_a_majority() {
    let damage =
        |goes, detail: &str| judge(load(10 * S, goes).fault_of("corruption", 10 * S, 20 * S, Installed, detail));
    passes(&damage(11 * S, ""));
    assert_eq!(damage(11 * S, "").counts["availability faults measured"], 1);
    sees(&damage(13 * S, ""), "acknowledged after 3.0");
    // Of several each is measured that began when all was well again.
    let two = |detail: &str| {
        let script = load(0, 0).fault_of("corruption", 5 * S, 6 * S, Installed, "");
        judge(script.fault_of("corruption", 10 * S, 11 * S, Installed, detail)).counts["availability faults measured"]
    };
    assert_eq!((two("well=true"), two("")), (2, 1));
}

#[test]
fn a_fault_is_measured_until_the_next_one() {
    let next = |goes: Micros| {
        let script = load(10 * S, goes).fault(10 * S, 10 * S + S / 2, Installed, "");
        judge(script.fault(10 * S + S, 20 * S, Installed, "majority=false"))
    };
    let verdict = next(10 * S + S / 2);
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults measured"], 1);
    assert_eq!(next(13 * S).counts["availability faults overtaken by the next"], 1);
}

#[test]
fn replicas_that_are_made_anew_are_waited_for_longer() {
    let after = |nemesis: &str| {
        let script = load(10 * S, 13 * S).fault(10 * S, 20 * S, Installed, "");
        judge(script.fault_of(nemesis, S, 2 * S, Installed, "majority=false"))
    };
    let verdict = after("corruption");
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults beside another"], 1);
    sees(&after("disk-full"), "acknowledged after 3.000000s");
}

#[test]
fn a_fault_that_ends_early_has_its_time_from_its_end_on() {
    passes(&judge(load(10 * S, 12 * S).fault(10 * S, 11 * S, Installed, "")));
    sees(&judge(load(10 * S, 14 * S).fault(10 * S, 11 * S, Installed, "")), "acknowledged after 4.0");
}

#[test]
fn a_nemesis_that_may_leave_no_majority_is_measured_if_it_says_that_it_did() {
    let judge = |detail: &str| judge(load(10 * S, 13 * S).fault_of("links", 10 * S, 20 * S, Installed, detail));
    let verdict = judge("0→1");
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults that may leave no majority"], 1);
    sees(&judge("0→1 majority=true"), "acknowledged after 3.000000s");
}

#[test]
fn a_node_that_is_broken_again_and_again_leaves_a_majority_at_every_moment() {
    for nemesis in ["failpoint", "restart-loop", "rolling-restart", "fsync-error"] {
        let script = load(14 * S, 17 * S).fault_of(nemesis, 10 * S, 20 * S, Installed, "");
        sees(&judge(script), "acknowledged after 3.1");
        // One that is short is looked at until its end.
        let short = load(11 * S, 14 * S).fault_of(nemesis, 10 * S, 11 * S + S / 2, Installed, "");
        sees(&judge(short), "(from 10.800003s on)");
    }
    passes(&judge(load(14 * S, 17 * S).fault(10 * S, 20 * S, Installed, "")));
}

#[test]
fn the_end_of_a_long_fault_must_not_stop_writes_either() {
    let mended = |stops: Micros, goes: Micros| {
        judge(load(stops, goes).fault_of("halves", 10 * S, 20 * S, Installed, "majority=true"))
    };
    sees(
        &mended(20 * S, 26 * S),
        "acknowledged after 6.000000s, not within 2.000000s, of halves halves it at 10.000000s",
    );
    let verdict = mended(20 * S, 21 * S);
    passes(&verdict);
    assert_eq!(verdict.counts["availability ends of faults measured"], 1);
    assert_eq!(verdict.counts["availability slowest write after a fault, ms"], 1_000);
    // What goes on over the end is one outage, and told once.
    sees(&mended(10 * S, 26 * S), "acknowledged after 16");
    // Another fault that is there then says nothing of its beginning.
    let beside = load(20 * S, 26 * S).fault_of("halves", 10 * S, 20 * S, Installed, "majority=true");
    let verdict = judge(beside.fault_of("pause", 15 * S, 21 * S, Injection::Indeterminate, ""));
    passes(&verdict);
    assert_eq!(verdict.counts["availability ends of faults beside another"], 1);
    // Where no majority was connected nothing is promised of its end.
    passes(&judge(load(20 * S, 26 * S).fault(10 * S, 20 * S, Installed, "majority=false")));
}

#[test]
fn the_next_fault_does_not_hide_what_was_late_before_it() {
    // From second 12 to second 15 nobody writes, and from second 17 on for longer; but then the next fault is there.
    let mut script = Script::new().by(Part::Probe(1));
    for (number, at) in (0..30 * S).step_by(200_000).enumerate() {
        let goes = [(12, 15), (17, 25)].into_iter().find(|(from, to)| (from * S..to * S).contains(&at));
        let to = goes.map_or(at + 50_000, |(_, to)| to * S + at % S / 10);
        script = script.ok(number as u64, at + 1, to + 1, Operation::Write { key: 1, value: number as u64 });
    }
    let loops = script.fault_of("restart-loop", 10 * S, 20 * S, Installed, "");
    let verdict = judge(loops.fault_of("pause", 18 * S, 19 * S, Installed, "majority=false"));
    sees(&verdict, "acknowledged after 3.1");
}

#[test]
fn links_that_change_again_and_again_are_looked_at_from_their_last_change_on() {
    let flapping = |stops: Micros, goes: Micros, detail: &str| {
        judge(load(stops, goes).fault_of("flapping", 10 * S, 15 * S, Installed, detail))
    };
    // Each cut and each mending begins the time anew.
    let verdict = flapping(11 * S, 14 * S, "cut 8 times");
    passes(&verdict);
    assert_eq!(verdict.counts["availability faults measured"], 1);
    passes(&flapping(11 * S, 16 * S + S / 2, "cut 8 times"));
    sees(&flapping(11 * S, 17 * S + S / 2, "cut 8 times"), "acknowledged after 2.5");
    sees(&flapping(15 * S, 18 * S, "cut 8 times"), "acknowledged after 3.0");
    let noted = |goes: Micros| {
        let script = load(11 * S, goes).fault_of("flapping", 10 * S, 15 * S, Installed, "cut 8 times");
        let change = |moment, time| Note::Moment { nemesis: "flapping".into(), moment, time };
        judge(script.note(change(Moment::Cut, 14 * S)).note(change(Moment::Mended, 14 * S + S / 2)))
    };
    sees(&noted(17 * S), "acknowledged after 2.5");
    passes(&noted(16 * S));
}

#[test]
fn what_a_fault_disturbs_before_it_bites_is_its_own_doing() {
    // One node is dead when the next one's disk is frozen, which takes a second and a half.
    let struck = |script: Script| script.fault_of("stalled-disk", 13 * S, 19 * S, Installed, "majority=false");
    let begun = |time| Note::Moment { nemesis: "stalled-disk".into(), moment: Moment::Begun, time };
    let killed = |at, goes| struck(load(at, goes).fault_of("kill", 10 * S, 20 * S, Installed, "majority=true"));
    sees(&judge(killed(10 * S, 12 * S + S / 2)), "acknowledged after 2.5");
    let overtaken = judge(killed(10 * S, 12 * S + S / 2).note(begun(11 * S + S / 2)));
    passes(&overtaken);
    assert!(overtaken.counts.contains_key("availability faults overtaken by the next"), "{:?}", overtaken.counts);
    let beside = |script: Script| struck(script.fault_of("kill", 12 * S, 20 * S, Installed, "majority=true"));
    let verdict = judge(beside(load(13 * S, 16 * S)).note(begun(11 * S)));
    passes(&verdict);
    assert!(verdict.counts.contains_key("availability faults beside another"), "{:?}", verdict.counts);
}

#[test]
fn a_stall_after_something_was_due_excuses_nothing() {
    let stall = |from, to| Note::Stalled { what: "its disk".into(), from, to };
    let heal = |healthy: Micros| {
        let script = equal(load(0, 0), 12 * S).fault(5 * S, 10 * S, Installed, "").reached(Stage::Healed, 11 * S);
        script.reached(Stage::Healthy, healthy)
    };
    sees(&judge(heal(20 * S).note(stall(17 * S, 19 * S))), "was healthy 9.000000s after");
    // What stood still while it was excused excuses more.
    passes(&judge(heal(22 * S).note(stall(15 * S, 16 * S)).note(stall(18 * S, 19 * S))));
    // Timers and disk tell of one stall.
    let twice = |healthy| heal(healthy).note(stall(12 * S, 13 * S)).note(stall(13 * S + 10, 14 * S));
    passes(&judge(twice(20 * S)));
    sees(&judge(twice(20 * S + 10)), "was healthy 9.0");
    let late = healing(18 * S).note(stall(16 * S, 17 * S));
    sees(&judge(late), "equal 8.000001s after");
}

#[test]
fn a_failpoint_that_is_a_join_makes_replicas_anew() {
    let after = |kind: &str, detail: &str| {
        let script = load(10 * S, 13 * S).fault(10 * S, 20 * S, Installed, "");
        judge(script.fault_of("failpoint", 5 * S, 6 * S, Installed, detail).of_kind(kind))
    };
    for kind in ["failpoint admitted", "failpoint control_started", "failpoint cluster_adopted"] {
        let verdict = after(kind, "fresh node 3, Joining");
        passes(&verdict);
        assert_eq!(verdict.counts["availability faults beside another"], 1);
    }
    sees(&after("failpoint control_started", "fresh node 3, Founding"), "acknowledged after 3.000000s");
    sees(&after("failpoint batch_committed", "node 1, after 3 passes"), "acknowledged after 3.000000s");
}

#[test]
fn without_load_nothing_is_measured() {
    let fault = |script: Script| judge(script.fault(10 * S, 20 * S, Installed, ""));
    let none = Script::new().ok(0, 1, 2, Operation::Write { key: 1, value: 1 }).ok(
        0,
        30 * S,
        31 * S,
        Operation::Write { key: 1, value: 2 },
    );
    let verdict = fault(none);
    unmeasured(&verdict);
    assert_eq!(verdict.counts["availability faults without load"], 1);
    // The harness itself stood still: nobody asked for two seconds.
    let moments = (0..30 * S).step_by(200_000).filter(|at| !(10 * S..12 * S).contains(at));
    let held_up = moments.fold(Script::new().by(Part::Probe(1)), |script, at| {
        script.ok(at, at + 1, at + 50_000, Operation::Write { key: at, value: at })
    });
    let verdict = fault(held_up);
    unmeasured(&verdict);
    assert_eq!(verdict.counts["availability faults without load"], 1);
}

#[test]
fn what_is_late_while_the_machine_stands_still_is_not_held_against_the_cluster() {
    let stall = |from, to| Note::Stalled { what: "its disk".into(), from, to };
    let stalled = |from, to| judge(load(10 * S, 13 * S).fault(10 * S, 20 * S, Installed, "").note(stall(from, to)));
    let verdict = stalled(11 * S, 11 * S + S / 2);
    unmeasured(&verdict);
    assert_eq!(verdict.counts["availability faults while the machine stood still"], 1);
    sees(&stalled(8 * S, 9 * S), "acknowledged after 3.000000s");
    sees(&stalled(13 * S, 14 * S), "acknowledged after 3.000000s");
    // And not for ever.
    let script = load(10 * S, 18 * S).fault(10 * S, 20 * S, Installed, "").note(stall(11 * S, 11 * S + S / 2));
    sees(&judge(script), "acknowledged after 8.0");
    let heal = |healthy: Micros| {
        let script = equal(load(0, 0), 12 * S).fault(5 * S, 10 * S, Installed, "").reached(Stage::Healed, 11 * S);
        judge(script.reached(Stage::Healthy, healthy).note(stall(12 * S, 13 * S)))
    };
    passes(&heal(19 * S));
    sees(&heal(20 * S), "was healthy 9.000000s after all faults");
}

fn hash(node: usize, position: u64, hash: u64) -> Operation {
    Operation::Hash { group: 1, node, at: Some((position, hash)) }
}

/// Two replicas that are equal when they are asked.
fn equal(script: Script, at: Micros) -> Script {
    script.instant(1 << 40, at, hash(0, 50, 5)).instant(1 << 40, at + 1, hash(1, 50, 5))
}

/// Two replicas, asked every second after a fault that ends at second 10; they are equal from second `equal` on.
fn healing(equal: Micros) -> Script {
    let mut script = load(0, 0).fault(5 * S, 10 * S, Installed, "");
    for second in 11..25 {
        script = script.instant(1 << 40, second * S, hash(0, 50, 5));
        let position = if second * S >= equal { 50 } else { 40 };
        script = script.instant(1 << 40, second * S + 1, hash(1, position, position / 10));
    }
    script
}

#[test]
fn replicas_are_equal_soon_after_the_heal() {
    let verdict = judge(healing(14 * S));
    passes(&verdict);
    assert_eq!(verdict.counts["availability equal after heal, ms"], 4_000);
    sees(&judge(healing(16 * S)), "the 2 replicas were equal 6.000001s after all faults had ended at 10.0");
    sees(
        &judge(healing(100 * S)),
        "were never equal at one position in the 14.000001s after all faults had ended: group 1: node 0 0000000000000005 at 50, node 1 0000000000000004 at 40",
    );
    // The clock starts at the heal, whatever goes on after it.
    sees(&judge(healing(18 * S).reached(Stage::Healed, 12 * S).reached(Stage::AtRest, 17 * S)), "equal 6.000001s");
    passes(&judge(healing(17 * S - 1).reached(Stage::Healed, 12 * S + 1)));
}

#[test]
fn groups_that_are_equal_one_after_the_other_have_all_been_equal() {
    // The first group is written to again when the second one has caught up.
    let told = |group, node, position| Operation::Hash { group, node, at: Some((position, position)) };
    let round = |script: Script, at: Micros, positions: [u64; 4]| {
        let replicas = [(1, 0), (1, 1), (2, 0), (2, 1)].into_iter().zip(positions).zip(at..);
        replicas.fold(script, |script, (((group, node), position), at)| {
            script.instant(1 << 40, at, told(group, node, position))
        })
    };
    let script = |last| {
        let script = load(0, 0).fault(5 * S, 10 * S, Installed, "");
        let script = round(script, 11 * S, [50, 50, 9, 7]);
        round(script, 12 * S, [60, 58, 9, last])
    };
    let verdict = judge(script(9));
    passes(&verdict);
    assert_eq!(verdict.counts["availability equal after heal, ms"], 2_000);
    let behind = round(script(8), 16 * S, [60, 60, 9, 8]);
    sees(&judge(behind), "all faults had ended: group 2: node 0 0000000000000009 at 9, node 1 0000000000000008 at 8");
}

#[test]
fn only_what_is_made_anew_may_take_a_minute() {
    let healed = |nemesis: &str, equals: Micros| {
        let script = load(0, 0).fault_of(nemesis, 5 * S, 10 * S, Installed, "").reached(Stage::Healed, 11 * S);
        let apart = script.instant(1 << 40, 12 * S, hash(0, 50, 5)).instant(1 << 40, 12 * S + 1, hash(1, 40, 4));
        equal(apart, equals)
    };
    for nemesis in ["kill", "power-cut-all", "fsync-error", "stalled-disk", "disk-full"] {
        passes(&judge(healed(nemesis, 16 * S - 1)));
        sees(&judge(healed(nemesis, 17 * S)), "not within 5.000000s");
    }
    passes(&judge(healed("corruption", 70 * S)));
    sees(&judge(healed("replace", 72 * S)), "not within 60.000000s");
    let by_hand = Note::Replaced { node: 1, refusal: "the identity is damaged".into(), time: 11 * S };
    passes(&judge(healed("kill", 60 * S).note(by_hand)));
}

#[test]
fn a_replica_that_moved_away_is_not_waited_for() {
    let moved =
        healing(14 * S).instant(1 << 40, 10 * S + 1, hash(0, 30, 3)).instant(1 << 40, 10 * S + 2, hash(2, 30, 3));
    passes(&judge(moved));
}

#[test]
fn a_heal_that_nobody_looked_at_proves_nothing() {
    let script = load(0, 0).fault(5 * S, 10 * S, Installed, "");
    let late = script.instant(1 << 40, 25 * S, hash(0, 50, 5)).instant(1 << 40, 26 * S, hash(1, 50, 5));
    let verdict = judge(late.reached(Stage::Healed, 10 * S));
    voids(&verdict, "after the heal nobody saw how soon all replicas were equal");
    assert_eq!(verdict.counts["availability heals not measured"], 1);
    let never = load(0, 0).fault(5 * S, 10 * S, Installed, "").reached(Stage::Healed, 10 * S);
    voids(&judge(never), "after the heal nobody saw");
    let gave_up = load(0, 0).fault(5 * S, 10 * S, Installed, "").reached(Stage::Healed, 10 * S);
    let gave_up = gave_up.instant(1 << 40, 11 * S, hash(0, 50, 5)).instant(1 << 40, 11 * S + 1, hash(1, 40, 4));
    voids(&judge(gave_up), "after the heal nobody saw");
}

#[test]
fn the_cluster_is_healthy_soon_after_the_last_fault() {
    let healed = |nemesis: &str, healthy: Micros| {
        let script = equal(load(0, 0), 12 * S).fault_of(nemesis, 5 * S, 10 * S, Installed, "");
        judge(script.reached(Stage::Healed, 11 * S).reached(Stage::Healthy, 11 * S + healthy))
    };
    let verdict = healed("kill", 5 * S);
    passes(&verdict);
    assert_eq!(verdict.counts["availability healthy after heal, ms"], 5_000);
    sees(
        &healed("kill", 5 * S + 1),
        "was healthy 5.000001s after all faults had ended at 11.000000s, not within 5.000000s",
    );
    for nemesis in ["power-cut-all", "fsync-error", "stalled-disk", "disk-full"] {
        sees(&healed(nemesis, 6 * S), "not within 5.000000s");
    }
    for nemesis in ["corruption", "replace"] {
        passes(&healed(nemesis, 60 * S));
        sees(&healed(nemesis, 61 * S), "not within 60.000000s");
    }
    let long_ago = equal(load(0, 0), 81 * S).fault_of("replace", 5 * S, 10 * S, Installed, "").fault(
        75 * S,
        80 * S,
        Installed,
        "",
    );
    sees(&judge(long_ago.reached(Stage::Healed, 80 * S).reached(Stage::Healthy, 90 * S)), "not within 5.000000s");
}
