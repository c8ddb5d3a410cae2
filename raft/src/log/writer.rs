//! The one writer of a node's log database.
//!
//! Everything that changes the log of any group goes through one queue in the order in which it was submitted. The writer
//! takes all that waits, hands it to the engine as one batch with one fsync, notes in the floor what that made durable, and
//! then answers everyone in the batch. It
//! never waits for more to come: while a batch is being synced the next one gathers by itself, so the batches grow exactly as
//! the disk is slower than the load.
//!
//! Invariants:
//! - Nothing is durable before something that was submitted earlier.
//! - An answer is given only after the batch that holds the change, and all batches before it, are durable, and the floor
//!   says so durably.
//! - What lowers the floor is in its file before the batch is committed, what raises it after.
//! - After a failed commit nothing is ever answered as durable again: the process ends.

use std::io;
use std::mem;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::engine::{LogChange, LogEngine, MarkKind};
use crate::ids::GroupId;
use crate::log::floor::{Floor, FloorChange};
use crate::log::mark;
use crate::log::metrics::LogMetrics;
use crate::log::state::GroupState;
use crate::observe::{Observer, failpoint, pass};
use crate::proto;
use crate::types::{LogId, TC};

/// Where the writer runs.
#[derive(Clone)]
pub enum WriterMode {
    /// On a thread of its own, which parks while there is nothing to do. A failed commit ends the process.
    Thread,
    /// As a task of the tokio runtime in which the log store is opened, for simulation.
    Task(TaskHooks),
}

/// What a simulation decides for a writer that runs as a task.
#[derive(Clone)]
pub struct TaskHooks {
    /// How long the coming commit takes. A part of it passes before the engine has the batch, a part before the floor has
    /// what the batch raises, and a part after, so that a crash can fall between any two steps.
    pub latency: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// Called when a batch is durable and whoever waited for it was told.
    pub answered: Arc<dyn Fn() + Send + Sync>,
    /// Called in place of the end of the process when a commit has failed. The simulation must kill the node; the writer
    /// answers everything from then on with an error.
    pub failed: Arc<dyn Fn(&io::Error) + Send + Sync>,
}

impl TaskHooks {
    /// A disk that takes no time, for tests that expect no failure: a failed commit panics.
    pub fn instant() -> Self {
        TaskHooks {
            latency: Arc::new(|| Duration::ZERO),
            answered: Arc::new(|| ()),
            failed: Arc::new(|error| panic!("a commit of the log failed: {error}")),
        }
    }
}

/// Whom to tell once a batch is durable.
pub(crate) enum Answer {
    /// openraft, about an append.
    Flushed(IOFlushed<TC>),
    /// A caller that waits.
    Waiter(oneshot::Sender<()>),
    /// The in-memory state of a group: what it appended up to this sequence number may be dropped from memory.
    Durable(Arc<GroupState>, u64),
}

/// Changes and answers of one submission. All of them reach the disk in one batch.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) changes: Vec<LogChange>,
    pub(crate) floor: Vec<FloorChange>,
    pub(crate) answers: Vec<Answer>,
    /// Last committed marks, one for each group. They ride with the next batch and wake nobody.
    committed: Vec<(GroupId, LogId)>,
    phase: Phase,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// No more submissions; what waits is still written.
    Closing,
    /// The writer has ended.
    Closed,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.changes.is_empty() && self.answers.is_empty()
    }

    /// Moves everything that waits into `batch`, whose buffers are empty, and leaves those buffers for the next.
    fn take(&mut self, batch: &mut Batch) {
        mem::swap(&mut self.changes, &mut batch.changes);
        mem::swap(&mut self.floor, &mut batch.floor);
        mem::swap(&mut self.answers, &mut batch.answers);
        for (group, at) in self.committed.drain(..) {
            let value = mark::encode(&proto::LogId::from(&at));
            batch.changes.push(LogChange::Mark { group, kind: MarkKind::Committed, value });
        }
    }
}

#[derive(Default)]
struct Batch {
    changes: Vec<LogChange>,
    floor: Vec<FloorChange>,
    answers: Vec<Answer>,
}

enum Signal {
    Thread(Condvar),
    Task(Notify, TaskHooks),
}

struct Shared {
    engine: Arc<dyn LogEngine>,
    floor: Arc<Mutex<Floor>>,
    queue: Mutex<Queue>,
    signal: Signal,
    metrics: LogMetrics,
    observer: Option<Observer>,
    /// Since when a batch is under way.
    busy: Mutex<Option<tokio::time::Instant>>,
    /// Told when the writer has ended.
    ended: Notify,
}

/// The handle to the writer. Dropping it writes what still waits and ends the writer.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The writer has ended, so nothing more can be made durable.
fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the log writer has ended; the node is shutting down or its disk failed")
}

