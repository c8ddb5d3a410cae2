//! Packets between nodes lost, held back or brought out of order.
//!
//! netem is not on every machine, so packets that come in from other nodes go through a netfilter queue to a thread of ours
//! in the node's namespace, which keeps each as long as it likes and lets it pass or drops it. The rule lets packets
//! pass by themselves when nobody listens: a harness that dies disturbs nothing.
//!
//! All of it happens below TCP. So the nodes see pauses, bursts and spurious retransmissions; no message arrives twice or
//! out of order on a connection, as on a real network.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use nfq::{Message, Queue, Verdict};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Cluster;
use super::links::CHAIN;

/// The queue's number within a node's namespace.
const QUEUE: u16 = 7;
/// How finely delays are kept.
const GRAIN: Duration = Duration::from_millis(1);
/// The last of the descriptors that every process has.
const STANDARD_ERROR: RawFd = 2;
/// Packets that the kernel keeps for us at most; more are lost, as in a router.
const MOST_QUEUED: u32 = 16_384;

/// What is done to packets that come into a node from other nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Disturbance {
    /// The part that is lost, 0 to 1.
    pub loss: f64,
    /// How long every packet is kept.
    pub delay: Duration,
    /// How much longer at most, each packet for itself. That brings them out of order.
    pub jitter: Duration,
}

/// What was done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disturbed {
    /// Packets that came.
    pub seen: u64,
    /// Packets that were dropped.
    pub lost: u64,
    /// Packets that were kept for a time.
    pub held: u64,
    /// Packets that left after one that had come later.
    pub overtaken: u64,
}

#[derive(Debug, Default)]
struct Counts {
    seen: AtomicU64,
    lost: AtomicU64,
    held: AtomicU64,
    overtaken: AtomicU64,
}

/// The thread that has a node's queue in its hands.
#[derive(Debug)]
pub(super) struct Disturber {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Disturber {
    /// Begins to listen in the namespace. Ready when it returns.
    fn start(namespace: PathBuf, disturbance: Disturbance, seed: u64) -> Result<Disturber> {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new(Counts::default());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stopping, counting) = (Arc::clone(&stop), Arc::clone(&counts));
        let thread = std::thread::Builder::new().name("packets".into()).spawn(move || {
            match alone_in(&namespace, open_queue) {
                Ok(queue) => {
                    let _ = ready.send(());
                    disturb(queue, disturbance, seed, &stopping, &counting)
                }
                Err(error) => Err(error),
            }
        })?;
        let mut disturber = Disturber { stop, counts, thread: Some(thread) };
        match is_ready.recv() {
            Ok(()) => Ok(disturber),
            Err(_) => Err(disturber
                .end()
                .err()
                .unwrap_or_else(|| anyhow!("it ended at once"))
                .context("listening to a netfilter queue")),
        }
    }

    fn disturbed(&self) -> Disturbed {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        Disturbed {
            seen: read(&counts.seen),
            lost: read(&counts.lost),
            held: read(&counts.held),
            overtaken: read(&counts.overtaken),
        }
    }

    /// Lets go of all packets and ends.
    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        match thread.join() {
            Ok(ended) => Ok(ended?),
            Err(_) => bail!("the thread that holds packets panicked"),
        }
    }
}

