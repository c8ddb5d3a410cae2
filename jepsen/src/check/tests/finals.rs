use super::{passes, script::Script, voids};
use crate::{
    check::finals,
    event::{Operation, Stage},
};

fn read(key: u64) -> Operation {
    Operation::Read { key, value: Some(None) }
}

fn search(missing: u32) -> Operation {
    Operation::Search { point: 4, found: Some(true), missing }
}

fn end(task: u64) -> Operation {
    Operation::Final { value: 7, task, state: Some("completed".into()), result: None }
}

#[test]
fn every_read_at_the_end_has_an_answer() {
    let script = Script::new()
        .fail(0, 1, 2, read(9))
        .reached(Stage::Finals, 10)
        .fail(0, 11, 12, read(1))
        .ok(0, 13, 14, read(1))
        .ok(0, 15, 16, search(0))
        .ok(0, 17, 18, end(70));
    let verdict = finals(&script.build());
    passes(&verdict);
    assert_eq!((verdict.counts["finals asked"], verdict.counts["finals answered"]), (3, 3));
}

#[test]
fn a_read_at_the_end_that_was_given_up_voids_the_run() {
    let script = || Script::new().reached(Stage::Finals, 10).ok(0, 11, 12, read(1));
    voids(
        &finals(&script().fail(0, 13, 14, read(2)).build()),
        "1 of 2 reads at the end have no answer, such as that of Register(2) (event 2)",
    );
    voids(&finals(&script().fail(0, 13, 14, end(70)).build()), "Task(70)");
    voids(&finals(&script().ok(0, 13, 14, search(1)).build()), "Point(4)");
    // The end of a task is only ever read at the end.
    voids(&finals(&Script::new().fail(0, 13, 14, end(70)).build()), "Task(70)");
}

#[test]
fn a_run_at_whose_end_nothing_was_read_proves_nothing() {
    voids(
        &finals(&Script::new().ok(0, 1, 2, read(9)).reached(Stage::Finals, 10).build()),
        "nothing was read at the end",
    );
    passes(&finals(&Script::new().ok(0, 1, 2, read(9)).build()));
}
