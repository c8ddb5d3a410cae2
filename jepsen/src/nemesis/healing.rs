//! What a damaged node makes of it: whether it notices, and whether it is whole again without anybody's help.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::NemesisContext;
use crate::cluster::{Cluster, Damage, Mark, Notice, is_of_nodes};

/// How soon a damaged node must be whole by itself, if no other fault hinders it.
pub(super) const SELF_HEALED: Duration = Duration::from_secs(60);
/// For how long one is watched that other faults hinder.
const WATCHED: Duration = Duration::from_secs(120);
/// How long a node that was replaced by hand may take to be whole.
const REPLACED: Duration = Duration::from_secs(120);
/// How often a node that ends by itself over its damage is started again.
const STARTS: u32 = 3;

/// What nodes log when they take a replica out of service. A test holds these sentences against the source.
const QUARANTINE: [&str; 3] = [
    "a replica of this node is taken out of service",
    "a replica is damaged and quarantined",
    "the log database is damaged; it is moved aside, and every replica of this node is quarantined",
];
/// When they drop a checkpoint that is of no use.
const DROPPED: [&str; 2] = [
    "a checkpoint of an earlier process is damaged; it is dropped",
    "a checkpoint is damaged; it is dropped and another is made",
];
/// When they see that something is gone, and make it anew.
const GONE: [&str; 2] = [
    "the state database is gone: it is made anew from the log and the peers",
    "one copy of the identity is missing: it is written again",
];
/// When they make something anew out of what is whole.
const REPAIRED: [&str; 5] = [
    "one copy of the identity is damaged; it is made anew from the other",
    "one of the two slots of the floor is damaged; the other one is used",
    "a slot of the floor is damaged; the floor is written again",
    "a segment cannot be used; its rows are fetched again",
    "an index is rebuilt from its rows",
];

/// What a node said about the damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noticed {
    /// It took a replica out of service.
    Quarantine,
    /// It said that something is gone, and made it anew.
    Log,
    /// It used what was whole, and made the other anew.
    Repaired,
    /// It dropped something that it can do without.
    Dropped,
    /// It did not start.
    Refused,
    /// Nothing.
    Nothing,
}

impl fmt::Display for Noticed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Noticed::Quarantine => "quarantine",
            Noticed::Log => "log",
            Noticed::Repaired => "repaired",
            Noticed::Dropped => "dropped",
            Noticed::Refused => "refused",
            Noticed::Nothing => "none",
        })
    }
}

impl Noticed {
    /// What a log says, and the line that says so.
    pub(super) fn in_log(log: &str) -> (Noticed, Option<&str>) {
        Noticed::among(log, |_| true)
    }

    /// What a log says of some damage, and the line that says so.
    pub(super) fn of<'a>(damage: &Damage, log: &'a str) -> (Noticed, Option<&'a str>) {
        Noticed::among(log, |noticed| noticed.is_about(damage))
    }

    /// Whether it can be said of such damage. A checkpoint that is dropped leaves its state as damaged as it is, where
    /// they have a table in common; and rows that must be read are found only by who reads them.
    fn is_about(self, damage: &Damage) -> bool {
        match self {
            Noticed::Dropped => damage.class == "checkpoint",
            Noticed::Log => damage.notice != Notice::AtScrub,
            Noticed::Quarantine | Noticed::Repaired | Noticed::Refused | Noticed::Nothing => true,
        }
    }

    fn among(log: &str, counts: impl Fn(Noticed) -> bool) -> (Noticed, Option<&str>) {
        let kinds: [(Noticed, &[&str]); 4] = [
            (Noticed::Quarantine, &QUARANTINE),
            (Noticed::Log, &GONE),
            (Noticed::Dropped, &DROPPED),
            (Noticed::Repaired, &REPAIRED),
        ];
        for (noticed, sentences) in kinds.into_iter().filter(|(noticed, _)| counts(*noticed)) {
            let says = |line: &&str| sentences.iter().any(|sentence| line.contains(sentence));
            if let Some(line) = log.lines().find(says) {
                return (noticed, Some(line));
            }
        }
        (Noticed::Nothing, None)
    }
}

/// What became of a damaged node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Healed {
    /// It was whole again after so long.
    Itself(Duration),
    /// It was not, though nothing hindered it: what was wrong.
    Late(String),
    /// It was not, and other faults may be the reason.
    Hindered(String),
    /// It did not start: what it said.
    Refused(String),
    /// The faults were to end before.
    Unknown,
}

