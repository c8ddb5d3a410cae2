//! Processes killed, stopped and restarted.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use futures::future::{join_all, try_join_all};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::time::Instant;

use super::{NemesisContext, Strike, formation};
use crate::cluster::{Hold, Mark};
use crate::event::WAS_WELL;

/// How long a cluster may take to be well between two nodes of a rolling restart, before the next is restarted anyway.
const ROLLED: Duration = Duration::from_secs(30);

/// Whom a fault takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    One,
    Leader,
    Majority,
    All,
}

impl Whom {
    /// Holds them; `Err` says why there are none.
    pub(super) async fn hold(
        self,
        ctx: &NemesisContext,
        dice: &mut StdRng,
    ) -> Result<(Vec<usize>, Vec<Hold>), &'static str> {
        match self {
            Whom::One => {
                let (node, hold) = ctx.pick_one(dice).ok_or("every node is held or down")?;
                Ok((vec![node], vec![hold]))
            }
            Whom::Leader => {
                let (node, hold) = ctx.pick_leader().await.ok_or("nobody leads, or another fault holds the leader")?;
                Ok((vec![node], vec![hold]))
            }
            Whom::Majority => {
                let wanted = ctx.cluster.members().len() / 2 + 1;
                let (nodes, holds) = ctx.pick(dice, wanted);
                if nodes.len() < wanted { Err("too many nodes are held or down") } else { Ok((nodes, holds)) }
            }
            Whom::All => {
                let nodes: Vec<_> = ctx.cluster.members();
                let marks: Vec<_> = nodes.iter().map(|node| Mark::Node(*node)).collect();
                let hold = ctx.hold(&marks).await.ok_or("another fault holds a node")?;
                if nodes.iter().all(|node| ctx.cluster.is_running(*node)) {
                    Ok((nodes, vec![hold]))
                } else {
                    Err("a node is down")
                }
            }
        }
    }
}

pub(super) fn named(name: &str) -> Option<Box<dyn Strike>> {
    match name {
        "kill" => Some(Box::new(Kill { name: "kill", whom: Whom::One })),
        "kill-leader" => Some(Box::new(Kill { name: "kill-leader", whom: Whom::Leader })),
        "kill-all" => Some(Box::new(Kill { name: "kill-all", whom: Whom::All })),
        "pause" => Some(Box::new(Pause { name: "pause", whom: Whom::One })),
        "pause-leader" => Some(Box::new(Pause { name: "pause-leader", whom: Whom::Leader })),
        "pause-majority" => Some(Box::new(Pause { name: "pause-majority", whom: Whom::Majority })),
        "restart-loop" => Some(Box::new(RestartLoop)),
        "failpoint" => Some(Box::new(AtFailpoint)),
        "rolling-restart" => Some(Box::new(RollingRestart)),
        _ => None,
    }
}

pub(super) fn shown(nodes: &[usize]) -> String {
    let numbers: Vec<_> = nodes.iter().map(usize::to_string).collect();
    format!("node {}", numbers.join(", "))
}

struct Kill {
    name: &'static str,
    whom: Whom,
}

#[async_trait]
impl Strike for Kill {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let (nodes, _holds) = match self.whom.hold(ctx, dice).await {
            Ok(held) => held,
            Err(why) => {
                ctx.skip(self.name, self.name, why);
                return Ok(());
            }
        };
        let open = ctx.begin(self.name, self.name);
        try_join_all(nodes.iter().map(|node| ctx.cluster.kill(*node))).await?;
        let gone = nodes.iter().all(|node| !ctx.cluster.is_running(*node));
        ctx.wait(length).await;
        join_all(nodes.iter().map(|node| ctx.back(*node, self.name))).await;
        open.end_seen(gone, shown(&nodes));
        Ok(())
    }
}

struct Pause {
    name: &'static str,
    whom: Whom,
}

#[async_trait]
impl Strike for Pause {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let (nodes, _holds) = match self.whom.hold(ctx, dice).await {
            Ok(held) => held,
            Err(why) => {
                ctx.skip(self.name, self.name, why);
                return Ok(());
            }
        };
        let open = ctx.begin(self.name, self.name);
        let stopped = try_join_all(nodes.iter().map(|node| ctx.cluster.pause(*node))).await?;
        ctx.wait(length).await;
        for node in &nodes {
            ctx.cluster.resume(*node);
        }
        open.end_seen(stopped.iter().all(|stopped| *stopped), format!("{}: all threads in state T", shown(&nodes)));
        Ok(())
    }
}

/// A node that is killed again and again, as soon as it serves or a little later.
struct RestartLoop;

#[async_trait]
impl Strike for RestartLoop {
    fn name(&self) -> &'static str {
        "restart-loop"
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let Some((node, _hold)) = ctx.pick_one(dice) else {
            ctx.skip("restart-loop", "restart-loop", "every node is held or down");
            return Ok(());
        };
        let open = ctx.begin("restart-loop", "restart-loop");
        let end = Instant::now() + length;
        let mut kills = 0;
        loop {
            ctx.cluster.kill(node).await?;
            kills += 1;
            ctx.back(node, "a kill").await;
            if Instant::now() >= end || !ctx.wait(Duration::from_millis(dice.random_range(0..600))).await {
                break;
            }
        }
        open.end_seen(true, format!("node {node}, killed {kills} times"));
        Ok(())
    }
}

