//! The request side of a work stream.
//!
//! It is polled when there is room to write. Heartbeats go first, because a lease hangs on them; finishes that came while
//! a frame was being written go together in the next.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use prost::Message;
use quorate_api::limits;
use quorate_api::v1::work_request::Frame;
use quorate_api::v1::{Finish, FinishBatch, WorkRequest};

/// A frame is closed at this size; one finish may be larger.
const FRAME_BYTES: usize = 1 << 20;

#[derive(Default)]
struct State {
    first: VecDeque<Frame>,
    finishes: VecDeque<Finish>,
    closed: bool,
    writer: Option<Waker>,
}

/// Puts frames on the stream. The stream ends when this is dropped.
pub(crate) struct Outbox(Arc<Mutex<State>>);

/// What the stream reads.
pub(crate) struct Frames(Arc<Mutex<State>>);

impl Outbox {
    pub(crate) fn new(first: Frame) -> (Self, Frames) {
        let state = State { first: VecDeque::from([first]), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        (Self(Arc::clone(&state)), Frames(state))
    }

    pub(crate) fn send(&self, frame: Frame) {
        self.change(|state| state.first.push_back(frame));
    }

    pub(crate) fn finish(&self, finish: Finish) {
        self.change(|state| state.finishes.push_back(finish));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.0.lock();
        change(&mut state);
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.change(|state| state.closed = true);
    }
}

impl futures::Stream for Frames {
    type Item = WorkRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WorkRequest>> {
        let mut state = self.0.lock();
        match state.next_frame() {
            Some(frame) => Poll::Ready(Some(WorkRequest { frame: Some(frame) })),
            None if state.closed => Poll::Ready(None),
            None => {
                state.writer = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl State {
    fn next_frame(&mut self) -> Option<Frame> {
        if let Some(frame) = self.first.pop_front() {
            return Some(frame);
        }
        let mut items = Vec::new();
        let mut bytes = 0;
        while items.len() < limits::FRAME_ITEMS {
            let Some(finish) = self.finishes.front() else { break };
            let size = finish.encoded_len();
            if !items.is_empty() && bytes + size > FRAME_BYTES {
                break;
            }
            bytes += size;
            items.extend(self.finishes.pop_front());
        }
        (!items.is_empty()).then_some(Frame::Finish(FinishBatch { items }))
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};
    use quorate_api::v1::{Completed, Heartbeat, OpenSession, finish::Outcome};

    use super::*;

    fn finish(seq: u64, bytes: usize) -> Finish {
        let completed = Completed { result: vec![0; bytes].into(), children: Vec::new() };
        Finish { seq, outcome: Some(Outcome::Completed(completed)), ..Finish::default() }
    }

    fn next(frames: &mut Frames) -> Option<Frame> {
        frames.next().now_or_never().flatten().and_then(|request| request.frame)
    }

    #[test]
    fn heartbeats_overtake_finishes_and_finishes_travel_together() {
        let (outbox, mut frames) = Outbox::new(Frame::Open(OpenSession::default()));
        for seq in 0..3 {
            outbox.finish(finish(seq, 8));
        }
        outbox.send(Frame::Heartbeat(Heartbeat::default()));
        assert!(matches!(next(&mut frames), Some(Frame::Open(_))));
        assert!(matches!(next(&mut frames), Some(Frame::Heartbeat(_))));
        let Some(Frame::Finish(batch)) = next(&mut frames) else { panic!("a batch") };
        assert_eq!(batch.items.iter().map(|finish| finish.seq).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(next(&mut frames), None);
    }

    #[test]
    fn a_frame_is_bounded_by_bytes_but_takes_one_large_finish() {
        let (outbox, mut frames) = Outbox::new(Frame::Open(OpenSession::default()));
        next(&mut frames);
        for seq in 0..3 {
            outbox.finish(finish(seq, FRAME_BYTES - 100));
        }
        for _ in 0..3 {
            let Some(Frame::Finish(batch)) = next(&mut frames) else { panic!("a batch") };
            assert_eq!(batch.items.len(), 1);
        }
    }

    #[test]
    fn the_stream_ends_after_what_was_put_in_it() {
        let (outbox, mut frames) = Outbox::new(Frame::Open(OpenSession::default()));
        outbox.finish(finish(1, 1));
        drop(outbox);
        assert!(next(&mut frames).is_some());
        assert!(next(&mut frames).is_some());
        assert_eq!(frames.next().now_or_never(), Some(None));
    }
}
