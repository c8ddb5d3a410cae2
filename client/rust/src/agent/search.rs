//! The search for a node that carries a session on, when its stream broke or is in doubt.
//!
//! A stream in doubt is served on while the search lasts: what looks like a deaf node may be a cluster between two
//! leaders, and then the stream renews the lease again a moment later. It is left when another node has confirmed that it
//! carries the session, and not before.
//!
//! While a node is asked, a grant that comes on the stream in doubt is *postponed*. Whoever leads gives the node that
//! takes over every attempt that the agent did not name as held, and cannot know which of them were begun meanwhile; one
//! that was begun and finished in between would be performed twice.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use quorate_api::v1::work_request::Frame as Out;
use quorate_api::v1::{Grant, SessionOpened};
use tokio::time::Instant;

use crate::agent::handler::Key;
use crate::agent::stream::{Refusal, Stream};
use crate::backoff::Backoff;
use crate::nodes::{Address, Nodes};

/// Pauses between two nodes: short, because a lease runs.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What came of asking a node.
pub(crate) type Answer = Result<(Stream, SessionOpened), Refusal>;

/// Asks one node after another.
pub(crate) struct Search {
    backoff: Backoff,
    next_try: Instant,
    asked: Option<BoxFuture<'static, (Address, Answer)>>,
    postponed: Vec<Grant>,
}

impl Search {
    pub(crate) fn new() -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { backoff, next_try: Instant::now(), asked: None, postponed: Vec::new() }
    }

    /// When the next node may be asked; `None` while one is.
    pub(crate) fn next_try(&self) -> Option<Instant> {
        self.asked.is_none().then_some(self.next_try)
    }

    /// Asks a node. The last answer must have come.
    pub(crate) fn ask(&mut self, nodes: Arc<Nodes>, address: Address, resume: Out) {
        let asking = async move {
            let answer = Stream::attach(&nodes, &address, resume).await;
            (address, answer)
        };
        self.asked = Some(asking.boxed());
    }

    /// The answer of the node that is asked; never, if none is.
    pub(crate) async fn answer(&mut self) -> (Address, Answer) {
        let Some(asked) = &mut self.asked else { return pending().await };
        let answer = asked.await;
        self.asked = None;
        answer
    }

    /// Keeps the grant back, if a node is asked. Returns it otherwise.
    pub(crate) fn postpone(&mut self, grant: Grant) -> Option<Grant> {
        if self.asked.is_none() {
            return Some(grant);
        }
        self.postponed.push(grant);
        None
    }

    /// Forgets a grant that was kept back. False if none was.
    pub(crate) fn forget(&mut self, key: &Key) -> bool {
        let before = self.postponed.len();
        self.postponed.retain(|grant| Key::new(grant.task_id, grant.token) != *key);
        self.postponed.len() < before
    }

    /// The node did not take over: the next one is asked after a pause. Returns the grants that were kept back, which the
    /// session has all the same.
    pub(crate) fn refused(&mut self) -> Vec<Grant> {
        self.next_try = Instant::now() + self.backoff.next();
        std::mem::take(&mut self.postponed)
    }
}
