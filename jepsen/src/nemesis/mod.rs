//! Faults over time: what breaks, when, for how long, and whether it was seen to break.
//!
//! A [`Nemesis`] runs beside a workload until it is told to stop. Most are a [`Strike`] — one fault from its beginning to
//! its end — that `schedule` repeats with calm between, by a seed. Several may run at once: what each holds is marked in the
//! cluster ([`Mark`]), and who finds a mark taken skips instead of fighting.
//!
//! Each fault is reported once, when it has ended, as installed (it was seen to bite: a counter rose, a process was in
//! state `T`, a disk refused a write), skipped (nothing to break, or another fault was there) or indeterminate (it was
//! done, and nothing shows that it bit). What the product must not do in a nemesis's sight, such as to live on after a
//! failed fsync, is reported as a violation.

mod amnesia;
mod clocks;
mod corruption;
mod disks;
mod formation;
mod healing;
mod links;
mod membership;
mod packets;
mod power;
mod processes;
mod schedule;
mod undue;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Healing, Hold, Mark};
use crate::event::{Fault, Injection, Micros, Moment};

pub use schedule::Strike;
use schedule::{Chaos, Driven};
pub(crate) use undue::undue_quarantines;

/// How long a strike waits for what another holds, before it skips.
const PATIENCE: Duration = Duration::from_secs(3);

/// Breaks a cluster until it is told to stop.
#[async_trait]
pub trait Nemesis: Send {
    /// Its name, one of [`NAMES`].
    fn name(&self) -> &'static str;

    /// Begins and ends faults until `ctx.stop`, each reported. Returns early when there is nothing left to do.
    ///
    /// # Errors
    /// If the harness fails: the run is then void. Faults may be left; [`heal`] ends them.
    async fn run(&mut self, ctx: &NemesisContext) -> Result<()>;
}

/// Who is told what happened.
pub trait Report: Send + Sync {
    /// A fault has ended.
    fn fault(&self, fault: Fault);
    /// The product broke a promise.
    fn violation(&self, sentence: String);
    /// Nothing is proved: a promise that was to be looked at could not be.
    fn void(&self, why: String);
    /// Something changed under a fault that is not over yet.
    fn moment(&self, nemesis: &str, moment: Moment, time: Micros);
}

/// How long faults and the calm between them last. Each length is drawn from its range by the seed.
#[derive(Debug, Clone)]
pub struct Pace {
    /// From the beginning of a fault to its end.
    pub fault: RangeInclusive<Duration>,
    /// From the end of a fault to the next.
    pub calm: RangeInclusive<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            fault: Duration::from_secs(1)..=Duration::from_secs(6),
            calm: Duration::from_secs(1)..=Duration::from_secs(5),
        }
    }
}

/// What a nemesis works on and with.
#[derive(Clone)]
pub struct NemesisContext {
    /// What is broken.
    pub cluster: Arc<Cluster>,
    /// Ends the nemesis.
    pub stop: CancellationToken,
    /// Time 0 of the history.
    pub began: Instant,
    /// Who is told.
    pub report: Arc<dyn Report>,
    /// How long things last.
    pub pace: Pace,
}

impl NemesisContext {
    fn now(&self) -> Micros {
        Micros::try_from(self.began.elapsed().as_micros()).unwrap_or(Micros::MAX)
    }

    /// Waits; false if the nemesis was told to stop meanwhile.
    async fn wait(&self, length: Duration) -> bool {
        tokio::time::timeout(length, self.stop.cancelled()).await.is_err()
    }

