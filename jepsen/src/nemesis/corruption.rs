//! Rot: a file of one node is damaged, and the node must notice and be whole again by itself.
//!
//! Where the node had in use what was hurt, its silence is a violation ([`Notice`]): after its start, or where only a
//! scrub reads it after a whole pass of that. Not all damage does harm: rows that were purged, the padding of a file, a
//! manifest that is one of a moment ago. What a node does not notice of such, and was not certain to notice, proves
//! nothing and is taken back, so that it does not add to the next. So a corruption is *installed* only if the node said
//! that it noticed and was whole within a minute.
//!
//! Files are damaged while the node is down, or while it runs: then only its scrub can notice.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::healing::{self, Healed, Noticed, SELF_HEALED, Since};
use super::{NemesisContext, Open, PATIENCE, Strike};
use crate::cluster::{CLASSES, Damage, Hold, Mark, Notice};
use crate::event::{Injection, WAS_WELL};

/// How long a node may take until its scrub has read everything once more: two passes over the states, of which the
/// first may have begun before.
const SCRUBBED: Duration = Duration::from_secs(90);

const NAME: &str = "corruption";
/// What is told of a node that was killed so that it can be damaged: no attack, but what it disturbs must not be held
/// against other faults.
const RESTART: &str = "a restart is wanted";
/// The argument for damage under a node that runs.
const RUNNING: &str = "running";
/// Of so many strikes that may take any file one takes it from a node that runs.
const ONE_RUNNING_IN: u32 = 4;

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    Any,
    /// Files of one class, of a node that is down.
    Class(&'static str),
    /// What a scrub reads, of a node that runs.
    Running,
}

/// Damages files.
pub(super) struct Corruption {
    aim: Aim,
}

impl Corruption {
    pub(super) fn new(argument: Option<&str>) -> Option<Corruption> {
        let aim = match argument {
            None => Aim::Any,
            Some(RUNNING) => Aim::Running,
            Some(class) => Aim::Class(CLASSES.iter().find(|(known, _)| *known == class)?.0),
        };
        Some(Corruption { aim })
    }
}

#[async_trait]
impl Strike for Corruption {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        match self.aim {
            Aim::Any if dice.random_ratio(1, ONE_RUNNING_IN) => strike_running(ctx, dice, length).await,
            Aim::Any => strike_down(ctx, None, dice, length).await,
            Aim::Class(class) => strike_down(ctx, Some(class), dice, length).await,
            Aim::Running => strike_running(ctx, dice, length).await,
        }
    }
}

/// Damages a file of a node that is down.
async fn strike_down(ctx: &NemesisContext, class: Option<&str>, dice: &mut StdRng, length: Duration) -> Result<()> {
    let Some(chosen) = Chosen::choose(ctx, dice).await else { return Ok(()) };
    let node = chosen.node;
    let mut open = ctx.begin(NAME, RESTART);
    ctx.cluster.kill(node).await?;
    let Some(damage) = ctx.cluster.damage(node, class, dice)? else {
        ctx.back(node, "a kill").await;
        open.end_seen(false, format!("node {node} was killed, and has no file of the class"));
        return Ok(());
    };
    open.kind = format!("{} {}", damage.how, damage.class);
    open.bites_now();
    // The others go on without it for a time, so that there is something to catch up.
    ctx.wait(length / 2).await;
    let logged = ctx.logged(node).len();
    ctx.cluster.scrub_soon(node, true);
    let started = ctx.cluster.start_node(node).await;
    let since = Since { logged, pid: ctx.cluster.pid(node) };
    let is_gone = ctx.cluster.checkpoint_is_gone(node, &damage);
    let Chosen { was_well, right, hold, .. } = chosen;
    // Other faults may take it while it heals.
    drop(hold);
    let healed = match healing::refusal(started)? {
        Some(refused) => refused,
        None => healing::watch(ctx, node, since).await?,
    };
    Case { node, damage, since, is_gone, pass: 1, was_well, right }.close(ctx, Some(healed), open).await
}

