//! The envelope of one entry on disk.
//!
//! ```text
//!   offset  size  field
//!        0     1  version (1)
//!        1     1  kind: 0 blank, 1 proposal, 2 membership
//!        2     4  length of the payload
//!        6     8  term
//!       14     8  leader (replica id)
//!       22     4  previous: the checksum of the record before, or the seed
//!       26     4  checksum: CRC32C over group, position, the 26 bytes above and the payload
//!       30     -  payload
//! ```
//!
//! Integers are little endian. Each record can be judged alone by its checksum, and holds the checksum of the record before
//! it, so that a record that was lost, repeated, reordered or left over from another group breaks the chain.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use prost::Message;

use crate::ids::GroupId;
use crate::proto;
use crate::types::{Entry, Malformed, Membership, Payload, Proposal, log_id};

/// The version that is written.
const VERSION: u8 = 1;
/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 30;
/// What the first record of a log names as the checksum before it.
pub(crate) const SEED: u32 = 0;

const CHECKSUM_AT: usize = HEADER_BYTES - 4;

const BLANK: u8 = 0;
const PROPOSAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// Why a record does not read back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than its header, or than its header says.
    #[error("the record is cut: {have} bytes of {want}")]
    Cut {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        want: usize,
    },
    /// Written by another version.
    #[error("the record has version {0}, this program reads version 1")]
    Version(u8),
    /// The bytes are not those that were written.
    #[error("the record's checksum does not match its bytes")]
    Checksum,
    /// The checksum holds but the kind is none that version 1 has.
    #[error("the record has the unknown kind {0}")]
    Kind(u8),
    /// The checksum holds but the payload does not decode.
    #[error(transparent)]
    Payload(#[from] Malformed),
    /// The record is whole but does not follow the one before.
    #[error("the record is whole but does not continue the chain of the record before it")]
    Unchained,
    /// There is no record where one must be.
    #[error("the record is missing")]
    Missing,
}

/// A record that has passed its checksum.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) entry: Entry,
    /// The checksum of the record before it.
    pub(crate) previous: u32,
    /// Its own checksum.
    pub(crate) crc: u32,
}

/// Encodes an entry. Returns the record and its checksum, which the next record takes as `previous`.
pub(crate) fn encode(group: GroupId, entry: &Entry, previous: u32) -> (Bytes, u32) {
    let membership;
    let (kind, payload): (u8, &[u8]) = match &entry.payload {
        EntryPayload::Blank => (BLANK, &[]),
        EntryPayload::Normal(proposal) => (PROPOSAL, &proposal.0),
        EntryPayload::Membership(members) => {
            membership = proto::Membership::from(members).encode_to_vec();
            (MEMBERSHIP, &membership)
        }
    };
    let length = u32::try_from(payload.len()).expect("proposals are limited far below 4 GiB where they are accepted");

    let mut record = BytesMut::with_capacity(HEADER_BYTES + payload.len());
    record.put_u8(VERSION);
    record.put_u8(kind);
    record.put_u32_le(length);
    record.put_u64_le(entry.log_id.leader_id.term);
    record.put_u64_le(entry.log_id.leader_id.node_id);
    record.put_u32_le(previous);
    let crc = checksum(group, entry.log_id.index, &record, payload);
    record.put_u32_le(crc);
    record.put_slice(payload);
    (record.freeze(), crc)
}

/// Decodes a record that was read at a position of a group. The proposal shares the record's bytes.
pub(crate) fn decode(group: GroupId, position: u64, record: &Bytes) -> Result<Record, RecordError> {
    let Some((header, payload)) = record.split_at_checked(HEADER_BYTES) else {
        return Err(RecordError::Cut { have: record.len(), want: HEADER_BYTES });
    };
    if header[0] != VERSION {
        return Err(RecordError::Version(header[0]));
    }
    let length = u32_at(header, 2) as usize;
    if payload.len() != length {
        return Err(RecordError::Cut { have: record.len(), want: HEADER_BYTES + length });
    }
    let crc = u32_at(header, CHECKSUM_AT);
    let whole = crc == checksum(group, position, &header[..CHECKSUM_AT], payload);
    #[cfg(feature = "planted")]
    let whole = whole || crate::planted::is("unchecked-record");
    if !whole {
        return Err(RecordError::Checksum);
    }
    let payload = decode_payload(header[1], record.slice(HEADER_BYTES..))?;
    let entry = Entry { log_id: log_id(u64_at(header, 6), u64_at(header, 14), position), payload };
    Ok(Record { entry, previous: u32_at(header, 22), crc })
}

fn decode_payload(kind: u8, bytes: Bytes) -> Result<Payload, RecordError> {
    match kind {
        BLANK => Ok(EntryPayload::Blank),
        PROPOSAL => Ok(EntryPayload::Normal(Proposal(bytes))),
        MEMBERSHIP => {
            let message = proto::Membership::decode(bytes)
                .map_err(|error| Malformed { what: "membership", detail: error.to_string() })?;
            Ok(EntryPayload::Membership(Membership::try_from(message)?))
        }
        other => Err(RecordError::Kind(other)),
    }
}

