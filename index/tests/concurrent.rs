//! Searches, writes, builds and merges at once, on real build threads.

mod oracle;
mod window;

use std::ops::Range;
use std::thread;
use std::time::Duration;

use oracle::{Clusters, METRICS, Oracle, small};
use quorate_index::{Builder, Index, Metric, SearchParams, Settings};
use window::{HELD, Held, Window};

const DIMENSION: usize = 32;

#[test]
fn graphs_find_nearly_everything() {
    for metric in METRICS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut clusters = Clusters::new(21, DIMENSION, 40);
        let mut oracle = Oracle::default();
        oracle.rows.extend((0..6_000).map(|row| (row, clusters.vector())));
        let settings = Settings { seal_rows: 6_000, flat_below: 1_000, ..Settings::new(DIMENSION, metric) };
        let index = oracle.open(dir.path(), &settings, &Builder::new(2));
        index.seal();
        index.wait_idle();
        let stats = index.stats();
        assert_eq!((stats.segments, stats.sealed_rows, stats.head_rows), (1, 6_000, 0));
        let queries = clusters.vectors(100);
        let recall = oracle.recall(&index, &queries, 10);
        assert!(recall >= 0.95, "{metric:?}: recall@10 is {recall}");
        // A sixth dead: below the share that rewrites the segment, so the bitmap does the work.
        for row in (0..6_000).step_by(6) {
            assert!(index.remove(row));
            oracle.rows.remove(&row);
        }
        let recall = oracle.recall(&index, &queries, 10);
        assert!(recall >= 0.95, "{metric:?} with dead rows: recall@10 is {recall}");
    }
}

/// Rows that are written, and how many of them are live at a time.
const ROWS: u64 = 6_000;
const LIVE: u64 = 3_000;

/// Writes `rows` and removes those that are [`LIVE`] older.
fn write(index: &Index, window: &Window, vectors: &[Vec<f32>], rows: Range<u64>) {
    for row in rows {
        index.insert(row, &vectors[row as usize]).expect("a sound vector");
        window.wrote(row);
        if let Some(oldest) = row.checked_sub(LIVE) {
            window.remove_oldest(oldest, || assert!(index.remove(oldest)));
        }
    }
}

/// Searches for one of the youngest rows that are `held`, and holds the answers against what a search under way is promised.
fn search_held(index: &Index, vectors: &[Vec<f32>], held: &Held<'_>, place: u64, exact: bool) {
    let row = held.rows.end - 1 - place % 50;
    let query = &vectors[row as usize];
    let answers = index.search(query, SearchParams { k: 5, ef: None, exact }).expect("a valid search");
    assert_eq!(answers.len(), 5, "{HELD} rows stay during the search");
    assert!(answers.is_sorted_by(|left, right| left.score >= right.score));
    let removed = held.removed;
    assert!(answers.iter().all(|answer| answer.row >= removed), "{answers:?} after all below {removed} were removed");
    if !exact {
        return;
    }
    assert_eq!(answers[0].row, row, "an acknowledged row is its own nearest: {answers:?}");
    for staying in held.rows.clone().filter(|row| answers.iter().all(|answer| answer.row != *row)) {
        let score = Oracle::score(index.settings().metric, query, &vectors[staying as usize]);
        assert!(score < f64::from(answers[4].score) + 1e-4, "row {staying} of score {score} is not in {answers:?}");
    }
}

#[test]
fn searches_see_every_acknowledged_row_while_segments_are_built() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let settings = Settings { idle: Duration::from_millis(5), ..small(DIMENSION, Metric::Cosine) };
    let mut clusters = Clusters::new(22, DIMENSION, 20);
    let vectors = clusters.vectors(ROWS as usize);
    let mut oracle = Oracle::default();
    let index = oracle.open(dir.path(), &settings, &Builder::new(2));
    let window = Window::default();
    thread::scope(|scope| {
        let _writing = window.writing();
        for number in 0..2 {
            let (index, vectors, window) = (&index, &vectors, &window);
            scope.spawn(move || {
                let mut searches = 0_u64;
                loop {
                    // Asked first, so that each searches once at least, however late its thread runs.
                    let finished = window.is_finished();
                    match window.hold() {
                        Some(held) => {
                            search_held(index, vectors, &held, searches * 7 + number, searches.is_multiple_of(2));
                            searches += 1;
                        }
                        None => thread::yield_now(),
                    }
                    if finished {
                        return;
                    }
                }
            });
        }
        for first in (0..ROWS).step_by(10) {
            write(&index, &window, &vectors, first..first + 10);
            // All rows together take two milliseconds: without a pace they would be written before anybody has searched.
            if first > HELD {
                window.wait_for_search();
            }
        }
        index.seal();
        index.wait_idle();
    });
    oracle.rows.extend((ROWS - LIVE..ROWS).map(|row| (row, vectors[row as usize].clone())));
    assert_eq!(index.stats().rows, LIVE);
    assert!(index.stats().sealed_rows > 2_000, "{:?}", index.stats());
    vectors.iter().step_by(500).for_each(|query| oracle.assert_exact(&index, query, 20));
    drop(index);
    let index = oracle.open(dir.path(), &settings, &Builder::new(1));
    assert_eq!(index.stats().rows, LIVE);
    vectors.iter().step_by(500).for_each(|query| oracle.assert_exact(&index, query, 20));
}

