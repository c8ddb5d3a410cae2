//! The sending side of a snapshot.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Streaming;

use super::{CHUNK_BYTES, Checkpoint, Snapshot};
use crate::blocking::Blocking;
use crate::checkpoints::Checkpoints;
use crate::proto;
use crate::proto::snapshot_frame::Frame;
use crate::proto::snapshot_reply::Reply;
use crate::transport::{Link, PeerError};
use crate::types::Vote;

/// Frames on their way between the file and the connection.
const DEPTH: usize = 4;

/// Sends a snapshot, at most `bytes_per_s`, and waits until the receiver has installed it. Gives up when nothing moves
/// for `patience`.
pub(crate) async fn send_snapshot(
    link: &Link,
    route: proto::Route,
    vote: Vote,
    snapshot: &Snapshot,
    checkpoints: &Arc<Checkpoints>,
    bytes_per_s: u64,
    patience: Duration,
) -> Result<Vote, PeerError> {
    let blocking = checkpoints.blocking;
    let checkpoint = snapshot.snapshot.clone();
    let files = blocking.run({
        let checkpoint = checkpoint.clone();
        move || checkpoint.manifest()
    });
    let files = files.await.map_err(|error| local(&error))?;
    let (sender, frames) = mpsc::channel(DEPTH);
    let mut outgoing = Outgoing { sender, patience, started: Instant::now(), bytes: 0, bytes_per_s };
    let begin = proto::SnapshotBegin {
        route: Some(route),
        vote: Some((&vote).into()),
        mark: Some(proto::AppliedMark {
            at: snapshot.meta.last_log_id.as_ref().map(Into::into),
            membership: Some((&snapshot.meta.last_membership).into()),
        }),
        files: files.to_vec(),
    };
    outgoing.send(Frame::Begin(begin)).await?;
    let mut replies = link.snapshot(frames).await?;
    let have = match next(link, &mut replies, patience).await? {
        Reply::Have(have) => have.files,
        other => return finished(other),
    };
    // From here on the peer is there and will need the log above the snapshot.
    let _sending = checkpoints.begin_sending();
    for (place, file) in files.iter().enumerate() {
        if !have.contains(&(place as u32)) {
            let sent = send_file(&mut outgoing, &checkpoint, place as u32, file, blocking).await;
            // A receiver that has stopped listening has said why.
            if let Err(error) = sent {
                return match next(link, &mut replies, patience).await {
                    Ok(reply) => finished(reply),
                    Err(_) => Err(error),
                };
            }
        }
    }
    outgoing.send(Frame::End(proto::SnapshotEnd {})).await?;
    finished(next(link, &mut replies, patience).await?)
}

async fn send_file(
    outgoing: &mut Outgoing,
    checkpoint: &Arc<Checkpoint>,
    place: u32,
    file: &proto::SnapshotFile,
    blocking: Blocking,
) -> Result<(), PeerError> {
    let path = checkpoint.dir().join(&file.name);
    let mut reader = blocking.run(move || File::open(path)).await.map_err(|error| local(&error))?;
    let mut left = file.length;
    // An empty file has one empty chunk, which makes it.
    loop {
        let size = left.min(CHUNK_BYTES as u64) as usize;
        let read = blocking.run(move || {
            let mut buffer = vec![0; size];
            reader.read_exact(&mut buffer)?;
            Ok((reader, Bytes::from(buffer)))
        });
        let data;
        (reader, data) = read.await.map_err(|error| local(&error))?;
        left -= size as u64;
        outgoing.send(Frame::Chunk(proto::SnapshotChunk { file: place, data })).await?;
        outgoing.throttle(size as u64).await;
        if left == 0 {
            return Ok(());
        }
    }
}

struct Outgoing {
    sender: mpsc::Sender<proto::SnapshotFrame>,
    patience: Duration,
    started: Instant,
    bytes: u64,
    bytes_per_s: u64,
}

impl Outgoing {
    async fn send(&mut self, frame: Frame) -> Result<(), PeerError> {
        let sent = tokio::time::timeout(self.patience, self.sender.send(proto::SnapshotFrame { frame: Some(frame) }));
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(PeerError::Refused { reason: "the receiver has closed the stream".to_owned() }),
            Err(_) => Err(PeerError::TimedOut),
        }
    }

    /// Waits until the bytes sent so far may have been sent.
    async fn throttle(&mut self, bytes: u64) {
        self.bytes += bytes;
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_s.max(1) as f64);
        tokio::time::sleep_until(self.started + due).await;
    }
}

async fn next(
    link: &Link,
    replies: &mut Streaming<proto::SnapshotReply>,
    patience: Duration,
) -> Result<Reply, PeerError> {
    let reply = tokio::time::timeout(patience, replies.message()).await.map_err(|_| PeerError::TimedOut)?;
    let reply = reply.map_err(|status| link.error(&status))?;
    reply
        .and_then(|reply| reply.reply)
        .ok_or_else(|| PeerError::Refused { reason: "the receiver has closed the stream".to_owned() })
}

fn finished(reply: Reply) -> Result<Vote, PeerError> {
    match reply {
        Reply::Installed(vote) => Ok(vote.into()),
        Reply::Refused(reason) => Err(PeerError::Refused { reason }),
        Reply::Have(_) => Err(PeerError::Refused { reason: "the receiver answered out of turn".to_owned() }),
    }
}

fn local(error: &io::Error) -> PeerError {
    PeerError::Refused { reason: format!("the checkpoint cannot be read here: {error}") }
}
