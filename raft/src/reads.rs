//! Linearizable reads: one quorum round for all that ask at the same time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::group::{ReadError, Running};
use crate::proto;
use crate::proto::read_position_reply::Result as Answer;

/// Who asks, and whether only this replica as the leader may answer.
pub(crate) struct Read {
    pub(crate) here_only: bool,
    pub(crate) reply: oneshot::Sender<Result<u64, ReadError>>,
}

/// Answers reads in rounds until the group stops. Whoever asks while a round is under way waits for the next: a
/// position asked for before the question came would not do.
pub(crate) async fn run_reads(running: Arc<Running>, mut reads: mpsc::UnboundedReceiver<Read>) {
    while let Some(first) = reads.recv().await {
        let mut waiting = vec![first];
        while let Ok(read) = reads.try_recv() {
            waiting.push(read);
        }
        let position = match running.leads() {
            true => ask_quorum(&running).await,
            false => {
                let (here, anywhere): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|read| read.here_only);
                waiting = anywhere;
                answer(here, &Err(ReadError::NoLeader));
                if waiting.is_empty() {
                    continue;
                }
                ask_leader(&running).await
            }
        };
        answer(waiting, &position);
    }
}

fn answer(reads: Vec<Read>, position: &Result<u64, ReadError>) {
    for read in reads {
        // A reader that gave up needs no answer.
        let _ = read.reply.send(position.clone());
    }
}

async fn ask_quorum(running: &Running) -> Result<u64, ReadError> {
    #[cfg(feature = "planted")]
    if crate::planted::is("stale-read") {
        return Ok(*running.applied.position.borrow());
    }
    let asked = Instant::now();
    let Some(term) = running.leads_in() else { return Err(ReadError::NoLeader) };
    running.hurry.store(true, Ordering::Release);
    let position = running.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
    // openraft's word that a majority follows may rest on answers from before the question (`followers`).
    let followed = position.is_ok() && running.is_followed_since(term, asked).await;
    running.hurry.store(false, Ordering::Release);
    match position {
        Ok(_) if !followed => Err(ReadError::NoLeader),
        Ok((position, _)) => Ok(position.index()),
        Err(error) if error.fatal().is_some() => Err(ReadError::Stopped),
        Err(_) => Err(ReadError::NoLeader),
    }
}

async fn ask_leader(running: &Running) -> Result<u64, ReadError> {
    let leader = running.leadership.borrow().leader.clone();
    let Some((replica, member)) = leader.filter(|(replica, _)| *replica != running.replica) else {
        return Err(ReadError::NoLeader);
    };
    let link = running.links.link(member.node, &member.address);
    let route = proto::Route { group: running.id.0, from: running.replica, to: replica };
    let patience = Duration::from_millis(2 * running.timers.election_max_ms);
    let reply = link.read_position(proto::ReadPositionRequest { route: Some(route) }, patience).await;
    match reply.ok().and_then(|reply| reply.result) {
        Some(Answer::Position(position)) => Ok(position),
        _ => Err(ReadError::NoLeader),
    }
}
