//! The load while members come and go: registers, the queue and searches.
//!
//! The changes themselves are made by the nemeses `join`, `leave` and `replace`; here is what must go on meanwhile. They are
//! recorded where the harness makes them, whatever the load is, and so is who the members are at the beginning and the end.

use anyhow::Result;
use async_trait::async_trait;

use super::mixed::Together;
use super::{WorkContext, Workload};
use crate::event::Part;

/// What it consists of, and the share of each.
pub(super) const PARTS: [(f64, Part); 3] = [(0.5, Part::Register), (0.3, Part::Queue), (0.2, Part::Search)];

/// The load of a changing membership.
pub(super) struct Membership(Together);

impl Membership {
    pub(super) fn new() -> Membership {
        Membership(Together::new(&PARTS))
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
