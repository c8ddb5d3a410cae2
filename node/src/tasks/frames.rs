//! What travels between the node that holds an agent's stream and the leader: frames of the session relay.
//!
//! A frame carries whatever was waiting for all sessions of a node at once. Its parts are handled in the order of its
//! fields, which makes merging two frames harmless: a session is attached before its finishes are looked at, and what
//! names an older attachment is ignored.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use quorate_api::v1;

/// The payload bytes after which a frame is closed and the rest goes into the next one. One larger item goes alone.
const FRAME_BYTES: usize = 1 << 20;
/// Counted for a child beside its payload: a frame's finishes are one entry, and that has ids for 65,536 tasks only.
const CHILD_BYTES: usize = 96;
/// The most finishes, or grants, in one frame.
const FRAME_ITEMS: usize = 1_024;

/// From a node to the leader.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Up {
    /// Sessions whose stream this node holds now.
    #[prost(message, repeated, tag = "1")]
    pub(super) attaches: Vec<Attach>,
    /// Signs of life.
    #[prost(message, repeated, tag = "2")]
    pub(super) beats: Vec<Beat>,
    /// Ends of attempts.
    #[prost(message, repeated, tag = "3")]
    pub(super) finishes: Vec<SessionFinish>,
    /// Sessions that their agent closes in good order.
    #[prost(message, repeated, tag = "4")]
    pub(super) closes: Vec<Place>,
    /// Sessions whose stream broke.
    #[prost(message, repeated, tag = "5")]
    pub(super) detaches: Vec<Place>,
}

/// From the leader to a node.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Down {
    /// Answers to attaches.
    #[prost(message, repeated, tag = "1")]
    pub(super) attached: Vec<Attached>,
    /// Renewals, from a leader whose quorum lease held.
    #[prost(message, repeated, tag = "2")]
    pub(super) beats: Vec<Beat>,
    /// Answers to finishes.
    #[prost(message, repeated, tag = "3")]
    pub(super) acks: Vec<SessionAck>,
    /// Attempts that count no more.
    #[prost(message, repeated, tag = "4")]
    pub(super) cancels: Vec<SessionCancel>,
    /// Committed grants.
    #[prost(message, repeated, tag = "5")]
    pub(super) grants: Vec<SessionGrant>,
    /// Sessions that ended, or whose stream is elsewhere by now.
    #[prost(message, repeated, tag = "6")]
    pub(super) gone: Vec<Gone>,
}

/// A session at one of its streams.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Place {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub(super) session: u64,
    /// Which of its streams: higher is later.
    #[prost(uint64, tag = "2")]
    pub(super) attachment: u64,
}

/// The node holds this stream of the session.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Attach {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub(super) session: u64,
    /// Which of its streams.
    #[prost(uint64, tag = "2")]
    pub(super) attachment: u64,
    /// Every attempt that the agent has received and that is not acknowledged as ended.
    #[prost(message, repeated, tag = "3")]
    pub(super) holding: Vec<v1::Token>,
}

/// A heartbeat, and its acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(super) struct Beat {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub(super) session: u64,
    /// Which of its streams.
    #[prost(uint64, tag = "2")]
    pub(super) attachment: u64,
    /// The agent's number of the heartbeat; the highest that was seen.
    #[prost(uint64, tag = "3")]
    pub(super) seq: u64,
    /// The agent wants no further grants.
    #[prost(bool, tag = "4")]
    pub(super) draining: bool,
}

/// The end of an attempt.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionFinish {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub(super) session: u64,
    /// What the agent sent.
    #[prost(message, optional, tag = "2")]
    pub(super) finish: Option<v1::Finish>,
}

/// The leader knows the stream.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Attached {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub(super) session: u64,
    /// Which of its streams.
    #[prost(uint64, tag = "2")]
    pub(super) attachment: u64,
    /// After how many milliseconds of silence the session ends.
    #[prost(uint64, tag = "3")]
    pub(super) ttl_ms: u64,
    /// Attempts that were named as held and are not the session's any more.
    #[prost(message, repeated, tag = "4")]
    pub(super) lost: Vec<v1::Token>,
}

