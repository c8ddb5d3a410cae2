//! The faults of a run: what is broken when, and for how long, all decided by the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_raft::memory::CommitFault;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use turmoil::Sim;

use crate::clients::{AGENTS, agent_host};
use crate::world::{FAST_DISK_US, NODES, World, host};

/// The longest way of a message on a link in order.
pub(crate) const LINK_LATENCY: Duration = Duration::from_millis(8);
const SLOW_LATENCY: Duration = Duration::from_millis(120);
const SLOW_DISK_US: u64 = 60_000;
const LOSS: f64 = 0.02;

/// Kinds of faults with how often each is chosen.
const KINDS: [(Kind, u32); 13] = [
    (Kind::Crash, 3),
    (Kind::CrashLeader, 3),
    (Kind::CrashAtCommit, 4),
    (Kind::Partition, 2),
    (Kind::Isolate, 2),
    (Kind::IsolateLeader, 3),
    (Kind::PartitionOneWay, 2),
    (Kind::Hold, 1),
    (Kind::CutAgent, 2),
    (Kind::CrashAgent, 1),
    (Kind::SlowDisk, 1),
    (Kind::SlowLink, 1),
    (Kind::LossyLink, 1),
];

#[derive(Debug, Clone, Copy)]
enum Kind {
    Crash,
    CrashLeader,
    CrashAtCommit,
    Partition,
    Isolate,
    IsolateLeader,
    PartitionOneWay,
    Hold,
    CutAgent,
    CrashAgent,
    SlowDisk,
    SlowLink,
    LossyLink,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Crash => "crash",
            Kind::CrashLeader => "crash_leader",
            Kind::CrashAtCommit => "crash_at_commit",
            Kind::Partition => "partition",
            Kind::Isolate => "isolate",
            Kind::IsolateLeader => "isolate_leader",
            Kind::PartitionOneWay => "partition_one_way",
            Kind::Hold => "hold",
            Kind::CutAgent => "cut_agent",
            Kind::CrashAgent => "crash_agent",
            Kind::SlowDisk => "slow_disk",
            Kind::SlowLink => "slow_link",
            Kind::LossyLink => "lossy_link",
        }
    }
}

/// Two hosts, in the order of their names.
type Link = (String, String);

fn link(a: String, b: String) -> Link {
    if a < b { (a, b) } else { (b, a) }
}

/// What ends a fault.
enum Ending {
    Restart(usize),
    RestartAgent(usize),
    Repair(Vec<Link>),
    Release(Link),
    Fast(Link),
    Lossless(Link),
    FastDisk(usize),
}

struct Active {
    until: u64,
    ending: Ending,
}

/// Breaks things.
pub(crate) struct Nemesis {
    rng: StdRng,
    next: u64,
    active: Vec<Active>,
    down: [bool; NODES],
    agents_down: [bool; AGENTS],
    /// Links with a fault; each has one at a time.
    busy: BTreeSet<Link>,
    /// Faults that were injected, by kind. A fault that found nothing to break is not counted.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Nodes that were killed.
    pub(crate) crashes: u64,
}

impl Nemesis {
    /// The nemesis of a seed.
    pub(crate) fn new(seed: u64) -> Nemesis {
        Nemesis {
            rng: StdRng::seed_from_u64(seed ^ 0xfa017),
            next: 0,
            active: Vec::new(),
            down: [false; NODES],
            agents_down: [false; AGENTS],
            busy: BTreeSet::new(),
            faults: BTreeMap::new(),
            crashes: 0,
        }
    }

