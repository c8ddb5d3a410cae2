//! Random entries against a small model of tasks, and against a second machine that is loaded from rows again and again.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use quorate_state::control::{Command, Control, NewTask, Reply, RetryPolicy, TaskState};
use quorate_state::{Entry, LogTime, Operation, Outcome, Position, Reject, RequestId, SessionId, TaskId, Token};

/// Something that happens. Numbers pick among what there is, so that most of it makes sense and some of it does not.
#[derive(Clone, Debug)]
enum Act {
    Enqueue {
        role: u8,
        tasks: u8,
        max_attempts: u32,
        request: Option<u8>,
    },
    Open {
        role: u8,
        slots: u32,
    },
    Grant {
        task: u16,
        session: u16,
    },
    GrantEnqueued {
        operation: u8,
        nth: u8,
        session: u16,
    },
    /// Tokens are picked from all that were ever given, so some are stale.
    Complete {
        token: u16,
        children: u8,
    },
    Fail {
        token: u16,
        permanent: bool,
        pause_ms: Option<u16>,
    },
    Cancel {
        task: u16,
    },
    Expire {
        session: u16,
    },
    Attach {
        session: u16,
        attachment: u64,
    },
    Close {
        session: u16,
        attachment: u64,
    },
    Wait {
        ms: u32,
    },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..3u8, 0..4u8, 1..4u32, proptest::option::of(0..6u8))
            .prop_map(|(role, tasks, max_attempts, request)| Act::Enqueue { role, tasks, max_attempts, request }),
        2 => (0..3u8, 1..4u32).prop_map(|(role, slots)| Act::Open { role, slots }),
        8 => (any::<u16>(), any::<u16>()).prop_map(|(task, session)| Act::Grant { task, session }),
        2 => (0..4u8, 0..3u8, any::<u16>())
            .prop_map(|(operation, nth, session)| Act::GrantEnqueued { operation, nth, session }),
        5 => (any::<u16>(), 0..3u8).prop_map(|(token, children)| Act::Complete { token, children }),
        4 => (any::<u16>(), any::<bool>(), proptest::option::of(0..2_000u16))
            .prop_map(|(token, permanent, pause_ms)| Act::Fail { token, permanent, pause_ms }),
        1 => any::<u16>().prop_map(|task| Act::Cancel { task }),
        1 => any::<u16>().prop_map(|session| Act::Expire { session }),
        1 => (any::<u16>(), 0..4u64).prop_map(|(session, attachment)| Act::Attach { session, attachment }),
        1 => (any::<u16>(), 0..4u64).prop_map(|(session, attachment)| Act::Close { session, attachment }),
        2 => prop_oneof![0..3_000u32, Just(25 * 3_600_000)].prop_map(|ms| Act::Wait { ms }),
    ]
}

/// What the model knows of a task.
#[derive(Clone, Debug, PartialEq)]
struct ModelTask {
    role: u8,
    max_attempts: u32,
    attempts: u32,
    failures: u32,
    state: ModelState,
    /// The last token, and what was replied when its attempt ended by its own word.
    token: Option<Token>,
    ended: Option<Reply>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum ModelState {
    Ready,
    Waiting { due: LogTime },
    Granted { session: SessionId },
    Finished { state: TaskState, at: LogTime },
}

#[derive(Clone, Copy, Debug)]
struct ModelSession {
    role: u8,
    slots: u32,
    attachment: u64,
}

/// The model: tasks and sessions, written down as plainly as can be, without indexes, rows, names or limits.
#[derive(Default)]
struct Model {
    tasks: BTreeMap<TaskId, ModelTask>,
    sessions: BTreeMap<SessionId, ModelSession>,
    /// With the time of its entry.
    requests: BTreeMap<RequestId, (LogTime, Reply)>,
    completions: BTreeMap<TaskId, u32>,
}

const DAY_MS: u64 = 24 * 3_600_000;

impl Model {
    fn pass_time(&mut self, now: LogTime) {
        for task in self.tasks.values_mut() {
            if matches!(task.state, ModelState::Waiting { due } if due <= now) {
                task.state = ModelState::Ready;
            }
        }
        let oldest = now.minus_ms(DAY_MS);
        self.tasks.retain(|_, task| !matches!(task.state, ModelState::Finished { at, .. } if at < oldest));
    }

