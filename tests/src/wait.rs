//! Waiting for a state, with a limit. Nothing else in this crate sleeps.

use std::{
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How often a state is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// What nearly every test waits at most: far above what the step takes, so that a loaded machine does not fail it.
pub const LIMIT: Duration = Duration::from_secs(30);

/// How many times longer than elsewhere a machine may take: `VAINA_TEST_PATIENCE`, for one whose processor is emulated.
pub fn patience() -> u32 {
    static PATIENCE: LazyLock<u32> = LazyLock::new(|| {
        let given = std::env::var("VAINA_TEST_PATIENCE").ok();
        given.and_then(|text| text.parse().ok()).unwrap_or(1)
    });
    *PATIENCE
}

/// Looks until `look` sees it, on the calling thread.
pub fn blocking<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let limit = limit * patience();
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
    let limit = limit * patience();
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
