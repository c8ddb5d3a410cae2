//! Nodes that join, leave and are replaced under load.

use std::time::Duration;

use anyhow::{Result, bail};
use async_trait::async_trait;
use rand::rngs::StdRng;

use super::{NemesisContext, Strike};
use crate::cluster::{Mark, NodeFailed};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Join,
    Leave,
    Replace,
}

/// Changes of the members. Each ends with as many members as it found.
pub(super) struct Churn {
    name: &'static str,
    change: Change,
}

impl Churn {
    pub(super) fn named(name: &str) -> Option<Box<dyn Strike>> {
        let (name, change) = match name {
            "join" => ("join", Change::Join),
            "leave" => ("leave", Change::Leave),
            "replace" => ("replace", Change::Replace),
            _ => return None,
        };
        Some(Box::new(Churn { name, change }))
    }
}

#[async_trait]
impl Strike for Churn {
    fn name(&self) -> &'static str {
        self.name
    }

    /// A change that other faults hinder is tried to its end: the cluster must answer, and go on from where it stopped.
    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let Some(_hold) = ctx.hold(&[Mark::Membership]).await else {
            ctx.skip(self.name, self.name, "another change of members is under way");
            return Ok(());
        };
        // A node that moves its replicas away while another is not whole could take the last good one with it.
        let Some(_whole) = ctx.hold(&[Mark::Damage]).await else {
            ctx.skip(self.name, self.name, "a node is not whole");
            return Ok(());
        };
        let Some((old, _node)) = ctx.pick_one(dice) else {
            ctx.skip(self.name, self.name, "every node is held or down");
            return Ok(());
        };
        let open = ctx.begin(self.name, self.name);
        let done = match self.change {
            Change::Join => join_and_leave(ctx, length).await,
            Change::Leave => leave_and_join(ctx, old, length).await,
            Change::Replace => replace(ctx, old, length).await,
        };
        match done {
            Ok(detail) => open.end_seen(true, detail),
            // Refused or hindered; who belongs and who does not is told by the cluster afterwards.
            Err(error) => {
                if error.chain().any(|cause| cause.is::<NodeFailed>()) {
                    // Nothing hinders a fresh node in starting.
                    ctx.report.violation(format!("{}: {error:#}", self.name));
                }
                open.end_seen(false, format!("{error:#}"));
            }
        }
        Ok(())
    }
}

/// Waits for a change, which may take minutes, but not beyond the end of faults: what is left open then is finished when the
/// cluster is healed.
pub(super) async fn unless_over(ctx: &NemesisContext, change: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        done = change => done,
        () = ctx.stop.cancelled() => bail!("the faults were to end before the change did"),
    }
}

async fn join_and_leave(ctx: &NemesisContext, length: Duration) -> Result<String> {
    let new = ctx.cluster.start_fresh().await?;
    let _hold = ctx.hold(&[Mark::Node(new)]).await;
    unless_over(ctx, ctx.cluster.join(new)).await?;
    ctx.wait(length).await;
    unless_over(ctx, ctx.cluster.leave(new, false)).await?;
    Ok(format!("node {new} joined and left"))
}

async fn leave_and_join(ctx: &NemesisContext, old: usize, length: Duration) -> Result<String> {
    // Of three nodes the third leaves with fewer replicas, or not at all.
    unless_over(ctx, ctx.cluster.leave(old, true)).await?;
    ctx.wait(length).await;
    let new = ctx.cluster.start_fresh().await?;
    unless_over(ctx, ctx.cluster.join(new)).await?;
    Ok(format!("node {old} left, node {new} joined afresh"))
}

async fn replace(ctx: &NemesisContext, old: usize, length: Duration) -> Result<String> {
    let new = ctx.cluster.start_fresh().await?;
    let _hold = ctx.hold(&[Mark::Node(new)]).await;
    unless_over(ctx, ctx.cluster.join(new)).await?;
    ctx.wait(length).await;
    unless_over(ctx, ctx.cluster.leave(old, false)).await?;
    Ok(format!("node {new} joined, then node {old} left"))
}
