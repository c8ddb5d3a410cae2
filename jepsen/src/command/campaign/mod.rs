//! `quorate-jepsen campaign`: the long list, in pieces of minutes.
//!
//! What is still to do follows from the ledger alone ([`plan`]), so a campaign may end at any time and go on at any
//! other. The next piece is always of the kind that is furthest from its goal. Every piece that was begun gets its
//! line, whatever became of it: but for those of a campaign that was interrupted or killed, which are begun anew.

mod plan;
mod simulation;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::piece::{self, Piece};
use super::planted::{self, BUGS, Programs};
use super::{BROKEN, Usage, VOID, beside};
use crate::cluster;
use crate::ledger::{Book, Entry, Kind, Ledger, now};
use plan::{Job, Plan};
pub(super) use plan::{done, goal};
use simulation::Simulation;

/// Runs for a planted bug.
const TRIES: u64 = 3;
/// Pieces of one kind that may fail one after the other before the kind is left alone.
const MOST_FAILURES: u64 = 3;

/// The long list, in pieces of minutes.
#[derive(Debug, Args)]
pub(super) struct Campaign {
    /// The ledger.
    #[arg(long, default_value = "jepsen/LEDGER.md")]
    ledger: PathBuf,
    /// Pieces to run; absent: until all is done.
    #[arg(long)]
    pieces: Option<u64>,
    /// After so many minutes no further piece is begun.
    #[arg(long)]
    minutes: Option<f64>,
    /// Only pieces of this kind: links, power, corruption, chaos, sim, planted, sim-planted.
    #[arg(long)]
    only: Option<Kind>,
    /// Pieces at once.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// What all seeds are counted from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The program of the nodes; absent: `quorate` beside this program.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// A program with planted bugs; absent: `quorate-planted` beside this program.
    #[arg(long)]
    planted: Option<PathBuf>,
    /// The simulation; absent: `quorate-sim` beside this program.
    #[arg(long)]
    sim: Option<PathBuf>,
    /// The simulation with planted bugs; absent: the simulation, which has them.
    #[arg(long)]
    sim_planted: Option<PathBuf>,
    /// The commit that is run, for the ledger.
    #[arg(long, default_value = "")]
    commit: String,
}

impl Campaign {
    pub(super) async fn execute(self, interrupted: CancellationToken) -> Result<ExitCode> {
        if self.only == Some(Kind::Soak) {
            return Err(Usage("a soak is no part of the campaign: `quorate-jepsen soak` runs one".into()).into());
        }
        let book = Book::open(&self.ledger)?;
        clear_up();
        let plan = self.plan(&interrupted).await?;
        let wanted = plan.kinds.clone();
        let limit = self.minutes.map(|minutes| Duration::from_secs_f64(minutes.max(0.0) * 60.0));
        let stop = interrupted.child_token();
        let mut flight = Flight {
            campaign: Arc::new(self),
            book,
            plan,
            until: limit.map(|limit| Instant::now() + limit),
            stop,
            flying: Vec::new(),
            running: JoinSet::new(),
            failures: BTreeMap::new(),
            begun: 0,
            broken: false,
            void: false,
        };
        let flown = flight.fly().await;
        // Whatever went wrong here, runs end by themselves and take with them what they made.
        let landed = flight.land().await;
        flown.and(landed)?;
        flight.look_at_stuck(&wanted)?;
        Ok(match (flight.broken, flight.void) {
            (true, _) => ExitCode::from(BROKEN),
            (false, true) => ExitCode::from(VOID),
            (false, false) => ExitCode::SUCCESS,
        })
    }

    /// What can be done with the programs that are there. Says what is left out.
    async fn plan(&self, interrupted: &CancellationToken) -> Result<Plan> {
        // What is not committed may be something else each time.
        let commit = Some(self.commit.clone()).filter(|commit| !commit.is_empty() && !commit.ends_with("-dirty"));
        let mut plan = Plan { base: self.seed, commit, ..Plan::default() };
        for kind in Kind::ALL.into_iter().filter(|kind| self.only.is_none_or(|only| only == *kind)) {
            let program = self.program(kind)?;
            if !program.is_file() {
                eprintln!("{kind}: left out, {} is not there", program.display());
                continue;
            }
            match kind {
                Kind::Planted => plan.bugs = self.programs()?.huntable(BUGS).iter().map(|bug| bug.name).collect(),
                Kind::SimPlanted => plan.sim_bugs = self.simulation(&program).bugs(interrupted).await?,
                _ => {}
            }
            plan.kinds.push(kind);
        }
        ensure!(!plan.kinds.is_empty(), "there is nothing that could be run: build the programs first");
        Ok(plan)
    }

