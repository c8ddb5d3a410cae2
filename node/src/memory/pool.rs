//! The threads on which searches and point reads run: a fixed number, so that however many searches arrive the Raft
//! runtime and the gRPC runtime keep their cores, and a bounded queue, so that what cannot be served soon is refused.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use crate::error::Error;

/// Jobs that may wait for each thread. At some 0.3 ms a search this is well under a second of work.
const WAITING_PER_THREAD: usize = 512;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed set of threads with one bounded queue. Dropping the pool lets the threads finish what they have begun.
pub(super) struct SearchPool {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
    limit: usize,
}

struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl SearchPool {
    /// Starts `threads` threads. With 0 there is none and jobs run on their callers' threads, as a simulation needs it; the
    /// configuration of a real node refuses that.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(threads: usize) -> std::io::Result<SearchPool> {
        let queue = Arc::new(Queue { state: Mutex::new(State::default()), wake: Condvar::new() });
        let threads: Vec<_> = (0..threads)
            .map(|number| {
                let queue = queue.clone();
                std::thread::Builder::new().name(format!("search-{number}")).spawn(move || queue.work())
            })
            .collect::<Result<_, _>>()?;
        let limit = threads.len() * WAITING_PER_THREAD;
        Ok(SearchPool { queue, threads, limit })
    }

    /// Runs `job` on one of the threads. A caller that goes away while the job waits costs nothing: it is skipped.
    ///
    /// # Errors
    /// `OVERLOADED` when the queue is full, `INTERNAL` when the job panicked, `SHUTTING_DOWN` after the pool was closed.
    pub(super) async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
        if self.is_in_place() {
            return Ok(job());
        }
        let (answer, wait) = oneshot::channel();
        let job: Job = Box::new(move || {
            if !answer.is_closed() {
                // The receiver may have gone away while the job ran; then nobody wants the result.
                let _ = answer.send(job());
            }
        });
        {
            let mut state = self.queue.state.lock();
            if state.closed {
                return Err(Error::shutting_down());
            }
            if state.jobs.len() >= self.limit {
                return Err(Error::overloaded(Duration::from_millis(50)));
            }
            state.jobs.push_back(job);
        }
        self.queue.wake.notify_one();
        wait.await.map_err(|_| Error::internal("a search ended without an answer"))
    }
}

impl SearchPool {
    /// Whether jobs run on their callers' threads.
    pub(super) fn is_in_place(&self) -> bool {
        self.threads.is_empty()
    }
}

impl Drop for SearchPool {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.queue.state.lock();
            state.closed = true;
            std::mem::take(&mut state.jobs)
        };
        drop(waiting);
        self.queue.wake.notify_all();
        for thread in self.threads.drain(..) {
            // The last owner may be a job on one of these very threads: it cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a search thread ended by a panic");
            }
        }
    }
}

impl Queue {
    fn work(&self) {
        loop {
            let job = {
                let mut state = self.state.lock();
                loop {
                    if let Some(job) = state.jobs.pop_front() {
                        break job;
                    }
                    if state.closed {
                        return;
                    }
                    self.wake.wait(&mut state);
                }
            };
            // A panic in one search must not take the thread from all later ones; its caller gets INTERNAL.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                tracing::error!("a search panicked; the thread goes on");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::error::ErrorReason;

    #[tokio::test]
    async fn jobs_run_on_the_threads_of_the_pool() {
        let pool = SearchPool::start(2).expect("threads");
        let name = pool.run(|| std::thread::current().name().map(str::to_owned)).await.expect("an answer");
        assert!(name.is_some_and(|name| name.starts_with("search-")));
    }

    #[tokio::test]
    async fn without_threads_a_job_runs_on_its_caller() {
        let pool = SearchPool::start(0).expect("no thread");
        let here = std::thread::current().id();
        assert_eq!(pool.run(|| std::thread::current().id()).await.expect("an answer"), here);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_lives_on() {
        let pool = SearchPool::start(1).expect("threads");
        let error = pool.run(|| -> u32 { panic!("planted") }).await.expect_err("no answer");
        assert_eq!(error.reason, ErrorReason::Internal);
        assert_eq!(pool.run(|| 7).await.expect("an answer"), 7);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_full_queue_refuses_at_once_and_drains_later() {
        let pool = Arc::new(SearchPool::start(1).expect("threads"));
        let (release, gate) = mpsc::channel::<()>();
        let (started, running) = oneshot::channel();
        let held = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(move || {
                    let _ = started.send(());
                    gate.recv().is_ok()
                })
                .await
            }
        });
        running.await.expect("the first job runs");
        let mut waiting: Vec<_> = (0..WAITING_PER_THREAD).map(|n| Box::pin(pool.run(move || n))).collect();
        for job in &mut waiting {
            assert!(futures::poll!(job).is_pending());
        }
        let refused = pool.run(|| 0).await.expect_err("one too many");
        assert_eq!(refused.reason, ErrorReason::Overloaded);
        assert!(refused.retry_after.is_some());
        release.send(()).expect("the first job waits");
        assert!(held.await.expect("no panic").expect("an answer"));
        for (n, job) in waiting.into_iter().enumerate() {
            assert_eq!(job.await.expect("an answer"), n);
        }
    }
}
