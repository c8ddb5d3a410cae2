//! How a group is started: store, machine, log, then openraft with our settings, then the tasks around it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use openraft::{Config, Raft, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::apply::{Adapter, AdapterParts, Lease, LoadError};
use crate::checkpoints::Checkpoints;
use crate::followers::Followers;
use crate::group::{Leadership, Running, run_health, run_leadership};
use crate::groups::{GroupConfig, Inner, OpenError};
use crate::ids::{GroupId, ReplicaId};
use crate::log::{GroupLog, LogError};
use crate::machine::Machine;
use crate::purge::run_purge;
use crate::reads::{Read, run_reads};
use crate::timers::Timers;
use crate::transport::Networks;
use crate::types::LogId;

/// Entries of one append; the log's reader cuts at a megabyte before.
const MAX_PAYLOAD_ENTRIES: u64 = 1_024;
/// Entries that are written at once.
const MAX_APPEND_ENTRIES: u64 = 4_096;
/// A follower that is further behind gets a snapshot.
const LAG_THRESHOLD: u64 = 50_000;
/// The patience with a snapshot that does not move. openraft's default of 200 ms never ends.
const INSTALL_SNAPSHOT_TIMEOUT_MS: u64 = 60_000;

/// Starts a group and enters it into the directory. Must run on Raft's runtime. A replica that turns out to be damaged is
/// quarantined durably before this returns.
pub(crate) async fn start(
    inner: &Inner,
    group: GroupId,
    replica: ReplicaId,
    machine: Box<dyn Machine>,
    config: GroupConfig,
) -> Result<Arc<Running>, OpenError> {
    let error = match bring_up(inner, group, replica, machine, config).await {
        Ok(running) => return Ok(running),
        Err(error) => error,
    };
    if let OpenError::Damaged { reason, .. } = &error {
        tracing::error!(%group, replica, reason, "a replica is damaged and quarantined");
        inner.log.quarantine(group, replica, reason).await?;
    }
    Err(error)
}

async fn bring_up(
    inner: &Inner,
    group: GroupId,
    replica: ReplicaId,
    machine: Box<dyn Machine>,
    config: GroupConfig,
) -> Result<Arc<Running>, OpenError> {
    let timers = config.timers.unwrap_or(inner.config.timers);
    let settings = Arc::new(settings(group, timers, inner.config.purge_tail)?);
    let stateless = !inner.states.holds(group);
    let restarted = inner.log.knows(group);
    let log = open_log(inner, group, replica).await?;
    let reader = log.reader();
    if stateless && reader.last().is_some() {
        // Where the log does not reach back far enough for that, the replica is damaged, and found to be so below.
        tracing::warn!(%group, replica, "the state database is gone: it is made anew from the log and the peers");
    }
    let health = log.health();
    let (lease, released) = oneshot::channel();
    let (adapter, checkpoints) = open_state(inner, group, replica, machine, &log, Arc::new(lease)).await?;
    let hurry = Arc::new(AtomicBool::new(false));
    let followers = Arc::new(Followers::default());
    let networks = Networks {
        group,
        replica,
        links: inner.links.clone(),
        snapshot_bytes_per_s: inner.config.snapshot_bytes_per_s,
        hurry: hurry.clone(),
        checkpoints: checkpoints.clone(),
        followers: followers.clone(),
    };
    // What it has answered in its last life, it does not know: it keeps what it may have promised there (`followers`).
    let rests_until = restarted.then(|| Instant::now() + timers.lease());
    let raft = Raft::build(replica, settings, networks, log, adapter).await;
    let raft = raft.map_err(|error| match health.found() {
        // What it read on the way was damaged.
        Some(reason) => OpenError::Damaged { group, replica, reason },
        None => OpenError::Unusable { group, reason: error.to_string() },
    })?;
    let applied = checkpoints.applied.clone();
    applied.grown_bytes.store(reader.bytes(), Ordering::Relaxed);
    applied.running.store(true, Ordering::Release);
    let (reads, asked) = mpsc::unbounded_channel();
    let running = Arc::new(Running {
        id: group,
        replica,
        raft,
        applied,
        checkpoints,
        log: reader,
        states: inner.states.clone(),
        links: inner.links.clone(),
        timers,
        blocking: inner.blocking,
        leadership: watch::Sender::new(Leadership::default()),
        reads,
        hurry,
        followers,
        rests_until,
        receiving: tokio::sync::Mutex::default(),
        health,
        stop: CancellationToken::new(),
        core_ended: CancellationToken::new(),
        outcome: OnceLock::new(),
        ended: CancellationToken::new(),
        released: Mutex::new(Some(released)),
    });
    launch(inner, &running, asked);
    Ok(running)
}

