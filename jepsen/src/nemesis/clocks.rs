//! Wall clocks that jump, flutter and drift.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::time::Instant;

use super::{NemesisContext, Strike, one_of};
use crate::cluster::Mark;

/// How far a clock jumps, in milliseconds.
const JUMPS_MS: [i64; 8] = [50, 250, 1_000, 5_000, 60_000, 3_600_000, 86_400_000, 30 * 86_400_000];
/// How far it flutters.
const STROBES_MS: [i64; 4] = [20, 200, 2_000, 60_000];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Jump,
    Strobe,
    Drift,
}

/// A fault of one node's wall clock. Its monotonic clock goes right.
pub(super) struct ClockFault {
    name: &'static str,
    wrong: Wrong,
}

impl ClockFault {
    pub(super) fn named(name: &str) -> Option<Box<dyn Strike>> {
        let (name, wrong) = match name {
            "clock-jump" => ("clock-jump", Wrong::Jump),
            "clock-strobe" => ("clock-strobe", Wrong::Strobe),
            "clock-drift" => ("clock-drift", Wrong::Drift),
            _ => return None,
        };
        Some(Box::new(ClockFault { name, wrong }))
    }
}

#[async_trait]
impl Strike for ClockFault {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let members = ctx.cluster.members();
        // Half of the time the leader's, as its clock is the one that stamps.
        let leader = if dice.random_bool(0.5) { ctx.any_leader().await } else { None };
        let node = leader.unwrap_or_else(|| one_of(&members, dice));
        if !ctx.cluster.has_clock(node) {
            ctx.skip(self.name, self.name, "the cluster was started without faketime");
            return Ok(());
        }
        let Some(_hold) = ctx.hold(&[Mark::Clock(node)]).await else {
            ctx.skip(self.name, self.name, "another fault has that clock");
            return Ok(());
        };
        let direction = if dice.random_bool(0.5) { 1 } else { -1 };
        let open = ctx.begin(self.name, self.name);
        let (seen, detail) = match self.wrong {
            Wrong::Jump => jump(ctx, node, direction * one_of(&JUMPS_MS, dice), length).await?,
            Wrong::Strobe => {
                let offset_ms = direction * one_of(&STROBES_MS, dice);
                strobe(ctx, dice, node, offset_ms, length).await?
            }
            Wrong::Drift => drift(ctx, node, direction * dice.random_range(1..=80), length).await?,
        };
        ctx.cluster.set_clock(node, 0)?;
        open.end_seen(seen, format!("node {node}{}: {detail}", if leader == Some(node) { " (leader)" } else { "" }));
        Ok(())
    }
}

async fn jump(ctx: &NemesisContext, node: usize, offset_ms: i64, length: Duration) -> Result<(bool, String)> {
    ctx.cluster.set_clock(node, offset_ms)?;
    let seen = ctx.cluster.clock_was_read(node).await;
    ctx.wait(length).await;
    Ok((seen, format!("jumped by {offset_ms} ms and back")))
}

async fn strobe(
    ctx: &NemesisContext,
    dice: &mut StdRng,
    node: usize,
    offset_ms: i64,
    length: Duration,
) -> Result<(bool, String)> {
    let end = Instant::now() + length;
    ctx.cluster.set_clock(node, offset_ms)?;
    let seen = ctx.cluster.clock_was_read(node).await;
    let mut jumps = 1;
    while Instant::now() < end && ctx.wait(Duration::from_millis(dice.random_range(2..100))).await {
        jumps += 1;
        ctx.cluster.set_clock(node, if jumps % 2 == 0 { 0 } else { offset_ms })?;
    }
    Ok((seen, format!("jumped {jumps} times by {offset_ms} ms")))
}

/// Runs so many percent too fast or too slow, in steps of 20 ms of time.
async fn drift(ctx: &NemesisContext, node: usize, percent: i64, length: Duration) -> Result<(bool, String)> {
    let begun = Instant::now();
    let mut off = 0;
    while ctx.wait(Duration::from_millis(20)).await && begun.elapsed() < length {
        off = i64::try_from(begun.elapsed().as_millis())? * percent / 100;
        ctx.cluster.set_clock(node, off)?;
    }
    let seen = ctx.cluster.clock_was_read(node).await;
    Ok((seen, format!("ran {percent}% off until it was {off} ms off")))
}
