use super::{passes, script::Script, sees, voids};
use crate::{
    check::hashes,
    event::{Change, Injection, Micros, Note, Operation, Stage},
};

const S: Micros = 1_000_000;

fn hash(group: u32, node: usize, position: u64, hash: u64) -> Operation {
    Operation::Hash { group, node, at: Some((position, hash)) }
}

#[test]
fn equal_replicas_pass_group_by_group() {
    let script = Script::new()
        .instant(0, 1, hash(0, 0, 10, 1))
        .instant(0, 2, hash(0, 1, 10, 1))
        .instant(0, 3, hash(1, 0, 10, 2))
        .ok(0, 4, 5, hash(1, 1, 10, 2));
    let verdict = hashes(&script.build());
    passes(&verdict);
    assert_eq!(verdict.counts["hashes groups equal at the end"], 2);
}

#[test]
fn two_states_at_one_position_are_seen_at_any_time() {
    let script = Script::new()
        .instant(0, 1, hash(3, 0, 10, 1))
        .instant(0, 2, hash(3, 1, 10, 2))
        .instant(0, 3, hash(3, 0, 11, 5))
        .instant(0, 4, hash(3, 1, 11, 5));
    sees(&hashes(&script.build()), "group 3 has two states at position 10");
}

#[test]
fn replicas_that_never_come_to_rest_prove_nothing() {
    let script = Script::new().instant(0, 1, hash(3, 0, 10, 1)).instant(0, 2, hash(3, 1, 12, 2));
    voids(&hashes(&script.build()), "group 3 was never seen at rest: node 0 at 10, node 1 at 12");
}

#[test]
fn what_a_node_told_before_it_left_does_not_count_at_the_end() {
    let script = Script::new()
        .instant(0, 1, hash(3, 2, 4, 1))
        .fault(2, 3, Injection::Installed, "")
        .ok(0, 4, 5, Operation::Membership { what: Change::Leave, node: 2, id: "c".into() })
        .instant(0, 6, hash(3, 0, 10, 1))
        .instant(0, 7, hash(3, 1, 10, 1));
    passes(&hashes(&script.build()));
}

#[test]
fn a_replica_that_tells_nothing_is_not_equal() {
    let silent = |node| Operation::Hash { group: 3, node, at: None };
    // One of three.
    let script = Script::new().instant(0, 1, hash(3, 0, 10, 1)).fail(0, 2, 3, silent(1)).fail(0, 4, 5, silent(2));
    voids(
        &hashes(&script.build()),
        "not all replicas of group 3 were compared: node 0 at 10, node 1 told nothing, node 2 told nothing",
    );
    // What it told in an earlier round does not help.
    let earlier = Script::new()
        .instant(0, 1, hash(3, 0, 10, 1))
        .instant(0, 2, hash(3, 1, 10, 1))
        .instant(0, 3, hash(3, 0, 10, 1))
        .fail(0, 4, 5, silent(1));
    voids(&hashes(&earlier.build()), "node 1 told nothing");
    // And it need not have told from the beginning.
    let later = Script::new()
        .instant(0, 1, hash(3, 0, 10, 1))
        .fail(0, 2, 3, silent(1))
        .instant(0, 4, hash(3, 0, 10, 1))
        .instant(0, 5, hash(3, 1, 10, 1));
    passes(&hashes(&later.build()));
}

#[test]
fn a_replica_that_moved_away_between_two_rounds_does_not_count() {
    let script = Script::new()
        .instant(0, 1, hash(3, 0, 8, 3))
        .instant(0, 2, hash(3, 2, 8, 3))
        .instant(0, 3, hash(3, 0, 10, 1))
        .instant(0, 4, hash(3, 1, 10, 1));
    passes(&hashes(&script.build()));
}

#[test]
fn hashes_that_nobody_told_after_the_last_fault_prove_nothing() {
    let script = Script::new().instant(0, 1, hash(3, 0, 8, 3)).instant(0, 2, hash(3, 1, 8, 3));
    voids(&hashes(&script.fault(3, 4, Injection::Installed, "").build()), "the states of no group were compared");
}

/// Rounds of two replicas, a second apart, from the moment on at which nobody writes any more; in each they tell these positions.
fn at_rest(rounds: &[[Option<u64>; 2]]) -> Script {
    let mut script = Script::new().reached(Stage::AtRest, S);
    for (positions, round) in rounds.iter().zip(1..) {
        for (position, node) in positions.iter().zip(0..) {
            let (from, group) = (round * S + 2 * node, 3);
            let at = position.map(|position| (position, position));
            let (node, asked) = (usize::try_from(node).expect("one of two"), from + 1);
            let told = Operation::Hash { group, node, at };
            script = if at.is_some() { script.ok(0, from, asked, told) } else { script.fail(0, from, asked, told) };
        }
    }
    script
}

#[test]
fn a_replica_that_is_stuck_while_nobody_writes_breaks_a_promise() {
    // Once they were equal; then one entry more reached one of them, and never the other.
    let stuck = |rounds: usize| {
        let positions = [vec![[Some(10), Some(10)]], vec![[Some(12), Some(10)]; rounds]].concat();
        at_rest(&positions)
    };
    let sentence =
        "a replica of group 3 is stuck, though nobody writes: node 0 at 12, node 1 at 10, and node 0 was at 12 at 2.0";
    sees(&hashes(&stuck(20).build()), sentence);
    voids(&hashes(&stuck(10).build()), "group 3 was never seen at rest");
    let stall = Note::Stalled { what: "its disk".into(), from: 5 * S, to: 10 * S };
    voids(&hashes(&stuck(20).note(stall).build()), "group 3 was never seen at rest");
    let replaced =
        |rounds: usize| stuck(rounds).fault_of("replace", 0, 1, Injection::Installed, "").reached(Stage::Healed, 1);
    voids(&hashes(&replaced(50).build()), "group 3 was never seen at rest");
    sees(&hashes(&replaced(70).build()), sentence);
    // What was proposed a moment ago may still be under way, though all have been waited for.
    let young = [vec![[Some(10), Some(10)]; 20], vec![[Some(11), Some(10)]]].concat();
    voids(&hashes(&at_rest(&young).build()), "group 3 was never seen at rest");
    // Of a replica that tells nothing it is not known where it is.
    let silent = [vec![[Some(12), Some(10)]; 20], vec![[Some(12), None]]].concat();
    voids(&hashes(&at_rest(&silent).build()), "node 1 told nothing");
    // Somebody may write until all is at rest.
    let mut busy = stuck(20).build();
    busy.notes.clear();
    voids(&hashes(&busy), "group 3 was never seen at rest");
}
