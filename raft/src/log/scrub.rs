//! What a scrub asks of the logs while they are written: does everything on the disk still read back as it was written?
//!
//! Memory knows the truth: from where to where a log reaches, what is durable of it, and the marks. So a log is held against
//! its [`GroupState`]. Positions before [`durable_end`](super::state::Inner::durable_end) stand on the disk in the version that
//! memory knows, and only a purge or a truncation takes them away, which memory hears of before the disk does. A record that
//! is missed is therefore damage, unless memory says that it has gone meanwhile; and it is looked for twice.

use std::io;

use crate::engine::MarkKind;
use crate::health::is_damage;
use crate::ids::ReplicaId;
use crate::log::check::Chain;
use crate::log::floor::FloorChange;
use crate::log::group::GroupLogReader;
use crate::log::record::RecordError;
use crate::log::state::Inner;
use crate::log::{LogError, LogStore, mark};
use crate::proto;

/// How far a walk through the log of one group has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Walk {
    chain: Option<Chain>,
    /// How often the log had been truncated when the chain was followed.
    cuts: u64,
    /// The position before which the walk ends. The log may grow faster than it is read.
    to: Option<u64>,
}

/// What a look at a part of a disk has shown.
#[derive(Debug)]
pub(crate) enum Looked {
    /// So many bytes are whole; whether that was all.
    Whole { bytes: u64, ended: bool },
    /// What is there differs, and a write may be under way that explains it: look again when everything is durable.
    UnderWay,
    /// What is there is not what was written.
    Damaged(LogError),
}

/// A part of a log that must be on the disk.
#[derive(Debug, Clone, Copy)]
struct Span {
    chain: Chain,
    from: u64,
    to: u64,
    /// The checksum of the last record, if it is in memory.
    crc_at_end: Option<u32>,
    cuts: u64,
}

/// A position that does not read back.
struct Bad {
    position: u64,
    error: LogError,
}

/// The marks of one group while they are looked at, more than once if need be.
#[derive(Debug, Default)]
pub(crate) struct MarkCheck {
    /// What memory knew when they differed last, and whether all that had been submitted by then has become durable since.
    known: Option<Marks>,
    is_durable: bool,
}

impl MarkCheck {
    /// Everything that was submitted when the marks were looked at last is durable now.
    pub(crate) fn all_is_durable(&mut self) {
        self.is_durable = true;
    }
}

/// Marks as they must be on the disk, once everything is that was submitted.
#[derive(Debug, Clone, PartialEq)]
struct Marks {
    vote: Option<proto::Vote>,
    purged: Option<proto::PurgedMark>,
}

impl Walk {
    /// The part of the log that is still to be read, and where its chain begins.
    fn enter(&mut self, reader: &GroupLogReader, inner: &Inner) -> Span {
        let first = inner.first_position();
        let to = inner.durable_end().min(*self.to.get_or_insert(inner.durable_end()));
        let next = self.chain.and_then(|chain| chain.next).filter(|next| *next > first);
        let crc = match next {
            Some(next) if inner.cuts == self.cuts => {
                self.chain.and_then(|chain| chain.crc).or_else(|| inner.crc_before(next))
            }
            // Another record may stand before it now.
            Some(next) => inner.crc_before(next),
            None => inner.crc_before(first),
        };
        let from = next.unwrap_or(first);
        let chain = Chain { group: reader.state.group, next: Some(from), crc };
        Span { chain, from, to, crc_at_end: inner.crc_before(to), cuts: inner.cuts }
    }
}

