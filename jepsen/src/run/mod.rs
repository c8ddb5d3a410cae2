//! One run: a cluster, a load, faults, and the verdict.
//!
//! ```text
//! start the cluster - prepare - load ............................................ final reads - hashes - stop - check
//!                               calm - faults ........... heal - calm
//!                                                            healthy? equal?
//! ```
//!
//! The load goes on a little after the last fault has ended, so that it shows how soon writes succeed again; how soon the
//! cluster is healthy and its replicas are equal is measured from then on too. A failure of the harness makes the run void
//! and never a verdict on the cluster; what was recorded until then is judged all the same.
//!
//! What was asked for, how far the run came and what the harness itself saw are written into the history. So the verdict is a
//! function of that file alone, and `check` gives it again.

mod hashes;
mod members;
mod report;
mod witness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub use report::{RunReport, Struck, kinds, struck};

#[cfg(test)]
pub(crate) use report::tests::sample;

use crate::check::{self, Outcome};
use crate::cluster::{Cluster, ClusterConfig, DiskKind, Healing, is_of_nodes};
use crate::event::{Asked, Fault, Micros, Moment, Note, Phase, Stage, Verdict};
use crate::history::{Dialect, History, Recorder};
use crate::nemesis::{self, NemesisContext, Pace, Report};
use crate::plot;
use crate::workload::{self, Probe, WorkContext, Workload};

/// The load runs alone for so long before the first fault, and after the last.
const CALM: Duration = Duration::from_secs(2);
/// How long a nemesis may take to end its faults. One start of a node alone may take a minute, and a strike may make several.
const NEMESIS_ENDS: Duration = Duration::from_secs(300);
/// How long clients may take to end their last operation.
const LOAD_ENDS: Duration = Duration::from_secs(60);
/// How long the cluster may take to be healthy after all faults have ended.
const HEALTHY: Duration = Duration::from_secs(120);
/// How long replicas are asked after the heal whether they are equal: longer than any promise gives them.
const EQUAL: Duration = Duration::from_secs(65);
/// How long the final reads may take.
const FINAL: Duration = Duration::from_secs(180);
/// The share of the last two that a run with a planted bug is given. What the bug breaks may never be whole again, and
/// nothing is learned by waiting for it; but data may have to move, and a queue be waited for that never comes to rest.
const WITH_BUG: u32 = 2;
/// The size of a node's disk where it is a loop device.
const DISK_MIB: u64 = 768;

/// What to run.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// A name of [`workload::NAMES`].
    pub workload: String,
    /// Names of [`nemesis::NAMES`], perhaps with an argument; empty: no faults.
    pub nemeses: Vec<String>,
    /// How long faults go on.
    pub time_limit: Duration,
    /// What everything random follows from.
    pub seed: u64,
    /// How many nodes the cluster begins with.
    pub nodes: usize,
    /// The binary of the nodes.
    pub binary: PathBuf,
    /// The program that can end at a failpoint, if there is one.
    pub failpoints: Option<PathBuf>,
    /// A bug that the binary is to have; it must be one that has them.
    pub planted: Option<String>,
    /// Operations a second that the load aims at.
    pub rate: f64,
    /// Operations a second that must end well, else the run is void.
    pub floor: f64,
    /// How long faults last and how long it is calm between them.
    pub pace: Pace,
    /// Where to put the history, the plots and the logs. Made if it is not there.
    pub directory: PathBuf,
    /// Further arguments of `node start`.
    pub arguments: Vec<String>,
    /// Whether to keep the nodes' data beside the history.
    pub keep: bool,
}

/// Where nemeses and the run itself tell what they saw.
struct Watch {
    recorder: Recorder,
}

impl Report for Watch {
    fn fault(&self, fault: Fault) {
        tracing::info!(nemesis = fault.nemesis, kind = fault.kind, injection = ?fault.injection, detail = fault.detail, "fault");
        self.recorder.fault(fault);
    }

    fn violation(&self, what: String) {
        tracing::error!(what, "violation");
        self.recorder.note(&Note::Violation { what, time: self.recorder.now() });
    }

    fn void(&self, why: String) {
        tracing::error!(why, "the run is void");
        self.recorder.note(&Note::Void { why, time: self.recorder.now() });
    }

    fn moment(&self, nemesis: &str, moment: Moment, time: Micros) {
        self.recorder.note(&Note::Moment { nemesis: nemesis.to_owned(), moment, time });
    }
}

