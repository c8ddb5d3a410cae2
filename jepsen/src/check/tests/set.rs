use super::{passes, script::Script, sees, voids};
use crate::{
    check::set,
    event::{Operation, Stage},
};

fn upsert(point: u64) -> Operation {
    Operation::Upsert { point }
}

fn delete(point: u64) -> Operation {
    Operation::Delete { point }
}

fn list(points: &[u64]) -> Operation {
    Operation::List { from: 0, to: 100, rest: 0, points: Some(points.to_vec()), missing: 0 }
}

/// Point 2 is written, point 4 written and deleted, point 6 and the deletion of point 8 unknown, point 10 refused.
fn done() -> Script {
    Script::new()
        .ok(0, 1, 2, upsert(2))
        .ok(0, 3, 4, upsert(4))
        .ok(0, 5, 6, delete(4))
        .info(1, 7, 8, upsert(6))
        .ok(0, 9, 10, upsert(8))
        .info(2, 11, 12, delete(8))
        .fail(0, 13, 14, upsert(10))
        .reached(Stage::Finals, 20)
}

fn listed(points: &[u64]) -> Script {
    done().ok(0, 21, 22, list(points))
}

#[test]
fn what_was_acknowledged_is_there_and_nothing_else() {
    for points in [&[2][..], &[2, 6], &[2, 8], &[8, 2, 6]] {
        let verdict = set(&listed(points).build());
        passes(&verdict);
        assert_eq!(verdict.counts["set points looked for"], 4);
        assert_eq!(verdict.counts["set points that may be there or not"], 2);
    }
    sees(&set(&listed(&[6]).build()), "point 2 was acknowledged and is not there, by the listing of event");
    sees(&set(&listed(&[2, 4]).build()), "point 4 was deleted and is there");
    sees(&set(&listed(&[2, 10]).build()), "point 10 was never written and is there");
    sees(&set(&listed(&[2, u64::MAX]).build()), "was never written and is there");
    sees(&set(&listed(&[2, 2]).build()), "a point is listed twice");
}

#[test]
fn a_point_of_another_collection_is_none_of_this_one() {
    let odd = Operation::List { from: 0, to: 100, rest: 1, points: Some(vec![2]), missing: 0 };
    sees(&set(&listed(&[2]).ok(0, 23, 24, odd).build()), "point 2 was never written and is there");
}

#[test]
fn a_point_that_no_whole_listing_covers_was_not_looked_for() {
    let reason = "4 of 4 points were not looked for at the end, such as 2";
    voids(&set(&done().build()), reason);
    let partial = Operation::List { from: 0, to: 100, rest: 0, points: Some(vec![]), missing: 1 };
    voids(&set(&done().ok(0, 21, 22, partial).build()), reason);
    voids(&set(&done().fail(0, 21, 22, list(&[])).build()), reason);
    let half = Operation::List { from: 0, to: 5, rest: 0, points: Some(vec![2]), missing: 0 };
    voids(&set(&done().ok(0, 21, 22, half).build()), "2 of 4 points were not looked for at the end, such as 6");
    passes(&set(&Script::new().ok(0, 1, 2, upsert(2)).build()));
}
