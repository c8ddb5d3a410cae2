//! What the tasks of a run are about. Everything about a task follows from its payload, so that a checker knows it too.

use std::time::Duration;

use crate::digest::Digest;

/// The queue of the tasks that producers enqueue.
pub(crate) const QUEUE: &str = "work";
/// The queue of their children.
pub(crate) const CHILDREN: &str = "child";

/// The payload for messages to people.
pub(crate) fn name(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).into_owned()
}

/// What a completion of the task must say.
pub(crate) fn result(payload: &[u8]) -> Vec<u8> {
    [b"done: ".as_slice(), payload].concat()
}

/// The payload of the child that a completion enqueues, if there is one.
pub(crate) fn child(payload: &[u8]) -> Option<Vec<u8>> {
    let has_one = !is_child(payload) && Digest::of(payload).value().is_multiple_of(3);
    has_one.then(|| [b"child of ".as_slice(), payload].concat())
}

fn is_child(payload: &[u8]) -> bool {
    payload.starts_with(b"child of ")
}

/// Whether the first attempt at the task fails.
pub(crate) fn fails_first(payload: &[u8]) -> bool {
    Digest::of(payload).value() % 7 == 1
}

/// Whether every attempt at the task says that no other one will do: it goes to the dead letters.
pub(crate) fn dies(payload: &[u8]) -> bool {
    Digest::of(payload).value() % 37 == 5
}

/// Whether its producer calls the task off some time after it was enqueued.
pub(crate) fn is_called_off(payload: &[u8]) -> bool {
    !is_child(payload) && Digest::of(payload).value() % 29 == 11
}

/// How long an attempt takes: mostly moments, sometimes longer than a lease is without heartbeats.
pub(crate) fn takes(payload: &[u8]) -> Duration {
    let digest = Digest::of(payload).value() >> 8;
    Duration::from_millis(match digest % 40 {
        0 => 2_600,
        1 | 2 => 800,
        _ => 2 + digest % 40,
    })
}
