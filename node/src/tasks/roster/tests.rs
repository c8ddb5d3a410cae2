//! The book against the real control machine, without a network: entries are formed, applied and settled by hand.

use std::time::Duration;

use quorate_state::control::{Command, Control, Effect, NewTask, NodeRecord, Reply};
use quorate_state::{Entry, LogTime, NodeId, Operation, Position, Reject, SessionId, TaskId, Token};
use tokio::time::Instant;

use super::{Attachment, Delivery, LinkId, Roster, STALL};

const NEAR: LinkId = LinkId(1);
const FAR: LinkId = LinkId(2);
const TTL: Duration = Duration::from_secs(10);

struct Stage {
    state: Control,
    roster: Roster,
    position: u64,
    now: Instant,
    delivered: Vec<Delivery>,
}

type Replies = Vec<Result<Reply, Reject>>;

impl Stage {
    fn new() -> Stage {
        let now = Instant::now();
        let state = Control::new();
        let roster = Roster::new(&state, now);
        let mut stage = Stage { state, roster, position: 0, now, delivered: Vec::new() };
        let address = "127.0.0.1:1".to_owned();
        let node = NodeRecord {
            node: NodeId(1),
            peer_address: address.clone(),
            client_address: address,
            ..NodeRecord::default()
        };
        stage.apply(vec![Command::InitCluster { cluster: 9, shards: 1, node, control_replica: 1 }]);
        stage
    }

    /// Applies an entry without asking the book what to add.
    fn apply(&mut self, commands: Vec<Command>) -> Replies {
        self.commit(commands.into_iter().map(Operation::new).collect())
    }

    fn commit(&mut self, operations: Vec<Operation<Command>>) -> Replies {
        self.position += 1;
        let entry = Entry { time: LogTime(1_750_000_000_000_000 + self.position), operations };
        let outcome = self.state.apply(Position(self.position), entry).expect("in order");
        for effect in &outcome.effects {
            if let Effect::SessionOpened { session } = *effect {
                let view = self.state.session(session).expect("just opened");
                self.roster.admit(&view, self.now);
            }
            self.delivered.extend(self.roster.observe(effect));
        }
        outcome.replies
    }

    fn fill(&mut self, commands: Vec<Command>) -> Vec<Operation<Command>> {
        let mut entry = commands.into_iter().map(Operation::new).collect();
        self.roster.fill(&mut entry, 100, &self.state);
        entry
    }

    /// Forms an entry as the leader does, applies and settles it. Returns the replies to what the book added.
    fn entry(&mut self, commands: Vec<Command>) -> Replies {
        let given = commands.len();
        let entry = self.fill(commands);
        self.land(entry, given)
    }

    fn land(&mut self, entry: Vec<Operation<Command>>, given: usize) -> Replies {
        let matched = self.commit(entry).split_off(given);
        if !matched.is_empty() {
            let granted: Vec<bool> = matched.iter().map(Result::is_ok).collect();
            self.roster.settle(Some(&granted));
        }
        matched
    }

    fn enqueue(&mut self, role: &str, count: usize) -> Vec<TaskId> {
        let task = NewTask { queue: "q".to_owned(), role: role.to_owned(), ..NewTask::default() };
        match self.apply(vec![Command::Enqueue { tasks: vec![task; count] }]).remove(0) {
            Ok(Reply::Tasks(tasks)) => tasks,
            other => panic!("{other:?}"),
        }
    }

    fn open(&mut self, roles: &[&str], slots: u32) -> SessionId {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        let open = Command::OpenSession { agent: "a".to_owned(), roles, slots, ttl_ms: TTL.as_millis() as u64 };
        match self.apply(vec![open]).remove(0) {
            Ok(Reply::Session { session }) => session,
            other => panic!("{other:?}"),
        }
    }

    fn attach(&mut self, link: LinkId, session: SessionId, attachment: u64, holding: &[Token]) -> Attachment {
        let recorded = self.apply(vec![Command::AttachSession { session, attachment }]).remove(0);
        if recorded.is_ok() {
            self.roster.goes_on(session, attachment);
        }
        self.roster.attach(link, session, attachment, holding, self.now)
    }