    fn program(&self, kind: Kind) -> Result<PathBuf> {
        let (given, name) = match kind {
            Kind::Sim => (self.sim.as_ref(), "quorate-sim"),
            Kind::SimPlanted => (self.sim_planted.as_ref().or(self.sim.as_ref()), "quorate-sim"),
            Kind::Planted => (self.planted.as_ref(), "quorate-planted"),
            _ => (self.binary.as_ref(), "quorate"),
        };
        given.cloned().map_or_else(|| beside(name), Ok)
    }

    fn programs(&self) -> Result<Programs> {
        Programs::find(self.planted.as_deref(), self.binary.as_deref())
    }

    /// Pieces that run side by side leave it one core.
    fn simulation<'a>(&self, program: &'a Path) -> Simulation<'a> {
        Simulation { program, jobs: (self.jobs > 1).then_some(1) }
    }

    /// Runs a piece. One that ends without a verdict has a line too, so that its seed is not taken again.
    async fn perform(&self, job: &Job, in_vain: u64, interrupted: &CancellationToken) -> Entry {
        let began = Instant::now();
        let blank = self.blank(job);
        let entry = self.attempt(job, blank.clone(), in_vain, interrupted).await;
        let entry = entry.unwrap_or_else(|error| Entry { verdict: format!("void: {error:#}"), ..blank });
        let seconds = if entry.seconds > 0 { entry.seconds } else { began.elapsed().as_secs() };
        Entry { seconds, when: now(), ..entry }
    }

    /// The line of a piece of which nothing is known yet.
    fn blank(&self, job: &Job) -> Entry {
        Entry::blank(job.kind, job.piece.clone(), job.seed, &self.commit)
    }

    async fn attempt(&self, job: &Job, blank: Entry, in_vain: u64, interrupted: &CancellationToken) -> Result<Entry> {
        let program = self.program(job.kind)?;
        match job.kind {
            Kind::Sim => self.simulation(&program).seeds(blank, interrupted).await,
            Kind::SimPlanted => self.simulation(&program).hunt(blank, in_vain, interrupted).await,
            Kind::Planted => {
                let bug = planted::by_name(&job.piece).with_context(|| format!("{} is no planted bug", job.piece))?;
                let hunt = planted::hunt(bug, &self.programs()?, job.seed, TRIES, interrupted).await?;
                let verdict = hunt.verdict();
                Ok(Entry { seed: hunt.seed, operations: hunt.operations, faults: hunt.faults, verdict, ..blank })
            }
            _ => {
                let piece = plan::run_of(job).with_context(|| format!("{} is no run", job.kind))?;
                let ended = Piece { binary: Some(program), ..piece }.run(interrupted).await?;
                Ok(plan::entry_of(job, &self.commit, &ended.report))
            }
        }
    }
}

/// The planted bugs of a simulation.
///
/// # Errors
/// If it is not there, or does not say them.
pub(super) async fn sim_bugs(program: &Path, interrupted: &CancellationToken) -> Result<Vec<String>> {
    ensure!(program.is_file(), "{} is not there", program.display());
    Simulation { program, jobs: None }.bugs(interrupted).await
}

/// Removes what a campaign left that was killed. That it cannot is told, and no reason not to begin.
fn clear_up() {
    for removed in [cluster::clean(false), piece::remove_lost()] {
        match removed {
            Ok(removed) => removed.iter().for_each(|what| eprintln!("removed {what}")),
            Err(error) => eprintln!("what earlier runs left is not wholly removed: {error:#}"),
        }
    }
}

/// A campaign under way.
struct Flight {
    campaign: Arc<Campaign>,
    book: Book,
    plan: Plan,
    until: Option<Instant>,
    stop: CancellationToken,
    flying: Vec<Job>,
    running: JoinSet<(Job, Entry)>,
    failures: BTreeMap<Kind, u64>,
    begun: u64,
    broken: bool,
    void: bool,
}

