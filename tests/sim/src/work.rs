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
    let is_child = payload.starts_with(b"child of ");
    (!is_child && Digest::of(payload).value().is_multiple_of(3)).then(|| [b"child of ".as_slice(), payload].concat())
}

/// Whether the first attempt at the task fails.
pub(crate) fn fails_first(payload: &[u8]) -> bool {
    Digest::of(payload).value() % 7 == 1
}

/// How long an attempt takes.
pub(crate) fn takes(payload: &[u8]) -> Duration {
    let digest = Digest::of(payload).value() >> 8;
    let long = digest.is_multiple_of(20);
    Duration::from_millis(if long { 800 } else { 2 + digest % 40 })
}
