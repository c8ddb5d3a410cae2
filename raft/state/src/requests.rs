//! Request ids and the replies that were given to them.
//!
//! A reply is kept for 24 hours of log time, and there are at most [`MAX_REQUESTS`] of them: the oldest go first. Whatever
//! goes moves the *horizon*. A request id that was minted before the horizon, or more than 24 hours ago, is refused unless
//! its reply is still here: nobody could tell whether it ran. Ids are UUIDv7, so they tell when they were minted; ids of
//! another shape do not and are only guarded as long as their replies are kept.

use std::collections::BTreeSet;
use std::fmt;

use crate::codec::{Decode, Encode};
use crate::records::{Changes, Record, Records};
use crate::{Fault, LogTime, Reject, RequestId};

/// For how long replies are kept at most, hours of log time.
pub(crate) const KEPT_HOURS: u32 = 24;
/// The most replies that are kept.
pub(crate) const MAX_REQUESTS: usize = 1 << 19;
/// How far a client's clock may be ahead of log time, milliseconds, without a gap in the guard: ids dated further ahead are
/// remembered as if they were this far ahead, so that one wrong clock cannot move the horizon for all. A day, because log time
/// is behind all clocks after a stop of the whole cluster, and comes after them slowly.
const MAX_AHEAD_MS: u64 = 24 * 3_600_000;
/// How many replies one entry forgets at most.
const FORGOTTEN_PER_ENTRY: usize = 8_192;

const KEPT_MS: u64 = KEPT_HOURS as u64 * 3_600_000;

/// What is kept of a reply. The machine says how to make a reply of it again.
pub(crate) trait Kept: Encode + Decode<()> + Clone + PartialEq + fmt::Debug {
    /// Number of the table.
    const TABLE: u8;
}

/// A request that took effect.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub(crate) struct RequestRecord<K> {
    pub(crate) at: LogTime,
    pub(crate) reply: K,
}

impl<K: Kept> Record for RequestRecord<K> {
    const TABLE: u8 = K::TABLE;
    type Key = RequestId;
}

/// The requests that took effect of late.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Requests<K: Kept> {
    records: Records<RequestRecord<K>>,
    /// Derived: the oldest first.
    order: BTreeSet<(LogTime, RequestId)>,
}

impl<K: Kept> Default for Requests<K> {
    fn default() -> Self {
        Requests { records: Records::default(), order: BTreeSet::new() }
    }
}

impl<K: Kept> Requests<K> {
    /// What is kept of the reply to a request, `None` if the request is new.
    pub(crate) fn look_up(&self, id: RequestId, now: LogTime, horizon: LogTime) -> Result<Option<&K>, Reject> {
        if let Some(record) = self.records.get(&id) {
            return Ok(Some(&record.reply));
        }
        let oldest = horizon.max(now.minus_ms(KEPT_MS));
        match id.minted() {
            Some(minted) if minted < oldest => Err(Reject::RequestExpired { kept_hours: KEPT_HOURS }),
            _ => Ok(None),
        }
    }

    /// Keeps the reply to a request.
    pub(crate) fn keep(&mut self, id: RequestId, at: LogTime, reply: K, changes: &mut Changes) {
        self.order.insert((counted_from(at, id), id));
        self.records.put(id, RequestRecord { at, reply }, changes);
    }

    /// Forgets what is too old or too much and returns the new horizon.
    pub(crate) fn forget(&mut self, now: LogTime, horizon: LogTime, changes: &mut Changes) -> LogTime {
        self.forget_beyond(MAX_REQUESTS, now, horizon, changes)
    }

    fn forget_beyond(&mut self, most: usize, now: LogTime, mut horizon: LogTime, changes: &mut Changes) -> LogTime {
        let oldest = now.minus_ms(KEPT_MS);
        for _ in 0..FORGOTTEN_PER_ENTRY {
            match self.order.first() {
                Some(&(from, id)) if from < oldest || self.order.len() > most => {
                    self.order.pop_first();
                    self.records.remove(id, changes);
                    horizon = horizon.max(LogTime(from.0.saturating_add(1)));
                }
                _ => break,
            }
        }
        horizon
    }

    /// Takes in a stored row.
    pub(crate) fn load(&mut self, key: &[u8], value: &[u8], changes: &mut Changes) -> Result<(), Fault> {
        self.records.load(key, value, changes)
    }

    /// Rebuilds what is derived from the records.
    pub(crate) fn derive(&mut self) {
        self.order = self.records.iter().map(|(id, record)| (counted_from(record.at, id), id)).collect();
    }

