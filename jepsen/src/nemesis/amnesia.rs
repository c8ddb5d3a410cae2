//! A node that has forgotten what it acknowledged, beside one that never heard of it: the two are a majority, and must
//! not act as one.
//!
//! ```text
//!   third  ──────┐cut off┌─────────── runs ───────────
//!   lost   ── acknowledges ──X loses its log, runs ───
//!   keeper ── acknowledges ──X────── down ──────┐ runs
//! ```
//!
//! What the lost node acknowledged while the third one was cut off is then on the keeper alone. A replica that came
//! back under its old id with an empty log would vote for the third one, and both would go on without what was
//! acknowledged.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::healing::{self, Healed, Noticed, Since};
use super::{NemesisContext, Strike};
use crate::cluster::{Mark, Refusal};

/// How long the third node is cut off at least: long enough for an election and some writes.
const APART: Duration = Duration::from_secs(3);
/// How long the two that know too little run alone at least: long enough for a node that takes its lost replicas up
/// again to do so, first that of control and then, once control has a leader, those of the shards; and for some writes.
const ALONE: Duration = Duration::from_secs(12);

pub(super) struct Amnesia;

#[async_trait]
impl Strike for Amnesia {
    fn name(&self) -> &'static str {
        "amnesia"
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let name = "amnesia";
        let mut members = ctx.cluster.members();
        members.shuffle(dice);
        spare_leader(&mut members, ctx.any_leader().await);
        let [third, lost, keeper] = members[..] else {
            ctx.skip(name, name, "it takes a cluster of three");
            return Ok(());
        };
        let Some(right) = ctx.hold(&[Mark::Damage]).await else {
            ctx.skip(name, name, "another node is not whole");
            return Ok(());
        };
        let marks = [Mark::Links, Mark::Node(third), Mark::Node(lost), Mark::Node(keeper)];
        let Some(held) = ctx.hold(&marks).await else {
            ctx.skip(name, name, "another fault holds a node or the links");
            return Ok(());
        };
        if members.iter().any(|node| !ctx.cluster.is_running(*node)) {
            ctx.skip(name, name, "a node is down");
            return Ok(());
        }
        let open = ctx.begin(name, name);
        let others = [lost, keeper];
        let links: Vec<_> = others.iter().flat_map(|other| [(third, *other), (*other, third)]).collect();
        let cut = ctx.cluster.cut(&links, Refusal::Drop).await?;
        ctx.wait(length.max(APART)).await;
        ctx.cluster.kill(lost).await?;
        ctx.cluster.kill(keeper).await?;
        ctx.cluster.lose_log(lost)?;
        ctx.cluster.mend(&cut).await?;
        let logged = ctx.logged(lost).len();
        let refused = healing::refusal(ctx.cluster.start_node(lost).await)?;
        let since = Since { logged, pid: ctx.cluster.pid(lost) };
        ctx.wait(length.max(ALONE)).await;
        ctx.back(keeper, "a kill").await;
        // Other faults may come while it heals, but for damage.
        drop(held);
        let healed = match refused {
            Some(refused) => refused,
            None => healing::watch(ctx, lost, since).await?,
        };
        let log = since.log(ctx, lost);
        let (noticed, line) = Noticed::in_log(&log);
        if let Some(why) = wrong(noticed, &healed) {
            ctx.report.violation(format!("corruption: node {lost} lost its log and {why}"));
        }
        match &healed {
            Healed::Itself(_) => ctx.cluster.damage_is_healed(lost),
            _ => right.keep(),
        }
        let detail = format!(
            "majority=false node {third} was cut off, node {lost} lost its log, node {keeper} was down meanwhile; \
             noticed={noticed} {healed:?}; {}",
            line.unwrap_or("it said nothing")
        );
        // What is attacked is what two nodes do that know too little, and that is over when the keeper is back.
        open.end_seen(noticed == Noticed::Quarantine, detail);
        Ok(())
    }
}

/// Sees to it that the first one, which will be cut off, does not lead. A leader that is cut off goes on as one: when
/// it is back it asks nobody for a vote, but finds the log of the lost node shorter than it knew it and sends it
/// nothing more, so that the two do nothing at all.
fn spare_leader(members: &mut [usize], leader: Option<usize>) {
    if leader.is_some() && leader == members.first().copied() {
        members.rotate_left(1);
    }
}

/// What of a node that lost its log breaks a promise.
fn wrong(noticed: Noticed, healed: &Healed) -> Option<String> {
    match healed {
        Healed::Late(why) | Healed::Refused(why) => Some(format!("is not whole by itself: {why}")),
        _ if noticed != Noticed::Quarantine => Some("does not say that its replicas are damaged".into()),
        Healed::Itself(_) | Healed::Hindered(_) | Healed::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_is_cut_off_does_not_lead() {
        let drawn = |leader| {
            let mut members = [2, 0, 1];
            spare_leader(&mut members, leader);
            members
        };
        assert_eq!(drawn(Some(2)), [0, 1, 2]);
        assert_eq!((drawn(Some(0)), drawn(None)), ([2, 0, 1], [2, 0, 1]));
        spare_leader(&mut [], None);
    }

    #[test]
    fn a_node_that_lost_its_log_says_so_and_heals() {
        let soon = Healed::Itself(Duration::from_secs(5));
        assert_eq!(wrong(Noticed::Quarantine, &soon), None);
        assert_eq!(
            wrong(Noticed::Quarantine, &Healed::Unknown),
            None,
            "whether it heals is seen at the end of the run"
        );
        for silent in [Noticed::Nothing, Noticed::Log] {
            assert!(wrong(silent, &soon).is_some_and(|why| why.contains("does not say")));
        }
        assert!(wrong(Noticed::Quarantine, &Healed::Late("x".into())).is_some());
    }
}
