//! The files of a segment: written aside, synced, renamed into place; verified when opened.
//!
//! A segment is a directory `segment-<number>` with `rows` (u64, ascending), `vectors` (f32, one stride for each row),
//! perhaps `graph` (the vector library's format) and `manifest`, which names the other files with their lengths and
//! checksums and carries one of its own. It is made as `tmp-<number>` and renamed once everything in it is synced; so a
//! directory with the right name that does not verify was damaged later, and one with a `tmp-` name was never finished.

use std::io::{self, BufWriter, Read, Write};
use std::marker::PhantomData;
use std::path::Path;

use fs_err as fs;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::quantiser::Quantiser;
use crate::settings::{Metric, Settings};

#[cfg(target_endian = "big")]
compile_error!("the files of the index are little-endian and mapped as they are");

/// Version of the layout; a segment of another one is rebuilt from rows.
const FORMAT: u32 = 1;
const SEGMENT_PREFIX: &str = "segment-";
const UNFINISHED_PREFIX: &str = "tmp-";
pub(crate) const ROWS: &str = "rows";
pub(crate) const VECTORS: &str = "vectors";
pub(crate) const GRAPH: &str = "graph";
const MANIFEST: &str = "manifest";

/// Length and checksum of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(crate) bytes: u64,
    pub(crate) crc32c: u32,
}

/// What a segment's directory holds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    dimension: usize,
    metric: Metric,
    count: usize,
    rows: Extent,
    vectors: Extent,
    pub(crate) graph: Option<(Extent, Quantiser)>,
}

impl Manifest {
    pub(crate) fn new(settings: &Settings, count: usize, rows: Extent, vectors: Extent) -> Manifest {
        Manifest {
            format: FORMAT,
            dimension: settings.dimension,
            metric: settings.metric,
            count,
            rows,
            vectors,
            graph: None,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Bytes of all files but the manifest itself.
    pub(crate) fn bytes(&self) -> u64 {
        self.rows.bytes + self.vectors.bytes + self.graph.as_ref().map_or(0, |(extent, _)| extent.bytes)
    }

    /// Writes and syncs the manifest, the last file of a segment.
    pub(crate) fn write(&self, directory: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string(self)?;
        let checksum = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("\n{checksum:08x}\n"));
        write(&directory.join(MANIFEST), |file| file.write_all(text.as_bytes())).map(drop)
    }

    /// Reads the manifest and compares it, and every file it names, with their checksums and with `settings`.
    pub(crate) fn verified(directory: &Path, settings: &Settings) -> io::Result<Manifest> {
        let text = fs::read_to_string(directory.join(MANIFEST))?;
        let (body, checksum) = text.trim_end().rsplit_once('\n').ok_or_else(|| damaged("the manifest is cut short"))?;
        if u32::from_str_radix(checksum, 16).ok() != Some(crc32c::crc32c(body.as_bytes())) {
            return Err(damaged("the manifest's checksum differs"));
        }
        let manifest: Manifest = serde_json::from_str(body)?;
        if manifest.format != FORMAT || manifest.dimension != settings.dimension || manifest.metric != settings.metric {
            return Err(damaged("the segment was made for other settings"));
        }
        let stride = settings.stride() as u64;
        let count = manifest.count as u64;
        if count == 0 || manifest.rows.bytes != count * 8 || manifest.vectors.bytes != count * stride * 4 {
            return Err(damaged("the manifest contradicts itself"));
        }
        verify(&directory.join(ROWS), manifest.rows)?;
        verify(&directory.join(VECTORS), manifest.vectors)?;
        if let Some((extent, quantiser)) = &manifest.graph {
            quantiser.check(settings.stride()).map_err(damaged)?;
            verify(&directory.join(GRAPH), *extent)?;
        }
        Ok(manifest)
    }
}

pub(crate) fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

pub(crate) fn segment_name(number: u64) -> String {
    format!("{SEGMENT_PREFIX}{number:016x}")
}

pub(crate) fn unfinished_name(number: u64) -> String {
    format!("{UNFINISHED_PREFIX}{number:016x}")
}

/// The number in a finished segment's name.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(SEGMENT_PREFIX)?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

struct Checked<W> {
    inner: W,
    extent: Extent,
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.extent.crc32c = crc32c::crc32c_append(self.extent.crc32c, &bytes[..written]);
        self.extent.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a new file through `fill` and syncs it.
pub(crate) fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Extent> {
    let file = Checked { inner: fs::File::create_new(path)?, extent: Extent { bytes: 0, crc32c: 0 } };
    let mut buffered = BufWriter::with_capacity(1 << 18, file);
    fill(&mut buffered)?;
    let checked = buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
    checked.inner.sync_all()?;
    Ok(checked.extent)
}

/// Reads a file through and gives its length and checksum. Plain reads, so that a bad sector is an error and no signal.
pub(crate) fn extent(path: &Path) -> io::Result<Extent> {
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0_u8; 1 << 18];
    let mut extent = Extent { bytes: 0, crc32c: 0 };
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(extent);
        }
        extent.bytes += read as u64;
        extent.crc32c = crc32c::crc32c_append(extent.crc32c, &buffer[..read]);
    }
}

fn verify(path: &Path, expected: Extent) -> io::Result<()> {
    let length = fs::metadata(path)?.len();
    if length != expected.bytes {
        return Err(damaged("a file has another length than its manifest says"));
    }
    if extent(path)? != expected {
        return Err(damaged("a file's checksum differs from its manifest"));
    }
    Ok(())
}

/// Makes a file's contents durable that another writer left.
#[cfg(feature = "faiss")]
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

mod sealed {
    pub(crate) trait Plain: Copy {}
    impl Plain for u64 {}
    impl Plain for f32 {}
}

/// A file of plain numbers, mapped for reading.
pub(crate) struct Mapped<T> {
    map: Mmap,
    element: PhantomData<T>,
}

impl<T: sealed::Plain> Mapped<T> {
    pub(crate) fn open(path: &Path) -> io::Result<Mapped<T>> {
        let file = fs::File::open(path)?;
        // SAFETY: a finished segment's files are written once and never changed or cut: this crate only unlinks them, and
        // their directory belongs to this index alone.
        let map = unsafe { Mmap::map(file.file())? };
        if map.len() % size_of::<T>() != 0 || map.as_ptr().align_offset(align_of::<T>()) != 0 {
            return Err(damaged("a file is not a whole number of elements"));
        }
        Ok(Mapped { map, element: PhantomData })
    }
}

impl<T: sealed::Plain> std::ops::Deref for Mapped<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `open` checked length and alignment; every pattern of bits is a value of a plain number.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<T>(), self.map.len() / size_of::<T>()) }
    }
}

/// The bytes of a plain slice, as they go to a file.
pub(crate) fn bytes_of<T: sealed::Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain numbers have no padding, and any byte is a valid `u8`.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }
}
