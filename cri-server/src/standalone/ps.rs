//! `vaina ps`: pods and their containers.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use clap::Args;
use thiserror::Error;
use vaina_proto::cri;

use super::{
    convert::Identity,
    daemon::{Daemon, DaemonError},
    directory::{DirectoryError, Pods, Waiting, unix_milliseconds},
    pod::age,
};
use crate::error::{Chain, Classify, Kind};

/// Arguments of `vaina ps`.
#[derive(Debug, Args)]
pub struct PsArguments {
    /// Only pods, not their containers
    #[arg(short, long)]
    pods: bool,
    /// Only pods of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Why there is no list.
#[derive(Debug, Error)]
pub enum PsError {
    /// What `vaina run` left.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl Classify for PsError {
    fn kind(&self) -> Kind {
        match self {
            Self::Directory(error) => error.kind(),
        }
    }
}

/// The table, and a word for standard error when it is not all.
pub(super) struct Shown {
    pub(super) table: String,
    pub(super) note: Option<String>,
}

impl Shown {
    /// Prints both; the exit code is 0.
    pub(super) fn print(&self) -> u8 {
        if let Some(note) = &self.note {
            eprintln!("vaina: {note}");
        }
        // A reader that left has what it wanted.
        let _ = io::stdout().lock().write_all(self.table.as_bytes());
        0
    }
}

/// Looks at all pods.
pub(super) async fn run(arguments: PsArguments, daemon: Daemon, pods: Pods) -> Result<Shown, PsError> {
    let mut rows = Vec::new();
    let mut note = None;
    let mut own = BTreeMap::new();
    for directory in pods.list()? {
        if let Some(record) = directory.record() {
            own.insert(directory.uid(), (directory, record));
        }
    }
    match seen(&daemon).await {
        Ok((sandboxes, containers, addresses)) => {
            for sandbox in sandboxes {
                let metadata = sandbox.metadata.clone().unwrap_or_default();
                let standalone = own.remove(&metadata.uid);
                let (is_terminating, waiting) = match &standalone {
                    Some((directory, _)) => (directory.stop().is_some(), directory.waiting()),
                    None => (false, BTreeMap::new()),
                };
                rows.push(Row {
                    namespace: metadata.namespace,
                    name: metadata.name,
                    wanted: standalone.as_ref().map(|(_, record)| containers_of(&record.pod)),
                    containers: newest(containers.iter().filter(|one| one.pod_sandbox_id == sandbox.id)),
                    is_ready: sandbox.state == i32::from(cri::PodSandboxState::SandboxReady),
                    is_terminating,
                    waiting,
                    address: addresses.get(&sandbox.id).cloned(),
                    age: age(sandbox.created_at),
                });
            }
        }
        Err(error) => note = Some(format!("{}; only what vaina run has started is listed", Chain(&error))),
    }
    // Those have no sandbox yet, or no more, or nobody can tell.
    for (directory, record) in own.into_values() {
        let identity = Identity::of(&record.pod);
        let now = unix_milliseconds(SystemTime::now());
        rows.push(Row {
            namespace: identity.namespace.to_owned(),
            name: identity.name.to_owned(),
            wanted: Some(containers_of(&record.pod)),
            containers: Vec::new(),
            is_ready: note.is_none(),
            is_terminating: directory.stop().is_some(),
            waiting: directory.waiting(),
            address: None,
            age: Duration::from_millis(now.saturating_sub(record.created_at)),
        });
    }
    rows.retain(|row| arguments.namespace.as_ref().is_none_or(|namespace| *namespace == row.namespace));
    rows.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Ok(Shown { table: table(&rows, !arguments.pods), note })
}

type Seen = (Vec<cri::PodSandbox>, Vec<cri::Container>, BTreeMap<String, String>);

async fn seen(daemon: &Daemon) -> Result<Seen, DaemonError> {
    let sandboxes = daemon.sandboxes(cri::PodSandboxFilter::default()).await?;
    let containers = daemon.containers(cri::ContainerFilter::default()).await?;
    let mut addresses = BTreeMap::new();
    for sandbox in &sandboxes {
        let answer = daemon.sandbox(&sandbox.id, false).await;
        // One that went meanwhile has no address.
        let network = answer.ok().and_then(|answer| answer.status?.network);
        if let Some(network) = network.filter(|network| !network.ip.is_empty()) {
            addresses.insert(sandbox.id.clone(), network.ip);
        }
    }
    Ok((sandboxes, containers, addresses))
}

#[derive(Debug)]
struct Row {
    namespace: String,
    name: String,
    /// Names of its containers, where the manifest is known.
    wanted: Option<Vec<String>>,
    /// The newest attempt of each.
    containers: Vec<cri::Container>,
    is_ready: bool,
    is_terminating: bool,
    waiting: BTreeMap<String, Waiting>,
    address: Option<String>,
    age: Duration,
}

impl Row {
    fn running(&self) -> usize {
        self.containers.iter().filter(|container| is(container, cri::ContainerState::ContainerRunning)).count()
    }

    fn total(&self) -> usize {
        self.wanted.as_ref().map_or(self.containers.len(), Vec::len)
    }

    fn restarts(&self) -> u32 {
        self.containers.iter().map(attempt).sum()
    }

