//! Stories in plain text, in `tests/scenarios`. A line that begins with `>` is one entry: its operations, with ` + ` between
//! them. The lines below it say what came of it: a reply for each operation, then, indented, the effects. Everything else is
//! for the reader.
//!
//! Tasks are called t1, t2, ... in the order in which they came into being, sessions s1, s2, ..., grants g1, g2, ... . After
//! every entry the invariants are checked and the machine is compared with one that is loaded from the rows.
//!
//! When a story comes out otherwise, the test prints it as it would read now.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use quorate_state::control::{Command, Control, Effect, NewTask, NodeRecord, Reply, RetryPolicy, TaskFilter};
use quorate_state::{
    Entry, LogTime, Metric, NodeId, Operation, Position, Reject, RequestId, SessionId, ShardId, TaskId, Token,
};

/// A machine and the short names of what lives in it.
struct Stage {
    control: Control,
    rows: BTreeMap<(u8, Bytes), Bytes>,
    position: u64,
    time: LogTime,
    tasks: Vec<TaskId>,
    sessions: Vec<SessionId>,
    grants: Vec<Token>,
}

/// The words of an operation: plain ones and `name=value`.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn new(text: &'a str) -> Words<'a> {
        let (named, plain): (Vec<&str>, Vec<&str>) = text.split_whitespace().partition(|word| word.contains('='));
        Words { plain, named: named.into_iter().filter_map(|word| word.split_once('=')).collect() }
    }

    fn at(&self, place: usize) -> &'a str {
        self.plain.get(place).unwrap_or_else(|| panic!("{:?} needs a word {place}", self.plain))
    }

    fn number(&self, place: usize) -> u64 {
        self.at(place).parse().unwrap_or_else(|_| panic!("{:?} is not a number", self.at(place)))
    }

    fn named_number(&self, name: &str) -> Option<u64> {
        self.named.get(name).map(|value| value.parse().unwrap_or_else(|_| panic!("{value:?} is not a number")))
    }

    fn has(&self, word: &str) -> bool {
        self.plain.contains(&word)
    }
}

fn node(number: u64) -> NodeRecord {
    NodeRecord {
        node: NodeId(number),
        name: format!("n{number}"),
        peer_address: format!("n{number}:7001"),
        client_address: format!("n{number}:7000"),
        http_address: String::new(),
    }
}

/// `4s` or `250ms` or `25h`, in milliseconds.
fn milliseconds(text: &str) -> u64 {
    let split = text.find(|letter: char| !letter.is_ascii_digit()).expect("a time has a unit");
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().expect("a time begins with a number");
    number
        * match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => panic!("{unit:?} is no unit"),
        }
}

impl Stage {
    fn new() -> Stage {
        Stage {
            control: Control::new(),
            rows: BTreeMap::new(),
            position: 0,
            time: LogTime(1_750_000_000_000_000),
            tasks: Vec::new(),
            sessions: Vec::new(),
            grants: Vec::new(),
        }
    }

    /// Performs one line and returns what came of it.
    fn perform(&mut self, line: &str) -> String {
        let words = Words::new(line);
        match words.at(0) {
            "wait" => {
                self.time = self.time.plus_ms(milliseconds(words.at(1)));
                self.apply(vec![Operation::new(Command::Tick)])
            }
            "deliver" => {
                let confirm = |entry: quorate_state::control::OutboxEntry| Command::ConfirmCollection {
                    id: entry.collection,
                    shard: entry.shard,
                    generation: entry.generation,
                };
                let operations = self.control.outbox().map(confirm).map(Operation::new).collect();
                self.apply(operations)
            }
            "show" => self.show(&words),
            _ => {
                let operations = line.split(" + ").map(|text| self.operation(&Words::new(text))).collect();
                self.apply(operations)
            }
        }
    }

    fn operation(&self, words: &Words<'_>) -> Operation<Command> {
        let request = words.named_number("request").map(|id| RequestId(self.request_time() | u128::from(id)));
        Operation { request, command: self.command(words) }
    }

    /// The upper bits of a UUIDv7 of the first moment of the story.
    fn request_time(&self) -> u128 {
        (1_750_000_000_000 << 80) | (7 << 76)
    }