    fn has_left(&self, session: SessionId, attachment: u64) -> bool {
        self.sessions.get(&session).is_some_and(|held| held.attachment > attachment)
    }

    fn running(&self, session: SessionId) -> Vec<TaskId> {
        let of_session = |task: &ModelTask| task.state == ModelState::Granted { session };
        self.tasks.iter().filter(|(_, task)| of_session(task)).map(|(id, _)| *id).collect()
    }

    fn add(&mut self, ids: &[TaskId], role: u8, max_attempts: u32) {
        for id in ids {
            let task = ModelTask {
                role,
                max_attempts,
                attempts: 0,
                failures: 0,
                state: ModelState::Ready,
                token: None,
                ended: None,
            };
            assert!(self.tasks.insert(*id, task).is_none(), "task id {id} was given twice");
        }
    }

    /// Whether a grant should be accepted.
    fn grantable(&self, id: TaskId, session: SessionId) -> bool {
        let (Some(task), Some(held)) = (self.tasks.get(&id), self.sessions.get(&session)) else {
            return false;
        };
        task.state == ModelState::Ready && task.role == held.role && self.running(session).len() < held.slots as usize
    }

    fn grant(&mut self, id: TaskId, session: SessionId, token: Token) -> u32 {
        let task = self.tasks.get_mut(&id).expect("it was grantable");
        assert!(task.token.is_none_or(|old| old < token), "tokens grow");
        task.state = ModelState::Granted { session };
        task.token = Some(token);
        task.ended = None;
        task.attempts += 1;
        task.attempts
    }

    fn fail(&mut self, id: TaskId, permanent: bool, due: Option<LogTime>, now: LogTime) -> bool {
        let task = self.tasks.get_mut(&id).expect("it was granted");
        task.failures += 1;
        let dead = permanent || task.failures >= task.max_attempts;
        task.state = match due {
            _ if dead => ModelState::Finished { state: TaskState::Dead, at: now },
            Some(due) if due > now => ModelState::Waiting { due },
            _ => ModelState::Ready,
        };
        dead
    }

    fn current(&self, id: TaskId, token: Token) -> bool {
        self.tasks
            .get(&id)
            .is_some_and(|task| task.token == Some(token) && matches!(task.state, ModelState::Granted { .. }))
    }
}

/// Two machines under the same entries, the second one rebuilt from the rows of the first now and then.
struct Run {
    first: Control,
    second: Control,
    rows: BTreeMap<(u8, Bytes), Bytes>,
    model: Model,
    position: u64,
    time: LogTime,
    tasks: Vec<TaskId>,
    sessions: Vec<SessionId>,
    tokens: Vec<(TaskId, Token)>,
}

fn pick<T: Copy>(among: &[T], number: u16) -> Option<T> {
    (!among.is_empty()).then(|| among[usize::from(number) % among.len()])
}

fn new_tasks(role: u8, count: u8, max_attempts: u32) -> Vec<NewTask> {
    let retry = RetryPolicy { max_attempts, ..RetryPolicy::default() };
    let task = NewTask { queue: format!("q{}", role % 2), role: format!("r{role}"), payload: vec![role; 3], retry };
    vec![task; usize::from(count)]
}

impl Run {
    fn new() -> Run {
        Run {
            first: Control::new(),
            second: Control::new(),
            rows: BTreeMap::new(),
            model: Model::default(),
            position: 0,
            time: LogTime(1_750_000_000_000_000),
            tasks: Vec::new(),
            sessions: Vec::new(),
            tokens: Vec::new(),
        }
    }

