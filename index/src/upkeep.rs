//! What the builders do for an index: seal full heads, merge segments, and put the result in place.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{debug, warn};

use crate::assemble::{Assembled, Origin, Source, assemble};
use crate::core::{Core, RETRY};
use crate::error::Error;
use crate::head::Head;
use crate::policy;
use crate::segment::Segment;
use crate::settings::MAX_SEGMENT_ROWS;
use crate::view::View;

/// The parts of a view that one build replaces.
#[derive(Default)]
struct Plan {
    heads: Vec<Arc<Head>>,
    segments: Vec<Arc<Segment>>,
}

impl Plan {
    /// What is worth building in `view`, most urgent first.
    fn choose(view: &View, resting: bool) -> Plan {
        let sizes = view.sizes();
        if view.frozen.is_empty() {
            let segments =
                policy::choose(&sizes, resting).into_iter().map(|place| Arc::clone(&view.segments[place])).collect();
            return Plan { heads: Vec::new(), segments };
        }
        let mut rows = 0;
        let bounded = view.frozen.iter().take_while(|head| {
            rows += head.live().count();
            rows <= MAX_SEGMENT_ROWS
        });
        let heads: Vec<Arc<Head>> = bounded.cloned().collect();
        let sealed = heads.iter().map(|head| head.live().count()).sum();
        let segments =
            policy::absorb(&sizes, sealed).into_iter().map(|place| Arc::clone(&view.segments[place])).collect();
        Plan { heads, segments }
    }

    fn is_empty(&self) -> bool {
        self.heads.is_empty() && self.segments.is_empty()
    }

    fn sources(&self) -> Vec<Source> {
        let heads = self.heads.iter().map(|head| Source::Head(Arc::clone(head)));
        heads.chain(self.segments.iter().map(|segment| Source::Segment(Arc::clone(segment)))).collect()
    }
}

impl Core {
    /// Builds one segment if one is worth it; says whether to look again at once.
    pub(crate) fn build_once(self: &Arc<Self>, threads: usize, resting: bool) -> bool {
        if resting {
            self.freeze_head();
        }
        let plan = Plan::choose(&self.view(), resting);
        if plan.is_empty() {
            return false;
        }
        match self.build(&plan, threads) {
            Ok(true) => {
                if !resting {
                    // What this build left small is gathered when writes pause.
                    self.watch();
                }
                true
            }
            Ok(false) => false,
            Err(error) => {
                warn!(directory = %self.directory.display(), %error, "building a segment failed; it is tried again in {RETRY:?}");
                self.retry_after(RETRY);
                false
            }
        }
    }

    /// Builds and installs; `false`: cancelled.
    fn build(self: &Arc<Self>, plan: &Plan, threads: usize) -> Result<bool, Error> {
        let number = self.next_segment.fetch_add(1, Ordering::Relaxed);
        let sources = plan.sources();
        let built = match assemble(&self.directory, number, &self.settings, &sources, threads, &self.cancel)? {
            Assembled::Cancelled => return Ok(false),
            Assembled::Empty => None,
            Assembled::Segment { segment, origins } => Some((segment, origins)),
        };
        debug!(directory = %self.directory.display(), number, heads = plan.heads.len(), segments = plan.segments.len(), "a segment was built");
        self.install(plan, &sources, built);
        for segment in &plan.segments {
            // A segment that stays behind has newer copies of all its live rows: the next opening drops it.
            if let Err(error) = segment.delete() {
                warn!(%error, "a replaced segment could not be deleted");
            }
        }
        Ok(true)
    }

    /// Swaps the plan's parts for what was built out of them. Rows that were removed meanwhile stay dead.
    fn install(&self, plan: &Plan, sources: &[Source], built: Option<(Segment, Vec<Origin>)>) {
        let mut writer = self.write();
        let mut view = View::clone(&self.view());
        view.frozen.retain(|head| !plan.heads.iter().any(|replaced| Arc::ptr_eq(head, replaced)));
        view.segments.retain(|segment| !plan.segments.iter().any(|replaced| Arc::ptr_eq(segment, replaced)));
        if let Some((segment, origins)) = built {
            for (slot, origin) in origins.iter().enumerate() {
                if sources[origin.source as usize].live().get(origin.slot as usize) {
                    segment.live().set(slot);
                }
            }
            view.segments.push(Arc::new(segment));
        }
        self.publish(&mut writer, view);
    }
}
