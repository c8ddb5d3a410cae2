//! Tasks and agents on clusters of real processes: through any node, across the death of agents, nodes and leaders.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use quorate_client::v1::{ErrorReason, Queue, TaskState};
use quorate_client::{
    Agent, AgentBuilder, AgentHandle, Client, Error, LeaseKeeper, NewTask, Output, TaskError, TaskFilter, limits,
};
use quorate_tests::{TestCluster, eventually};
use tokio::sync::Notify;
use uuid::Uuid;

/// How often each task was begun, by its payload.
type Begun = Arc<Mutex<BTreeMap<String, u32>>>;

fn note(begun: &Begun, payload: &[u8]) -> u32 {
    let mut begun = begun.lock().expect("no holder panics");
    let count = begun.entry(String::from_utf8_lossy(payload).into_owned()).or_default();
    *count += 1;
    *count
}

/// An agent that gives each payload back as the result.
fn echo(client: &Client, name: &str, begun: &Begun) -> AgentBuilder {
    let begun = begun.clone();
    Agent::builder(client, name).role("work").handler(move |attempt| {
        note(&begun, &attempt.payload);
        async move { Ok(Output::new(attempt.payload)) }
    })
}

async fn ready(agent: AgentBuilder) -> Result<AgentHandle> {
    let handle = agent.start()?;
    let session = tokio::time::timeout(Duration::from_secs(30), handle.ready()).await;
    session.context("no session in 30 s")?.context("the agent ended")?;
    Ok(handle)
}

fn tasks(count: usize) -> impl Iterator<Item = NewTask> {
    (0..count).map(|number| NewTask::new("work", format!("task-{number}")))
}

async fn queue(client: &Client, name: &str) -> Result<Queue> {
    Ok(client.list_queues().await?.into_iter().find(|queue| queue.name == name).unwrap_or_default())
}

async fn all_done(client: &Client, ids: &[u64]) -> Result<()> {
    let done = async |id: u64| {
        let answer = client.wait_task(id, Duration::from_secs(60)).await?;
        let task = answer.task.context("a task")?;
        ensure!(answer.finished, "task {id} is still {:?} after {} attempts", task.state(), task.attempts);
        ensure!(task.state() == TaskState::Completed, "task {id} is {:?}: {}", task.state(), task.error);
        Ok(())
    };
    stream::iter(ids).map(|id| done(*id)).buffer_unordered(64).try_collect().await
}

