//! The row of a point. Laid out by hand, so that a search reads payloads without decoding vectors:
//!
//! `version: u8, crc32c: u32 LE, id length: u16 LE, dimension: u32 LE, id, vector (f32 LE), payload`; the CRC is over all
//! that follows it.

use bytes::{BufMut, Bytes};

use super::command::PointWrite;
use crate::CollectionId;
use crate::codec::{Error, VERSION};

/// The table of points.
pub const POINTS: u8 = super::table::POINT;

const HEADER_BYTES: usize = 11;
/// The CRC covers what follows it.
const COVERED_FROM: usize = 5;

/// A stored point, borrowed from its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointRow<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its vector: 4 bytes for each number, little-endian.
    pub vector_bytes: &'a [u8],
    /// What is stored with it.
    pub payload: &'a [u8],
}

impl PointRow<'_> {
    /// The vector.
    pub fn vector(&self) -> Vec<f32> {
        let (numbers, _) = self.vector_bytes.as_chunks::<4>();
        numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

/// The key of a row in [`POINTS`]: rows of a collection stand together, in the order of their numbers.
pub fn point_key(collection: CollectionId, row: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(12);
    key.put_u32(collection.0);
    key.put_u64(row);
    key
}

/// The collection and row number in a key of [`POINTS`]; `None` if it is not one.
pub fn row_of_key(key: &[u8]) -> Option<(CollectionId, u64)> {
    let (collection, row) = key.split_first_chunk::<4>()?;
    let row = <[u8; 8]>::try_from(row).ok()?;
    Some((CollectionId(u32::from_be_bytes(*collection)), u64::from_be_bytes(row)))
}

/// Encodes a point and returns the row with its CRC.
pub(super) fn encode_point(point: &PointWrite) -> (Bytes, u32) {
    let mut out = Vec::with_capacity(HEADER_BYTES + point.id.len() + point.vector.len() * 4 + point.payload.len());
    out.put_u8(VERSION);
    out.put_u32_le(0);
    out.put_u16_le(point.id.len() as u16);
    out.put_u32_le(point.vector.len() as u32);
    out.put_slice(point.id.as_bytes());
    for number in &point.vector {
        out.put_f32_le(*number);
    }
    out.put_slice(&point.payload);
    let crc = crc32c::crc32c(&out[COVERED_FROM..]);
    out[1..COVERED_FROM].copy_from_slice(&crc.to_le_bytes());
    (Bytes::from(out), crc)
}

/// Decodes the row of a point, in place.
///
/// # Errors
/// When the bytes are not those that were written.
pub fn decode_point(value: &[u8]) -> Result<PointRow<'_>, Error> {
    decode_with_crc(value).map(|(point, _)| point)
}

/// Decodes the row of a point with its CRC.
pub(super) fn decode_with_crc(value: &[u8]) -> Result<(PointRow<'_>, u32), Error> {
    let Some((header, body)) = value.split_at_checked(HEADER_BYTES) else {
        return Err(Error::Length { expected: HEADER_BYTES, found: value.len() });
    };
    if header[0] != VERSION {
        return Err(Error::Version { found: header[0] });
    }
    let crc = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    if crc != crc32c::crc32c(&value[COVERED_FROM..]) {
        return Err(Error::Checksum);
    }
    let id_bytes = usize::from(u16::from_le_bytes([header[5], header[6]]));
    let dimension = u32::from_le_bytes([header[7], header[8], header[9], header[10]]) as usize;
    let too_short = || Error::Length { expected: id_bytes + dimension.saturating_mul(4), found: body.len() };
    let (id, rest) = body.split_at_checked(id_bytes).ok_or_else(too_short)?;
    let (vector_bytes, payload) = rest.split_at_checked(dimension.saturating_mul(4)).ok_or_else(too_short)?;
    let id = std::str::from_utf8(id).map_err(|error| Error::Body { what: error.to_string() })?;
    Ok((PointRow { id, vector_bytes, payload }, crc))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point() -> PointWrite {
        PointWrite { id: "ä-1".to_owned(), vector: vec![1.5, -0.0, 3.0], payload: b"{}".to_vec(), expected: None }
    }

    #[test]
    fn a_row_reads_back() {
        let (row, crc) = encode_point(&point());
        let (read, read_crc) = decode_with_crc(&row).expect("what was written");
        assert_eq!((read.id, read.payload, read_crc), ("ä-1", &b"{}"[..], crc));
        assert_eq!(read.vector(), point().vector);
    }

    #[test]
    fn the_bytes_of_version_1_are_frozen() {
        let (row, _) = encode_point(&point());
        let hex: String = row.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "014afc4823040003000000c3a42d310000c03f00000080000040407b7d");
    }

    #[test]
    fn damage_is_an_error() {
        let (row, _) = encode_point(&point());
        for length in 0..row.len() {
            assert!(decode_point(&row[..length]).is_err(), "cut to {length}");
        }
        for bit in 0..row.len() * 8 {
            let mut flipped = row.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_point(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn keys_stand_in_the_order_of_rows() {
        let key = point_key(CollectionId(3), 258);
        assert_eq!(key, [0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(row_of_key(&key), Some((CollectionId(3), 258)));
        assert_eq!(row_of_key(&key[1..]), None);
        assert!(point_key(CollectionId(3), 255) < key && key < point_key(CollectionId(4), 0));
    }
}
