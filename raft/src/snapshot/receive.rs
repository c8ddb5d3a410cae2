//! The receiving side of a snapshot.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{Checkpoint, Snapshot, meta_of};
use crate::blocking::Blocking;
use crate::group::Running;
use crate::ids::GroupId;
use crate::machine::StateStores;
use crate::proto;
use crate::proto::snapshot_frame::Frame;
use crate::proto::snapshot_reply::Reply;
use crate::transport::Sender;

type Replies = mpsc::Sender<Result<proto::SnapshotReply, Status>>;

/// What has arrived of one snapshot. Kept between connections, so that a broken one costs only the file it broke in.
pub(crate) struct Receiving {
    files: Vec<proto::SnapshotFile>,
    verified: Vec<bool>,
    dir: PathBuf,
}

impl Receiving {
    fn missing(&self) -> Option<&str> {
        let missing = self.verified.iter().position(|verified| !verified)?;
        Some(&self.files[missing].name)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if !self.dir.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// Receives one snapshot for `group`, installs it and answers. What was verified stays for the next attempt when the
/// stream breaks.
pub(crate) async fn receive_snapshot(
    group: Arc<Running>,
    begin: proto::SnapshotBegin,
    sender: Sender,
    mut frames: Streaming<proto::SnapshotFrame>,
    replies: Replies,
) {
    // One at a time: a second stream waits until the first, which may be from an earlier leader, has ended.
    let mut slot = group.receiving.lock().await;
    let reply = match receive(&group, &mut slot, begin, &sender, &mut frames, &replies).await {
        Ok(reply) => reply,
        Err(error) => {
            tracing::warn!(group = %group.id, %error, "a snapshot was not received");
            Reply::Refused(error.to_string())
        }
    };
    // The sender may be gone.
    let _ = replies.send(Ok(proto::SnapshotReply { reply: Some(reply) })).await;
}

async fn receive(
    group: &Running,
    slot: &mut Option<Receiving>,
    begin: proto::SnapshotBegin,
    sender: &Sender,
    frames: &mut Streaming<proto::SnapshotFrame>,
    replies: &Replies,
) -> io::Result<Reply> {
    let vote = begin.vote.ok_or_else(|| wrong("a snapshot without a vote"))?;
    let meta = meta_of(begin.mark.ok_or_else(|| wrong("a snapshot without a mark"))?)?;
    let receiving = resume(&*group.states, group.id, slot, begin.files)?;
    let verified = receiving.verified.iter().enumerate().filter(|(_, verified)| **verified);
    let have = proto::SnapshotHave { files: verified.map(|(place, _)| place as u32).collect() };
    let have = proto::SnapshotReply { reply: Some(Reply::Have(have)) };
    replies.send(Ok(have)).await.map_err(|_| wrong("the sender is gone"))?;
    let mut current: Option<Incoming> = None;
    loop {
        let frame = frames.message().await.map_err(io::Error::other)?;
        sender.check().map_err(io::Error::other)?;
        match frame.and_then(|frame| frame.frame) {
            Some(Frame::Chunk(chunk)) => accept(group.blocking, receiving, &mut current, chunk).await?,
            Some(Frame::End(_)) => break,
            Some(Frame::Begin(_)) => return Err(wrong("a second beginning")),
            None => return Err(wrong("the stream ended before the snapshot did")),
        }
    }
    if let Some(missing) = receiving.missing() {
        return Err(wrong(&format!("the file {missing} is missing")));
    }
    let dir = std::mem::take(&mut receiving.dir);
    *slot = None;
    let synced = dir.clone();
    let checkpoint = Arc::new(Checkpoint::new(dir));
    let (arrived, states) = (checkpoint.clone(), group.states.clone());
    let verified = group.blocking.run(move || {
        File::open(synced)?.sync_all()?;
        arrived.verify(&*states)
    });
    // What does not read is refused before anything of this replica is given up for it.
    verified.await?;
    let snapshot = Snapshot { meta, snapshot: checkpoint };
    let installed = group.raft.install_full_snapshot(vote.into(), snapshot).await;
    let installed = installed.map_err(|error| io::Error::other(error.to_string()))?;
    Ok(Reply::Installed((&installed.vote).into()))
}

/// What is here of a snapshot with these files, or an empty start.
fn resume<'a>(
    states: &dyn StateStores,
    group: GroupId,
    slot: &'a mut Option<Receiving>,
    files: Vec<proto::SnapshotFile>,
) -> io::Result<&'a mut Receiving> {
    for file in &files {
        let plain = Path::new(&file.name).components().count() == 1 && !file.name.contains(['/', '\\']);
        if !plain || file.name == ".." {
            return Err(wrong(&format!("the file name {:?} is not a plain one", file.name)));
        }
    }
    if slot.as_ref().is_none_or(|receiving| receiving.files != files) {
        // The old directory goes before the store may reuse its place.
        *slot = None;
        let dir = states.staging(group)?;
        *slot = Some(Receiving { verified: vec![false; files.len()], files, dir });
    }
    slot.as_mut().ok_or_else(|| wrong("no place for the snapshot"))
}

