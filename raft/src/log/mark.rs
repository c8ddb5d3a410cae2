//! The encoding of the single values beside the records: version byte, CRC32C, message.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::engine::{LogEngine, MarkKind};
use crate::ids::GroupId;
use crate::log::LogError;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;

/// Encodes a mark.
pub(crate) fn encode<M: Message>(message: &M) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_BYTES + message.encoded_len());
    bytes.put_u8(VERSION);
    let body = message.encode_to_vec();
    bytes.put_u32_le(crc32c::crc32c(&body));
    bytes.put_slice(&body);
    bytes.freeze()
}

pub(crate) fn decode<M: Message + Default>(bytes: &Bytes) -> Result<M, String> {
    let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(format!("it has {} bytes, fewer than its header", bytes.len()));
    };
    if header[0] != VERSION {
        return Err(format!("it has version {}, this program reads version {VERSION}", header[0]));
    }
    if header[1..] != crc32c::crc32c(body).to_le_bytes() {
        return Err("its checksum does not match its bytes".into());
    }
    M::decode(body).map_err(|error| error.to_string())
}

/// Reads a mark of a group.
pub(crate) fn read<M: Message + Default>(
    engine: &dyn LogEngine,
    group: GroupId,
    kind: MarkKind,
) -> Result<Option<M>, LogError> {
    let Some(bytes) = engine.mark(group, kind)? else { return Ok(None) };
    decode(&bytes).map(Some).map_err(|detail| LogError::Mark { group, kind, detail })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    #[test]
    fn a_mark_reads_back_and_any_flipped_bit_is_seen() {
        let vote = proto::Vote { term: 300, leader: 2, committed: true };
        let bytes = encode(&vote);
        assert_eq!(decode::<proto::Vote>(&bytes), Ok(vote));
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[at / 8] ^= 1 << (at % 8);
            assert!(decode::<proto::Vote>(&Bytes::from(bad)).is_err(), "bit {at}");
        }
        assert!(decode::<proto::Vote>(&bytes.slice(..3)).is_err());
    }
}
