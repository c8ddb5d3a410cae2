//! Streams that are being taken in: what a node says of their sessions waits here until the leader may answer.
//!
//! First the log has to know the streams by which agents go on, so that no later leader takes one that was left for the
//! session's. Then a quorum must follow this leader: what an attach is told comes from its book, and one that was cut off
//! would hand out attempts that the next leader has seen finished.
//!
//! Only those sessions wait. The heartbeats of the others go by: one agent that comes back while the leader's disk stalls must
//! not let all sessions of its node expire.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use quorate_state::control::Command;
use quorate_state::{Operation, SessionId};
use tokio::time::sleep;

use super::frames::Up;
use super::leader::Leader;
use super::link::settle;

/// How often a leader that waits to be confirmed looks whether it is.
const CONFIRM_EVERY: Duration = Duration::from_millis(10);
/// Streams that are proposed in one call.
const STREAMS_A_CALL: usize = 1_000;

/// What waits on one link. There are at most as many parts as the node has sessions.
#[derive(Default)]
pub(super) struct Attaching {
    /// What was said of the sessions of a part, by the frames that said it: each is bounded, and so is what is proposed for it.
    parts: BTreeMap<u64, VecDeque<Up>>,
    /// The part in which a session waits.
    waiting: HashMap<u64, u64>,
    last: u64,
    under_way: FuturesUnordered<BoxFuture<'static, (u64, bool)>>,
}

impl Attaching {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Keeps back what has to wait of a frame, and gives the rest.
    pub(super) fn admit(&mut self, leader: &Arc<Leader>, up: Up) -> Up {
        // Nearly all frames: nothing waits, and nobody comes.
        if up.attaches.is_empty() && self.is_empty() {
            return up;
        }
        let new = new_streams(leader, &up);
        let sessions: HashSet<u64> = match may_answer(leader) {
            true => new.iter().map(|(session, _)| session.0).collect(),
            false => up.attaches.iter().map(|attach| attach.session).collect(),
        };
        let leader = leader.clone();
        self.keep_back(up, sessions, move || Box::pin(async move { record(&leader, new).await }))
    }

    /// The same for sessions that wait for `ready` to say whether they may be tried again, beside those that wait already.
    fn keep_back(
        &mut self,
        mut up: Up,
        mut sessions: HashSet<u64>,
        ready: impl FnOnce() -> BoxFuture<'static, bool>,
    ) -> Up {
        sessions.retain(|session| !self.waiting.contains_key(session));
        if !sessions.is_empty() {
            self.last += 1;
            let (number, ready) = (self.last, ready());
            self.waiting.extend(sessions.into_iter().map(|session| (session, number)));
            self.parts.insert(number, VecDeque::new());
            self.under_way.push(Box::pin(async move { (number, ready.await) }));
        }
        for (number, said) in up.split_off(|session| self.waiting.get(&session).copied()) {
            self.parts.get_mut(&number).expect("a session waits in a part that is there").push_back(said);
        }
        up
    }

    /// What was said of the sessions of the next part that may be tried again, in its order; `None` if this leader cannot come
    /// to that. Never, if nothing waits.
    pub(super) async fn next(&mut self) -> Option<VecDeque<Up>> {
        match self.under_way.next().await {
            Some((number, true)) => {
                self.waiting.retain(|_, part| *part != number);
                self.parts.remove(&number)
            }
            Some((_, false)) => None,
            None => std::future::pending().await,
        }
    }
}

/// Whether what the leader's book says of a session may be told to its agent.
fn may_answer(leader: &Leader) -> bool {
    #[cfg(feature = "planted")]
    if crate::planted::is("unconfirmed-attach") {
        return true;
    }
    leader.is_confirmed()
}

/// The streams of a frame that the log does not know yet.
fn new_streams(leader: &Leader, up: &Up) -> Vec<(SessionId, u64)> {
    // Their entry would confirm the leader as well.
    #[cfg(feature = "planted")]
    if crate::planted::is("unconfirmed-attach") {
        return Vec::new();
    }
    leader.context.control.read(|state| {
        let attaches = up.attaches.iter().map(|attach| (SessionId(attach.session), attach.attachment));
        attaches.filter(|(session, number)| state.attachment(*session).is_some_and(|known| known < *number)).collect()
    })
}