/// The file that is arriving.
struct Incoming {
    place: u32,
    writer: File,
    length: u64,
    crc: u32,
}

async fn accept(
    blocking: Blocking,
    receiving: &mut Receiving,
    current: &mut Option<Incoming>,
    chunk: proto::SnapshotChunk,
) -> io::Result<()> {
    let place = chunk.file;
    let expected = receiving.files.get(place as usize).ok_or_else(|| wrong("a chunk of an unknown file"))?.clone();
    let incoming = current.take().filter(|incoming| incoming.place == place);
    let path = receiving.dir.join(&expected.name);
    let written = blocking.run(move || {
        let mut incoming = match incoming {
            Some(incoming) => incoming,
            None => Incoming { place, writer: File::create(path)?, length: 0, crc: 0 },
        };
        incoming.length += chunk.data.len() as u64;
        if incoming.length > expected.length {
            return Err(wrong(&format!("the file {} is longer than its manifest says", expected.name)));
        }
        incoming.crc = crc32c::crc32c_append(incoming.crc, &chunk.data);
        incoming.writer.write_all(&chunk.data)?;
        if incoming.length < expected.length {
            return Ok(Some(incoming));
        }
        if incoming.crc != expected.crc {
            return Err(wrong(&format!("the file {} does not match its checksum", expected.name)));
        }
        incoming.writer.sync_all()?;
        Ok(None)
    });
    match written.await? {
        Some(incoming) => *current = Some(incoming),
        None => receiving.verified[place as usize] = true,
    }
    Ok(())
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step fails the test")]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::memory::MemoryStates;

    fn file(name: &str, content: &[u8]) -> proto::SnapshotFile {
        proto::SnapshotFile { name: name.to_owned(), length: content.len() as u64, crc: crc32c::crc32c(content) }
    }

    fn chunk(file: u32, data: &'static [u8]) -> proto::SnapshotChunk {
        proto::SnapshotChunk { file, data: Bytes::from_static(data) }
    }

    #[tokio::test]
    async fn what_was_verified_is_not_asked_for_again() {
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path());
        let files = vec![file("a", b"hello"), file("b", b"there"), file("c", b"")];
        let mut slot = None;
        let receiving = resume(&states, GroupId(1), &mut slot, files.clone()).unwrap();
        let mut current = None;
        for part in [chunk(0, b"he"), chunk(0, b"llo"), chunk(1, b"the")] {
            accept(Blocking::InPlace, receiving, &mut current, part).await.unwrap();
        }
        // The connection breaks in the middle of the second file; the same snapshot comes again.
        drop(current);
        let receiving = resume(&states, GroupId(1), &mut slot, files.clone()).unwrap();
        assert_eq!(receiving.verified, [true, false, false]);
        let mut current = None;
        for part in [chunk(1, b"there"), chunk(2, b"")] {
            accept(Blocking::InPlace, receiving, &mut current, part).await.unwrap();
        }
        assert_eq!(receiving.missing(), None);
        assert_eq!(std::fs::read(receiving.dir.join("b")).unwrap(), b"there");
        // Another snapshot starts empty and takes the old files away.
        let old = receiving.dir.clone();
        let receiving = resume(&states, GroupId(1), &mut slot, vec![file("a", b"other")]).unwrap();
        assert_eq!(receiving.verified, [false]);
        assert!(!old.exists());
    }

    #[tokio::test]
    async fn a_damaged_or_strange_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let states = MemoryStates::new(dir.path());
        let mut slot = None;
        let receiving = resume(&states, GroupId(1), &mut slot, vec![file("a", b"hello")]).unwrap();
        let flipped = accept(Blocking::InPlace, receiving, &mut None, chunk(0, b"hellO")).await.unwrap_err();
        assert!(flipped.to_string().contains("checksum"), "{flipped}");
        let longer = accept(Blocking::InPlace, receiving, &mut None, chunk(0, b"hello!")).await.unwrap_err();
        assert!(longer.to_string().contains("longer"), "{longer}");
        assert!(accept(Blocking::InPlace, receiving, &mut None, chunk(5, b"hello")).await.is_err());
        assert_eq!(receiving.missing(), Some("a"));
        for name in ["../a", "/etc/a", "a/b", "..", ""] {
            assert!(resume(&states, GroupId(1), &mut None, vec![file(name, b"x")]).is_err(), "{name:?}");
        }
    }
}