/// Damages what a node that runs has on its disk and has read long ago.
async fn strike_running(ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
    let Some(chosen) = Chosen::choose(ctx, dice).await else { return Ok(()) };
    let node = chosen.node;
    // Restarted, because its scrub is to be a fast one: what it has in its tables it has read again by then.
    ctx.cluster.scrub_soon(node, true);
    let restart = ctx.begin(NAME, RESTART);
    ctx.cluster.kill(node).await?;
    ctx.back(node, "a kill").await;
    restart.end_seen(false, format!("node {node} was killed so that its scrub is a fast one"));
    ctx.wait(length).await;
    // It was away since it was chosen.
    let was_well = is_well(ctx).await;
    let since = Since { logged: ctx.logged(node).len(), pid: ctx.cluster.pid(node) };
    let passes = ctx.cluster.scrub_passes(node).await.map_or(0, |(_, states)| states);
    let Some(damage) = ctx.cluster.damage_running(node, dice)? else {
        ctx.cluster.damage_is_healed(node);
        ctx.cluster.scrub_soon(node, false);
        ctx.skip(NAME, NAME, format!("node {node} has no file that its scrub reads, or has just removed it"));
        return Ok(());
    };
    let open = ctx.begin(NAME, format!("{} {} while it runs", damage.how, damage.class));
    let Chosen { right, hold, .. } = chosen;
    drop(hold);
    // The first pass that ends may have begun before.
    Case { node, damage, since, is_gone: false, pass: passes + 2, was_well, right }.close(ctx, None, open).await
}

/// A node that may be damaged.
struct Chosen {
    node: usize,
    /// Whether the cluster was well before.
    was_well: bool,
    /// The right to damage files.
    right: Hold,
    /// The node itself.
    hold: Hold,
}

impl Chosen {
    /// Draws one. Says why if there is none.
    async fn choose(ctx: &NemesisContext, dice: &mut StdRng) -> Option<Chosen> {
        let Some(right) = ctx.hold(&[Mark::Damage]).await else {
            ctx.skip(NAME, NAME, "another node is not whole");
            return None;
        };
        let was_well = is_well(ctx).await;
        let Some((node, hold)) = ctx.pick_one(dice) else {
            ctx.skip(NAME, NAME, "every node is held or down");
            return None;
        };
        Some(Chosen { node, was_well, right, hold })
    }
}

/// What was done to a node, and from where on its log tells what it makes of it.
struct Case {
    node: usize,
    damage: Damage,
    since: Since,
    is_gone: bool,
    /// Once the scrub has ended so many passes over the states it has read everything.
    pass: u64,
    was_well: bool,
    right: Hold,
}

impl Case {
    /// Hears what the node says, judges it, makes the node whole if it is not, and ends the fault. `started`: what became
    /// of it when it was started on its damage, if it was.
    async fn close(self, ctx: &NemesisContext, started: Option<Healed>, open: Open<'_>) -> Result<()> {
        let (node, damage) = (self.node, &self.damage);
        let what = format!("node {node}: {} of {} ({})", damage.how, damage.path.display(), damage.detail);
        let (healed, silence) = self.heard(ctx, started).await?;
        let log = self.since.log(ctx, node);
        let (noticed, line) = seen(damage, &log, &healed, self.is_gone);
        let judgement = judge(damage, noticed, &healed, silence);
        if let Some(why) = judgement.violation {
            ctx.report.violation(format!("{NAME}: {what}: {why}"));
        }
        if noticed == Noticed::Nothing && silence == Silence::Slow {
            ctx.report.void(format!("{NAME}: {what}: {SLOW}"));
        }
        let line = match silence {
            Silence::Slow if noticed == Noticed::Nothing => format!("{line}: {SLOW}"),
            Silence::Excused(why) if noticed == Noticed::Nothing && !why.is_empty() => format!("{line}: {why}"),
            _ => line.to_owned(),
        };
        ctx.cluster.scrub_soon(node, false);
        let (whole, by_hand) = make_whole(ctx, node, damage, noticed, &healed).await?;
        settle(ctx, node, self.right, whole);
        let end = ending(&healed, by_hand.as_deref());
        let well = if self.was_well { WAS_WELL } else { "" };
        open.end(judgement.injection, format!("{what}; noticed={noticed} {end}; {well}; {line}"));
        Ok(())
    }

    fn noticed(&self, ctx: &NemesisContext) -> Noticed {
        Noticed::of(&self.damage, &self.since.log(ctx, self.node)).0
    }

