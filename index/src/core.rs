//! The part of an index that its build threads share: the view, the writer's lock, and what is to be built.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::builder::{Queue, Work};
use crate::head::Head;
use crate::policy;
use crate::segment::Segment;
use crate::settings::Settings;
use crate::view::View;

/// Pause after a build that failed, by a full disk for instance.
pub(crate) const RETRY: Duration = Duration::from_secs(30);

/// Lock order: `write`, then `view`, then a head's own lock; `progress` alone.
pub(crate) struct Core {
    pub(crate) directory: PathBuf,
    pub(crate) settings: Settings,
    queue: Queue,
    view: RwLock<Arc<View>>,
    write: Mutex<Writer>,
    progress: Mutex<Progress>,
    settled: Condvar,
    /// Builds stop at their next look at it.
    pub(crate) cancel: AtomicBool,
    destroyed: AtomicBool,
    pub(crate) next_segment: AtomicU64,
    opened: Instant,
    /// Milliseconds after `opened` of the last write, and before which a failed build is not tried again.
    last_write: AtomicU64,
    retry_from: AtomicU64,
}

/// What only the thread that holds the write lock knows.
pub(crate) struct Writer {
    /// No row above it was ever inserted, so a new one needs no search for its like.
    greatest: Option<u64>,
    pub(crate) destroyed: bool,
}

/// Where the work of this index stands.
#[derive(Default)]
struct Progress {
    /// In the builders' queue (or waiting for `wait_idle`, when there are no threads).
    queued: bool,
    running: bool,
    /// Asked for while it was running.
    again: bool,
    /// The builders look whether it rests.
    watched: bool,
    /// The next piece of work may take what only a rest allows.
    resting: bool,
}

