//! `vaina logs POD`: what a container wrote, from the files; a daemon is asked only for pods of others.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use thiserror::Error;
use tokio::sync::watch;
use vaina_proto::cri;

use super::{
    convert::{Identity, log_directory},
    daemon::{Daemon, DaemonError},
    directory::{DirectoryError, Pods},
    find::{self, FindError},
    log::{self, Line, Stream},
};
use crate::error::{Classify, Kind};

/// Arguments of `vaina logs`.
#[derive(Debug, Args)]
pub struct LogsArguments {
    /// Name of the pod
    pod: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The container; the pod's first if it is not named
    #[arg(short, long)]
    container: Option<String>,
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// The attempt before this one
    #[arg(short, long)]
    previous: bool,
    /// Each line with its time
    #[arg(long)]
    timestamps: bool,
}

/// Why there are no lines.
#[derive(Debug, Error)]
pub enum LogsError {
    /// What `vaina run` left.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The pod or the container.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// Its log.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It has no log yet, or never had a previous one.
    #[error("find a log of {which} container {container}: it has not been started{}", if *.previous { " more than once" } else { " yet" })]
    None {
        /// The container.
        container: String,
        /// `the` or `the previous`.
        which: &'static str,
        /// Asked for the attempt before.
        previous: bool,
    },
}

impl Classify for LogsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Directory(error) => error.kind(),
            Self::Find(error) => error.kind(),
            Self::Daemon(error) => error.kind(),
            Self::Read { .. } => Kind::Internal,
            Self::None { .. } => Kind::NotFound,
        }
    }
}

/// Writes the lines to our own standard output and error.
pub(super) async fn run(arguments: LogsArguments, daemon: Daemon, pods: Pods) -> Result<(), LogsError> {
    let none = |container: String| {
        let previous = arguments.previous;
        LogsError::None { container, which: if previous { "the previous" } else { "the" }, previous }
    };
    let path = match pods.find(&arguments.namespace, &arguments.pod)? {
        Some((directory, record)) => {
            let spec = record.pod.spec.clone().unwrap_or_default();
            let names: Vec<String> = spec.containers.into_iter().map(|container| container.name).collect();
            let container = find::choose(&arguments.pod, &names, arguments.container.as_deref())?;
            let logs = log_directory(&directory.paths().logs, Identity::of(&record.pod)).join(&container);
            attempt(&logs, arguments.previous).ok_or_else(|| none(container))?
        }
        None => {
            let found = find::containers(&daemon, &arguments.namespace, &arguments.pod).await?;
            let names: Vec<String> = found.iter().map(|one| find::name(one).to_owned()).collect();
            let container = find::choose(&arguments.pod, &names, arguments.container.as_deref())?;
            let mut attempts: Vec<&cri::Container> = found.iter().filter(|one| find::name(one) == container).collect();
            attempts.sort_by_key(|one| std::cmp::Reverse(find::attempt(one)));
            let chosen = attempts.get(usize::from(arguments.previous)).ok_or_else(|| none(container.clone()))?;
            let answer = daemon.container(&chosen.id, false).await?;
            answer.status.map(|status| status.log_path.into()).ok_or_else(|| none(container))?
        }
    };
    let failed = |source| LogsError::Read { path: path.clone(), source };
    let skipped = match arguments.tail {
        None => 0,
        Some(tail) => {
            let mut count = 0usize;
            log::follow(&path, watch::channel(true).1, |_| count += 1).await.map_err(failed)?;
            count.saturating_sub(tail)
        }
    };
    let (done, is_done) = watch::channel(!arguments.follow);
    let watcher = tokio::spawn(ended(path.clone(), daemon, done));
    let mut number = 0;
    let result = log::follow(&path, is_done, |line| {
        number += 1;
        if number > skipped {
            print(&line, arguments.timestamps);
        }
    })
    .await;
    watcher.abort();
    result.map_err(failed)
}

/// The newest log of a container, or the one before.
fn attempt(logs: &Path, is_previous: bool) -> Option<PathBuf> {
    let mut attempts: Vec<u32> = fs::read_dir(logs)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    attempts.sort_unstable_by(|a, b| b.cmp(a));
    attempts.get(usize::from(is_previous)).map(|attempt| logs.join(format!("{attempt}.log")))
}

/// Says when nothing more will be written to a log: its container has ended, or its file is gone.
async fn ended(path: PathBuf, daemon: Daemon, done: watch::Sender<bool>) {
    const LOOK: Duration = Duration::from_millis(500);
    loop {
        // The first look is after a while: a log that is there is shown at once either way.
        tokio::time::sleep(LOOK).await;
        if !path.exists() || !is_written(&path, &daemon).await {
            let _ = done.send(true);
            return;
        }
    }
}

/// Whether a running container has this log. Nobody who could tell: it may.
async fn is_written(path: &Path, daemon: &Daemon) -> bool {
    let running = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() };
    let filter = cri::ContainerFilter { state: Some(running), ..Default::default() };
    let request = cri::ListContainersRequest { filter: Some(filter) };
    let Ok(answer) = daemon.runtime().list_containers(request).await else { return true };
    for container in answer.into_inner().containers {
        let request = cri::ContainerStatusRequest { container_id: container.id, verbose: false };
        if let Ok(answer) = daemon.runtime().container_status(request).await
            && answer.into_inner().status.is_some_and(|status| Path::new(&status.log_path) == path)
        {
            return true;
        }
    }
    false
}

fn print(line: &Line, with_time: bool) {
    let mut bytes = Vec::with_capacity(line.text.len() + line.time.len() + 2);
    if with_time {
        bytes.extend_from_slice(line.time.as_bytes());
        bytes.push(b' ');
    }
    bytes.extend_from_slice(&line.text);
    bytes.push(b'\n');
    let result = match line.stream {
        Stream::Out => io::stdout().lock().write_all(&bytes),
        Stream::Err => io::stderr().lock().write_all(&bytes),
    };
    if result.is_err() {
        // Nobody reads any more (`| head`): as other filters do.
        std::process::exit(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_counted_by_number() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(attempt(dir.path(), false), None);
        for name in ["2.log", "10.log", "9.log", "9.log.20260101", "x.log"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(attempt(dir.path(), false), Some(dir.path().join("10.log")));
        assert_eq!(attempt(dir.path(), true), Some(dir.path().join("9.log")));
    }
}
