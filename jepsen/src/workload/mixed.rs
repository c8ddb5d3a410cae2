//! All loads at once, each with its share of the rate.

use anyhow::Result;
use async_trait::async_trait;
use futures::future::try_join_all;

use super::lease::Lease;
use super::queue::Queue;
use super::register::Register;
use super::requests::Requests;
use super::search::Freshness;
use super::{WorkContext, Workload};

/// Loads that run side by side.
pub(super) struct Together {
    parts: Vec<(f64, Box<dyn Workload>)>,
}

impl Together {
    pub(super) fn new(parts: Vec<(f64, Box<dyn Workload>)>) -> Together {
        Together { parts }
    }

    fn each(&self, ctx: &WorkContext) -> Vec<(&dyn Workload, WorkContext)> {
        let numbered = self.parts.iter().enumerate();
        numbered.map(|(ordinal, (share, load))| (&**load, ctx.part(*share, ordinal as u64 + 1))).collect()
    }

    pub(super) async fn prepare(&self, ctx: &WorkContext) -> Result<()> {
        for (load, ctx) in self.each(ctx) {
            load.prepare(&ctx).await?;
        }
        Ok(())
    }

    pub(super) async fn run(&self, ctx: &WorkContext) -> Result<()> {
        try_join_all(self.each(ctx).into_iter().map(|(load, ctx)| async move { load.run(&ctx).await })).await?;
        Ok(())
    }

    pub(super) async fn finish(&self, ctx: &WorkContext) -> Result<()> {
        try_join_all(self.each(ctx).into_iter().map(|(load, ctx)| async move { load.finish(&ctx).await })).await?;
        Ok(())
    }
}

/// The load of everything.
pub(super) struct Mixed(Together);

impl Mixed {
    pub(super) fn new() -> Mixed {
        let parts: Vec<(f64, Box<dyn Workload>)> = vec![
            (0.40, Box::new(Register::new())),
            (0.25, Box::new(Queue::new())),
            (0.10, Box::new(Lease::new())),
            (0.10, Box::new(Requests::new())),
            (0.15, Box::new(Freshness::new())),
        ];
        Mixed(Together::new(parts))
    }
}

#[async_trait]
impl Workload for Mixed {
    fn name(&self) -> &'static str {
        "mixed"
    }

    async fn prepare(&self, ctx: &WorkContext) -> Result<()> {
        self.0.prepare(ctx).await
    }

    async fn run(&self, ctx: &WorkContext) -> Result<()> {
        self.0.run(ctx).await
    }

    async fn finish(&self, ctx: &WorkContext) -> Result<()> {
        self.0.finish(ctx).await
    }
}
