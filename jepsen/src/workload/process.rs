//! One process of a load: it has one operation at a time, and records how each begins and ends.

use std::time::Duration;

use quorate_client::{Client, Error, v1};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::WorkContext;
use crate::event::Operation;
use crate::history;

/// How an operation ended.
#[derive(Debug)]
pub(super) enum End {
    /// It took effect and answered this.
    Ok(Operation),
    /// It certainly took no effect, and why.
    Fail(String),
    /// Nobody knows, and why.
    Info(String),
}

impl End {
    /// What the client's error says of a write.
    pub(super) fn of_write(error: &Error) -> End {
        match error {
            Error::Refused(refusal) => End::Fail(refusal.reason.name().to_owned()),
            Error::Unreachable { .. } => End::Fail("UNREACHABLE".into()),
            Error::OutcomeUnknown { .. } => End::Info("OUTCOME_UNKNOWN".into()),
            other => End::Fail(other.to_string()),
        }
    }

    /// What the client's error says of a read: whatever happened, nothing was changed by it.
    pub(super) fn of_read(error: &Error) -> End {
        match End::of_write(error) {
            End::Info(why) => End::Fail(why),
            other => other,
        }
    }

    /// What the error inside an answer says of one write of it.
    pub(super) fn of_part(error: &v1::Error) -> End {
        if error.reason == "OUTCOME_UNKNOWN" {
            End::Info(error.reason.clone())
        } else {
            End::Fail(error.reason.clone())
        }
    }
}

/// A process with its client.
pub(super) struct Process {
    recorded: history::Process,
    /// The node whose client this is; `None` knows all.
    pub(super) node: Option<usize>,
    /// Its client.
    pub(super) client: Client,
    /// Its randomness.
    pub(super) random: StdRng,
}

impl Process {
    /// The process of that ordinal within its load.
    pub(super) fn new(ctx: &WorkContext, ordinal: usize) -> Process {
        let (node, client) = ctx.clients.of(ordinal);
        let random = StdRng::seed_from_u64(ctx.seed.wrapping_add(ordinal as u64 * 7_919));
        Process { random, ..Process::with(ctx, node, client) }
    }

    /// A process with a client of its own.
    pub(super) fn with(ctx: &WorkContext, node: Option<usize>, client: Client) -> Process {
        Process { recorded: ctx.recorder.process(), node, client, random: StdRng::seed_from_u64(ctx.seed) }
    }

    /// An operation begins.
    pub(super) fn begin(&mut self, operation: &Operation) {
        self.recorded.invoke(operation.clone(), self.node);
    }

    /// It ends.
    pub(super) fn end(&mut self, end: End) {
        match end {
            End::Ok(answered) => self.recorded.ok(answered),
            End::Fail(why) => self.recorded.fail(why),
            End::Info(why) => self.recorded.info(why),
        }
    }
}

/// Bounds the rate of one process. What was missed while an operation hung is not caught up.
pub(super) struct Pace {
    interval: Interval,
    stop: CancellationToken,
}

impl Pace {
    /// A process that has `1 / processes` of the context's rate.
    pub(super) fn new(ctx: &WorkContext, processes: usize, random: &mut StdRng) -> Pace {
        let period = Duration::from_secs_f64((processes.max(1) as f64 / ctx.rate.max(0.01)).clamp(0.001, 60.0));
        let mut interval =
            tokio::time::interval_at(Instant::now() + period.mul_f64(random.random_range(0.0..1.0)), period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Pace { interval, stop: ctx.stop.clone() }
    }

    /// Waits for the process's next turn. False: the load is to end.
    pub(super) async fn turn(&mut self) -> bool {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => false,
            _ = self.interval.tick() => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use quorate_client::ApiError;
    use quorate_client::v1::ErrorReason;

    use super::*;

    #[test]
    fn only_an_unknown_outcome_is_unknown() {
        let refused = Error::Refused(ApiError::new(ErrorReason::NotLeader, "x"));
        assert!(matches!(End::of_write(&refused), End::Fail(why) if why == "NOT_LEADER"));
        let unreachable = Error::Unreachable { endpoints: String::new(), last: String::new() };
        assert!(matches!(End::of_write(&unreachable), End::Fail(_)));
        let unknown = Error::OutcomeUnknown { request_id: String::new(), last: String::new() };
        assert!(matches!(End::of_write(&unknown), End::Info(_)));
        assert!(matches!(End::of_read(&unknown), End::Fail(_)));
        let part = |reason: &str| v1::Error { reason: reason.into(), ..v1::Error::default() };
        assert!(matches!(End::of_part(&part("OUTCOME_UNKNOWN")), End::Info(_)));
        assert!(matches!(End::of_part(&part("VERSION_CONFLICT")), End::Fail(_)));
    }
}