/// Puts streams into the log, and waits until a quorum follows. What the log refuses is found out when it is taken in: the
/// session is over, or has a later stream.
async fn record(leader: &Leader, new: Vec<(SessionId, u64)>) -> bool {
    leader.with_book(|book, _| {
        for (session, attachment) in &new {
            book.roster.goes_on(*session, *attachment);
        }
    });
    for part in new.chunks(STREAMS_A_CALL) {
        let command = |&(session, attachment): &_| Operation::new(Command::AttachSession { session, attachment });
        let submit = || leader.context.control.submit(part.iter().map(command).collect());
        if let Err(error) = settle(submit(), submit).await {
            tracing::debug!(%error, "streams of sessions could not be proposed; the node is to show them again");
            return false;
        }
    }
    while !may_answer(leader) {
        sleep(CONFIRM_EVERY).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use quorate_state::control::Reply;
    use tokio::time::timeout;

    use super::super::frames::{Attach, Beat, Place};
    use super::super::metrics::TaskMetrics;
    use super::*;
    use crate::testing::{PATIENCE, Stage, on_stage};

    fn leader(stage: &Stage) -> Arc<Leader> {
        let metrics = TaskMetrics::new(&stage.context.metrics.registry).expect("registered once");
        Arc::new(Leader::new(stage.context.clone(), Arc::new(metrics)))
    }

    async fn open_session(stage: &Stage) -> u64 {
        let open = Command::OpenSession { agent: "a".into(), roles: vec!["r".into()], slots: 1, ttl_ms: 10_000 };
        match stage.run(open).await {
            Reply::Session { session } => session.0,
            other => panic!("{other:?}"),
        }
    }

    fn attach(session: u64, attachment: u64) -> Attach {
        Attach { session, attachment, holding: Vec::new() }
    }

    fn beat(session: u64, seq: u64) -> Beat {
        Beat { session, attachment: 1, seq, draining: false }
    }

    /// Keeps session 1 back until it is told otherwise.
    fn kept(attaching: &mut Attaching, up: Up) -> (Up, oneshot::Sender<bool>) {
        let (tell, told) = oneshot::channel();
        let ready = || -> BoxFuture<'static, bool> { Box::pin(async move { told.await.unwrap_or(false) }) };
        (attaching.keep_back(up, HashSet::from([1]), ready), tell)
    }

    fn later(attaching: &mut Attaching, up: Up) -> Up {
        attaching.keep_back(up, HashSet::new(), || unreachable!("nobody new waits"))
    }

    #[tokio::test]
    async fn a_stream_that_waits_holds_up_no_other_session() {
        let mut attaching = Attaching::default();
        let up = Up { attaches: vec![attach(1, 2), attach(2, 1)], beats: vec![beat(2, 7)], ..Up::default() };
        let (rest, tell) = kept(&mut attaching, up);
        assert_eq!((&rest.attaches[..], &rest.beats[..]), (&[attach(2, 1)][..], &[beat(2, 7)][..]));
        let close = Place { session: 1, attachment: 2 };
        let up = Up { beats: vec![beat(1, 3), beat(2, 8)], closes: vec![close], ..Up::default() };
        let rest = later(&mut attaching, up);
        assert_eq!((&rest.beats[..], rest.closes.len()), (&[beat(2, 8)][..], 0));
        tell.send(true).expect("it is waited for");
        let part = attaching.next().await.expect("it may be tried again");
        let said = [
            Up { attaches: vec![attach(1, 2)], ..Up::default() },
            Up { beats: vec![beat(1, 3)], closes: vec![close], ..Up::default() },
        ];
        assert_eq!(part, said, "all that was said of it, in its order, and no frame larger than it was");
        assert!(attaching.is_empty());
        assert_eq!(later(&mut attaching, Up { beats: vec![beat(1, 4)], ..Up::default() }).beats, vec![beat(1, 4)]);
    }

    #[tokio::test]
    async fn many_that_wait_do_not_close_the_stream_to_the_others() {
        let mut attaching = Attaching::default();
        let mut told = Vec::new();
        for session in 1..=1_000 {
            let (tell, ready) = oneshot::channel::<()>();
            told.push(tell);
            let ready = || -> BoxFuture<'static, bool> { Box::pin(async move { ready.await.is_ok() }) };
            let up = Up { attaches: vec![attach(session, 2)], beats: vec![beat(2_000, session)], ..Up::default() };
            let rest = attaching.keep_back(up, HashSet::from([session]), ready);
            assert_eq!((rest.attaches.len(), &rest.beats[..]), (0, &[beat(2_000, session)][..]));
        }
        told.remove(500).send(()).expect("it is waited for");
        let part = attaching.next().await.expect("it may be tried again");
        assert_eq!(part, [Up { attaches: vec![attach(501, 2)], ..Up::default() }]);
        assert_eq!(
            later(&mut attaching, Up { beats: vec![beat(501, 1), beat(502, 1)], ..Up::default() }).beats,
            [beat(501, 1)]
        );
    }

    #[tokio::test]
    async fn a_leader_that_cannot_come_to_it_gives_up() {
        let mut attaching = Attaching::default();
        let (_, tell) = kept(&mut attaching, Up { attaches: vec![attach(1, 2)], ..Up::default() });
        tell.send(false).expect("it is waited for");
        assert_eq!(attaching.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_waits_while_the_leader_is_not_confirmed_and_goes_on_once_it_is() {
        on_stage(async |stage| {
            stage.start_control().await;
            let (leader, mut attaching) = (leader(&stage), Attaching::default());
            let up = Up { attaches: vec![attach(1, 0)], beats: vec![beat(1, 3), beat(2, 7)], ..Up::default() };
            let rest = attaching.admit(&leader, up);
            assert_eq!(rest, Up { beats: vec![beat(2, 7)], ..Up::default() }, "only who comes has to wait");
            assert!(timeout(PATIENCE, attaching.next()).await.is_err(), "nobody has confirmed it");
            stage.lead().await;
            let part = timeout(PATIENCE, attaching.next()).await.expect("it is confirmed").expect("it leads");
            let said = Up { attaches: vec![attach(1, 0)], beats: vec![beat(1, 3)], ..Up::default() };
            assert_eq!(part, std::slice::from_ref(&said));
            assert_eq!(attaching.admit(&leader, said.clone()), said, "nothing keeps it back any more");
            assert!(attaching.is_empty());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_was_cut_off_lets_also_the_streams_wait_that_the_log_knows() {
        on_stage(async |stage| {
            stage.found(1).await;
            let session = open_session(&stage).await;
            let (leader, mut attaching) = (leader(&stage), Attaching::default());
            let up = Up { attaches: vec![attach(session, 0)], ..Up::default() };
            assert_eq!(attaching.admit(&leader, up.clone()), up, "a majority follows");
            stage.lose_majority().await;
            assert_eq!(attaching.admit(&leader, up), Up::default());
            assert!(timeout(PATIENCE, attaching.next()).await.is_err(), "another one may lead by now");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_the_log_does_not_know_waits_until_it_does_and_one_that_it_knows_does_not() {
        on_stage(async |stage| {
            stage.found(1).await;
            let (moved, known) = (open_session(&stage).await, open_session(&stage).await);
            let (leader, mut attaching) = (leader(&stage), Attaching::default());
            let up = Up { attaches: vec![attach(moved, 1), attach(known, 0)], ..Up::default() };
            let rest = attaching.admit(&leader, up);
            assert_eq!(rest, Up { attaches: vec![attach(known, 0)], ..Up::default() });
            let part = timeout(PATIENCE, attaching.next()).await.expect("a majority follows").expect("it leads");
            assert_eq!(part, [Up { attaches: vec![attach(moved, 1)], ..Up::default() }]);
            let attachment = stage.context.control.read(|state| state.attachment(SessionId(moved)));
            assert_eq!(attachment, Some(1), "every later leader refuses what is said on the one that was left");
        })
        .await;
    }
}
