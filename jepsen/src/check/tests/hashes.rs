use super::{passes, script::Script, sees, voids};
use crate::{
    check::hashes,
    event::{Change, Injection, Operation},
};

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
