//! The rhythm of a replica: a batch of entries begins with its first apply and ends when it is published. Readers see it so
//! that they can wait for the batch under way, and, when waiting was not enough, keep the next one from beginning.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long a reader waits for the batch under way. A batch takes milliseconds; one that does not end is a stopped group.
const PUBLISH_WAIT: Duration = Duration::from_secs(1);

/// Counts the batches of one replica.
#[derive(Default)]
pub(super) struct Batches {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    published: u64,
    under_way: bool,
    pins: usize,
}

/// While it lives no batch is under way.
pub(super) struct Pin<'a>(&'a Batches);

impl Batches {
    /// An entry is about to be applied. Waits until no reader holds a pin, if it is the first of its batch.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        if !state.under_way {
            while state.pins > 0 {
                self.changed.wait(&mut state);
            }
            state.under_way = true;
        }
    }

    /// The batch is readable everywhere.
    pub(super) fn publish(&self) {
        let mut state = self.state.lock();
        state.under_way = false;
        state.published += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// How many batches were published.
    pub(super) fn published(&self) -> u64 {
        self.state.lock().published
    }

    /// Waits until the batch that was under way when `published` was read is published.
    pub(super) fn wait_past(&self, published: u64) {
        let mut state = self.state.lock();
        let until = Instant::now() + PUBLISH_WAIT;
        while state.under_way && state.published <= published {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    /// Waits for the batch under way and keeps others from beginning. `None` if the batch does not end.
    pub(super) fn pin(&self) -> Option<Pin<'_>> {
        let mut state = self.state.lock();
        state.pins += 1;
        let pin = Pin(self);
        let until = Instant::now() + PUBLISH_WAIT;
        while state.under_way {
            if self.changed.wait_until(&mut state, until).timed_out() {
                drop(state);
                return None;
            }
        }
        drop(state);
        Some(pin)
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.state.lock().pins -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_pin_keeps_the_next_batch_from_beginning_and_only_that() {
        let batches = Arc::new(Batches::default());
        batches.begin();
        batches.begin();
        batches.publish();
        assert_eq!(batches.published(), 1);
        let pin = batches.pin().expect("no batch is under way");
        let (begun, heard) = mpsc::channel();
        let machine = std::thread::spawn({
            let batches = batches.clone();
            move || {
                batches.begin();
                begun.send(()).expect("the test listens");
                batches.publish();
            }
        });
        assert!(heard.recv_timeout(Duration::from_millis(50)).is_err(), "a batch began under a pin");
        drop(pin);
        machine.join().expect("no panic");
        heard.recv().expect("the batch began after the pin");
        batches.wait_past(1);
        assert_eq!(batches.published(), 2);
    }

    #[test]
    fn a_batch_that_does_not_end_gives_no_pin_and_leaves_none_behind() {
        let batches = Batches::default();
        batches.begin();
        assert!(batches.pin().is_none());
        batches.publish();
        batches.begin();
    }
}