/// The answer to one finish.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionAck {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub(super) session: u64,
    /// What the agent gets.
    #[prost(message, optional, tag = "2")]
    pub(super) ack: Option<v1::FinishAck>,
    /// Which attempt is meant: an agent that resumed may use a sequence number again.
    #[prost(message, optional, tag = "3")]
    pub(super) token: Option<v1::Token>,
}

/// A grant for a session.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionGrant {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub(super) session: u64,
    /// What the agent gets.
    #[prost(message, optional, tag = "2")]
    pub(super) grant: Option<v1::Grant>,
}

/// An attempt of a session counts no more.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionCancel {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub(super) session: u64,
    /// What the agent gets.
    #[prost(message, optional, tag = "2")]
    pub(super) cancel: Option<v1::CancelAttempt>,
}

/// The session's streams up to and with `attachment` must end.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Gone {
    /// The session.
    #[prost(uint64, tag = "1")]
    pub(super) session: u64,
    /// The newest stream that is meant.
    #[prost(uint64, tag = "2")]
    pub(super) attachment: u64,
    /// Why.
    #[prost(message, optional, tag = "3")]
    pub(super) error: Option<v1::Error>,
}

/// Something that gathers until it is sent, and is sent in frames of bounded size.
pub(super) trait Gathered: Message + Default {
    /// Whether there is nothing to send.
    fn is_empty(&self) -> bool;
    /// Takes what fits into one frame.
    fn take_part(&mut self) -> Self;

    /// Takes one frame, encoded; `None` if nothing waits.
    fn take_frame(&mut self) -> Option<Bytes> {
        (!self.is_empty()).then(|| self.take_part().encode_to_vec().into())
    }
}

impl Up {
    /// Takes out what is said of some sessions, by the part to which `part_of` says that they belong.
    pub(super) fn split_off(&mut self, part_of: impl Fn(u64) -> Option<u64>) -> BTreeMap<u64, Up> {
        let mut parts = BTreeMap::new();
        split(&mut self.attaches, &mut parts, |item| part_of(item.session), |up| &mut up.attaches);
        split(&mut self.beats, &mut parts, |item| part_of(item.session), |up| &mut up.beats);
        split(&mut self.finishes, &mut parts, |item| part_of(item.session), |up| &mut up.finishes);
        split(&mut self.closes, &mut parts, |item| part_of(item.session), |up| &mut up.closes);
        split(&mut self.detaches, &mut parts, |item| part_of(item.session), |up| &mut up.detaches);
        parts
    }
}

/// Moves the items that belong to a part into the same `field` of it. The others keep their order.
fn split<T>(
    items: &mut Vec<T>,
    parts: &mut BTreeMap<u64, Up>,
    part_of: impl Fn(&T) -> Option<u64>,
    field: impl Fn(&mut Up) -> &mut Vec<T>,
) {
    for item in std::mem::take(items) {
        match part_of(&item) {
            Some(part) => field(parts.entry(part).or_default()).push(item),
            None => items.push(item),
        }
    }
}

impl Gathered for Up {
    fn is_empty(&self) -> bool {
        self.attaches.is_empty()
            && self.beats.is_empty()
            && self.finishes.is_empty()
            && self.closes.is_empty()
            && self.detaches.is_empty()
    }

    fn take_part(&mut self) -> Up {
        let fits = fitting(&self.finishes, |item| item.finish.as_ref().map_or(0, finish_bytes));
        if fits == self.finishes.len() {
            return std::mem::take(self);
        }
        // Closes and detaches must not overtake the finishes that came before them.
        let rest = self.finishes.split_off(fits);
        Up {
            attaches: std::mem::take(&mut self.attaches),
            beats: std::mem::take(&mut self.beats),
            finishes: std::mem::replace(&mut self.finishes, rest),
            ..Up::default()
        }
    }
}

impl Gathered for Down {
    fn is_empty(&self) -> bool {
        self.attached.is_empty()
            && self.beats.is_empty()
            && self.acks.is_empty()
            && self.cancels.is_empty()
            && self.grants.is_empty()
            && self.gone.is_empty()
    }

    fn take_part(&mut self) -> Down {
        let fits = fitting(&self.grants, |item| item.grant.as_ref().map_or(0, |grant| grant.payload.len()));
        if fits == self.grants.len() {
            return std::mem::take(self);
        }
        let rest = self.grants.split_off(fits);
        let grants = std::mem::replace(&mut self.grants, rest);
        let rest = std::mem::take(&mut self.grants);
        let gone = std::mem::take(&mut self.gone);
        let part = Down { grants, ..std::mem::take(self) };
        *self = Down { grants: rest, gone, ..Down::default() };
        part
    }
}