impl Core {
    pub(crate) fn new(
        directory: &Path,
        settings: Settings,
        queue: Queue,
        segments: Vec<Arc<Segment>>,
        next_segment: u64,
    ) -> Core {
        let head = Arc::new(Head::new(settings.stride(), settings.seal_rows));
        let greatest = segments.iter().filter_map(|segment| segment.rows().last().copied()).max();
        Core {
            directory: directory.to_owned(),
            settings,
            queue,
            view: RwLock::new(Arc::new(View { segments, frozen: Vec::new(), head })),
            write: Mutex::new(Writer { greatest, destroyed: false }),
            progress: Mutex::new(Progress::default()),
            settled: Condvar::new(),
            cancel: AtomicBool::new(false),
            destroyed: AtomicBool::new(false),
            next_segment: AtomicU64::new(next_segment),
            opened: Instant::now(),
            last_write: AtomicU64::new(0),
            retry_from: AtomicU64::new(0),
        }
    }

    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read())
    }

    /// The one lock under which rows and the view change.
    pub(crate) fn write(&self) -> MutexGuard<'_, Writer> {
        self.write.lock()
    }

    /// Replaces the view; the guard shows that the caller holds the write lock.
    pub(crate) fn publish(&self, _writer: &mut Writer, view: View) {
        *self.view.write() = Arc::new(view);
    }

    /// Lets go of all rows for good.
    pub(crate) fn forget(&self, writer: &mut Writer) {
        writer.destroyed = true;
        self.destroyed.store(true, Ordering::Relaxed);
        let head = Arc::new(Head::new(self.settings.stride(), self.settings.seal_rows));
        self.publish(writer, View { segments: Vec::new(), frozen: Vec::new(), head });
    }

    pub(crate) fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }

    /// Adds a row whose vector is prepared. A live row is left as it is.
    pub(crate) fn insert(self: &Arc<Self>, writer: &mut Writer, row: u64, stored: &[f32]) {
        let view = self.view();
        if writer.greatest.is_some_and(|greatest| row <= greatest) && view.contains(row) {
            return;
        }
        writer.greatest = writer.greatest.max(Some(row));
        let mut full = false;
        let mut head = Arc::clone(&view.head);
        while !head.push(row, stored) {
            full |= self.make_room(writer, &view);
            head = Arc::clone(&self.view().head);
        }
        self.last_write.store(self.now(), Ordering::Relaxed);
        if full {
            self.schedule(false);
        } else if head.live().count() >= self.settings.flat_below {
            self.watch();
        }
    }

    /// Replaces the full head: seals it, or packs it when most of it is dead. Says whether it was sealed.
    fn make_room(&self, writer: &mut Writer, view: &View) -> bool {
        if view.head.live().count() >= self.settings.flat_below {
            self.freeze(writer, view);
            return true;
        }
        let packed = Head::new(self.settings.stride(), self.settings.seal_rows);
        for slot in (0..view.head.len()).filter(|&slot| view.head.live().get(slot)) {
            packed.push(view.head.row(slot), view.head.vector(slot));
        }
        self.publish(writer, View { head: Arc::new(packed), ..view.clone() });
        false
    }

    /// Gives the head to the builders and starts an empty one.
    fn freeze(&self, writer: &mut Writer, view: &View) {
        let mut next = view.clone();
        let empty = Arc::new(Head::new(self.settings.stride(), self.settings.seal_rows));
        next.frozen.push(std::mem::replace(&mut next.head, empty));
        self.publish(writer, next);
    }

    /// Takes a row out; says whether it was live.
    pub(crate) fn remove(self: &Arc<Self>, _writer: &mut Writer, row: u64) -> bool {
        let view = self.view();
        let Some(place) = view.remove(row) else { return false };
        self.last_write.store(self.now(), Ordering::Relaxed);
        if let Some(segment) = place
            && policy::is_worn(policy::Size { live: segment.live().count(), dead: segment.dead() })
        {
            self.schedule(false);
        }
        true
    }

    /// Freezes a head that is large enough to be sealed; says whether it was.
    pub(crate) fn freeze_head(&self) -> bool {
        let mut writer = self.write();
        let view = self.view();
        let enough = view.head.live().count() >= self.settings.flat_below;
        if enough {
            self.freeze(&mut writer, &view);
        }
        enough
    }

    /// Asks for one more run of the builders.
    pub(crate) fn schedule(self: &Arc<Self>, resting: bool) {
        let mut progress = self.progress.lock();
        progress.resting |= resting;
        if progress.running {
            progress.again = true;
        } else if !std::mem::replace(&mut progress.queued, true) && self.queue.has_threads() {
            drop(progress);
            self.queue.push(Arc::clone(self) as Arc<dyn Work>);
        }
    }

    /// Asks the builders to look whether writes pause.
    pub(crate) fn watch(self: &Arc<Self>) {
        if self.queue.has_threads() && !std::mem::replace(&mut self.progress.lock().watched, true) {
            let core: Weak<Core> = Arc::downgrade(self);
            self.queue.watch(core);
        }
    }

    /// A build runs, is queued, or starts when writes pause.
    pub(crate) fn is_building(&self) -> bool {
        let progress = self.progress.lock();
        progress.queued || progress.running || progress.watched
    }

    /// Returns when nothing is queued or running; does the work itself when the builder has no threads.
    pub(crate) fn wait_settled(self: &Arc<Self>) {
        let mut progress = self.progress.lock();
        while progress.queued || progress.running {
            if progress.queued && !self.queue.has_threads() {
                drop(progress);
                Arc::clone(self).run(1);
                progress = self.progress.lock();
            } else {
                self.settled.wait(&mut progress);
            }
        }
    }

    /// Stops builds and returns when none runs; none starts afterwards.
    pub(crate) fn stop(&self) {
        self.cancel.store(true, Ordering::Relaxed);
        let mut progress = self.progress.lock();
        while progress.running {
            self.settled.wait(&mut progress);
        }
    }

    /// Puts the next try after a failure off.
    pub(crate) fn retry_after(self: &Arc<Self>, pause: Duration) {
        self.retry_from.store(self.now() + pause.as_millis() as u64, Ordering::Relaxed);
        self.watch();
    }
}

impl Work for Core {
    fn run(self: Arc<Self>, threads: usize) {
        let resting = {
            let mut progress = self.progress.lock();
            progress.queued = false;
            if self.cancel.load(Ordering::Relaxed) {
                self.settled.notify_all();
                return;
            }
            progress.running = true;
            std::mem::take(&mut progress.resting)
        };
        // A panic must not leave `running` set: whoever waits would wait for ever.
        let more = catch_unwind(AssertUnwindSafe(|| self.build_once(threads, resting))).unwrap_or_else(|_| {
            self.retry_after(RETRY);
            false
        });
        let mut progress = self.progress.lock();
        progress.running = false;
        // Queued under the same lock, so that nobody sees the index settled in between.
        let next = std::mem::take(&mut progress.again) || more;
        if next {
            progress.queued = true;
            progress.resting |= resting && more;
        }
        self.settled.notify_all();
        drop(progress);
        if next && self.queue.has_threads() {
            let queue = self.queue.clone();
            queue.push(self);
        }
    }

    fn rest_due(&self) -> Instant {
        let written = self.last_write.load(Ordering::Relaxed);
        let retry = Duration::from_millis(self.retry_from.load(Ordering::Relaxed));
        self.opened + (Duration::from_millis(written) + self.settings.idle).max(retry)
    }

    fn rested(self: Arc<Self>) {
        // Queued before it is unwatched, so that `is_building` never blinks.
        self.schedule(true);
        self.progress.lock().watched = false;
    }
}