    /// A session with a stream, and nothing to do yet.
    fn seated(&mut self, roles: &[&str], slots: u32) -> SessionId {
        let session = self.open(roles, slots);
        assert!(matches!(self.attach(NEAR, session, 0, &[]), Attachment::Current { .. }));
        session
    }

    fn tokens(&self, session: SessionId) -> Vec<(TaskId, Token)> {
        self.state.running(session).to_vec()
    }

    fn pass(&mut self, time: Duration) -> Vec<SessionId> {
        // In steps, so that the leader does not look stalled.
        let end = self.now + time;
        while self.now < end {
            self.now = end.min(self.now + STALL / 2);
            let due = self.roster.due(self.now);
            if !due.is_empty() {
                return due;
            }
        }
        Vec::new()
    }
}

fn complete(task: TaskId, token: Token) -> Command {
    Command::Complete { task, token, result: Vec::new(), children: Vec::new() }
}

fn grants(entry: &[Operation<Command>]) -> Vec<(TaskId, SessionId)> {
    entry
        .iter()
        .filter_map(|operation| match operation.command {
            Command::Grant { task, session } => Some((task, session)),
            _ => None,
        })
        .collect()
}

#[test]
fn the_oldest_ready_tasks_go_to_free_slots_and_no_others() {
    let mut stage = Stage::new();
    let one = stage.seated(&["r"], 1);
    let two = stage.seated(&["r"], 2);
    stage.seated(&["other"], 5);
    let tasks = stage.enqueue("r", 5);
    let entry = stage.fill(Vec::new());
    let granted = grants(&entry);
    assert_eq!(granted.iter().map(|(task, _)| *task).collect::<Vec<_>>(), tasks[..3]);
    let of = |session| granted.iter().filter(|(_, to)| *to == session).count();
    assert_eq!((of(one), of(two)), (1, 2));
    assert!(stage.land(entry, 0).iter().all(Result::is_ok));
    assert_eq!(stage.delivered.len(), 3);
    assert!(stage.fill(Vec::new()).is_empty(), "no slot is free");
}

#[test]
fn a_session_of_two_roles_gets_the_oldest_task_of_either() {
    let mut stage = Stage::new();
    let old = stage.enqueue("z", 1);
    stage.enqueue("a", 3);
    let session = stage.seated(&["a", "z"], 1);
    assert_eq!(grants(&stage.fill(Vec::new())), vec![(old[0], session)]);
}

#[test]
fn a_completion_and_the_next_grant_of_its_slot_share_an_entry() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    let tasks = stage.enqueue("r", 2);
    assert_eq!(stage.entry(Vec::new()).len(), 1);
    let (task, token) = stage.tokens(session)[0];
    let entry = stage.fill(vec![complete(task, token)]);
    assert_eq!(grants(&entry), vec![(tasks[1], session)]);
    assert!(stage.land(entry, 1)[0].is_ok());
    assert_eq!(stage.tokens(session)[0].0, tasks[1]);
    assert!(stage.fill(Vec::new()).is_empty());
}

#[test]
fn a_failure_frees_its_slot_in_the_same_entry_too() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    let tasks = stage.enqueue("r", 2);
    stage.entry(Vec::new());
    let (task, token) = stage.tokens(session)[0];
    let fail = Command::Fail { task, token, error: "no".to_owned(), permanent: true, retry_at: None };
    assert_eq!(grants(&stage.fill(vec![fail])), vec![(tasks[1], session)]);
}

#[test]
fn a_completion_with_a_stale_token_frees_nothing() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    stage.enqueue("r", 2);
    stage.entry(Vec::new());
    let (task, token) = stage.tokens(session)[0];
    let stale = Token { position: token.position - 1, ..token };
    assert_eq!(stage.fill(vec![complete(task, stale)]).len(), 1);
}

