//! One seed: a cluster is formed, works under faults, and must come to rest when the faults end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use mad_turmoil::time::SimClocksGuard;
use parking_lot::Mutex;
use quorate_state::Position;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use turmoil::Sim;

use crate::clients::{AGENTS, agent_host, run_agent, run_clients};
use crate::nemesis::{LINK_LATENCY, Nemesis};
use crate::node;
use crate::report::Report;
use crate::world::{NODES, World, host};

/// The cluster must be formed by then.
const FORMED_WITHIN: u64 = 15_000;
/// Everything must be completed so long after the last fault.
const SETTLED_WITHIN: u64 = 40_000;
/// Every so many steps the machines are asked whether they contradict themselves.
const CHECK_EVERY: u64 = 500;
/// A simulation that makes no step for so long hangs.
const HANG: Duration = Duration::from_secs(60);

/// Runs a seed. Once in a process: the randomness of the process is set.
pub(crate) fn run(seed: u64, steps: u64) -> anyhow::Result<Report> {
    let scratch = tempfile::tempdir()?;
    let directory = scratch.path().to_owned();
    let panics = record_panics();
    watch_progress();
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    // A thread takes the keys of its hash maps once; those of this one are older than the seed.
    let simulation = std::thread::spawn(move || simulate(seed, steps, &directory, &panics));
    simulation.join().map_err(|_| anyhow::anyhow!("the simulation of seed {seed} ended by a panic"))
}

fn simulate(seed: u64, steps: u64, scratch: &Path, panics: &Mutex<Vec<String>>) -> Report {
    let _clocks = SimClocksGuard::init();
    let world = World::new(seed, scratch);
    let mut nemesis = Nemesis::new(seed);
    let mut sim = build(seed, &world);
    let outcome = catch_unwind(AssertUnwindSafe(|| drive(&mut sim, &world, &mut nemesis, steps)));
    if outcome.is_err() {
        world.history.lock().violation("the run ended by a panic");
    }
    for slot in &world.slots {
        *slot.context.lock() = None;
    }
    // The process ends after this; taking a stopped world apart would only find trouble of its own.
    std::mem::forget(sim);
    let mut history = world.history.lock();
    for panic in panics.lock().iter() {
        history.violation(format!("panic: {panic}"));
    }
    Report::new(seed, steps, &history, &nemesis)
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
    for node in 0..NODES {
        let world = world.clone();
        sim.host(host(node), move || node::run(world.clone(), node));
    }
    for agent in 0..AGENTS {
        let world = world.clone();
        sim.host(agent_host(agent), move || run_agent(world.clone(), agent));
    }
    let world = world.clone();
    sim.host("clients", move || run_clients(world.clone()));
    sim
}

fn drive(sim: &mut Sim<'_>, world: &World, nemesis: &mut Nemesis, steps: u64) {
    let mut watch = Watch::default();
    let mut formed = false;
    let mut step = 0;
    while step < steps && watch.goes_on(world) {
        step += 1;
        watch.step(sim, world, step);
        formed = formed || is_formed(world);
        if formed {
            nemesis.step(sim, world, step);
        } else if step == FORMED_WITHIN {
            world.history.lock().violation("the cluster is not formed");
        }
    }
    nemesis.heal(sim, world);
    world.closing.store(true, Ordering::Relaxed);
    let last = step + SETTLED_WITHIN;
    while watch.goes_on(world) && !is_settled(world) {
        step += 1;
        watch.step(sim, world, step);
        nemesis.bury(sim, world, step);
        nemesis.heal(sim, world);
        if step == last {
            let what = format!("liveness: {}", unsettled(world));
            world.history.lock().violation(what);
        }
    }
    watch.check(world);
    let mut history = world.history.lock();
    if history.is_clean() {
        history.conclude();
    }
}

/// Whether all nodes are members and vote.
fn is_formed(world: &World) -> bool {
    world.slots.iter().all(|slot| {
        let Some(group) = slot.running().and_then(|context| context.control.group()) else { return false };
        group.status().voters.len() == NODES
    })
}

/// Whether everything is completed and every node knows it.
fn is_settled(world: &World) -> bool {
    world.in_flight.load(Ordering::Relaxed) == 0 && world.history.lock().is_done() && {
        let positions: Vec<_> = world.slots.iter().map(|slot| position(slot)).collect();
        positions[0].is_some() && positions.iter().all(|position| *position == positions[0])
    }
}

fn position(slot: &crate::world::Slot) -> Option<(Position, u64)> {
    let context = slot.running()?;
    Some(context.control.read(|control| (control.last_position(), control.hash())))
}

fn unsettled(world: &World) -> String {
    let positions: Vec<_> = world.slots.iter().map(|slot| position(slot).map(|(position, _)| position.0)).collect();
    let leads: Vec<_> =
        world.slots.iter().map(|slot| slot.running().is_some_and(|context| context.control.leads())).collect();
    let unfinished = world.history.lock().audit.unfinished();
    let waiting = world.in_flight.load(Ordering::Relaxed);
    format!(
        "{unfinished} tasks are not completed and {waiting} enqueues not answered {SETTLED_WITHIN} ms after the last \
         fault; the nodes are at {positions:?}, leading: {leads:?}"
    )
}

/// Looks at the nodes after each step.
#[derive(Default)]
struct Watch {
    seen: [u64; NODES],
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
            world.history.lock().violation(format!("a host failed: {error}"));
            return;
        }
        for (node, slot) in world.slots.iter().enumerate() {
            let Some((position, hash)) = position(slot) else { continue };
            if position.0 != self.seen[node] {
                self.seen[node] = position.0;
                world.history.lock().reached(node, position, hash);
            }
        }
        if step.is_multiple_of(CHECK_EVERY) {
            self.check(world);
        }
    }

    fn check(&self, world: &World) {
        for (node, slot) in world.slots.iter().enumerate() {
            let Some(context) = slot.running() else { continue };
            if let Err(wrong) = context.control.read(|control| control.check()) {
                let wrong = wrong.join("; ");
                world.history.lock().violation(format!("control on node-{} contradicts itself: {wrong}", node + 1));
            }
            let stopped = context.control.group().is_some_and(|group| group.stopped().now_or_never().is_some());
            if stopped && !slot.died.load(Ordering::Relaxed) {
                world.history.lock().violation(format!("control has stopped on node-{}", node + 1));
            }
        }
    }
}

/// The last step that was begun.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Ends the process when the simulation hangs: what started it takes that for a violation.
fn watch_progress() {
    std::thread::spawn(|| {
        let mut last = u64::MAX;
        loop {
            std::thread::sleep(HANG);
            let now = STEPS.load(Ordering::Relaxed);
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
