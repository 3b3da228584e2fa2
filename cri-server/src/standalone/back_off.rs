//! How long a container waits before it is started again. Pure: times come in.
//!
//! The kubelet's rule: the first restart is immediate, the next waits 10 s after the end, each further twice as long up to
//! 5 min; a container that held for 10 min begins anew. A start that fails waits from the first time on.

use std::time::{Duration, Instant};

/// Kubernetes' first wait.
pub(super) const BASE: Duration = Duration::from_secs(10);
/// 300 s to 10 s: the longest wait over the first.
const LONGEST: u32 = 30;

/// The back-off of one container.
#[derive(Debug, Clone)]
pub(super) struct BackOff {
    base: Duration,
    wait: Option<(Duration, Instant)>,
}

impl BackOff {
    /// The base is [`BASE`] but in tests.
    pub(super) fn new(base: Duration) -> Self {
        Self { base, wait: None }
    }

    /// How long after its end at `ended` the container may start again; zero is "now".
    pub(super) fn delay(&self, ended: Instant) -> Duration {
        match self.wait {
            Some((wait, since)) if !self.is_over(since, ended) => wait,
            _ => Duration::ZERO,
        }
    }

    /// Counts a restart, or a start that is being tried again.
    pub(super) fn restarted(&mut self, at: Instant) {
        let wait = match self.wait {
            Some((wait, since)) if !self.is_over(since, at) => (wait * 2).min(self.longest()),
            _ => self.base,
        };
        self.wait = Some((wait, at));
    }

    fn longest(&self) -> Duration {
        self.base * LONGEST
    }

    fn is_over(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) > self.longest() * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_keeps_ending_waits_longer_and_longer() {
        let mut back_off = BackOff::new(BASE);
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = back_off.delay(now);
            waits.push(wait.as_secs());
            now += wait;
            back_off.restarted(now);
            // It runs for a second.
            now += Duration::from_secs(1);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn ten_minutes_of_holding_are_forgiven() {
        let mut back_off = BackOff::new(BASE);
        let start = Instant::now();
        back_off.restarted(start);
        back_off.restarted(start + Duration::from_secs(10));
        assert_eq!(back_off.delay(start + Duration::from_secs(20)).as_secs(), 20);
        let later = start + Duration::from_secs(10 + 600);
        assert_eq!(back_off.delay(later).as_secs(), 20);
        let later = later + Duration::from_secs(1);
        assert_eq!(back_off.delay(later).as_secs(), 0);
        back_off.restarted(later);
        assert_eq!(back_off.delay(later).as_secs(), 10);
    }
}
