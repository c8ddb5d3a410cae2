//! The graph of a segment: HNSW over 8-bit codes by FAISS, behind the C functions of `shim/graph.cc`.
//!
//! FAISS ends the process where an argument breaks its assumptions, so everything is checked here before a call.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, Ordering};

// Links FAISS itself; every call goes through the shim.
use faiss_sys as _;

use crate::encode;
use crate::error::Error;
use crate::live::Live;
use crate::quantiser::Quantiser;
use crate::settings::{MAX_EF, MAX_SEGMENT_ROWS, Metric, Settings};

/// Rows that are added in one call: a build can be cancelled between two.
const ADD_ROWS: usize = 4_096;
const MESSAGE_BYTES: usize = 256;

unsafe extern "C" {
    fn quorate_graph_new(
        dimension: usize,
        direct: c_int,
        inner_product: c_int,
        m: usize,
        ef_construction: usize,
        out: *mut *mut c_void,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
    fn quorate_graph_train(
        graph: *mut c_void,
        count: usize,
        vectors: *const f32,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
    fn quorate_graph_add(
        graph: *mut c_void,
        count: usize,
        vectors: *const f32,
        threads: usize,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
    fn quorate_graph_write(
        graph: *const c_void,
        path: *const c_char,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
    fn quorate_graph_read(
        path: *const c_char,
        dimension: usize,
        count: usize,
        direct: c_int,
        inner_product: c_int,
        out: *mut *mut c_void,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
    fn quorate_graph_search(
        graph: *const c_void,
        query: *const f32,
        wanted: usize,
        ef: usize,
        live: *const u64,
        slots: *mut u32,
        found: *mut usize,
        message: *mut c_char,
        message_bytes: usize,
    ) -> c_int;
    fn quorate_graph_free(graph: *mut c_void);
}

/// Calls a function of the shim with room for its message.
fn call(action: &'static str, function: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<(), Error> {
    let mut message = [0_u8; MESSAGE_BYTES];
    if function(message.as_mut_ptr().cast(), message.len()) == 0 {
        return Ok(());
    }
    let message = CStr::from_bytes_until_nul(&message)
        .map_or_else(|_| "no message".into(), |text| text.to_string_lossy().into_owned());
    Err(Error::Engine { action, message })
}

/// Owns one graph of the library.
struct Handle(NonNull<c_void>);

// SAFETY: the graph behind the handle belongs to it alone and is not tied to a thread; through `&Handle` only
// `quorate_graph_search` and `quorate_graph_write` are called, which do not change it.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// Takes over what the shim made.
    fn from_raw(raw: *mut c_void) -> Result<Handle, Error> {
        NonNull::new(raw)
            .map(Handle)
            .ok_or_else(|| Error::Engine { action: "making a graph", message: "it gave nothing".into() })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim and is freed once.
        unsafe { quorate_graph_free(self.0.as_ptr()) }
    }
}

/// A finished graph over slots `0..count`, searched by any number of threads.
pub(crate) struct Graph {
    handle: Handle,
    quantiser: Quantiser,
    stride: usize,
    count: usize,
}

fn c_path(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::Engine { action: "naming a file", message: "the path holds a zero byte".into() })
}

fn metric_flag(metric: Metric) -> c_int {
    c_int::from(metric == Metric::InnerProduct)
}

/// Builds the graph of `vectors` (`stride` floats each) on `threads` threads and writes it to `path`, unsynced. `None`:
/// cancelled.
pub(crate) fn build(
    settings: &Settings,
    vectors: &[f32],
    path: &Path,
    threads: usize,
    cancel: &AtomicBool,
) -> Result<Option<Quantiser>, Error> {
    let stride = settings.stride();
    let count = vectors.len() / stride;
    assert!(
        (1..=MAX_SEGMENT_ROWS).contains(&count) && vectors.len() == count * stride,
        "a segment of whole, bounded rows"
    );
    let path = c_path(path)?;
    let quantiser = Quantiser::fit(settings, vectors);
    let direct = c_int::from(quantiser != Quantiser::Trained);
    let mut raw = ptr::null_mut();
    call("making a graph", |message, bytes| {
        // SAFETY: the settings were checked, `raw` and the message are writable.
        unsafe {
            quorate_graph_new(
                stride,
                direct,
                metric_flag(settings.metric),
                settings.m,
                settings.ef_construction,
                &mut raw,
                message,
                bytes,
            )
        }
    })?;
    let handle = Handle::from_raw(raw)?;
    let mut encoded = Vec::with_capacity(ADD_ROWS * stride);
    if quantiser == Quantiser::Trained {
        encode::sample(vectors, stride).for_each(|vector| encoded.extend_from_slice(vector));
        call("training", |message, bytes| {
            // SAFETY: `encoded` holds that many vectors of the graph's dimension.
            unsafe { quorate_graph_train(handle.0.as_ptr(), encoded.len() / stride, encoded.as_ptr(), message, bytes) }
        })?;
    }
    for batch in vectors.chunks(ADD_ROWS * stride) {
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        encoded.clear();
        batch.chunks_exact(stride).for_each(|vector| quantiser.encode(vector, &mut encoded));
        call("building", |message, bytes| {
            // SAFETY: as above; nobody else has this handle.
            unsafe {
                quorate_graph_add(
                    handle.0.as_ptr(),
                    encoded.len() / stride,
                    encoded.as_ptr(),
                    threads.max(1),
                    message,
                    bytes,
                )
            }
        })?;
    }
    call("writing a graph", |message, bytes| {
        // SAFETY: the path ends in a zero byte.
        unsafe { quorate_graph_write(handle.0.as_ptr(), path.as_ptr(), message, bytes) }
    })?;
    Ok(Some(quantiser))
}

impl Graph {
    /// Maps a graph file whose checksum was verified.
    pub(crate) fn open(path: &Path, settings: &Settings, count: usize, quantiser: Quantiser) -> Result<Graph, Error> {
        let stride = settings.stride();
        let path = c_path(path)?;
        let direct = c_int::from(quantiser != Quantiser::Trained);
        let mut raw = ptr::null_mut();
        call("reading a graph", |message, bytes| {
            // SAFETY: the path ends in a zero byte, `raw` and the message are writable. The shim compares the file's shape
            // with what is expected here before it gives a graph out.
            unsafe {
                quorate_graph_read(
                    path.as_ptr(),
                    stride,
                    count,
                    direct,
                    metric_flag(settings.metric),
                    &mut raw,
                    message,
                    bytes,
                )
            }
        })?;
        Ok(Graph { handle: Handle::from_raw(raw)?, quantiser, stride, count })
    }

    /// The slots of about the nearest `wanted` live rows, nearest first as far as codes can tell; fewer when the candidate
    /// list `ef` held fewer live ones. `live`: `None` when every slot is.
    pub(crate) fn search(
        &self,
        query: &[f32],
        wanted: usize,
        ef: usize,
        live: Option<&Live>,
    ) -> Result<Vec<u32>, Error> {
        assert_eq!(query.len(), self.stride, "a prepared query has the stride's length");
        let wanted = wanted.clamp(1, self.count.min(MAX_EF));
        let ef = ef.clamp(wanted, MAX_EF);
        let mut encoded = Vec::with_capacity(self.stride);
        self.quantiser.encode(query, &mut encoded);
        let words = match live {
            None => ptr::null(),
            Some(live) => {
                assert!(live.words().len() * 64 >= self.count, "the bitmap covers every slot");
                live.words().as_ptr().cast::<u64>()
            }
        };
        let mut slots = vec![0_u32; wanted];
        let mut found = 0;
        call("searching", |message, bytes| {
            // SAFETY: the query has the graph's dimension, `slots` has room for `wanted`, the bitmap a bit for each slot; it is
            // read with relaxed atomic loads, because removals change it meanwhile.
            unsafe {
                quorate_graph_search(
                    self.handle.0.as_ptr(),
                    encoded.as_ptr(),
                    wanted,
                    ef,
                    words,
                    slots.as_mut_ptr(),
                    &mut found,
                    message,
                    bytes,
                )
            }
        })?;
        slots.truncate(found);
        if slots.iter().any(|&slot| slot as usize >= self.count) {
            return Err(Error::Engine { action: "searching", message: "it named a slot that does not exist".into() });
        }
        Ok(slots)
    }
}