    fn command(&self, words: &Words<'_>) -> Command {
        match words.at(0) {
            "init" => {
                Command::InitCluster { cluster: 1, shards: words.number(1) as u32, node: node(1), control_replica: 1 }
            }
            "join" => Command::AddMember { node: node(words.number(1)) },
            "leave" => Command::StartLeave { node: NodeId(words.number(1)), allow_fewer: words.has("fewer") },
            "remove" => Command::RemoveMember { node: NodeId(words.number(1)) },
            "place" => Command::PlaceReplica { shard: ShardId(words.number(1) as u32), node: NodeId(words.number(2)) },
            "joined" => Command::ReplicaJoined { shard: ShardId(words.number(1) as u32), replica: words.number(2) },
            "retire" => Command::RetireReplica { shard: ShardId(words.number(1) as u32), replica: words.number(2) },
            "replace" if words.at(1) == "control" => {
                Command::ReplaceControlReplica { node: NodeId(words.number(2)), replica: words.number(3) }
            }
            "replace" => Command::ReplaceReplica {
                shard: ShardId(words.number(1) as u32),
                node: NodeId(words.number(2)),
                replica: words.number(3),
            },
            "forget" => Command::ForgetReplica { shard: ShardId(words.number(1) as u32), replica: words.number(2) },
            "initialized" => Command::ShardInitialized { shard: ShardId(words.number(1) as u32) },
            "create" => Command::CreateCollection {
                name: words.at(1).to_owned(),
                dimension: 4,
                metric: Metric::Cosine,
                shards: words.named_number("shards").unwrap_or(1) as u32,
            },
            "delete" => Command::DeleteCollection { name: words.at(1).to_owned() },
            "enqueue" => Command::Enqueue { tasks: self.new_tasks(words.at(1), words.at(2), words) },
            "open" => Command::OpenSession {
                agent: words.at(1).to_owned(),
                roles: words.at(2).split(',').map(str::to_owned).collect(),
                slots: words.named_number("slots").unwrap_or(1) as u32,
                ttl_ms: 5_000,
            },
            "close" => Command::CloseSession {
                session: self.session(words.at(1)),
                attachment: words.named_number("stream").unwrap_or(0),
            },
            "attach" => Command::AttachSession { session: self.session(words.at(1)), attachment: words.number(2) },
            "expire" => Command::ExpireSession { session: self.session(words.at(1)) },
            "grant" => Command::Grant { task: self.task(words.at(1)), session: self.session(words.at(2)) },
            "grant-new" => Command::GrantEnqueued {
                operation: words.number(1) as u32,
                nth: words.number(2) as u32,
                session: self.session(words.at(3)),
            },
            "complete" => Command::Complete {
                task: self.task(words.at(1)),
                token: self.token(words.at(2)),
                result: b"result".to_vec(),
                children: words.named.get("child").map(|role| self.new_tasks("main", role, words)).unwrap_or_default(),
            },
            "fail" => Command::Fail {
                task: self.task(words.at(1)),
                token: self.token(words.at(2)),
                error: "an error".to_owned(),
                permanent: words.has("permanent"),
                retry_at: words.named.get("pause").map(|pause| self.time.plus_ms(milliseconds(pause))),
            },
            "cancel" => Command::Cancel { task: self.task(words.at(1)) },
            other => panic!("{other:?} is not an operation"),
        }
    }

    fn new_tasks(&self, queue: &str, role: &str, words: &Words<'_>) -> Vec<NewTask> {
        let max_attempts = words.named_number("attempts").unwrap_or(3) as u32;
        let retry = RetryPolicy { max_attempts, ..RetryPolicy::default() };
        let task = NewTask { queue: queue.to_owned(), role: role.to_owned(), payload: b"payload".to_vec(), retry };
        vec![task; words.named_number("count").unwrap_or(1) as usize]
    }

    fn apply(&mut self, operations: Vec<Operation<Command>>) -> String {
        self.position += 1;
        let entry = Entry { time: self.time, operations };
        let outcome = self.control.apply(Position(self.position), entry).expect("entries are in order");
        for row in outcome.rows {
            match row.value {
                Some(value) => self.rows.insert((row.table, row.key), value),
                None => self.rows.remove(&(row.table, row.key)),
            };
        }
        assert_eq!(self.control.check(), Ok(()));
        let loaded = Control::load(self.rows.iter().map(|((table, key), value)| (*table, key, value)));
        assert_eq!(loaded.expect("own rows"), self.control);
        for reply in &outcome.replies {
            self.learn(reply);
        }
        let mut text = String::new();
        for reply in &outcome.replies {
            writeln!(text, "{}", self.tell_reply(reply)).expect("a string");
        }
        for effect in &outcome.effects {
            writeln!(text, "  {}", self.tell_effect(effect)).expect("a string");
        }
        text
    }

