//! Packets lost, late and out of order, and messages doubled.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;

use super::{NemesisContext, Strike, one_of};
use crate::cluster::{Disturbance, Mark};
use crate::event::NO_MAJORITY;

/// For so long at least messages are doubled: nodes need a while until they have connected anew.
const DOUBLES: Duration = Duration::from_secs(3);
/// How long a candidate of control waits for votes at least, by the default timers of a node.
const ELECTION_WAITS: Duration = Duration::from_millis(150);
const DISTURBED: &str = "packets are disturbed already";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Loss,
    Delay,
    Reorder,
}

/// One thing that happens to packets to one node, or to all.
pub(super) struct PacketFault {
    name: &'static str,
    wrong: Wrong,
}

impl PacketFault {
    pub(super) fn named(name: &str) -> Option<Box<dyn Strike>> {
        let (name, wrong) = match name {
            "loss" => ("loss", Wrong::Loss),
            "delay" => ("delay", Wrong::Delay),
            "reorder" => ("reorder", Wrong::Reorder),
            "duplicate" => return Some(Box::new(Doubling)),
            _ => return None,
        };
        Some(Box::new(PacketFault { name, wrong }))
    }
}

#[async_trait]
impl Strike for PacketFault {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let Some(_hold) = ctx.hold(&[Mark::Packets]).await else {
            ctx.skip(self.name, self.name, DISTURBED);
            return Ok(());
        };
        let nodes = some_nodes(ctx, dice);
        let mut open = ctx.begin(self.name, self.name);
        let wanted = disturbance(self.wrong, dice);
        for node in &nodes {
            ctx.cluster.disturb(*node, wanted, dice.random()).await?;
        }
        open.bites_now();
        ctx.wait(length).await;
        let (mut bit, mut details) = (true, Vec::new());
        for node in &nodes {
            let done = ctx.cluster.disturbed(*node).unwrap_or_default();
            ctx.cluster.let_pass(*node).await?;
            bit &= match self.wrong {
                Wrong::Loss => done.lost > 0,
                Wrong::Reorder => done.overtaken > 0,
                Wrong::Delay => done.held > 0,
            };
            details.push(format!(
                "node {node}: of {} packets {} lost, {} held, {} overtaken",
                done.seen, done.lost, done.held, done.overtaken
            ));
        }
        if nodes.len() > 1 && !is_election_possible(wanted) {
            details.push(NO_MAJORITY.into());
        }
        let Disturbance { loss, delay, jitter } = wanted;
        open.end_seen(bit, format!("loss {loss:.2}, delay {delay:?}, jitter {jitter:?}; {}", details.join("; ")));
        Ok(())
    }
}

/// Messages to one node, or to all, that arrive twice.
struct Doubling;

#[async_trait]
impl Strike for Doubling {
    fn name(&self) -> &'static str {
        "duplicate"
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let Some(_hold) = ctx.hold(&[Mark::Packets]).await else {
            ctx.skip(self.name(), self.name(), DISTURBED);
            return Ok(());
        };
        let nodes = some_nodes(ctx, dice);
        let mut open = ctx.begin(self.name(), self.name());
        let part = dice.random_range(0.05..0.5);
        for node in &nodes {
            ctx.cluster.double(*node, part, dice.random()).await?;
        }
        open.bites_now();
        ctx.wait(length.max(DOUBLES)).await;
        let doubled: Vec<u64> = nodes.iter().map(|node| ctx.cluster.doubled(*node)).collect();
        for node in &nodes {
            ctx.cluster.stop_doubling(*node).await?;
        }
        let told = format!("of nodes {nodes:?} {doubled:?} messages doubled, a part of {part:.2}");
        open.end_seen(doubled.iter().all(|doubled| *doubled > 0), told);
        Ok(())
    }
}

fn some_nodes(ctx: &NemesisContext, dice: &mut StdRng) -> Vec<usize> {
    let members = ctx.cluster.members();
    if dice.random_bool(0.5) { members } else { vec![one_of(&members, dice)] }
}

/// Whether a leader can be elected while packets to all nodes are so late: a candidate asks anew before votes come back that
/// take longer than it waits, and the one before may have been lost when the packets began to be late.
fn is_election_possible(wanted: Disturbance) -> bool {
    2 * (wanted.delay + wanted.jitter) < ELECTION_WAITS
}

fn disturbance(wrong: Wrong, dice: &mut StdRng) -> Disturbance {
    let nothing = Disturbance { loss: 0.0, delay: Duration::ZERO, jitter: Duration::ZERO };
    match wrong {
        Wrong::Loss => Disturbance { loss: dice.random_range(0.01..0.3), ..nothing },
        Wrong::Delay => Disturbance {
            delay: Duration::from_millis(dice.random_range(5..=300)),
            jitter: Duration::from_millis(dice.random_range(0..=20)),
            ..nothing
        },
        Wrong::Reorder => Disturbance { jitter: Duration::from_millis(dice.random_range(5..=50)), ..nothing },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_come_back_in_time_or_nobody_is_elected() {
        let late = |delay, jitter| Disturbance {
            loss: 0.0,
            delay: Duration::from_millis(delay),
            jitter: Duration::from_millis(jitter),
        };
        assert!(is_election_possible(late(0, 50)) && is_election_possible(late(54, 20)));
        assert!(!is_election_possible(late(262, 17)) && !is_election_possible(late(60, 15)));
    }
}