    /// The operation that an act stands for. Ids are those known before the entry.
    fn operation(&self, act: &Act) -> Option<Operation<Command>> {
        let mut request = None;
        let command = match *act {
            Act::Enqueue { role, tasks, max_attempts, request: id } => {
                request = id.map(|id| RequestId(u128::from(id) + 1));
                Command::Enqueue { tasks: new_tasks(role, tasks, max_attempts) }
            }
            Act::Open { role, slots } => {
                Command::OpenSession { agent: "a".to_owned(), roles: vec![format!("r{role}")], slots, ttl_ms: 1_000 }
            }
            Act::Grant { task, session } => {
                Command::Grant { task: pick(&self.tasks, task)?, session: pick(&self.sessions, session)? }
            }
            Act::GrantEnqueued { operation, nth, session } => Command::GrantEnqueued {
                operation: u32::from(operation),
                nth: u32::from(nth),
                session: pick(&self.sessions, session)?,
            },
            Act::Complete { token, children } => {
                let (task, token) = pick(&self.tokens, token)?;
                Command::Complete { task, token, result: b"r".to_vec(), children: new_tasks(1, children, 2) }
            }
            Act::Fail { token, permanent, pause_ms } => {
                let (task, token) = pick(&self.tokens, token)?;
                let retry_at = pause_ms.map(|ms| self.time.plus_ms(u64::from(ms)));
                Command::Fail { task, token, error: "e".to_owned(), permanent, retry_at }
            }
            Act::Cancel { task } => Command::Cancel { task: pick(&self.tasks, task)? },
            Act::Expire { session } => Command::ExpireSession { session: pick(&self.sessions, session)? },
            Act::Attach { session, attachment } => {
                Command::AttachSession { session: pick(&self.sessions, session)?, attachment }
            }
            Act::Close { session, attachment } => {
                Command::CloseSession { session: pick(&self.sessions, session)?, attachment }
            }
            Act::Wait { .. } => Command::Tick,
        };
        Some(Operation { request, command })
    }

    fn apply(&mut self, acts: &[Act]) {
        for act in acts {
            if let Act::Wait { ms } = act {
                self.time = self.time.plus_ms(u64::from(*ms));
            }
        }
        let operations: Vec<_> = acts.iter().filter_map(|act| self.operation(act)).collect();
        self.position += 3;
        let entry = Entry { time: self.time, operations: operations.clone() };
        let outcome = self.first.apply(Position(self.position), entry.clone()).expect("in order");
        let other = self.second.apply(Position(self.position), entry).expect("in order");
        assert_eq!(outcome, other, "equal inputs give equal outputs");
        self.store(&outcome);
        self.model.pass_time(self.time);
        for (number, operation) in operations.iter().enumerate() {
            self.compare(operation, number, &outcome.replies);
        }
        self.compare_all();
        if self.position.is_multiple_of(2) {
            self.second = Control::load(self.rows.iter().map(|((table, key), value)| (*table, key, value)))
                .expect("rows of a machine");
        }
        assert_eq!(self.first, self.second);
        assert_eq!(self.first.hash(), self.second.hash());
        assert_eq!(self.first.check(), Ok(()));
    }

    fn store<E>(&mut self, outcome: &Outcome<Reply, E>) {
        for row in &outcome.rows {
            match &row.value {
                Some(value) => self.rows.insert((row.table, row.key.clone()), value.clone()),
                None => self.rows.remove(&(row.table, row.key.clone())),
            };
        }
    }

