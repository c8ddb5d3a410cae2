//! The rules of the house that a compiler does not hold: who may depend on whom, and how files look.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

fn root() -> PathBuf {
    // From the folder of the crate, in which its tests run.
    std::path::absolute("..").expect("a working directory")
}

/// The edges that ARCHITECTURE.md draws. Tests may know any crate, so they are not listed.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    [
        ("raft", vec![]),
        ("raft/state", vec![]),
        ("index", vec![]),
        ("client/api", vec![]),
        ("client/rust", vec!["quorate-api"]),
        ("node", vec!["quorate-raft", "quorate-state", "quorate-index", "quorate-api"]),
        ("cli", vec!["quorate-node", "quorate-client"]),
        ("jepsen", vec!["quorate-client"]),
    ]
    .into_iter()
    .map(|(folder, names)| (folder, names.into_iter().collect()))
    .collect()
}

fn manifest(folder: &Path) -> Result<toml::Table> {
    let path = folder.join("Cargo.toml");
    fs_err::read_to_string(&path)?.parse().with_context(|| path.display().to_string())
}

fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|kind| manifest.get(*kind)?.as_table())
        .flat_map(|table| table.keys().cloned())
        .collect()
}

#[test]
fn crates_know_only_those_they_may_know() -> Result<()> {
    for (folder, allowed) in allowed() {
        let known = dependencies(&manifest(&root().join(folder))?);
        for name in known.iter().filter(|name| name.starts_with("quorate")) {
            assert!(
                allowed.contains(name.as_str()),
                "{folder} must not know {name}; see the layers in ARCHITECTURE.md"
            );
        }
    }
    let members = manifest(&root())?["workspace"]["members"].as_array().context("the workspace has members")?.len();
    assert_eq!(members, allowed().len() + 1, "a new crate needs its edges listed here");
    Ok(())
}

#[test]
fn foreign_libraries_stay_in_their_crates() -> Result<()> {
    let owners = [("openraft", "raft"), ("rocksdb", "raft"), ("bincode", "raft/state"), ("faiss-sys", "index")];
    for (library, owner) in owners {
        for folder in allowed().keys().filter(|folder| **folder != owner) {
            let known = dependencies(&manifest(&root().join(folder))?);
            assert!(!known.contains(library), "{folder} names {library}, which belongs to {owner} alone");
        }
    }
    let state = dependencies(&manifest(&root().join("raft/state"))?);
    for banned in ["tokio", "rand", "tonic", "uuid", "chrono"] {
        assert!(!state.contains(banned), "the replicated state is pure: no {banned}");
    }
    Ok(())
}

/// No crate of a release has the planted bugs: neither by its default features, nor by another crate that asks for them.
#[test]
fn planted_bugs_are_in_no_release() -> Result<()> {
    for folder in allowed().keys() {
        let manifest = manifest(&root().join(folder))?;
        if let Some(features) = manifest.get("features").and_then(toml::Value::as_table) {
            let mut on: Vec<&str> = vec!["default"];
            let mut next = 0;
            while let Some(feature) = on.get(next) {
                next += 1;
                let implied = features.get(*feature).and_then(toml::Value::as_array);
                on.extend(implied.into_iter().flatten().filter_map(toml::Value::as_str));
                assert!(next < 100, "the features of {folder} name each other");
            }
            assert!(!on.iter().any(|feature| feature.contains("planted")), "{folder} has planted bugs by default");
        }
        for kind in ["dependencies", "dev-dependencies"] {
            let asked = manifest.get(kind).map(toml::Value::to_string).unwrap_or_default();
            assert!(!asked.contains("planted"), "{folder} asks for planted bugs in its {kind}");
        }
    }
    let bins = manifest(&root().join("cli"))?["bin"].clone();
    for bin in bins.as_array().context("cli has binaries")? {
        let planted = bin["name"].as_str() == Some("quorate-planted");
        let required = bin.get("required-features").map(toml::Value::to_string).unwrap_or_default();
        assert_eq!(planted, required.contains("planted"), "{bin}");
    }
    Ok(())
}

/// Cargo runs nothing where a package has several programs and none is named.
#[test]
fn make_names_the_program_that_it_runs() -> Result<()> {
    let rules = fs_err::read_to_string(root().join("Makefile"))?;
    let runs: Vec<&str> = rules.lines().filter(|line| line.contains("cargo run") && line.contains(" -p ")).collect();
    assert!(!runs.is_empty(), "the demo is run");
    for line in runs {
        assert!(line.contains(" --bin "), "no program is named: {line}");
    }
    Ok(())
}

#[test]
fn only_the_codec_names_bincode_and_only_the_index_is_unsafe() -> Result<()> {
    for file in sources()? {
        let text = fs_err::read_to_string(&file)?;
        let name = file.strip_prefix(root())?.to_string_lossy().into_owned();
        let code = || text.lines().filter(|line| !line.trim_start().starts_with("//"));
        if name != "raft/state/src/codec.rs" && name != "tests/tests/house.rs" {
            assert!(
                !code().any(|line| line.contains("bincode")),
                "{name} names bincode, which raft/state/src/codec.rs hides"
            );
        }
        if !name.starts_with("index/") && name != "tests/tests/house.rs" {
            assert!(
                !code().any(|line| line.contains("unsafe ")),
                "{name} has unsafe code, which belongs to index alone"
            );
        }
    }
    Ok(())
}

#[test]
fn files_are_short_and_finished() -> Result<()> {
    for file in sources()? {
        let text = fs_err::read_to_string(&file)?;
        let name = file.strip_prefix(root())?.to_string_lossy().into_owned();
        let lines = text.lines().count();
        assert!(lines <= 900, "{name} has {lines} lines: split it where a concept ends");
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        assert!(
            !["utils", "util", "common", "types_all", "helpers"].contains(&stem.as_str()),
            "{name}: a name that says nothing"
        );
        if name == "tests/tests/house.rs" {
            continue;
        }
        for mark in ["TODO", "FIXME", "todo!(", "unimplemented!(", "#[ignore"] {
            assert!(!text.contains(mark), "{name} contains {mark}");
        }
    }
    Ok(())
}

/// Every Rust file of the workspace and of the simulation.
fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 50, "the walk found only {} files", found.len());
    Ok(found)
}