impl Watch {
    fn reached(&self, stage: Stage) {
        tracing::info!(?stage, "reached");
        self.recorder.note(&Note::Reached { stage, time: self.recorder.now() });
    }

    /// What went wrong under attack: nodes that do not do what they must break a promise; everything else is the harness.
    fn failed(&self, error: &anyhow::Error) {
        if is_of_nodes(error) { self.violation(format!("{error:#}")) } else { self.void(format!("harness: {error:#}")) }
    }

    fn healed(&self, healing: Healing) {
        for (node, refusal) in healing.replaced {
            tracing::warn!(node, refusal, "a damaged node refused to start and was replaced by hand");
            self.recorder.note(&Note::Replaced { node, refusal, time: self.recorder.now() });
        }
        healing.refused.into_iter().for_each(|what| self.violation(what));
    }
}

/// Checks what can be checked before anything is started.
///
/// # Errors
/// If a name is not known or a number is out of its range.
pub fn validate(config: &RunConfig) -> Result<()> {
    ensure!(
        workload::by_name(&config.workload).is_some(),
        "{:?} is no workload: `quorate-jepsen list` names them",
        config.workload
    );
    ensure!((1..=9).contains(&config.nodes), "--nodes is between 1 and 9");
    ensure!(config.rate.is_finite() && config.rate > 0.0, "--rate is a number above 0");
    ensure!(config.floor.is_finite() && config.floor >= 0.0, "--floor is a number from 0");
    for name in &config.nemeses {
        ensure!(
            nemesis::by_name(name, config.seed).is_some(),
            "{name:?} is no nemesis: `quorate-jepsen list` names them"
        );
        let needs = nemesis::needs(name).unwrap_or_default();
        let least = needs.nodes.max(1);
        ensure!(
            !needs.failpoints || config.failpoints.is_some(),
            "the nemesis {name} needs a program that can end at a failpoint: build quorate-planted or give --failpoints"
        );
        ensure!(config.nodes >= least, "the nemesis {name} needs at least {least} nodes: give --nodes {least}");
    }
    ensure!(config.binary.is_file(), "{} is no binary: give --binary", config.binary.display());
    if let Some(program) = &config.failpoints {
        ensure!(program.is_file(), "{} is no binary: give --failpoints", program.display());
    }
    Ok(())
}

/// Runs it. All that it made on the machine is removed at the end, but for the files in its directory.
///
/// # Errors
/// If nothing could be recorded. Every other failure makes the run void.
pub async fn run(config: &RunConfig, interrupted: CancellationToken) -> Result<RunReport> {
    fs_err::create_dir_all(&config.directory)?;
    let directory = fs_err::canonicalize(&config.directory)?;
    let history_path = directory.join("history.jsonl");
    let recorder = Recorder::create(&history_path)?;
    recorder.note(&Note::Asked(asked(config)));
    let began = Instant::now();
    let watch = Arc::new(Watch { recorder: recorder.clone() });
    match start(config, &directory).await {
        Ok(cluster) => {
            let cluster = Arc::new(cluster);
            let stop = CancellationToken::new();
            let witness = tokio::spawn(witness::watch(directory.clone(), recorder.clone(), stop.clone()));
            if let Err(error) = attack(config, &cluster, &recorder, &watch, began, &interrupted).await {
                watch.failed(&error);
            }
            stop.cancel();
            if let Err(error) = witness.await.map_err(anyhow::Error::from).flatten() {
                watch.void(format!("harness: watching the machine: {error:#}"));
            }
            look_at_nodes(&cluster, &watch);
            if let Err(error) = if config.keep { keep(&cluster, &directory) } else { Ok(()) } {
                watch.void(format!("harness: keeping the data of the nodes: {error:#}"));
            }
            if let Err(error) = cluster.stop().await {
                watch.void(format!("harness: removing the cluster: {error:#}"));
            }
        }
        // Nothing has been attacked yet.
        Err(error) => watch.void(format!("harness: starting the cluster: {error:#}")),
    }
    let mut report = judge(config, recorder.finish()?, &directory).await?;
    if let Err(error) = fs_err::write(directory.join("report.json"), serde_json::to_vec_pretty(&report)?) {
        report.unproved(format!("harness: writing the report: {error:#}"));
    }
    Ok(report)
}

/// What the history says of its run.
fn asked(config: &RunConfig) -> Asked {
    Asked {
        workload: config.workload.clone(),
        parts: workload::parts(&config.workload),
        nemeses: config.nemeses.clone(),
        nodes: config.nodes,
        seed: config.seed,
        seconds: config.time_limit.as_secs_f64(),
        rate: config.rate,
        floor: config.floor * workload::share_of(&config.workload, config.rate),
        planted: config.planted.clone(),
    }
}

