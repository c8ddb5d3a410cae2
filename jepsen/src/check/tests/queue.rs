use super::{passes, script::Script, sees, voids};
use crate::{
    check::queue,
    event::{Micros, Operation, Phase, Verdict},
};

const S: Micros = 1_000_000;

fn enqueue(value: u64, task: u64) -> Operation {
    Operation::Enqueue { value, task: Some(task) }
}

fn deliver(value: u64, task: u64, token: &str, attempt: u32) -> Operation {
    Operation::Deliver { value, task, token: token.into(), attempt }
}

fn complete(value: u64, task: u64, token: &str, child: Option<u64>) -> Operation {
    Operation::Complete { value, task, token: token.into(), child }
}

fn end(value: u64, task: u64, state: &str, result: Option<&str>) -> Operation {
    Operation::Final { value, task, state: Some(state.into()), result: result.map(Into::into) }
}

fn gone(value: u64, task: u64) -> Operation {
    Operation::Final { value, task, state: None, result: None }
}

/// A task that is enqueued, granted twice, completed by the second attempt, with a child that is completed too.
fn whole() -> Script {
    Script::new()
        .ok(0, 1, 2, enqueue(7, 70))
        .instant(1, 3, deliver(7, 70, "5.0", 1))
        .instant(2, 4, deliver(7, 70, "9.0", 2))
        .ok(2, 5, 6, complete(7, 70, "9.0", Some(8)))
        .fail(1, 7, 8, complete(7, 70, "5.0", Some(8)))
        .instant(3, 9, deliver(8, 80, "10.0", 1))
        .ok(3, 10, 11, complete(8, 80, "10.0", None))
        .ok(4, 40 * S, 40 * S + 1, end(7, 70, "TASK_STATE_COMPLETED", Some("9.0")))
        .ok(4, 40 * S + 2, 40 * S + 3, end(8, 80, "completed", Some("10.0")))
}

fn judge(script: Script) -> Verdict {
    queue(&script.build())
}

#[test]
fn a_queue_that_keeps_its_promises_passes() {
    let verdict = judge(whole());
    passes(&verdict);
    let counts = |name: &str| verdict.counts.get(name).copied();
    assert_eq!((counts("queue finished"), counts("queue deliveries")), (Some(2), Some(3)));
    assert_eq!((counts("queue completions ok"), counts("queue completions fail")), (Some(2), Some(1)));
}

#[test]
fn what_nobody_enqueued_comes_from_nowhere() {
    sees(
        &judge(whole().instant(5, 20, deliver(99, 990, "20.0", 1))),
        "payload 99 was delivered at event 11 and never enqueued",
    );
}

#[test]
fn what_failed_for_certain_never_appears() {
    let failed = whole().fail(5, 20, 21, Operation::Enqueue { value: 99, task: None });
    sees(&judge(failed.instant(6, 22, deliver(99, 990, "20.0", 1))), "failed for certain");
    // An unknown one may.
    let unknown = whole().info(5, 20, 21, Operation::Enqueue { value: 99, task: None });
    passes(&judge(unknown.instant(6, 22, deliver(99, 990, "20.0", 1))));
}

#[test]
fn a_delivery_does_not_come_before_its_enqueue() {
    let verdict = judge(whole().instant(5, 20, deliver(99, 990, "20.0", 1)).info(
        6,
        30,
        31,
        Operation::Enqueue { value: 99, task: None },
    ));
    sees(&verdict, "before anything enqueued it");
}

#[test]
fn an_acknowledged_task_that_is_not_found_is_lost() {
    for gone in [gone(99, 990), end(99, 990, "NOT_FOUND", None)] {
        sees(&judge(whole().ok(5, 20, 21, enqueue(99, 990)).ok(4, 50 * S, 51 * S, gone)), "is not found");
    }
}

#[test]
fn an_acknowledged_task_that_is_never_seen_is_lost_once_all_is_quiet() {
    sees(&judge(whole().ok(5, 20, 21, enqueue(99, 990))), "payload 99 is lost");
    voids(&judge(whole().ok(5, 39 * S, 39 * S + 1, enqueue(99, 990))), "let the queue drain longer");
    // One whose enqueue is unknown may be gone.
    passes(&judge(whole().info(5, 20, 21, Operation::Enqueue { value: 99, task: None })));
}

#[test]
fn a_task_that_stays_ready_while_nothing_moves_is_stuck() {
    let stuck = whole().ok(5, 20, 21, enqueue(99, 990)).ok(4, 50 * S, 51 * S, end(99, 990, "ready", None));
    sees(&judge(stuck), "is stuck");
    let early = whole().ok(5, 39 * S, 39 * S + 1, enqueue(99, 990)).ok(4, 50 * S, 51 * S, end(99, 990, "ready", None));
    voids(&judge(early), "1 tasks were not finished");
}

