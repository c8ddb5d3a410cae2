//! A machine with its rows beside it, for tests: every step also checks the invariants and that the rows make the same
//! machine again.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Command, Control, Effect, NewTask, NodeRecord, Reply};
use crate::{
    CollectionId, Entry, LogTime, Metric, NodeId, Operation, Outcome, Position, Reject, ReplicaId, SessionId, ShardId,
    TaskId, Token,
};

/// The machine of a cluster, its stored rows, and where its log is.
pub(crate) struct Cluster {
    pub(crate) state: Control,
    pub(crate) rows: BTreeMap<(u8, Bytes), Bytes>,
    position: u64,
    time: LogTime,
}

/// A node with addresses made of its number.
pub(crate) fn node(number: u64) -> NodeRecord {
    NodeRecord {
        node: NodeId(number),
        name: format!("node-{number}"),
        peer_address: format!("10.0.0.{number}:7001"),
        client_address: format!("10.0.0.{number}:7000"),
        http_address: String::new(),
    }
}

/// A task with a small payload.
pub(crate) fn task(queue: &str, role: &str) -> NewTask {
    NewTask { queue: queue.to_owned(), role: role.to_owned(), payload: b"payload".to_vec(), ..NewTask::default() }
}

impl Cluster {
    /// Nothing has happened yet. The clock stands in 2025.
    pub(crate) fn empty() -> Cluster {
        let time = LogTime(1_750_000_000_000_000);
        Cluster { state: Control::new(), rows: BTreeMap::new(), position: 0, time }
    }

    /// A cluster of nodes 1 to `nodes` with 4 shards; node n holds control replica n.
    pub(crate) fn of(nodes: u64) -> Cluster {
        let mut cluster = Cluster::empty();
        let init = Command::InitCluster { cluster: 9, shards: 4, node: node(1), control_replica: 1 };
        cluster.run(init).expect("a new cluster");
        for number in 2..=nodes {
            cluster.run(Command::AddMember { node: node(number) }).expect("a new node");
        }
        cluster
    }

    /// Applies one entry with these operations.
    pub(crate) fn operate(&mut self, operations: Vec<Operation<Command>>) -> Outcome<Reply, Effect> {
        self.position += 1;
        let entry = Entry { time: self.time, operations };
        let outcome = self.state.apply(Position(self.position), entry).expect("entries are in order");
        for row in &outcome.rows {
            let key = (row.table, row.key.clone());
            match &row.value {
                Some(value) => self.rows.insert(key, value.clone()),
                None => self.rows.remove(&key),
            };
        }
        self.verify();
        outcome
    }

    /// Applies one entry with these commands.
    pub(crate) fn outcome(&mut self, commands: Vec<Command>) -> Outcome<Reply, Effect> {
        self.operate(commands.into_iter().map(Operation::new).collect())
    }

    /// Applies one command.
    pub(crate) fn run(&mut self, command: Command) -> Result<Reply, Reject> {
        self.outcome(vec![command]).replies.remove(0)
    }

    /// Lets log time pass.
    pub(crate) fn pass_ms(&mut self, milliseconds: u64) -> Outcome<Reply, Effect> {
        self.time = self.time.plus_ms(milliseconds);
        self.outcome(vec![Command::Tick])
    }

    /// Sets the clock of the proposer, which may be behind the log.
    pub(crate) fn set_time(&mut self, time: LogTime) {
        self.time = time;
    }

    fn verify(&self) {
        if self.state.tasks.live().len() > 1_000 {
            return;
        }
        assert_eq!(self.state.check(), Ok(()));
        let loaded = self.load();
        assert_eq!(loaded, self.state);
        assert_eq!(loaded.hash(), self.state.hash());
    }

    /// The machine that the rows make.
    pub(crate) fn load(&self) -> Control {
        Control::load(self.rows.iter().map(|((table, key), value)| (*table, key, value))).expect("rows of a machine")
    }

    /// Enqueues tasks.
    pub(crate) fn enqueue(&mut self, tasks: Vec<NewTask>) -> Vec<TaskId> {
        match self.run(Command::Enqueue { tasks }) {
            Ok(Reply::Tasks(tasks)) => tasks,
            other => panic!("enqueue: {other:?}"),
        }
    }

    /// Opens a session.
    pub(crate) fn session(&mut self, roles: &[&str], slots: u32) -> SessionId {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        match self.run(Command::OpenSession { agent: "agent".to_owned(), roles, slots, ttl_ms: 1_000 }) {
            Ok(Reply::Session { session }) => session,
            other => panic!("open session: {other:?}"),
        }
    }

    /// Grants a task.
    pub(crate) fn grant(&mut self, task: TaskId, session: SessionId) -> Token {
        match self.run(Command::Grant { task, session }) {
            Ok(Reply::Granted { token, .. }) => token,
            other => panic!("grant: {other:?}"),
        }
    }

    /// A task of role `work` that is granted to a session with one slot.
    pub(crate) fn granted(&mut self) -> (TaskId, SessionId, Token) {
        let id = self.enqueue(vec![task("q", "work")])[0];
        let session = self.session(&["work"], 1);
        let token = self.grant(id, session);
        (id, session, token)
    }

    /// Places a replica.
    pub(crate) fn place(&mut self, shard: u32, node: u64) -> ReplicaId {
        match self.run(Command::PlaceReplica { shard: ShardId(shard), node: NodeId(node) }) {
            Ok(Reply::Replica { replica }) => replica,
            other => panic!("place replica: {other:?}"),
        }
    }

    /// Makes a collection of 4 numbers by cosine.
    pub(crate) fn collection(&mut self, name: &str, shards: u32) -> CollectionId {
        let name = name.to_owned();
        match self.run(Command::CreateCollection { name, dimension: 4, metric: Metric::Cosine, shards }) {
            Ok(Reply::Collection(collection)) => collection.id,
            other => panic!("create collection: {other:?}"),
        }
    }

    /// Confirms everything in the outbox.
    pub(crate) fn deliver(&mut self) {
        let outbox: Vec<_> = self.state.outbox().collect();
        for entry in outbox {
            let confirm =
                Command::ConfirmCollection { id: entry.collection, shard: entry.shard, generation: entry.generation };
            self.run(confirm).expect("confirming is never refused");
        }
    }

    /// The stored payload of a task.
    pub(crate) fn payload(&self, task: TaskId) -> Option<Bytes> {
        self.row(Control::task_payload_key(task))
    }

    /// The stored result of a task.
    pub(crate) fn result(&self, task: TaskId) -> Option<Bytes> {
        self.row(Control::task_result_key(task))
    }

    /// The stored error of a task.
    pub(crate) fn error(&self, task: TaskId) -> Option<Bytes> {
        self.row(Control::task_error_key(task))
    }

    fn row(&self, (table, key): (u8, Vec<u8>)) -> Option<Bytes> {
        self.rows.get(&(table, Bytes::from(key))).cloned()
    }
}
