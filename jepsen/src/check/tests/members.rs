use super::{passes, script::Script, sees, voids};
use crate::{
    check::members,
    event::{Change, Operation, Stage},
};

fn change(what: Change, id: &str) -> Operation {
    Operation::Membership { what, node: 0, id: id.into() }
}

fn said(ids: &[&str]) -> Operation {
    Operation::Members { node: 0, ids: Some(ids.iter().map(|id| (*id).to_owned()).collect()) }
}

/// Of a, b and c the last one leaves and d joins; e is refused; of f nobody knows.
fn done() -> Script {
    Script::new()
        .ok(0, 1, 2, said(&["a", "b", "c"]))
        .reached(Stage::Load, 3)
        .ok(0, 4, 5, change(Change::Leave, "c"))
        .ok(0, 6, 7, change(Change::Join, "d"))
        .fail(0, 8, 9, change(Change::Join, "e"))
        .info(1, 10, 11, change(Change::Join, "f"))
}

#[test]
fn those_are_members_who_joined_and_did_not_leave() {
    let end = |ids: &[&str]| members(&done().ok(0, 20, 21, said(ids)).build());
    let verdict = end(&["d", "b", "a"]);
    passes(&verdict);
    assert_eq!((verdict.counts["members joins"], verdict.counts["members leaves"]), (1, 1));
    assert_eq!(verdict.counts["members joins of unknown outcome"], 1);
    passes(&end(&["a", "b", "d", "f"]));
    sees(&end(&["a", "b"]), "node d joined and did not leave, and is no member");
    sees(&end(&["b", "d"]), "node a joined and did not leave, and is no member");
    sees(&end(&["a", "b", "c", "d"]), "node c left, and is a member");
    sees(&end(&["a", "b", "d", "e"]), "node e never joined, and is a member");
    sees(&end(&["a", "b", "d", "x"]), "node x never joined, and is a member");
}

#[test]
fn each_node_is_held_to_what_it_says() {
    let script = done().ok(0, 20, 21, said(&["a", "b", "d"])).ok(0, 22, 23, said(&["a", "b"]));
    sees(&members(&script.build()), "node d joined and did not leave, and is no member (event 12)");
}

#[test]
fn a_change_that_was_tried_again_counts_once_it_is_known() {
    let again = done().ok(0, 12, 13, change(Change::Join, "f")).ok(0, 20, 21, said(&["a", "b", "d"]));
    sees(&members(&again.build()), "node f joined and did not leave");
}

#[test]
fn a_node_that_was_asked_at_the_end_and_never_said_proves_nothing() {
    let one = || done().ok(0, 20, 21, said(&["a", "b", "d"]));
    let silent = || Operation::Members { node: 1, ids: None };
    let verdict = members(&one().fail(0, 22, 23, silent()).fail(0, 24, 25, silent()).build());
    voids(&verdict, "node 1 was asked at the end who the members are, and did not say");
    assert_eq!(verdict.void.len(), 1, "it is told once");
    let said_then = Operation::Members { node: 1, ids: Some(["a", "b", "d"].map(str::to_owned).to_vec()) };
    passes(&members(&one().fail(0, 22, 23, silent()).ok(0, 24, 25, said_then).build()));
}
