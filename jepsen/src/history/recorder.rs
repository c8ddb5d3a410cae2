//! Takes events from many tasks at once and streams them to a file.

use std::{
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::{Error, History, lines};
use crate::event::{Event, Fault, Micros, Note, Operation, Part, Phase};

/// How long a line may wait in memory when further ones come.
const FLUSH_EVERY: Micros = 1_000_000;

/// Writes a history while it happens. Clones write to the same one.
///
/// Recording never fails and never waits for more than a buffered write: the first error of the file is kept and told by
/// [`Recorder::finish`]. After that nothing more is recorded.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
    /// What is recorded through this clone belongs to this part of the run.
    part: Option<Part>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    began: Instant,
    processes: AtomicU64,
    sink: Mutex<Sink>,
}

#[derive(Debug)]
struct Sink {
    /// `None` once the history is finished or its file failed.
    file: Option<BufWriter<fs_err::File>>,
    failed: Option<io::Error>,
    flushed: Micros,
    counts: Counts,
}

/// How many events were recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that began.
    pub invoked: u64,
    /// Operations that ended well, instant ones among them.
    pub ok: u64,
    /// Operations that certainly had no effect.
    pub fail: u64,
    /// Operations of which nobody knows.
    pub info: u64,
}

impl Recorder {
    /// Begins a history in a new file; one that is there is replaced. The time of the run begins now.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn create(path: &Path) -> Result<Recorder, Error> {
        let file = fs_err::File::create(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let sink = Sink {
            file: Some(BufWriter::with_capacity(1 << 18, file)),
            failed: None,
            flushed: 0,
            counts: Counts::default(),
        };
        let (path, began) = (path.to_owned(), Instant::now());
        let shared = Shared { path, began, processes: AtomicU64::new(0), sink: Mutex::new(sink) };
        Ok(Recorder { shared: Arc::new(shared), part: None })
    }

    /// The same history; what is recorded through this belongs to that part of the run.
    #[must_use]
    pub fn of(&self, part: Part) -> Recorder {
        Recorder { shared: Arc::clone(&self.shared), part: Some(part) }
    }

    /// Microseconds since the run began.
    pub fn now(&self) -> Micros {
        u64::try_from(self.shared.began.elapsed().as_micros()).expect("a run is shorter than 500,000 years")
    }

    /// A new process.
    pub fn process(&self) -> Process {
        Process { recorder: self.clone(), number: self.number(), pending: None }
    }

    /// Records a fault that is over.
    pub fn fault(&self, fault: Fault) {
        self.shared.sink.lock().put(&fault, self.now());
    }

    /// Records a note.
    pub fn note(&self, note: &Note) {
        self.shared.sink.lock().put(note, self.now());
    }

    /// How many events were recorded until now.
    pub fn counts(&self) -> Counts {
        self.shared.sink.lock().counts
    }

    /// Writes out what waits in memory.
    pub fn flush(&self) {
        self.shared.sink.lock().flush();
    }

    /// Ends the history and reads it again from its file.
    ///
    /// # Errors
    /// [`Error::File`] if the file could not be written at any time or cannot be read, [`Error::Line`] if it is not what was
    /// written.
    pub fn finish(&self) -> Result<History, Error> {
        {
            let mut sink = self.shared.sink.lock();
            sink.flush();
            sink.file = None;
            if let Some(source) = sink.failed.take() {
                return Err(Error::File { path: self.shared.path.clone(), source });
            }
        }
        History::read(&self.shared.path)
    }

    fn number(&self) -> u64 {
        self.shared.processes.fetch_add(1, Ordering::Relaxed)
    }

    fn record(&self, process: u64, phase: Phase, operation: &Operation, node: Option<usize>, error: Option<String>) {
        let operation = operation.clone();
        let mut sink = self.shared.sink.lock();
        // Under the lock, so that the order of the lines is the order of their times.
        let time = self.now();
        match phase {
            Phase::Invoke => sink.counts.invoked += 1,
            Phase::Ok => sink.counts.ok += 1,
            Phase::Fail => sink.counts.fail += 1,
            Phase::Info => sink.counts.info += 1,
        }
        sink.put(&Event { time, process, phase, operation, part: self.part, node, error }, time);
    }
}

impl Sink {
    fn put(&mut self, line: &impl serde::Serialize, now: Micros) {
        let Some(file) = &mut self.file else { return };
        let due = now >= self.flushed + FLUSH_EVERY;
        let wrote = lines::put(file, line).and_then(|()| if due { file.flush() } else { Ok(()) });
        if due {
            self.flushed = now;
        }
        self.keep(wrote);
    }

    fn flush(&mut self) {
        let flushed = self.file.as_mut().map_or(Ok(()), Write::flush);
        self.keep(flushed);
    }

    fn keep(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
            self.file = None;
        }
    }
}

/// One worker of a workload: it has one operation at a time.
///
/// Its number changes when an operation ends as [`Phase::Info`], because that operation may still take effect beside the
/// next one. A process that is dropped while an operation is pending records that nobody knows what became of it.
#[derive(Debug)]
pub struct Process {
    recorder: Recorder,
    number: u64,
    pending: Option<(Operation, Option<usize>)>,
}

impl Process {
    /// The number under which its next event is recorded.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Records that an operation begins; call it before anything of it is sent. One that is still pending ends as unknown.
    pub fn invoke(&mut self, operation: Operation, node: Option<usize>) {
        if self.pending.is_some() {
            self.info("abandoned for the next operation");
        }
        self.recorder.record(self.number, Phase::Invoke, &operation, node, None);
        self.pending = Some((operation, node));
    }

    /// Records that the operation took effect, and what it answered.
    pub fn ok(&mut self, operation: Operation) {
        self.end(Phase::Ok, operation, None);
    }

    /// Records that the operation certainly took no effect.
    pub fn fail(&mut self, error: impl Into<String>) {
        self.end_as_begun(Phase::Fail, error.into());
    }

    /// Records that nobody knows whether the operation took effect.
    pub fn info(&mut self, error: impl Into<String>) {
        self.end_as_begun(Phase::Info, error.into());
    }

    /// Records an end of the pending operation. Without one, or with [`Phase::Invoke`], it records nothing.
    pub fn end(&mut self, phase: Phase, operation: Operation, error: Option<String>) {
        if phase == Phase::Invoke {
            return;
        }
        let Some((_, node)) = self.pending.take() else { return };
        self.recorder.record(self.number, phase, &operation, node, error);
        if phase == Phase::Info {
            self.number = self.recorder.number();
        }
    }

    /// Records something that happened without having been asked for, such as a delivery. A pending operation goes on.
    pub fn instant(&mut self, operation: Operation) {
        // A process has one operation at a time, so what happens beside a pending one gets a number of its own.
        let number = if self.pending.is_some() { self.recorder.number() } else { self.number };
        self.recorder.record(number, Phase::Ok, &operation, None, None);
    }

    fn end_as_begun(&mut self, phase: Phase, error: String) {
        if let Some((operation, _)) = &self.pending {
            let operation = operation.clone();
            self.end(phase, operation, Some(error));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.info("abandoned");
    }
}