    /// Compares the reply to one operation with what the model says, and lets the model follow.
    fn compare(&mut self, operation: &Operation<Command>, number: usize, replies: &[Result<Reply, Reject>]) {
        let reply = &replies[number];
        if let Some((at, before)) = operation.request.and_then(|id| self.model.requests.get(&id))
            && *at >= self.time.minus_ms(DAY_MS)
        {
            // Ids of this test are no UUIDs: after a day they are as good as new.
            assert_eq!(reply.as_ref(), Ok(before), "a repeated request");
            return;
        }
        match &operation.command {
            Command::Enqueue { tasks } => {
                let Ok(Reply::Tasks(ids)) = reply else { panic!("nothing refuses these tasks: {reply:?}") };
                assert_eq!(ids.len(), tasks.len());
                if let Some(task) = tasks.first() {
                    let role = task.payload[0];
                    self.model.add(ids, role, task.retry.max_attempts);
                }
                self.tasks.extend(ids);
                if let Some(id) = operation.request {
                    self.model.requests.insert(id, (self.time, Reply::Tasks(ids.clone())));
                }
            }
            Command::OpenSession { roles, slots, .. } => {
                let Ok(Reply::Session { session }) = reply else { panic!("nothing refuses it: {reply:?}") };
                let role = roles[0].as_bytes()[1] - b'0';
                let opened = ModelSession { role, slots: *slots, attachment: 0 };
                assert!(self.model.sessions.insert(*session, opened).is_none());
                self.sessions.push(*session);
            }
            Command::Grant { task, session } => self.compare_grant(*task, *session, reply),
            Command::GrantEnqueued { operation, nth, session } => {
                let enqueued = match replies[..number].get(*operation as usize) {
                    Some(Ok(Reply::Tasks(tasks) | Reply::Completed { children: tasks })) => tasks.get(*nth as usize),
                    _ => None,
                };
                match enqueued {
                    Some(task) => self.compare_grant(*task, *session, reply),
                    None => assert!(matches!(reply, Err(Reject::InvalidArgument { .. }))),
                }
            }
            Command::Complete { task, token, children, .. } => self.compare_complete(*task, *token, children, reply),
            Command::Fail { task, token, permanent, retry_at, .. } => {
                if let Some(reply) = self.repeated(*task, *token, reply) {
                    assert!(matches!(reply, Ok(Reply::Failed { .. }) | Err(_)));
                } else {
                    let dead = self.model.fail(*task, *permanent, *retry_at, self.time);
                    assert_eq!(reply, &Ok(Reply::Failed { dead }));
                    self.ended(*task, reply);
                }
            }
            Command::Cancel { task } => {
                let live =
                    self.model.tasks.get_mut(task).filter(|task| !matches!(task.state, ModelState::Finished { .. }));
                assert_eq!(reply.is_ok(), live.is_some());
                if let Some(task) = live {
                    task.state = ModelState::Finished { state: TaskState::Cancelled, at: self.time };
                }
            }
            Command::AttachSession { session, attachment } => {
                let held = self.model.sessions.get_mut(session).filter(|held| held.attachment <= *attachment);
                assert_eq!(reply.is_ok(), held.is_some());
                if let Some(held) = held {
                    held.attachment = *attachment;
                }
            }
            Command::CloseSession { session, attachment } if self.model.has_left(*session, *attachment) => {
                assert!(matches!(reply, Err(Reject::StreamLeft { .. })));
            }
            Command::ExpireSession { session } | Command::CloseSession { session, .. } => {
                let running = self.model.running(*session);
                assert_eq!(reply.is_ok(), self.model.sessions.remove(session).is_some());
                for task in running {
                    if matches!(operation.command, Command::ExpireSession { .. }) {
                        self.model.fail(task, false, None, self.time);
                    } else {
                        self.model.tasks.get_mut(&task).expect("it runs").state = ModelState::Ready;
                    }
                }
            }
            _ => assert_eq!(reply, &Ok(Reply::Done)),
        }
    }

    fn compare_grant(&mut self, task: TaskId, session: SessionId, reply: &Result<Reply, Reject>) {
        assert_eq!(reply.is_ok(), self.model.grantable(task, session), "{reply:?}");
        if let Ok(reply) = reply {
            let Reply::Granted { token, attempt } = reply else { panic!("a grant: {reply:?}") };
            assert_eq!(self.model.grant(task, session, *token), *attempt);
            self.tokens.push((task, *token));
        }
    }

