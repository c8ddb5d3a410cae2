//! What a run records: operations of clients and faults, in one history.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in the run, in microseconds of the harness's monotonic clock since the run began.
pub type Micros = u64;

/// What became of an operation. An operation is invoked once and ends at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It begins.
    Invoke,
    /// It took effect, and this is what it answered.
    Ok,
    /// It certainly took no effect.
    Fail,
    /// Nobody knows: it may take effect at any time from its beginning on, or never.
    Info,
}

/// What a client asks for, or is told.
///
/// The same variant begins an operation and ends it; fields that only the answer has are `None` until then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "f", rename_all = "kebab-case")]
pub enum Operation {
    /// Reads a register: a memory point, whose value is a number in its payload and whose version the shard gave.
    Read {
        /// The register.
        key: u64,
        /// What was read; `Some(None)` is a register that was never written.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "absent")]
        value: Option<Option<u64>>,
    },
    /// Writes a register. Values are unique in a history.
    Write {
        /// The register.
        key: u64,
        /// The value.
        value: u64,
    },
    /// Writes a register if it has the expected value; fails otherwise.
    Cas {
        /// The register.
        key: u64,
        /// What it must have; `None`: it was never written.
        expected: Option<u64>,
        /// The value.
        value: u64,
    },
    /// Enqueues a task with a payload that is unique in the history.
    Enqueue {
        /// The payload.
        value: u64,
        /// The task's id, when it is known.
        task: Option<u64>,
    },
    /// An attempt reached an agent's handler. It is recorded as [`Phase::Ok`] only.
    Deliver {
        /// The payload.
        value: u64,
        /// The task.
        task: u64,
        /// The token of the attempt.
        token: String,
        /// Which attempt.
        attempt: u32,
    },
    /// An agent completes an attempt: [`Phase::Ok`] if the completion was acknowledged, [`Phase::Fail`] if it was refused as
    /// stale.
    Complete {
        /// The payload.
        value: u64,
        /// The task.
        task: u64,
        /// The token of the attempt.
        token: String,
        /// The payload of the child that is enqueued with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        child: Option<u64>,
    },
    /// An effect on a resource outside that is guarded by tokens: it refuses a token older than the newest it has seen.
    Effect {
        /// The resource (one for each task).
        task: u64,
        /// The token that guards it.
        token: String,
        /// Whether the lease was held, as the agent saw it, when the effect was made.
        held: bool,
    },
    /// Sends a request again with the request id of an earlier one; the answer must be the same.
    Repeat {
        /// The payload of the earlier enqueue.
        value: u64,
        /// The task's id, when it is known.
        task: Option<u64>,
    },
    /// Writes a point that a search can find by a vector of its own.
    Upsert {
        /// The point.
        point: u64,
    },
    /// Deletes a point.
    Delete {
        /// The point.
        point: u64,
    },
    /// Searches, linearizably, for the vector of one point.
    Search {
        /// Whose vector is asked for.
        point: u64,
        /// Whether the point was found.
        found: Option<bool>,
        /// Shards that did not answer: the answer is then not complete and says so.
        #[serde(default)]
        missing: u32,
    },
    /// Lists, linearizably and at the end of a run, what a collection holds of a range of points. A collection has the even
    /// ones or the odd ones.
    List {
        /// The first number of the range.
        from: u64,
        /// The number after its last one.
        to: u64,
        /// What the numbers of the collection's points leave when they are divided by two.
        rest: u64,
        /// The points that are there. What has an id that no point was ever given is [`u64::MAX`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        points: Option<Vec<u64>>,
        /// Shards that did not answer: the answer is then not complete and says so.
        #[serde(default)]
        missing: u32,
    },
    /// Reads the state of a task, linearizably, at the end of a run.
    Final {
        /// The payload.
        value: u64,
        /// The task.
        task: u64,
        /// Its state, as the API names it.
        state: Option<String>,
        /// How often it was completed, told by its result (the token that completed it).
        result: Option<String>,
    },
    /// Changes the members.
    Membership {
        /// What.
        what: Change,
        /// The place of the node.
        node: usize,
        /// The id of the node. One place has nodes of several ids in the course of a run.
        #[serde(default)]
        id: String,
    },
    /// Asks a node who belongs to the cluster.
    Members {
        /// The node.
        node: usize,
        /// The ids of the members.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ids: Option<Vec<String>>,
    },
    /// The state hash of a replica when all is quiet.
    Hash {
        /// The group.
        group: u32,
        /// The node.
        node: usize,
        /// The position, and the hash there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<(u64, u64)>,
    },
}

