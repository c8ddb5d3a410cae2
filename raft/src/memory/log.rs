//! The log database in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::engine::{LogChange, LogEngine, MarkKind};
use crate::ids::GroupId;

/// What happens to one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CommitFault {
    /// It succeeds.
    #[default]
    None,
    /// The disk answers with an error and keeps nothing of it.
    Error,
    /// The disk is full and keeps nothing of it.
    Full,
    /// The node dies before anything of it is durable.
    CrashBefore,
    /// The node dies when all of it is durable but nobody was told.
    CrashAfter,
    /// The node dies in the middle of it: the first `changes` are durable, and of the next one, if it is a record, the first
    /// `bytes` bytes.
    Torn {
        /// Changes that are whole.
        changes: usize,
        /// Bytes of the record after them.
        bytes: usize,
    },
    /// As [`CommitFault::Torn`], but the record in the middle has its full length: the disk has made room for it and written
    /// only its first `bytes` bytes.
    Scrambled {
        /// Changes that are whole.
        changes: usize,
        /// Bytes of the record after them that were written.
        bytes: usize,
    },
}

/// Decides the fate of each commit. Called with its number, from 0, and its changes.
pub type CommitHook = dyn FnMut(u64, &[LogChange]) -> CommitFault + Send;

/// Is told of each change that has become durable, in order. It must not use the log.
type CommitWatch = dyn FnMut(&LogChange) + Send;

/// A log database in memory. Each commit is durable when it returns.
#[derive(Clone, Default)]
pub struct MemoryLog {
    pub(super) disk: Arc<Mutex<Disk>>,
    /// The life of the node that uses this handle; the disk refuses a handle of an earlier life.
    life: u64,
}

#[derive(Default)]
pub(super) struct Disk {
    pub(super) records: BTreeMap<(GroupId, u64), Bytes>,
    pub(super) marks: BTreeMap<(GroupId, MarkKind), Bytes>,
    commits: u64,
    life: u64,
    hook: Option<Box<CommitHook>>,
    watch: Option<Box<CommitWatch>>,
    /// What a disk that acknowledges too early really has.
    #[cfg(feature = "planted")]
    synced: Option<Box<Disk>>,
}

fn dead() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the simulated node has crashed")
}

impl MemoryLog {
    /// An empty disk without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what decides the fate of each commit from now on.
    pub fn set_hook(&self, hook: impl FnMut(u64, &[LogChange]) -> CommitFault + Send + 'static) {
        self.disk.lock().hook = Some(Box::new(hook));
    }

    /// Every commit succeeds from now on.
    pub fn clear_hook(&self) {
        self.disk.lock().hook = None;
    }

    /// Tells `watch` of each change that becomes durable from now on, torn records too, in all lives.
    pub fn watch(&self, watch: impl FnMut(&LogChange) + Send + 'static) {
        self.disk.lock().watch = Some(Box::new(watch));
    }

    /// Lets the disk take nothing more from the node that uses it, which is about to be killed.
    pub fn cut_off(&self) {
        self.disk.lock().life += 1;
    }

    /// Kills the node: every handle so far fails from now on. Returns the handle for the next start.
    pub fn crash(&self) -> MemoryLog {
        let mut disk = self.disk.lock();
        disk.life += 1;
        #[cfg(feature = "planted")]
        disk.lose_unsynced();
        MemoryLog { disk: self.disk.clone(), life: disk.life }
    }

    /// Commits that succeeded, of all lives.
    pub fn commits(&self) -> u64 {
        self.disk.lock().commits
    }