/// The order of events in which the test above once failed: a searcher chose its row and stood still while the writer went
/// on by more rows than are live at a time.
#[test]
fn the_writer_waits_for_a_search_that_stands_still() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let vectors = Clusters::new(26, DIMENSION, 20).vectors(ROWS as usize);
    let index = Oracle::default().open(dir.path(), &small(DIMENSION, Metric::Cosine), &Builder::new(2));
    let window = Window::default();
    write(&index, &window, &vectors, 0..HELD + 50);
    let held = window.hold().expect("enough rows");
    thread::scope(|scope| {
        scope.spawn(|| {
            let _writing = window.writing();
            write(&index, &window, &vectors, HELD + 50..ROWS);
        });
        window.wait_for_writer();
        (0..50).for_each(|place| search_held(&index, &vectors, &held, place, true));
        drop(held);
    });
    assert_eq!(index.stats().rows, LIVE);
}

#[test]
fn a_head_is_sealed_when_writes_pause() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let settings = Settings { idle: Duration::from_millis(20), ..small(8, Metric::L2) };
    let index = Oracle::default().open(dir.path(), &settings, &Builder::new(1));
    let mut clusters = Clusters::new(23, 8, 3);
    for row in 0..150 {
        index.insert(row, &clusters.vector()).expect("a sound vector");
    }
    assert!(index.stats().building, "a build is due once writes pause");
    // Ends by the test's own time-out if the pause is never noticed.
    while index.stats().building {
        index.wait_idle();
        thread::yield_now();
    }
    let stats = index.stats();
    assert_eq!((stats.segments, stats.sealed_rows, stats.head_rows), (1, 150, 0));
}

#[test]
fn dropping_an_index_stops_its_builds_and_leaves_a_sound_directory() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let settings = Settings { seal_rows: 4_000, flat_below: 2_000, ..Settings::new(DIMENSION, Metric::Cosine) };
    let mut clusters = Clusters::new(24, DIMENSION, 20);
    let mut oracle = Oracle::default();
    oracle.rows.extend((0..12_000).map(|row| (row, clusters.vector())));
    let builder = Builder::new(2);
    for _ in 0..3 {
        let index = oracle.open(dir.path(), &settings, &builder);
        index.seal();
        drop(index);
    }
    let index = oracle.open(dir.path(), &settings, &builder);
    assert_eq!(index.stats().rows, 12_000);
    oracle.assert_exact(&index, &clusters.vector(), 20);
}

#[test]
fn odd_dimensions_and_equal_vectors_are_searchable() {
    for (dimension, metric) in
        [1, 17, 4_096].into_iter().flat_map(|dimension| METRICS.map(|metric| (dimension, metric)))
    {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut clusters = Clusters::new(25, dimension, 5);
        let same = clusters.vector();
        let mut oracle = Oracle::default();
        oracle.rows.extend((0..600).map(|row| (row, if row % 2 == 0 { same.clone() } else { clusters.vector() })));
        let settings = Settings { seal_rows: 600, flat_below: 100, ..Settings::new(dimension, metric) };
        let index = oracle.open(dir.path(), &settings, &Builder::new(1));
        index.seal();
        index.wait_idle();
        assert_eq!((index.stats().segments, index.stats().head_rows), (1, 0));
        for query in [same.clone(), clusters.vector()] {
            oracle.assert_exact(&index, &query, 20);
            let params = SearchParams { k: 10, ef: Some(32), exact: false };
            let best = index.search(&query, params).expect("a valid search");
            let exact = index.search(&query, SearchParams { exact: true, ..params }).expect("a valid search");
            assert_eq!(best.len(), 10);
            let slack = 0.05 * (1.0 + exact[0].score.abs());
            assert!(
                best[0].score >= exact[0].score - slack,
                "{dimension} {metric:?}: {:?} for {:?}",
                best[0],
                exact[0]
            );
        }
    }
}