impl Operation {
    /// The name of what is done, as histories have it in `f`.
    pub fn name(&self) -> &'static str {
        match self {
            Operation::Read { .. } => "read",
            Operation::Write { .. } => "write",
            Operation::Cas { .. } => "cas",
            Operation::Enqueue { .. } => "enqueue",
            Operation::Deliver { .. } => "deliver",
            Operation::Complete { .. } => "complete",
            Operation::Effect { .. } => "effect",
            Operation::Repeat { .. } => "repeat",
            Operation::Upsert { .. } => "upsert",
            Operation::Delete { .. } => "delete",
            Operation::Search { .. } => "search",
            Operation::List { .. } => "list",
            Operation::Final { .. } => "final",
            Operation::Membership { .. } => "membership",
            Operation::Members { .. } => "members",
            Operation::Hash { .. } => "hash",
        }
    }
}

/// What is changed of the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// A node becomes one.
    Join,
    /// A node is one no more.
    Leave,
}

/// The token of an attempt: where in the log it was granted. A later grant of the same task has a greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// Position of the entry.
    pub position: u64,
    /// Which grant within the entry.
    pub ordinal: u32,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.position, self.ordinal)
    }
}

/// A text is no token; tokens are written `position.ordinal`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no token: write it as position.ordinal, such as 815.0")]
pub struct NoToken(String);

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Token, NoToken> {
        let parts =
            text.split_once('.').and_then(|(position, ordinal)| Some((position.parse().ok()?, ordinal.parse().ok()?)));
        parts.map(|(position, ordinal)| Token { position, ordinal }).ok_or_else(|| NoToken(text.to_owned()))
    }
}

/// Keeps `Some(None)` and `None` apart.
mod absent {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::ref_option, reason = "serde decides the signature")]
    pub(super) fn serialize<S: Serializer>(value: &Option<Option<u64>>, serializer: S) -> Result<S::Ok, S::Error> {
        value.unwrap_or_default().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
        Option::<u64>::deserialize(deserializer).map(Some)
    }
}

/// A part of what clients do in a run: one of its loads, or one lane of the probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Registers.
    Register,
    /// The queue.
    Queue,
    /// Leases and fencing.
    Lease,
    /// Request ids.
    Requests,
    /// Freshness of searches.
    Search,
    /// Probes that all go to one group: lane 0 to control, each other one to a shard.
    Probe(u8),
}

impl Part {
    /// The parts that are loads, with their names.
    pub const LOADS: [(Part, &'static str); 5] = [
        (Part::Register, "register"),
        (Part::Queue, "queue"),
        (Part::Lease, "lease"),
        (Part::Requests, "requests"),
        (Part::Search, "search"),
    ];
}

const PROBE: &str = "probe-";

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Part::LOADS.iter().find(|(part, _)| part == self) {
            Some((_, name)) => f.write_str(name),
            None => match self {
                Part::Probe(lane) => write!(f, "{PROBE}{lane}"),
                _ => f.write_str("?"),
            },
        }
    }
}

/// A text is no part of a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no part of a run: it is a load such as queue, or a lane of the probes such as probe-0")]
pub struct NoPart(String);

impl FromStr for Part {
    type Err = NoPart;