/// From where on the log of a node tells what it makes of its damage, and in which process that began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since {
    pub(super) logged: usize,
    pub(super) pid: Option<u32>,
}

impl Since {
    /// What the node has logged since.
    pub(super) fn log(self, ctx: &NemesisContext, node: usize) -> String {
        ctx.logged(node).get(self.logged..).unwrap_or_default().to_owned()
    }

    /// Whether the process still runs in which it began: what it counts is then all that it has noticed.
    pub(super) fn is_same_process(self, cluster: &Cluster, node: usize) -> bool {
        self.pid.is_some() && cluster.pid(node) == self.pid
    }
}

/// Watches a node that has just been started, or that has just noticed damage. One that ends by itself is started again,
/// as its supervisor would do it.
///
/// # Errors
/// If the harness cannot start it.
pub(super) async fn watch(ctx: &NemesisContext, node: usize, since: Since) -> Result<Healed> {
    let begun = Instant::now();
    let hindered = AtomicBool::new(false);
    let mut why = String::new();
    loop {
        let limit = if hindered.load(Ordering::Relaxed) { WATCHED } else { SELF_HEALED };
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(if hindered.load(Ordering::Relaxed) { Healed::Hindered(why) } else { Healed::Late(why) });
        }
        tokio::select! {
            whole = whole(ctx, node, since, left) => match whole {
                Ok(()) => return Ok(Healed::Itself(begun.elapsed())),
                Err(wrong) => why = wrong,
            },
            refused = attend(ctx, node, &hindered) => return refused,
            () = ctx.stop.cancelled() => return Ok(Healed::Unknown),
        }
    }
}

/// Waits until the cluster is well, and the node says that it has put others in the place of the replicas it had to
/// give up.
async fn whole(ctx: &NemesisContext, node: usize, since: Since, limit: Duration) -> Result<(), String> {
    let begun = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    loop {
        tick.tick().await;
        let left = limit.saturating_sub(begun.elapsed());
        ctx.cluster.wait_healthy(left).await.map_err(|error| format!("{error:#}"))?;
        let wrong = match ctx.cluster.replicas_counted(node).await {
            Ok(counted) => {
                // Only then: what it says before it is counted must not be missed.
                let said = Noticed::in_log(&since.log(ctx, node)).0;
                let must_count = said == Noticed::Quarantine && since.is_same_process(&ctx.cluster, node);
                match lack(counted, must_count) {
                    None => return Ok(()),
                    Some(lack) => format!("node {node} {lack}"),
                }
            }
            Err(error) => format!("node {node} does not tell its metrics: {error:#}"),
        };
        if begun.elapsed() > limit {
            return Err(wrong);
        }
    }
}

/// What is missing by the counts of a node's replicas, those that it took out of service and those in their place.
/// `must_count`: the same process has said that it took one out of service, which it says a moment before it counts it.
fn lack((quarantined, healed): (u64, u64), must_count: bool) -> Option<String> {
    match (quarantined, healed) {
        (0, _) if must_count => Some("says that a replica is quarantined, and does not count it".into()),
        (0, _) | (_, 1..) => None,
        (_, 0) => Some(format!("has quarantined {quarantined} replicas and healed none")),
    }
}

/// What an attempt to start a node came to, if it does not run. An error of the harness is no refusal.
pub(super) fn refusal(started: Result<()>) -> Result<Option<Healed>> {
    match started {
        Ok(()) => Ok(None),
        Err(error) if is_of_nodes(&error) => Ok(Some(Healed::Refused(format!("{error:#}")))),
        Err(error) => Err(error),
    }
}

/// Notes other faults, and starts the node again if it ends. Returns only if it does not start.
async fn attend(ctx: &NemesisContext, node: usize, hindered: &AtomicBool) -> Result<Healed> {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut starts = 0;
    loop {
        tick.tick().await;
        let others = ctx.cluster.members().into_iter().filter(|other| *other != node);
        if ctx.cluster.marks().others(&[Mark::Damage]) || others.into_iter().any(|other| !ctx.cluster.is_running(other))
        {
            hindered.store(true, Ordering::Relaxed);
        }
        if ctx.cluster.is_running(node) {
            continue;
        }
        let Some(_hold) = ctx.cluster.marks().take(&[Mark::Node(node)]) else { continue };
        if starts == STARTS {
            return Ok(Healed::Refused(format!("it has ended {} times by itself", STARTS + 1)));
        }
        starts += 1;
        if let Some(refused) = refusal(ctx.cluster.start_node(node).await)? {
            return Ok(refused);
        }
    }
}