    /// The share of the records in the set hash, computed anew.
    pub(crate) fn hash(&self) -> u64 {
        self.records.hash()
    }

    /// Says what is wrong.
    pub(crate) fn check(&self, wrong: &mut Vec<String>) {
        let derived: BTreeSet<_> = self.records.iter().map(|(id, record)| (counted_from(record.at, id), id)).collect();
        if derived != self.order {
            wrong.push("the order of requests is not that of their records".to_owned());
        }
    }
}

/// The time by which a request is forgotten: when it was minted, if that is at most a day ahead of when it was kept.
/// Requests are forgotten in this order, so that the horizon never passes one that is newer than those forgotten: a single
/// client whose clock is ahead must not make the others' requests too old.
fn counted_from(at: LogTime, id: RequestId) -> LogTime {
    id.minted().unwrap_or(at).clamp(at, at.plus_ms(MAX_AHEAD_MS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::{Cluster, task};
    use crate::control::{Command, Reply};
    use crate::shard;
    use crate::shard::testing::{Slice, point};
    use crate::{CollectionId, Operation};

    const HOUR_MS: u64 = 3_600_000;

    /// A UUIDv7 minted at that time.
    fn minted_at(time: LogTime, nth: u64) -> RequestId {
        RequestId((u128::from(time.0 / 1_000) << 80) | (7 << 76) | (2 << 62) | u128::from(nth))
    }

    fn enqueue(id: RequestId) -> Operation<Command> {
        Operation { request: Some(id), command: Command::Enqueue { tasks: vec![task("q", "r"), task("q", "r")] } }
    }

    fn run(cluster: &mut Cluster, id: RequestId) -> Result<Reply, Reject> {
        cluster.operate(vec![enqueue(id)]).replies.remove(0)
    }

    #[test]
    fn a_uuid_tells_when_it_was_minted() {
        let id = RequestId(0x0197_8f2a_5c00_7000_8000_0000_0000_0001);
        assert_eq!(id.minted(), Some(LogTime(0x0197_8f2a_5c00 * 1_000)));
        assert_eq!(RequestId(0x0197_8f2a_5c00_4000_8000_0000_0000_0001).minted(), None);
    }

    #[test]
    fn a_repeated_request_takes_effect_once() {
        let mut cluster = Cluster::of(1);
        let id = minted_at(cluster.state.time(), 1);
        let outcome = cluster.operate(vec![enqueue(id), enqueue(id)]);
        assert_eq!(outcome.replies[0], outcome.replies[1], "within one entry");
        assert_eq!(run(&mut cluster, id), outcome.replies[0], "and in a later one");
        assert_eq!(cluster.state.queues().next().expect("a queue").ready, 2);
    }

    #[test]
    fn a_refused_request_may_be_tried_again() {
        let mut cluster = Cluster::empty();
        let id = minted_at(LogTime(1_750_000_000_000_000), 1);
        let create = || Operation {
            request: Some(id),
            command: Command::CreateCollection {
                name: "c".to_owned(),
                dimension: 4,
                metric: crate::Metric::L2,
                shards: 1,
            },
        };
        assert_eq!(cluster.operate(vec![create()]).replies, [Err(Reject::NotInitialized)]);
        let node = crate::control::testing::node(1);
        let init = Command::InitCluster { cluster: 1, shards: 1, node, control_replica: 1 };
        cluster.run(init).expect("a new cluster");
        assert!(cluster.operate(vec![create()]).replies[0].is_ok());
    }

    #[test]
    fn a_reply_is_kept_for_a_day_and_then_the_request_is_refused() {
        let mut cluster = Cluster::of(1);
        let id = minted_at(cluster.state.time(), 1);
        let reply = run(&mut cluster, id);
        cluster.pass_ms(24 * HOUR_MS);
        assert_eq!(run(&mut cluster, id), reply);
        cluster.pass_ms(1);
        assert_eq!(run(&mut cluster, id), Err(Reject::RequestExpired { kept_hours: 24 }));
        assert_eq!(cluster.state.queues().next().expect("a queue").ready, 2);
    }

    #[test]
    fn a_clock_that_is_ahead_opens_no_gap() {
        let mut cluster = Cluster::of(1);
        let ahead = minted_at(cluster.state.time().plus_ms(HOUR_MS / 2), 1);
        let reply = run(&mut cluster, ahead);
        cluster.pass_ms(24 * HOUR_MS + 1);
        assert_eq!(run(&mut cluster, ahead), reply, "it counts from when it says it was minted");
        cluster.pass_ms(HOUR_MS / 2);
        assert_eq!(run(&mut cluster, ahead), Err(Reject::RequestExpired { kept_hours: 24 }));
    }

    #[test]
    fn one_clock_ahead_does_not_make_the_others_too_old_when_replies_are_many() {
        let mut requests = Requests::<Text>::default();
        let mut changes = Changes::default();
        let at = |nth: u64| LogTime(1_750_000_000_000_000).plus_ms(nth);
        requests.keep(minted_at(at(HOUR_MS - 60_000), 99), at(0), Text(99), &mut changes);
        for nth in 1..10 {
            requests.keep(minted_at(at(nth), nth), at(nth), Text(nth), &mut changes);
        }
        let horizon = requests.forget_beyond(6, at(10), LogTime(0), &mut changes);
        assert_eq!(horizon, LogTime(at(4).0 + 1));
        assert_eq!(requests.look_up(minted_at(at(9), 1_000), at(10), horizon), Ok(None), "a new one is taken");
    }

    /// After a stop of the whole cluster, for example.
    #[test]
    fn log_time_that_is_hours_behind_all_clients_opens_no_gap() {
        let mut requests = Requests::<Text>::default();
        let mut changes = Changes::default();
        let at = |nth: u64| LogTime(1_750_000_000_000_000).plus_ms(nth);
        for nth in 0..10 {
            requests.keep(minted_at(at(2 * HOUR_MS + nth), nth), at(nth), Text(nth), &mut changes);
        }
        let horizon = requests.forget_beyond(6, at(10), LogTime(0), &mut changes);
        let again = minted_at(at(2 * HOUR_MS + 3), 3);
        assert_eq!(requests.look_up(again, at(10), horizon), Err(Reject::RequestExpired { kept_hours: 24 }));
        let new = minted_at(at(2 * HOUR_MS + 10), 10);
        assert_eq!(requests.look_up(new, at(10), horizon), Ok(None));
    }

    #[test]
    fn one_wrong_clock_does_not_refuse_the_others() {
        let mut cluster = Cluster::of(1);
        let wrong = minted_at(cluster.state.time().plus_ms(1_000 * 24 * HOUR_MS), 1);
        run(&mut cluster, wrong).expect("new");
        cluster.pass_ms(24 * HOUR_MS + 1);
        let right = minted_at(cluster.state.time(), 2);
        assert!(run(&mut cluster, right).is_ok());
    }

    #[test]
    fn too_many_replies_move_the_horizon() {
        let mut requests = Requests::<Text>::default();
        let mut changes = Changes::default();
        let at = |nth: u64| LogTime(1_750_000_000_000_000).plus_ms(nth);
        for nth in 0..10 {
            requests.keep(minted_at(at(nth), nth), at(nth), Text(nth), &mut changes);
        }
        let horizon = requests.forget_beyond(6, at(10), LogTime(0), &mut changes);
        assert_eq!(horizon, LogTime(at(3).0 + 1));
        let look_up = |nth| requests.look_up(minted_at(at(nth), nth), at(10), horizon);
        assert_eq!(look_up(3), Err(Reject::RequestExpired { kept_hours: 24 }));
        assert_eq!(look_up(4), Ok(Some(&Text(4))));
        assert_eq!(
            requests.look_up(minted_at(at(3), 99), at(10), horizon),
            Err(Reject::RequestExpired { kept_hours: 24 })
        );
        assert_eq!(requests.look_up(minted_at(at(4), 99), at(10), horizon), Ok(None));
    }

    #[derive(Clone, Debug, PartialEq, Encode, Decode)]
    struct Text(u64);

    impl Kept for Text {
        const TABLE: u8 = 9;
    }

    #[test]
    fn a_shard_keeps_its_replies_as_well() {
        let mut slice = Slice::with_collection(2);
        let id = minted_at(slice.state.time(), 1);
        let upsert = || Operation {
            request: Some(id),
            command: shard::Command::Upsert {
                collection: CollectionId(1),
                generation: 5,
                points: vec![point("a", 2), point("b", 3), point("c", 2)],
            },
        };
        let first = slice.operate(vec![upsert()]);
        let again = slice.operate(vec![upsert()]);
        assert_eq!(first.replies, again.replies);
        assert_eq!(again.effects, []);
        slice.pass_ms(24 * HOUR_MS + 1);
        let late = slice.operate(vec![upsert()]);
        assert_eq!(late.replies, [Err(Reject::RequestExpired { kept_hours: 24 })]);
    }
}