fn checksum(group: GroupId, position: u64, header: &[u8], payload: &[u8]) -> u32 {
    let mut place = [0; 12];
    place[..4].copy_from_slice(&group.0.to_le_bytes());
    place[4..].copy_from_slice(&position.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&place), header);
    crc32c::crc32c_append(crc, payload)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::ids::NodeId;
    use crate::types::Member;

    const GROUP: GroupId = GroupId(3);

    fn payload() -> impl Strategy<Value = Payload> {
        let members = proptest::collection::btree_map(any::<u64>(), ".{0,20}", 1..5).prop_map(|members| {
            let members: BTreeMap<u64, Member> =
                members.into_iter().map(|(id, address)| (id, Member { node: NodeId(id ^ 0xABCD), address })).collect();
            let voters: BTreeSet<u64> = members.keys().copied().take(3).collect();
            EntryPayload::Membership(Membership::new(vec![voters], members).expect("voters are members"))
        });
        prop_oneof![
            Just(EntryPayload::Blank),
            proptest::collection::vec(any::<u8>(), 0..600)
                .prop_map(|bytes| EntryPayload::Normal(Proposal(Bytes::from(bytes)))),
            members,
        ]
    }

    /// Encodes payloads as the log from position 1 up.
    fn chain(payloads: &[Payload], term: u64) -> Vec<(Bytes, u32)> {
        let mut previous = SEED;
        let mut records = Vec::new();
        for (at, payload) in payloads.iter().enumerate() {
            let entry = Entry { log_id: log_id(term, 7, at as u64 + 1), payload: payload.clone() };
            let (record, crc) = encode(GROUP, &entry, previous);
            records.push((record, crc));
            previous = crc;
        }
        records
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_chain_reads_back_as_it_was_written(
            payloads in proptest::collection::vec(payload(), 1..12),
            term in any::<u64>(),
        ) {
            let mut previous = SEED;
            for (at, (record, crc)) in chain(&payloads, term).iter().enumerate() {
                let read = decode(GROUP, at as u64 + 1, record).expect("whole");
                prop_assert_eq!(read.previous, previous);
                prop_assert_eq!(read.crc, *crc);
                prop_assert_eq!(&read.entry.payload, &payloads[at]);
                prop_assert_eq!(read.entry.log_id, log_id(term, 7, at as u64 + 1));
                previous = *crc;
            }
        }

        #[test]
        fn any_flipped_bit_is_seen(payload in payload(), place in any::<prop::sample::Index>(), bit in 0u8..8) {
            let (record, _) = chain(&[payload], 5).remove(0);
            let mut bytes = record.to_vec();
            let at = place.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(GROUP, 1, &Bytes::from(bytes)).is_err());
        }

        #[test]
        fn any_cut_is_seen(payload in payload(), place in any::<prop::sample::Index>()) {
            let (record, _) = chain(&[payload], 5).remove(0);
            let short = record.slice(..place.index(record.len()));
            prop_assert!(decode(GROUP, 1, &short).is_err());
        }

        #[test]
        fn a_record_of_another_place_is_refused(payload in payload(), position in 2u64.., group in 4u32..) {
            let (record, _) = chain(&[payload], 5).remove(0);
            prop_assert_eq!(decode(GROUP, position, &record).expect_err("refused"), RecordError::Checksum);
            prop_assert_eq!(decode(GroupId(group), 1, &record).expect_err("refused"), RecordError::Checksum);
        }

        #[test]
        fn a_replaced_record_breaks_the_link_of_the_next(first in payload(), other in payload(), next in payload()) {
            prop_assume!(first != other);
            let written = chain(&[first, next], 5);
            let (_, crc_of_other) = chain(&[other], 5).remove(0);
            let second = decode(GROUP, 2, &written[1].0).expect("whole");
            prop_assert_ne!(second.previous, crc_of_other);
        }
    }

    #[test]
    fn a_later_version_is_named() {
        let (record, _) = chain(&[EntryPayload::Blank], 1).remove(0);
        let mut bytes = record.to_vec();
        bytes[0] = 9;
        assert_eq!(decode(GROUP, 1, &Bytes::from(bytes)).expect_err("refused"), RecordError::Version(9));
    }

    #[test]
    fn the_proposal_shares_the_bytes_of_its_record() {
        let payload = EntryPayload::Normal(Proposal(Bytes::from_static(b"hello")));
        let (record, _) = chain(&[payload], 1).remove(0);
        let read = decode(GROUP, 1, &record).expect("whole");
        let EntryPayload::Normal(proposal) = read.entry.payload else { panic!("a proposal was written") };
        assert_eq!(proposal.0.as_ptr(), record[HEADER_BYTES..].as_ptr());
    }
}
