//! Runs pods on a node of its own, one after the other, and collects the spans of all who take part.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};

use super::{Span, now, parse, tree::Run};
use crate::{
    build::{Container, Pod},
    node::{self, IMAGE, Node, Options},
};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// RunPodSandbox, CreateContainer and StartContainer.
    Up,
    /// StopContainer, RemoveContainer, StopPodSandbox and RemovePodSandbox.
    Down,
    /// ExecSync of a command that does nothing.
    Exec,
}

/// The runs of one kind of pod.
#[derive(Debug, Default)]
pub struct Recording {
    /// [`Subject::Up`].
    pub up: Vec<Run>,
    /// [`Subject::Down`].
    pub down: Vec<Run>,
    /// [`Subject::Exec`].
    pub exec: Vec<Run>,
}

/// What the client has seen of a run: the whole, and the calls in it.
type Seen = (Subject, Span, Vec<Span>);

/// The first pods fill caches that later ones find full.
const WARM_UP: usize = 3;

/// Runs so many pods up and down. Keeps the raw spans in `raw`, if it is named.
///
/// # Panics
/// When a call fails or a pod leaves something behind.
pub fn record(pods: usize, host_network: bool, raw: Option<&Path>) -> Result<Recording> {
    let directory = tempfile::tempdir().context("make a directory for the spans")?;
    let path = raw.map_or_else(|| directory.path().join("spans"), Path::to_owned);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        _ => {}
    }
    let path = std::path::absolute(&path)?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let environment = vec![("VAINA_SPANS".to_owned(), path.to_string_lossy().into_owned())];
    let of_node = Arc::clone(&seen);
    node::e2e_with(Options { environment, ..Options::default() }, async move |node| {
        for number in 0..pods + WARM_UP {
            let seen = run_pod(node, number, host_network).await?;
            if number >= WARM_UP {
                of_node.lock().unwrap_or_else(PoisonError::into_inner).extend(seen);
            }
        }
        Ok(())
    });
    let spans = parse(&fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?)?;
    let mut recording = Recording::default();
    for (subject, whole, calls) in seen.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let mut spans: Vec<Span> = spans.iter().filter(|span| whole.encloses(span)).cloned().collect();
        spans.extend(calls);
        let run = Run::new(whole, &spans);
        match subject {
            Subject::Up => recording.up.push(run),
            Subject::Down => recording.down.push(run),
            Subject::Exec => recording.exec.push(run),
        }
    }
    Ok(recording)
}

async fn run_pod(node: &mut Node, number: usize, host_network: bool) -> Result<Vec<Seen>> {
    let mut pod: Pod = node.pod(&format!("profile-{number}"));
    if host_network {
        pod = pod.host_network();
    }
    let container = Container::new("c", IMAGE).command(&["sleep", "1000"]);
    let cri = node.cri();

    let mut up = Watch::start(Subject::Up);
    let sandbox = node.run_pod(&pod).await?;
    up.call("RunPodSandbox");
    let id = node.create(&sandbox, &pod, &container).await?;
    up.call("CreateContainer");
    cri.start_container(&id).await?;
    up.call("StartContainer");

    let mut exec = Watch::start(Subject::Exec);
    node.exec(&id, &["true"]).await?;
    exec.call("ExecSync");

    let mut down = Watch::start(Subject::Down);
    cri.stop_container(&id, 0).await?;
    down.call("StopContainer");
    cri.remove_container(&id).await?;
    down.call("RemoveContainer");
    cri.stop_pod_sandbox(&sandbox).await?;
    down.call("StopPodSandbox");
    cri.remove_pod_sandbox(&sandbox).await?;
    down.call("RemovePodSandbox");
    Ok([up, exec, down].into_iter().map(Watch::end).collect())
}

/// The client's side of a run.
struct Watch {
    subject: Subject,
    started: i64,
    calls: Vec<Span>,
}

impl Watch {
    fn start(subject: Subject) -> Self {
        Self { subject, started: now(), calls: Vec::new() }
    }

    /// A call has just been answered; it began when the one before it was.
    fn call(&mut self, name: &str) {
        let began = self.calls.last().map_or(self.started, |call| call.end_ns);
        self.calls.push(Span::client(name, began, now()));
    }

    fn end(self) -> Seen {
        let name = match self.subject {
            Subject::Up => "pod up",
            Subject::Down => "pod down",
            Subject::Exec => "exec",
        };
        let ended = self.calls.last().map_or(self.started, |call| call.end_ns);
        (self.subject, Span::client(name, self.started, ended), self.calls)
    }
}
