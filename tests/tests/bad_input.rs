//! Every bad input has an error of its own that says what to do, through the command line as a person meets it.

use std::process::{Output, Stdio};

use anyhow::{Context, Result};
use quorate_tests::{TestCluster, binary, eventually};
use serde_json::Value;
use tokio::process::Command;

struct Shell {
    endpoint: String,
}

impl Shell {
    async fn run(&self, words: &[&str]) -> Result<Output> {
        quorate(&[&["--endpoints", self.endpoint.as_str()], words].concat()).await
    }

    /// Runs a command that must be refused with exit code 1, naming each of the words.
    async fn refused(&self, words: &[&str], expected: &[&str]) -> Result<()> {
        refused(&self.run(words).await?, 1, words, expected);
        Ok(())
    }
}

async fn quorate(words: &[&str]) -> Result<Output> {
    let child = Command::new(binary()?).args(words).stdin(Stdio::null()).kill_on_drop(true).output();
    tokio::time::timeout(std::time::Duration::from_secs(60), child)
        .await
        .with_context(|| format!("{words:?} hangs"))?
        .context("starting it")
}

fn refused(output: &Output, code: i32, words: &[&str], expected: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "quorate {words:?} said {said}");
    for word in expected {
        assert!(said.to_lowercase().contains(&word.to_lowercase()), "quorate {words:?} does not name {word:?}: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_call_has_its_own_error() -> Result<()> {
    let test = TestCluster::start(1).await?;
    let shell = Shell { endpoint: test.cluster.nodes[0].endpoint() };
    assert!(shell.run(&["collection", "create", "docs", "--dimension", "4"]).await?.status.success());

    shell.refused(&["memory", "upsert", "docs", "--id", "a", "--vector", "[1,2,3]"], &["dimension", "4", "3"]).await?;
    shell.refused(&["memory", "search", "docs", "--vector", "[1,2,3,4,5]"], &["dimension", "4", "5"]).await?;
    shell.refused(&["memory", "upsert", "docs", "--id", "a", "--vector", "[1,2,3,1e39]"], &["finite"]).await?;
    shell.refused(&["memory", "upsert", "nowhere", "--id", "a", "--vector", "[1]"], &["nowhere", "collection"]).await?;
    shell.refused(&["memory", "search", "nowhere", "--vector", "[1]"], &["nowhere", "collection"]).await?;
    shell.refused(&["memory", "search", "docs", "--vector", "[1,2,3,4]", "-k", "0"], &["`k`", "1..=1000"]).await?;
    shell.refused(&["collection", "create", "docs", "--dimension", "4"], &["docs", "exists"]).await?;
    shell.refused(&["collection", "create", "huge", "--dimension", "4097"], &["4096"]).await?;
    shell.refused(&["collection", "create", "wide", "--dimension", "4", "--shards", "99"], &["shards", "8"]).await?;
    shell.refused(&["task", "get", "12345"], &["12345", "task"]).await?;
    shell.refused(&["task", "enqueue", ""], &["queue"]).await?;
    shell.refused(&["cluster", "init"], &["already"]).await?;
    shell.refused(&["cluster", "leave", "00000000deadbeef"], &["00000000deadbeef", "node"]).await?;
    shell.refused(&["cluster", "leave", "not-an-id"], &["not-an-id"]).await?;
    shell
        .refused(&["cluster", "leave", &test.cluster.nodes[0].addresses.node_id], &["alone", "add a node first"])
        .await?;

    let large = test.directory.path().join("large");
    fs_err::write(&large, vec![b'x'; (4 << 20) + 1])?;
    let output = Command::new(binary()?)
        .args(["--endpoints", &shell.endpoint, "task", "enqueue", "docs", "-"])
        .stdin(Stdio::from(fs_err::File::open(&large)?.into_parts().0))
        .output()
        .await?;
    refused(&output, 1, &["an oversized payload"], &["4194304", "4194305"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_exit_code_3_and_bad_words_are_2() -> Result<()> {
    let nobody = ["--endpoints", "http://127.0.0.1:1", "cluster", "status"];
    refused(&quorate(&nobody).await?, 3, &nobody, &["127.0.0.1:1"]);
    let words = ["task", "fry"];
    refused(&quorate(&words).await?, 2, &words, &["fry"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leave_that_breaks_the_quorum_and_a_lost_quorum_are_named() -> Result<()> {
    let mut test = TestCluster::start(3).await?;
    let leader = test.cluster.leader().await?;
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    let shell = Shell { endpoint: test.cluster.nodes[leader].endpoint() };
    let ids: Vec<String> = test.cluster.nodes.iter().map(|node| node.addresses.node_id.clone()).collect();

    shell.refused(&["cluster", "leave", &ids[others[0]]], &["--allow-fewer-replicas"]).await?;
    test.cluster.nodes[others[0]].kill().await?;
    shell.refused(&["cluster", "leave", &ids[others[1]], "--allow-fewer-replicas"], &["quorum"]).await?;

    test.cluster.nodes[others[1]].kill().await?;
    let output = shell.run(&["task", "enqueue", "queue", "payload"]).await?;
    refused(&output, 1, &["enqueue without a quorum"], &["quorate cluster status"]);
    let output = shell.run(&["cluster", "status", "-o", "json"]).await?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(status["health"], "no_quorum", "{status}");
    assert!(!status["next_steps"].as_array().context("next steps")?.is_empty(), "{status}");
    Ok(())
}

/// The chaos suite found it (`replace`): started again, it served for ever as a node without a leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_says_so_each_time_it_is_started() -> Result<()> {
    let mut test = TestCluster::start(3).await?;
    let leader = test.cluster.leader().await?;
    let leaver = (0..3).find(|node| *node != leader).context("there are three")?;
    let id = test.cluster.nodes[leaver].addresses.node_id.clone();
    test.cluster.client_of(leader)?.cluster_leave(&id, true).await?;
    let log = test.cluster.nodes[leaver].data_dir().with_file_name("log");
    for start in 1..=2 {
        let node = &mut test.cluster.nodes[leaver];
        eventually("the node ends", async || Ok(node.has_ended().then_some(()))).await?;
        let said = fs_err::read_to_string(&log)?.matches("this node was removed from its cluster; start it").count();
        assert_eq!(said, start, "once each time");
        if start == 1 {
            test.cluster.revive(leaver).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_refuses_what_it_cannot_start_on() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let folder = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let listen = ["--client-listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];

    fs_err::write(folder("half.toml"), "data_dir = \"x\"\nclient_listen = \"127.0.")?;
    let words = ["node", "start", "--config", &folder("half.toml")];
    refused(&quorate(&words).await?, 1, &words, &["half.toml", "line 2"]);

    fs_err::write(folder("unknown.toml"), "data_dir = \"x\"\ncolour = \"blue\"\n")?;
    let words = ["node", "start", "--config", &folder("unknown.toml")];
    refused(&quorate(&words).await?, 1, &words, &["colour"]);

    let words = ["node", "start", "--config", &folder("missing.toml")];
    refused(&quorate(&words).await?, 1, &words, &["missing.toml"]);

    let busy = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = busy.local_addr()?.to_string();
    let data = folder("busy");
    let words = [
        "node",
        "start",
        "--data-dir",
        &data,
        "--client-listen",
        &address,
        "--peer-listen",
        "127.0.0.1:0",
        "--http-listen",
        "127.0.0.1:0",
    ];
    refused(&quorate(&words).await?, 1, &words, &[&address, "in use"]);

    let first = TestCluster::start(1).await?;
    let data = first.cluster.nodes[0].data_dir().to_string_lossy().into_owned();
    let words = [&["node", "start", "--data-dir", &data][..], &listen].concat();
    refused(&quorate(&words).await?, 1, &words, &["another process"]);

    let second = TestCluster::start(1).await?;
    let shell = Shell { endpoint: second.cluster.nodes[0].endpoint() };
    shell.refused(&["cluster", "join", &first.cluster.nodes[0].addresses.client], &["OTHER_CLUSTER"]).await?;
    Ok(())
}
