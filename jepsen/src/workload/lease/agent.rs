//! Agents that behave as no SDK would: they fall silent in the midst of an attempt and finish it late, move to another
//! node and leave the old stream to close behind them, or break off and come back.

use std::time::Duration;

use quorate_client::v1::Grant;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::resource::Resource;
use super::wire::{Session, TTL, token_of};
use super::{Backlog, QUEUE};
use crate::event::{Note, Operation, Token};
use crate::history::{Process, Recorder};
use crate::workload::queue::value_of;

/// How long an answer to a finish is waited for.
const ANSWER: Duration = Duration::from_secs(3);
const RESEND: Duration = Duration::from_millis(300);
const IDLE: Duration = Duration::from_millis(500);
/// How long a stream that was left, and gives the session back, is left open.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// What an agent does with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Works, then finishes.
    Honest,
    /// Works for longer than a lease lasts, and renews it meanwhile.
    Patient,
    /// Says nothing until the lease is long over, then goes on as if nothing had been.
    Silent,
    /// Moves to another node in the midst of it; the old stream closes a little later, or even gives the session back, which
    /// is not its to give any more.
    Moving,
    /// Breaks off and comes back, soon or too late.
    Breaking,
}

/// An agent.
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) endpoints: Vec<String>,
    pub(super) recorder: Recorder,
    pub(super) resource: Resource,
    pub(super) backlog: Backlog,
    pub(super) random: StdRng,
    /// The load is over: from now on the agent is honest, so that the queue empties.
    pub(super) calm: CancellationToken,
    /// The agent is to end.
    pub(super) quit: CancellationToken,
}

/// An attempt under way.
struct Work {
    task: u64,
    value: u64,
    token: Token,
    process: Process,
}

