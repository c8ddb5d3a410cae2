//! All loads at once, each with its share of the rate.

use anyhow::Result;
use async_trait::async_trait;
use futures::future::try_join_all;

use super::{WorkContext, Workload, load};
use crate::event::Part;

/// Loads that run side by side.
pub(super) struct Together {
    parts: Vec<(f64, Part, Box<dyn Workload>)>,
}

impl Together {
    /// Loads with their shares of the rate.
    pub(super) fn new(parts: &[(f64, Part)]) -> Together {
        let parts = parts.iter().filter_map(|(share, part)| Some((*share, *part, load(*part)?)));
        Together { parts: parts.collect() }
    }

    fn each(&self, ctx: &WorkContext) -> Vec<(&dyn Workload, WorkContext)> {
        let numbered = self.parts.iter().zip(1_u64..);
        numbered.map(|((share, part, load), salt)| (&**load, ctx.part(*share, salt).labelled(*part))).collect()
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

/// What it consists of, and the share of each.
pub(super) const PARTS: [(f64, Part); 5] =
    [(0.40, Part::Register), (0.25, Part::Queue), (0.10, Part::Lease), (0.10, Part::Requests), (0.15, Part::Search)];

/// The load of everything.
pub(super) struct Mixed(Together);

impl Mixed {
    pub(super) fn new() -> Mixed {
        Mixed(Together::new(&PARTS))
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
