//! Rebuilding the machine from its rows.

use super::tasks::Stage;
use super::{Control, table};
use crate::records::{Changes, Only};
use crate::{Fault, Position};

/// Takes in stored rows one after another, in any order, and makes the machine of them.
#[derive(Debug, Default)]
pub struct Loader {
    control: Control,
    changes: Changes,
}

impl Loader {
    /// A loader that has seen no row.
    pub fn new() -> Self {
        Loader::default()
    }

    /// Takes in a row. Rows of tables that are not in [`Control::TABLES`] are passed over.
    ///
    /// # Errors
    /// Faults when the row does not decode or came before.
    pub fn row(&mut self, table: u8, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let Loader { control, changes } = self;
        match table {
            table::META => control.meta.load(key, value, changes),
            table::MEMBER => control.members.load(key, value, changes),
            table::REMOVED_NODE => control.removed.load(key, value, changes),
            table::SHARD => control.shards.load(key, value, changes),
            table::COLLECTION => control.collections.load(key, value, changes),
            table::QUEUE => control.queues.load(key, value, changes),
            table::ROLE => control.roles.load(key, value, changes),
            table::SESSION => control.sessions.load(key, value, changes),
            table::LIVE_TASK => control.tasks.load_live(key, value, changes),
            table::FINISHED_TASK => control.tasks.load_finished(key, value, changes),
            table::REQUEST => control.requests.load(key, value, changes),
            _ => Ok(()),
        }
    }

    /// The machine.
    ///
    /// # Errors
    /// Faults when the rows contradict each other.
    pub fn finish(self) -> Result<Control, Fault> {
        let mut control = self.control;
        control.hash = self.changes.hash();
        control.derive()?;
        Ok(control)
    }
}

impl Control {
    /// The tables whose rows [`Control::load`] needs. Payloads, results and error texts are in others, which need not be
    /// read.
    pub const TABLES: [u8; 11] = [
        table::META,
        table::MEMBER,
        table::SHARD,
        table::COLLECTION,
        table::QUEUE,
        table::ROLE,
        table::SESSION,
        table::LIVE_TASK,
        table::FINISHED_TASK,
        table::REQUEST,
        table::REMOVED_NODE,
    ];

