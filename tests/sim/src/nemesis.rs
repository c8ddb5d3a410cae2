//! The faults of a run: what is broken when, and for how long, all decided by the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_raft::memory::CommitFault;
use quorate_raft::{GroupId, failpoint};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use turmoil::Sim;

use crate::agents::{AGENTS, agent_host};
use crate::damage::{self, Harm};
use crate::faults::{Kind, death, floor_death};
use crate::slot::{Armed, At, FAST_DISK_US};
use crate::world::{SLOTS, World, host};

/// The longest way of a message on a link in order.
pub(crate) const LINK_LATENCY: Duration = Duration::from_millis(8);
const SLOW_LATENCY: Duration = Duration::from_millis(120);
const SLOW_DISK_US: u64 = 60_000;
const LOSS: f64 = 0.02;
/// How long a node that has left may still run before its place is emptied.
const GHOST: std::ops::Range<u64> = 50..3_000;
/// Every so many steps it is asked whether damage is made good.
const LOOK_EVERY: u64 = 50;
/// A node that was told to join is not told anything else for so long.
const JOIN_PATIENCE: u64 = 1_000;

/// Two hosts, in the order of their names.
type Link = (String, String);

fn link(a: String, b: String) -> Link {
    if a < b { (a, b) } else { (b, a) }
}

/// What ends a fault.
enum Ending {
    Restart(usize),
    RestartAgent(usize),
    RestartClients,
    Repair(Vec<Link>),
    Release(Link),
    Flap { link: Link, cut: bool, over: u64 },
    Fast(Link),
    Lossless(Link),
    FastDisk(usize),
    Once(usize),
    Room(usize),
    Steady(usize),
    Empty(usize),
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
    down: [bool; SLOTS],
    /// Places that are about to be emptied.
    leaving: [bool; SLOTS],
    agents_down: [bool; AGENTS],
    clients_down: bool,
    joined: u64,
    /// Damage that waits until everything is whole.
    waiting: Option<Harm>,
    /// Links with a fault; each has one at a time.
    busy: BTreeSet<Link>,
    /// Faults that were injected, by kind. A fault that found nothing to break is not counted.
    pub(crate) faults: BTreeMap<&'static str, u64>,
    /// Nodes that lost their process.
    pub(crate) crashes: u64,
}

impl Nemesis {
    /// The nemesis of a seed.
    pub(crate) fn new(seed: u64) -> Nemesis {
        Nemesis {
            rng: StdRng::seed_from_u64(seed ^ 0xfa017),
            next: 0,
            active: Vec::new(),
            down: [false; SLOTS],
            leaving: [false; SLOTS],
            agents_down: [false; AGENTS],
            clients_down: false,
            joined: 0,
            waiting: None,
            busy: BTreeSet::new(),
            faults: BTreeMap::new(),
            crashes: 0,
        }
    }

    /// Whether this seed has faults while the cluster is formed.
    pub(crate) fn begins_early(seed: u64) -> bool {
        seed.is_multiple_of(3)
    }