#[test]
fn a_slot_whose_completion_was_not_made_is_taken_again() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    let tasks = stage.enqueue("r", 2);
    stage.entry(Vec::new());
    let (task, token) = stage.tokens(session)[0];
    // The whole entry is lost: neither the completion nor the grant happened.
    assert_eq!(grants(&stage.fill(vec![complete(task, token)])), vec![(tasks[1], session)]);
    stage.roster.settle(None);
    stage.roster.reopen(task, token);
    assert!(stage.fill(Vec::new()).is_empty(), "the slot is not free after all");
    assert_eq!(grants(&stage.fill(vec![complete(task, token)])), vec![(tasks[1], session)]);
}

#[test]
fn a_task_in_an_unsettled_grant_is_not_granted_twice() {
    let mut stage = Stage::new();
    let tasks = stage.enqueue("r", 2);
    stage.seated(&["r"], 1);
    let first = stage.fill(Vec::new());
    stage.seated(&["r"], 1);
    let second = stage.fill(Vec::new());
    assert_eq!(grants(&first)[0].0, tasks[0]);
    assert_eq!(grants(&second)[0].0, tasks[1]);
    assert!(stage.land(first, 0)[0].is_ok());
    assert!(stage.land(second, 0)[0].is_ok());
}

#[test]
fn a_refused_grant_gives_its_slot_back() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    let tasks = stage.enqueue("r", 2);
    let entry = stage.fill(Vec::new());
    stage.apply(vec![Command::Cancel { task: tasks[0] }]);
    assert!(stage.land(entry, 0)[0].is_err());
    assert_eq!(grants(&stage.fill(Vec::new())), vec![(tasks[1], session)]);
}

#[test]
fn resynchronising_drops_the_overlay_and_finds_missed_grants() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 2);
    let tasks = stage.enqueue("r", 2);
    let entry = stage.fill(Vec::new());
    assert_eq!(entry.len(), 2);
    // One of the grants is applied, and the effects never arrive.
    stage.position += 1;
    let missed = Entry { time: LogTime(0), operations: vec![entry[0].clone()] };
    stage.state.apply(Position(stage.position), missed).expect("in order");
    let missing = stage.roster.resynchronise(&stage.state, stage.now);
    assert_eq!(missing.iter().map(|delivery| (delivery.task, delivery.link)).collect::<Vec<_>>(), [(tasks[0], NEAR)]);
    // The late settlement of the entry frees nothing twice.
    assert!(!stage.roster.settle(Some(&[true, false])));
    assert_eq!(grants(&stage.fill(Vec::new())), vec![(tasks[1], session)]);
    assert!(stage.fill(Vec::new()).is_empty());
}

#[test]
fn a_session_without_a_stream_gets_nothing() {
    let mut stage = Stage::new();
    let session = stage.open(&["r"], 1);
    stage.enqueue("r", 1);
    assert!(stage.fill(Vec::new()).is_empty());
    stage.attach(NEAR, session, 0, &[]);
    assert_eq!(stage.fill(Vec::new()).len(), 1);
}

#[test]
fn a_late_close_of_a_stream_that_was_left_is_ignored() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    let moved = stage.attach(FAR, session, 1, &[]);
    assert!(matches!(moved, Attachment::Current { displaced: Some(route), .. } if route.link == NEAR));
    stage.roster.detach(NEAR, session, 0);
    assert_eq!(stage.roster.close(NEAR, session, 0, stage.now), None);
    assert!(stage.roster.route(session).is_some_and(|route| route.link == FAR));
    assert!(stage.pass(TTL * 9 / 10).is_empty());
    assert_eq!(stage.attach(NEAR, session, 0, &[]), Attachment::Superseded { attachment: 1 });
}

#[test]
fn a_heartbeat_counts_on_the_newest_stream_only() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    stage.attach(FAR, session, 1, &[]);
    assert!(!stage.roster.beat(NEAR, session, 0, false, stage.now));
    assert!(stage.roster.beat(FAR, session, 1, false, stage.now));
}