fn reason<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Option<ErrorReason> {
    outcome.expect_err("must be refused").reason()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_task_is_done_once_through_any_node() -> Result<()> {
    let test = TestCluster::start(3).await?;
    let begun = Begun::default();
    let mut agents = Vec::new();
    for node in 0..3 {
        let client = test.cluster.client_of(node)?;
        agents.push(ready(echo(&client, &format!("agent-{node}"), &begun).slots(4)).await?);
    }
    let client = test.cluster.client()?;
    let ids = client.enqueue_many(tasks(500)).await?;
    all_done(&test.cluster.client_of(1)?, &ids).await?;
    // Every node gives the same linearizable answer.
    for node in 0..3 {
        let client = test.cluster.client_of(node)?;
        let counts = queue(&client, "work").await?;
        ensure!((counts.completed, counts.ready, counts.granted) == (500, 0, 0), "node {node}: {counts:?}");
        let task = client.get_task(ids[7]).await?;
        ensure!(task.result == "task-7".as_bytes() && task.attempts == 1, "node {node}: {task:?}");
    }
    ensure!(begun.lock().expect("no holder panics").values().all(|count| *count == 1));
    let listed = client.list_agents().await?;
    let mut nodes: Vec<_> = listed.iter().map(|agent| agent.node_id.clone()).collect();
    nodes.sort();
    nodes.dedup();
    ensure!(nodes.len() == 3 && !nodes.contains(&String::new()), "{listed:?}");
    for agent in agents {
        ensure!(agent.stats().sessions == 1, "{:?}", agent.stats());
        agent.shutdown().await;
    }
    eventually("the sessions are closed", async || Ok(client.list_agents().await?.is_empty().then_some(()))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_and_its_children_take_effect_together() -> Result<()> {
    let test = TestCluster::start(1).await?;
    let client = test.cluster.client()?;
    let writer = Agent::builder(&client, "writer").role("write").handler(|attempt| async move {
        Ok(Output::new("written").child(NewTask::new("review", attempt.payload).role("check")))
    });
    let reviewer = Agent::builder(&client, "reviewer")
        .role("check")
        .handler(|attempt| async move { Ok(Output::new([&b"checked "[..], &attempt.payload].concat())) });
    let agents = [ready(writer).await?, ready(reviewer).await?];
    let parent = client.enqueue(NewTask::new("write", "a page")).await?;
    all_done(&client, &[parent]).await?;
    let filter = TaskFilter { queue: Some("review".into()), ..TaskFilter::default() };
    let children = client.list_tasks(&filter).await?.tasks;
    ensure!(children.len() == 1 && children[0].parent_id == parent, "{children:?}");
    all_done(&client, &[children[0].id]).await?;
    ensure!(client.get_task(children[0].id).await?.result == "checked a page".as_bytes());
    drop(agents);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_leader_is_not_seen_by_agents() -> Result<()> {
    let mut test = TestCluster::start(3).await?;
    let leader = test.cluster.leader().await?;
    let begun = Begun::default();
    let mut agents = Vec::new();
    for node in (0..3).filter(|node| *node != leader) {
        let begun = begun.clone();
        let client = test.cluster.client_of(node)?;
        let agent = Agent::builder(&client, format!("agent-{node}")).role("work").slots(8).handler(move |attempt| {
            note(&begun, &attempt.payload);
            async move {
                // Long enough that some attempts are running when the leader dies.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(Output::new(attempt.payload))
            }
        });
        agents.push(ready(agent).await?);
    }
    let client = test.cluster.client()?;
    let mut ids = client.enqueue_many(tasks(1_000)).await?;
    eventually("the work has begun", async || Ok((queue(&client, "work").await?.completed > 100).then_some(())))
        .await?;
    test.cluster.nodes[leader].kill().await?;
    ids.push(client.enqueue(NewTask::new("work", "after the death")).await?);
    all_done(&client, &ids).await?;
    let counts = queue(&client, "work").await?;
    ensure!(counts.completed == 1_001, "{counts:?}");
    for agent in agents {
        let stats = agent.stats();
        // On a slow machine an agent may look for another node meanwhile; its session and its attempts stay.
        ensure!((stats.sessions, stats.lost) == (1, 0), "{stats:?} {:?}", agent.last_error());
        agent.shutdown().await;
    }
    // Whoever ran a task was the only one: the session outlived the leader, so nothing was given to another.
    ensure!(begun.lock().expect("no holder panics").values().all(|count| *count == 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_node_dies_goes_on_at_another() -> Result<()> {
    let mut test = TestCluster::start(3).await?;
    let begun = Begun::default();
    let client = test.cluster.client()?;
    let agent = ready(echo(&client, "nomad", &begun).slots(2)).await?;
    let session = agent.session_id();
    let home = eventually("the leader knows where the agent is", async || {
        let agents = client.list_agents().await?;
        let home = agents.first().map(|agent| agent.node_id.clone()).filter(|home| !home.is_empty());
        Ok(home.and_then(|home| test.cluster.nodes.iter().position(|node| node.addresses.node_id == home)))
    })
    .await?;
    test.cluster.nodes[home].kill().await?;
    let ids = client.enqueue_many(tasks(50)).await?;
    all_done(&client, &ids).await?;
    ensure!(agent.session_id() == session, "the session was lost: {:?}", agent.last_error());
    ensure!(agent.stats().resumes >= 1);
    agent.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_agents_task_goes_to_another() -> Result<()> {
    let test = TestCluster::start(1).await?;
    let client = test.cluster.client()?;
    let holds = Arc::new(Notify::new());
    let held = holds.clone();
    let ttl = Duration::from_secs(2);
    let endpoints = test.cluster.endpoints();
    // A runtime that is dropped takes the agent with it, as the end of its process would.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let handle = doomed.spawn(async move {
        let client = Client::connect(endpoints)?;
        let agent = Agent::builder(&client, "doomed").role("work").ttl(ttl).lease_keeper(LeaseKeeper::Task);
        let agent = agent.handler(move |_| {
            held.notify_one();
            std::future::pending::<Result<Output, TaskError>>()
        });
        let handle = agent.start()?;
        handle.ready().await;
        Ok::<_, Error>(handle)
    });
    let agent = handle.await??;
    let task = client
        .enqueue(NewTask::new("work", "heavy").backoff(Duration::from_millis(1), Duration::from_millis(1)))
        .await?;
    holds.notified().await;
    doomed.shutdown_background();
    let died = Instant::now();
    let begun = Begun::default();
    let heir = ready(echo(&client, "heir", &begun)).await?;
    all_done(&client, &[task]).await?;
    // A broken stream says nothing of the agent behind it, so the session lives its own time out, and no longer.
    ensure!(died.elapsed() < 2 * ttl, "{:?}", died.elapsed());
    let task = client.get_task(task).await?;
    ensure!((task.attempts, task.failures) == (2, 1), "{task:?}");
    drop((agent, heir));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_task_is_tried_again_and_then_kept_as_a_dead_letter() -> Result<()> {
    let test = TestCluster::start(1).await?;
    let client = test.cluster.client()?;
    let begun = Begun::default();
    let counted = begun.clone();
    let agent = Agent::builder(&client, "clumsy").role("work").handler(move |attempt| {
        let count = note(&counted, &attempt.payload);
        async move {
            match (&attempt.payload[..], count) {
                (b"hopeless", _) => Err(TaskError::permanent("no way")),
                (b"unlucky", 1) => Err(TaskError::retry("not yet")),
                (b"doomed", _) => Err(TaskError::retry("again")),
                _ => Ok(Output::new("done")),
            }
        }
    });
    let agent = ready(agent).await?;
    let quick = |payload: &'static str| {
        NewTask::new("work", payload).max_attempts(3).backoff(Duration::from_millis(200), Duration::from_millis(400))
    };
    let began = Instant::now();
    let unlucky = client.enqueue(quick("unlucky")).await?;
    let hopeless = client.enqueue(quick("hopeless")).await?;
    let doomed = client.enqueue(quick("doomed")).await?;
    all_done(&client, &[unlucky]).await?;
    ensure!(began.elapsed() >= Duration::from_millis(100), "it came back without its pause");
    for (id, failures, error) in [(hopeless, 1, "no way"), (doomed, 3, "again")] {
        let answer = client.wait_task(id, Duration::from_secs(30)).await?;
        let task = answer.task.context("a task")?;
        ensure!(answer.finished && task.state() == TaskState::DeadLetter, "{task:?}");
        ensure!(task.failures == failures && task.error.contains(error), "{task:?}");
        ensure!(!task.payload.is_empty(), "a dead letter keeps its payload");
    }
    ensure!(queue(&client, "work").await?.dead_letters == 2);
    agent.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_the_agent_and_frees_its_slot() -> Result<()> {
    let test = TestCluster::start(3).await?;
    let client = test.cluster.client()?;
    let holds = Arc::new(Notify::new());
    let held = holds.clone();
    let agent = Agent::builder(&client, "patient").role("work").handler(move |attempt| {
        let held = held.clone();
        async move {
            if &attempt.payload[..] == b"long" {
                held.notify_one();
                std::future::pending::<()>().await;
            }
            Ok(Output::new("short"))
        }
    });
    let agent = ready(agent).await?;
    let long = client.enqueue(NewTask::new("work", "long")).await?;
    holds.notified().await;
    let waits = {
        let client = client.clone();
        tokio::spawn(async move { client.wait_task(long, Duration::from_secs(30)).await })
    };
    let task = client.cancel_task(long).await?;
    ensure!(task.state() == TaskState::Cancelled, "{task:?}");
    ensure!(waits.await??.finished, "who waits for a cancelled task is woken");
    let short = client.enqueue(NewTask::new("work", "short")).await?;
    all_done(&client, &[short]).await?;
    ensure!(agent.stats().cancelled == 1, "{:?}", agent.stats());
    ensure!(reason(client.cancel_task(short).await) == Some(ErrorReason::TaskFinished));
    agent.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_sent_again_takes_effect_once() -> Result<()> {
    let mut test = TestCluster::start(3).await?;
    let client = test.cluster.client()?;
    let id = Uuid::now_v7();
    let first = client.retry_as(id).enqueue_many(tasks(3)).await?;
    let leader = test.cluster.leader().await?;
    test.cluster.nodes[leader].kill().await?;
    let again = client.retry_as(id).enqueue_many(tasks(3)).await?;
    ensure!(first == again, "{first:?} {again:?}");
    ensure!(queue(&client, "work").await?.ready == 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_acknowledged_and_waiting_work_goes_on_afterwards() -> Result<()> {
    let mut test = TestCluster::start(3).await?;
    let client = test.cluster.client()?;
    let before = client.enqueue(NewTask::new("work", "before")).await?;
    let survivor = test.cluster.leader().await?;
    for node in (0..3).filter(|node| *node != survivor) {
        test.cluster.nodes[node].kill().await?;
    }
    let impatient = test.cluster.client_of(survivor)?.with_deadline(Duration::from_secs(3));
    match impatient.enqueue(NewTask::new("work", "lost?")).await {
        Err(Error::OutcomeUnknown { .. } | Error::Unreachable { .. } | Error::Refused(_)) => {}
        other => bail!("{other:?}"),
    }
    ensure!(impatient.get_task(before).await.is_err(), "a read without a quorum cannot be linearizable");
    for node in (0..3).filter(|node| *node != survivor) {
        test.cluster.restart(node).await?;
    }
    let begun = Begun::default();
    let agent = ready(echo(&client, "late", &begun)).await?;
    let after = client.with_deadline(Duration::from_secs(30)).enqueue(NewTask::new("work", "after")).await?;
    all_done(&client, &[before, after]).await?;
    agent.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_its_own_answer() -> Result<()> {
    let test = TestCluster::start(1).await?;
    let client = test.cluster.client()?;
    ensure!(reason(client.enqueue(NewTask::new("", "x")).await) == Some(ErrorReason::InvalidArgument));
    let long = "q".repeat(limits::NAME_BYTES + 1);
    ensure!(reason(client.enqueue(NewTask::new(long, "x")).await) == Some(ErrorReason::TooLarge));
    let large = NewTask::new("work", vec![0; limits::PAYLOAD_BYTES + 1]);
    ensure!(reason(client.enqueue(large).await) == Some(ErrorReason::TooLarge));
    ensure!(reason(client.enqueue_many([]).await) == Some(ErrorReason::InvalidArgument));
    let many = tasks(limits::BATCH_TASKS + 1);
    ensure!(reason(client.enqueue_many(many).await) == Some(ErrorReason::TooLarge));
    ensure!(reason(client.get_task(42).await) == Some(ErrorReason::TaskNotFound));
    ensure!(reason(client.wait_task(42, Duration::from_secs(1)).await) == Some(ErrorReason::TaskNotFound));
    ensure!(reason(client.cancel_task(42).await) == Some(ErrorReason::TaskNotFound));
    let filter = TaskFilter { page_token: "nonsense".into(), ..TaskFilter::default() };
    ensure!(reason(client.list_tasks(&filter).await) == Some(ErrorReason::InvalidArgument));
    let filter = TaskFilter { page_size: limits::PAGE_TASKS as u32 + 1, ..TaskFilter::default() };
    ensure!(reason(client.list_tasks(&filter).await) == Some(ErrorReason::InvalidArgument));
    // The largest payload that is allowed passes, there and back.
    let begun = Begun::default();
    let agent = ready(echo(&client, "strong", &begun)).await?;
    let largest = client.enqueue(NewTask::new("work", vec![7; limits::PAYLOAD_BYTES])).await?;
    all_done(&client, &[largest]).await?;
    ensure!(client.get_task(largest).await?.result.len() == limits::PAYLOAD_BYTES);
    agent.shutdown().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_comes_in_pages() -> Result<()> {
    let test = TestCluster::start(1).await?;
    let client = test.cluster.client()?;
    let ids = client.enqueue_many(tasks(25)).await?;
    client.enqueue(NewTask::new("other", "x")).await?;
    let mut seen = Vec::new();
    let mut filter = TaskFilter { queue: Some("work".into()), page_size: 10, ..TaskFilter::default() };
    loop {
        let page = client.list_tasks(&filter).await?;
        ensure!(page.tasks.len() <= 10);
        seen.extend(page.tasks.iter().map(|task| task.id));
        if page.next_page_token.is_empty() {
            break;
        }
        filter.page_token = page.next_page_token;
    }
    ensure!(seen == ids, "{seen:?}");
    Ok(())
}