impl GroupLogReader {
    /// Reads the next part of a log, about `limit_bytes` of it. Blocks.
    ///
    /// # Errors
    /// Those of the disk that are no damage.
    pub(crate) fn walk(&self, walk: &mut Walk, limit_bytes: usize) -> io::Result<Looked> {
        let span = self.state.with(|inner| walk.enter(self, inner));
        if span.from >= span.to {
            return Ok(Looked::Whole { bytes: 0, ended: true });
        }
        let mut looked = self.look(&span, limit_bytes)?;
        if looked.as_ref().is_err_and(|bad| !self.excuses(&span, bad)) {
            looked = self.look(&span, limit_bytes)?;
        }
        match looked {
            Ok((chain, bytes)) => {
                (walk.chain, walk.cuts) = (Some(chain), span.cuts);
                Ok(Looked::Whole { bytes, ended: chain.next >= Some(span.to) })
            }
            Err(bad) if self.excuses(&span, &bad) => Ok(Looked::UnderWay),
            Err(bad) => Ok(Looked::Damaged(bad.error)),
        }
    }

    /// Whether what was looked for has been purged or truncated since.
    fn excuses(&self, span: &Span, bad: &Bad) -> bool {
        self.state.with(|inner| inner.first_position() > bad.position || inner.cuts != span.cuts)
    }

    /// Follows the chain through the beginning of a span. Returns where it stands then and how many bytes were read.
    fn look(&self, span: &Span, limit_bytes: usize) -> io::Result<Result<(Chain, u64), Bad>> {
        let (group, floor) = (self.state.group, span.to - 1);
        let records = match self.store.engine.read(group, span.from, span.to, limit_bytes) {
            Ok(records) => records,
            Err(source) if is_damage(&source) => {
                let error = LogError::Unreadable { group, position: span.from, source };
                return Ok(Err(Bad { position: span.from, error }));
            }
            Err(error) => return Err(error),
        };
        let below_floor = |(position, reason)| {
            let error = LogError::DamagedBelowFloor { group, position, floor, reason };
            Ok(Err(Bad { position, error }))
        };
        if records.is_empty() {
            return below_floor((span.from, RecordError::Missing));
        }
        let (mut chain, mut bytes) = (span.chain, 0);
        for (position, record) in &records {
            if let Err(bad) = chain.take(*position, record) {
                return below_floor(bad);
            }
            bytes += record.len() as u64;
        }
        let is_end = chain.next == Some(span.to);
        if is_end && span.crc_at_end.is_some_and(|crc| chain.crc != Some(crc)) {
            let error = LogError::OtherHistory { group, position: floor };
            return Ok(Err(Bad { position: floor, error }));
        }
        Ok(Ok((chain, bytes)))
    }

    fn marks(&self) -> Marks {
        self.state.with(|inner| Marks {
            vote: inner.vote.as_ref().map(Into::into),
            purged: inner.purged.map(|at| proto::PurgedMark { at: Some((&at).into()), crc: inner.purged_crc }),
        })
    }

    /// Holds the marks on the disk against those that memory knows. One that differs is damage only if everything was durable
    /// that memory knew, and memory knows the same still. Blocks.
    ///
    /// # Errors
    /// Those of the disk that are no damage.
    pub(crate) fn check_marks(&self, check: &mut MarkCheck, replica: ReplicaId) -> io::Result<Looked> {
        let expected = self.marks();
        match self.differing_mark(&expected, replica) {
            Ok(()) => Ok(Looked::Whole { bytes: 0, ended: true }),
            Err(LogError::Io(error)) if !is_damage(&error) => Err(error),
            Err(error) if check.is_durable && check.known.as_ref() == Some(&expected) && self.marks() == expected => {
                Ok(Looked::Damaged(error))
            }
            Err(_) => {
                *check = MarkCheck { known: Some(expected), is_durable: false };
                Ok(Looked::UnderWay)
            }
        }
    }