    /// What becomes of it until it is whole, or until its scrub has read everything in silence.
    async fn heard(&self, ctx: &NemesisContext, started: Option<Healed>) -> Result<(Healed, Silence)> {
        let may_be_read = (self.damage.is_of_table() || self.damage.notice == Notice::AtScrub) && !self.is_gone;
        match next(started, self.noticed(ctx), may_be_read) {
            Next::Done(healed) => return Ok((healed, Silence::Excused(""))),
            Next::Watch => {}
            Next::Scrub(took) => {
                if let Scrubbed::Silent(silence) = self.scrubbed(ctx).await {
                    return Ok((Healed::Itself(took), silence));
                }
            }
        }
        Ok((healing::watch(ctx, self.node, self.since).await?, Silence::Excused("")))
    }

    /// Whether anything but the damage may keep its scrub from what it does.
    fn is_hindered(&self, ctx: &NemesisContext) -> bool {
        let cluster = &ctx.cluster;
        cluster.marks().others(&[Mark::Damage])
            || !self.since.is_same_process(cluster, self.node)
            || cluster.members().into_iter().any(|node| !cluster.is_running(node))
    }

    /// Waits until the node has noticed, or until its scrub has read everything.
    async fn scrubbed(&self, ctx: &NemesisContext) -> Scrubbed {
        let begun = Instant::now();
        let mut course = Course { hindered: !ctx.cluster.can_scrub_soon(), ..Course::default() };
        while ctx.wait(Duration::from_millis(250)).await {
            if self.noticed(ctx) != Noticed::Nothing || !ctx.cluster.is_running(self.node) {
                return Scrubbed::Noticed;
            }
            let passes = ctx.cluster.scrub_passes(self.node).await.ok();
            course.saw(passes, self.is_hindered(ctx));
            if passes.is_some_and(|(logs, states)| logs.min(states) >= self.pass) {
                // It may have spoken between our look and its end.
                return match (self.noticed(ctx), ctx.cluster.is_void(self.node, &self.damage)) {
                    (Noticed::Nothing, Some(why)) => Scrubbed::Silent(Silence::Excused(why)),
                    (Noticed::Nothing, None) => Scrubbed::Silent(Silence::Scrubbed),
                    _ => Scrubbed::Noticed,
                };
            }
            if begun.elapsed() > SCRUBBED {
                return Scrubbed::Silent(course.end());
            }
        }
        Scrubbed::Silent(Silence::Excused("the faults were to end before its scrub did"))
    }
}

/// What is to be done with a node of which something was heard.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing: that became of it.
    Done(Healed),
    /// It is whole, after so long, but for what its scrub may find.
    Scrub(Duration),
    /// It has noticed damage, perhaps after it was seen to be whole: whether it heals is to be seen.
    Watch,
}

/// `started`: what became of it at its start, if that was on its damage; one that ran was whole until it noticed.
fn next(started: Option<Healed>, noticed: Noticed, may_be_read: bool) -> Next {
    match (started, noticed) {
        (Some(Healed::Itself(took)), Noticed::Nothing) if may_be_read => Next::Scrub(took),
        (None, Noticed::Nothing) if may_be_read => Next::Scrub(Duration::ZERO),
        (None, _) | (Some(Healed::Itself(_)), Noticed::Quarantine) => Next::Watch,
        (Some(healed), _) => Next::Done(healed),
    }
}

/// How a scrub went on while it was waited for.
#[derive(Debug, Default)]
struct Course {
    hindered: bool,
    /// The passes over the logs and over the states that were over at first and at last.
    first: Option<(u64, u64)>,
    last: Option<(u64, u64)>,
    was_unheard: bool,
}

impl Course {
    fn saw(&mut self, passes: Option<(u64, u64)>, hindered: bool) {
        self.hindered |= hindered;
        self.was_unheard |= passes.is_none();
        self.first = self.first.or(passes);
        self.last = passes.or(self.last);
    }

    /// What it is worth that the scrub has not read everything in time.
    fn end(&self) -> Silence {
        if self.hindered {
            Silence::Excused("no pass of its scrub was over in time")
        } else if self.first == self.last && !self.was_unheard {
            Silence::Hung
        } else {
            // There may be more to read than that time is enough for.
            Silence::Slow
        }
    }
}

/// What came of waiting for a scrub.
enum Scrubbed {
    /// The node has noticed, or has ended.
    Noticed,
    Silent(Silence),
}

/// What the silence of a node is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// Its scrub has read everything, and what was hurt is still there.
    Scrubbed,
    /// Its scrub did not end one pass over anything, though nothing hindered it.
    Hung,
    /// Its scrub went on, and had not read everything in time, though nothing hindered it.
    Slow,
    /// It was not, or what was hurt is gone: why.
    Excused(&'static str),
}