/// The bytes of a finish that can be many.
pub(super) fn finish_bytes(finish: &v1::Finish) -> usize {
    match &finish.outcome {
        Some(v1::finish::Outcome::Completed(completed)) => {
            completed.result.len()
                + completed.children.iter().map(|child| CHILD_BYTES + child.payload.len()).sum::<usize>()
        }
        Some(v1::finish::Outcome::Failed(failed)) => failed.error.len(),
        None => 0,
    }
}

/// How many of the first items fit into a frame; at least one if there is one.
fn fitting<T>(items: &[T], bytes: impl Fn(&T) -> usize) -> usize {
    let mut total = 0;
    let over = items.iter().position(|item| {
        total += bytes(item);
        total > FRAME_BYTES
    });
    over.map_or(items.len(), |first_over| first_over.max(1)).min(FRAME_ITEMS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(session: u64, bytes: usize) -> SessionGrant {
        let grant = v1::Grant { payload: vec![7; bytes].into(), ..v1::Grant::default() };
        SessionGrant { session, grant: Some(grant) }
    }

    fn decoded_sessions(down: &mut Down) -> Vec<Vec<u64>> {
        std::iter::from_fn(|| down.take_frame())
            .map(|frame| Down::decode(frame).expect("own frame").grants.iter().map(|item| item.session).collect())
            .collect()
    }

    #[test]
    fn nothing_waits_means_no_frame() {
        assert_eq!(Up::default().take_frame(), None);
        assert_eq!(Down::default().take_frame(), None);
    }

    #[test]
    fn grants_are_split_by_bytes_and_a_large_one_goes_alone() {
        let grants = vec![grant(1, FRAME_BYTES / 2), grant(2, FRAME_BYTES / 2), grant(3, 4 * FRAME_BYTES), grant(4, 1)];
        let mut down = Down { grants, ..Down::default() };
        assert_eq!(decoded_sessions(&mut down), vec![vec![1, 2], vec![3], vec![4]]);
        assert!(down.is_empty());
    }

    #[test]
    fn the_end_of_a_session_does_not_overtake_its_grants() {
        let mut down = Down { grants: vec![grant(1, FRAME_BYTES), grant(1, FRAME_BYTES)], ..Down::default() };
        down.gone.push(Gone { session: 1, attachment: 0, error: None });
        assert!(down.take_part().gone.is_empty());
        assert_eq!(down.take_part().gone.len(), 1);
    }

    #[test]
    fn what_is_said_of_a_session_is_taken_out_and_the_rest_stays() {
        let place = |session| Place { session, attachment: 1 };
        let beat = |session, seq| Beat { session, attachment: 1, seq, draining: false };
        let mut up = Up { beats: vec![beat(1, 5), beat(2, 6)], detaches: vec![place(2), place(1)], ..Up::default() };
        let taken = up.split_off(|session| (session == 2).then_some(7));
        assert_eq!((&up.beats[..], &up.detaches[..]), (&[beat(1, 5)][..], &[place(1)][..]));
        let said = Up { beats: vec![beat(2, 6)], detaches: vec![place(2)], ..Up::default() };
        assert_eq!(taken, BTreeMap::from([(7, said)]));
    }

    #[test]
    fn a_close_does_not_overtake_its_finishes() {
        let finish = |bytes: usize| SessionFinish {
            session: 1,
            finish: Some(v1::Finish {
                outcome: Some(v1::finish::Outcome::Completed(v1::Completed {
                    result: vec![1; bytes].into(),
                    children: Vec::new(),
                })),
                ..v1::Finish::default()
            }),
        };
        let mut up = Up { finishes: vec![finish(FRAME_BYTES), finish(1)], ..Up::default() };
        up.closes.push(Place { session: 1, attachment: 0 });
        let first = up.take_part();
        assert_eq!((first.finishes.len(), first.closes.len()), (1, 0));
        let second = up.take_part();
        assert_eq!((second.finishes.len(), second.closes.len()), (1, 1));
    }
}
