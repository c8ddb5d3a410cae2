//! Measures an index on vectors from files: build time, recall and searches a second.
//!
//! `QUORATE_VECTORS` names a directory with `vectors.npy`, `queries.npy` (f16 or f32) and `truth.npy` (i32: the nearest of
//! each query, best first). Further arguments: `threads=2`, `ef_construction=100`, `one` (a single segment instead
//! of what the policy leaves).

use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Instant;

use npyz::{DType, NpyFile};
use quorate_index::{Builder, Index, MAX_SEGMENT_ROWS, Metric, SearchParams, Settings};

const K: usize = 10;
const ROUNDS: usize = 10;
const EFS: [usize; 4] = [48, 64, 96, 128];

fn floats(path: &Path) -> Result<(Vec<f32>, usize), Box<dyn Error>> {
    let file = NpyFile::new(BufReader::new(File::open(path)?))?;
    let width = *file.shape().get(1).ok_or("a table has two dimensions")? as usize;
    let half = matches!(file.dtype(), DType::Plain(kind) if kind.num_bytes() == Some(2));
    let values =
        if half { file.into_vec::<half::f16>()?.into_iter().map(f32::from).collect() } else { file.into_vec::<f32>()? };
    Ok((values, width))
}

fn argument(name: &str, default: usize) -> Result<usize, Box<dyn Error>> {
    let prefix = format!("{name}=");
    Ok(std::env::args()
        .find_map(|argument| argument.strip_prefix(&prefix).map(str::parse))
        .transpose()?
        .unwrap_or(default))
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::var("QUORATE_VECTORS").map_err(|_| "QUORATE_VECTORS names no directory")?);
    let (vectors, dimension) = floats(&directory.join("vectors.npy"))?;
    let (queries, _) = floats(&directory.join("queries.npy"))?;
    let truth = NpyFile::new(BufReader::new(File::open(directory.join("truth.npy"))?))?;
    let truth_width = truth.shape()[1] as usize;
    let truth = truth.into_vec::<i32>()?;
    let rows = vectors.len() / dimension;

    let mut settings = Settings::new(dimension, Metric::Cosine);
    settings.ef_construction = argument("ef_construction", settings.ef_construction)?;
    if std::env::args().any(|argument| argument == "one") {
        settings.seal_rows = MAX_SEGMENT_ROWS;
    }
    let files = tempfile::tempdir()?;
    let builder = Builder::new(argument("threads", 2)?);
    let index = Index::open(files.path(), settings, builder, &mut std::iter::empty(), &|_| Ok(Vec::new()))?;
    let started = Instant::now();
    for (row, vector) in vectors.chunks_exact(dimension).enumerate() {
        index.insert(row as u64, vector)?;
    }
    let loaded = started.elapsed();
    index.seal();
    index.wait_idle();
    let sealed = started.elapsed();
    println!("{rows} rows loaded in {:.1} s, sealed after {:.1} s", loaded.as_secs_f64(), sealed.as_secs_f64());
    println!("{:?}", index.stats());

    let queries: Vec<&[f32]> = queries.chunks_exact(dimension).collect();
    for ef in EFS {
        measure(&index, &queries, ef, |query, row| truth[query * truth_width..][..K].contains(&(row as i32)))?;
    }
    Ok(())
}

/// Prints the recall and the speed of one candidate list's length.
fn measure(
    index: &Index,
    queries: &[&[f32]],
    ef: usize,
    is_near: impl Fn(usize, u64) -> bool,
) -> Result<(), Box<dyn Error>> {
    let params = SearchParams { k: K, ef: Some(ef), exact: false };
    let mut found = 0;
    for (number, query) in queries.iter().enumerate() {
        found += index.search(query, params)?.iter().filter(|answer| is_near(number, answer.row)).count();
    }
    println!("ef {ef}: recall@{K} {:.4}", found as f64 / (queries.len() * K) as f64);
    for threads in [1, 2] {
        let started = Instant::now();
        let processor = std::thread::scope(|scope| {
            let searchers: Vec<_> = (0..threads).map(|_| scope.spawn(|| run(index, queries, params))).collect();
            searchers.into_iter().map(|searcher| searcher.join().expect("no search panics")).sum::<f64>()
        });
        let searches = (queries.len() * ROUNDS * threads) as f64;
        println!(
            "{threads} threads: {:.0} searches a second, {:.0} for each second of processor time",
            searches / started.elapsed().as_secs_f64(),
            searches / processor
        );
    }
    Ok(())
}

/// Searches every query [`ROUNDS`] times; gives the seconds of processor time that it took, which a busy machine does not
/// change much.
fn run(index: &Index, queries: &[&[f32]], params: SearchParams) -> f64 {
    let spent = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        text.split(' ').next().and_then(|spent| spent.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e9
    };
    let before = spent();
    for query in queries.iter().cycle().take(queries.len() * ROUNDS) {
        std::hint::black_box(index.search(query, params)).expect("a valid search");
    }
    spent() - before
}
