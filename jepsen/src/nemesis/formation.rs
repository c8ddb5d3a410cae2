//! A node that ends at a failpoint while it founds a cluster or joins one.
//!
//! It is a fresh one: a member passes these points never again. What was cut off must be done when it is asked for
//! again, by a node that has been started again.

use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::membership::unless_over;
use super::{NemesisContext, Open};
use crate::cluster::{Mark, is_of_nodes};

/// What a fresh node is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    Joining,
    /// It makes a cluster of its own, which goes with it.
    Founding,
}

/// The failpoints that such a node passes, each once.
const FAILPOINTS: [(&str, About); 6] = [
    ("admitted", About::Joining),
    ("control_started", About::Joining),
    ("cluster_adopted", About::Joining),
    ("control_started", About::Founding),
    ("cluster_adopted", About::Founding),
    ("group_made", About::Founding),
];

/// How long a node that was asked for what ends it may take to answer or to end, and to end after an answer.
const ASKED: Duration = Duration::from_secs(60);
const ENDS: Duration = Duration::from_secs(10);

/// Lets a fresh node end at one of them, and has it begin anew.
pub(super) async fn strike(ctx: &NemesisContext, name: &'static str, dice: &mut StdRng) -> Result<()> {
    let (point, about) = *FAILPOINTS.choose(dice).expect("a choice of something");
    // As for every change of the members: see there.
    let Some(_hold) = ctx.hold(&[Mark::Membership, Mark::Damage]).await else {
        ctx.skip(name, name, "the members are changing, or a node is not whole");
        return Ok(());
    };
    let open = ctx.begin(name, format!("{name} {point}"));
    let node = ctx.cluster.start_fresh_ending(point).await?;
    let _node = ctx.hold(&[Mark::Node(node)]).await;
    let logged = ctx.logged(node).len();
    // Who asks a node that has ended asks for long.
    let (asked, has_ended) = tokio::select! {
        asked = ask(ctx, node, about) => (asked, ctx.cluster.wait_exit(node, ENDS).await.is_some()),
        ended = ctx.cluster.wait_exit(node, ASKED) => (Ok(()), ended.is_some()),
        () = ctx.stop.cancelled() => (Ok(()), false),
    };
    ctx.cluster.kill(node).await?;
    let seen = has_ended && ctx.logged(node).get(logged..).is_some_and(|log| log.contains("ends at the failpoint"));
    let detail = format!("fresh node {node}, {about:?}");
    match (seen, asked) {
        (true, _) => again(ctx, node, about, open, detail).await,
        // Other faults were in its way, so it did not come so far; what is begun of a join is finished at the end.
        (false, Err(why)) => end(open, false, format!("{detail}: {why:#}")),
        (false, Ok(())) => end(open, false, format!("{detail}: it did not end there")),
    }
}

/// What was cut off is begun again.
async fn again(ctx: &NemesisContext, node: usize, about: About, open: Open<'_>, detail: String) -> Result<()> {
    ctx.back(node, "its end at a failpoint").await;
    let done = match about {
        About::Joining => match unless_over(ctx, ask(ctx, node, about)).await {
            Ok(()) => unless_over(ctx, ctx.cluster.leave(node, false)).await,
            hindered => hindered,
        },
        About::Founding => {
            let founded = ask(ctx, node, about).await;
            ctx.cluster.kill(node).await?;
            // Nobody else has a part in it.
            if let Some(error) = founded.as_ref().err().filter(|error| is_of_nodes(error)) {
                ctx.report.violation(format!("node {node} does not found a cluster where it was cut off: {error:#}"));
            }
            founded
        }
    };
    end(open, true, done.err().map_or(detail.clone(), |error| format!("{detail}: {error:#}")))
}

async fn ask(ctx: &NemesisContext, node: usize, about: About) -> Result<()> {
    match about {
        About::Joining => ctx.cluster.join(node).await,
        About::Founding => Ok(ctx.cluster.client_of(node).cluster_init(0).await.map(drop)?),
    }
}

fn end(open: Open<'_>, seen: bool, detail: String) -> Result<()> {
    open.end_seen(seen, detail);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn together_with_those_of_members_they_are_all_failpoints() {
        let source = include_str!("../../../raft/src/observe.rs");
        let names = source.lines().filter_map(|line| line.trim().strip_prefix("pub const ")?.split('"').nth(1));
        let mut all: Vec<&str> = names.collect();
        let own = FAILPOINTS.iter().map(|(point, _)| *point);
        let mut known: Vec<&str> = own.chain(super::super::processes::member_failpoints()).collect();
        all.sort_unstable();
        known.sort_unstable();
        known.dedup();
        assert_eq!(known, all);
    }
}