    /// Rebuilds the machine from its rows, given as (table, key, value) in any order.
    ///
    /// # Errors
    /// Faults when a row does not decode or rows contradict each other.
    pub fn load<K, V>(rows: impl IntoIterator<Item = (u8, K, V)>) -> Result<Control, Fault>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        let mut loader = Loader::new();
        for (table, key, value) in rows {
            loader.row(table, key.as_ref(), value.as_ref())?;
        }
        loader.finish()
    }

    /// Rebuilds everything that is not a record.
    fn derive(&mut self) -> Result<(), Fault> {
        let empty = self.members.len() == 0 && self.tasks.live().len() == 0;
        if self.meta.get(&Only).is_none() && !empty {
            return Err(Fault::Broken { what: "there are rows but not the one that says how far they go".to_owned() });
        }
        if self.meta().position == Position(0) && !empty {
            return Err(Fault::Broken { what: "there are rows of no entry".to_owned() });
        }
        self.check_references()?;
        self.collections.derive();
        self.queues.derive();
        self.roles.derive();
        #[cfg(feature = "planted")]
        if crate::planted::is("forgotten-requests") {
            self.requests = crate::requests::Requests::default();
        }
        self.requests.derive();
        self.sessions.derive();
        self.tasks.derive();
        #[cfg(feature = "planted")]
        self.tasks.forget_waiting();
        for (id, task) in self.tasks.live().iter() {
            if let Stage::Granted { session } = task.stage {
                self.sessions.start(session, id, task.token);
            }
        }
        Ok(())
    }

    /// Names and sessions are followed without asking afterwards, so they are asked for here.
    fn check_references(&self) -> Result<(), Fault> {
        let broken = |what: String| Err(Fault::Broken { what });
        for (number, (key, _)) in self.queues.records().iter().enumerate() {
            if key as usize != number {
                return broken(format!("queue {number} has no name"));
            }
        }
        for (number, (key, _)) in self.roles.records().iter().enumerate() {
            if key as usize != number {
                return broken(format!("role {number} has no name"));
            }
        }
        let named = |queue: u32, role: u32| (queue as usize) < self.queues.len() && (role as usize) < self.roles.len();
        for (id, task) in self.tasks.live().iter() {
            if !named(task.queue, task.role) {
                return broken(format!("task {id} is in a queue or of a role that has no name"));
            }
            if let Stage::Granted { session } = task.stage
                && !self.sessions.records().contains(&session)
            {
                return broken(format!("task {id} is granted to session {session}, which is not there"));
            }
        }
        for (id, task) in self.tasks.finished().iter() {
            if !named(task.queue, task.role) {
                return broken(format!("task {id} was in a queue or of a role that has no name"));
            }
        }
        for (id, session) in self.sessions.records().iter() {
            if session.roles.iter().any(|role| *role as usize >= self.roles.len()) {
                return broken(format!("session {id} has a role that has no name"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeId;
    use crate::control::testing::{Cluster, node, task};
    use crate::control::{Command, NewTask};
    use crate::{Operation, RequestId};

    /// A life in which every table gets a row.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::of(2);
        let replica = cluster.place(1, 2);
        cluster.run(Command::ReplicaJoined { shard: crate::ShardId(1), replica }).expect("it is joining");
        cluster.collection("glosses", 2);
        let tasks = cluster.enqueue(vec![task("q", "r"), task("q", "r"), task("q2", "r"), task("q", "other")]);
        let session = cluster.session(&["r", "other"], 4);
        let tokens = [0, 1, 2].map(|nth| cluster.grant(tasks[nth], session));
        let retry_at = Some(cluster.state.time().plus_ms(5_000));
        let fail = |task, token, permanent| Command::Fail { task, token, error: "no".to_owned(), permanent, retry_at };
        cluster.run(fail(tasks[0], tokens[0], false)).expect("the current attempt");
        cluster.run(fail(tasks[1], tokens[1], true)).expect("the current attempt");
        let children = vec![NewTask { payload: vec![], ..task("q", "r") }];
        let done = Command::Complete { task: tasks[2], token: tokens[2], result: b"res".to_vec(), children };
        let request = |nth: u128| Some(RequestId((1_750_000_000_000 << 80) | (7 << 76) | nth));
        let cancel = Command::Cancel { task: tasks[3] };
        let operations = [(1, done), (2, cancel)].map(|(nth, command)| Operation { request: request(nth), command });
        assert!(cluster.operate(operations.to_vec()).replies.iter().all(Result::is_ok));
        cluster
    }

    /// If this fails, stored databases would not be read any more: raise the version of the codec instead.
    #[test]
    fn the_rows_of_version_1_are_frozen() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let lines: Vec<String> =
            cluster().rows.iter().map(|((table, key), value)| format!("{table} {} {}", hex(key), hex(value))).collect();
        assert_eq!(lines.join("\n"), include_str!("../../tests/frozen/control-rows-v1.txt").trim_end());
    }

    /// The same with a node that came and went, which version 1 learned later.
    fn with_removed_node() -> Cluster {
        let mut cluster = cluster();
        cluster.run(Command::AddMember { node: node(77) }).expect("a new node");
        cluster.run(Command::RemoveMember { node: NodeId(77) }).expect("it holds nothing");
        cluster
    }

    #[test]
    fn the_row_of_a_removed_node_is_frozen() {
        let cluster = with_removed_node();
        let of_table = cluster.rows.iter().filter(|((table, _), _)| *table == table::REMOVED_NODE);
        let rows: Vec<_> = of_table.map(|((_, key), value)| (key.to_vec(), value.to_vec())).collect();
        let at = u8::try_from(cluster.state.last_position().0).expect("a short history");
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].0, [0, 0, 0, 0, 0, 0, 0, 77]);
        // Version, checksum, position.
        assert_eq!((rows[0].1[0], &rows[0].1[5..]), (1, &[at][..]));
    }

    #[test]
    fn contents_are_not_needed() {
        let cluster = cluster();
        let rows = cluster.rows.iter().filter(|((table, _), _)| Control::TABLES.contains(table));
        let loaded = Control::load(rows.map(|((table, key), value)| (*table, key, value)));
        assert_eq!(loaded.expect("rows of a machine"), cluster.state);
    }

    /// A wrong bit in a row of a record is found, and so is a missing record that others name.
    #[test]
    fn damaged_rows_are_faults() {
        let cluster = with_removed_node();
        let load_with = |change: &dyn Fn(u8, &mut Vec<u8>) -> bool| {
            Control::load(cluster.rows.iter().filter_map(|((table, key), value)| {
                let mut value = value.to_vec();
                change(*table, &mut value).then(|| (*table, key.clone(), value))
            }))
        };
        for table in Control::TABLES {
            let flipped = load_with(&|of, value| {
                if of == table {
                    *value.last_mut().expect("no row is empty") ^= 1;
                }
                true
            });
            assert!(matches!(flipped, Err(Fault::Undecodable { .. })), "table {table}");
        }
        for table in [table::META, table::QUEUE, table::ROLE] {
            let missing = load_with(&|of, _| of != table);
            assert!(matches!(missing, Err(Fault::Broken { .. })), "table {table}");
        }
    }

    #[test]
    fn no_rows_are_a_new_machine() {
        let none: [(u8, &[u8], &[u8]); 0] = [];
        assert_eq!(Control::load(none).expect("nothing is wrong"), Control::new());
    }
}
