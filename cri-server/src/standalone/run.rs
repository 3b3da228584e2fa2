//! `vaina run POD.yaml…`: pods in the foreground, from their manifests to their ends.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use vaina_sys::cgroup::Hierarchies;

use super::{
    back_off,
    convert::{self, Host, Identity},
    daemon::{Daemon, DaemonError},
    directory::{self, DirectoryError, PodDirectory, Pods},
    end,
    manifest::{self, ManifestError},
    pod::{self, Context, Interrupts},
    stop::{Grace, GraceError},
    terminal::{Level, Subject, Terminal},
};
use crate::{
    config,
    error::{Classify, Kind},
};

/// Arguments of `vaina run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// Pod manifests, YAML or JSON; `-` is standard input
    #[arg(required = true, value_name = "POD.yaml")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    grace: Grace,
    /// First wait of the back-off between restarts, in milliseconds
    #[arg(long, hide = true, value_name = "MS")]
    back_off: Option<u64>,
}

/// Why no pod was run.
#[derive(Debug, Error)]
pub enum RunError {
    /// A manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The flags.
    #[error(transparent)]
    Grace(#[from] GraceError),
    /// The same pod in two files.
    #[error("run pod {namespace}/{name}: it is in more than one of the files")]
    Twice {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// There is one of this name.
    #[error("run pod {namespace}/{name}: a pod of this name still {state} ({stop} ends it)")]
    Exists {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What it does.
        state: &'static str,
        /// The command.
        stop: String,
    },
    /// The pods' directories.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A pod's lock.
    #[error("look at the pods that are there")]
    Hold(#[source] std::io::Error),
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The machine.
    #[error("look at the host")]
    Host(#[source] std::io::Error),
    /// Signals.
    #[error("watch for signals")]
    Signals(#[source] std::io::Error),
}

impl Classify for RunError {
    fn kind(&self) -> Kind {
        match self {
            Self::Manifest(error) => error.kind(),
            Self::Grace(_) | Self::Twice { .. } => Kind::InvalidArgument,
            Self::Exists { .. } => Kind::AlreadyExists,
            Self::Directory(error) => error.kind(),
            Self::Daemon(error) => error.kind(),
            Self::Hold(_) | Self::Host(_) | Self::Signals(_) => Kind::Internal,
        }
    }
}

/// Runs all pods and answers with the code to exit with: 0, or that of the first pod that failed.
pub(super) async fn run(
    arguments: RunArguments,
    daemon: Daemon,
    pods: Pods,
    network: config::Network,
) -> Result<u8, RunError> {
    let grace = arguments.grace.period()?;
    let mut manifests = Vec::new();
    for file in &arguments.files {
        manifests.append(&mut manifest::read(file)?);
    }
    refuse_twins(&manifests)?;
    // Before anything is made: a signal from here on ends things in order.
    let interrupts = interrupts().map_err(RunError::Signals)?;
    let several = manifests.len() > 1;
    let back_off = arguments.back_off.map_or(back_off::BASE, Duration::from_millis);
    let started = daemon.ensure().await?;
    let context = Arc::new(Context {
        terminal: Terminal::standard(width(&manifests)),
        host: host().map_err(RunError::Host)?,
        network: Some(network),
        daemon,
        pods,
        grace,
        back_off,
        several,
    });
    if started {
        let vaina = Subject::new("vaina".to_owned(), 0);
        context.terminal.event(
            &vaina,
            Level::Normal,
            "Serving",
            "no daemon was running, so this command is the daemon while it lives",
        );
    }
    run_all(&context, manifests, &interrupts).await
}

/// Takes the names and runs the pods beside each other.
pub(super) async fn run_all(
    context: &Arc<Context>,
    manifests: Vec<Pod>,
    interrupts: &watch::Receiver<Interrupts>,
) -> Result<u8, RunError> {
    let reserved = reserve(context, manifests).await?;
    let mut color = 0;
    let mut tasks = Vec::new();
    for (pod, directory) in reserved {
        let containers = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
        let (context, interrupts) = (Arc::clone(context), interrupts.clone());
        tasks.push(tokio::spawn(async move { pod::run(&context, pod, directory, color, interrupts).await }));
        color += containers + 1;
    }
    let mut code = 0;
    for task in tasks {
        // A panic is ours: the pod is still there for `vaina stop`.
        let one = task.await.unwrap_or(70);
        if code == 0 {
            code = one;
        }
    }
    Ok(code)
}

/// Takes away what died without its runner, and makes the directories of the new pods.
async fn reserve(context: &Context, manifests: Vec<Pod>) -> Result<Vec<(Pod, PodDirectory)>, RunError> {
    let pods = context.pods.clone();
    let lock = tokio::task::spawn_blocking(move || pods.lock()).await;
    let _lock = lock.map_err(|error| RunError::Hold(error.into()))??;
    let is_wanted = |name: &str, namespace: &str| {
        manifests.iter().map(Identity::of).any(|wanted| wanted.name == name && wanted.namespace == namespace)
    };
    for directory in context.pods.list()? {
        let record = directory.record();
        let identity = record.as_ref().map(|record| Identity::of(&record.pod));
        let exists = |state| {
            let identity = identity.filter(|identity| is_wanted(identity.name, identity.namespace))?;
            Some(RunError::Exists {
                namespace: identity.namespace.to_owned(),
                name: identity.name.to_owned(),
                state,
                stop: identity.stop_command(),
            })
        };
        let is_ending = directory.stop().is_some();
        let held = match directory.hold() {
            // Its runner has just removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            held => held.map_err(RunError::Hold)?,
        };
        match held {
            None => {
                if let Some(error) = exists(if is_ending { "ends" } else { "runs" }) {
                    return Err(error);
                }
            }
            Some(directory) => {
                if !end::running(&context.daemon, &directory).await?.is_empty() {
                    if let Some(error) = exists("runs, without its runner") {
                        return Err(error);
                    }
                    continue;
                }
                end::remove_sandboxes(&context.daemon, &directory).await?;
                directory.remove()?;
            }
        }
    }
    let mut reserved = Vec::new();
    for mut pod in manifests {
        pod.metadata.uid = Some(directory::new_uid().map_err(RunError::Host)?);
        let directory = context.pods.create(&pod)?;
        reserved.push((pod, directory));
    }
    Ok(reserved)
}

fn refuse_twins(pods: &[Pod]) -> Result<(), RunError> {
    for (index, pod) in pods.iter().enumerate() {
        let Identity { name, namespace, .. } = Identity::of(pod);
        let is_same = |other: &Pod| {
            let other = Identity::of(other);
            (other.name, other.namespace) == (name, namespace)
        };
        if pods[..index].iter().any(is_same) {
            return Err(RunError::Twice { namespace: namespace.to_owned(), name: name.to_owned() });
        }
    }
    Ok(())
}

/// The widest name that lines begin with.
fn width(pods: &[Pod]) -> usize {
    let names = pods.iter().flat_map(|pod| {
        let name = Identity::of(pod).name.len();
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let several = pods.len() > 1;
        let container = move |container: &k8s_openapi::api::core::v1::Container| {
            container.name.len() + if several { name + 1 } else { 0 }
        };
        std::iter::once(name).chain(containers.map(container))
    });
    names.max().unwrap_or(0)
}

/// What of this machine shows in a pod.
pub(super) fn host() -> std::io::Result<Host> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kilobytes =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    let memory = kilobytes.map_or(0, |kilobytes: i64| kilobytes.saturating_mul(1024));
    let name = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    // Without one pods have none either.
    let etc = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let resolved = fs::read_to_string("/run/systemd/resolve/resolv.conf").ok();
    Ok(Host {
        name,
        memory,
        resolver: convert::resolver(&etc, resolved.as_deref()),
        is_cgroup_v2: Hierarchies::detect()?.is_v2(),
    })
}

/// Counts SIGINT, SIGTERM and SIGHUP: a closed terminal ends its pods as Ctrl-C does.
fn interrupts() -> std::io::Result<watch::Receiver<Interrupts>> {
    let (sender, receiver) = watch::channel(Interrupts::default());
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                sender.send_modify(|interrupts| {
                    if interrupts.count == 0 {
                        interrupts.signal = kind.as_raw_value();
                    }
                    interrupts.count += 1;
                });
            }
        });
    }
    Ok(receiver)
}