    /// Ends what is due, and begins something if it is time.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>, world: &World, now: u64, is_formed: bool) {
        self.bury(sim, world, now);
        self.end(sim, world, now, |active| active.until <= now);
        self.part(world, now);
        if now.is_multiple_of(LOOK_EVERY) {
            self.damage_late(sim, world, now);
        }
        if now >= self.next {
            self.next = now + self.rng.random_range(60..600);
            let kind = Kind::choose(&mut self.rng);
            if (is_formed || kind.suits_formation()) && self.begin(sim, world, now, kind) {
                self.count(world, now, kind.name());
            }
        }
    }

    fn count(&mut self, world: &World, now: u64, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
        world.with_history(|history| history.trace.note(now, format_args!("fault {name}")));
    }

    /// Buries the nodes that died by themselves: by their disk, at a failpoint, or because a group stopped on a disk that
    /// had no room.
    pub(crate) fn bury(&mut self, sim: &mut Sim<'_>, world: &World, now: u64) {
        if now.is_multiple_of(LOOK_EVERY)
            && let Some(missed) = damage::close(world, now)
        {
            world.with_history(|history| history.violation(missed));
        }
        for node in 0..SLOTS {
            let slot = &world.slots[node];
            let fault = slot.running().and_then(|running| running.context.fault.borrow().clone());
            let died = slot.died.load(Ordering::Relaxed) || (fault.is_some() && slot.is_full());
            if died && !self.down[node] {
                if let Some(name) = slot.struck().filter(|name| *name != Kind::FullDisk.name()) {
                    world.slots.iter().for_each(|slot| slot.forget(name));
                    let name = if failpoint::ALL.contains(&name) { Kind::CrashAtPoint.name() } else { name };
                    self.count(world, now, name);
                }
                self.kill(sim, world, now, node);
            }
        }
    }

    /// Ends everything.
    pub(crate) fn heal(&mut self, sim: &mut Sim<'_>, world: &World, now: u64) {
        self.end(sim, world, now, |_| true);
        self.part(world, now);
        world.slots.iter().for_each(|slot| slot.disarm());
    }

    /// Whether no node has yet to go or to come.
    pub(crate) fn is_at_rest(&self) -> bool {
        !self.leaving.contains(&true)
    }

    fn begin(&mut self, sim: &mut Sim<'_>, world: &World, now: u64, kind: Kind) -> bool {
        let Some(node) = self.any(world) else { return false };
        let Some(other) = self.other(world, node) else { return false };
        let leader = leader(world).unwrap_or(node);
        let until = now + self.rng.random_range(150..2_500);
        match kind {
            Kind::Crash => self.may_kill(node) && self.kill(sim, world, now, node),
            Kind::CrashLeader => self.may_kill(leader) && self.kill(sim, world, now, leader),
            Kind::CrashAll => {
                let up: Vec<usize> = self.nodes(world).filter(|node| !self.down[*node]).collect();
                up.iter().for_each(|node| {
                    self.kill(sim, world, now, *node);
                });
                !up.is_empty()
            }
            Kind::CrashAtCommit(at) => self.arm(world, node, at, kind.name()),
            Kind::CrashAtPoint => self.arm_point(world, node),
            Kind::CrashAtFloor => {
                if self.may_kill(node) {
                    world.slots[node].arm_floor(self.rng.random_range(0..30), floor_death(&mut self.rng));
                }
                false
            }
            Kind::Damage(harm) => self.damage(sim, world, now, node, harm),
            Kind::DiskError => {
                let armed = Armed {
                    at: At::Any,
                    spared: self.rng.random_range(0..20),
                    fault: CommitFault::Error,
                    name: kind.name(),
                };
                self.arm_with(world, node, armed)
            }
            Kind::FullDisk => {
                self.may_kill(node) && !world.slots[node].is_full() && {
                    world.slots[node].set_full(true);
                    self.until(until, Ending::Room(node))
                }
            }
            Kind::SlowDisk => {
                world.slots[node].commit_us.store(SLOW_DISK_US, Ordering::Relaxed);
                self.until(until, Ending::FastDisk(node))
            }
            Kind::StalledDisk => {
                world.slots[node].stall_us.store(self.rng.random_range(200_000..2_000_000), Ordering::Relaxed);
                true
            }
            Kind::Repeat => {
                world.slots[node].repeats.store(true, Ordering::Relaxed);
                self.until(until, Ending::Once(node))
            }
            Kind::Leave => self.leave(world, now, node),
            Kind::Join => self.join(sim, world, now),
            Kind::ClockJump | Kind::ClockDrift | Kind::ClockFlap | Kind::MonotonicDrift => {
                self.begin_clock(world, now, kind, node, until)
            }
            Kind::CutAgent | Kind::CutAgentOnce | Kind::CrashAgent | Kind::CrashClients => {
                self.begin_client(sim, world, kind, node, until)
            }
            _ => self.begin_link(sim, world, now, kind, [node, other, leader], until),
        }
    }

    fn begin_link(
        &mut self,
        sim: &mut Sim<'_>,
        world: &World,
        now: u64,
        kind: Kind,
        [node, other, leader]: [usize; 3],
        until: u64,
    ) -> bool {
        let one = link(host(node), host(other));
        match kind {
            Kind::Partition => self.cut(sim, vec![one], until),
            Kind::Isolate => self.cut(sim, links_of(node), until),
            Kind::IsolateLeader => self.cut(sim, links_of(leader), until),
            Kind::Halves => {
                let nodes: Vec<usize> = self.nodes(world).collect();
                let side: Vec<bool> = nodes.iter().map(|_| self.rng.random_bool(0.5)).collect();
                let pairs = nodes.iter().zip(&side).flat_map(|a| nodes.iter().zip(&side).map(move |b| (a, b)));
                let across = pairs.filter(|((a, at), (b, bt))| a < b && at != bt);
                self.cut(sim, across.map(|((a, _), (b, _))| link(host(*a), host(*b))).collect(), until)
            }
            Kind::PartitionOneWay => {
                self.take(&one) && {
                    sim.partition_oneway(host(node), host(other));
                    self.until(until, Ending::Repair(vec![one]))
                }
            }
            Kind::LeaderOneWay => {
                let hears = self.rng.random_bool(0.5);
                let mut links = Vec::new();
                for peer in (0..SLOTS).filter(|peer| *peer != leader) {
                    let cut = link(host(leader), host(peer));
                    if self.take(&cut) {
                        let (from, to) = if hears { (leader, peer) } else { (peer, leader) };
                        sim.partition_oneway(host(from), host(to));
                        links.push(cut);
                    }
                }
                !links.is_empty() && self.until(until, Ending::Repair(links))
            }
            Kind::Hold => {
                self.take(&one) && {
                    sim.hold(one.0.as_str(), one.1.as_str());
                    self.until(until.min(now + 800), Ending::Release(one))
                }
            }
            Kind::Flap => {
                self.take(&one) && {
                    sim.partition(one.0.as_str(), one.1.as_str());
                    self.until(now + 40, Ending::Flap { link: one, cut: true, over: until })
                }
            }
            Kind::SlowLink => {
                self.take(&one) && {
                    sim.set_link_max_message_latency(one.0.as_str(), one.1.as_str(), SLOW_LATENCY);
                    self.until(until, Ending::Fast(one))
                }
            }
            _ => {
                self.take(&one) && {
                    sim.set_link_fail_rate(one.0.as_str(), one.1.as_str(), LOSS);
                    self.until(until, Ending::Lossless(one))
                }
            }
        }
    }

    fn begin_client(&mut self, sim: &mut Sim<'_>, world: &World, kind: Kind, node: usize, until: u64) -> bool {
        let agent = self.rng.random_range(0..AGENTS);
        match kind {
            Kind::CutAgent => {
                let all = self.nodes(world).map(|node| link(agent_host(agent), host(node))).collect();
                self.cut(sim, all, until)
            }
            Kind::CutAgentOnce => self.cut(sim, vec![link(agent_host(agent), host(node))], until),
            Kind::CrashAgent => {
                !self.agents_down[agent] && {
                    self.agents_down[agent] = true;
                    sim.crash(agent_host(agent));
                    self.until(until, Ending::RestartAgent(agent))
                }
            }
            _ => {
                !self.clients_down && {
                    self.clients_down = true;
                    sim.crash("clients");
                    self.until(until, Ending::RestartClients)
                }
            }
        }
    }

    fn begin_clock(&mut self, world: &World, now: u64, kind: Kind, node: usize, until: u64) -> bool {
        let clocks = &world.slots[node].clocks;
        let now_us = now * 1_000;
        match kind {
            Kind::ClockJump => {
                let reach = *[100_000, 3_000_000, 3_600_000_000].get(self.rng.random_range(0..3)).unwrap_or(&0);
                clocks.jump(now_us, self.rng.random_range(-reach..reach));
                true
            }
            Kind::ClockDrift => {
                clocks.drift(now_us, self.rng.random_range(-50_000..50_000));
                true
            }
            Kind::MonotonicDrift => {
                clocks.run_wrong(now_us, self.rng.random_range(-10_000..=10_000));
                true
            }
            _ => {
                clocks.flap(now_us, self.rng.random_range(-2_000_000..2_000_000));
                self.until(until, Ending::Steady(node))
            }
        }
    }

    /// The places where nodes are to run.
    fn nodes<'a>(&self, world: &'a World) -> impl Iterator<Item = usize> + use<'a> {
        world.slots.iter().filter(|slot| slot.wanted.load(Ordering::Relaxed)).map(|slot| slot.node)
    }

    fn any(&mut self, world: &World) -> Option<usize> {
        let nodes: Vec<usize> = self.nodes(world).collect();
        (!nodes.is_empty()).then(|| nodes[self.rng.random_range(0..nodes.len())])
    }

    fn other(&mut self, world: &World, node: usize) -> Option<usize> {
        let others: Vec<usize> = self.nodes(world).filter(|other| *other != node).collect();
        (!others.is_empty()).then(|| others[self.rng.random_range(0..others.len())])
    }

    /// A second node goes down only now and then: without a majority nothing happens that could go wrong.
    fn may_kill(&mut self, node: usize) -> bool {
        !self.down[node] && (!self.down.contains(&true) || self.rng.random_bool(0.3))
    }

    fn kill(&mut self, sim: &mut Sim<'_>, world: &World, now: u64, node: usize) -> bool {
        // What the state database flushes of itself, and when, nobody knows.
        let flushed = self.rng.random_bool(0.3).then(|| GroupId(self.rng.random_range(0..=world.shards)));
        sim.crash(host(node));
        world.slots[node].crash(flushed);
        damage::down(world, node);
        self.down[node] = true;
        self.crashes += 1;
        world.with_history(|history| {
            history.trace.note(now, format_args!("node-{} is down", node + 1));
            history.lost(world, node, (0..=world.shards).map(GroupId));
        });
        let until = now + self.rng.random_range(20..2_000);
        self.until(until, Ending::Restart(node))
    }

    /// Does the damage that had to wait until everything was whole.
    fn damage_late(&mut self, sim: &mut Sim<'_>, world: &World, now: u64) {
        if let Some(harm) = self.waiting.take()
            && let Some(node) = self.any(world)
            && self.damage(sim, world, now, node, harm)
        {
            self.count(world, now, Kind::Damage(harm).name());
        }
    }

    /// Damages the disk of a node, which is killed for most of that, if all the others are whole; otherwise that waits until
    /// they are.
    fn damage(&mut self, sim: &mut Sim<'_>, world: &World, now: u64, node: usize, harm: Harm) -> bool {
        if self.down.contains(&true) || self.leaving.contains(&true) || !damage::may_begin(world) {
            self.waiting.get_or_insert(harm);
            return false;
        }
        let runs = harm.may_strike_running() && self.rng.random_bool(0.5);
        if !runs {
            self.kill(sim, world, now, node);
        }
        let done = damage::strike(&mut self.rng, world, node, harm, now, runs);
        if harm == Harm::Diverge && self.rng.random_bool(0.8) {
            // Whoever comes back first may lead, and that may be the one that is wrong.
            let up: Vec<usize> = self.nodes(world).filter(|node| !self.down[*node]).collect();
            for node in up {
                self.kill(sim, world, now, node);
            }
        }
        world.with_history(|history| history.look_again(world));
        done
    }

    fn arm(&mut self, world: &World, node: usize, at: At, name: &'static str) -> bool {
        let most = if at == At::Any { 30 } else { 2 };
        let armed = Armed { at, spared: self.rng.random_range(0..most), fault: death(&mut self.rng), name };
        if at.is_rare() {
            // Wherever it comes first.
            world.slots.iter().for_each(|slot| slot.arm(armed));
            return false;
        }
        self.arm_with(world, node, armed)
    }

    /// Counted when it strikes.
    fn arm_with(&mut self, world: &World, node: usize, armed: Armed) -> bool {
        if self.may_kill(node) {
            world.slots[node].arm(armed);
        }
        false
    }

    fn arm_point(&mut self, world: &World, node: usize) -> bool {
        let point = failpoint::ALL[self.rng.random_range(0..failpoint::ALL.len())];
        if [failpoint::ROWS_WRITTEN, failpoint::BATCH_COMMITTED].contains(&point) {
            world.slots[node].arm_failpoint(point, self.rng.random_range(0..60));
        } else {
            // Wherever it comes first, a node that joins among them.
            let passes = self.rng.random_range(0..2);
            world.slots.iter().for_each(|slot| slot.arm_failpoint(point, passes));
        }
        false
    }

    /// Asks the operator to take a member out, while there is one more than the cluster needs.
    fn leave(&mut self, world: &World, now: u64, node: usize) -> bool {
        let mut order = world.leave.lock();
        let whole = !world.damages.lock().is_open();
        let free = whole && order.is_none() && !self.leaving.contains(&true) && now >= self.joined + JOIN_PATIENCE;
        let members = world.history.lock().machines.control.members().filter(|member| !member.leaving).count();
        if !free || members < SLOTS {
            return false;
        }
        *order = Some(node);
        true
    }

    fn join(&mut self, sim: &mut Sim<'_>, world: &World, now: u64) -> bool {
        let empty = world.slots.iter().find(|slot| !slot.wanted.load(Ordering::Relaxed));
        let Some(slot) = empty.filter(|slot| !self.leaving[slot.node]) else { return false };
        slot.wanted.store(true, Ordering::Relaxed);
        self.joined = now;
        sim.bounce(host(slot.node));
        true
    }

    /// Sees to the nodes that have left: some time later their places are emptied.
    fn part(&mut self, world: &World, now: u64) {
        for slot in &world.slots {
            if slot.left.swap(false, Ordering::Relaxed) && !self.leaving[slot.node] {
                self.leaving[slot.node] = true;
                let until = now + self.rng.random_range(GHOST);
                self.until(until, Ending::Empty(slot.node));
            }
        }
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

    fn end(&mut self, sim: &mut Sim<'_>, world: &World, now: u64, due: impl Fn(&Active) -> bool) {
        let (ending, active) = std::mem::take(&mut self.active).into_iter().partition(due);
        self.active = active;
        let ending: Vec<Active> = ending;
        for over in ending {
            self.end_one(sim, world, now, over);
        }
    }

    fn end_one(&mut self, sim: &mut Sim<'_>, world: &World, now: u64, Active { until, ending }: Active) {
        match ending {
            Ending::Restart(node) => {
                // A place that was emptied meanwhile stays empty until a node joins.
                if self.down[node] && world.slots[node].wanted.load(Ordering::Relaxed) {
                    self.down[node] = false;
                    sim.bounce(host(node));
                }
            }
            Ending::RestartAgent(agent) => {
                self.agents_down[agent] = false;
                sim.bounce(agent_host(agent));
            }
            Ending::RestartClients => {
                self.clients_down = false;
                sim.bounce("clients");
            }
            Ending::Repair(links) => links.into_iter().for_each(|link| self.repair(sim, link)),
            Ending::Release(link) => {
                sim.release(link.0.as_str(), link.1.as_str());
                self.busy.remove(&link);
            }
            // Ended before its time by the end of all faults.
            Ending::Flap { link, over, .. } if until > now || over <= now => self.repair(sim, link),
            Ending::Flap { link, cut, over } => {
                if cut {
                    sim.repair(link.0.as_str(), link.1.as_str());
                } else {
                    sim.partition(link.0.as_str(), link.1.as_str());
                }
                let next = now + self.rng.random_range(15..180);
                self.until(next, Ending::Flap { link, cut: !cut, over });
            }
            Ending::Fast(link) => {
                sim.set_link_max_message_latency(link.0.as_str(), link.1.as_str(), LINK_LATENCY);
                self.busy.remove(&link);
            }
            Ending::Lossless(link) => {
                sim.set_link_fail_rate(link.0.as_str(), link.1.as_str(), 0.0);
                // A link that was broken at random stays so until a message finds it repaired.
                self.repair(sim, link);
            }
            Ending::FastDisk(node) => world.slots[node].commit_us.store(FAST_DISK_US, Ordering::Relaxed),
            Ending::Once(node) => world.slots[node].repeats.store(false, Ordering::Relaxed),
            Ending::Room(node) => world.slots[node].set_full(false),
            Ending::Steady(node) => world.slots[node].clocks.flap(now * 1_000, 0),
            Ending::Empty(node) => {
                sim.crash(host(node));
                world.slots[node].crash(None);
                world.slots[node].set_full(false);
                world.slots[node].wipe();
                self.down[node] = false;
                self.leaving[node] = false;
                world.with_history(|history| {
                    history.trace.note(now, format_args!("node-{} is gone", node + 1));
                    history.lost(world, node, (0..=world.shards).map(GroupId));
                });
            }
        }
    }

    fn repair(&mut self, sim: &Sim<'_>, link: Link) {
        sim.repair(link.0.as_str(), link.1.as_str());
        self.busy.remove(&link);
    }
}

fn links_of(node: usize) -> Vec<Link> {
    (0..SLOTS).filter(|other| *other != node).map(|other| link(host(node), host(other))).collect()
}

fn leader(world: &World) -> Option<usize> {
    (0..SLOTS).find(|node| world.slots[*node].running().is_some_and(|running| running.context.control.leads()))
}