    /// Gives short names to what is new.
    fn learn(&mut self, reply: &Result<Reply, Reject>) {
        match reply {
            Ok(Reply::Tasks(tasks) | Reply::Completed { children: tasks }) => {
                for task in tasks {
                    if !self.tasks.contains(task) {
                        self.tasks.push(*task);
                    }
                }
            }
            Ok(Reply::Session { session }) => self.sessions.push(*session),
            Ok(Reply::Granted { token, .. }) => self.grants.push(*token),
            _ => {}
        }
    }

    fn tell_reply(&self, reply: &Result<Reply, Reject>) -> String {
        match reply {
            Ok(Reply::Done) => "done".to_owned(),
            Ok(Reply::Member { control_replica }) => format!("a member, with control replica {control_replica}"),
            Ok(Reply::Replica { replica }) => format!("replica {replica}"),
            Ok(Reply::Collection(collection)) => format!(
                "collection {} is {:?} on shards {:?}",
                collection.name,
                collection.state,
                collection.shards.iter().map(|shard| shard.0).collect::<Vec<_>>()
            ),
            Ok(Reply::Tasks(tasks)) => format!("enqueued {}", self.names(tasks)),
            Ok(Reply::Granted { token, attempt }) => format!("granted {}, attempt {attempt}", self.grant_name(*token)),
            Ok(Reply::Completed { children }) if children.is_empty() => "completed".to_owned(),
            Ok(Reply::Completed { children }) => format!("completed, children {}", self.names(children)),
            Ok(Reply::Failed { dead }) => format!("failed{}", if *dead { ", dead" } else { "" }),
            Ok(Reply::Cancelled) => "cancelled".to_owned(),
            Ok(Reply::Session { session }) => format!("session {}", self.session_name(*session)),
            Err(reject) => format!("refused: {}", self.shorten(&reject.to_string())),
        }
    }

    fn tell_effect(&self, effect: &Effect) -> String {
        match effect {
            Effect::TasksReady { roles } => format!("ready: {}", roles.join(", ")),
            Effect::Granted { task, session, token, attempt } => format!(
                "deliver {} to {} as {}, attempt {attempt}",
                self.task_name(*task),
                self.session_name(*session),
                self.grant_name(*token)
            ),
            Effect::AttemptLost { session, task, token } => {
                let (session, task, grant) =
                    (self.session_name(*session), self.task_name(*task), self.grant_name(*token));
                format!("{session} loses {task} ({grant})")
            }
            Effect::AttemptEnded { session, task, token } => {
                let (session, task, grant) =
                    (self.session_name(*session), self.task_name(*task), self.grant_name(*token));
                format!("{session} is done with {task} ({grant})")
            }
            Effect::TaskWaiting { task, due } => {
                format!("{} waits for {} ms", self.task_name(*task), (due.0 - self.time.0) / 1_000)
            }
            Effect::Finished { task, state } => format!("{} is {state}", self.task_name(*task)),
            Effect::SessionOpened { session } => format!("{} is open", self.session_name(*session)),
            Effect::SessionEnded { session } => format!("{} is over", self.session_name(*session)),
            Effect::MembersChanged => "members changed".to_owned(),
            Effect::ShardMapChanged => "shard map changed".to_owned(),
            Effect::CollectionChanged { collection } => format!("collection {collection} changed"),
        }
    }