#[test]
fn a_broken_stream_leaves_a_session_its_whole_time_to_live() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    stage.enqueue("r", 1);
    stage.entry(Vec::new());
    assert!(stage.pass(TTL / 2).is_empty());
    assert!(stage.roster.beat(NEAR, session, 0, false, stage.now));
    // The heartbeat was acknowledged, and then the stream broke on the side of the node only: the agent trusts in its
    // lease until its time to live is over.
    stage.roster.detach(NEAR, session, 0);
    assert!(stage.pass(TTL - Duration::from_millis(1)).is_empty());
    assert_eq!(stage.pass(Duration::from_millis(1)), vec![session]);
    assert!(stage.roster.knows(session), "only the log ends a session");
    assert!(stage.fill(Vec::new()).is_empty());
    let delivered = stage.delivered.len();
    assert!(stage.apply(vec![Command::ExpireSession { session }])[0].is_ok());
    assert!(!stage.roster.knows(session));
    assert_eq!(stage.delivered.len(), delivered);
    // Its task is ready again, for another session.
    let other = stage.seated(&["r"], 1);
    assert_eq!(grants(&stage.fill(Vec::new()))[0].1, other);
}

#[test]
fn a_stream_that_comes_back_within_the_time_to_live_keeps_its_session() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    stage.roster.detach(NEAR, session, 0);
    assert!(stage.pass(TTL * 9 / 10).is_empty());
    stage.attach(FAR, session, 1, &[]);
    assert!(stage.pass(TTL * 9 / 10).is_empty());
}

#[test]
fn a_lost_node_costs_its_sessions_no_more_than_their_time_to_live() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    stage.roster.unlink(NEAR);
    assert!(stage.pass(TTL * 9 / 10).is_empty());
    assert_eq!(stage.pass(TTL), vec![session]);
}

#[test]
fn a_silent_session_expires_and_an_unanswered_expiry_is_proposed_again() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    assert!(stage.pass(TTL / 2).is_empty());
    assert!(stage.roster.beat(NEAR, session, 0, false, stage.now));
    assert!(stage.pass(TTL * 3 / 4).is_empty());
    assert_eq!(stage.pass(TTL / 2), vec![session]);
    assert!(stage.roster.due(stage.now).is_empty(), "it is under way");
    assert_eq!(stage.pass(Duration::from_secs(3)), vec![session]);
}

#[test]
fn a_session_whose_end_is_proposed_is_neither_renewed_nor_attached() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    assert_eq!(stage.pass(TTL), vec![session]);
    // The entry is under way. What comes now must not let the agent believe that it may go on.
    assert!(!stage.roster.beat(NEAR, session, 0, false, stage.now));
    assert_eq!(stage.roster.attach(FAR, session, 1, &[], stage.now), Attachment::Ending);
    assert_eq!(stage.roster.route(session).map(|route| route.link), Some(FAR), "it is told of the end there");
    assert!(stage.apply(vec![Command::ExpireSession { session }])[0].is_ok());
    assert!(!stage.roster.knows(session));
}

#[test]
fn a_new_leader_gives_every_session_one_fresh_time_to_live() {
    let mut stage = Stage::new();
    let session = stage.open(&["r"], 1);
    assert!(stage.pass(TTL * 9 / 10).is_empty());
    stage.roster = Roster::new(&stage.state, stage.now);
    assert!(stage.pass(TTL * 9 / 10).is_empty());
    assert_eq!(stage.pass(TTL / 2), vec![session]);
}

#[test]
fn a_leader_that_stood_still_blames_nobody() {
    let mut stage = Stage::new();
    stage.seated(&["r"], 1);
    stage.now += TTL * 3;
    assert!(stage.roster.due(stage.now).is_empty());
    assert!(stage.pass(TTL / 2).is_empty());
}