impl Writer {
    /// Starts the writer. In mode `Task` it must be called inside a tokio runtime.
    pub(crate) fn start(
        engine: Arc<dyn LogEngine>,
        floor: Arc<Mutex<Floor>>,
        mode: WriterMode,
        metrics: LogMetrics,
        observer: Option<Observer>,
    ) -> io::Result<Writer> {
        let signal = match mode {
            WriterMode::Thread => Signal::Thread(Condvar::new()),
            WriterMode::Task(hooks) => Signal::Task(Notify::new(), hooks),
        };
        let (queue, ended) = (Mutex::new(Queue::default()), Notify::new());
        let busy = Mutex::default();
        let shared = Arc::new(Shared { engine, floor, queue, signal, metrics, observer, busy, ended });
        let thread = match &shared.signal {
            Signal::Thread(_) => {
                let shared = shared.clone();
                let run = move || {
                    let _guard = AbortOnPanic;
                    shared.run_thread();
                };
                Some(std::thread::Builder::new().name("log-writer".into()).spawn(run)?)
            }
            Signal::Task(..) => {
                tokio::spawn(shared.clone().run_task());
                None
            }
        };
        Ok(Writer { shared, thread: Mutex::new(thread) })
    }

    /// Adds changes to the queue under its lock and wakes the writer.
    pub(crate) fn submit(&self, fill: impl FnOnce(&mut Queue)) -> io::Result<()> {
        let mut queue = self.shared.queue.lock();
        if queue.phase != Phase::Open {
            return Err(ended());
        }
        let was_idle = queue.is_idle();
        fill(&mut queue);
        let wake = was_idle && !queue.is_idle();
        drop(queue);
        if wake {
            self.shared.wake();
        }
        Ok(())
    }

    /// For how long the batch that is under way has waited to become durable; zero if there is none.
    pub(crate) fn stalled(&self) -> Duration {
        self.shared.busy.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Remembers the last committed entry of a group, to be written with whatever is written next.
    ///
    /// It need not be durable at any time: after a crash the older mark makes the group apply fewer entries at start, and
    /// it applies the rest when the leader commits anew; reads wait for that. It goes into the batch after everything
    /// that was submitted before it, so a durable mark never names an entry that is not durable.
    pub(crate) fn remember_committed(&self, group: GroupId, at: LogId) {
        let mut queue = self.shared.queue.lock();
        match queue.committed.iter_mut().find(|(known, _)| *known == group) {
            Some((_, last)) => *last = at,
            None => queue.committed.push((group, at)),
        }
    }

    /// Forgets a committed mark that was not written yet.
    pub(crate) fn forget_committed(&self, group: GroupId) {
        self.shared.queue.lock().committed.retain(|(known, _)| *known != group);
    }

    /// Submits changes and waits until they, and all before them, are durable.
    pub(crate) async fn submit_and_wait(
        &self,
        changes: impl IntoIterator<Item = LogChange>,
        floor: impl IntoIterator<Item = FloorChange>,
    ) -> io::Result<()> {
        let (told, wait) = oneshot::channel();
        self.submit(|queue| {
            queue.changes.extend(changes);
            queue.floor.extend(floor);
            queue.answers.push(Answer::Waiter(told));
        })?;
        wait.await.map_err(|_| ended())
    }

    /// Writes what waits and ends the writer. Returns when it has ended.
    pub(crate) async fn close(&self) {
        let ended = self.shared.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if self.begin_close() {
            ended.await;
        }
        self.join();
    }

    /// True if the writer is still to end.
    fn begin_close(&self) -> bool {
        let mut queue = self.shared.queue.lock();
        if queue.phase == Phase::Open {
            queue.phase = Phase::Closing;
        }
        let running = queue.phase != Phase::Closed;
        drop(queue);
        self.shared.wake();
        running
    }

    fn join(&self) {
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            thread.join().expect("a panic of the writer ends the process");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.begin_close();
        self.join();
    }
}

/// Without its writer a node would hang in every vote and append; it must rather end and be started again.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Shared {
    fn wake(&self) {
        match &self.signal {
            Signal::Thread(parked) => {
                parked.notify_one();
            }
            Signal::Task(parked, _) => parked.notify_one(),
        }
    }

    fn run_thread(&self) {
        let Signal::Thread(parked) = &self.signal else { return };
        let mut batch = Batch::default();
        loop {
            {
                let mut queue = self.queue.lock();
                while queue.is_idle() && queue.phase == Phase::Open {
                    parked.wait(&mut queue);
                }
                queue.take(&mut batch);
                if batch.changes.is_empty() && batch.answers.is_empty() {
                    queue.phase = Phase::Closed;
                    break;
                }
            }
            *self.busy.lock() = Some(tokio::time::Instant::now());
            if let Err(error) = self.lower(&batch).and_then(|_| self.commit(&batch)).and_then(|()| self.raise(&batch)) {
                // The kernel may already have marked the pages that it failed to write as clean, so a second fsync would
                // report a success that is none. Nothing this process does can be trusted to be durable any more.
                tracing::error!(%error, "a commit of the Raft log failed; the process ends so that nothing is lost");
                eprintln!(
                    "quorate: a commit of the Raft log failed: {error}. Check the disk, then start the node again."
                );
                std::process::abort();
            }
            *self.busy.lock() = None;
            answer(&mut batch);
        }
        self.ended.notify_waiters();
    }