    fn phase(&self) -> String {
        if self.is_terminating {
            return "Terminating".to_owned();
        }
        if let Some(waiting) = self.waiting.values().next() {
            return waiting.reason.clone();
        }
        if !self.is_ready {
            return "Unknown".to_owned();
        }
        let running = self.running();
        let is_over = |container: &cri::Container| is(container, cri::ContainerState::ContainerExited);
        if running > 0 {
            "Running".to_owned()
        } else if !self.containers.is_empty() && self.containers.iter().all(is_over) {
            "Completed".to_owned()
        } else {
            "Pending".to_owned()
        }
    }
}

fn containers_of(pod: &k8s_openapi::api::core::v1::Pod) -> Vec<String> {
    pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| container.name.clone()).collect()
}

fn newest<'a>(containers: impl Iterator<Item = &'a cri::Container>) -> Vec<cri::Container> {
    let mut newest: BTreeMap<String, cri::Container> = BTreeMap::new();
    for container in containers {
        let name = container.metadata.clone().unwrap_or_default().name;
        match newest.get(&name) {
            Some(other) if attempt(other) >= attempt(container) => {}
            _ => {
                newest.insert(name, container.clone());
            }
        }
    }
    newest.into_values().collect()
}

fn attempt(container: &cri::Container) -> u32 {
    container.metadata.as_ref().map_or(0, |metadata| metadata.attempt)
}

fn is(container: &cri::Container, state: cri::ContainerState) -> bool {
    container.state == i32::from(state)
}

fn table(rows: &[Row], with_containers: bool) -> String {
    let mut lines: Vec<[String; 7]> =
        vec![["NAMESPACE", "NAME", "PHASE", "READY", "RESTARTS", "IP", "AGE"].map(str::to_owned)];
    for row in rows {
        lines.push([
            row.namespace.clone(),
            row.name.clone(),
            row.phase(),
            format!("{}/{}", row.running(), row.total()),
            row.restarts().to_string(),
            row.address.clone().unwrap_or_else(|| "-".to_owned()),
            short(row.age),
        ]);
        if !with_containers {
            continue;
        }
        for container in &row.containers {
            let name = container.metadata.clone().unwrap_or_default().name;
            let state = match row.waiting.get(&name) {
                Some(waiting) => {
                    let now = unix_milliseconds(SystemTime::now());
                    let left = Duration::from_millis(waiting.until.saturating_sub(now));
                    format!("{} {}", waiting.reason, short(left))
                }
                None if is(container, cri::ContainerState::ContainerRunning) => "Running".to_owned(),
                None if is(container, cri::ContainerState::ContainerExited) => "Exited".to_owned(),
                None if is(container, cri::ContainerState::ContainerCreated) => "Created".to_owned(),
                None => "Unknown".to_owned(),
            };
            lines.push([
                String::new(),
                format!("  {name}"),
                state,
                String::new(),
                attempt(container).to_string(),
                String::new(),
                short(age(container.created_at)),
            ]);
        }
    }
    let mut widths = [0; 7];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// As kubectl writes ages: `42s`, `5m`, `3h`, `2d`.
fn short(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, attempt: u32, state: cri::ContainerState) -> cri::Container {
        cri::Container {
            metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt }),
            state: state.into(),
            // Far in the past, so that the age does not change under the test.
            created_at: 1,
            ..Default::default()
        }
    }

    fn row(containers: Vec<cri::Container>) -> Row {
        Row {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            wanted: Some(vec!["a".to_owned(), "b".to_owned()]),
            containers,
            is_ready: true,
            is_terminating: false,
            waiting: BTreeMap::new(),
            address: Some("10.88.0.2".to_owned()),
            age: Duration::from_secs(42),
        }
    }

    #[test]
    fn phases() {
        use cri::ContainerState::{ContainerExited as Exited, ContainerRunning as Running};
        assert_eq!(row(vec![]).phase(), "Pending");
        assert_eq!(row(vec![container("a", 0, Running), container("b", 0, Exited)]).phase(), "Running");
        assert_eq!(row(vec![container("a", 0, Exited), container("b", 0, Exited)]).phase(), "Completed");
        assert_eq!(Row { is_ready: false, ..row(vec![]) }.phase(), "Unknown");
        let waiting = BTreeMap::from([("a".to_owned(), Waiting { reason: "CrashLoopBackOff".to_owned(), until: 0 })]);
        assert_eq!(Row { waiting: waiting.clone(), ..row(vec![]) }.phase(), "CrashLoopBackOff");
        assert_eq!(Row { waiting, is_terminating: true, ..row(vec![]) }.phase(), "Terminating");
    }

    #[test]
    fn tables() {
        let row = row(vec![container("a", 2, cri::ContainerState::ContainerRunning)]);
        let expected = "\
NAMESPACE  NAME  PHASE    READY  RESTARTS  IP         AGE
default    web   Running  1/2    2         10.88.0.2  42s
";
        assert_eq!(table(std::slice::from_ref(&row), false), expected);
        assert!(table(&[row], true).contains("\n             a   Running         2  "));
    }

    #[test]
    fn the_newest_attempt_counts() {
        use cri::ContainerState::{ContainerExited, ContainerRunning};
        let containers = [
            container("a", 1, ContainerRunning),
            container("a", 0, ContainerExited),
            container("b", 0, ContainerExited),
        ];
        let newest = newest(containers.iter());
        assert_eq!(newest.iter().map(attempt).collect::<Vec<_>>(), [1, 0]);
    }
}