    fn show(&self, words: &Words<'_>) -> String {
        let mut text = String::new();
        match words.at(1) {
            "tasks" => {
                for task in self.control.tasks(TaskId(0), &TaskFilter::default(), 100).tasks {
                    let name = self.task_name(task.id);
                    let (attempts, failures) = (task.attempts, task.failures);
                    writeln!(text, "{name} {}, {attempts} attempts, {failures} failures", task.state)
                        .expect("a string");
                }
            }
            "queues" => {
                for queue in self.control.queues() {
                    writeln!(
                        text,
                        "{}: {} ready, {} waiting, {} granted, {} completed, {} dead, {} cancelled",
                        queue.queue,
                        queue.ready,
                        queue.waiting,
                        queue.granted,
                        queue.completed,
                        queue.dead,
                        queue.cancelled
                    )
                    .expect("a string");
                }
            }
            "shards" => {
                for shard in self.control.shards() {
                    let held: Vec<_> = shard
                        .replicas
                        .iter()
                        .map(|held| format!("{} on node {} {:?}", held.replica, held.node.0, held.state))
                        .collect();
                    let initialized = if shard.initialized { "initialized" } else { "new" };
                    writeln!(text, "shard {} {initialized}: [{}]", shard.shard, held.join(", ")).expect("a string");
                }
            }
            "collections" => {
                for collection in self.control.collections() {
                    let pending: Vec<_> = collection.pending.iter().map(|shard| shard.0).collect();
                    writeln!(text, "{} {:?}, to be told: {pending:?}", collection.name, collection.state)
                        .expect("a string");
                }
            }
            other => panic!("cannot show {other:?}"),
        }
        if text.is_empty() { "nothing\n".to_owned() } else { text }
    }

    fn task(&self, name: &str) -> TaskId {
        named(&self.tasks, name, 't').unwrap_or(TaskId(1))
    }

    fn session(&self, name: &str) -> SessionId {
        named(&self.sessions, name, 's').unwrap_or(SessionId(1))
    }

    fn token(&self, name: &str) -> Token {
        named(&self.grants, name, 'g').unwrap_or_default()
    }

    fn task_name(&self, task: TaskId) -> String {
        name_of(&self.tasks, &task, 't')
    }

    fn session_name(&self, session: SessionId) -> String {
        name_of(&self.sessions, &session, 's')
    }

    fn grant_name(&self, token: Token) -> String {
        name_of(&self.grants, &token, 'g')
    }

    fn names(&self, tasks: &[TaskId]) -> String {
        tasks.iter().map(|task| self.task_name(*task)).collect::<Vec<_>>().join(", ")
    }

    /// Puts short names in the place of ids.
    fn shorten(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for task in &self.tasks {
            text = text.replace(&task.to_string(), &self.task_name(*task));
        }
        for session in &self.sessions {
            text = text.replace(&session.to_string(), &self.session_name(*session));
        }
        text
    }
}

fn named<T: Copy>(among: &[T], name: &str, letter: char) -> Option<T> {
    let number: usize = name.strip_prefix(letter).and_then(|number| number.parse().ok()).expect("a name like t1");
    among.get(number - 1).copied()
}

fn name_of<T: PartialEq>(among: &[T], id: &T, letter: char) -> String {
    among.iter().position(|known| known == id).map_or("?".to_owned(), |place| format!("{letter}{}", place + 1))
}

/// The story as it comes out now.
fn tell(story: &str) -> String {
    let mut stage = Stage::new();
    let mut told = String::new();
    let mut in_outcome = false;
    for line in story.lines() {
        if let Some(operations) = line.strip_prefix("> ") {
            writeln!(told, "{line}").expect("a string");
            told.push_str(&stage.perform(operations));
            in_outcome = true;
        } else if line.trim().is_empty() || line.starts_with('#') {
            in_outcome = false;
            writeln!(told, "{line}").expect("a string");
        } else if !in_outcome {
            panic!("prose begins with #: {line:?}");
        }
    }
    told
}

/// From the folder of the crate, in which its tests run. A path that is compiled in would be that of another checkout, where two
/// share what they have compiled.
const STORIES: &str = "tests/scenarios";

fn check(name: &str) {
    let path = Path::new(STORIES).join(name);
    let story = std::fs::read_to_string(&path).expect("the story is there");
    let told = tell(&story);
    assert!(told == story, "{name} reads otherwise now:\n\n{told}");
}

/// One test for each story, and a test that none is forgotten.
macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                check(concat!(stringify!($name), ".txt"));
            }
        )*

        #[test]
        fn every_story_is_told() {
            let told = [$(concat!(stringify!($name), ".txt")),*];
            let files = std::fs::read_dir(STORIES).expect("the stories are there");
            for file in files {
                let name = file.expect("a file").file_name();
                assert!(told.iter().any(|told| name == *told), "{} is not told", name.display());
            }
        }
    };
}

stories!(
    a_job_with_a_review,
    an_agent_dies,
    retries_and_dead_letters,
    cancelling,
    a_lost_reply,
    a_growing_cluster,
    a_damaged_disk,
    collections
);
