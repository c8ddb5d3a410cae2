//! The encoding of everything that this crate puts into a log, a row or a message to another node.
//!
//! This is the only file that names bincode. bincode has no maintainer any more, so its output is wrapped: a version, a kind,
//! a length and a CRC32C stand before it, decoding is bounded, and a frozen example of each kind is tested byte by byte.
//!
//! A message is `version: u8, kind: u8, length: u32 LE, crc32c: u32 LE, body`; the CRC is over version, kind, length and
//! body. A row is `version: u8, crc32c: u32 LE, body`: its length is known to the database.
//!
//! The structs that are encoded are frozen for each version. To change one, copy the old one beside it, raise the version, and
//! convert while decoding; the tests on frozen bytes say when that is needed.

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
pub(crate) use bincode::{Decode, Encode};
use bytes::Bytes;

use crate::{Entry, Operation, Reject, control, shard};

/// The version that is written, and the only one that is read so far.
pub const VERSION: u8 = 1;

/// The most bytes in the body of a message. A proposal is far smaller; this bounds what a damaged length can cost.
pub const MAX_BODY_BYTES: usize = 64 << 20;

const MESSAGE_HEADER_BYTES: usize = 10;
const ROW_HEADER_BYTES: usize = 5;

const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_BODY_BYTES>> =
    config::standard().with_limit::<MAX_BODY_BYTES>();

/// Why bytes were not encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Fewer bytes than the header needs, or not as many as it says.
    #[error("{found} bytes where {expected} were expected: cut off or run together")]
    Length {
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Written by a version that this one does not know.
    #[error("written in version {found} of the format, this program reads {VERSION}: start the newer version")]
    Version {
        /// The version found.
        found: u8,
    },
    /// Something else was expected here.
    #[error("a message of kind {found} where kind {expected} was expected")]
    Kind {
        /// The kind that was asked for.
        expected: u8,
        /// The kind found.
        found: u8,
    },
    /// The bytes are not those that were written.
    #[error("the checksum does not match: the bytes are damaged")]
    Checksum,
    /// The checksum is right and the body is not what it should be.
    #[error("the body does not decode: {what}")]
    Body {
        /// What bincode says.
        what: String,
    },
    /// Too large to be encoded.
    #[error("{bytes} bytes are more than a message may have ({MAX_BODY_BYTES}): split it")]
    TooLarge {
        /// How large it would be.
        bytes: usize,
    },
}

/// A message: what may be put in a log or sent to another node. Implemented here for all there are.
pub trait Message: Encode + Decode<()> {
    /// Tells the kinds apart, so that one cannot be taken for another.
    const KIND: u8;
}

impl Message for Entry<control::Command> {
    const KIND: u8 = 1;
}
impl Message for Entry<shard::Command> {
    const KIND: u8 = 2;
}
impl Message for Operation<control::Command> {
    const KIND: u8 = 3;
}
impl Message for Operation<shard::Command> {
    const KIND: u8 = 4;
}
impl Message for Result<control::Reply, Reject> {
    const KIND: u8 = 5;
}
impl Message for Result<shard::Reply, Reject> {
    const KIND: u8 = 6;
}

/// Encodes a message.
///
/// # Errors
/// [`Error::TooLarge`] beyond [`MAX_BODY_BYTES`].
pub fn encode<M: Message>(message: &M) -> Result<Bytes, Error> {
    let mut out = Vec::with_capacity(256);
    out.resize(MESSAGE_HEADER_BYTES, 0);
    bincode::encode_into_std_write(message, &mut out, CONFIG)
        .map_err(|error| Error::Body { what: error.to_string() })?;
    let length = out.len() - MESSAGE_HEADER_BYTES;
    if length > MAX_BODY_BYTES {
        return Err(Error::TooLarge { bytes: length });
    }
    out[0] = VERSION;
    out[1] = M::KIND;
    out[2..6].copy_from_slice(&(length as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[..6]), &out[MESSAGE_HEADER_BYTES..]);
    out[6..10].copy_from_slice(&crc.to_le_bytes());
    Ok(Bytes::from(out))
}

/// Decodes a message of the expected kind. Never panics and never allocates much more than `bytes` holds.
///
/// # Errors
/// All but [`Error::TooLarge`].
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, Error> {
    let Some((header, body)) = bytes.split_at_checked(MESSAGE_HEADER_BYTES) else {
        return Err(Error::Length { expected: MESSAGE_HEADER_BYTES, found: bytes.len() });
    };
    if header[0] != VERSION {
        return Err(Error::Version { found: header[0] });
    }
    if header[1] != M::KIND {
        return Err(Error::Kind { expected: M::KIND, found: header[1] });
    }
    let length = u32::from_le_bytes([header[2], header[3], header[4], header[5]]) as usize;
    if length != body.len() {
        return Err(Error::Length { expected: length, found: body.len() });
    }
    let crc = u32::from_le_bytes([header[6], header[7], header[8], header[9]]);
    if crc != crc32c::crc32c_append(crc32c::crc32c(&header[..6]), body) {
        return Err(Error::Checksum);
    }
    decode_body(body)
}

/// Encodes a record as the value of a row.
pub(crate) fn encode_row<R: Encode>(record: &R) -> Vec<u8> {
    let mut out = Vec::with_capacity(96);
    encode_row_onto(record, &mut out);
    out
}