impl Drop for Disturber {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Moves this thread, and no other, into the namespace and opens something there, which nobody else ever has.
///
/// A netfilter queue is open without CLOEXEC. A node that another thread starts would take it along, and the number would be
/// bound in the namespace as long as that node lives. So the thread gets a table of descriptors of its own first.
fn alone_in<T>(namespace: &Path, open: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
    unshare(CloneFlags::CLONE_FILES)?;
    close_inherited()?;
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
    open()
}

/// Closes what came along into this thread's own table, but for the standard streams. Else files of a disk would stay in use,
/// and connections open, that the other threads have closed since. Theirs are not touched.
fn close_inherited() -> std::io::Result<()> {
    let named = std::fs::read_dir("/proc/thread-self/fd")?.map(|entry| Ok(entry?.file_name()));
    // The names alone: entries would keep the folder open.
    let named = named.collect::<std::io::Result<Vec<_>>>()?;
    let numbers = named.iter().filter_map(|name| name.to_str()?.parse::<RawFd>().ok());
    for number in numbers.filter(|number| *number > STANDARD_ERROR) {
        match nix::unistd::close(number) {
            // The one with which the folder was read is gone by itself.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn open_queue() -> std::io::Result<Queue> {
    let mut queue = Queue::open()?;
    queue.bind(QUEUE)?;
    // The packet itself stays in the kernel.
    queue.set_copy_range(QUEUE, 0)?;
    queue.set_queue_max_len(QUEUE, MOST_QUEUED)?;
    queue.set_nonblocking(true);
    Ok(queue)
}

/// A packet that is kept, ordered by when it may go and then by when it came.
struct Kept {
    until: Instant,
    number: u64,
    message: Message,
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Kept {}
impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Kept {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.until, self.number).cmp(&(other.until, other.number))
    }
}

fn disturb(
    mut queue: Queue,
    wanted: Disturbance,
    seed: u64,
    stop: &AtomicBool,
    counts: &Counts,
) -> std::io::Result<()> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut kept = BinaryHeap::new();
    let mut newest_gone = 0;
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let idle = loop {
            match queue.recv() {
                Ok(mut message) => {
                    let number = counts.seen.fetch_add(1, Ordering::Relaxed) + 1;
                    if dice.random_bool(wanted.loss) {
                        counts.lost.fetch_add(1, Ordering::Relaxed);
                        message.set_verdict(Verdict::Drop);
                        queue.verdict(message)?;
                        continue;
                    }
                    let longer = wanted.delay + wanted.jitter.mul_f64(dice.random::<f64>());
                    counts.held.fetch_add(u64::from(!longer.is_zero()), Ordering::Relaxed);
                    kept.push(Reverse(Kept { until: Instant::now() + longer, number, message }));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        let now = Instant::now();
        while kept.peek().is_some_and(|Reverse(first): &Reverse<Kept>| stopping || first.until <= now) {
            let Some(Reverse(Kept { number, message, .. })) = kept.pop() else { break };
            counts.overtaken.fetch_add(u64::from(number < newest_gone), Ordering::Relaxed);
            newest_gone = newest_gone.max(number);
            queue.verdict(message)?;
        }
        if stopping {
            return Ok(());
        }
        if idle {
            std::thread::sleep(GRAIN);
        }
    }
}

impl Cluster {
    /// Disturbs what comes into a node from the other nodes, until [`Cluster::let_pass`].
    pub async fn disturb(&self, node: usize, wanted: Disturbance, seed: u64) -> Result<()> {
        self.let_pass(node).await?;
        let namespace = PathBuf::from("/run/netns").join(self.run.namespace(node));
        let disturber = Disturber::start(namespace, wanted, seed)?;
        self.node(node).disturber.lock().replace(disturber);
        let rule = |source| format!("-A {CHAIN} -s {source} -j NFQUEUE --queue-num {QUEUE} --queue-bypass\n");
        self.filter(node, "filter", &self.others(node).map(rule).collect::<String>()).await
    }

    /// What [`Cluster::disturb`] did at a node so far.
    pub fn disturbed(&self, node: usize) -> Option<Disturbed> {
        self.node(node).disturber.lock().as_ref().map(Disturber::disturbed)
    }

    /// Ends [`Cluster::disturb`]; what is held goes through at once.
    pub async fn let_pass(&self, node: usize) -> Result<()> {
        let Some(mut disturber) = self.node(node).disturber.lock().take() else { return Ok(()) };
        let number = QUEUE.to_string();
        let enter = self.enter(node);
        let saved = super::tool::run_async(&[enter[0].as_str(), &enter[1], "iptables-save", "-t", "filter"]).await?;
        let ours = saved.lines().filter(|line| line.contains("NFQUEUE") && line.split(' ').any(|word| word == number));
        let rules: String = ours.filter_map(|line| Some(format!("-D {}\n", line.strip_prefix("-A ")?))).collect();
        self.filter(node, "filter", &rules).await?;
        tokio::task::spawn_blocking(move || disturber.end()).await?
    }

    pub(super) fn others(&self, node: usize) -> impl Iterator<Item = std::net::Ipv4Addr> {
        let run = self.run;
        (0..self.size()).filter(move |other| *other != node).map(move |other| run.node_address(other))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::channel;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    /// What has a file open, by the listing of descriptors of a process or a thread.
    fn has_open(listing: &str, file: &Path) -> bool {
        listing.contains(file.to_str().unwrap())
    }

    fn descriptors_of(folder: &str) -> String {
        let named = std::fs::read_dir(folder).unwrap().flatten();
        named.filter_map(|entry| Some(format!("{}\n", std::fs::read_link(entry.path()).ok()?.display()))).collect()
    }

    #[test]
    fn what_the_thread_opens_is_no_descriptor_of_a_process_that_is_started_meanwhile() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (queue, kept) = (folder.path().join("queue"), folder.path().join("kept"));
        let _kept = File::create(&kept).unwrap();
        let (path, (opened, is_opened), (done, is_done)) = (queue.clone(), channel(), channel::<()>());
        let thread = std::thread::spawn(move || {
            let like_a_queue = || {
                let file = File::create(&path)?;
                fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
                Ok(file)
            };
            let file = alone_in(Path::new("/proc/self/ns/net"), like_a_queue).unwrap();
            opened.send(descriptors_of("/proc/thread-self/fd")).unwrap();
            is_done.recv().unwrap_err();
            drop(file);
        });
        let own = is_opened.recv().unwrap();
        let child = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
        assert!(has_open(&own, &queue));
        assert!(!has_open(&String::from_utf8_lossy(&child.stdout), &queue), "a process took the descriptor along");
        assert!(!has_open(&own, &kept), "a file would stay in use that others have closed");
        assert!(has_open(&descriptors_of("/proc/thread-self/fd"), &kept), "and theirs are not closed");
        drop(done);
        thread.join().unwrap();
    }
}