#[test]
fn an_acknowledged_task_whose_end_was_not_read_proves_nothing() {
    let unread = whole().ok(5, 1, 2, enqueue(99, 990)).instant(6, 3, deliver(99, 990, "20.0", 1)).ok(
        6,
        4,
        5,
        complete(99, 990, "20.0", None),
    );
    voids(&judge(unread), "1 acknowledged tasks were not read");
}

#[test]
fn one_payload_has_one_task() {
    sees(&judge(whole().instant(5, 3, deliver(7, 71, "6.0", 1))), "enqueued more than once");
}

#[test]
fn one_task_has_one_payload() {
    let verdict = judge(whole().ok(5, 20, 21, enqueue(99, 70)).ok(4, 50 * S, 51 * S, end(99, 70, "completed", None)));
    assert!(verdict.violations.iter().any(|told| told.contains("has two payloads")), "{verdict:#?}");
}

#[test]
fn a_delivery_comes_again_only_with_another_token() {
    sees(&judge(whole().instant(5, 5, deliver(7, 70, "9.0", 2))), "was delivered twice");
}

#[test]
fn two_tasks_do_not_share_a_token() {
    let verdict = judge(whole().ok(5, 1, 2, enqueue(99, 990)).instant(6, 4, deliver(99, 990, "9.0", 1)));
    sees(&verdict, "granted with the same token 9.0");
}

#[test]
fn later_tokens_are_later_attempts() {
    sees(&judge(whole().instant(5, 4, deliver(7, 70, "8.0", 4))), "its attempt 4 is later");
}

#[test]
fn a_task_completes_once() {
    let verdict = judge(
        Script::new()
            .ok(0, 1, 2, enqueue(7, 70))
            .instant(1, 3, deliver(7, 70, "5.0", 1))
            .ok(1, 4, 5, complete(7, 70, "5.0", None))
            .instant(1, 6, deliver(7, 70, "5.1", 1))
            .ok(1, 7, 8, complete(7, 70, "5.1", None)),
    );
    assert!(verdict.violations.iter().any(|told| told.contains("completed twice")), "{verdict:#?}");
}

#[test]
fn nothing_is_granted_after_it_was_completed() {
    sees(&judge(whole().instant(5, 20, deliver(7, 70, "12.0", 3))), "although the newer 12.0 was granted");
}

#[test]
fn an_acknowledged_completion_is_there_at_the_end() {
    let verdict = judge(whole().ok(4, 50 * S, 51 * S, end(8, 80, "waiting", None)));
    assert!(verdict.violations.iter().any(|told| told.contains("is waiting at event")), "{verdict:#?}");
}

#[test]
fn the_end_tells_the_token_that_was_acknowledged() {
    let verdict = judge(whole().ok(4, 50 * S, 51 * S, end(8, 80, "completed", Some("9.5"))));
    assert!(verdict.violations.iter().any(|told| told.contains("has another result")), "{verdict:#?}");
    assert!(verdict.violations.iter().any(|told| told.contains("which nobody used")), "{verdict:#?}");
}

#[test]
fn nothing_completes_by_itself() {
    let verdict = judge(whole().ok(5, 20, 21, enqueue(99, 990)).ok(4, 50 * S, 51 * S, end(99, 990, "completed", None)));
    sees(&verdict, "nobody completed it");
}

#[test]
fn a_child_of_a_refused_completion_never_appears() {
    let verdict =
        judge(whole().fail(5, 20, 21, complete(7, 70, "5.0", Some(99))).instant(6, 22, deliver(99, 990, "20.0", 1)));
    sees(&verdict, "failed for certain");
}

#[test]
fn a_child_of_an_acknowledged_completion_is_not_lost() {
    let verdict = judge(
        whole()
            .ok(5, 1, 2, enqueue(99, 990))
            .instant(6, 3, deliver(99, 990, "20.0", 1))
            .ok(6, 4, 5, complete(99, 990, "20.0", Some(100)))
            .ok(4, 50 * S, 51 * S, end(99, 990, "completed", Some("20.0"))),
    );
    sees(&verdict, "payload 100 is lost");
}

#[test]
fn a_child_does_not_come_without_its_parent() {
    let orphan = |state: &str, result: Option<&str>| {
        let script = whole()
            .ok(5, 1, 2, enqueue(99, 990))
            .instant(6, 3, deliver(99, 990, "20.0", 1))
            .op(6, 4, 5, Phase::Info, complete(99, 990, "20.0", Some(100)))
            .instant(7, 6, deliver(100, 1000, "21.0", 1))
            .instant(8, 7, deliver(99, 990, "22.0", 2))
            .info(8, 8, 9, complete(99, 990, "22.0", None));
        judge(script.ok(4, 50 * S, 51 * S, end(99, 990, state, result)))
    };
    sees(&orphan("dead-letter", None), "as a child of 99");
    sees(&orphan("completed", Some("22.0")), "as a child of 99");
}
