//! Strikes one after the other, with calm between, all drawn by a seed.

use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::{NAMES, Needs, Nemesis, NemesisContext, draw, one_of, strike};

/// One fault from its beginning to its end.
#[async_trait]
pub trait Strike: Send {
    /// Its name, one of [`NAMES`].
    fn name(&self) -> &'static str;

    /// Breaks something for about `length`, or until `ctx.stop`, ends it and reports it.
    ///
    /// # Errors
    /// If the harness fails.
    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()>;
}

/// One kind of strike again and again.
pub(super) struct Driven {
    strike: Box<dyn Strike>,
    dice: StdRng,
}

impl Driven {
    pub(super) fn new(strike: Box<dyn Strike>, seed: u64) -> Driven {
        Driven { strike, dice: StdRng::seed_from_u64(seed) }
    }
}

#[async_trait]
impl Nemesis for Driven {
    fn name(&self) -> &'static str {
        self.strike.name()
    }

    async fn run(&mut self, ctx: &NemesisContext) -> Result<()> {
        while ctx.wait(draw(&ctx.pace.calm, &mut self.dice)).await {
            let length = draw(&ctx.pace.fault, &mut self.dice);
            let struck = self.strike.strike(ctx, &mut self.dice, length).await;
            struck.with_context(|| format!("nemesis {}", self.strike.name()))?;
        }
        Ok(())
    }
}

/// A strike of another kind each time.
pub(super) struct Chaos {
    dice: StdRng,
}

impl Chaos {
    pub(super) fn new(seed: u64) -> Chaos {
        Chaos { dice: StdRng::seed_from_u64(seed) }
    }
}

#[async_trait]
impl Nemesis for Chaos {
    fn name(&self) -> &'static str {
        "chaos"
    }

    async fn run(&mut self, ctx: &NemesisContext) -> Result<()> {
        let kinds = kinds(|needs| {
            let cluster = &ctx.cluster;
            needs.nodes <= cluster.members().len()
                && (!needs.loop_disk || cluster.has_power_switch(0))
                && (!needs.faketime || cluster.has_clock(0))
                && (!needs.failpoints || cluster.has_failpoints())
        });
        while ctx.wait(draw(&ctx.pace.calm, &mut self.dice)).await {
            let Some(mut strike) = strike(one_of(&kinds, &mut self.dice), None) else { continue };
            let length = draw(&ctx.pace.fault, &mut self.dice);
            strike.strike(ctx, &mut self.dice, length).await.with_context(|| format!("nemesis {}", strike.name()))?;
        }
        Ok(())
    }
}

/// What chaos draws from: names that are no single strike make none when they are drawn.
fn kinds(met: impl Fn(&Needs) -> bool) -> Vec<&'static str> {
    NAMES.iter().filter(|(.., needs)| met(needs)).map(|(name, ..)| *name).collect()
}

/// Breaks nothing.
pub(super) struct Nothing;

#[async_trait]
impl Nemesis for Nothing {
    fn name(&self) -> &'static str {
        "none"
    }

    async fn run(&mut self, ctx: &NemesisContext) -> Result<()> {
        ctx.stop.cancelled().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chaos_draws_all_that_the_cluster_allows() {
        assert_eq!(kinds(|_| true).len(), NAMES.len());
        assert!(kinds(|needs| !needs.loop_disk).iter().all(|name| *name != "power-cut"));
    }
}