    async fn run_task(self: Arc<Self>) {
        let Signal::Task(parked, hooks) = &self.signal else { return };
        let mut batch = Batch::default();
        loop {
            {
                let mut queue = self.queue.lock();
                let idle = queue.is_idle();
                if !idle || queue.phase != Phase::Open {
                    queue.take(&mut batch);
                    if batch.changes.is_empty() && batch.answers.is_empty() {
                        queue.phase = Phase::Closed;
                        break;
                    }
                }
            }
            if batch.changes.is_empty() && batch.answers.is_empty() {
                parked.notified().await;
                continue;
            }
            let part = (hooks.latency)() / 3;
            *self.busy.lock() = Some(tokio::time::Instant::now());
            if let Err(error) = self.make_durable(&batch, part).await {
                let mut queue = self.queue.lock();
                queue.phase = Phase::Closed;
                refuse(&mut batch, &error);
                queue.take(&mut batch);
                drop(queue);
                refuse(&mut batch, &error);
                (hooks.failed)(&error);
                break;
            }
            pause(part).await;
            *self.busy.lock() = None;
            answer(&mut batch);
            (hooks.answered)();
        }
        self.ended.notify_waiters();
    }

    /// The steps of a batch with time between them.
    async fn make_durable(&self, batch: &Batch, part: Duration) -> io::Result<()> {
        pause(part).await;
        if self.lower(batch)? {
            pause(part).await;
        }
        self.commit(batch)?;
        pause(part).await;
        self.raise(batch)
    }

    /// Puts into the floor what must be there before the batch is committed. True if that was anything.
    fn lower(&self, batch: &Batch) -> io::Result<bool> {
        let mut floor = self.floor.lock();
        let lowered = floor.lower(&batch.floor);
        if lowered {
            // Into both slots: were the newer one to rot, the older would still promise what is about to be cut off.
            self.write(&mut floor)?;
            self.write(&mut floor)?;
            pass(self.observer.as_ref(), failpoint::FLOOR_LOWERED)?;
        }
        Ok(lowered)
    }

    /// Puts into the floor what the committed batch has raised.
    fn raise(&self, batch: &Batch) -> io::Result<()> {
        let mut floor = self.floor.lock();
        if floor.raise(&batch.floor) {
            self.write(&mut floor)?;
        }
        let is_for_both =
            |change: &FloorChange| matches!(change, FloorChange::Quarantined { .. } | FloorChange::Mended { .. });
        if batch.floor.iter().any(is_for_both) {
            // Into the other slot too: no single damage may bring the replica back.
            self.write(&mut floor)?;
        }
        Ok(())
    }

    fn write(&self, floor: &mut Floor) -> io::Result<()> {
        let start = Instant::now();
        floor.write()?;
        self.metrics.count_floor(start.elapsed().as_secs_f64());
        Ok(())
    }

    fn commit(&self, batch: &Batch) -> io::Result<()> {
        if batch.changes.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        self.engine.commit(&batch.changes)?;
        pass(self.observer.as_ref(), failpoint::BATCH_COMMITTED)?;
        let (mut records, mut bytes) = (0, 0);
        for change in &batch.changes {
            if let LogChange::Append { record, .. } = change {
                records += 1;
                bytes += record.len() as u64;
            }
        }
        self.metrics.count(records, bytes, start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// A turn of the loop never yields for nothing, so that a simulated disk without latency adds no schedule points.
async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

fn answer(batch: &mut Batch) {
    batch.changes.clear();
    batch.floor.clear();
    for answer in batch.answers.drain(..) {
        match answer {
            Answer::Flushed(flushed) => flushed.io_completed(Ok(())),
            Answer::Durable(state, sequence) => state.durable_upto(sequence),
            Answer::Waiter(waiter) => {
                // A caller that has gone away needs no answer.
                waiter.send(()).ok();
            }
        }
    }
    // After a burst the buffers would hold their largest size for ever.
    const KEEP: usize = 4096;
    batch.changes.shrink_to(KEEP);
    batch.floor.shrink_to(KEEP);
    batch.answers.shrink_to(KEEP);
}

fn refuse(batch: &mut Batch, error: &io::Error) {
    batch.changes.clear();
    batch.floor.clear();
    for answer in batch.answers.drain(..) {
        if let Answer::Flushed(flushed) = answer {
            flushed.io_completed(Err(io::Error::new(error.kind(), error.to_string())));
        }
    }
}