    /// Changes the bytes of a record in place, as bit-rot does; `None` removes it. False if there is no such record.
    pub fn damage(&self, group: GroupId, position: u64, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> bool {
        let mut disk = self.disk.lock();
        let Some(record) = disk.records.remove(&(group, position)) else { return false };
        if let Some(bytes) = change(record.to_vec()) {
            disk.records.insert((group, position), Bytes::from(bytes));
        }
        true
    }

    /// Changes the bytes of a mark in place, as bit-rot does; `None` removes it. False if there is no such mark.
    pub fn damage_mark(&self, group: GroupId, kind: MarkKind, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> bool {
        let mut disk = self.disk.lock();
        let Some(value) = disk.marks.remove(&(group, kind)) else { return false };
        if let Some(bytes) = change(value.to_vec()) {
            disk.marks.insert((group, kind), Bytes::from(bytes));
        }
        true
    }

    /// Loses everything, as if the directory of the database had been deleted.
    pub fn lose(&self) {
        let mut disk = self.disk.lock();
        (disk.records, disk.marks) = Default::default();
        #[cfg(feature = "planted")]
        {
            disk.synced = None;
        }
    }

    /// The positions of the records of a group, for who chooses one to damage.
    pub fn positions(&self, group: GroupId) -> Vec<u64> {
        let disk = self.disk.lock();
        disk.records.range((group, 0)..=(group, u64::MAX)).map(|((_, position), _)| *position).collect()
    }

    /// A copy of the disk with no hook, for a look at what would be found after a crash now.
    pub fn image(&self) -> MemoryLog {
        let disk = self.disk.lock();
        let image = Disk { records: disk.records.clone(), marks: disk.marks.clone(), ..Disk::default() };
        MemoryLog { disk: Arc::new(Mutex::new(image)), life: 0 }
    }

    fn alive(&self) -> io::Result<parking_lot::MutexGuard<'_, Disk>> {
        let disk = self.disk.lock();
        if disk.life == self.life { Ok(disk) } else { Err(dead()) }
    }
}

impl Disk {
    /// What would be found after a power cut now.
    pub(super) fn platter(&self) -> &Disk {
        #[cfg(feature = "planted")]
        if let Some(synced) = &self.synced {
            return synced;
        }
        self
    }

    fn apply(&mut self, change: &LogChange) {
        if let Some(watch) = &mut self.watch {
            watch(change);
        }
        match change {
            LogChange::Append { group, position, record } => {
                self.records.insert((*group, *position), record.clone());
            }
            LogChange::Truncate { group, from } => {
                self.remove(*group, *from, u64::MAX);
            }
            LogChange::Purge { group, upto } => {
                self.remove(*group, 0, *upto);
            }
            LogChange::Mark { group, kind, value } => {
                self.marks.insert((*group, *kind), value.clone());
            }
            LogChange::Destroy { group } => {
                self.remove(*group, 0, u64::MAX);
                self.marks.retain(|(owner, _), _| owner != group);
            }
        }
    }

    #[cfg(feature = "planted")]
    fn sync_now_and_then(&mut self) {
        const EVERY: u64 = 16;
        if crate::planted::is("unsynced-log") && self.commits.is_multiple_of(EVERY) {
            let synced = Disk { records: self.records.clone(), marks: self.marks.clone(), ..Disk::default() };
            self.synced = Some(Box::new(synced));
        }
    }

    #[cfg(feature = "planted")]
    fn lose_unsynced(&mut self) {
        if let Some(synced) = self.synced.take() {
            (self.records, self.marks) = (synced.records.clone(), synced.marks.clone());
            self.synced = Some(synced);
        }
    }

