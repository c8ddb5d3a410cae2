//! What nodes say to each other about shards: one call with one answer, on the peer connection of kind `SHARD_CALL`.
//!
//! A write is the operation as the shard's log will hold it; reads are messages of their own. Answers reuse the messages of
//! the public API, so that the node that answers the client passes them on as they are.

use bytes::Bytes;
use prost::Message;
use quorate_api::limits::MESSAGE_BYTES;
use quorate_api::v1;

use crate::error::Error;

/// What a message adds to each item that it repeats: a tag and a length.
const ITEM_BYTES: usize = 6;

/// A call on one shard, for the node that the sender believes to lead it (writes) or to hold it (reads).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ShardCall {
    /// The shard.
    #[prost(uint32, tag = "1")]
    pub(super) shard: u32,
    /// How long the caller waits, in milliseconds.
    #[prost(uint64, tag = "2")]
    pub(super) budget_ms: u64,
    /// What is asked.
    #[prost(oneof = "What", tags = "3, 4, 5, 6")]
    pub(super) what: Option<What>,
}

/// What can be asked of a shard.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum What {
    /// Propose this: an entry of `quorate_state::codec` with one operation. Answered by [`WriteAnswer`].
    #[prost(bytes = "bytes", tag = "3")]
    Write(Bytes),
    /// Answered by [`GetAnswer`].
    #[prost(message, tag = "4")]
    Get(GetCall),
    /// Answered by [`SearchAnswer`].
    #[prost(message, tag = "5")]
    Search(SearchCall),
    /// Answered by [`StatsAnswer`].
    #[prost(message, tag = "6")]
    Stats(StatsCall),
}

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Freshness {
    /// A [`v1::Consistency`]; unspecified is linearizable.
    #[prost(enumeration = "v1::Consistency", tag = "1")]
    pub(super) consistency: i32,
    /// For session reads: the position of this shard that must be applied.
    #[prost(uint64, tag = "2")]
    pub(super) position: u64,
}

/// Points by id.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GetCall {
    #[prost(message, required, tag = "1")]
    pub(super) freshness: Freshness,
    #[prost(uint32, tag = "2")]
    pub(super) collection: u32,
    #[prost(uint64, tag = "3")]
    pub(super) generation: u64,
    #[prost(string, repeated, tag = "4")]
    pub(super) ids: Vec<String>,
    #[prost(bool, tag = "5")]
    pub(super) with_vector: bool,
}

/// A search of one shard's slice of a collection.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SearchCall {
    #[prost(message, required, tag = "1")]
    pub(super) freshness: Freshness,
    #[prost(uint32, tag = "2")]
    pub(super) collection: u32,
    #[prost(uint64, tag = "3")]
    pub(super) generation: u64,
    #[prost(float, repeated, tag = "4")]
    pub(super) vector: Vec<f32>,
    #[prost(uint32, tag = "5")]
    pub(super) k: u32,
    /// 0 takes the collection's default.
    #[prost(uint32, tag = "6")]
    pub(super) ef: u32,
    #[prost(bool, tag = "7")]
    pub(super) exact: bool,
    #[prost(bool, tag = "8")]
    pub(super) with_payload: bool,
    #[prost(bool, tag = "9")]
    pub(super) with_vector: bool,
}

/// Counts of every collection of the shard, as the replica has them at this moment.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct StatsCall {}

/// What became of a write.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WriteAnswer {
    /// A position of the shard's log that covers the write.
    #[prost(uint64, tag = "1")]
    pub(super) position: u64,
    /// Of an upsert: one for each point, in order.
    #[prost(message, repeated, tag = "2")]
    pub(super) outcomes: Vec<v1::WriteOutcome>,
    /// Of a delete: for each id in order whether it existed.
    #[prost(bool, repeated, tag = "3")]
    pub(super) existed: Vec<bool>,
}

/// The points that exist, in the order asked.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct GetAnswer {
    #[prost(message, repeated, tag = "1")]
    pub(super) points: Vec<v1::Point>,
}

/// The best hits of the shard, best first.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SearchAnswer {
    #[prost(message, repeated, tag = "1")]
    pub(super) hits: Vec<v1::Hit>,
}

/// Counts of the shard's collections.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StatsAnswer {
    #[prost(message, repeated, tag = "1")]
    pub(super) collections: Vec<CollectionStats>,
}

/// Counts of one collection's slice in one shard.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct CollectionStats {
    #[prost(uint32, tag = "1")]
    pub(super) collection: u32,
    #[prost(uint64, tag = "2")]
    pub(super) generation: u64,
    #[prost(uint64, tag = "3")]
    pub(super) points: u64,
    #[prost(uint64, tag = "4")]
    pub(super) sealed_points: u64,
    #[prost(uint64, tag = "5")]
    pub(super) segments: u64,
    /// A build runs or waits.
    #[prost(bool, tag = "6")]
    pub(super) building: bool,
}

/// The size of an answer while it is filled, so that one that no message can carry is given up before it fills the memory.
#[derive(Debug, Default)]
pub(super) struct Filled(usize);

impl Filled {
    /// Counts one item.
    ///
    /// # Errors
    /// `TOO_LARGE` once the items do not fit into a message.
    pub(super) fn add(&mut self, item: &impl Message) -> Result<(), Error> {
        self.0 += ITEM_BYTES + item.encoded_len();
        within_message(self.0)
    }
}

/// The answer, if a message can carry it.
///
/// # Errors
/// `TOO_LARGE` if not.
pub(super) fn fitting<A: Message>(answer: A) -> Result<A, Error> {
    within_message(answer.encoded_len())?;
    Ok(answer)
}

fn within_message(bytes: usize) -> Result<(), Error> {
    if bytes > MESSAGE_BYTES { Err(Error::too_large("the answer", MESSAGE_BYTES, bytes)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorReason;

    #[test]
    fn calls_and_answers_survive_the_wire() {
        let freshness = Freshness { consistency: v1::Consistency::Session.into(), position: 9 };
        let whats = [
            What::Write(Bytes::from_static(b"an operation")),
            What::Get(GetCall { freshness, collection: 3, generation: 4, ids: vec!["a".into()], with_vector: true }),
            What::Search(SearchCall {
                freshness,
                collection: 3,
                generation: 4,
                vector: vec![0.5, -1.0],
                k: 10,
                ef: 64,
                exact: true,
                with_payload: true,
                with_vector: false,
            }),
            What::Stats(StatsCall {}),
        ];
        for what in whats {
            let call = ShardCall { shard: 7, budget_ms: 900, what: Some(what) };
            assert_eq!(ShardCall::decode(call.encode_to_vec().as_slice()).expect("decodes"), call);
        }
        let answer = WriteAnswer {
            position: 12,
            outcomes: vec![v1::WriteOutcome { version: 5, error: None }],
            existed: vec![true, false],
        };
        assert_eq!(WriteAnswer::decode(answer.encode_to_vec().as_slice()).expect("decodes"), answer);
    }

    #[test]
    fn an_answer_is_given_up_where_it_outgrows_a_message() {
        let item = v1::Hit { payload: vec![b' '; 1 << 20].into(), ..Default::default() };
        let mut filled = Filled::default();
        let fit = (0..).take_while(|_| filled.add(&item).is_ok()).count();
        assert_eq!(fit, 7, "eight items of a MiB and their tags are more than 8 MiB");
        let answer = |count: usize| SearchAnswer { hits: vec![item.clone(); count] };
        assert!(fitting(answer(7)).is_ok());
        assert_eq!(fitting(answer(8)).expect_err("too large").reason, ErrorReason::TooLarge);
    }
}
