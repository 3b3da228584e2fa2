//! Runs a [`Drive`] for real: independent actions together, all of them to their end. Each is a span, and so a phase of the
//! call that it is done for.

use std::error::Error;

use futures::{StreamExt as _, stream::FuturesUnordered};
use tracing::{Instrument as _, info_span};
use vaina_sys::failpoint;

#[cfg(feature = "failpoints")]
use super::failpoints;
use super::{Action, Drive, Mark, Outcome, Step};

/// What a kind of object does for each action.
pub trait Host<S: Step>: Sync {
    /// Why an action failed; it names the step.
    type Error: Error + Send + Sync + 'static;

    /// Writes the mark into the record.
    fn write(&self, mark: Mark<S::Level>) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Makes a step. For the record: writes it, with the mark [`Mark::Toward`] the wanted level.
    fn make(&self, step: S) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Removes a step; what is not there is removed.
    fn remove(&self, step: S) -> impl Future<Output = Result<(), Self::Error>> + Send;
    /// Hears of an action that failed, before anything follows from it.
    fn failed(&self, _action: Action<S>, _error: &Self::Error) {}

    /// How the names of its failpoints begin.
    #[cfg(feature = "failpoints")]
    const KIND: &'static str;
    /// What a failpoint fails with.
    #[cfg(feature = "failpoints")]
    fn injected(source: std::io::Error) -> Self::Error;
}

/// Why a drive did not reach what was wanted.
#[derive(Debug)]
pub struct Failure<E> {
    /// What went wrong first.
    pub first: E,
    /// What went wrong after it, while it was undone.
    pub further: Vec<E>,
    /// Something could not be removed or recorded; the record says that it is owed.
    pub owed: bool,
}

/// Runs the drive to its end. Not cancel-safe: callers run it in a task of its own.
pub async fn execute<S: Step, H: Host<S>>(host: &H, mut drive: Drive<S>) -> Result<(), Failure<H::Error>> {
    let act = async |action: Action<S>| {
        failpoint!(failpoints::before(H::KIND, action), H::injected);
        match action {
            Action::Write(mark) => host.write(mark).instrument(info_span!("mark", step = ?mark)).await,
            Action::Make(step) => host.make(step).instrument(info_span!("make", ?step)).await,
            Action::Remove(step) => host.remove(step).instrument(info_span!("remove", ?step)).await,
        }?;
        failpoint!(failpoints::after(H::KIND, action), H::injected);
        Ok(())
    };
    let run = async |action: Action<S>| {
        let result = act(action).await;
        if let Err(error) = &result {
            host.failed(action, error);
        }
        (action, result)
    };
    let mut running = FuturesUnordered::new();
    let mut errors = Vec::new();
    let outcome = loop {
        while let Some(action) = drive.next_action() {
            running.push(run(action));
        }
        if let Some((action, result)) = running.next().await {
            drive.finished(action, result.is_ok());
            errors.extend(result.err());
        } else {
            // Nothing runs and nothing can start: by the drive's rules it is over.
            break drive.outcome().unwrap_or(Outcome::Owed);
        }
    };
    let mut errors = errors.into_iter();
    match errors.next() {
        Some(first) => Err(Failure { first, further: errors.collect(), owed: outcome == Outcome::Owed }),
        None => Ok(()),
    }
}