    fn remove(&mut self, group: GroupId, from: u64, to: u64) {
        if from > to {
            return;
        }
        let gone: Vec<_> = self.records.range((group, from)..=(group, to)).map(|(key, _)| *key).collect();
        for key in gone {
            self.records.remove(&key);
        }
    }
}

impl LogEngine for MemoryLog {
    fn commit(&self, changes: &[LogChange]) -> io::Result<()> {
        let mut disk = self.alive()?;
        let number = disk.commits;
        let fault = disk.hook.as_mut().map_or(CommitFault::None, |hook| hook(number, changes));
        let (whole, torn) = match fault {
            CommitFault::None | CommitFault::CrashAfter => (changes.len(), None),
            CommitFault::Error => return Err(io::Error::other("the simulated disk failed to sync")),
            CommitFault::Full => return Err(io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full")),
            CommitFault::CrashBefore => (0, None),
            CommitFault::Torn { changes: whole, bytes } | CommitFault::Scrambled { changes: whole, bytes } => {
                (whole.min(changes.len()), Some(bytes))
            }
        };
        for change in &changes[..whole] {
            disk.apply(change);
        }
        if let (Some(bytes), Some(LogChange::Append { group, position, record })) = (torn, changes.get(whole)) {
            let mut part = record.slice(..bytes.min(record.len())).to_vec();
            if matches!(fault, CommitFault::Scrambled { .. }) {
                part.resize(record.len(), 0);
            }
            let record = Bytes::from(part);
            disk.apply(&LogChange::Append { group: *group, position: *position, record });
        }
        if fault == CommitFault::None {
            disk.commits += 1;
            #[cfg(feature = "planted")]
            disk.sync_now_and_then();
            Ok(())
        } else {
            disk.life += 1;
            Err(dead())
        }
    }

    fn read(&self, group: GroupId, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<(u64, Bytes)>> {
        let disk = self.alive()?;
        let mut records = Vec::new();
        let mut bytes = 0;
        if from < to {
            for ((_, position), record) in disk.records.range((group, from)..(group, to)) {
                bytes += record.len();
                if !records.is_empty() && bytes > max_bytes {
                    break;
                }
                records.push((*position, record.clone()));
            }
        }
        Ok(records)
    }

    fn last(&self, group: GroupId) -> io::Result<Option<(u64, Bytes)>> {
        let disk = self.alive()?;
        let last = disk.records.range((group, 0)..=(group, u64::MAX)).next_back();
        Ok(last.map(|((_, position), record)| (*position, record.clone())))
    }

    fn mark(&self, group: GroupId, kind: MarkKind) -> io::Result<Option<Bytes>> {
        Ok(self.alive()?.marks.get(&(group, kind)).cloned())
    }

    fn groups(&self) -> io::Result<Vec<GroupId>> {
        let disk = self.alive()?;
        let mut groups: BTreeSet<GroupId> = disk.records.keys().map(|(group, _)| *group).collect();
        groups.extend(disk.marks.keys().map(|(group, _)| *group));
        Ok(groups.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(position: u64) -> LogChange {
        LogChange::Append { group: GroupId(1), position, record: Bytes::from_static(b"record") }
    }

    #[test]
    fn a_torn_commit_keeps_a_prefix_and_kills_the_handle() {
        let log = MemoryLog::new();
        log.set_hook(|_, _| CommitFault::Torn { changes: 1, bytes: 2 });
        log.commit(&[append(0), append(1), append(2)]).expect_err("the node died");
        log.read(GroupId(1), 0, 9, 9).expect_err("a dead node reads nothing");
        let next = log.crash();
        let found = next.read(GroupId(1), 0, 9, usize::MAX).expect("alive");
        assert_eq!(found, [(0, Bytes::from_static(b"record")), (1, Bytes::from_static(b"re"))]);
    }

    #[test]
    fn a_scrambled_record_has_its_length_and_not_its_bytes() {
        let log = MemoryLog::new();
        log.set_hook(|_, _| CommitFault::Scrambled { changes: 0, bytes: 2 });
        log.commit(&[append(0), append(1)]).expect_err("the node died");
        let found = log.crash().read(GroupId(1), 0, 9, usize::MAX).expect("alive");
        assert_eq!(found, [(0, Bytes::from_static(b"re\0\0\0\0"))]);
    }

    #[test]
    fn an_error_keeps_nothing_and_the_node_lives() {
        let log = MemoryLog::new();
        log.set_hook(|number, _| if number == 1 { CommitFault::Error } else { CommitFault::None });
        log.commit(&[append(0)]).expect("first");
        log.commit(&[append(1)]).expect_err("second fails");
        assert_eq!(log.last(GroupId(1)).expect("alive").map(|(position, _)| position), Some(0));
        assert_eq!(log.commits(), 1);
    }
}
