//! The lease: the agent stops before the cluster may give its tasks away, and keeps the lease while handlers block.

use std::sync::mpsc as blocking;
use std::time::Duration;

use futures::executor::block_on;
use quorate_client::v1::finish::Outcome;
use quorate_client::v1::work_request::Frame as Out;
use quorate_client::v1::work_response::Frame as In;
use quorate_client::v1::{CancelAttempt, ErrorReason};
use quorate_client::{Agent, Client, Output};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::TcpListenerStream;

use crate::agents::{Waiting, settle, waiting, writer};
use crate::fake::{Network, Node, Seen, WorkStream, either, error, services, soon, token};

const TTL: Duration = Duration::from_secs(10);
/// Bounds the waits of the one test that runs on real time.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tells when it is dropped.
struct Tell(Option<oneshot::Sender<Instant>>);

impl Drop for Tell {
    fn drop(&mut self) {
        if let Some(tell) = self.0.take() {
            let _ = tell.send(Instant::now());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_renewed_is_given_up_before_the_session_can_expire() {
    let network = Network::default();
    let (mut a, mut b) = (network.node("a:1"), network.node("b:1"));
    let (dropped, was_dropped) = oneshot::channel();
    let tell = std::sync::Mutex::new(Some(dropped));
    let agent = writer(&network, &["a:1", "b:1"])
        .handler(move |_| {
            let tell = Tell(tell.lock().unwrap().take());
            async move {
                let _tell = tell;
                std::future::pending().await
            }
        })
        .start()
        .unwrap();
    let (first, Seen::Work(mut stream)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    let opened_at = Instant::now();
    stream.open(77).await;
    stream.grant([1]);
    // One heartbeat is acknowledged; from then on the node hears the agent but cannot reach its leader.
    let Out::Heartbeat(beat) = stream.any_frame().await else { panic!("a heartbeat") };
    let renewed_at = Instant::now();
    assert!(renewed_at - opened_at <= TTL / 4 && beat.seq > 0);
    stream.acknowledge(beat.seq);

    // Half of the lease later the agent looks for a better node; none will do.
    let (second, Seen::Work(mut deaf)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    assert_ne!(first, second);
    assert!(renewed_at.elapsed() <= TTL / 2 + Duration::from_millis(50), "{:?}", renewed_at.elapsed());
    assert_eq!(deaf.resume(Vec::new()).await.holding.len(), 1);

    let given_up_at = soon(was_dropped).await.unwrap();
    let after = given_up_at - renewed_at;
    assert!(after < TTL, "given up {after:?} after the last renewal, the session may live {TTL:?}");
    assert!(after >= TTL * 8 / 10, "not before it must: {after:?}");

    // Then it begins anew.
    let reopened = async {
        loop {
            let (_, Seen::Work(mut stream)) = either(&mut a, &mut b).await else { panic!("a stream") };
            if let Out::Open(_) = stream.any_frame().await {
                return;
            }
        }
    };
    soon(reopened).await;
    let stats = agent.stats();
    assert_eq!((stats.lost, stats.completed, stats.running), (1, 0, 0));
}

/// An agent whose heartbeats were not acknowledged for half of its time to live, so that it asks another node.
struct InDoubt {
    waiting: Waiting,
    /// The stream that it has, on a node that says nothing.
    deaf: WorkStream,
    /// The node that it does not ask.
    _silent: Node,
    /// The node that it asks, and the stream on which it does.
    other: Node,
    asked: WorkStream,
}

async fn in_doubt(network: &Network, running: &[u64]) -> InDoubt {
    let (mut a, mut b) = (network.node("a:1"), network.node("b:1"));
    let mut waiting = waiting(writer(network, &["a:1", "b:1"]));
    let (first, Seen::Work(mut deaf)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    deaf.open(77).await;
    let opened_at = Instant::now();
    deaf.grant(running.iter().copied());
    for _ in running {
        soon(waiting.started.recv()).await.unwrap();
    }
    let (second, Seen::Work(asked)) = soon(either(&mut a, &mut b)).await else { panic!("a stream") };
    assert_ne!(first, second);
    assert!(opened_at.elapsed() >= TTL / 2 - Duration::from_millis(50), "{:?}", opened_at.elapsed());
    let (silent, other) = if second == 0 { (b, a) } else { (a, b) };
    InDoubt { waiting, deaf, _silent: silent, other, asked }
}

/// Reads until a heartbeat that was sent from now on. A stream that was left ends instead.
async fn next_heartbeat(stream: &mut WorkStream) -> u64 {
    let now = Instant::now();
    loop {
        match stream.any_frame().await {
            Out::Heartbeat(beat) if Instant::now() > now => return beat.seq,
            Out::Heartbeat(_) => {}
            other => panic!("no heartbeat: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_in_doubt_is_kept_until_another_node_has_taken_over() {
    let network = Network::default();
    let InDoubt { waiting, mut deaf, mut asked, .. } = in_doubt(&network, &[1]).await;
    // While the other node says nothing yet, the agent still speaks on the stream that it has.
    next_heartbeat(&mut deaf).await;
    assert_eq!(asked.resume(Vec::new()).await.holding, [token(1)]);
    let left = async {
        while let Some(frame) = deaf.next().await {
            assert!(matches!(frame.frame, Some(Out::Heartbeat(_))), "{frame:?}");
        }
    };
    soon(left).await;
    waiting.bell.notify_waiters();
    let (finishes, _) = asked.finishes(1).await;
    assert_eq!(finishes[0].task_id, 1);
    assert_eq!((waiting.agent.stats().resumes, waiting.agent.stats().lost), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stream_in_doubt_that_is_answered_again_carries_the_session_on() {
    let network = Network::default();
    let InDoubt { mut waiting, mut deaf, mut other, asked, .. } = in_doubt(&network, &[1]).await;
    asked.break_with(error(ErrorReason::NoLeader));
    let seq = next_heartbeat(&mut deaf).await;
    deaf.acknowledge(seq);
    settle().await;
    while other.seen.try_recv().is_ok() {}
    // The handler outlives the lease that it began with, and nobody is asked any more.
    let began = Instant::now();
    while began.elapsed() < 2 * TTL {
        let seq = next_heartbeat(&mut deaf).await;
        deaf.acknowledge(seq);
    }
    assert!(other.seen.try_recv().is_err());
    assert!(waiting.dropped.try_recv().is_err());
    waiting.bell.notify_waiters();
    deaf.finishes(1).await;
    assert_eq!((waiting.agent.stats().resumes, waiting.agent.stats().sessions), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_comes_while_another_node_is_asked_is_begun_once() {
    let network = Network::default();
    let InDoubt { mut waiting, deaf, mut asked, .. } = in_doubt(&network, &[]).await;
    // The leader knows what was named as held, and sends all else again to the node that takes over. An attempt that was
    // begun meanwhile could have been finished by then.
    deaf.grant([1]);
    settle().await;
    assert!(waiting.started.try_recv().is_err(), "the node that is asked may be given it too");
    assert_eq!(asked.resume(Vec::new()).await.holding, []);
    settle().await;
    assert!(waiting.started.try_recv().is_err(), "it comes again");
    asked.grant([1]);
    assert_eq!(soon(waiting.started.recv()).await, Some(1));
    waiting.bell.notify_waiters();
    let (finishes, _) = asked.finishes(1).await;
    assert_eq!(finishes.len(), 1);
    assert_eq!(waiting.agent.stats().started, 1);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_was_kept_back_is_begun_when_no_node_takes_over_unless_it_was_cancelled() {
    let network = Network::default();
    let InDoubt { mut waiting, deaf, mut other, asked, .. } = in_doubt(&network, &[]).await;
    deaf.grant([1, 2]);
    deaf.say(In::Cancel(CancelAttempt { task_id: 1, token: Some(token(1)) }));
    settle().await;
    asked.break_with(error(ErrorReason::NoLeader));
    assert_eq!(soon(waiting.started.recv()).await, Some(2));
    // The next node that is asked hears of it.
    let mut asked = soon(other.work()).await;
    assert_eq!(asked.resume(Vec::new()).await.holding, [token(2)]);
    assert_eq!((waiting.agent.stats().started, waiting.agent.stats().cancelled), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_handler_cannot_be_stopped_is_left_to_expire() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let (start, mut started) = mpsc::unbounded_channel();
    let (release, may_return) = blocking::channel::<()>();
    let may_return = std::sync::Mutex::new(may_return);
    let agent = writer(&network, &["a:1"])
        .blocking_handler(move |attempt| {
            let _ = start.send(attempt.task_id);
            let _ = may_return.lock().unwrap().recv();
            Ok(Output::default())
        })
        .start()
        .unwrap();
    let mut stream = soon(node.work()).await;
    stream.open(77).await;
    stream.grant([1]);
    started.recv().await.unwrap();
    let stopped = tokio::spawn(agent.stop());
    // The paused clock stands still while a blocking handler runs, so the test moves it.
    let end = async {
        loop {
            match stream.next().await.map(|request| request.frame) {
                Some(Some(Out::Heartbeat(_))) => {}
                other => return other,
            }
        }
    };
    let moving = async {
        loop {
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_millis(10)).await;
        }
    };
    let end = tokio::select! { end = end => end, () = moving => None };
    assert_eq!(end, None, "another agent would be given the task while this one still performs it");
    drop(stream);
    stopped.await.unwrap();
    release.send(()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_blocking_handler_is_signalled_and_its_late_result_is_refused() {
    let network = Network::default();
    let mut node = network.node("a:1");
    let (start, mut started) = mpsc::unbounded_channel();
    let (signal, mut signalled) = mpsc::unbounded_channel();
    let (release, may_return) = blocking::channel::<()>();
    let may_return = std::sync::Mutex::new(may_return);
    let agent = writer(&network, &["a:1"])
        .blocking_handler(move |attempt| {
            let _ = start.send(attempt.task_id);
            block_on(attempt.cancelled().cancelled());
            let _ = signal.send(attempt.task_id);
            may_return.lock().unwrap().recv().unwrap();
            Ok(Output::new("too late"))
        })
        .start()
        .unwrap();
    let mut stream = soon(node.work()).await;
    stream.open(77).await;
    stream.grant([1]);
    // The paused clock stands still while a blocking handler runs, so the test moves it.
    started.recv().await.unwrap();
    let mut waited = Duration::ZERO;
    while signalled.try_recv().is_err() {
        assert!(waited < TTL, "not signalled within the time to live");
        tokio::time::advance(Duration::from_millis(100)).await;
        waited += Duration::from_millis(100);
        // The handler is woken on its own thread; let that run before the clock moves on.
        let stats = agent.stats();
        if stats.lost == 1 {
            signalled.recv().await.unwrap();
            break;
        }
    }
    assert_eq!(agent.stats().lost, 1);
    release.send(()).unwrap();
    let reopened = loop {
        let mut stream = soon(node.work()).await;
        match stream.any_frame().await {
            Out::Resume(_) => {}
            Out::Open(_) => break stream,
            other => panic!("{other:?}"),
        }
    };
    reopened.say(quorate_client::v1::work_response::Frame::Opened(quorate_client::v1::SessionOpened {
        session_id: 78,
        ttl_ms: 10_000,
        lost: Vec::new(),
    }));
    while agent.stats().refused == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(agent.stats().completed, 0);
}

/// A node over real TCP on a runtime of its own, which tells the heartbeats that it has acknowledged after the grant.
fn node_on_a_thread(beats: blocking::Sender<u64>, finished: blocking::Sender<bool>) -> String {
    let (tell_address, address) = blocking::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            tell_address.send(listener.local_addr().unwrap().to_string()).unwrap();
            let (seen, mut calls) = mpsc::unbounded_channel();
            tokio::spawn(services(seen).serve_with_incoming(TcpListenerStream::new(listener)));
            let Some(Seen::Work(mut stream)) = calls.recv().await else { panic!("a stream") };
            stream.open(77).await;
            stream.grant([1]);
            let stream: &mut WorkStream = &mut stream;
            loop {
                match stream.any_frame().await {
                    Out::Heartbeat(beat) => {
                        stream.acknowledge(beat.seq);
                        let _ = beats.send(beat.seq);
                    }
                    Out::Finish(batch) => {
                        stream.ack(&batch.items);
                        let completed = matches!(batch.items[0].outcome, Some(Outcome::Completed(_)));
                        let _ = finished.send(completed);
                    }
                    Out::Close(_) => return,
                    other => panic!("{other:?}"),
                }
            }
        });
    });
    address.recv().unwrap()
}

#[test]
fn a_handler_that_blocks_its_runtime_does_not_stop_the_heartbeats() {
    let (tell_beats, beats) = blocking::channel();
    let (tell_finished, finished) = blocking::channel();
    let address = node_on_a_thread(tell_beats, tell_finished);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let beats = std::sync::Mutex::new(beats);
    runtime.block_on(async move {
        let client = Client::connect([address]).unwrap();
        let agent = Agent::builder(&client, "w1")
            .role("writer")
            .ttl(Duration::from_secs(2))
            .handler(move |_| {
                // Blocks the only thread of this runtime for longer than the time to live: 5 heartbeats at a quarter of it.
                let seqs: Vec<u64> = (0..5).map(|_| beats.lock().unwrap().recv_timeout(PATIENCE).unwrap()).collect();
                async move { Ok(Output::new(format!("{seqs:?}"))) }
            })
            .start()
            .unwrap();
        let completed =
            tokio::task::spawn_blocking(move || finished.recv_timeout(2 * PATIENCE).unwrap()).await.unwrap();
        assert!(completed, "the handler saw its heartbeats");
        assert_eq!(agent.stats().lost, 0);
        agent.shutdown().await;
    });
}