/// Opens the state of a replica and holds it against its log.
async fn open_state(
    inner: &Inner,
    group: GroupId,
    replica: ReplicaId,
    machine: Box<dyn Machine>,
    log: &GroupLog,
    lease: Lease,
) -> Result<(Adapter, Arc<Checkpoints>), OpenError> {
    let damaged = |reason: String| OpenError::Damaged { group, replica, reason };
    let unusable = |reason: String| OpenError::Unusable { group, reason };
    let parts = AdapterParts {
        group,
        replica,
        machine,
        states: inner.states.clone(),
        dirs: inner.dirs.clone(),
        blocking: inner.blocking,
        limit_bytes: inner.config.snapshot_log_bytes,
        hash_every: inner.config.hash_every,
        log: inner.log.clone(),
        reader: log.reader(),
        health: log.health(),
        observer: inner.config.observer.clone(),
        lease,
    };
    let (adapter, checkpoints) = Adapter::open(parts).await.map_err(|error| match error {
        LoadError::Damaged(reason) => damaged(reason),
        LoadError::Unusable(reason) => unusable(reason),
    })?;
    fits(log, adapter.reached()).map_err(damaged)?;
    // openraft purges a log that ends below the state up to the state.
    let hole = adapter.reached().map(|at| at.index).filter(|reached| log.reader().last() < Some(*reached));
    let recovered = checkpoints.recover(hole.max(log.reader().purged()), adapter.reached()).await;
    recovered.map_err(|error| unusable(error.to_string()))?;
    Ok((adapter, checkpoints))
}

/// Lets the group run, with the tasks around it. Peers may reach it from here on; it may campaign only after that.
fn launch(inner: &Inner, running: &Arc<Running>, asked: mpsc::UnboundedReceiver<Read>) {
    inner.directory.insert(running.clone());
    running.raft.runtime_config().elect(running.rests_until.is_none());
    running.raft.run();
    if let Some(until) = running.rests_until {
        let raft = running.raft.clone();
        spawn(running, async move {
            sleep_until(until).await;
            raft.runtime_config().elect(true);
        });
    }
    spawn(running, run_leadership(running.clone()));
    spawn(running, run_reads(running.clone(), asked));
    spawn(running, run_purge(running.clone()));
    tokio::spawn(run_health(running.clone(), inner.log.clone(), inner.directory.clone()));
}

/// Opens the log of a replica. A new one begins without any state: what an earlier replica may have left belongs to nobody.
async fn open_log(inner: &Inner, group: GroupId, replica: ReplicaId) -> Result<GroupLog, OpenError> {
    if !inner.log.knows(group) {
        inner.destroy_state(group).await?;
    }
    inner.log.open_group(group, replica).await.map_err(|error| match error {
        LogError::Quarantined { reason, .. } => OpenError::Damaged { group, replica, reason },
        damage if damage.is_damage() => OpenError::Damaged { group, replica, reason: damage.to_string() },
        other => other.into(),
    })
}

/// Whether the state continues where the log was purged, and tells the same story. A state that is ahead of the log is what
/// a crash leaves that fell between the two steps of a snapshot.
fn fits(log: &GroupLog, reached: Option<LogId>) -> Result<(), String> {
    let position = reached.map(|at| at.index);
    if let Some(purged) = log.reader().purged().filter(|purged| position < Some(*purged)) {
        // openraft notices this only where it knows of a later commit; else it would go on with an empty machine.
        return Err(format!("its log is purged up to position {purged} and its state reaches only to {position:?}"));
    }
    let Some(reached) = reached else { return Ok(()) };
    let found = log.identity(reached.index).map_err(|error| error.to_string())?;
    match found.filter(|found| *found != reached) {
        Some(found) => Err(format!("its state was made by entry {reached} but its log has {found} there")),
        None => Ok(()),
    }
}

fn spawn(running: &Running, task: impl Future<Output = ()> + Send + 'static) {
    let stop = running.stop.clone();
    tokio::spawn(async move { stop.run_until_cancelled(task).await });
}

fn settings(group: GroupId, timers: Timers, purge_tail: u64) -> Result<Config, OpenError> {
    if !timers.is_sane() {
        let reason =
            format!("{timers:?} of group {group}: the election times must be at least twice the heartbeat and apart");
        return Err(OpenError::Settings { reason });
    }
    let Timers { heartbeat_ms, election_min_ms, election_max_ms } = timers;
    // Under load appends are heartbeat enough; two intervals and a tick must still fit into the least election time.
    let quiet = 2 * heartbeat_ms + heartbeat_ms / 4 + 1 < election_min_ms;
    let config = Config {
        cluster_name: group.to_string(),
        heartbeat_interval: heartbeat_ms,
        heartbeat_min_interval: quiet.then_some(heartbeat_ms),
        election_timeout_min: election_min_ms,
        election_timeout_max: election_max_ms,
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        quorum_loss_probe_interval: Some(2 * election_max_ms),
        max_payload_entries: MAX_PAYLOAD_ENTRIES,
        max_append_entries: Some(MAX_APPEND_ENTRIES),
        replication_lag_threshold: LAG_THRESHOLD,
        install_snapshot_timeout: INSTALL_SNAPSHOT_TIMEOUT_MS,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: purge_tail,
        purge_batch_size: 1,
        allow_log_reversion: None,
        ..Config::default()
    };
    config.validate().map_err(|error| OpenError::Settings { reason: format!("group {group}: {error}") })
}
