//! The threads that build segments, shared by every index of the process.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tracing::warn;

/// How much the kernel prefers other threads to the builders (`nice`, 0 to 19).
const NICENESS: nix::libc::c_int = 10;

/// What the builders work for; an index implements it.
pub(crate) trait Work: Send + Sync {
    /// Does one queued piece of work.
    fn run(self: Arc<Self>, threads: usize);
    /// When [`Work::rested`] is due, as of now; writes move it away.
    fn rest_due(&self) -> Instant;
    /// Nothing was written until the due time.
    fn rested(self: Arc<Self>);
}

/// A bounded pool of low-priority threads that build segments. Clones share the threads; the last clone, when it is
/// dropped, waits until they have ended: what they still build is cut off if its index is gone, and finished if it is not.
#[derive(Clone)]
pub struct Builder {
    pool: Arc<Pool>,
}

struct Pool {
    queue: Queue,
    threads: Vec<thread::JoinHandle<()>>,
}

/// The way to the builders for an index's inner part: it keeps no thread alive.
#[derive(Clone)]
pub(crate) struct Queue {
    shared: Arc<Shared>,
    threads: usize,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Arc<dyn Work>>,
    watched: Vec<Weak<dyn Work>>,
    running: usize,
    stopped: bool,
}

impl Builder {
    /// Starts `threads` threads (at most 256). With 0 there is no thread: work waits until
    /// [`Index::wait_idle`](crate::Index::wait_idle) does it on its caller's thread, which makes tests repeatable.
    pub fn new(threads: usize) -> Builder {
        let threads = threads.min(256);
        let shared = Arc::new(Shared { state: Mutex::new(State::default()), wake: Condvar::new() });
        let mut started = Vec::new();
        for number in 0..threads {
            let mine = Arc::clone(&shared);
            match thread::Builder::new().name(format!("index-build-{number}")).spawn(move || mine.serve(threads)) {
                Ok(thread) => started.push(thread),
                Err(error) => warn!(%error, "a build thread did not start; fewer will do"),
            }
        }
        Builder { pool: Arc::new(Pool { queue: Queue { shared, threads: started.len() }, threads: started }) }
    }

    pub(crate) fn queue(&self) -> Queue {
        self.pool.queue.clone()
    }
}

impl Queue {
    /// Whether somebody else than `wait_idle` does the work.
    pub(crate) fn has_threads(&self) -> bool {
        self.threads > 0
    }

    /// Queues one piece of work.
    pub(crate) fn push(&self, work: Arc<dyn Work>) {
        self.shared.state.lock().queue.push_back(work);
        self.shared.wake.notify_one();
    }

    /// Calls [`Work::rested`] once when it is due.
    pub(crate) fn watch(&self, work: Weak<dyn Work>) {
        self.shared.state.lock().watched.push(work);
        self.shared.wake.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let shared = &self.queue.shared;
        let mut state = shared.state.lock();
        state.stopped = true;
        // Work holds a queue, and so itself: it is let go here, and dropped without the lock.
        let left = std::mem::take(&mut state.queue);
        drop(state);
        drop(left);
        shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // The last owner may be a piece of work on one of these very threads: it cannot wait for itself.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!("a build thread ended by a panic");
            }
        }
    }
}

impl Shared {
    /// One thread's life.
    fn serve(&self, threads: usize) {
        lower_priority();
        let mut state = self.state.lock();
        while !state.stopped {
            if let Some(work) = state.queue.pop_front() {
                state.running += 1;
                // A build alone may use every thread's share of the processors; several divide them.
                let share = (threads / (state.running + state.queue.len()).min(threads)).max(1);
                drop(state);
                work.run(share);
                state = self.state.lock();
                state.running -= 1;
                continue;
            }
            let now = Instant::now();
            let (due, next) = state.take_due(now);
            if !due.is_empty() {
                drop(state);
                due.into_iter().for_each(Work::rested);
                state = self.state.lock();
                continue;
            }
            match next {
                None => self.wake.wait(&mut state),
                Some(next) => {
                    self.wake.wait_until(&mut state, next);
                }
            }
        }
    }
}

impl State {
    /// Takes what is due by now out of the watched ones; gives also when the next one will be.
    fn take_due(&mut self, now: Instant) -> (Vec<Arc<dyn Work>>, Option<Instant>) {
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        self.watched.retain(|watched| {
            let Some(work) = watched.upgrade() else { return false };
            let at = work.rest_due();
            if at <= now {
                due.push(work);
                return false;
            }
            next = Some(next.map_or(at, |next| next.min(at)));
            true
        });
        (due, next)
    }
}

/// Lets every other thread go first. Threads that the vector library starts from this one inherit it.
fn lower_priority() {
    // SAFETY: the call takes plain numbers; 0 names the calling thread on Linux.
    let result = unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, NICENESS) };
    if result != 0 {
        warn!("the build threads keep the normal priority: the system refused to lower it");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::*;

    struct Long {
        begun: mpsc::SyncSender<()>,
        go_on: Mutex<mpsc::Receiver<()>>,
        done: AtomicBool,
    }

    impl Work for Long {
        fn run(self: Arc<Self>, _: usize) {
            self.begun.send(()).expect("it is waited for");
            self.go_on.lock().recv().expect("it is told");
            self.done.store(true, Ordering::SeqCst);
        }

        fn rest_due(&self) -> Instant {
            unreachable!("it is not watched")
        }

        fn rested(self: Arc<Self>) {}
    }

    #[test]
    fn the_threads_end_before_their_last_owner_does() {
        let builder = Builder::new(1);
        let (begun, begins) = mpsc::sync_channel(1);
        let (tell, go_on) = mpsc::channel();
        let work = Arc::new(Long { begun, go_on: Mutex::new(go_on), done: AtomicBool::new(false) });
        builder.queue().push(work.clone());
        begins.recv().expect("it begins");
        let owner = builder.clone();
        drop(builder);
        let dropping = thread::spawn(move || drop(owner));
        assert!(!work.done.load(Ordering::SeqCst));
        tell.send(()).expect("it waits");
        dropping.join().expect("it ends");
        assert!(work.done.load(Ordering::SeqCst));
    }
}
