//! What one session holds: its lease, the attempts that run, and the finishes that are not acknowledged.
//!
//! Invariants: an attempt is in `running` until its outcome is taken, then its finish is in `unacknowledged` until it is
//! answered. An outcome whose attempt is not in `running` is refused. Dropping the session gives everything up.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_api::ApiError;
use quorate_api::v1::{self, ErrorReason, Finish, FinishAck, Token, finish::Outcome as Wire};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::attempt::TaskError;
use crate::agent::handler::{Key, Outcome};
use crate::agent::lease::Lease;
use crate::backoff::Backoff;

const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const MOST_BACKOFF: Duration = Duration::from_millis(200);

/// A running handler.
pub(crate) struct Running {
    pub(crate) abort: AbortHandle,
    pub(crate) cancelled: CancellationToken,
}

impl Drop for Running {
    /// Harmless where the handler has ended.
    fn drop(&mut self) {
        self.cancelled.cancel();
        self.abort.abort();
    }
}

struct Unacknowledged {
    finish: Finish,
    backoff: Backoff,
    resend_at: Option<Instant>,
}

/// What an acknowledgement means for its attempt.
#[derive(Debug)]
pub(crate) enum Acknowledged {
    /// The completion took effect, and its children were enqueued under these ids.
    Completed {
        /// The task.
        task_id: u64,
        /// In the order of the output.
        children: Vec<u64>,
    },
    /// The failure took effect.
    Failed,
    /// The attempt was no longer ours; nothing took effect.
    Refused(ApiError),
    /// The outcome itself was refused; this failure says so instead.
    Instead(Finish),
    /// It will be sent again.
    Later,
    /// The session is gone.
    Gone(ApiError),
    /// It answers nothing that is awaited.
    Unknown,
}

pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) lease: Lease,
    pub(crate) attachment: u64,
    pub(crate) next_beat: Instant,
    pub(crate) draining: bool,
    running: BTreeMap<Key, Running>,
    unacknowledged: BTreeMap<u64, Unacknowledged>,
    next_seq: u64,
}

impl Session {
    pub(crate) fn new(id: u64, lease: Lease) -> Self {
        let next_beat = Instant::now() + lease.interval();
        Self {
            id,
            lease,
            // Opening counts as the first attachment.
            attachment: 1,
            next_beat,
            draining: false,
            running: BTreeMap::new(),
            unacknowledged: BTreeMap::new(),
            next_seq: 1,
        }
    }

    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.unacknowledged.is_empty()
    }

    /// Whether the grant is known already: a resumed stream may repeat it.
    pub(crate) fn knows(&self, key: &Key) -> bool {
        self.running.contains_key(key) || self.unacknowledged.values().any(|waiting| key_of(&waiting.finish) == *key)
    }

    pub(crate) fn started(&mut self, key: Key, running: Running) {
        self.running.insert(key, running);
    }

    /// Ends the attempt without a word to the cluster. False if it is not running.
    pub(crate) fn drop_attempt(&mut self, key: &Key) -> bool {
        self.running.remove(key).is_some()
    }

    /// Ends all attempts without a word to the cluster.
    pub(crate) fn drop_all(&mut self) {
        self.running.clear();
    }

    /// Ends the attempt that holds the token. False if none is running with it.
    pub(crate) fn drop_token(&mut self, token: &Token) -> bool {
        let held = |key: &&Key| (key.position, key.ordinal) == (token.position, token.ordinal);
        let key = self.running.keys().find(held).copied();
        key.is_some_and(|key| self.drop_attempt(&key))
    }

    /// The attempt ended here: its finish, to be sent. `None` refuses the outcome of an attempt that was given up.
    pub(crate) fn finish(&mut self, key: Key, outcome: Outcome) -> Option<Finish> {
        self.running.remove(&key)?;
        let completed =
            outcome.and_then(|output| output.into_wire().map_err(|error| TaskError::permanent(error.message)));
        let wire = match completed {
            Ok(completed) => Wire::Completed(completed),
            Err(error) => Wire::Failed(error.into_wire()),
        };
        Some(self.await_ack(key, wire))
    }

    fn await_ack(&mut self, key: Key, outcome: Wire) -> Finish {
        let seq = self.next_seq;
        self.next_seq += 1;
        let token = Some(Token { position: key.position, ordinal: key.ordinal });
        let finish = Finish { seq, task_id: key.task_id, token, outcome: Some(outcome) };
        let backoff = Backoff::new(FIRST_BACKOFF, MOST_BACKOFF);
        let waiting = Unacknowledged { finish: finish.clone(), backoff, resend_at: None };
        self.unacknowledged.insert(seq, waiting);
        finish
    }

    pub(crate) fn acknowledged(&mut self, ack: FinishAck, now: Instant) -> Acknowledged {
        let Some(mut waiting) = self.unacknowledged.remove(&ack.seq) else { return Acknowledged::Unknown };
        let is_completion = matches!(waiting.finish.outcome, Some(Wire::Completed(_)));
        let Some(error) = ack.error.map(ApiError::from) else {
            let completed = Acknowledged::Completed { task_id: waiting.finish.task_id, children: ack.child_ids };
            return if is_completion { completed } else { Acknowledged::Failed };
        };
        if error.is_retryable() {
            waiting.resend_at = Some(now + error.retry_after.unwrap_or_default() + waiting.backoff.next());
            self.unacknowledged.insert(ack.seq, waiting);
            return Acknowledged::Later;
        }
        match error.reason {
            ErrorReason::SessionNotFound => Acknowledged::Gone(error),
            ErrorReason::StaleToken | ErrorReason::TaskFinished | ErrorReason::TaskNotFound => {
                Acknowledged::Refused(error)
            }
            // Left alone, the task would stay granted to us for as long as the session lives.
            reason if is_completion => {
                let permanent = matches!(reason, ErrorReason::InvalidArgument | ErrorReason::TooLarge);
                let failed = v1::Failed { error: error.message, permanent };
                Acknowledged::Instead(self.await_ack(key_of(&waiting.finish), Wire::Failed(failed)))
            }
            _ => Acknowledged::Refused(error),
        }
    }

    /// Everything that must be sent again on a new stream, in order.
    pub(crate) fn resend_all(&mut self) -> Vec<Finish> {
        for waiting in self.unacknowledged.values_mut() {
            waiting.resend_at = None;
        }
        self.unacknowledged.values().map(|waiting| waiting.finish.clone()).collect()
    }

    /// The finishes whose pause is over.
    pub(crate) fn resend_due(&mut self, now: Instant) -> Vec<Finish> {
        let due = self.unacknowledged.values_mut().filter(|waiting| waiting.resend_at.is_some_and(|at| at <= now));
        due.map(|waiting| {
            waiting.resend_at = None;
            waiting.finish.clone()
        })
        .collect()
    }

    /// When the next finish is to be sent again.
    pub(crate) fn resend_at(&self) -> Option<Instant> {
        self.unacknowledged.values().filter_map(|waiting| waiting.resend_at).min()
    }

    /// The attempts that are ours as far as we know: those that run, and those whose finish may not have arrived.
    pub(crate) fn holding(&self) -> Vec<Token> {
        let running = self.running.keys().copied();
        let waiting = self.unacknowledged.values().map(|waiting| key_of(&waiting.finish));
        running.chain(waiting).map(|key| Token { position: key.position, ordinal: key.ordinal }).collect()
    }
}

