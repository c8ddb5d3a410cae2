//! The load while members come and go: registers, the queue and searches.
//!
//! The changes themselves are made by the nemesis `membership`; here is what must go on meanwhile.

use anyhow::Result;
use async_trait::async_trait;

use super::mixed::Together;
use super::queue::Queue;
use super::register::Register;
use super::search::Freshness;
use super::{WorkContext, Workload};

/// The load of a changing membership.
pub(super) struct Membership(Together);

impl Membership {
    pub(super) fn new() -> Membership {
        let parts: Vec<(f64, Box<dyn Workload>)> =
            vec![(0.5, Box::new(Register::new())), (0.3, Box::new(Queue::new())), (0.2, Box::new(Freshness::new()))];
        Membership(Together::new(parts))
    }
}

#[async_trait]
impl Workload for Membership {
    fn name(&self) -> &'static str {
        "membership"
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
