//! Rot: a file of one node is damaged while the node is down, and the node must notice and be whole again.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::{NemesisContext, Strike};
use crate::cluster::{CLASSES, Mark};

/// How long a damaged node may take to be whole, if no other fault hinders it.
const HEALED: Duration = Duration::from_secs(120);

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
        let logged = log_length(ctx, node);
        let started = ctx.cluster.start_node(node).await;
        let (outcome, whole) = match started {
            Ok(()) => {
                // Other faults may take it while it heals.
                drop(hold);
                heal(ctx, node).await
            }
            Err(refusal) => {
                let (outcome, whole) = replace(ctx, node).await;
                (format!("refused to start ({refusal:#}); {outcome}"), whole)
            }
        };
        if whole {
            ctx.cluster.damage_is_healed(node);
        } else {
            // Damage to another node would now be more than is promised to be survived.
            right.keep();
        }
        let noticed = noticed(ctx, node, logged);
        open.end_seen(true, format!("{what}; {outcome}; {noticed}"));
        Ok(())
    }
}

/// Waits until the cluster is whole; then, as an operator would, replaces the node. Other faults may hinder both, so that
/// lateness is told and not judged here: what must hold is checked when all faults are over.
async fn heal(ctx: &NemesisContext, node: usize) -> (String, bool) {
    let late = tokio::select! {
        healed = ctx.cluster.wait_healthy(HEALED) => match healed {
            Ok(took) => return (format!("healed in {:.1} s", took.as_secs_f64()), true),
            Err(late) => late,
        },
        () = ctx.stop.cancelled() => return ("not healed before the end of faults".into(), false),
    };
    let Some(_hold) = ctx.hold(&[Mark::Node(node)]).await else {
        return (format!("not healed ({late:#}), and another fault holds it"), false);
    };
    let (outcome, whole) = replace(ctx, node).await;
    (format!("not healed ({late:#}); {outcome}"), whole)
}

/// What an operator does with a node that does not heal or refuses its disk.
async fn replace(ctx: &NemesisContext, node: usize) -> (String, bool) {
    let begun = Instant::now();
    let replaced = match ctx.cluster.replace(node).await {
        Ok(()) => ctx.cluster.wait_healthy(HEALED).await.map(|_| ()),
        failed => failed,
    };
    match replaced {
        Ok(()) => (format!("replaced by hand in {:.1} s", begun.elapsed().as_secs_f64()), true),
        Err(error) => (format!("not replaced: {error:#}"), false),
    }
}

fn log_length(ctx: &NemesisContext, node: usize) -> usize {
    std::fs::read(ctx.cluster.log_path(node)).map_or(0, |log| log.len())
}

/// The first thing that the node logged about damage since its restart.
fn noticed(ctx: &NemesisContext, node: usize, from: usize) -> String {
    let log = std::fs::read(ctx.cluster.log_path(node)).unwrap_or_default();
    let new = String::from_utf8_lossy(log.get(from..).unwrap_or_default()).into_owned();
    let about = |line: &&str| {
        let line = line.to_lowercase();
        ["damage", "quarantin", "corrupt", "checksum", "does not read back"].iter().any(|word| line.contains(word))
    };
    match new.lines().find(about) {
        Some(line) => format!("noticed: {line}"),
        None => "nothing said about damage".into(),
    }
}
