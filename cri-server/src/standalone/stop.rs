//! `vaina stop POD`: ends a pod, whoever runs it, and also if nobody does any more.

use std::{
    io,
    time::{Duration, Instant},
};

use clap::Args;
use thiserror::Error;

use super::{
    convert,
    daemon::{Daemon, DaemonError},
    directory::{DirectoryError, PodDirectory, Pods, Stop},
    end::{self, SMALL_GRACE},
    pod::grace_period,
};
use crate::error::{Classify, Kind};

/// What remains to be done after the last container was killed.
const REMOVAL_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);

/// Arguments of `vaina stop`.
#[derive(Debug, Args)]
pub struct StopArguments {
    /// Names of pods
    #[arg(required = true, value_name = "POD")]
    pods: Vec<String>,
    /// Their namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    grace: Grace,
}

/// How long containers may take to end.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Grace {
    /// Seconds from the stop signal to the kill, instead of the pod's terminationGracePeriodSeconds; 0 only with --force
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    grace_period: Option<i64>,
    /// End at once; containers still get 2 seconds
    #[arg(long)]
    force: bool,
}

/// A grace period that can't be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GraceError {
    /// Less than nothing.
    #[error("read --grace-period: {0} is negative")]
    Negative(i64),
    /// Zero is a kill.
    #[error("read --grace-period: 0 needs --force")]
    Zero,
    /// With time to end nothing is forced.
    #[error("read --force: it goes with --grace-period=0 only")]
    Forced,
}

impl Grace {
    /// Nothing: each pod's own.
    pub(super) fn period(self) -> Result<Option<Duration>, GraceError> {
        match (self.grace_period, self.force) {
            (None, false) => Ok(None),
            (None | Some(0), true) => Ok(Some(SMALL_GRACE)),
            (Some(0), false) => Err(GraceError::Zero),
            (Some(seconds), is_forced) => match u64::try_from(seconds) {
                Err(_) => Err(GraceError::Negative(seconds)),
                Ok(_) if is_forced => Err(GraceError::Forced),
                Ok(seconds) => Ok(Some(Duration::from_secs(seconds).max(SMALL_GRACE))),
            },
        }
    }
}

/// Why a pod was not ended.
#[derive(Debug, Error)]
pub enum StopError {
    /// The flags.
    #[error(transparent)]
    Grace(#[from] GraceError),
    /// None of that name.
    #[error("find pod {namespace}/{name}: vaina run has started none of this name")]
    NotFound {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Its directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Its lock.
    #[error("look whether the pod's runner lives")]
    Hold(#[source] io::Error),
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Its runner does not get on.
    #[error("wait for pod {namespace}/{name}: its runner has not removed it in time{}", waiting(running))]
    Slow {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What still runs.
        running: Vec<String>,
    },
}

impl Classify for StopError {
    fn kind(&self) -> Kind {
        match self {
            Self::Grace(_) => Kind::InvalidArgument,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Directory(error) => error.kind(),
            Self::Hold(_) => Kind::Internal,
            Self::Daemon(error) => error.kind(),
            Self::Slow { .. } => Kind::DeadlineExceeded,
        }
    }
}

fn waiting(running: &[String]) -> String {
    if running.is_empty() { String::new() } else { format!("; {} still run", running.join(", ")) }
}

/// Ends the pods and waits until nothing of them is left.
pub(super) async fn run(arguments: StopArguments, daemon: Daemon, pods: Pods) -> Result<(), StopError> {
    let grace = arguments.grace.period()?;
    let mut found = Vec::new();
    for name in arguments.pods {
        let namespace = arguments.namespace.clone();
        match pods.find(&namespace, &name)? {
            Some((directory, record)) => found.push((namespace, name, directory, record)),
            None => return Err(StopError::NotFound { namespace, name }),
        }
    }
    // All know it before one is waited for.
    for (_, _, directory, record) in &found {
        directory.request_stop(Stop::within(grace.unwrap_or_else(|| grace_period(&convert::spec(&record.pod)))))?;
    }
    super::pod::all(
        found.into_iter().map(|(namespace, name, directory, _)| end_one(&daemon, namespace, name, directory)),
    )
    .await
}

async fn end_one(daemon: &Daemon, namespace: String, name: String, directory: PodDirectory) -> Result<(), StopError> {
    let left = directory.stop().map_or(SMALL_GRACE, Stop::left).max(SMALL_GRACE);
    let limit = Instant::now() + left + REMOVAL_LIMIT;
    let mut directory = directory;
    loop {
        if !directory.exists() {
            return Ok(());
        }
        let same = directory.other();
        match directory.hold() {
            // Nobody runs it: it is ours to end.
            Ok(Some(held)) => {
                daemon.ensure().await?;
                end::stop_containers(daemon, &held).await?;
                end::remove_sandboxes(daemon, &held).await?;
                held.remove()?;
                return Ok(());
            }
            Ok(None) => {}
            // It went between the two looks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StopError::Hold(error)),
        }
        directory = same;
        if Instant::now() > limit {
            let running = end::running(daemon, &directory).await.unwrap_or_default();
            return Err(StopError::Slow { namespace, name, running });
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_periods() {
        let period = |grace_period, force| Grace { grace_period, force }.period();
        assert_eq!(period(None, false), Ok(None));
        assert_eq!(period(Some(5), false), Ok(Some(Duration::from_secs(5))));
        assert_eq!(period(Some(1), false), Ok(Some(SMALL_GRACE)));
        assert_eq!(period(Some(0), true), Ok(Some(SMALL_GRACE)));
        assert_eq!(period(None, true), Ok(Some(SMALL_GRACE)));
        assert_eq!(period(Some(0), false), Err(GraceError::Zero));
        assert_eq!(period(Some(3), true), Err(GraceError::Forced));
        assert_eq!(period(Some(-1), false), Err(GraceError::Negative(-1)));
    }
}