    /// A fault begins.
    fn begin(&self, nemesis: &'static str, kind: impl Into<String>) -> Open<'_> {
        Open { ctx: self, nemesis, kind: kind.into(), from: self.now(), told: false }
    }

    /// There was nothing to break, and why.
    fn skip(&self, nemesis: &'static str, kind: impl Into<String>, why: impl Into<String>) {
        self.begin(nemesis, kind).end(Injection::Skipped, why);
    }

    /// Takes marks, waiting a little for other faults to end.
    async fn hold(&self, wanted: &[Mark]) -> Option<Hold> {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let held = async {
            loop {
                tick.tick().await;
                if let Some(hold) = self.cluster.marks().take(wanted) {
                    return hold;
                }
            }
        };
        tokio::select! {
            held = tokio::time::timeout(PATIENCE, held) => held.ok(),
            () = self.stop.cancelled() => None,
        }
    }

    /// Holds so many members that run and that no fault holds, drawn by the dice; fewer if there are not so many.
    fn pick(&self, dice: &mut StdRng, count: usize) -> (Vec<usize>, Vec<Hold>) {
        let mut members = self.cluster.members();
        members.shuffle(dice);
        let free = members.into_iter().filter(|node| self.cluster.is_running(*node));
        free.filter_map(|node| Some((node, self.cluster.marks().take(&[Mark::Node(node)])?))).take(count).unzip()
    }

    /// Holds one, as [`Self::pick`].
    fn pick_one(&self, dice: &mut StdRng) -> Option<(usize, Hold)> {
        let (nodes, mut holds) = self.pick(dice, 1);
        Some((*nodes.first()?, holds.pop()?))
    }

    /// Holds the leader of control, waiting a little for there to be one.
    async fn pick_leader(&self) -> Option<(usize, Hold)> {
        let leader = self.any_leader().await?;
        Some((leader, self.hold(&[Mark::Node(leader)]).await?))
    }

    async fn any_leader(&self) -> Option<usize> {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let found = async {
            loop {
                tick.tick().await;
                if let Some(leader) = self.cluster.leader().await {
                    return leader;
                }
            }
        };
        tokio::select! {
            leader = tokio::time::timeout(PATIENCE, found) => leader.ok(),
            () = self.stop.cancelled() => None,
        }
    }

    /// What a node has logged over all its starts. Bytes that are no text are shown as such.
    fn logged(&self, node: usize) -> String {
        let log = std::fs::read(self.cluster.log_path(node)).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Starts a node after a fault from which it must come back, and says so if it does not.
    async fn back(&self, node: usize, after: &str) {
        let started = match self.cluster.is_running(node) {
            true => Ok(()),
            false => self.cluster.start_node(node).await,
        };
        if let Err(error) = started {
            self.report.violation(format!("node {node} does not come back after {after}: {error:#}"));
        }
    }
}

/// A fault that has begun. Left without a word, as when the harness fails, it is reported as indeterminate.
struct Open<'a> {
    ctx: &'a NemesisContext,
    nemesis: &'static str,
    kind: String,
    from: Micros,
    told: bool,
}

impl Open<'_> {
    /// It bites only now: what was acknowledged while it was made says nothing about it. When it was begun is noted, as
    /// what is late meanwhile may be late because of it.
    fn bites_now(&mut self) {
        self.ctx.report.moment(self.nemesis, Moment::Begun, self.from);
        self.from = self.ctx.now();
    }

    /// What changes while it goes on, now.
    fn note(&self, moment: Moment) {
        self.ctx.report.moment(self.nemesis, moment, self.ctx.now());
    }

    /// It has ended.
    fn end(mut self, injection: Injection, detail: impl Into<String>) {
        self.tell(injection, detail.into());
    }

    /// It has ended; installed if it was `seen` to bite, indeterminate else.
    fn end_seen(self, seen: bool, detail: impl Into<String>) {
        self.end(if seen { Injection::Installed } else { Injection::Indeterminate }, detail);
    }

    fn tell(&mut self, injection: Injection, detail: String) {
        self.told = true;
        let to = match injection {
            Injection::Skipped => self.from,
            Injection::Installed | Injection::Indeterminate => self.ctx.now(),
        };
        let (nemesis, kind) = (self.nemesis.to_owned(), self.kind.clone());
        self.ctx.report.fault(Fault { nemesis, kind, from: self.from, to, injection, detail });
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.tell(Injection::Indeterminate, "the harness did not see the end of it".into());
        }
    }
}

/// What a nemesis asks of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Disks on loop devices.
    pub loop_disk: bool,
    /// Clocks that can be moved.
    pub faketime: bool,
    /// A program that can end at a failpoint.
    pub failpoints: bool,
    /// As many nodes at least.
    pub nodes: usize,
}

const ANY: Needs = Needs { loop_disk: false, faketime: false, failpoints: false, nodes: 3 };
const FAILPOINTS: Needs = Needs { failpoints: true, ..ANY };
const DISK: Needs = Needs { loop_disk: true, ..ANY };
const CLOCK: Needs = Needs { faketime: true, ..ANY };