    fn compare_complete(&mut self, task: TaskId, token: Token, children: &[NewTask], reply: &Result<Reply, Reject>) {
        if let Some(reply) = self.repeated(task, token, reply) {
            assert!(matches!(reply, Ok(Reply::Completed { .. }) | Err(_)));
            return;
        }
        let Ok(Reply::Completed { children: ids }) = reply else { panic!("the current attempt: {reply:?}") };
        assert_eq!(ids.len(), children.len());
        self.model.add(ids, 1, 2);
        self.tasks.extend(ids);
        let now = self.time;
        let done = self.model.tasks.get_mut(&task).expect("it was granted");
        done.state = ModelState::Finished { state: TaskState::Completed, at: now };
        let times = self.model.completions.entry(task).or_default();
        *times += 1;
        assert_eq!(*times, 1, "task {task} was completed twice");
        self.ended(task, reply);
    }

    /// If the attempt is not the current one: the reply, after checking that it is the one from before or a refusal.
    fn repeated<'a>(
        &self,
        task: TaskId,
        token: Token,
        reply: &'a Result<Reply, Reject>,
    ) -> Option<&'a Result<Reply, Reject>> {
        if self.model.current(task, token) {
            return None;
        }
        let known = self.model.tasks.get(&task).filter(|task| task.token == Some(token));
        match (reply, known.and_then(|task| task.ended.as_ref())) {
            (Ok(reply), Some(before)) => assert_eq!(reply, before),
            (Ok(reply), None) => panic!("an attempt that is not the current one was listened to: {reply:?}"),
            (Err(_), _) => {}
        }
        Some(reply)
    }

    fn ended(&mut self, task: TaskId, reply: &Result<Reply, Reject>) {
        self.model.tasks.get_mut(&task).expect("it was granted").ended = reply.as_ref().ok().cloned();
    }

    fn compare_all(&self) {
        for id in &self.tasks {
            let view = self.first.task(*id);
            let Some(task) = self.model.tasks.get(id) else {
                assert_eq!(view, None);
                continue;
            };
            let view = view.expect("the model has it");
            let state = match task.state {
                ModelState::Ready => TaskState::Ready,
                ModelState::Waiting { .. } => TaskState::Waiting,
                ModelState::Granted { .. } => TaskState::Granted,
                ModelState::Finished { state, .. } => state,
            };
            let seen = (view.state, view.attempts, view.failures, view.token);
            assert_eq!(seen, (state, task.attempts, task.failures, task.token), "task {id}");
            let (table, key) = Control::task_payload_key(*id);
            assert_eq!(view.has_payload, self.rows.contains_key(&(table, Bytes::from(key))));
        }
        let ready: usize = self.first.roles_ready().map(|(_, count)| count).sum();
        let model_ready = self.model.tasks.values().filter(|task| task.state == ModelState::Ready).count();
        assert_eq!(ready, model_ready);
        for session in self.model.sessions.keys() {
            let running: Vec<_> = self.first.running(*session).iter().map(|(task, _)| *task).collect();
            assert_eq!(running, self.model.running(*session));
        }
        assert_eq!(self.first.sessions().count(), self.model.sessions.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    /// Exactly once, fenced by tokens, counted right, and the same after every restart.
    #[test]
    fn the_machine_does_what_the_model_says(entries in prop::collection::vec(prop::collection::vec(act(), 0..6), 1..60)) {
        let mut run = Run::new();
        for acts in &entries {
            run.apply(acts);
        }
    }

    /// Bytes that nobody wrote are an error, never a panic or a flood of memory.
    #[test]
    fn noise_does_not_decode(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(quorate_state::codec::decode::<Entry<Command>>(&bytes).is_err());
        prop_assert!(quorate_state::shard::decode_point(&bytes).is_err());
    }

    /// A right header before noise reaches the decoder of bodies: whatever it makes of it, it does not panic.
    #[test]
    fn noise_behind_a_right_header_does_no_harm(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = vec![quorate_state::codec::VERSION, 1];
        bytes.extend((body.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
        bytes.extend(crc.to_le_bytes());
        bytes.extend(&body);
        if let Ok(entry) = quorate_state::codec::decode::<Entry<Command>>(&bytes) {
            let _ = Control::new().apply(Position(1), entry);
        }
    }
}
