//! Reopening after a crash at any step, and after damage to any file: nothing live is lost, nothing dead comes back.

mod oracle;

use std::fs;
use std::path::{Path, PathBuf};

use oracle::{Clusters, METRICS, Oracle, small};
use quorate_index::{Builder, Metric, Settings};

const DIMENSION: usize = 24;

/// An index on disk: one segment of 256 rows, and 40 rows that were only in the head.
struct Crashed {
    dir: tempfile::TempDir,
    settings: Settings,
    oracle: Oracle,
    queries: Vec<Vec<f32>>,
}

impl Crashed {
    fn new(metric: Metric) -> Crashed {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let settings = small(DIMENSION, metric);
        let mut clusters = Clusters::new(11, DIMENSION, 6);
        let mut oracle = Oracle::default();
        let index = oracle.open(dir.path(), &settings, &Builder::new(0));
        for row in 0..296 {
            let vector = clusters.vector();
            index.insert(row, &vector).expect("a sound vector");
            oracle.rows.insert(row, vector);
        }
        index.wait_idle();
        for row in [3, 77, 290] {
            assert!(index.remove(row));
            oracle.rows.remove(&row);
        }
        assert_eq!((index.stats().segments, index.stats().sealed_rows), (1, 254));
        Crashed { dir, settings, oracle, queries: clusters.vectors(5) }
    }

    fn segment(&self) -> PathBuf {
        let mut found: Vec<PathBuf> = entries(self.dir.path());
        assert_eq!(found.len(), 1, "one segment: {found:?}");
        found.remove(0)
    }

    /// Opens, compares, and says how many rows had to be fetched.
    fn reopen(&self) -> usize {
        let (index, fetched) = self.oracle.open_counting(self.dir.path(), &self.settings, &Builder::new(0));
        let check = |index: &quorate_index::Index| {
            assert_eq!(index.stats().rows, self.oracle.rows.len() as u64);
            self.queries.iter().for_each(|query| self.oracle.assert_exact(index, query, 50));
        };
        check(&index);
        index.seal();
        index.wait_idle();
        check(&index);
        fetched
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for file in entries(from) {
        fs::copy(&file, to.join(file.file_name().expect("a name"))).expect("a copy");
    }
}

#[test]
fn a_clean_restart_fetches_only_the_head() {
    for metric in METRICS {
        assert_eq!(Crashed::new(metric).reopen(), 39);
    }
}

#[test]
fn any_damage_to_any_file_costs_a_fetch_and_loses_nothing() {
    let crashed = Crashed::new(Metric::Cosine);
    let names: Vec<PathBuf> = entries(&crashed.segment());
    let files = if cfg!(feature = "faiss") { 4 } else { 3 };
    assert_eq!(names.len(), files, "{names:?}");
    let kept = tempfile::tempdir().expect("a temporary directory");
    copy(&crashed.segment(), kept.path());
    for name in names {
        let file = name.file_name().expect("a name").to_owned();
        let whole = fs::read(kept.path().join(&file)).expect("the file");
        let mut damaged: Vec<Option<Vec<u8>>> = vec![None, Some(Vec::new()), Some([whole.clone(), vec![0]].concat())];
        for part in 1..8 {
            let at = whole.len() * part / 8;
            damaged.push(Some(whole[..at].to_vec()));
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            damaged.push(Some(flipped));
        }
        for contents in damaged {
            for old in entries(crashed.dir.path()) {
                fs::remove_dir_all(old).expect("removed");
            }
            let segment = crashed.dir.path().join("segment-0000000000000000");
            copy(kept.path(), &segment);
            match &contents {
                None => fs::remove_file(segment.join(&file)).expect("removed"),
                Some(contents) => fs::write(segment.join(&file), contents).expect("written"),
            }
            let what = contents
                .map_or("missing".to_owned(), |contents| format!("{} of {} bytes", contents.len(), whole.len()));
            assert_eq!(
                crashed.reopen(),
                crashed.oracle.rows.len(),
                "{} damaged ({what}): all rows are fetched",
                file.display()
            );
        }
    }
}

#[test]
fn what_an_unfinished_build_left_is_removed() {
    // A crash at each step of a build: after the directory, after each file, and before the rename.
    let crashed = Crashed::new(Metric::Cosine);
    let mut files: Vec<PathBuf> = entries(&crashed.segment());
    files.sort();
    for finished in 0..=files.len() {
        let crashed = Crashed::new(Metric::Cosine);
        let left = crashed.dir.path().join("tmp-0000000000000001");
        fs::create_dir(&left).expect("a directory");
        for file in &files[..finished] {
            fs::copy(file, left.join(file.file_name().expect("a name"))).expect("a copy");
        }
        assert_eq!(crashed.reopen(), 39);
        assert!(!left.exists(), "removed after {finished} files");
    }
}

#[test]
fn a_build_whose_segment_was_never_renamed_is_done_again() {
    let crashed = Crashed::new(Metric::L2);
    let segment = crashed.segment();
    fs::rename(&segment, crashed.dir.path().join("tmp-0000000000000000")).expect("renamed");
    assert_eq!(crashed.reopen(), crashed.oracle.rows.len());
}

#[test]
fn sources_that_a_merge_left_behind_do_not_bring_rows_twice() {
    let mut crashed = Crashed::new(Metric::L2);
    let old = tempfile::tempdir().expect("a temporary directory");
    copy(&crashed.segment(), old.path());
    // The reopening merges the old segment with the head's rows.
    crashed.oracle.rows.remove(&100);
    let mut clusters = Clusters::new(12, DIMENSION, 6);
    for row in 1_000..1_300 {
        crashed.oracle.rows.insert(row, clusters.vector());
    }
    crashed.reopen();
    copy(old.path(), &crashed.dir.path().join("segment-0000000000000000"));
    crashed.reopen();
    let mut names = entries(crashed.dir.path());
    names.retain(|name| name.ends_with("segment-0000000000000000"));
    assert!(names.is_empty(), "a segment whose rows are all newer elsewhere is removed");
}

#[test]
fn unknown_files_are_removed() {
    let crashed = Crashed::new(Metric::Cosine);
    fs::write(crashed.dir.path().join("segment-zz"), b"?").expect("written");
    fs::create_dir(crashed.dir.path().join("segment-00000000000000ff")).expect("made");
    assert_eq!(crashed.reopen(), 39);
    assert!(
        !crashed.dir.path().join("segment-zz").exists()
            && !crashed.dir.path().join("segment-00000000000000ff").exists()
    );
}

#[test]
fn other_settings_rebuild_the_index() {
    let mut crashed = Crashed::new(Metric::Cosine);
    crashed.settings = small(DIMENSION, Metric::L2);
    assert_eq!(crashed.reopen(), crashed.oracle.rows.len());
}

#[test]
fn destroying_leaves_no_file_and_answers_nothing() {
    let crashed = Crashed::new(Metric::Cosine);
    let index = crashed.oracle.open(crashed.dir.path(), &crashed.settings, &Builder::new(1));
    index.destroy().expect("destroyed");
    assert!(!crashed.dir.path().exists());
    assert!(matches!(index.insert(9_999, &crashed.queries[0]), Err(quorate_index::Error::Destroyed)));
    let params = quorate_index::SearchParams { k: 1, ef: None, exact: false };
    assert!(matches!(index.search(&crashed.queries[0], params), Err(quorate_index::Error::Destroyed)));
    assert!(!index.remove(5));
    drop(index);
    let empty = Oracle::default().open(crashed.dir.path(), &crashed.settings, &Builder::new(1));
    assert_eq!(empty.stats().rows, 0);
}