async fn start(config: &RunConfig, directory: &Path) -> Result<Cluster> {
    let needs: Vec<_> = config.nemeses.iter().filter_map(|name| nemesis::needs(name)).collect();
    let disk =
        if needs.iter().any(|needs| needs.loop_disk) { DiskKind::Loop { mib: DISK_MIB } } else { DiskKind::Folder };
    Cluster::start(ClusterConfig {
        nodes: config.nodes,
        binary: config.binary.clone(),
        directory: directory.to_owned(),
        disk,
        failpoints: config.failpoints.clone(),
        planted: config.planted.clone(),
        faketime: needs.iter().any(|needs| needs.faketime),
        arguments: config.arguments.clone(),
    })
    .await
}

/// Load and faults, then calm and the final reads.
async fn attack(
    config: &RunConfig,
    cluster: &Arc<Cluster>,
    recorder: &Recorder,
    watch: &Arc<Watch>,
    began: Instant,
    interrupted: &CancellationToken,
) -> Result<()> {
    let workload: Arc<dyn Workload> = workload::by_name(&config.workload).context("a workload of that name")?.into();
    let stop_load = CancellationToken::new();
    let ctx = WorkContext::new(cluster.clone(), recorder.clone(), stop_load.clone(), config.seed, config.rate)?;
    // What consists of several loads labels them itself.
    let label = |ctx: WorkContext| match workload::parts(&config.workload)[..] {
        [part] => ctx.labelled(part),
        _ => ctx,
    };
    let ctx = label(ctx);
    let probe = Probe::default();
    // Nothing has been attacked yet, so whatever fails here is no verdict: only its words are kept.
    workload.prepare(&ctx).await.map_err(|error| anyhow!("preparing the workload: {error:#}"))?;
    probe.prepare(&ctx).await.map_err(|error| anyhow!("preparing the probes: {error:#}"))?;
    members::record(cluster, recorder).await;
    cluster.record_changes(recorder.clone());
    let groups = hashes::all_groups(cluster).await;
    watch.reached(Stage::Load);
    let mut load = tokio::spawn({
        let (workload, probe, ctx) = (workload.clone(), probe.clone(), ctx.clone());
        async move { tokio::join!(workload.run(&ctx), probe.run(&ctx)).0 }
    });
    tokio::select! {
        () = tokio::time::sleep(CALM) => {}
        ended = &mut load => bail!("the load ended early: {ended:?}"),
    }
    let faults = strike(config, cluster, watch, began, interrupted).await;
    watch.healed(nemesis::heal(cluster).await.context("healing the cluster")?);
    watch.reached(Stage::Healed);
    let ((), (), ended) = tokio::join!(
        recover(cluster, watch, patience(config, HEALTHY)),
        hashes::record_catching_up(cluster, recorder, &groups, patience(config, EQUAL)),
        calm(load, &stop_load, watch)
    );
    ended?;
    faults?;
    look(&label(ctx.renewed()?), &*workload, &probe, watch, patience(config, FINAL)).await?;
    if hashes::record(cluster, recorder).await {
        // What one says that is behind says nothing, and that it is behind was just told.
        members::record(cluster, recorder).await;
    }
    if interrupted.is_cancelled() {
        watch.void("it was interrupted".into());
    }
    Ok(())
}

/// Reads what is there in the end.
async fn look(ctx: &WorkContext, workload: &dyn Workload, probe: &Probe, watch: &Watch, limit: Duration) -> Result<()> {
    watch.reached(Stage::Finals);
    timeout(limit, workload.finish(ctx)).await.context("the final reads do not end")??;
    timeout(limit, probe.finish(ctx)).await.context("the final reads of the probes do not end")?;
    watch.reached(Stage::AtRest);
    Ok(())
}

/// How long something may take.
fn patience(config: &RunConfig, usual: Duration) -> Duration {
    if config.planted.is_some() { usual / WITH_BUG } else { usual }
}

/// Waits until the cluster is healthy, while the load goes on.
async fn recover(cluster: &Cluster, watch: &Watch, limit: Duration) {
    match cluster.wait_healthy(limit).await {
        Ok(_) => watch.reached(Stage::Healthy),
        Err(error) => {
            watch.violation(format!("the cluster is not healthy {limit:?} after all faults ended: {error:#}"));
        }
    }
}