/// Encodes a record as the value of a row, behind what `out` holds.
pub(crate) fn encode_row_onto<R: Encode>(record: &R, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[VERSION, 0, 0, 0, 0]);
    bincode::encode_into_std_write(record, out, CONFIG).expect("a record is bounded by what a command may hold");
    let crc = crc32c::crc32c(&out[start + ROW_HEADER_BYTES..]);
    out[start + 1..start + ROW_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// Decodes the value of a row.
pub(crate) fn decode_row<R: Decode<()>>(value: &[u8]) -> Result<R, Error> {
    let Some((header, body)) = value.split_at_checked(ROW_HEADER_BYTES) else {
        return Err(Error::Length { expected: ROW_HEADER_BYTES, found: value.len() });
    };
    if header[0] != VERSION {
        return Err(Error::Version { found: header[0] });
    }
    if u32::from_le_bytes([header[1], header[2], header[3], header[4]]) != crc32c::crc32c(body) {
        return Err(Error::Checksum);
    }
    decode_body(body)
}

fn decode_body<T: Decode<()>>(body: &[u8]) -> Result<T, Error> {
    let (value, used) =
        bincode::decode_from_slice(body, CONFIG).map_err(|error| Error::Body { what: error.to_string() })?;
    if used != body.len() {
        return Err(Error::Length { expected: used, found: body.len() });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{NewTask, RetryPolicy};
    use crate::shard::PointWrite;
    use crate::{CollectionId, LogTime, RequestId, SessionId, TaskId, Token};

    fn control_entry() -> Entry<control::Command> {
        let retry = RetryPolicy { max_attempts: 3, backoff_ms: 100, max_backoff_ms: 5_000 };
        let task = NewTask { queue: "q".to_owned(), role: "r".to_owned(), payload: b"pay".to_vec(), retry };
        let complete = control::Command::Complete {
            task: TaskId(0x1_0000),
            token: Token { position: 300, ordinal: 2 },
            result: b"res".to_vec(),
            children: vec![task.clone()],
        };
        Entry {
            time: LogTime(1_750_000_000_000_000),
            operations: vec![
                Operation {
                    request: Some(RequestId(7 << 76)),
                    command: control::Command::Enqueue { tasks: vec![task] },
                },
                Operation::new(control::Command::Grant { task: TaskId(0x1_0000), session: SessionId(0x2_0000) }),
                Operation::new(complete),
            ],
        }
    }

    fn shard_entry() -> Entry<shard::Command> {
        let point =
            PointWrite { id: "p".to_owned(), vector: vec![0.5, -2.0], payload: b"{}".to_vec(), expected: Some(4) };
        let command = shard::Command::Upsert { collection: CollectionId(1), generation: 5, points: vec![point] };
        Entry { time: LogTime(9), operations: vec![Operation::new(command)] }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn round_trip<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
        let bytes = encode(message).expect("it is small");
        assert_eq!(&decode::<M>(&bytes).expect("what was encoded"), message);
        for length in 0..bytes.len() {
            assert!(decode::<M>(&bytes[..length]).is_err(), "cut to {length}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<M>(&flipped).is_err(), "bit {bit}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(decode::<M>(&longer), Err(Error::Length { .. })));
    }

    #[test]
    fn what_is_encoded_decodes_and_what_is_damaged_does_not() {
        round_trip(&control_entry());
        round_trip(&shard_entry());
        round_trip(&control_entry().operations[0]);
        round_trip(&shard_entry().operations[0]);
        round_trip::<Result<control::Reply, Reject>>(&Ok(control::Reply::Tasks(vec![TaskId(1)])));
        round_trip::<Result<control::Reply, Reject>>(&Err(Reject::invalid("why")));
        round_trip::<Result<shard::Reply, Reject>>(&Ok(shard::Reply::Upserted(vec![Ok(shard::Version(3))])));
    }

    #[test]
    fn one_kind_is_not_taken_for_another() {
        let bytes = encode(&control_entry()).expect("it is small");
        assert_eq!(decode::<Entry<shard::Command>>(&bytes), Err(Error::Kind { expected: 2, found: 1 }));
        let mut newer = bytes.to_vec();
        newer[0] = 2;
        assert_eq!(decode::<Entry<control::Command>>(&newer), Err(Error::Version { found: 2 }));
    }

    /// A body with a right checksum whose lengths promise far more than there is.
    #[test]
    fn a_lying_length_allocates_nothing() {
        let mut body = vec![0, 1, 0, 12];
        body.extend([253; 9]);
        let mut bytes = vec![VERSION, 1];
        bytes.extend((body.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
        bytes.extend(crc.to_le_bytes());
        bytes.extend(&body);
        assert!(matches!(decode::<Entry<control::Command>>(&bytes), Err(Error::Body { .. })));
    }

    #[test]
    fn the_bytes_of_version_1_are_frozen() {
        let reply: Result<control::Reply, Reject> = Err(Reject::StaleToken { task: TaskId(5) });
        let lines =
            [encode(&control_entry()), encode(&shard_entry()), encode(&control_entry().operations[1]), encode(&reply)]
                .map(|bytes| hex(&bytes.expect("it is small")));
        assert_eq!(lines.join("\n"), include_str!("../tests/frozen/messages-v1.txt").trim_end());
    }
}