    fn from_str(text: &str) -> Result<Part, NoPart> {
        let load = Part::LOADS.iter().find(|(_, name)| *name == text).map(|(part, _)| *part);
        let lane = || text.strip_prefix(PROBE)?.parse().ok().map(Part::Probe);
        load.or_else(lane).ok_or_else(|| NoPart(text.to_owned()))
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Part, D::Error> {
        struct Name;
        impl serde::de::Visitor<'_> for Name {
            type Value = Part;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a part of a run")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Part, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub time: Micros,
    /// Who: a process of the workload has one operation at a time; one whose operation ended as [`Phase::Info`] goes on under
    /// a new number.
    pub process: u64,
    /// What became of it.
    pub phase: Phase,
    /// What.
    #[serde(flatten)]
    pub operation: Operation,
    /// For which part of the run it was done, if that was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// The node that was asked, if one was chosen. In JSON it is `asked`: operations have a `node` of their own.
    #[serde(rename = "asked", default, skip_serializing_if = "Option::is_none")]
    pub node: Option<usize>,
    /// Why it failed or is unknown: the reason of the API, or what happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What became of an attempt to inject a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Injection {
    /// It bit: that was seen, not assumed.
    Installed,
    /// There was nothing to break, or another fault held the node.
    Skipped,
    /// Whether it bit could not be seen.
    Indeterminate,
}

/// A fault, from its beginning to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The nemesis.
    pub nemesis: String,
    /// The kind within it, such as `cut a→b`.
    pub kind: String,
    /// When it began.
    pub from: Micros,
    /// When it ended; the same as `from` for what has no length.
    pub to: Micros,
    /// What became of it.
    pub injection: Injection,
    /// Details for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// In the detail of a fault after which every group, wherever its replicas are, has a majority whose members all reach each
/// other.
pub const MAJORITY: &str = "majority=true";
/// In the detail of a fault after which that is not certain.
pub const NO_MAJORITY: &str = "majority=false";
/// In the detail of a fault that began in a cluster that had just been seen to be healthy, whatever was before.
pub const WAS_WELL: &str = "well=true";
/// What was asked of a run, and so what it is judged by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The load.
    pub workload: String,
    /// The loads that it consists of.
    pub parts: Vec<Part>,
    /// The nemeses, with their arguments.
    pub nemeses: Vec<String>,
    /// How many nodes the cluster began with.
    pub nodes: usize,
    /// What everything random followed from.
    pub seed: u64,
    /// For how many seconds things were to break.
    pub seconds: f64,
    /// Operations a second that the load aimed at.
    pub rate: f64,
    /// Operations a second of the load that had to end well.
    pub floor: f64,
    /// The bug that the nodes had, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planted: Option<String>,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The load begins.
    Load,
    /// The last fault is over, and every node runs.
    Healed,
    /// The cluster is healthy again.
    Healthy,
    /// No operation of the load is under way any more.
    LoadEnded,
    /// The final reads begin.
    Finals,
    /// They are over, and nobody writes any more.
    AtRest,
}

/// What changes under a fault at another time than its beginning and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// It began to be made, and bit only from the beginning on that its record has. What it disturbed in between is no
    /// other fault's doing.
    Begun,
    /// Links are cut from now on.
    Cut,
    /// And whole again from now on.
    Mended,
}

/// What a run noted beside operations and faults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "kebab-case")]
pub enum Note {
    /// What was asked of it.
    Asked(Asked),
    /// It came to a stage.
    Reached {
        /// Which.
        stage: Stage,
        /// When.
        time: Micros,
    },
    /// A node was replaced by hand, because it refused to start after it had been damaged.
    Replaced {
        /// Which.
        node: usize,
        /// What the node said.
        refusal: String,
        /// When.
        time: Micros,
    },
    /// The machine stood still: what is late meanwhile is not held against the cluster.
    Stalled {
        /// What of it.
        what: String,
        /// From when.
        from: Micros,
        /// Until when.
        to: Micros,
    },
    /// Something changed under a fault whose record, told at its end, has no place for it.
    Moment {
        /// The nemesis of the fault.
        nemesis: String,
        /// What changed.
        moment: Moment,
        /// When that was done.
        time: Micros,
    },
    /// A promise was broken in sight of the harness.
    Violation {
        /// Which, in a sentence.
        what: String,
        /// When that was seen.
        time: Micros,
    },
    /// Nothing is proved.
    Void {
        /// Why.
        why: String,
        /// When that was seen.
        time: Micros,
    },
}

/// A line of a history file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// A note.
    Note(Note),
    /// A fault.
    Fault(Fault),
    /// An operation's event.
    Event(Event),
}

/// What a checker says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What contradicts a promise, a sentence each; empty: nothing does.
    pub violations: Vec<String>,
    /// Why the run proves nothing even without a violation; empty: it does.
    pub void: Vec<String>,
    /// What was counted.
    pub counts: std::collections::BTreeMap<String, u64>,
}