    fn differing_mark(&self, expected: &Marks, replica: ReplicaId) -> Result<(), LogError> {
        let (engine, group) = (&*self.store.engine, self.state.group);
        let differs =
            |kind| LogError::Mark { group, kind, detail: "it is not the one that was written last".to_owned() };
        if mark::read(engine, group, MarkKind::Vote)? != expected.vote {
            return Err(differs(MarkKind::Vote));
        }
        if mark::read(engine, group, MarkKind::Purged)? != expected.purged {
            return Err(differs(MarkKind::Purged));
        }
        if mark::read(engine, group, MarkKind::Replica)? != Some(proto::ReplicaMark { replica }) {
            return Err(differs(MarkKind::Replica));
        }
        // It rides with whatever is written next, so memory may be ahead of it.
        mark::read::<proto::LogId>(engine, group, MarkKind::Committed)?;
        Ok(())
    }
}

impl LogStore {
    /// Moves what only a write-ahead log holds to where it is read from. Blocks.
    pub(crate) fn spill(&self) -> io::Result<()> {
        self.shared.engine.spill()
    }

    /// Reads the floor back. Says what is wrong with it, and what mends that. Blocks.
    pub(crate) fn reread_floor(&self) -> io::Result<Option<(FloorChange, String)>> {
        self.shared.floor.lock().reread()
    }