/// The nemeses: name, what it does, what it needs. `links` needs, and `links` and some others take, an argument after a
/// colon: see [`by_name`].
pub const NAMES: &[(&str, &str, Needs)] = &[
    ("none", "nothing", Needs { nodes: 1, ..ANY }),
    (
        "links",
        "links:N cuts subset N (1 to 63) of the directed links of the first three nodes; links:N@L makes L lead first",
        ANY,
    ),
    (
        "link-enumeration",
        "all 64 subsets of the directed links of three nodes under each of them as leader; :I begins at item I of 192",
        ANY,
    ),
    ("halves", "a minority and a majority that do not hear each other", ANY),
    ("ring", "each node hears a majority, each another one", ANY),
    ("bridge", "two sides that one node connects", ANY),
    ("isolate-leader", "the leader of control hears nobody and nobody hears it", ANY),
    ("one-way", "a node hears nobody, or nobody hears it, or one link is cut in one direction", ANY),
    ("flapping", "a node is cut off and back again many times a second or two", ANY),
    ("reset", "halves whose connections are reset instead of silent", ANY),
    ("kill", "SIGKILL of one node", ANY),
    ("kill-leader", "SIGKILL of the leader of control", ANY),
    ("kill-all", "SIGKILL of all nodes", ANY),
    ("pause", "SIGSTOP of one node", ANY),
    ("pause-leader", "SIGSTOP of the leader of control", ANY),
    ("pause-majority", "SIGSTOP of a majority", ANY),
    ("restart-loop", "one node is killed again as soon as it serves", ANY),
    (
        "failpoint",
        "one node ends between two steps of its own, such as a durable batch and the floor that says so",
        FAILPOINTS,
    ),
    ("rolling-restart", "SIGTERM and start of each node in turn", ANY),
    ("power-cut", "one node loses its power and what it did not sync", DISK),
    ("power-cut-leader", "the leader of control loses its power", DISK),
    ("power-cut-all", "all nodes lose their power at once", DISK),
    ("fsync-error", "fsync of one node fails with EIO; the node must end", ANY),
    ("slow-fsync", "each fsync of one node takes 5 to 200 ms longer", ANY),
    ("stalled-disk", "the disk of one node answers nothing", DISK),
    ("disk-full", "the disk of one node has no room", DISK),
    (
        "corruption",
        "a file of one node is damaged while it is down, or one of its tables while it runs; :CLASS takes \
         files of one class, :running only what its scrub must find",
        ANY,
    ),
    (
        "amnesia",
        "one of three nodes loses its log, beside one that was cut off and without the one that knows better",
        ANY,
    ),
    ("clock-jump", "the wall clock of one node jumps, up to days, and back", CLOCK),
    ("clock-strobe", "the wall clock of one node jumps to and fro many times a second", CLOCK),
    ("clock-drift", "the wall clock of one node runs too fast or too slow", CLOCK),
    ("join", "a fresh node joins and leaves again", ANY),
    ("leave", "a member leaves and a fresh one joins in its place", ANY),
    ("replace", "a fresh node joins, then another member leaves", ANY),
    ("loss", "1 to 30% of the packets to one node or all are lost", ANY),
    ("delay", "packets to one node or all take 5 to 300 ms longer", ANY),
    ("reorder", "packets to one node or all overtake each other", ANY),
    ("duplicate", "5 to 50% of what Raft says from one node or all to the others arrives twice", ANY),
    ("chaos", "one fault after the other, drawn from all kinds that the cluster allows", ANY),
];

/// What a nemesis needs, with or without its argument.
pub fn needs(name: &str) -> Option<Needs> {
    let name = name.split(':').next()?;
    NAMES.iter().find(|(known, ..)| *known == name).map(|(.., needs)| *needs)
}

/// The nemesis of a name of [`NAMES`], with its seed. `None`: there is no such name or argument.
///
/// - `links:17`, `links:17@2`: see there.
/// - `link-enumeration:40` goes on at item 40; item i is subset i / 3 with the (i % 3)-th member as leader.
/// - `corruption:wal`: a class of [`crate::cluster::CLASSES`]; `corruption:running` is no class, but when.
pub fn by_name(name: &str, seed: u64) -> Option<Box<dyn Nemesis>> {
    let (name, argument) = match name.split_once(':') {
        Some((name, argument)) => (name, Some(argument)),
        None => (name, None),
    };
    match (name, argument) {
        ("none", None) => Some(Box::new(schedule::Nothing)),
        ("link-enumeration", _) => Some(Box::new(links::Enumeration::new(argument)?)),
        ("chaos", None) => Some(Box::new(Chaos::new(seed))),
        _ => Some(Box::new(Driven::new(strike(name, argument)?, seed))),
    }
}

