//! One seed: a cluster is formed, works under faults, and must come to rest when the faults end.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use mad_turmoil::time::SimClocksGuard;
use parking_lot::Mutex;
use quorate_node::quarantine::Stage;
use quorate_raft::{GroupId, Stop};
use quorate_state::ShardId;
use quorate_state::control::ReplicaState;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use turmoil::Sim;

use crate::agents::{AGENTS, agent_host, run_agent};
use crate::clients::run_clients;
use crate::damage::{self, is_healthy};
use crate::history::History;
use crate::memory;
use crate::nemesis::{LINK_LATENCY, Nemesis};
use crate::node;
use crate::report::Report;
use crate::slot::{Running, Slot};
use crate::trace::Trace;
use crate::witness;
use crate::world::{FOUNDERS, SLOTS, World, host};

/// The cluster must be formed by then, or so long after the last fault of its formation. A join that was lost in one is given
/// up after 15 s.
const FORMED_WITHIN: u64 = 17_000;
/// Faults strike at the formation for so long, in the seeds that have such.
const EARLY_FAULTS: u64 = 3_000;
/// Everything must be done so long after the last fault.
const SETTLED_WITHIN: u64 = 60_000;
/// Every so many steps the machines are asked whether they contradict themselves, and their rows are compared.
const CHECK_EVERY: u64 = 500;
/// A simulation that makes no step for so long hangs.
const HANG: Duration = Duration::from_secs(60);

/// Runs a seed. Once in a process: the randomness of the process is set.
pub(crate) fn run(seed: u64, steps: u64) -> anyhow::Result<Report> {
    let scratch = tempfile::tempdir()?;
    let directory = scratch.path().to_owned();
    let history = History::new(Trace::open()?);
    let panics = record_panics();
    watch_progress();
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    // A thread takes the keys of its hash maps once; those of this one are older than the seed.
    let simulation = std::thread::spawn(move || simulate(seed, steps, &directory, history, &panics));
    simulation.join().map_err(|_| anyhow::anyhow!("the simulation of seed {seed} ended by a panic"))
}

fn simulate(seed: u64, steps: u64, scratch: &Path, history: History, panics: &Mutex<Vec<String>>) -> Report {
    let _clocks = SimClocksGuard::init();
    let world = World::new(seed, scratch, history);
    let mut nemesis = Nemesis::new(seed);
    let mut sim = build(seed, &world);
    let outcome = catch_unwind(AssertUnwindSafe(|| drive(&mut sim, &world, &mut nemesis, seed, steps)));
    // The process ends after this; taking a stopped world apart would only find trouble of its own.
    std::mem::forget(sim);
    let mut history = world.history.lock();
    if outcome.is_err() {
        history.violation("panic: the run ended by one");
    }
    for panic in panics.lock().iter() {
        history.violation(format!("panic: {panic}"));
    }
    history.trace.flush();
    let quarantined = world.damages.lock().quarantined();
    let repeated = world.repeated.lock().iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
    Report { quarantined, repeated, ..Report::new(seed, steps, &history, &nemesis) }
}

fn build(seed: u64, world: &Arc<World>) -> Sim<'static> {
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(Duration::from_millis(1))
        .simulation_duration(Duration::from_secs(1 << 30))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(LINK_LATENCY)
        .tcp_capacity(1 << 14)
        // turmoil keeps the port of a connection that was refused.
        .ephemeral_ports(8_000..=65_535)
        .epoch(std::time::UNIX_EPOCH)
        .enable_random_order()
        .build();
    for node in 0..SLOTS {
        let world = world.clone();
        sim.host(host(node), move || node::run(world.clone(), node));
    }
    for agent in 0..AGENTS {
        let world = world.clone();
        sim.host(agent_host(agent), move || run_agent(world.clone(), agent));
    }
    {
        let world = world.clone();
        sim.host(witness::HOST, move || witness::run(world.clone()));
    }
    let world = world.clone();
    sim.host("clients", move || run_clients(world.clone()));
    sim
}

