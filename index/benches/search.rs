//! One search thread on clustered vectors: the head, a graph, and an exact scan of the same rows.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use quorate_index::{Builder, Index, Metric, SearchParams, Settings};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const DIMENSION: usize = 384;
const ROWS: usize = 20_000;
const CLUSTERS: usize = 500;

fn vectors(random: &mut StdRng, count: usize) -> Vec<Vec<f32>> {
    let centres: Vec<Vec<f32>> =
        (0..CLUSTERS).map(|_| (0..DIMENSION).map(|_| random.random_range(-1.0..1.0)).collect()).collect();
    (0..count)
        .map(|number| centres[number % CLUSTERS].iter().map(|value| value + random.random_range(-0.5..0.5)).collect())
        .collect()
}

fn search(criterion: &mut Criterion) {
    let mut random = StdRng::seed_from_u64(1);
    let mut vectors = vectors(&mut random, ROWS + 1_000);
    let queries = vectors.split_off(ROWS);
    let files = tempfile::tempdir().expect("a temporary directory");
    let settings = Settings::new(DIMENSION, Metric::Cosine);
    let index = Index::open(files.path(), settings, Builder::new(2), &mut std::iter::empty(), &|_| Ok(Vec::new()))
        .expect("an empty index");
    for (row, vector) in vectors.iter().enumerate() {
        index.insert(row as u64, vector).expect("a sound vector");
    }
    let mut group = criterion.benchmark_group("search");
    group.sample_size(20);
    let mut measure = |name: &str, exact: bool| {
        let mut next = queries.iter().cycle();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let query = next.next().expect("a cycle never ends");
                black_box(index.search(query, SearchParams { k: 10, ef: None, exact }).expect("a valid search"))
            });
        });
    };
    measure("head of 20,000", false);
    index.seal();
    index.wait_idle();
    measure("segment of 20,000", false);
    measure("segment of 20,000, exact", true);
    group.finish();
}

criterion_group!(benches, search);
criterion_main!(benches);
