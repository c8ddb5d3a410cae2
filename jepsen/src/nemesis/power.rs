//! Power cuts.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use futures::future::join_all;
use rand::rngs::StdRng;

use super::processes::{Whom, shown};
use super::{NemesisContext, Strike};

/// Nodes lose their power: what they did not sync is gone when they come back.
pub(super) struct PowerCut {
    name: &'static str,
    whom: Whom,
}

impl PowerCut {
    pub(super) fn named(name: &str) -> Option<Box<dyn Strike>> {
        let (name, whom) = match name {
            "power-cut" => ("power-cut", Whom::One),
            "power-cut-leader" => ("power-cut-leader", Whom::Leader),
            "power-cut-all" => ("power-cut-all", Whom::All),
            _ => return None,
        };
        Some(Box::new(PowerCut { name, whom }))
    }
}

#[async_trait]
impl Strike for PowerCut {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let (nodes, _holds) = match self.whom.hold(ctx, dice).await {
            Ok(held) => held,
            Err(why) => {
                ctx.skip(self.name, self.name, why);
                return Ok(());
            }
        };
        if nodes.iter().any(|node| !ctx.cluster.has_power_switch(*node)) {
            ctx.skip(self.name, self.name, "the disks are folders");
            return Ok(());
        }
        let mut open = ctx.begin(self.name, self.name);
        let seen = ctx.cluster.power_cut(&nodes).await?;
        open.bites_now();
        ctx.wait(length).await;
        // A disk that cannot be mounted is a fault of this machine: it says nothing about the node.
        for mounted in join_all(nodes.iter().map(|node| ctx.cluster.mount_again(*node))).await {
            mounted?;
        }
        join_all(nodes.iter().map(|node| ctx.back(*node, "a power cut"))).await;
        open.end_seen(seen.iter().all(|seen| *seen), format!("{}: the disk refused a write with EIO", shown(&nodes)));
        Ok(())
    }
}