/// A node that ends at a failpoint: between two steps that no kill from outside would hit.
struct AtFailpoint;

/// The failpoints that a member passes, how often it may pass each before, and how often each is drawn.
const FAILPOINTS: [(&str, u64, u32); 8] = [
    ("batch_committed", 400, 6),
    ("rows_written", 400, 6),
    ("checkpoint_made", 2, 2),
    ("checkpoint_kept", 2, 2),
    ("floor_lowered", 0, 1),
    ("snapshot_received", 0, 1),
    ("snapshot_placed", 0, 1),
    ("state_destroyed", 0, 1),
];

/// One strike of so many takes a fresh node, which passes others.
const ONE_FRESH_IN: u32 = 4;

#[cfg(test)]
pub(super) fn member_failpoints() -> impl Iterator<Item = &'static str> {
    FAILPOINTS.iter().map(|(point, ..)| *point)
}

#[async_trait]
impl Strike for AtFailpoint {
    fn name(&self) -> &'static str {
        "failpoint"
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let name = "failpoint";
        if !ctx.cluster.has_failpoints() {
            ctx.skip(name, name, "there is no program that can end at a failpoint");
            return Ok(());
        }
        if dice.random_ratio(1, ONE_FRESH_IN) {
            return formation::strike(ctx, name, dice).await;
        }
        let Some((node, _hold)) = ctx.pick_one(dice) else {
            ctx.skip(name, name, "every node is held or down");
            return Ok(());
        };
        let (point, most, _) = FAILPOINTS.choose_weighted(dice, |(.., weight)| *weight)?;
        let passes = dice.random_range(0..=*most);
        let open = ctx.begin(name, format!("{name} {point}"));
        ctx.cluster.kill(node).await?;
        let logged = ctx.logged(node).len();
        // One that passes it while it starts never serves, and is no less dead for it.
        if ctx.cluster.start_ending(node, &format!("{point}:{passes}")).await.is_ok() {
            tokio::select! {
                _ = ctx.cluster.wait_exit(node, length) => {}
                () = ctx.stop.cancelled() => {}
            }
        }
        ctx.cluster.kill(node).await?;
        let ended = ctx.logged(node).get(logged..).is_some_and(|log| log.contains("ends at the failpoint"));
        ctx.back(node, "its end at a failpoint").await;
        open.end_seen(ended, format!("node {node}, after {passes} passes"));
        Ok(())
    }
}

/// What is wrong with how a node ended that was asked to stop, and what it said last.
///
/// A commit of the log that fails ends a node by design, also while it stops: where its disk was taken away meanwhile, it is
/// excused.
fn stopped_badly(node: usize, status: ExitStatus, excused: bool, log: &str) -> Option<String> {
    if status.success() || excused {
        return None;
    }
    let said = log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("nothing").trim();
    Some(format!("node {node} ended with {status} when it was asked to stop; it said last: {said}"))
}

/// Each member in turn is asked to stop and started again, as for an upgrade.
struct RollingRestart;

#[async_trait]
impl Strike for RollingRestart {
    fn name(&self) -> &'static str {
        "rolling-restart"
    }

    async fn strike(&mut self, ctx: &NemesisContext, _dice: &mut StdRng, _length: Duration) -> Result<()> {
        let mut well = false;
        for node in ctx.cluster.members() {
            let kind = "rolling-restart";
            let Some(_hold) = ctx.hold(&[Mark::Node(node)]).await else {
                ctx.skip(kind, kind, format!("another fault holds node {node}"));
                continue;
            };
            if !ctx.cluster.is_running(node) {
                ctx.skip(kind, kind, format!("node {node} is down"));
                continue;
            }
            let open = ctx.begin(kind, kind);
            let begun = Instant::now();
            let ended = match ctx.cluster.stop_node(node).await {
                Ok(ended) => ended,
                Err(error) => {
                    ctx.report.violation(format!("node {node} does not stop: {error:#}"));
                    ctx.cluster.kill(node).await?;
                    None
                }
            };
            let stopped = begun.elapsed();
            if let Some(what) = ended.and_then(|status| {
                let excused = ctx.cluster.may_have_ended_over_its_disk(node, begun.into_std());
                stopped_badly(node, status, excused, &ctx.logged(node))
            }) {
                ctx.report.violation(what);
            }
            ctx.back(node, "a planned stop").await;
            let since = if well { WAS_WELL } else { "" };
            open.end_seen(ended.is_some(), format!("node {node} stopped in {} ms {since}", stopped.as_millis()));
            // Under other faults it may never be well; then the next is restarted all the same.
            tokio::select! {
                rolled = ctx.cluster.wait_healthy(ROLLED) => well = rolled.is_ok(),
                () = ctx.stop.cancelled() => return Ok(()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn only_a_disk_that_was_taken_away_excuses_a_bad_end_of_a_stop() {
        let (well, aborted) = (ExitStatus::from_raw(0), ExitStatus::from_raw(6));
        assert_eq!(stopped_badly(1, well, false, "stopped\n"), None);
        assert_eq!(stopped_badly(1, aborted, true, "a commit failed\n"), None);
        let told = stopped_badly(1, aborted, false, "stopped\npthread lock: Invalid argument\n\n");
        let wanted = "node 1 ended with signal: 6 (SIGABRT) when it was asked to stop; it said last: pthread lock: Invalid argument";
        assert_eq!(told.as_deref(), Some(wanted));
    }
}