impl Agent {
    pub(super) fn seeded(seed: u64, number: usize) -> StdRng {
        StdRng::seed_from_u64(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9))
    }

    /// Runs until it is told to end.
    pub(super) async fn run(mut self) {
        while !self.quit.is_cancelled() {
            let Some(mut session) = self.open().await else { continue };
            while session.is_attached() && !self.quit.is_cancelled() {
                if let Some(grant) = session.await_grant(Instant::now() + IDLE).await {
                    self.perform(&mut session, &grant).await;
                }
            }
            if let Some(left) = session.robbed_of() {
                let what =
                    format!("leases: the session {} of {} was ended {left:?} before its lease", session.id, self.name);
                self.recorder.note(&Note::Violation { what, time: self.recorder.now() });
            }
            session.close().await;
        }
    }

    async fn open(&mut self) -> Option<Session> {
        let node = self.random.random_range(0..self.endpoints.len());
        let opened = Session::open(&self.endpoints, node, &self.name, QUEUE).await;
        if opened.is_err() {
            tokio::time::sleep(Duration::from_millis(self.random.random_range(20..200))).await;
        }
        opened.ok()
    }

    fn manner(&mut self) -> Manner {
        match self.random.random_range(0..100) {
            _ if self.calm.is_cancelled() => Manner::Honest,
            0..42 => Manner::Honest,
            42..50 => Manner::Patient,
            50..65 => Manner::Silent,
            65..88 => Manner::Moving,
            _ => Manner::Breaking,
        }
    }

    async fn perform(&mut self, session: &mut Session, grant: &Grant) {
        let (task, value, token) = (grant.task_id, value_of(&grant.payload), token_of(grant.token));
        let mut process = self.recorder.process();
        let delivered = Operation::Deliver { value, task, token: token.to_string(), attempt: grant.attempt };
        process.instant(delivered);
        let mut work = Work { task, value, token, process };
        let manner = self.manner();
        self.labour(session, &mut work).await;
        match manner {
            Manner::Honest => {}
            Manner::Patient => {
                let end = Instant::now() + TTL.mul_f64(self.random.random_range(1.5..3.0));
                while session.holds(work.token) && Instant::now() < end {
                    self.labour(session, &mut work).await;
                }
            }
            Manner::Silent => {
                let silence = TTL.mul_f64(self.random.random_range(1.2..2.0));
                tokio::time::sleep(silence).await;
            }
            Manner::Moving => self.move_away(session, &work).await,
            Manner::Breaking => {
                session.break_off();
                tokio::time::sleep(Duration::from_millis(self.random.random_range(0..2_500))).await;
                self.come_back(session, &work).await;
            }
        }
        // The others stop when the attempt is not theirs any more; the silent one does not look.
        if manner != Manner::Silent {
            self.labour(session, &mut work).await;
        } else {
            self.effect(session, &mut work);
        }
        self.finish(session, work, manner).await;
    }

    fn effect(&self, session: &mut Session, work: &mut Work) {
        let (task, token) = (work.task, work.token);
        self.resource.effect(&mut work.process, task, token, || session.holds(token));
    }

    /// A few effects over some time, as long as the attempt is held.
    async fn labour(&mut self, session: &mut Session, work: &mut Work) {
        for _ in 0..self.random.random_range(2..6) {
            self.effect(session, work);
            let until = Instant::now() + Duration::from_millis(self.random.random_range(20..150));
            session.pump(until).await;
            if !session.holds(work.token) {
                return;
            }
        }
    }

    async fn move_away(&mut self, session: &mut Session, work: &Work) {
        let node = session.elsewhere(self.random.random_range(0..8));
        if let Ok(Some(old)) = session.resume(node, work.token).await {
            if self.random.random_bool(0.3) {
                drop(tokio::spawn(old.give_back(FORGOTTEN)));
                return;
            }
            let late = Duration::from_millis(self.random.random_range(0..600));
            // It closes while the session works elsewhere.
            drop(tokio::spawn(async move {
                tokio::time::sleep(late).await;
                drop(old);
            }));
        }
    }

    /// Looks for a node that carries the session on, as long as its lease may run.
    async fn come_back(&mut self, session: &mut Session, work: &Work) {
        let end = Instant::now() + TTL;
        while !session.is_attached() && Instant::now() < end {
            let node = session.elsewhere(self.random.random_range(0..8));
            match session.resume(node, work.token).await {
                Ok(_) => return,
                Err(why) if why.contains("gone") => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(self.random.random_range(20..200))).await,
            }
        }
    }

    /// Sends the completion, also of an attempt that is not the agent's any more: the cluster must refuse it.
    async fn finish(&mut self, session: &mut Session, mut work: Work, manner: Manner) {
        let mut other = None;
        if !session.is_attached() {
            if manner == Manner::Honest {
                self.come_back(session, &work).await;
            }
            if !session.is_attached() {
                other = self.open().await;
            }
        }
        let session = other.as_mut().unwrap_or(session);
        let operation =
            Operation::Complete { value: work.value, task: work.task, token: work.token.to_string(), child: None };
        work.process.invoke(operation.clone(), None);
        match complete(session, &work).await {
            Answer::Done => {
                work.process.ok(operation);
                self.backlog.completed();
            }
            Answer::Refused(why) => work.process.fail(why),
            Answer::Unknown(why) => work.process.info(why),
        }
        if let Some(mut other) = other {
            other.close().await;
        }
    }
}

enum Answer {
    Done,
    Refused(String),
    Unknown(String),
}

/// Sends the completion until it is answered for good. A refusal after a try whose answer was lost says nothing.
async fn complete(session: &mut Session, work: &Work) -> Answer {
    const STALE: [&str; 4] = ["STALE_TOKEN", "TASK_FINISHED", "TASK_NOT_FOUND", "SESSION_NOT_FOUND"];
    let deadline = Instant::now() + ANSWER;
    let mut is_open = false;
    let mut last = "no answer in time".to_owned();
    while Instant::now() < deadline {
        if !session.is_attached() {
            return Answer::Unknown("the stream broke".into());
        }
        let seq = session.complete(work.task, work.token);
        let answer = session.await_answer(seq, deadline).await;
        let Some(ack) = answer else { return Answer::Unknown(last) };
        let Some(error) = ack.error else { return Answer::Done };
        if STALE.contains(&error.reason.as_str()) {
            return if is_open { Answer::Unknown(error.reason) } else { Answer::Refused(error.reason) };
        }
        is_open |= error.reason == "OUTCOME_UNKNOWN" || error.reason == "INTERNAL";
        last = error.reason;
        session.pump(Instant::now() + RESEND).await;
    }
    if is_open { Answer::Unknown(last) } else { Answer::Refused(last) }
}