fn key_of(finish: &Finish) -> Key {
    Key::new(finish.task_id, finish.token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::attempt::Output;

    const KEY: Key = Key { task_id: 7, position: 40, ordinal: 2 };
    const TOKEN: Token = Token { position: 40, ordinal: 2 };

    fn session() -> Session {
        Session::new(1, Lease::opened(Duration::from_secs(10), Instant::now()))
    }

    fn start(session: &mut Session) -> CancellationToken {
        let cancelled = CancellationToken::new();
        let abort = tokio::spawn(std::future::pending::<()>()).abort_handle();
        session.started(KEY, Running { abort, cancelled: cancelled.clone() });
        cancelled
    }

    fn ack(seq: u64, reason: Option<ErrorReason>) -> FinishAck {
        let error = reason.map(|reason| ApiError::new(reason, "no").into());
        FinishAck { seq, error, child_ids: Vec::new() }
    }

    #[tokio::test]
    async fn a_finish_is_held_until_it_is_acknowledged() {
        let mut session = session();
        start(&mut session);
        let finish = session.finish(KEY, Ok(Output::new("x"))).expect("running");
        assert_eq!(session.holding(), [TOKEN]);
        assert!(session.knows(&KEY) && !session.is_idle());
        assert_eq!(session.resend_all(), std::slice::from_ref(&finish));
        assert!(matches!(
            session.acknowledged(ack(finish.seq, None), Instant::now()),
            Acknowledged::Completed { task_id: 7, .. }
        ));
        assert!(session.is_idle());
        assert!(matches!(session.acknowledged(ack(finish.seq, None), Instant::now()), Acknowledged::Unknown));
    }

    #[tokio::test]
    async fn a_retryable_refusal_is_sent_again_after_its_pause() {
        let mut session = session();
        start(&mut session);
        let now = Instant::now();
        let finish = session.finish(KEY, Ok(Output::new("x"))).expect("running");
        let answer = session.acknowledged(ack(finish.seq, Some(ErrorReason::NoLeader)), now);
        assert!(matches!(answer, Acknowledged::Later));
        let at = session.resend_at().expect("a time");
        assert!(at > now && session.resend_due(now).is_empty());
        assert_eq!(session.resend_due(at), [finish]);
        assert_eq!(session.resend_at(), None);
    }

    #[tokio::test]
    async fn a_stale_finish_ends_the_attempt_and_a_bad_one_becomes_a_failure() {
        let mut session = session();
        start(&mut session);
        let stale = session.finish(KEY, Ok(Output::new("x"))).expect("running");
        let answer = session.acknowledged(ack(stale.seq, Some(ErrorReason::StaleToken)), Instant::now());
        assert!(matches!(answer, Acknowledged::Refused(_)));
        assert!(session.is_idle());

        start(&mut session);
        let bad = session.finish(KEY, Ok(Output::new("x"))).expect("running");
        let answer = session.acknowledged(ack(bad.seq, Some(ErrorReason::TooLarge)), Instant::now());
        let Acknowledged::Instead(failure) = answer else { panic!("{answer:?}") };
        assert!(failure.seq > bad.seq);
        assert!(matches!(failure.outcome, Some(Wire::Failed(failed)) if failed.permanent));
    }

    #[tokio::test]
    async fn what_was_given_up_is_signalled_and_refused() {
        let mut session = session();
        let cancelled = start(&mut session);
        assert!(!session.drop_token(&Token { position: 40, ordinal: 3 }));
        assert!(session.drop_token(&TOKEN));
        assert!(cancelled.is_cancelled());
        assert_eq!(session.finish(KEY, Ok(Output::new("late"))), None);

        let cancelled = start(&mut session);
        drop(session);
        assert!(cancelled.is_cancelled(), "the end of a session ends its attempts");
    }
}
