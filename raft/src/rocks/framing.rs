//! One kind of damage from which RocksDB never comes back.
//!
//! WALs and manifests are files of blocks with framed records. A record's kind may be one of those that only recycled files
//! have, and RocksDB's reader (as of 11.8) refuses such a record in a file that was not recycled without passing over it: it
//! meets it again, for ever. One flipped bit is enough, and rubbish behind the end of a WAL after a power cut, too. This
//! program never recycles files, so a record of these kinds is not one that was written: it is found before RocksDB is let
//! near it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fs_err as fs;

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
/// The kinds of records in recycled files.
const RECYCLED: [u8; 6] = [5, 6, 7, 8, 11, 131];
/// RocksDB stores checksums masked, by a rotation and this sum.
const MASK: u32 = 0xa282_ead8;

/// Looks at the WALs and manifests of a database that is about to be opened, if there is one. A WAL is cut where it is
/// damaged in this way: nothing behind that would be read anyway.
///
/// # Errors
/// Of kind `InvalidData` if a manifest is damaged in this way.
pub(super) fn guard(dir: &Path) -> io::Result<()> {
    guard_manifests(dir)?;
    for path in files(dir, |name| name.ends_with(".log"))? {
        let Some(at) = endless_at(&mut fs::File::open(&path)?)? else { continue };
        tracing::warn!(path = %path.display(), at, "cutting off what was not written by this program");
        let file = fs::OpenOptions::new().write(true).open(&path)?;
        file.set_len(at)?;
        file.sync_all()?;
    }
    Ok(())
}

/// The same for a database that is open, whose WALs are nobody else's business. A manifest that it has just replaced may be
/// gone.
///
/// # Errors
/// Of kind `InvalidData` if a manifest is damaged in this way.
pub(super) fn guard_manifests(dir: &Path) -> io::Result<()> {
    for path in files(dir, |name| name.starts_with("MANIFEST-"))? {
        let found = match fs::File::open(&path) {
            Ok(mut file) => endless_at(&mut file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(at) = found {
            let text = format!("the manifest {} is damaged at byte {at}", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
    }
    Ok(())
}

/// The files of a directory with such names, if it is there.
fn files(dir: &Path, is: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| is(&name.to_string_lossy())) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Where RocksDB's reader would stop and not come on.
fn endless_at(file: &mut impl Read) -> io::Result<Option<u64>> {
    let mut begin = 0;
    loop {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        file.by_ref().take(BLOCK_BYTES as u64).read_to_end(&mut block)?;
        if let Some(at) = endless_in(&block) {
            return Ok(Some(begin + at as u64));
        }
        if block.len() < BLOCK_BYTES {
            return Ok(None);
        }
        begin += BLOCK_BYTES as u64;
    }
}

/// The same in one block. Of a block with any other damage the reader drops the rest.
fn endless_in(block: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(header) = block.get(at..at + HEADER_BYTES) {
        let (length, kind) = (usize::from(u16::from_le_bytes([header[4], header[5]])), header[6]);
        if RECYCLED.contains(&kind) {
            return Some(at);
        }
        let checked = block.get(at + HEADER_BYTES - 1..at + HEADER_BYTES + length)?;
        let masked = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        if masked.wrapping_sub(MASK).rotate_left(15) != crc32c::crc32c(checked) {
            return None;
        }
        at += HEADER_BYTES + length;
    }
    None
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;
    use crate::engine::{LogChange, LogEngine as _};
    use crate::ids::GroupId;
    use crate::rocks::RocksLog;

    fn write(dir: &Path) {
        let log = RocksLog::open(dir).unwrap();
        for position in 0..400 {
            let record = vec![7; 300].into();
            log.commit(&[LogChange::Append { group: GroupId(1), position, record }]).unwrap();
        }
    }

    /// The file with this beginning or end that was written last.
    fn file(dir: &Path, is: impl Fn(&str) -> bool) -> std::path::PathBuf {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        dir.join(names.filter(|name| is(name)).max().unwrap())
    }

    #[test]
    fn whole_files_are_whole_and_a_flipped_kind_is_found_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let wal = file(dir.path(), |name| name.ends_with(".log"));
        let bytes = std::fs::read(&wal).unwrap();
        assert!(bytes.len() > 3 * BLOCK_BYTES, "more than one block");
        assert_eq!(endless_at(&mut &*bytes).unwrap(), None);
        // Walks the records itself, so that each header is known.
        let (mut at, mut headers) = (0, Vec::new());
        while at + HEADER_BYTES <= bytes.len() {
            if BLOCK_BYTES - at % BLOCK_BYTES < HEADER_BYTES {
                at = at.next_multiple_of(BLOCK_BYTES);
                continue;
            }
            headers.push(at);
            at += HEADER_BYTES + usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        }
        assert!(headers.len() >= 400);
        for header in headers.into_iter().skip(1).step_by(37) {
            let mut bad = bytes.clone();
            bad[header + 6] = 6;
            assert_eq!(endless_at(&mut &*bad).unwrap(), Some(header as u64));
            std::fs::write(&wal, &bad).unwrap();
            let copy = tempfile::tempdir().unwrap();
            for entry in std::fs::read_dir(dir.path()).unwrap() {
                let entry = entry.unwrap();
                std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
            // Returns at all, with what was before.
            let found = RocksLog::open(copy.path()).unwrap().last(GroupId(1)).unwrap();
            assert!(found.is_none_or(|(position, _)| position < 399));
        }
    }

    #[test]
    fn a_manifest_with_a_flipped_kind_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let manifest = file(dir.path(), |name| name.starts_with("MANIFEST-"));
        let mut bytes = std::fs::read(&manifest).unwrap();
        let second = HEADER_BYTES + usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
        bytes[second + 6] = 5;
        std::fs::write(&manifest, &bytes).unwrap();
        let error = RocksLog::open(dir.path()).map(drop).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}
