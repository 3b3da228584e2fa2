//! Waiting for a state, with a limit. Nothing else in this crate sleeps.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How often a state is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// What nearly every test waits at most: far above what the step takes, so that a loaded machine does not fail it.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Looks until `look` sees it, on the calling thread.
pub fn blocking<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        if start.elapsed() > limit {
            bail!("wait until {what}: not within {limit:?}");
        }
        thread::sleep(INTERVAL);
    }
}

/// Looks until `look` sees it; the runtime goes on meanwhile.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    within(what, LIMIT, &mut look).await
}

/// As [`until`], with a limit of its own.
pub async fn within<T>(what: &str, limit: Duration, look: &mut impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(seen) = look().await? {
            return Ok(seen);
        }
        if start.elapsed() > limit {
            bail!("wait until {what}: not within {limit:?}");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
