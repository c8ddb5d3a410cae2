//! Bad input gets its own error, changes nothing, and never reaches the vector library.

mod oracle;

use std::io;

use oracle::{Clusters, Oracle, small};
use quorate_index::{Builder, Error, Index, MAX_EF, MAX_K, Metric, SearchParams, Settings};

const DIMENSION: usize = 12;
const PARAMS: SearchParams = SearchParams { k: 3, ef: None, exact: false };

#[test]
fn vectors_are_checked_before_they_enter() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = Oracle::default().open(dir.path(), &small(DIMENSION, Metric::Cosine), &Builder::new(0));
    let with = |value: f32| {
        let mut vector = vec![1.0; DIMENSION];
        vector[7] = value;
        vector
    };
    for (vector, said) in [
        (vec![1.0; DIMENSION + 1], "13 dimensions and the index has 12"),
        (vec![], "0 dimensions"),
        (with(f32::NAN), "component 7"),
        (with(f32::INFINITY), "component 7"),
        (with(f32::MAX), "scale the vectors down"),
        (vec![0.0; DIMENSION], "zero"),
    ] {
        for error in [
            index.insert(1, &vector).expect_err("refused"),
            index.search(&vector, PARAMS).expect_err("refused"),
            index.settings().check_vector(&vector).expect_err("refused"),
        ] {
            assert!(error.to_string().contains(said), "{error} does not say {said:?}");
        }
    }
    assert_eq!(index.stats().rows, 0);
    let tiny = vec![1e-30; DIMENSION];
    index.insert(1, &tiny).expect("a short vector has a direction");
    let answer = index.search(&[5.0; DIMENSION], PARAMS).expect("a search");
    assert!((answer[0].score - 1.0).abs() < 1e-5, "{answer:?}");
}

#[test]
fn a_zero_vector_is_fine_where_direction_does_not_matter() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = Oracle::default().open(dir.path(), &small(DIMENSION, Metric::L2), &Builder::new(0));
    index.insert(1, &[0.0; DIMENSION]).expect("zero is a place");
    assert_eq!(index.search(&[0.0; DIMENSION], PARAMS).expect("a search")[0].score, 0.0);
}

#[test]
fn search_parameters_are_bounded() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut clusters = Clusters::new(3, DIMENSION, 4);
    let mut oracle = Oracle::default();
    oracle.rows.extend((0..1_500).map(|row| (row, clusters.vector())));
    let index = oracle.open(dir.path(), &small(DIMENSION, Metric::Cosine), &Builder::new(0));
    index.wait_idle();
    let query = clusters.vector();
    let search = |k, ef| index.search(&query, SearchParams { k, ef, exact: false });
    assert!(matches!(search(0, None), Err(Error::K { k: 0, .. })));
    assert!(matches!(search(MAX_K + 1, None), Err(Error::K { .. })));
    assert!(matches!(search(1, Some(0)), Err(Error::Ef { ef: 0, .. })));
    assert!(matches!(search(1, Some(MAX_EF + 1)), Err(Error::Ef { .. })));
    for (k, ef) in [(1, Some(1)), (1, Some(MAX_EF)), (200, Some(1)), (MAX_K, None), (1_499, Some(5)), (1_500, Some(64))]
    {
        assert_eq!(search(k, ef).expect("a valid search").len(), k.min(1_500), "k {k}, ef {ef:?}");
    }
}

#[test]
fn a_search_among_few_survivors_is_not_short() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut clusters = Clusters::new(4, DIMENSION, 4);
    let mut oracle = Oracle::default();
    oracle.rows.extend((0..2_000).map(|row| (row, clusters.vector())));
    let settings = Settings { seal_rows: 2_000, flat_below: 100, ..Settings::new(DIMENSION, Metric::Cosine) };
    let index = oracle.open(dir.path(), &settings, &Builder::new(0));
    index.seal();
    index.wait_idle();
    assert_eq!(index.stats().segments, 1);
    // No build takes the dead away: `wait_idle` is not called again.
    for row in (0..2_000).filter(|row| row % 40 != 0) {
        index.remove(row);
        oracle.rows.remove(&row);
        if row % 100 == 1 {
            let near =
                index.search(&clusters.vector(), SearchParams { k: 45, ef: Some(1), exact: false }).expect("a search");
            assert_eq!(near.len(), 45);
            assert!(near.iter().all(|answer| oracle.rows.contains_key(&answer.row)));
        }
    }
    assert!(oracle.recall(&index, &clusters.vectors(20), 50) > 0.999);
}

#[test]
fn settings_are_bounded() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let good = Settings::new(8, Metric::L2);
    for (bad, name) in [
        (Settings { dimension: 0, ..good.clone() }, "dimension"),
        (Settings { dimension: 4_097, ..good.clone() }, "dimension"),
        (Settings { m: 2, ..good.clone() }, "`m`"),
        (Settings { seal_rows: 20_000, ..good.clone() }, "seal_rows"),
        (Settings { flat_below: 0, ..good.clone() }, "flat_below"),
        (Settings { ef_construction: 0, ..good.clone() }, "ef_construction"),
        (Settings { ef_search: 0, ..good.clone() }, "ef_search"),
        (Settings { rerank: 0, ..good.clone() }, "rerank"),
    ] {
        let opened = Index::open(dir.path(), bad, Builder::new(0), &mut std::iter::empty(), &|_| Ok(Vec::new()));
        let error = opened.expect_err("refused").to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn a_store_that_cannot_be_read_is_an_error_and_not_an_empty_index() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let settings = small(DIMENSION, Metric::L2);
    let open = |fetch: quorate_index::Fetch<'_>| {
        Index::open(dir.path(), settings.clone(), Builder::new(0), &mut [1_u64, 2].into_iter(), fetch)
    };
    assert!(matches!(open(&|_| Err(io::Error::other("bad sector"))), Err(Error::Fetch(_))));
    assert!(matches!(open(&|_| Ok(vec![None])), Err(Error::Fetch(_))));
    assert!(matches!(open(&|rows| Ok(vec![Some(vec![1.0]); rows.len()])), Err(Error::Row { row: 1, .. })));
    let index = open(&|_| Ok(vec![Some(vec![1.0; DIMENSION]), None])).expect("a row that is gone is left out");
    assert_eq!(index.stats().rows, 1);
}

#[test]
fn this_processor_is_good_enough_for_these_tests() {
    quorate_index::check_cpu().expect("x86-64-v3");
}