/// Lets the load go on for a little, and ends it.
async fn calm(load: JoinHandle<Result<()>>, stop: &CancellationToken, watch: &Watch) -> Result<()> {
    tokio::time::sleep(CALM).await;
    stop.cancel();
    timeout(LOAD_ENDS, load).await.context("the load does not end")???;
    watch.reached(Stage::LoadEnded);
    Ok(())
}

/// Lets the nemeses strike for the time limit, and waits until they have ended their faults.
async fn strike(
    config: &RunConfig,
    cluster: &Arc<Cluster>,
    watch: &Arc<Watch>,
    began: Instant,
    interrupted: &CancellationToken,
) -> Result<()> {
    let stop = CancellationToken::new();
    let mut striking = JoinSet::new();
    for (ordinal, name) in config.nemeses.iter().enumerate() {
        let seed = config.seed.wrapping_add(ordinal as u64 * 1_000_003);
        let mut nemesis = nemesis::by_name(name, seed).with_context(|| format!("a nemesis called {name}"))?;
        let ctx = NemesisContext {
            cluster: cluster.clone(),
            stop: stop.clone(),
            began,
            report: watch.clone(),
            pace: config.pace.clone(),
        };
        let name = name.clone();
        striking.spawn(async move { nemesis.run(&ctx).await.with_context(|| format!("the nemesis {name}")) });
    }
    let end = Instant::now() + config.time_limit;
    let idle = striking.is_empty();
    let mut result = Ok(());
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(end) => break,
            () = interrupted.cancelled() => break,
            ended = striking.join_next(), if !striking.is_empty() => {
                // One that has done all it has to do ends by itself.
                if let Some(Ok(Err(error))) = ended {
                    result = Err(error);
                    break;
                }
                if !idle && striking.is_empty() {
                    break;
                }
            }
        }
    }
    stop.cancel();
    let ending = async {
        while let Some(ended) = striking.join_next().await {
            ended??;
        }
        Ok(())
    };
    let ended = timeout(NEMESIS_ENDS, ending).await.context("a nemesis does not end its faults")?;
    result.and(ended)
}

/// Copies the nodes' data to where it outlives the cluster.
fn keep(cluster: &Cluster, directory: &Path) -> Result<()> {
    for node in 0..cluster.size() {
        let to = directory.join("kept").join(format!("node-{node}"));
        fs_err::create_dir_all(&to)?;
        let copied = std::process::Command::new("cp").arg("-a").arg(cluster.data_dir(node)).arg(&to).status()?;
        ensure!(copied.success(), "the data of node {node} cannot be copied to {}", to.display());
    }
    Ok(())
}

/// A node that ends or panics is a violation, whatever it did to the clients, and so is a replica that is given up without
/// damage.
fn look_at_nodes(cluster: &Cluster, watch: &Watch) {
    cluster.ended_by_themselves().into_iter().for_each(|what| watch.violation(what));
    nemesis::undue_quarantines(cluster).into_iter().for_each(|what| watch.violation(what));
    for node in 0..cluster.size() {
        let log = match fs_err::read(cluster.log_path(node)) {
            Ok(log) => log,
            Err(error) => {
                watch.void(format!("harness: what node {node} said cannot be read: {error}"));
                continue;
            }
        };
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("panicked at")) {
            let next = lines.get(at + 1).copied().unwrap_or_default();
            watch.violation(format!("node {node} panicked: {} {}", line.trim(), next.trim()));
        }
    }
}

/// What the run comes to: what its history says. That stands before anything is written for readers: where that fails, the
/// run proves nothing, and what was found stays found.
async fn judge(config: &RunConfig, history: History, directory: &Path) -> Result<RunReport> {
    let mut report = blank(config, &history, directory);
    let history = Arc::new(history);
    let judged = history.clone();
    let (verdict, done) = tokio::task::spawn_blocking(move || (check::recorded(&judged), done(&judged))).await?;
    (report.operations, report.ok) = done;
    report.judge(verdict.clone());
    let title = format!("{} under {}, seed {}", config.workload, config.nemeses.join(", "), config.seed);
    let directory = directory.to_owned();
    let written = tokio::task::spawn_blocking(move || write(&directory, &history, &title, &verdict)).await;
    if let Err(error) = written.map_err(anyhow::Error::from).flatten() {
        report.unproved(format!("harness: writing the histories and the plot: {error:#}"));
    }
    Ok(report)
}