fn drive(sim: &mut Sim<'_>, world: &World, nemesis: &mut Nemesis, seed: u64, steps: u64) {
    let mut watch = Watch::default();
    let early = if Nemesis::begins_early(seed) { EARLY_FAULTS } else { 0 };
    let mut formed = false;
    let mut step = 0;
    while step < steps && watch.goes_on(world) {
        step += 1;
        watch.step(sim, world, step);
        formed = formed || is_formed(world);
        if formed || step < early {
            nemesis.step(sim, world, step, formed);
        } else {
            nemesis.bury(sim, world, step);
            nemesis.heal(sim, world, step);
            if step == early + FORMED_WITHIN {
                world.with_history(|history| history.violation("liveness: the cluster is not formed"));
            }
        }
    }
    nemesis.heal(sim, world, step);
    world.closing.store(true, Ordering::Relaxed);
    let last = step + SETTLED_WITHIN;
    while watch.goes_on(world) && !(nemesis.is_at_rest() && is_settled(world)) {
        step += 1;
        watch.step(sim, world, step);
        nemesis.bury(sim, world, step);
        nemesis.heal(sim, world, step);
        if step == last {
            let what = format!("liveness: {}", unsettled(world));
            world.with_history(|history| history.violation(what));
        }
    }
    watch.check(world);
    world.with_history(|history| {
        if history.is_clean() {
            memory::settle(&world.keys, history);
            history.conclude();
        }
    });
}

/// Whether all founders are members and vote, and the shards are served.
fn is_formed(world: &World) -> bool {
    let votes = |slot: &Arc<Slot>| {
        let Some(group) = slot.running().and_then(|running| running.context.control.group()) else { return false };
        group.status().voters.len() >= FOUNDERS
    };
    world.slots.iter().take(FOUNDERS).all(votes)
        && world.history.lock().machines.control.shards().all(|shard| shard.initialized)
}

/// The nodes that are members by the log, if each of them runs and nothing is under way.
pub(crate) fn members(world: &World) -> Option<Vec<Running>> {
    let mut ids = Vec::new();
    {
        let history = world.history.lock();
        let control = &history.machines.control;
        let mut replicas = control.shards().flat_map(|shard| &shard.replicas);
        let under_way = control.members().any(|member| member.leaving)
            || control.outbox().next().is_some()
            || !replicas.all(|replica| replica.state == ReplicaState::Voter);
        if under_way || control.members().count() < FOUNDERS {
            return None;
        }
        ids.extend(control.members().map(|member| member.node.node.0));
    }
    let wanted = world.slots.iter().filter(|slot| slot.wanted.load(Ordering::Relaxed));
    let running: Vec<Running> = wanted.map(|slot| slot.running()).collect::<Option<_>>()?;
    let fits = running.len() == ids.len() && running.iter().all(|running| ids.contains(&running.context.node.0));
    fits.then_some(running)
}

/// Whether everything has come to its end and every node knows it.
fn is_settled(world: &World) -> bool {
    // Damage that nothing was done about by then must still be found.
    let owed = world.leave.lock().is_some() || world.damages.lock().is_open();
    if !world.is_idle() || owed || !world.history.lock().is_done() {
        return false;
    }
    let Some(members) = members(world).filter(|_| is_healthy(world)) else { return false };
    let first = members[0].control();
    if members.iter().any(|running| running.control() != first) {
        return false;
    }
    let history = world.history.lock();
    members.iter().flat_map(Running::groups).all(|(id, group)| history.machines.last(id) == Some(group.applied()))
}

fn unsettled(world: &World) -> String {
    let positions: Vec<_> = world
        .slots
        .iter()
        .map(|slot| {
            let groups = slot.running()?.groups();
            let of = |(id, group): &(GroupId, quorate_raft::Group)| {
                let leads = if group.leadership().borrow().mine { " leads" } else { "" };
                format!("{id}: {}{leads}", group.applied())
            };
            Some(groups.iter().map(of).collect::<Vec<_>>())
        })
        .collect();
    let history = world.history.lock();
    let control = &history.machines.control;
    let members: Vec<_> = control.members().map(|member| (member.node.name.clone(), member.leaving)).collect();
    let shards: Vec<_> = control.shards().map(|shard| &shard.replicas).collect();
    let running = world.slots.iter().filter_map(|slot| slot.running());
    let cases: Vec<_> = running.map(|running| running.context.quarantine.cases()).collect();
    format!(
        "{} tasks have no end and the calls {:?} no answer {SETTLED_WITHIN} ms after the last fault; the nodes are at \
         {positions:?}; to leave: {:?}; members: {members:?}; shards: {shards:?}; out of service: {cases:?}; \
         damage: {}",
        history.audit.unfinished(),
        world.in_flight(),
        world.leave.lock(),
        world.damages.lock().told(),
    )
}

/// Looks at the nodes after each step.
#[derive(Default)]
struct Watch {
    /// Where each replica of a node was seen last, with its state hash.
    seen: BTreeMap<(usize, GroupId), (u64, u64)>,
    failed: bool,
}

impl Watch {
    fn goes_on(&self, world: &World) -> bool {
        !self.failed && world.history.lock().is_clean()
    }