impl Flight {
    async fn fly(&mut self) -> Result<()> {
        loop {
            let ledger = self.book.read()?;
            while self.has_room() {
                let Some(job) = self.plan.choose(&ledger, &self.flying) else { break };
                self.begin(job, &ledger);
            }
            let Some(ended) = self.running.join_next().await else { return Ok(()) };
            let (job, entry) = ended?;
            self.end(&job, &entry)?;
        }
    }

    fn has_room(&self) -> bool {
        self.running.len() < self.campaign.jobs.max(1)
            && self.campaign.pieces.is_none_or(|pieces| self.begun < pieces)
            && self.until.is_none_or(|until| Instant::now() < until)
            && !self.stop.is_cancelled()
    }

    fn begin(&mut self, job: Job, ledger: &Ledger) {
        self.begun += 1;
        self.flying.push(job.clone());
        let in_vain = plan::in_vain(ledger, job.kind, &job.piece);
        let (campaign, stop) = (self.campaign.clone(), self.stop.clone());
        self.running.spawn(async move {
            let entry = campaign.perform(&job, in_vain, &stop).await;
            (job, entry)
        });
    }

    /// Writes the line of a piece, and leaves its kind alone if that fails again and again.
    fn end(&mut self, job: &Job, entry: &Entry) -> Result<()> {
        self.flying.retain(|other| other != job);
        eprintln!(
            "{} {}: {} ({} operations, {} faults, {} s)",
            job.kind, entry.piece, entry.verdict, entry.operations, entry.faults, entry.seconds
        );
        if self.stop.is_cancelled() && !entry.counts() && !entry.is_broken() {
            // It was asked to end, and is begun anew by the next campaign.
            self.void = true;
            return Ok(());
        }
        self.book.append(entry)?;
        self.broken |= entry.is_broken();
        if entry.counts() {
            self.failures.remove(&job.kind);
            return Ok(());
        }
        self.void = true;
        let failed = self.failures.entry(job.kind).or_default();
        *failed += 1;
        if *failed >= MOST_FAILURES {
            eprintln!("{}: {failed} pieces one after the other did not count; it is left alone", job.kind);
            self.plan.kinds.retain(|kind| *kind != job.kind);
        }
        Ok(())
    }

    /// A kind that is not done and of which nothing is left to do stands still until something is changed. What holds
    /// it up may have been found by an earlier campaign, so that none of our own lines says it.
    fn look_at_stuck(&mut self, wanted: &[Kind]) -> Result<()> {
        let ledger = self.book.read()?;
        for kind in wanted.iter().filter(|kind| self.plan.is_stuck(&ledger, **kind)) {
            let broken = ledger.of(*kind).filter(|entry| entry.is_broken()).count();
            eprintln!(
                "{kind}: not done, and nothing of it is left to do at this commit; {broken} of its pieces are broken"
            );
            self.broken |= broken > 0;
            self.void = true;
        }
        Ok(())
    }

    /// Asks what still flies to end, waits for it and writes its lines.
    async fn land(&mut self) -> Result<()> {
        self.stop.cancel();
        let mut result = Ok(());
        while let Some(ended) = self.running.join_next().await {
            let written = ended.map_err(anyhow::Error::from).and_then(|(job, entry)| self.end(&job, &entry));
            result = result.and(written);
        }
        result
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::command::{Arguments, Command};

    fn campaign(words: &[&str]) -> Campaign {
        let words = ["quorate-jepsen", "campaign"].iter().chain(words);
        match Arguments::try_parse_from(words).unwrap().command {
            Command::Campaign(campaign) => campaign,
            other => unreachable!("{other:?}"),
        }
    }

    /// A simulation that says what a script prints.
    fn script(folder: &Path, lines: &str) -> String {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.join("sim");
        fs_err::write(&path, format!("#!/bin/sh\n{lines}\n")).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn the_planted_bugs_of_the_simulation_are_in_the_simulation() {
        let campaign = campaign(&["--sim", "/x/quorate-sim"]);
        assert_eq!(campaign.program(Kind::SimPlanted).unwrap(), PathBuf::from("/x/quorate-sim"));
    }

    #[tokio::test]
    async fn a_piece_without_a_report_has_a_line_and_three_of_them_end_its_kind() {
        let folder = tempfile::tempdir().unwrap();
        let (ledger, sim) = (folder.path().join("LEDGER.md"), script(folder.path(), "exit 3"));
        let path = ledger.display().to_string();
        let campaign = campaign(&["--ledger", &path, "--only", "sim", "--sim", &sim, "--jobs", "2"]);
        let code = campaign.execute(CancellationToken::new()).await.unwrap();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(VOID)));
        let entries = Ledger::read(&ledger).unwrap().entries;
        assert!((3..=4).contains(&entries.len()), "{entries:?}");
        assert!(entries.iter().all(|entry| entry.verdict.starts_with("void: it ended with")), "{entries:?}");
    }