/// The report of a run that has not been judged yet.
fn blank(config: &RunConfig, history: &History, directory: &Path) -> RunReport {
    let (from, to) = history.load();
    RunReport {
        outcome: Outcome::Void,
        workload: config.workload.clone(),
        nemeses: config.nemeses.clone(),
        planted: config.planted.clone(),
        nodes: config.nodes,
        seed: config.seed,
        seconds: Duration::from_micros(to.saturating_sub(from)).as_secs_f64(),
        operations: 0,
        ok: 0,
        loads: loads(history),
        faults: struck(&history.faults),
        kinds: kinds(&history.faults),
        violations: Vec::new(),
        void: Vec::new(),
        counts: BTreeMap::new(),
        directory: directory.to_owned(),
    }
}

/// Writes what others read of a run: its history in the forms that they take, and the plot.
fn write(directory: &Path, history: &History, title: &str, verdict: &Verdict) -> Result<()> {
    history.write_edn(&directory.join("history.edn"), Dialect::Knossos)?;
    history.write_edn(&directory.join("history-elle.edn"), Dialect::Elle)?;
    history.write_objects(&directory.join("edn"))?;
    Ok(plot::write(directory, history, title, Some(verdict))?)
}

/// Operations of the load that ended, whatever their outcome, and those of them that took effect. Deliveries, effects,
/// probes and what is asked for at the end are checked too, and counted by the checkers: but nobody asked for them
/// under attack.
fn done(history: &History) -> (u64, u64) {
    check::done_by_load(history).fold((0, 0), |(all, ok), event| (all + 1, ok + u64::from(event.phase == Phase::Ok)))
}

/// Operations of the load that ended, by the part of it that asked for them.
fn loads(history: &History) -> BTreeMap<String, u64> {
    let mut loads = BTreeMap::new();
    for part in check::done_by_load(history).filter_map(|event| event.part) {
        *loads.entry(part.to_string()).or_default() += 1;
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Operation, Part};

    fn config(planted: Option<&str>) -> RunConfig {
        RunConfig {
            workload: "queue".into(),
            nemeses: Vec::new(),
            time_limit: CALM,
            seed: 1,
            nodes: 3,
            binary: PathBuf::new(),
            failpoints: None,
            planted: planted.map(str::to_owned),
            rate: 1.0,
            floor: 1.0,
            pace: Pace::default(),
            directory: PathBuf::new(),
            arguments: Vec::new(),
            keep: false,
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_swallows_no_violation() {
        let nowhere = Path::new("/dev/null/nowhere");
        let broken = || Note::Violation { what: "node 1 panicked".into(), time: 5 };
        for (notes, outcome) in [(Vec::new(), Outcome::Void), (vec![broken()], Outcome::Invalid)] {
            let history =
                History { notes: [vec![Note::Asked(asked(&config(None)))], notes].concat(), ..History::default() };
            let report = judge(&config(None), history, nowhere).await.expect("it was judged");
            assert_eq!((report.outcome, report.violations.len()), (outcome, usize::from(outcome == Outcome::Invalid)));
            assert!(report.void.iter().any(|why| why.contains("writing the histories")), "{:?}", report.void);
        }
    }

    #[test]
    fn what_a_planted_bug_has_broken_is_not_waited_for_as_long() {
        assert_eq!(patience(&config(None), HEALTHY), HEALTHY);
        assert!(patience(&config(Some("purge-ahead")), HEALTHY) < HEALTHY);
    }

    #[test]
    fn only_what_clients_of_the_load_asked_for_is_told_as_done() {
        let event =
            |time, phase, operation, part| Event { time, process: 1, phase, operation, part, node: None, error: None };
        let write = || Operation::Write { key: 1, value: 1 };
        let deliver = Operation::Deliver { value: 1, task: 1, token: "1.0".to_owned(), attempt: 1 };
        let load = Some(Part::Register);
        let history = History {
            events: vec![
                event(11, Phase::Invoke, write(), load),
                event(12, Phase::Ok, write(), load),
                event(13, Phase::Fail, write(), load),
                event(14, Phase::Info, write(), load),
                event(15, Phase::Ok, write(), Some(Part::Probe(1))),
                event(16, Phase::Ok, deliver, load),
                event(17, Phase::Ok, Operation::Effect { task: 1, token: "1.0".to_owned(), held: true }, load),
                event(21, Phase::Ok, write(), load),
            ],
            notes: [(Stage::Load, 10), (Stage::LoadEnded, 20)]
                .map(|(stage, time)| Note::Reached { stage, time })
                .to_vec(),
            ..History::default()
        };
        assert_eq!(done(&history), (3, 1));
        assert_eq!(loads(&history), BTreeMap::from([("register".to_owned(), 3)]));
    }
}
