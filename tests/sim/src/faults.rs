//! The kinds of faults, their names in reports, and how often each is chosen.

use quorate_raft::memory::{CommitFault, FloorFault};
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::damage::Harm;
use crate::slot::At;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A node is killed.
    Crash,
    /// The leader of control is killed.
    CrashLeader,
    /// All nodes are killed at once.
    CrashAll,
    /// A node dies at a commit of its log.
    CrashAtCommit(At),
    /// A node dies at a write of the floor.
    CrashAtFloor,
    /// A node dies at a failpoint.
    CrashAtPoint,
    /// A commit fails with an error.
    DiskError,
    /// A disk has no room for a while.
    FullDisk,
    /// A disk is slow for a while.
    SlowDisk,
    /// One commit takes seconds.
    StalledDisk,
    /// Two nodes do not hear each other.
    Partition,
    /// A node is cut off from the others.
    Isolate,
    /// The leader of control is cut off from the others.
    IsolateLeader,
    /// The nodes fall apart into halves.
    Halves,
    /// A node is not heard by another one.
    PartitionOneWay,
    /// The leader of control is not heard by anyone, or hears nobody.
    LeaderOneWay,
    /// Messages between two nodes wait, and then all come.
    Hold,
    /// A link breaks and comes back many times.
    Flap,
    /// Messages between two nodes are slow, and so overtake those on other ways.
    SlowLink,
    /// A link loses messages, and with each the connection it was for.
    LossyLink,
    /// Requests of its peers arrive twice at a node.
    Repeat,
    /// An agent is cut off from all nodes.
    CutAgent,
    /// An agent is cut off from one node: its session moves.
    CutAgentOnce,
    /// An agent is killed.
    CrashAgent,
    /// The host of all other clients is killed.
    CrashClients,
    /// A wall clock jumps.
    ClockJump,
    /// A wall clock runs wrong from now on.
    ClockDrift,
    /// A wall clock flaps to and fro.
    ClockFlap,
    /// A monotonic clock runs wrong from now on, within its bound.
    MonotonicDrift,
    /// What is on the disk of a node is damaged, while it is down or under it.
    Damage(Harm),
    /// A member leaves.
    Leave,
    /// A new node joins.
    Join,
}

/// All kinds: name and weight.
pub(crate) const KINDS: [(Kind, &str, u32); 46] = [
    (Kind::Crash, "crash", 4),
    (Kind::CrashLeader, "crash_leader", 5),
    (Kind::CrashAll, "crash_all", 1),
    (Kind::CrashAtCommit(At::Any), "crash_at_commit", 5),
    (Kind::CrashAtCommit(At::Vote), "crash_at_vote", 2),
    (Kind::CrashAtCommit(At::Membership), "crash_at_membership", 2),
    (Kind::CrashAtCommit(At::Purge), "crash_at_purge", 2),
    (Kind::CrashAtCommit(At::Truncate), "crash_at_truncate", 2),
    (Kind::CrashAtCommit(At::Claim), "crash_at_claim", 2),
    (Kind::CrashAtFloor, "crash_at_floor", 3),
    (Kind::CrashAtPoint, "crash_at_failpoint", 10),
    (Kind::DiskError, "disk_error", 2),
    (Kind::FullDisk, "full_disk", 1),
    (Kind::SlowDisk, "slow_disk", 2),
    (Kind::StalledDisk, "stalled_disk", 2),
    (Kind::Partition, "partition", 3),
    (Kind::Isolate, "isolate", 3),
    (Kind::IsolateLeader, "isolate_leader", 5),
    (Kind::Halves, "halves", 2),
    (Kind::PartitionOneWay, "partition_one_way", 3),
    (Kind::LeaderOneWay, "leader_one_way", 3),
    (Kind::Hold, "hold", 2),
    (Kind::Flap, "flapping_link", 2),
    (Kind::SlowLink, "slow_link", 2),
    (Kind::LossyLink, "lossy_link", 2),
    (Kind::Repeat, "repeated_requests", 5),
    (Kind::CutAgent, "cut_agent", 3),
    (Kind::CutAgentOnce, "cut_agent_once", 3),
    (Kind::CrashAgent, "crash_agent", 2),
    (Kind::CrashClients, "crash_clients", 1),
    (Kind::ClockJump, "clock_jump", 3),
    (Kind::ClockDrift, "clock_drift", 2),
    (Kind::ClockFlap, "clock_flap", 2),
    (Kind::MonotonicDrift, "monotonic_drift", 1),
    (Kind::Damage(Harm::FlipRecord), "flip_record", 2),
    (Kind::Damage(Harm::RemoveRecord), "remove_record", 2),
    (Kind::Damage(Harm::FlipMark), "flip_mark", 2),
    (Kind::Damage(Harm::RemoveMark), "remove_mark", 2),
    (Kind::Damage(Harm::LoseLog), "lose_log", 2),
    (Kind::Damage(Harm::FlipFloor), "flip_floor", 2),
    (Kind::Damage(Harm::LoseFloor), "lose_floor", 2),
    (Kind::Damage(Harm::RotRow), "rot_row", 2),
    (Kind::Damage(Harm::LoseState), "lose_state", 2),
    (Kind::Damage(Harm::Diverge), "diverge", 5),
    (Kind::Leave, "leave", 8),
    (Kind::Join, "join", 4),
];

impl Kind {
    /// A kind, by weight.
    pub(crate) fn choose(rng: &mut StdRng) -> Kind {
        let all: u32 = KINDS.iter().map(|(_, _, weight)| weight).sum();
        let mut turn = rng.random_range(0..all);
        for (kind, _, weight) in KINDS {
            match turn.checked_sub(weight) {
                Some(left) => turn = left,
                None => return kind,
            }
        }
        Kind::Crash
    }

    /// The name in reports.
    pub(crate) fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, _, _)| *kind == self).map_or("unknown", |(_, name, _)| name)
    }

    /// Whether it may strike before there is a cluster.
    pub(crate) fn suits_formation(self) -> bool {
        // Request ids of clients are as old as the wall clock of the first leader says.
        let clock = matches!(self, Kind::ClockJump | Kind::ClockDrift | Kind::ClockFlap);
        !clock && !matches!(self, Kind::Leave | Kind::Join | Kind::Damage(_))
    }
}

/// How a node dies at a commit.
pub(crate) fn death(rng: &mut StdRng) -> CommitFault {
    match rng.random_range(0..6) {
        0 => CommitFault::CrashBefore,
        1 => CommitFault::CrashAfter,
        // Its header is there, so that it has its length.
        2 | 3 => CommitFault::Scrambled { changes: rng.random_range(0..4), bytes: rng.random_range(30..150) },
        _ => CommitFault::Torn { changes: rng.random_range(0..4), bytes: rng.random_range(0..200) },
    }
}

/// How a node dies at a write of the floor.
pub(crate) fn floor_death(rng: &mut StdRng) -> FloorFault {
    match rng.random_range(0..4) {
        0 => FloorFault::CrashBefore,
        1 => FloorFault::CrashAfter,
        _ => FloorFault::Torn(rng.random_range(0..300)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own_and_is_chosen() {
        let names: BTreeSet<&str> = KINDS.iter().map(|(kind, _, _)| kind.name()).collect();
        assert_eq!(names.len(), KINDS.len());
        let mut rng = StdRng::seed_from_u64(1);
        let chosen: BTreeSet<&str> = (0..5_000).map(|_| Kind::choose(&mut rng).name()).collect();
        assert_eq!(chosen, names);
    }
}
