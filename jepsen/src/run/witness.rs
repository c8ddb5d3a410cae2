//! Whether the machine stood still: a run shares it with others, and a promise about time is one about a machine that works.
//!
//! The witness asks of the machine what a node asks of it, beside the run's directory and without any node: to be woken in time,
//! and to have a little written durably. Where that takes long, nothing that was late meanwhile is held against the cluster.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::event::{Micros, Note};
use crate::history::Recorder;

const EVERY: Duration = Duration::from_millis(100);
/// What takes longer is a stall. Elections begin after so long.
const STALL: Duration = Duration::from_millis(300);
const FILE: &str = "witness";

/// Watches the machine until `stop`, and records every stall.
///
/// # Errors
/// If its file cannot be made or written.
pub(super) async fn watch(directory: PathBuf, recorder: Recorder, stop: CancellationToken) -> Result<()> {
    let path = directory.join(FILE);
    let mut file = fs_err::File::create(&path)?;
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        stalled(&recorder, "its timers", last, EVERY + STALL);
        let begun = Instant::now();
        file = tokio::task::spawn_blocking(move || -> Result<fs_err::File> {
            file.write_all(b"x")?;
            file.sync_data()?;
            Ok(file)
        })
        .await
        .context("writing a file of the harness")??;
        stalled(&recorder, "its disk", begun, STALL);
        last = Instant::now();
    }
    Ok(fs_err::remove_file(path)?)
}

/// Records a stall if what has begun took longer than `most`.
fn stalled(recorder: &Recorder, what: &str, begun: Instant, most: Duration) {
    let took = begun.elapsed();
    if took > most {
        let to = recorder.now();
        let from = to.saturating_sub(Micros::try_from(took.as_micros()).unwrap_or(Micros::MAX));
        tracing::warn!(what, ?took, "the machine stood still");
        recorder.note(&Note::Stalled { what: what.to_owned(), from, to });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_took_too_long_is_a_stall() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let recorder = Recorder::create(&directory.path().join("history.jsonl")).expect("creates");
        let begun = Instant::now();
        stalled(&recorder, "its disk", begun, Duration::from_secs(60));
        stalled(&recorder, "its disk", begun, Duration::ZERO);
        let stop = CancellationToken::new();
        stop.cancel();
        watch(directory.path().to_owned(), recorder.clone(), stop).await.expect("it writes");
        assert!(!directory.path().join(FILE).exists());
        let notes = recorder.finish().expect("finishes").notes;
        assert!(matches!(&notes[..], [Note::Stalled { what, .. }] if what == "its disk"), "{notes:?}");
    }
}