#[test]
fn a_new_leader_delivers_again_what_an_agent_never_got() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 3);
    stage.enqueue("r", 3);
    stage.entry(Vec::new());
    let running = stage.tokens(session);
    stage.roster = Roster::new(&stage.state, stage.now);
    let old = Token { position: 1, ordinal: 0 };
    let Attachment::Current { lost, missing, .. } = stage.attach(FAR, session, 0, &[running[1].1, old]) else {
        panic!("the session is there")
    };
    assert_eq!(lost, vec![old]);
    let missing: Vec<(TaskId, Token)> = missing.iter().map(|delivery| (delivery.task, delivery.token)).collect();
    assert_eq!(missing, vec![running[0], running[2]]);
    // Once more, with all of them.
    let holding: Vec<Token> = running.iter().map(|(_, token)| *token).collect();
    let again = stage.attach(FAR, session, 0, &holding);
    assert!(matches!(again, Attachment::Current { lost, missing, .. } if lost.is_empty() && missing.is_empty()));
}

#[test]
fn a_grant_to_a_session_without_a_stream_is_delivered_when_it_attaches() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    stage.enqueue("r", 1);
    let entry = stage.fill(Vec::new());
    stage.roster.detach(NEAR, session, 0);
    stage.land(entry, 0);
    assert!(stage.delivered.is_empty());
    let attached = stage.attach(FAR, session, 1, &[]);
    assert!(matches!(attached, Attachment::Current { missing, .. } if missing.len() == 1 && missing[0].link == FAR));
}

#[test]
fn a_closing_session_gets_nothing_more_and_an_unknown_one_is_told() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    stage.enqueue("r", 1);
    assert_eq!(stage.roster.close(NEAR, session, 0, stage.now), Some(0));
    assert!(stage.fill(Vec::new()).is_empty());
    stage.apply(vec![Command::CloseSession { session, attachment: 0 }]);
    assert_eq!(stage.attach(NEAR, session, 1, &[]), Attachment::Unknown);
}

/// The simulation found it (seed 29): the node that a session had left was the first to show a new leader its stream.
#[test]
fn a_new_leader_knows_which_streams_were_left() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    assert!(matches!(stage.attach(FAR, session, 1, &[]), Attachment::Current { .. }));
    stage.roster = Roster::new(&stage.state, stage.now);
    assert_eq!(stage.attach(NEAR, session, 0, &[]), Attachment::Superseded { attachment: 1 });
    assert_eq!(stage.roster.close(NEAR, session, 0, stage.now), None);
    assert!(matches!(stage.attach(FAR, session, 1, &[]), Attachment::Current { .. }));
    assert_eq!(stage.roster.close(FAR, session, 1, stage.now), Some(1));
}

#[test]
fn a_stream_that_is_being_left_closes_nothing() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    stage.roster.goes_on(session, 1);
    assert_eq!(stage.roster.close(NEAR, session, 0, stage.now), None, "the log is about to say who has it");
    assert!(stage.roster.beat(NEAR, session, 0, false, stage.now), "until then it is the only one");
}

#[test]
fn a_draining_session_finishes_and_gets_nothing_more() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 2);
    stage.enqueue("r", 3);
    let mut entry = Vec::new();
    stage.roster.fill(&mut entry, 1, &stage.state);
    stage.land(entry, 0);
    assert!(stage.roster.beat(NEAR, session, 0, true, stage.now));
    let (task, token) = stage.tokens(session)[0];
    assert_eq!(stage.fill(vec![complete(task, token)]).len(), 1);
}

#[test]
fn a_lost_attempt_frees_its_slot() {
    let mut stage = Stage::new();
    let session = stage.seated(&["r"], 1);
    let tasks = stage.enqueue("r", 2);
    stage.entry(Vec::new());
    stage.apply(vec![Command::Cancel { task: tasks[0] }]);
    assert_eq!(grants(&stage.fill(Vec::new())), vec![(tasks[1], session)]);
}

#[test]
fn room_is_kept_to() {
    let mut stage = Stage::new();
    stage.seated(&["r"], 5);
    stage.enqueue("r", 5);
    let mut entry = Vec::new();
    stage.roster.fill(&mut entry, 2, &stage.state);
    assert_eq!(entry.len(), 2);
    stage.roster.fill(&mut entry, 0, &stage.state);
    assert_eq!(entry.len(), 2);
    stage.roster.fill(&mut entry, 9, &stage.state);
    assert_eq!(entry.len(), 5);
}
