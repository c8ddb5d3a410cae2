//! Sessions: runs of agents, and what each of them is running.

use std::collections::BTreeMap;

use crate::codec::{Decode, Encode};
use crate::records::{Changes, Record, Records};
use crate::{LogTime, SessionId, TaskId, Token};

/// A session as it is stored. What it runs is in the tasks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct SessionRecord {
    pub(super) agent: String,
    /// Ordered, each once.
    pub(super) roles: Vec<u32>,
    pub(super) slots: u32,
    pub(super) ttl_ms: u64,
    pub(super) opened: LogTime,
    /// The number of the stream that its agent has now; streams of lower numbers have been left.
    pub(super) attachment: u64,
}

impl Record for SessionRecord {
    const TABLE: u8 = super::table::SESSION;
    type Key = SessionId;
}

/// All sessions, and what each runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sessions {
    records: Records<SessionRecord>,
    /// In the order of tasks. Every session has its list.
    running: BTreeMap<SessionId, Vec<(TaskId, Token)>>,
}

impl Sessions {
    pub(super) fn records(&self) -> &Records<SessionRecord> {
        &self.records
    }

    pub(super) fn get(&self, session: SessionId) -> Option<&SessionRecord> {
        self.records.get(&session)
    }

    /// What a session runs, in the order of tasks.
    pub(super) fn running(&self, session: SessionId) -> &[(TaskId, Token)] {
        self.running.get(&session).map_or(&[], Vec::as_slice)
    }

    pub(super) fn open(&mut self, session: SessionId, record: SessionRecord, changes: &mut Changes) {
        self.records.put(session, record, changes);
        self.running.insert(session, Vec::new());
    }

    /// Notes the stream that the session's agent has now.
    pub(super) fn attach(&mut self, session: SessionId, attachment: u64, changes: &mut Changes) {
        if let Some(record) = self.records.get(&session) {
            let record = SessionRecord { attachment, ..record.clone() };
            self.records.put(session, record, changes);
        }
    }

    /// Ends a session that runs nothing any more.
    pub(super) fn end(&mut self, session: SessionId, changes: &mut Changes) {
        let running = self.running.remove(&session).unwrap_or_default();
        assert!(running.is_empty(), "session {session} ends while it runs {running:?}");
        self.records.remove(session, changes);
    }

    /// Notes that a session runs a task.
    pub(super) fn start(&mut self, session: SessionId, task: TaskId, token: Token) {
        let running = self.running.entry(session).or_default();
        match running.binary_search_by_key(&task, |(task, _)| *task) {
            Ok(_) => panic!("session {session} runs task {task} already"),
            Err(place) => running.insert(place, (task, token)),
        }
    }

    /// Notes that a session runs a task no more.
    pub(super) fn stop(&mut self, session: SessionId, task: TaskId) {
        let running = self.running.entry(session).or_default();
        match running.binary_search_by_key(&task, |(task, _)| *task) {
            Ok(place) => running.remove(place),
            Err(_) => panic!("session {session} does not run task {task}"),
        };
    }

    pub(super) fn load(&mut self, key: &[u8], value: &[u8], changes: &mut Changes) -> Result<(), crate::Fault> {
        self.records.load(key, value, changes)
    }

    /// Rebuilds what is derived from the records; the tasks are started afterwards.
    pub(super) fn derive(&mut self) {
        self.running = self.records.iter().map(|(session, _)| (session, Vec::new())).collect();
    }
}
