//! Work that must not stop half-way: changes that outlive their callers, and calls that block.
//!
//! A changing operation belongs to its object, not to the RPC that asked for it. [`Changes::run`] gives it a task of its
//! own and counts it, so that a daemon that ends can wait (with a limit) until none is under way.

use std::{
    panic::resume_unwind,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::watch, task, time};

/// Counts the changes under way.
#[derive(Debug, Clone)]
pub struct Changes {
    running: Arc<watch::Sender<usize>>,
}

impl Default for Changes {
    fn default() -> Self {
        Self { running: Arc::new(watch::Sender::new(0)) }
    }
}

/// Counts down even when the work panics.
struct Running(Arc<watch::Sender<usize>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Changes {
    /// Runs a change to its end, whether or not the caller waits for it. A panic in it is the caller's.
    pub async fn run<T: Send + 'static>(&self, change: impl Future<Output = T> + Send + 'static) -> T {
        join(self.spawn(change)).await
    }

    /// Starts a change without waiting for it.
    pub fn spawn<T: Send + 'static>(&self, change: impl Future<Output = T> + Send + 'static) -> task::JoinHandle<T> {
        self.running.send_modify(|count| *count += 1);
        let running = Running(Arc::clone(&self.running));
        let span = tracing::Span::current();
        task::spawn(tracing::Instrument::instrument(
            async move {
                let _running = running;
                change.await
            },
            span,
        ))
    }

    /// Waits until none is under way, or for `limit`; answers how many still are.
    pub async fn idle(&self, limit: Duration) -> usize {
        let mut running = self.running.subscribe();
        // The sender is alive as long as `self`, so only the limit can cut the wait short.
        drop(time::timeout(limit, running.wait_for(|count| *count == 0)).await);
        *self.running.borrow()
    }
}

/// Runs a call that blocks (file system, mounts, namespaces) where it stalls nobody.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let span = tracing::Span::current();
    join(task::spawn_blocking(move || span.in_scope(call))).await
}

async fn join<T>(handle: task::JoinHandle<T>) -> T {
    match handle.await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Nobody aborts these tasks; the runtime drops them when the process ends, and this one with them.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Locks a mutex whose holders keep no half-done change behind when they panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds since the epoch, as CRI counts time.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_runs_to_its_end_when_nobody_waits() {
        let changes = Changes::default();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let (done, finished) = tokio::sync::oneshot::channel();
        let caller = {
            let changes = changes.clone();
            tokio::spawn(async move {
                changes
                    .run(async move {
                        gone.await.unwrap();
                        done.send(()).unwrap();
                    })
                    .await;
            })
        };
        tokio::task::yield_now().await;
        assert_eq!(changes.idle(Duration::ZERO).await, 1);
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        go.send(()).unwrap();
        finished.await.unwrap();
        assert_eq!(changes.idle(Duration::from_secs(10)).await, 0);
    }

    #[tokio::test]
    async fn a_panic_counts_down_too() {
        let changes = Changes::default();
        assert!(changes.spawn(async { panic!("on purpose") }).await.unwrap_err().is_panic());
        assert_eq!(changes.idle(Duration::from_secs(10)).await, 0);
    }
}
