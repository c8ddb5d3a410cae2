use super::{passes, script::Script, sees, voids};
use crate::{
    check::{leases, request_ids},
    event::Operation,
};

fn effect(token: &str, held: bool) -> Operation {
    Operation::Effect { task: 70, token: token.into(), held }
}

fn deliver(token: &str) -> Operation {
    Operation::Deliver { value: 7, task: 70, token: token.into(), attempt: 1 }
}

fn complete(token: &str) -> Operation {
    Operation::Complete { value: 7, task: 70, token: token.into(), child: None }
}

#[test]
fn a_lease_that_passes_on_is_fine() {
    let script = Script::new()
        .instant(1, 1, deliver("9.0"))
        .ok(1, 2, 3, effect("9.0", true))
        .ok(2, 4, 6, effect("9.0", true))
        .instant(3, 5, deliver("10.0"))
        .ok(3, 7, 8, effect("10.0", true))
        .fail(1, 9, 10, effect("9.0", false))
        .fail(1, 11, 12, complete("9.0"))
        .ok(3, 13, 14, complete("10.0"));
    passes(&leases(&script.build()));
}

#[test]
fn an_older_token_is_not_accepted_after_a_newer() {
    // 9 is older than 10 although its text is greater.
    let script = Script::new().ok(1, 1, 2, effect("10.0", false)).ok(2, 3, 4, effect("9.0", false));
    sees(&leases(&script.build()), "by token 9.0 was accepted at event 3, after one by the newer 10.0 (event 1)");
    let beside = Script::new().ok(1, 1, 3, effect("10.0", false)).ok(2, 2, 4, effect("9.0", false));
    passes(&leases(&beside.build()));
}

#[test]
fn two_attempts_do_not_hold_a_task_at_once() {
    let held = |held: bool| {
        let script = Script::new().instant(2, 1, deliver("10.0")).ok(1, 2, 3, effect("9.7", held));
        leases(&script.build())
    };
    sees(&held(true), "task 70 was held twice: the attempt with token 9.7");
    passes(&held(false));
    // The resource refused it, and still the agent believed to hold the lease.
    let refused = Script::new().instant(2, 1, deliver("10.0")).fail(1, 2, 3, effect("9.7", true));
    sees(&leases(&refused.build()), "task 70 was held twice");
}

#[test]
fn a_refused_completion_took_no_effect() {
    let end = |result: &str| Operation::Final {
        value: 7,
        task: 70,
        state: Some("completed".into()),
        result: Some(result.into()),
    };
    let script = |result: &str| {
        Script::new().fail(1, 1, 2, complete("9.0")).ok(2, 3, 4, complete("10.0")).ok(3, 5, 6, end(result)).build()
    };
    sees(&leases(&script("9.0")), "was refused (begun at event 0) and yet took effect");
    passes(&leases(&script("10.0")));
}

#[test]
fn a_token_that_cannot_be_read_is_told() {
    voids(&leases(&Script::new().instant(1, 1, deliver("ten")).build()), "1 operations have tokens");
}

#[test]
fn a_repeated_request_is_answered_the_same() {
    let script = |again: u64| {
        Script::new()
            .ok(1, 1, 2, Operation::Enqueue { value: 7, task: Some(70) })
            .ok(2, 3, 4, Operation::Repeat { value: 7, task: Some(again) })
            .info(3, 5, 6, Operation::Repeat { value: 7, task: None })
            .build()
    };
    passes(&request_ids(&script(70)));
    sees(&request_ids(&script(71)), "it took effect twice");
    // The first answer was lost; the repeats tell two tasks.
    let lost = Script::new()
        .info(1, 1, 2, Operation::Enqueue { value: 7, task: None })
        .ok(2, 3, 4, Operation::Repeat { value: 7, task: Some(70) })
        .ok(2, 5, 6, Operation::Repeat { value: 7, task: Some(71) });
    sees(&request_ids(&lost.build()), "it took effect twice");
}

#[test]
fn an_acknowledged_request_is_not_refused_when_it_is_repeated() {
    let script = |reason: &str| {
        Script::new()
            .ok(1, 1, 2, Operation::Enqueue { value: 7, task: Some(70) })
            .ok(2, 3, 4, Operation::Repeat { value: 7, task: Some(70) })
            .fail(2, 5, 6, Operation::Repeat { value: 7, task: None })
            .because(reason)
            .build()
    };
    sees(&request_ids(&script("REQUEST_EXPIRED")), "repeated at event 4, refused for good with REQUEST_EXPIRED");
    for passing in ["NO_LEADER", "SHUTTING_DOWN", "UNREACHABLE"] {
        passes(&request_ids(&script(passing)));
    }
    // What belongs to no cluster knows of no request, and does not answer for one.
    let outside = request_ids(&script("NOT_INITIALIZED"));
    passes(&outside);
    assert_eq!(outside.counts["request ids repeats asked outside of the cluster"], 1);
    // One whose first answer is not known may be refused.
    let unknown = Script::new()
        .info(1, 1, 2, Operation::Enqueue { value: 7, task: None })
        .fail(2, 3, 4, Operation::Repeat { value: 7, task: None })
        .because("REQUEST_EXPIRED")
        .ok(3, 5, 6, Operation::Repeat { value: 7, task: Some(70) });
    passes(&request_ids(&unknown.build()));
}

#[test]
fn repeats_of_which_none_is_answered_prove_nothing() {
    let script = Script::new()
        .ok(1, 1, 2, Operation::Enqueue { value: 7, task: Some(70) })
        .fail(2, 3, 4, Operation::Repeat { value: 7, task: None })
        .because("NO_LEADER");
    voids(&request_ids(&script.build()), "of 1 repeated requests none was answered");
}