/// What an operator does with a node that does not heal or refuses its disk. True if it is whole then.
pub(super) async fn replace(ctx: &NemesisContext, node: usize) -> (bool, String) {
    let begun = Instant::now();
    let replacing = async {
        ctx.cluster.replace(node).await?;
        ctx.cluster.wait_healthy(REPLACED).await
    };
    tokio::select! {
        replaced = replacing => match replaced {
            Ok(_) => (true, format!("replaced by hand in {:.1} s", begun.elapsed().as_secs_f64())),
            Err(error) => (false, format!("not replaced: {error:#}")),
        },
        () = ctx.stop.cancelled() => (false, "not replaced before the end of faults".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentences_are_those_that_nodes_log() {
        let sources = [
            include_str!("../../../node/src/quarantine.rs"),
            include_str!("../../../node/src/memory/machine.rs"),
            include_str!("../../../raft/src/start.rs"),
            include_str!("../../../raft/src/groups.rs"),
            include_str!("../../../raft/src/checkpoints.rs"),
            include_str!("../../../raft/src/identity.rs"),
            include_str!("../../../raft/src/log/floor.rs"),
            include_str!("../../../raft/src/scrub.rs"),
            include_str!("../../../index/src/open.rs"),
        ];
        for sentence in QUARANTINE.iter().chain(&GONE).chain(&DROPPED).chain(&REPAIRED) {
            assert!(sources.iter().any(|source| source.contains(sentence)), "no node logs {sentence:?} any more");
        }
    }

    #[test]
    fn a_quarantine_goes_before_what_else_a_log_says() {
        let repaired = format!("INFO x\nWARN {}\n", REPAIRED[1]);
        assert_eq!(Noticed::in_log(&repaired).0, Noticed::Repaired);
        let both = format!("{repaired}ERROR {} group=1\n", QUARANTINE[0]);
        let (noticed, line) = Noticed::in_log(&both);
        assert_eq!((noticed, line.map(|line| line.ends_with("group=1"))), (Noticed::Quarantine, Some(true)));
        let gone = format!("{repaired}WARN {} group=3\n", GONE[0]);
        assert_eq!(Noticed::in_log(&gone).0, Noticed::Log);
        let torn = "WARN the end of the log was torn by a crash; removing it";
        assert_eq!(Noticed::in_log(torn), (Noticed::Nothing, None), "that is what every crash leaves");
    }

    #[test]
    fn what_is_said_of_a_checkpoint_is_not_said_of_a_state() {
        let log = format!("WARN {} group=1\n", DROPPED[1]);
        let of = |class, notice, log: &str| Noticed::of(&Damage::example(class, notice), log).0;
        assert_eq!(of("checkpoint", Notice::Perhaps, &log), Noticed::Dropped);
        for notice in [Notice::AtScrub, Notice::AtStart, Notice::Perhaps] {
            assert_eq!(of("state-sst", notice, &log), Noticed::Nothing, "{notice:?}");
        }
        let gone = format!("WARN {} group=3\n", GONE[0]);
        assert_eq!(of("state", Notice::AtStart, &gone), Noticed::Log);
        assert_eq!(of("state-sst", Notice::AtScrub, &gone), Noticed::Nothing, "its rows are read by a scrub only");
        let both = format!("{log}{gone}ERROR {} group=1\n", QUARANTINE[1]);
        assert_eq!(of("state-sst", Notice::AtScrub, &both), Noticed::Quarantine);
    }

    #[test]
    fn a_quarantine_that_was_said_must_be_counted_and_healed() {
        let is_whole = |counted, must_count| lack(counted, must_count).is_none();
        assert!(is_whole((0, 0), false));
        assert!(!is_whole((0, 0), true), "it is said a moment before it is counted");
        assert!(!is_whole((1, 0), true) && !is_whole((1, 0), false));
        assert!(is_whole((1, 1), true) && is_whole((2, 1), false));
    }
}
