//! Searches, writes, builds and merges at once, on real build threads.

mod oracle;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use oracle::{Clusters, METRICS, Oracle, small};
use quorate_index::{Builder, Metric, SearchParams, Settings};

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

#[test]
fn searches_see_every_acknowledged_row_while_segments_are_built() {
    const ROWS: u64 = 6_000;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let settings = Settings { idle: Duration::from_millis(5), ..small(DIMENSION, Metric::Cosine) };
    let mut clusters = Clusters::new(22, DIMENSION, 20);
    let vectors = clusters.vectors(ROWS as usize);
    let mut oracle = Oracle::default();
    let index = oracle.open(dir.path(), &settings, &Builder::new(2));
    let (written, removed, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let searchers: Vec<_> = (0..2)
            .map(|number| {
                let (index, vectors, written, removed, done) = (&index, &vectors, &written, &removed, &done);
                scope.spawn(move || {
                    let mut searches = 0_u64;
                    while !done.load(Ordering::Acquire) {
                        // Rows from `removed` to `written` stay live during the search, if what is removed now is left out.
                        let (gone, newest) = (removed.load(Ordering::Acquire), written.load(Ordering::Acquire));
                        if newest < gone + 200 {
                            thread::yield_now();
                            continue;
                        }
                        let row = newest - 1 - (searches * 7 + number) % 50;
                        let params = SearchParams { k: 5, ef: None, exact: searches.is_multiple_of(2) };
                        let answers = index.search(&vectors[row as usize], params).expect("a valid search");
                        assert_eq!(answers.len(), 5);
                        assert!(answers.is_sorted_by(|left, right| left.score >= right.score));
                        assert!(
                            answers.iter().all(|answer| answer.row >= gone),
                            "{answers:?} after {gone} was removed"
                        );
                        if params.exact {
                            assert_eq!(answers[0].row, row, "an acknowledged row is its own nearest");
                        }
                        searches += 1;
                    }
                    searches
                })
            })
            .collect();
        for row in 0..ROWS {
            index.insert(row, &vectors[row as usize]).expect("a sound vector");
            written.store(row + 1, Ordering::Release);
            if row >= 3_000 {
                assert!(index.remove(row - 3_000));
                removed.store(row - 2_999, Ordering::Release);
            }
        }
        index.seal();
        index.wait_idle();
        done.store(true, Ordering::Release);
        for searcher in searchers {
            assert!(searcher.join().expect("no search failed") > 0);
        }
    });
    oracle.rows.extend((3_000..ROWS).map(|row| (row, vectors[row as usize].clone())));
    assert_eq!(index.stats().rows, 3_000);
    assert!(index.stats().sealed_rows > 2_000, "{:?}", index.stats());
    vectors.iter().step_by(500).for_each(|query| oracle.assert_exact(&index, query, 20));
    drop(index);
    let index = oracle.open(dir.path(), &settings, &Builder::new(1));
    assert_eq!(index.stats().rows, 3_000);
    vectors.iter().step_by(500).for_each(|query| oracle.assert_exact(&index, query, 20));
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