    /// Writes the floor again.
    pub(crate) async fn mend_floor(&self, mended: FloorChange) -> io::Result<()> {
        self.shared.writer.submit_and_wait([], [mended]).await
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use bytes::Bytes;
    use openraft::EntryPayload;
    use openraft::storage::{IOFlushed, RaftLogStorage as _};
    use openraft::type_config::TypeConfigExt as _;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;
    use crate::engine::LogEngine;
    use crate::ids::GroupId;
    use crate::log::{GroupLog, LogConfig, TaskHooks, WriterMode};
    use crate::memory::{MemoryFloor, MemoryLog};
    use crate::types::{Entry, LeaderId, Proposal, TC, Vote, log_id};

    const GROUP: GroupId = GroupId(4);
    const REPLICA: ReplicaId = 7;
    /// So small that most records leave memory at once.
    const TAIL_BYTES: usize = 600;
    const LIMIT: usize = 1_000;

    fn open(engine: Arc<dyn LogEngine>, floor: &MemoryFloor, mode: WriterMode) -> LogStore {
        let config = LogConfig { tail_bytes: TAIL_BYTES, ..LogConfig::default() };
        LogStore::open(engine, Arc::new(floor.clone()), mode, config).unwrap()
    }

    fn entry(term: u64, position: u64) -> Entry {
        let payload = EntryPayload::Normal(Proposal(Bytes::from(vec![position as u8; 100])));
        Entry { log_id: log_id(term, REPLICA, position), payload }
    }

    async fn append(log: &mut GroupLog, term: u64, positions: std::ops::Range<u64>) {
        let (told, wait) = TC::oneshot();
        let entries: Vec<Entry> = positions.map(|position| entry(term, position)).collect();
        log.append(entries, IOFlushed::<TC>::signal(told)).await.unwrap();
        wait.await.unwrap().unwrap();
    }

    fn vote(term: u64) -> Vote {
        Vote { leader_id: LeaderId { term, node_id: REPLICA }, committed: true }
    }

    /// Goes through a whole log. Bytes, or what is damaged.
    fn walk(reader: &GroupLogReader) -> Result<u64, String> {
        let (mut walk, mut all) = (Walk::default(), 0);
        loop {
            match reader.walk(&mut walk, LIMIT).unwrap() {
                Looked::Whole { bytes, ended: true } => return Ok(all + bytes),
                Looked::Whole { bytes, ended: false } => all += bytes,
                Looked::UnderWay => {}
                Looked::Damaged(error) => return Err(error.to_string()),
            }
        }
    }

    async fn check_marks(store: &LogStore, reader: &GroupLogReader) -> Result<(), String> {
        let mut check = MarkCheck::default();
        loop {
            match reader.check_marks(&mut check, REPLICA).unwrap() {
                Looked::Whole { .. } => return Ok(()),
                Looked::UnderWay => {
                    store.flush().await.unwrap();
                    check.all_is_durable();
                }
                Looked::Damaged(error) => return Err(error.to_string()),
            }
        }
    }

    /// A log of positions 0 to 49 in memory that is purged up to 9, with a vote.
    async fn written() -> (MemoryLog, MemoryFloor, LogStore, GroupLog) {
        let (engine, floor) = (MemoryLog::new(), MemoryFloor::new());
        let store = open(Arc::new(engine.clone()), &floor, WriterMode::Task(TaskHooks::instant()));
        let mut log = store.open_group(GROUP, REPLICA).await.unwrap();
        append(&mut log, 1, 0..50).await;
        log.save_vote(&vote(1)).await.unwrap();
        log.purge(log_id(1, REPLICA, 9)).await.unwrap();
        store.flush().await.unwrap();
        assert_eq!(walk(&log.reader()), Ok(40 * 130));
        assert_eq!(check_marks(&store, &log.reader()).await, Ok(()));
        (engine, floor, store, log)
    }

    fn flip(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        *bytes.last_mut()? ^= 1;
        Some(bytes)
    }

    #[tokio::test]
    async fn a_record_that_rots_on_the_disk_is_found_in_memory_or_not() {
        for position in [10, 31, 49] {
            for gone in [true, false] {
                let (engine, _, _, log) = written().await;
                assert!(engine.damage(GROUP, position, |bytes| flip(bytes).filter(|_| !gone)));
                let found = walk(&log.reader()).unwrap_err();
                assert!(found.contains(&format!("position {position}")), "{found}");
            }
        }
    }

    #[tokio::test]
    async fn a_record_of_another_history_is_found_by_its_chain_or_at_the_end() {
        for position in [20, 49] {
            let (engine, _, _, log) = written().await;
            // Whole, at its place, behind the right record, and another one than was written.
            assert!(engine.damage(GROUP, position, |bytes| {
                let old = crate::log::record::decode(GROUP, position, &Bytes::from(bytes)).unwrap();
                Some(crate::log::record::encode(GROUP, &entry(3, position), old.previous).0.to_vec())
            }));
            walk(&log.reader()).unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_mark_that_rots_or_is_gone_is_found() {
        for kind in [MarkKind::Vote, MarkKind::Purged, MarkKind::Replica] {
            for gone in [true, false] {
                let (engine, _, store, log) = written().await;
                assert!(engine.damage_mark(GROUP, kind, |bytes| flip(bytes).filter(|_| !gone)));
                let found = check_marks(&store, &log.reader()).await.unwrap_err();
                assert!(found.contains(&format!("{kind:?} mark")), "{found}");
            }
        }
    }

    #[tokio::test]
    async fn a_slot_of_the_floor_that_rots_is_written_again_and_the_whole_one_stays_until_then() {
        for slot in 0..2 {
            let (engine, floor, store, log) = written().await;
            assert!(store.reread_floor().unwrap().is_none());
            assert!(floor.damage(slot, |bytes| bytes[30] ^= 1));
            let (mended, _) = store.reread_floor().unwrap().unwrap();
            // A crash in the middle of the first write finds the slot that is whole.
            let crashed = floor.image();
            let dying = TaskHooks { failed: Arc::new(|_| ()), ..TaskHooks::instant() };
            let torn = open(Arc::new(engine.image()), &crashed, WriterMode::Task(dying));
            crashed.set_hook(|_| crate::memory::FloorFault::Torn(20));
            torn.mend_floor(torn.reread_floor().unwrap().unwrap().0).await.unwrap_err();
            assert_eq!(crashed.crash().promised(GROUP), Some(49));
            store.mend_floor(mended.clone()).await.unwrap();
            assert!(store.reread_floor().unwrap().is_none());
            assert_eq!(floor.promised(GROUP), Some(49));
            // Too late: it was written meanwhile.
            store.mend_floor(mended).await.unwrap();
            assert!(store.reread_floor().unwrap().is_none());
            drop((log, store));
            let again = open(Arc::new(engine.crash()), &floor.crash(), WriterMode::Task(TaskHooks::instant()));
            assert!(again.reread_floor().unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn a_walk_goes_on_over_what_was_truncated_or_purged_between_two_parts_of_it() {
        for purged in [true, false] {
            let (_, _, _, mut log) = written().await;
            let reader = log.reader();
            let mut begun = Walk::default();
            let Looked::Whole { ended: false, .. } = reader.walk(&mut begun, LIMIT).unwrap() else {
                panic!("it is whole")
            };
            let next = begun.chain.and_then(|chain| chain.next).unwrap();
            if purged {
                log.purge(log_id(1, REPLICA, next + 5)).await.unwrap();
            } else {
                // Other records are before the next one now.
                log.truncate_after(Some(log_id(1, REPLICA, next - 3))).await.unwrap();
                append(&mut log, 2, next - 2..next + 10).await;
            }
            loop {
                match reader.walk(&mut begun, LIMIT).unwrap() {
                    Looked::Whole { ended: true, .. } => break,
                    Looked::Damaged(error) => panic!("{error}"),
                    _ => {}
                }
            }
        }
    }

    /// Appends, truncates, purges and votes for some rounds.
    async fn work(log: &mut GroupLog, rounds: u64) {
        let mut random = StdRng::seed_from_u64(rounds);
        let (mut first, mut end) = (0, 0);
        for term in 1..=rounds {
            let more = random.random_range(1..30);
            append(log, term, end..end + more).await;
            end += more;
            if random.random_bool(0.3) {
                let from = random.random_range(first.max(end.saturating_sub(40))..end);
                let last = log.identity(from).unwrap();
                log.truncate_after(last).await.unwrap();
                end = from + 1;
            }
            if random.random_bool(0.2) {
                let upto = random.random_range(first..end);
                let upto = log.identity(upto).unwrap().unwrap();
                log.purge(upto).await.unwrap();
                first = upto.index + 1;
            }
            if random.random_bool(0.1) {
                // A snapshot that is ahead of the log.
                (first, end) = (end + 10, end + 10);
                log.purge(log_id(term, REPLICA, end - 1)).await.unwrap();
            }
            if random.random_bool(0.2) {
                log.save_vote(&vote(term)).await.unwrap();
            }
            if first == end {
                append(log, term, end..end + 1).await;
                end += 1;
            }
        }
    }

    /// Scrubs a log on another thread as fast as it can while it is written.
    async fn scrubbed_while_written(engine: Arc<dyn LogEngine>, rounds: u64) {
        let store = open(engine, &MemoryFloor::new(), WriterMode::Thread);
        let mut log = store.open_group(GROUP, REPLICA).await.unwrap();
        let (reader, scrubbed, done) = (log.reader(), store.clone(), Arc::new(AtomicBool::new(false)));
        let over = done.clone();
        let scrub = tokio::spawn(async move {
            let (mut passes, mut bytes) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                if passes % 16 == 0 {
                    scrubbed.spill().unwrap();
                }
                bytes += tokio::task::block_in_place(|| walk(&reader)).unwrap();
                check_marks(&scrubbed, &reader).await.unwrap();
                assert!(tokio::task::block_in_place(|| scrubbed.reread_floor()).unwrap().is_none());
                passes += 1;
            }
            (passes, bytes)
        });
        work(&mut log, rounds).await;
        done.store(true, Ordering::Relaxed);
        let (passes, bytes) = scrub.await.unwrap();
        println!("{passes} passes over {bytes} bytes");
        assert!(passes > 10 && bytes > 0);
        walk(&log.reader()).unwrap();
        store.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_being_written_is_no_damage() {
        scrubbed_while_written(Arc::new(MemoryLog::new()), 4_000).await;
    }

    #[cfg(feature = "rocksdb")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_being_written_to_a_database_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        scrubbed_while_written(Arc::new(crate::rocks::RocksLog::open(dir.path()).unwrap()), 600).await;
    }
}
