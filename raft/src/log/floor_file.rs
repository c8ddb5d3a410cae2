//! The file of the floor on a real disk.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use fs_err as fs;

use crate::engine::FloorFile;
use crate::log::floor::SLOT_BYTES;

/// A file of two slots whose blocks exist from the beginning: a write changes nothing but their content, so that its sync
/// costs the device one write and no journal.
pub struct FileFloor {
    file: File,
}

impl FileFloor {
    /// Opens the file, or makes one in which nothing was ever written. A file that was cut keeps what it has.
    pub fn open(path: &Path) -> io::Result<FileFloor> {
        if !path.exists() {
            make(path)?;
        }
        let file = File::options().read(true).write(true).open(path)?;
        Ok(FileFloor { file })
    }
}

/// Written beside and renamed, so that a crash leaves no file or a whole one. Zeros, not a hole: the first write to a hole
/// would have to allocate.
fn make(path: &Path) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(&vec![0; 2 * SLOT_BYTES])?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

impl FloorFile for FileFloor {
    fn read(&self) -> io::Result<[Vec<u8>; 2]> {
        let mut bytes = Vec::new();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(0))?;
        file.take(2 * SLOT_BYTES as u64).read_to_end(&mut bytes)?;
        let second = bytes.split_off(bytes.len().min(SLOT_BYTES));
        Ok([bytes, second])
    }

    fn write(&self, slot: usize, bytes: &[u8]) -> io::Result<()> {
        if slot > 1 || bytes.len() > SLOT_BYTES {
            let text = format!("{} bytes do not fit into slot {slot} of the floor", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.file.write_all_at(bytes, (slot * SLOT_BYTES) as u64)?;
        self.file.sync_data()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_a_cut_file_keeps_its_size_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("floor");
        let floor = FileFloor::open(&path).unwrap();
        assert!(
            floor.read().unwrap().iter().all(|slot| slot.len() == SLOT_BYTES && slot.iter().all(|byte| *byte == 0))
        );
        floor.write(0, b"first").unwrap();
        floor.write(1, &[7; SLOT_BYTES]).unwrap();
        for floor in [floor, FileFloor::open(&path).unwrap()] {
            for _ in 0..2 {
                let [first, second] = floor.read().unwrap();
                assert!(first.starts_with(b"first\0") && second == [7; SLOT_BYTES]);
            }
            floor.write(1, &[7; SLOT_BYTES + 1]).unwrap_err();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * SLOT_BYTES as u64);
        File::options().write(true).open(&path).unwrap().set_len(3).unwrap();
        assert_eq!(FileFloor::open(&path).unwrap().read().unwrap(), [b"fir".to_vec(), Vec::new()]);
    }
}
