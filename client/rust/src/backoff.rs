//! Exponential backoff with jitter.

use std::time::Duration;

/// Doubles from `first` to `most`; each delay is drawn from the upper half of its step, so that clients that failed
/// together do not come back together.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    step: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, step: first }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let delay = jittered(self.step);
        self.step = (self.step * 2).min(self.most);
        delay
    }

    pub(crate) fn reset(&mut self) {
        self.step = self.first;
    }
}

/// A delay within `step / 2 ..= step`.
pub(crate) fn jittered(step: Duration) -> Duration {
    let whole = u64::try_from(step.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(rand::random_range(whole / 2..=whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_most_and_start_again_after_a_reset() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(20), ms(200));
        for step in [20, 40, 80, 160, 200, 200] {
            let delay = backoff.next();
            assert!(delay >= ms(step) / 2 && delay <= ms(step), "{delay:?} of step {step} ms");
        }
        backoff.reset();
        assert!(backoff.next() <= ms(20));
    }
}