    #[tokio::test]
    async fn failures_with_a_success_between_them_do_not_end_a_kind() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("LEDGER.md");
        // Every third call is one that counts.
        let calls = folder.path().join("calls").display().to_string();
        let lines = format!(
            "echo >>{calls}; [ $(($(wc -l <{calls}) % 3)) = 0 ] || exit 3; \
             echo '{{\"seeds\": 25, \"invalid\": [], \"violations\": {{}}}}'"
        );
        let (path, sim) = (ledger.display().to_string(), script(folder.path(), &lines));
        let campaign = campaign(&["--ledger", &path, "--only", "sim", "--sim", &sim, "--pieces", "9"]);
        campaign.execute(CancellationToken::new()).await.unwrap();
        let entries = Ledger::read(&ledger).unwrap().entries;
        let counted: Vec<bool> = entries.iter().map(Entry::counts).collect();
        assert_eq!(counted, [false, false, true].repeat(3));
    }

    #[tokio::test]
    async fn broken_seeds_that_are_passed_over_are_no_success() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("LEDGER.md");
        let sim = script(folder.path(), "exit 3");
        let path = ledger.display().to_string();
        let words = ["--ledger", &path, "--only", "sim", "--sim", &sim, "--commit", "abc1234"];
        // An earlier campaign has run all seeds of this commit, and found something in some.
        let entry = |piece: &str, verdict: &str| Entry {
            piece: piece.into(),
            verdict: verdict.into(),
            commit: "abc1234".into(),
            ..campaign(&words).blank(&Job { kind: Kind::Sim, piece: piece.into(), seed: 0 })
        };
        let book = Book::open(&ledger).unwrap();
        for (piece, verdict) in [("0..25", "valid"), ("25..50", "1 violations: x"), ("50..1000", "valid")] {
            book.append(&entry(piece, verdict)).unwrap();
        }
        drop(book);
        let code = |words: &[&str]| campaign(words).execute(CancellationToken::new());
        assert_eq!(format!("{:?}", code(&words).await.unwrap()), format!("{:?}", ExitCode::from(BROKEN)));
        assert_eq!(Ledger::read(&ledger).unwrap().entries.len(), 3, "nothing was begun");
        Book::open(&ledger).unwrap().append(&Entry { commit: "def".into(), ..entry("25..50", "valid") }).unwrap();
        assert_eq!(format!("{:?}", code(&words).await.unwrap()), format!("{:?}", ExitCode::SUCCESS));
    }

    #[tokio::test]
    async fn what_flies_is_waited_for_when_the_ledger_cannot_be_read_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = folder.path().join("LEDGER.md");
        let path = ledger.display().to_string();
        // The first seeds spoil the ledger; the second ones take until they are asked to end, and leave a trace of it.
        let trace = folder.path().join("trace");
        let lines = format!(
            "case \"$*\" in *'--seed 0 '*) echo '| x |' >>{path}; exit 3;; \
             *) trap 'echo ended >{trace}; exit 3' TERM; while :; do sleep 0.05; done;; esac",
            trace = trace.display()
        );
        let sim = script(folder.path(), &lines);
        let campaign = campaign(&["--ledger", &path, "--only", "sim", "--sim", &sim, "--jobs", "2"]);
        let error = campaign.execute(CancellationToken::new()).await.unwrap_err();
        assert!(format!("{error:#}").contains("it has 1 cells"), "{error:#}");
        assert_eq!(fs_err::read_to_string(trace).unwrap(), "ended\n");
    }
}
