//! Arbitrary moments that can be had again.

use std::{
    env, fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::MARGIN;

/// A seeded sequence (`splitmix64`).
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    seed: u64,
    state: u64,
    /// How many rounds are to be played.
    pub(crate) rounds: usize,
}

impl fmt::Display for Moments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VAINA_FAULT_SEED={}", self.seed)
    }
}

impl Moments {
    /// From the seed and the number of rounds in the environment, or a new seed and `rounds`.
    pub(crate) fn from_environment(rounds: usize) -> Self {
        let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let seed = number("VAINA_FAULT_SEED").unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::from(now.subsec_nanos()) ^ now.as_secs()
        });
        let rounds = number("VAINA_FAULT_ROUNDS").and_then(|rounds| usize::try_from(rounds).ok()).unwrap_or(rounds);
        Self { seed, state: seed, rounds }
    }

    /// A moment within this time, or shortly after it.
    pub(crate) fn within(&mut self, whole: Duration) -> Duration {
        let whole = whole + MARGIN;
        whole.mul_f64(f64::from(u32::try_from(self.next() >> 32).unwrap_or(0)) / f64::from(u32::MAX))
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap_or(1)).unwrap_or(0)
    }

    /// Further moments that don't depend on how many of these are taken.
    pub(crate) fn split(&mut self) -> Self {
        Self { state: self.next(), ..*self }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