const SLOW: &str = "its scrub had not read everything in time, though nothing hindered it";

/// Whether the cluster is well, so that nothing of an earlier fault can be in the way of the others when one node goes.
async fn is_well(ctx: &NemesisContext) -> bool {
    tokio::select! {
        well = ctx.cluster.wait_healthy(PATIENCE) => well.is_ok(),
        () = ctx.stop.cancelled() => false,
    }
}

/// What the node noticed, and the line of its log that says so.
fn seen<'a>(damage: &Damage, log: &'a str, healed: &'a Healed, is_gone: bool) -> (Noticed, &'a str) {
    match (healed, Noticed::of(damage, log)) {
        (Healed::Refused(refusal), _) => (Noticed::Refused, refusal),
        (_, (Noticed::Nothing, _)) if is_gone => (Noticed::Dropped, "the checkpoint is gone"),
        (_, (noticed, line)) => (noticed, line.unwrap_or("it said nothing about damage")),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Judgement {
    injection: Injection,
    violation: Option<String>,
}

/// What is to be held of it.
fn judge(damage: &Damage, noticed: Noticed, healed: &Healed, silence: Silence) -> Judgement {
    // Without any copy of its identity a node would be another one.
    let must_refuse = damage.class == "identities";
    let violation = match (noticed, healed) {
        (_, Healed::Refused(refusal)) if !must_refuse => Some(format!("the node does not start: {refusal}")),
        (_, Healed::Refused(_)) => None,
        _ if must_refuse => Some("the node has started without knowing who it is".into()),
        (Noticed::Quarantine, _) if damage.class == "checkpoint" => {
            Some("a replica was quarantined, though nothing of its state was damaged".into())
        }
        (Noticed::Nothing, Healed::Itself(_) | Healed::Hindered(_)) if damage.notice == Notice::AtStart => {
            Some("the node had in use what was damaged, has started, and says nothing".into())
        }
        (Noticed::Nothing, Healed::Itself(_)) if (damage.notice, silence) == (Notice::AtScrub, Silence::Scrubbed) => {
            Some("the node's scrub has read everything, and says nothing".into())
        }
        (Noticed::Nothing, Healed::Itself(_)) if silence == Silence::Hung => {
            Some(format!("the node's scrub has not ended one pass in {SCRUBBED:?}"))
        }
        (_, Healed::Late(why)) => Some(format!("the node is not whole within {SELF_HEALED:?}: {why}")),
        _ => None,
    };
    let in_time = matches!(healed, Healed::Itself(took) if *took <= SELF_HEALED);
    let has_bitten = !matches!(noticed, Noticed::Nothing | Noticed::Refused) && in_time;
    let injection = if has_bitten { Injection::Installed } else { Injection::Indeterminate };
    Judgement { injection, violation }
}

/// Makes a node whole that is not, or of which that cannot be seen. False if it could not be done; says what was done
/// by hand.
async fn make_whole(
    ctx: &NemesisContext,
    node: usize,
    damage: &Damage,
    noticed: Noticed,
    healed: &Healed,
) -> Result<(bool, Option<String>)> {
    match healed {
        Healed::Itself(_) if noticed == Noticed::Nothing || is_left(ctx, node, damage) => {
            Ok((undo(ctx, node, damage).await?, None))
        }
        Healed::Itself(_) => Ok((true, None)),
        Healed::Unknown => Ok((false, None)),
        Healed::Late(_) | Healed::Hindered(_) | Healed::Refused(_) => {
            let Some(_hold) = ctx.hold(&[Mark::Node(node)]).await else {
                return Ok((false, Some("another fault holds it".into())));
            };
            let (whole, how) = healing::replace(ctx, node).await;
            Ok((whole, Some(how)))
        }
    }
}

/// Whether others than the replica that was replaced may still meet the damage: the tables of the log are those of all groups,
/// and a node that goes on with one that is damaged ends as soon as the database rewrites it.
fn is_left(ctx: &NemesisContext, node: usize, damage: &Damage) -> bool {
    damage.class == "log-sst" && ctx.cluster.is_void(node, damage).is_none()
}

/// Takes damage back that nobody noticed, or not all: found later, beside that of another node, it would be more than is promised
/// to be survived. Only tables keep it; everything else has been read from end to end, or written anew, when the node
/// started.
async fn undo(ctx: &NemesisContext, node: usize, damage: &Damage) -> Result<bool> {
    if !damage.is_of_table() {
        return Ok(true);
    }
    let Some(_hold) = ctx.hold(&[Mark::Node(node)]).await else { return Ok(false) };
    ctx.cluster.kill(node).await?;
    let undone = ctx.cluster.undo_damage(node, damage);
    ctx.back(node, "a kill").await;
    undone.map(|_| true)
}

/// Gives the right to damage files back, if the node is whole.
fn settle(ctx: &NemesisContext, node: usize, right: Hold, whole: bool) {
    if whole {
        ctx.cluster.damage_is_healed(node);
    } else {
        // Damage to another node would now be more than is promised to be survived.
        right.keep();
    }
}

fn ending(healed: &Healed, by_hand: Option<&str>) -> String {
    match (healed, by_hand) {
        (Healed::Itself(took), _) => format!("healed=self in={:.1}", took.as_secs_f64()),
        (_, Some(how)) if how.starts_with("replaced") => format!("healed=hand ({how})"),
        (_, Some(how)) => format!("healed=no ({how})"),
        (_, None) => "healed=no (not before the end of faults)".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Healed = Healed::Itself(Duration::from_secs(5));

    fn outcome(class: &'static str, noticed: Noticed, healed: &Healed) -> (bool, bool) {
        outcome_of(&Damage::example(class, Notice::Perhaps), noticed, healed)
    }

    fn outcome_of(damage: &Damage, noticed: Noticed, healed: &Healed) -> (bool, bool) {
        outcome_after(damage, noticed, healed, Silence::Excused(""))
    }

    fn outcome_after(damage: &Damage, noticed: Noticed, healed: &Healed, silence: Silence) -> (bool, bool) {
        let Judgement { injection, violation } = judge(damage, noticed, healed, silence);
        (injection == Injection::Installed, violation.is_some())
    }

    #[test]
    fn only_what_was_noticed_and_healed_by_itself_counts() {
        assert_eq!(outcome("wal", Noticed::Quarantine, &SOON), (true, false));
        assert_eq!(outcome("identity", Noticed::Repaired, &SOON), (true, false));
        assert_eq!(outcome("floor", Noticed::Nothing, &SOON), (false, false), "it was padding");
        let slow = Healed::Itself(SELF_HEALED + Duration::from_secs(1));
        assert_eq!(outcome("wal", Noticed::Quarantine, &slow), (false, false), "others hindered it");
        assert_eq!(outcome("wal", Noticed::Quarantine, &Healed::Unknown), (false, false));
        assert_eq!(outcome("wal", Noticed::Quarantine, &Healed::Hindered("x".into())), (false, false));
    }

    #[test]
    fn a_node_that_does_not_heal_or_does_not_start_breaks_a_promise() {
        assert_eq!(outcome("wal", Noticed::Quarantine, &Healed::Late("x".into())), (false, true));
        assert_eq!(outcome("log-sst", Noticed::Nothing, &Healed::Late("x".into())), (false, true));
        let refused = Healed::Refused("no".into());
        assert_eq!(outcome("wal", Noticed::Refused, &refused), (false, true));
        assert_eq!(outcome("identity", Noticed::Refused, &refused), (false, true), "the other copy is whole");
        assert_eq!(outcome("identities", Noticed::Refused, &refused), (false, false));
        assert_eq!(outcome("identities", Noticed::Repaired, &SOON), (true, true));
    }

    #[test]
    fn nobody_may_be_silent_about_what_was_in_use() {
        let gone = Damage::example("state", Notice::AtStart);
        assert_eq!(outcome_of(&gone, Noticed::Nothing, &SOON), (false, true));
        assert_eq!(outcome_of(&gone, Noticed::Nothing, &Healed::Hindered("x".into())), (false, true));
        assert_eq!(outcome_of(&gone, Noticed::Nothing, &Healed::Unknown), (false, false), "it may not have started");
        assert_eq!(outcome_of(&gone, Noticed::Log, &SOON), (true, false));
        assert_eq!(outcome_of(&Damage::example("state", Notice::Perhaps), Noticed::Nothing, &SOON), (false, false));
    }

    #[test]
    fn what_only_a_scrub_reads_may_be_passed_over_until_it_has() {
        let rows = Damage::example("state-sst", Notice::AtScrub);
        let outcome = |noticed, silence| outcome_after(&rows, noticed, &SOON, silence);
        assert_eq!(outcome(Noticed::Nothing, Silence::Scrubbed), (false, true));
        assert_eq!(outcome(Noticed::Nothing, Silence::Excused("the file is gone since")), (false, false));
        assert_eq!(outcome(Noticed::Quarantine, Silence::Scrubbed), (true, false));
        let perhaps = Damage::example("state-sst", Notice::Perhaps);
        assert_eq!(outcome_after(&perhaps, Noticed::Nothing, &SOON, Silence::Scrubbed), (false, false));
    }

    #[test]
    fn a_checkpoint_is_dropped_and_nothing_is_quarantined_for_it() {
        assert_eq!(outcome("checkpoint", Noticed::Dropped, &SOON), (true, false));
        assert_eq!(outcome("checkpoint", Noticed::Nothing, &SOON), (false, false));
        assert!(outcome("checkpoint", Noticed::Quarantine, &SOON).1);
        let of_one = Damage::example("checkpoint", Notice::Perhaps);
        assert_eq!(seen(&of_one, "", &SOON, true).0, Noticed::Dropped, "it and its marker are gone");
        assert_eq!(seen(&of_one, "", &SOON, false).0, Noticed::Nothing);
        let log = "WARN a checkpoint is damaged; it is dropped and another is made";
        assert_eq!(seen(&of_one, log, &SOON, false).0, Noticed::Dropped);
        assert_eq!(seen(&Damage::example("state-sst", Notice::AtScrub), log, &SOON, false).0, Noticed::Nothing);
    }

    #[test]
    fn one_that_notices_is_whole_only_when_that_was_seen() {
        assert_eq!(next(None, Noticed::Quarantine, true), Next::Watch, "it may have noticed before anybody looked");
        assert_eq!(next(Some(SOON), Noticed::Quarantine, true), Next::Watch, "or after it was seen to be whole");
        assert_eq!(next(None, Noticed::Repaired, true), Next::Watch);
        assert_eq!(next(None, Noticed::Nothing, true), Next::Scrub(Duration::ZERO));
        assert_eq!(next(Some(SOON), Noticed::Nothing, true), Next::Scrub(Duration::from_secs(5)));
        assert_eq!(next(Some(SOON), Noticed::Nothing, false), Next::Done(SOON));
        assert_eq!(next(Some(SOON), Noticed::Repaired, true), Next::Done(SOON));
        assert_eq!(next(Some(Healed::Unknown), Noticed::Quarantine, true), Next::Done(Healed::Unknown));
    }

    #[test]
    fn a_scrub_that_hangs_is_told() {
        let course = |seen: &[(Option<(u64, u64)>, bool)]| {
            let mut course = Course::default();
            seen.iter().for_each(|(passes, hindered)| course.saw(*passes, *hindered));
            course.end()
        };
        assert_eq!(course(&[(Some((4, 1)), false), (Some((4, 1)), false)]), Silence::Hung);
        assert_eq!(course(&[(Some((4, 1)), false), (Some((9, 1)), false)]), Silence::Slow);
        assert_eq!(course(&[(None, false), (Some((4, 1)), false)]), Silence::Slow, "it may have gone on unseen");
        assert!(matches!(course(&[(Some((4, 1)), true), (Some((4, 1)), false)]), Silence::Excused(_)));
        let rows = Damage::example("state-sst", Notice::AtScrub);
        assert_eq!(outcome_after(&rows, Noticed::Nothing, &SOON, Silence::Hung), (false, true));
        assert_eq!(outcome_after(&rows, Noticed::Quarantine, &SOON, Silence::Hung), (true, false));
        assert_eq!(outcome_after(&rows, Noticed::Nothing, &SOON, Silence::Slow), (false, false), "but void");
    }

    #[test]
    fn the_detail_says_who_healed_it() {
        assert_eq!(ending(&SOON, None), "healed=self in=5.0");
        assert_eq!(
            ending(&Healed::Late("x".into()), Some("replaced by hand in 3.0 s")),
            "healed=hand (replaced by hand in 3.0 s)"
        );
        assert_eq!(ending(&Healed::Late("x".into()), Some("not replaced: y")), "healed=no (not replaced: y)");
        assert_eq!(ending(&Healed::Unknown, None), "healed=no (not before the end of faults)");
    }
}