    fn step(&mut self, sim: &mut Sim<'_>, world: &World, step: u64) {
        STEPS.store(step, Ordering::Relaxed);
        world.history.lock().step = step;
        if let Err(error) = sim.step() {
            self.failed = true;
            world.with_history(|history| history.violation(format!("hosts: one failed: {error}")));
            return;
        }
        world.with_history(|history| {
            for (node, slot) in world.slots.iter().enumerate() {
                let Some(running) = slot.running() else { continue };
                look_at_damage(world, history, node, &running);
                history.leads_on(node, &running);
                self.compare_hashes(world, history, node, &running);
            }
        });
        if step.is_multiple_of(CHECK_EVERY) {
            self.check(world);
        }
    }

    /// A replica has at each position the state that the log makes, unless its state was made another one.
    fn compare_hashes(&mut self, world: &World, history: &mut History, node: usize, running: &Running) {
        for (id, group) in running.groups() {
            // The machine of control is asked itself; that of a shard, as it was at the end of its last batch.
            let of_control = || Some(running.control()).map(|(position, hash)| (position.0, hash));
            let now = if id == GroupId::CONTROL { of_control() } else { group.hash() };
            let Some(now) = now.filter(|now| self.seen.get(&(node, id)) != Some(now)) else { continue };
            if !world.damages.lock().is_diverged(id, group.replica()) {
                self.seen.insert((node, id), now);
                history.reached(node, id, now.0, now.1);
            }
        }
    }

    fn check(&self, world: &World) {
        let mut wrong = Vec::new();
        for slot in &world.slots {
            if slot.died.load(Ordering::Relaxed) {
                continue;
            }
            if let Some(running) = slot.running() {
                check_node(world, slot, &running, &mut wrong);
            }
        }
        world.with_history(|history| {
            history.note(wrong);
            history.check();
        });
    }
}

/// A replica that runs has what it promised; one that was taken out of service was damaged.
fn look_at_damage(world: &World, history: &mut History, node: usize, running: &Running) {
    for (id, group) in running.groups() {
        let wrong = world.damages.lock().unnoticed(node, id, group.replica());
        history.note(wrong);
        let back = world.damages.lock().in_service(id, group.replica());
        if back {
            history.look_again(world);
        }
    }
    for (group, case) in running.context.quarantine.cases() {
        if let Some(replica) = case.replica {
            damage::found(world, node, group, replica);
        }
        let wrong = world.damages.lock().out_of_service(node, group, case.replica, &case.reason);
        history.note(wrong);
        if case.stage == Stage::Halted {
            history.violation(format!("halted: group {group} on node-{}: {}", node + 1, case.reason));
        }
    }
}

/// Asks a node's machines whether they contradict themselves, and compares its rows with those that the log makes.
fn check_node(world: &World, slot: &Slot, running: &Running, wrong: &mut Vec<String>) {
    let name = host(slot.node);
    if let Err(found) = running.context.control.read(|control| control.check()) {
        wrong.push(format!("self-check: control on {name} contradicts itself: {}", found.join("; ")));
    }
    let mut shards = running.memory.check();
    for (id, group) in running.groups() {
        let damaged = matches!(group.stopped().now_or_never(), Some(Stop::Damaged(_)));
        let stopped = group.stopped().now_or_never().is_some() && !damaged;
        if stopped && !*running.removed.borrow() && !slot.is_full() {
            wrong.push(format!("running groups: group {id} has stopped on {name}"));
        }
        if damaged || world.damages.lock().is_diverged(id, group.replica()) {
            continue;
        }
        if let Some(found) = shards.remove(&ShardId(id.0)).filter(|found| !found.is_empty()) {
            wrong.push(format!("self-check: {id} on {name} contradicts itself: {}", found.join("; ")));
        }
        let applied = group.applied();
        let history = world.history.lock();
        let compared = slot.states().written(id, |rows| history.machines.compare_rows(slot.node, id, applied, rows));
        if let Some((position, found)) = compared
            && position == Some(applied)
        {
            wrong.extend(found);
        }
    }
}

/// The last step that was begun.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// The step that is under way, for the lines of the log.
pub(crate) fn current_step() -> u64 {
    STEPS.load(Ordering::Relaxed)
}

/// Ends the process when the simulation hangs: what started it takes that for a violation.
fn watch_progress() {
    std::thread::spawn(|| {
        let mut last = u64::MAX;
        loop {
            std::thread::sleep(HANG);
            let now = current_step();
            if now == last {
                eprintln!("the simulation hangs in step {now}");
                std::process::exit(3);
            }
            last = now;
        }
    });
}

/// Every panic is a find, also one that somebody catches.
fn record_panics() -> Arc<Mutex<Vec<String>>> {
    let panics = Arc::new(Mutex::new(Vec::new()));
    let seen = panics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("{panic}");
        seen.lock().push(panic.to_string());
    }));
    panics
}
