//! Rot: a file of one node is damaged while the node is down, and the node must notice and be whole again by itself.
//!
//! Not all damage does harm: a block that nobody reads any more, the padding of a file, a state that follows from the
//! log. So a corruption is *installed* only if the node said that it noticed and was whole within a minute; what it did
//! not notice proves nothing and is taken back, so that it does not add to the next. But where something is gone that
//! the node had in use ([`Damage::must_be_noticed`]) silence is a violation: it was whole by chance then.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use rand::rngs::StdRng;

use super::healing::{self, Healed, Noticed, SELF_HEALED};
use super::{NemesisContext, PATIENCE, Strike};
use crate::cluster::{CLASSES, Damage, Hold, Mark};
use crate::event::{Injection, WAS_WELL};

/// Damages files of one class, or of any.
pub(super) struct Corruption {
    class: Option<&'static str>,
}

impl Corruption {
    pub(super) fn new(class: Option<&str>) -> Option<Corruption> {
        match class {
            None => Some(Corruption { class: None }),
            Some(class) => Some(Corruption { class: Some(CLASSES.iter().find(|(known, _)| *known == class)?.0) }),
        }
    }
}

#[async_trait]
impl Strike for Corruption {
    fn name(&self) -> &'static str {
        "corruption"
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let name = "corruption";
        let Some(right) = ctx.hold(&[Mark::Damage]).await else {
            ctx.skip(name, name, "another node is not whole");
            return Ok(());
        };
        let well = is_well(ctx).await;
        let Some((node, hold)) = ctx.pick_one(dice) else {
            ctx.skip(name, name, "every node is held or down");
            return Ok(());
        };
        ctx.cluster.kill(node).await?;
        let Some(damage) = ctx.cluster.damage(node, self.class, dice)? else {
            ctx.back(node, "a kill").await;
            ctx.skip(name, name, format!("node {node} has no file of the class"));
            return Ok(());
        };
        let what = format!("node {node}: {} of {} ({})", damage.how, damage.path.display(), damage.detail);
        let open = ctx.begin(name, format!("{} {}", damage.how, damage.class));
        // The others go on without it for a time, so that there is something to catch up.
        ctx.wait(length / 2).await;
        let logged = ctx.logged(node).len();
        let started = ctx.cluster.start_node(node).await;
        let is_gone = ctx.cluster.checkpoint_is_gone(node, &damage);
        // Other faults may take it while it heals.
        drop(hold);
        let healed = match healing::refusal(started)? {
            Some(refused) => refused,
            None => healing::watch(ctx, node).await?,
        };
        let log = ctx.logged(node);
        let (noticed, line) = seen(log.get(logged..).unwrap_or_default(), &healed, is_gone);
        let judgement = judge(&damage, noticed, &healed);
        if let Some(why) = judgement.violation {
            ctx.report.violation(format!("corruption: {what}: {why}"));
        }
        let (whole, by_hand) = make_whole(ctx, node, &damage, noticed, &healed).await?;
        settle(ctx, node, right, whole);
        let end = ending(&healed, by_hand.as_deref());
        let well = if well { WAS_WELL } else { "" };
        open.end(judgement.injection, format!("{what}; noticed={noticed} {end}; {well}; {line}"));
        Ok(())
    }
}

/// Whether the cluster is well, so that nothing of an earlier fault can be in the way of the others when one node goes.
async fn is_well(ctx: &NemesisContext) -> bool {
    tokio::select! {
        well = ctx.cluster.wait_healthy(PATIENCE) => well.is_ok(),
        () = ctx.stop.cancelled() => false,
    }
}

/// What the node noticed, and the line of its log that says so.
fn seen<'a>(log: &'a str, healed: &'a Healed, is_gone: bool) -> (Noticed, &'a str) {
    match (healed, Noticed::in_log(log)) {
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
fn judge(damage: &Damage, noticed: Noticed, healed: &Healed) -> Judgement {
    // Without any copy of its identity a node would be another one.
    let must_refuse = damage.class == "identities";
    let violation = match (noticed, healed) {
        (_, Healed::Refused(refusal)) if !must_refuse => Some(format!("the node does not start: {refusal}")),
        (_, Healed::Refused(_)) => None,
        _ if must_refuse => Some("the node has started without knowing who it is".into()),
        (Noticed::Quarantine, _) if damage.class == "checkpoint" => {
            Some("a replica was quarantined, though nothing of its state was damaged".into())
        }
        (Noticed::Nothing, Healed::Itself(_) | Healed::Hindered(_)) if damage.must_be_noticed => {
            Some("the node does not say that anything is gone".into())
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
        Healed::Itself(_) if noticed == Noticed::Nothing => Ok((undo(ctx, node, damage).await?, None)),
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

/// Takes damage back that nobody noticed: found later, beside that of another node, it would be more than is promised
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
        outcome_of(&Damage::example(class, false), noticed, healed)
    }

    fn outcome_of(damage: &Damage, noticed: Noticed, healed: &Healed) -> (bool, bool) {
        let Judgement { injection, violation } = judge(damage, noticed, healed);
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
    fn nobody_may_be_silent_about_what_is_gone() {
        let gone = Damage::example("state", true);
        assert_eq!(outcome_of(&gone, Noticed::Nothing, &SOON), (false, true));
        assert_eq!(outcome_of(&gone, Noticed::Nothing, &Healed::Hindered("x".into())), (false, true));
        assert_eq!(outcome_of(&gone, Noticed::Nothing, &Healed::Unknown), (false, false), "it may not have started");
        assert_eq!(outcome_of(&gone, Noticed::Log, &SOON), (true, false));
        assert_eq!(outcome_of(&Damage::example("state", false), Noticed::Nothing, &SOON), (false, false));
    }

    #[test]
    fn a_checkpoint_is_dropped_and_nothing_is_quarantined_for_it() {
        assert_eq!(outcome("checkpoint", Noticed::Dropped, &SOON), (true, false));
        assert_eq!(outcome("checkpoint", Noticed::Nothing, &SOON), (false, false));
        assert!(outcome("checkpoint", Noticed::Quarantine, &SOON).1);
        assert_eq!(seen("", &SOON, true).0, Noticed::Dropped, "it and its marker are gone");
        assert_eq!(seen("", &SOON, false).0, Noticed::Nothing);
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