    /// Ends what is due, and begins something if it is time.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>, world: &World, now: u64) {
        self.bury(sim, world, now);
        self.end(sim, world, |active| active.until <= now);
        if now >= self.next {
            self.next = now + self.rng.random_range(100..900);
            let kind = self.choose();
            if self.begin(sim, world, now, kind) {
                *self.faults.entry(kind.name()).or_default() += 1;
            }
        }
    }

    /// Kills the nodes whose disk failed.
    pub(crate) fn bury(&mut self, sim: &mut Sim<'_>, world: &World, now: u64) {
        for node in 0..NODES {
            if world.slots[node].died.load(Ordering::Relaxed) && !self.down[node] {
                self.kill(sim, world, now, node);
            }
        }
    }

    /// Ends everything.
    pub(crate) fn heal(&mut self, sim: &mut Sim<'_>, world: &World) {
        self.end(sim, world, |_| true);
        world.slots.iter().for_each(|slot| slot.disarm());
    }

    fn choose(&mut self) -> Kind {
        let all: u32 = KINDS.iter().map(|(_, weight)| weight).sum();
        let mut turn = self.rng.random_range(0..all);
        for (kind, weight) in KINDS {
            match turn.checked_sub(weight) {
                Some(left) => turn = left,
                None => return kind,
            }
        }
        Kind::Crash
    }

    fn begin(&mut self, sim: &mut Sim<'_>, world: &World, now: u64, kind: Kind) -> bool {
        let node = self.rng.random_range(0..NODES);
        let other = (node + self.rng.random_range(1..NODES)) % NODES;
        let leader = leader(world).unwrap_or(node);
        let until = now + self.rng.random_range(150..2_500);
        match kind {
            Kind::Crash | Kind::CrashLeader => {
                let node = if matches!(kind, Kind::Crash) { node } else { leader };
                self.may_kill(node) && self.kill(sim, world, now, node)
            }
            Kind::CrashAtCommit => self.may_kill(node) && self.arm(world, node),
            Kind::Partition => self.cut(sim, vec![link(host(node), host(other))], until),
            Kind::Isolate => self.cut(sim, links_of(node), until),
            Kind::IsolateLeader => self.cut(sim, links_of(leader), until),
            Kind::CutAgent => {
                let agent = self.rng.random_range(0..AGENTS);
                self.cut(sim, (0..NODES).map(|node| link(agent_host(agent), host(node))).collect(), until)
            }
            Kind::PartitionOneWay => {
                let cut = link(host(node), host(other));
                self.take(&cut) && {
                    sim.partition_oneway(host(node), host(other));
                    self.until(until, Ending::Repair(vec![cut]))
                }
            }
            Kind::Hold => {
                let held = link(host(node), host(other));
                self.take(&held) && {
                    sim.hold(held.0.as_str(), held.1.as_str());
                    self.until(until.min(now + 800), Ending::Release(held))
                }
            }
            Kind::SlowLink => {
                let slow = link(host(node), host(other));
                self.take(&slow) && {
                    sim.set_link_max_message_latency(slow.0.as_str(), slow.1.as_str(), SLOW_LATENCY);
                    self.until(until, Ending::Fast(slow))
                }
            }
            Kind::LossyLink => {
                let lossy = link(host(node), host(other));
                self.take(&lossy) && {
                    sim.set_link_fail_rate(lossy.0.as_str(), lossy.1.as_str(), LOSS);
                    self.until(until, Ending::Lossless(lossy))
                }
            }
            Kind::SlowDisk => {
                world.slots[node].commit_us.store(SLOW_DISK_US, Ordering::Relaxed);
                self.until(until, Ending::FastDisk(node))
            }
            Kind::CrashAgent => {
                let agent = self.rng.random_range(0..AGENTS);
                !self.agents_down[agent] && {
                    self.agents_down[agent] = true;
                    sim.crash(agent_host(agent));
                    self.until(until, Ending::RestartAgent(agent))
                }
            }
        }
    }

    /// A second node goes down only now and then: without a majority nothing happens that could go wrong.
    fn may_kill(&mut self, node: usize) -> bool {
        !self.down[node] && (!self.down.contains(&true) || self.rng.random_bool(0.3))
    }

    fn kill(&mut self, sim: &mut Sim<'_>, world: &World, now: u64, node: usize) -> bool {
        *world.slots[node].context.lock() = None;
        sim.crash(host(node));
        world.slots[node].crash();
        self.down[node] = true;
        self.crashes += 1;
        let until = now + self.rng.random_range(20..2_000);
        self.until(until, Ending::Restart(node))
    }

    fn arm(&mut self, world: &World, node: usize) -> bool {
        let fault = match self.rng.random_range(0..4) {
            0 => CommitFault::CrashBefore,
            1 => CommitFault::CrashAfter,
            _ => CommitFault::Torn { changes: self.rng.random_range(0..4), bytes: self.rng.random_range(0..200) },
        };
        world.slots[node].arm(self.rng.random_range(1..30), fault);
        true
    }

    fn take(&mut self, link: &Link) -> bool {
        self.busy.insert(link.clone())
    }

    fn cut(&mut self, sim: &Sim<'_>, mut links: Vec<Link>, until: u64) -> bool {
        links.retain(|link| self.busy.insert(link.clone()));
        for (a, b) in &links {
            sim.partition(a.as_str(), b.as_str());
        }
        !links.is_empty() && self.until(until, Ending::Repair(links))
    }

    fn until(&mut self, until: u64, ending: Ending) -> bool {
        self.active.push(Active { until, ending });
        true
    }

    fn end(&mut self, sim: &mut Sim<'_>, world: &World, due: impl Fn(&Active) -> bool) {
        let (ending, active) = std::mem::take(&mut self.active).into_iter().partition(due);
        self.active = active;
        let ending: Vec<Active> = ending;
        for over in ending {
            match over.ending {
                Ending::Restart(node) => {
                    self.down[node] = false;
                    sim.bounce(host(node));
                }
                Ending::RestartAgent(agent) => {
                    self.agents_down[agent] = false;
                    sim.bounce(agent_host(agent));
                }
                Ending::Repair(links) => {
                    for link in links {
                        sim.repair(link.0.as_str(), link.1.as_str());
                        self.busy.remove(&link);
                    }
                }
                Ending::Release(link) => {
                    sim.release(link.0.as_str(), link.1.as_str());
                    self.busy.remove(&link);
                }
                Ending::Fast(link) => {
                    sim.set_link_max_message_latency(link.0.as_str(), link.1.as_str(), LINK_LATENCY);
                    self.busy.remove(&link);
                }
                Ending::Lossless(link) => {
                    sim.set_link_fail_rate(link.0.as_str(), link.1.as_str(), 0.0);
                    // A link that was broken at random stays so until a message finds it repaired.
                    sim.repair(link.0.as_str(), link.1.as_str());
                    self.busy.remove(&link);
                }
                Ending::FastDisk(node) => world.slots[node].commit_us.store(FAST_DISK_US, Ordering::Relaxed),
            }
        }
    }
}

fn links_of(node: usize) -> Vec<Link> {
    (0..NODES).filter(|other| *other != node).map(|other| link(host(node), host(other))).collect()
}

fn leader(world: &World) -> Option<usize> {
    (0..NODES).find(|node| world.slots[*node].running().is_some_and(|context| context.control.leads()))
}
