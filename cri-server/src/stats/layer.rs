//! What a container's writable layer takes. Overlayfs counts nothing, so the directory has to be walked: at once if it is
//! small, otherwise behind the answers, one walk at a time, and seldom if it takes long. A daemon that nobody asks walks
//! nothing.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    app::App,
    container::{Container, ContainerState},
    error::Chain,
    snapshot::{self, Usage},
    work::{blocking, lock, now},
};

/// What is known of one layer.
#[derive(Debug, Default)]
pub(crate) struct Layer(Mutex<Known>);

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    measured: Option<Measured>,
    walking: bool,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) usage: Usage,
    /// Unix nanoseconds.
    pub(super) at: i64,
    took: Duration,
    /// Nothing writes to it any more.
    is_last: bool,
}

impl Measured {
    /// A walk takes no more than a twentieth of the time.
    fn is_old(&self, now: i64) -> bool {
        let age = Duration::from_nanos(u64::try_from(now.saturating_sub(self.at)).unwrap_or_default());
        !self.is_last && age > (self.took * 20).max(Duration::from_secs(10))
    }
}

/// How many files all walks of one call may look at before they go on behind its answer.
pub(super) const AT_ONCE: usize = 2000;

/// What a container's layer takes, as far as it is known. Blocking; `budget` is how many files may still be looked at.
pub(super) fn usage(app: &Arc<App>, container: &Arc<Container>, budget: &mut usize) -> Option<Measured> {
    let layer = &container.memo.layer;
    {
        let mut known = lock(&layer.0);
        if known.walking || known.measured.is_some_and(|measured| !measured.is_old(now())) {
            return known.measured;
        }
        known.walking = true;
    }
    match measure(app, container, budget) {
        Some(measured) => {
            *lock(&layer.0) = Known { measured: Some(measured), walking: false };
            Some(measured)
        }
        None => {
            tokio::spawn(walk(Arc::clone(app), Arc::clone(container)));
            lock(&layer.0).measured
        }
    }
}

/// The last measurement of a layer; never walks.
pub(super) fn last(container: &Container) -> Option<Usage> {
    lock(&container.memo.layer.0).measured.map(|measured| measured.usage)
}

async fn walk(app: Arc<App>, container: Arc<Container>) {
    // Closed never, so the permit is there or waited for.
    let _one = app.stats.walks.acquire().await;
    let (walked, walking) = (Arc::clone(&container), Arc::clone(&app));
    let measured = blocking(move || measure(&walking, &walked, &mut usize::MAX.clone())).await;
    let mut known = lock(&container.memo.layer.0);
    known.measured = measured.or(known.measured);
    known.walking = false;
}

/// [`None`] if the budget was not enough.
fn measure(app: &App, container: &Container, budget: &mut usize) -> Option<Measured> {
    // Looked at before the walk: what ends during it may have written meanwhile.
    let is_last = matches!(container.state(), ContainerState::Exited(_));
    let (started, at) = (Instant::now(), now());
    let usage = match snapshot::usage(&app.config.root, &container.id, budget) {
        Ok(usage) => usage?,
        Err(error) => {
            tracing::debug!(container = %container.id, error = %Chain(&error), "a writable layer is not measured");
            Usage::default()
        }
    };
    Some(Measured { usage, at, took: started.elapsed(), is_last })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_walks_are_seldom_and_a_dead_layer_is_walked_once() {
        let measured = |took, is_last| Measured { usage: Usage::default(), at: 0, took, is_last };
        let seconds = |count: i64| count * 1_000_000_000;
        let quick = measured(Duration::from_millis(1), false);
        assert!(!quick.is_old(seconds(9)) && quick.is_old(seconds(11)));
        let slow = measured(Duration::from_secs(3), false);
        assert!(!slow.is_old(seconds(59)) && slow.is_old(seconds(61)));
        assert!(!measured(Duration::ZERO, true).is_old(i64::MAX));
        // A clock that was set back.
        assert!(!quick.is_old(seconds(-100)));
    }
}