fn strike(name: &str, argument: Option<&str>) -> Option<Box<dyn Strike>> {
    match (name, argument) {
        ("links", Some(argument)) => Some(Box::new(links::Subset::new(argument)?)),
        ("amnesia", None) => Some(Box::new(amnesia::Amnesia)),
        ("corruption", class) => Some(Box::new(corruption::Corruption::new(class)?)),
        (_, Some(_)) => None,
        (name, None) => links::Partition::named(name)
            .or_else(|| processes::named(name))
            .or_else(|| power::PowerCut::named(name))
            .or_else(|| disks::named(name))
            .or_else(|| clocks::ClockFault::named(name))
            .or_else(|| membership::Churn::named(name))
            .or_else(|| packets::PacketFault::named(name)),
    }
}

/// Ends every fault and starts every member that is down. The cluster may still need time to be healthy. Says who does not
/// start or had to be replaced.
///
/// # Errors
/// What of the harness did not work.
pub async fn heal(cluster: &Cluster) -> Result<Healing> {
    cluster.heal().await
}

fn draw(range: &RangeInclusive<Duration>, dice: &mut StdRng) -> Duration {
    dice.random_range(range.clone())
}

fn one_of<T: Copy>(choices: &[T], dice: &mut StdRng) -> T {
    *choices.choose(dice).expect("a choice of something")
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::event::{Line, Note};

    /// What was told.
    #[derive(Default)]
    struct Told {
        faults: Mutex<Vec<Fault>>,
        moments: Mutex<Vec<(String, Moment, Micros)>>,
    }

    impl Report for Told {
        fn fault(&self, fault: Fault) {
            self.faults.lock().push(fault);
        }

        fn violation(&self, _: String) {}

        fn void(&self, _: String) {}

        fn moment(&self, nemesis: &str, moment: Moment, time: Micros) {
            self.moments.lock().push((nemesis.to_owned(), moment, time));
        }
    }

    #[test]
    fn what_bites_later_than_it_was_begun_is_measured_from_there() {
        let told = Arc::new(Told::default());
        let ctx = NemesisContext {
            cluster: Arc::new(Cluster::of_nobody()),
            stop: CancellationToken::new(),
            began: Instant::now(),
            report: Arc::clone(&told) as Arc<dyn Report>,
            pace: Pace::default(),
        };
        // A moment that no other one is the same as.
        let tick = || {
            let before = ctx.now();
            while ctx.now() == before {
                std::hint::spin_loop();
            }
            ctx.now()
        };
        let mut open = ctx.begin("stalled-disk", "stalled-disk");
        let made = tick();
        open.bites_now();
        let bitten = tick();
        open.note(Moment::Cut);
        open.end_seen(true, "");
        let [fault] = &told.faults.lock()[..] else { panic!("one fault") };
        assert!((made..bitten).contains(&fault.from) && fault.to >= bitten, "{made} {bitten} {fault:?}");
        let moments = told.moments.lock();
        let [(_, Moment::Begun, begun), (nemesis, Moment::Cut, cut)] = &moments[..] else { panic!("{moments:?}") };
        assert!(*begun < made && (bitten..=fault.to).contains(cut), "{moments:?}");
        assert_eq!(nemesis, "stalled-disk");
    }

    #[test]
    fn a_moment_is_a_note_of_a_history() {
        let note = Note::Moment { nemesis: "flapping".into(), moment: Moment::Mended, time: 5 };
        let line = serde_json::to_string(&note).expect("it is written");
        assert_eq!(line, r#"{"note":"moment","nemesis":"flapping","moment":"mended","time":5}"#);
        assert_eq!(serde_json::from_str::<Line>(&line).expect("it is read"), Line::Note(note));
    }

    #[test]
    fn every_name_makes_a_nemesis_of_that_name() {
        for (name, ..) in NAMES {
            let full = if *name == "links" { "links:17@2" } else { name };
            assert_eq!(by_name(full, 1).map(|nemesis| nemesis.name()), Some(*name));
            assert!(needs(full).is_some());
        }
        for wrong in ["", "links", "links:0", "links:64", "links:3@x", "kill:1", "corruption:x", "link-enumeration:192"]
        {
            assert!(by_name(wrong, 1).is_none(), "{wrong:?}");
        }
    }
}
