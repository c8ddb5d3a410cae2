//! The demo and the benches, run as a newcomer runs them. Figures are not judged here, only that they are there and sound.

use anyhow::{Context, Result, ensure};
use quorate_tests::binary;
use serde_json::Value;
use tokio::process::Command;

async fn json(words: &[&str]) -> Result<Value> {
    let child = Command::new(binary()?).args(words).args(["-o", "json"]).kill_on_drop(true).output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(180), child)
        .await
        .with_context(|| format!("{words:?} hangs"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "quorate {words:?} ended with {}: {said}", output.status);
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("quorate {words:?} printed {:?}", String::from_utf8_lossy(&output.stdout)))
}

fn number(record: &Value, field: &str) -> f64 {
    record.pointer(field).and_then(Value::as_f64).unwrap_or_else(|| panic!("{field} is no number in {record}"))
}

#[tokio::test]
async fn the_demo_loses_nothing_while_its_leader_is_killed_twice() -> Result<()> {
    let table = json(&["demo"]).await?;
    assert!(number(&table, "/points") >= 5_000.0, "{table}");
    assert_eq!(number(&table, "/completed"), number(&table, "/tasks"), "{table}");
    assert_eq!((number(&table, "/lost"), number(&table, "/duplicate_completions")), (0.0, 0.0), "{table}");
    assert_eq!(table["failover_ms"].as_array().map(Vec::len), Some(2), "{table}");
    assert!(number(&table, "/recall_at_10") >= 0.95, "{table}");
    assert!(number(&table, "/seconds") > 0.0, "{table}");
    Ok(())
}

#[tokio::test]
async fn the_demo_also_runs_over_one_shard() -> Result<()> {
    let table = json(&["demo", "--shards", "1"]).await?;
    assert_eq!((number(&table, "/lost"), number(&table, "/duplicate_completions")), (0.0, 0.0), "{table}");
    Ok(())
}

#[tokio::test]
async fn the_benches_print_the_fields_that_they_promise() -> Result<()> {
    let tasks =
        json(&["bench", "tasks", "--spawn", "3", "--seconds", "2", "--producers", "8", "--agents", "4"]).await?;
    for field in [
        "/enqueued_per_s",
        "/completed_per_s",
        "/enqueue_ms/p50",
        "/dispatch_ms/p99",
        "/cycle_ms/p999",
        "/cycle_ms/max",
    ] {
        assert!(number(&tasks, field) > 0.0, "{field} of {tasks}");
    }
    assert_eq!(number(&tasks, "/errors"), 0.0, "{tasks}");

    let open = json(&[
        "bench",
        "tasks",
        "--spawn",
        "1",
        "--seconds",
        "2",
        "--rate",
        "100",
        "--agents",
        "2",
        "--producers",
        "2",
    ])
    .await?;
    assert!((80.0..=120.0).contains(&number(&open, "/enqueued_per_s")), "an open loop of 100 a second: {open}");

    let failover = json(&["bench", "failover", "--spawn", "3", "--kills", "1"]).await?;
    assert_eq!((number(&failover, "/lost"), number(&failover, "/duplicate_completions")), (0.0, 0.0), "{failover}");
    assert!(number(&failover, "/acknowledged") > 0.0 && number(&failover, "/gap_ms/p50") > 0.0, "{failover}");

    let heal = json(&["bench", "heal", "--spawn", "3", "--mib", "8"]).await?;
    for field in ["/load_s", "/detected_s", "/voter_again_s", "/hashes_equal_s", "/replicas_replaced"] {
        assert!(number(&heal, field) > 0.0, "{field} of {heal}");
    }
    assert!(number(&heal, "/voter_again_s") < 60.0, "{heal}");

    let sample = "../cli/sample";
    let file = |name: &str| format!("{sample}/{name}.npy");
    let (vectors, queries, truth) = (file("vectors"), file("queries"), file("truth"));
    let files = ["--vectors", &vectors, "--queries", &queries, "--truth", &truth, "--seconds", "1"];
    let memory =
        json(&[&["bench", "memory", "--spawn", "1", "--k", "10", "--threads", "2"], &files[..]].concat()).await?;
    assert!(number(&memory, "/recall") >= 0.95, "{memory}");
    for field in ["/load_points_per_s", "/ready_s", "/qps", "/search_ms/p50", "/resident_bytes_per_vector"] {
        assert!(number(&memory, field) > 0.0, "{field} of {memory}");
    }
    Ok(())
}
