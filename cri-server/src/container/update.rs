//! `UpdateContainerResources`: other limits for a container, all of them or none.
//!
//! A limit that a request does not name stays. Of a running container the OCI runtime sets them, by way of the shim; what
//! runtimes leave out of an update (huge pages, single files of v2, the OOM score) is set here. If one is refused, all are
//! brought back to what the group's files said before.
//!
//! The record is written last, unlike elsewhere: a call that was cut short in between is repeated by the client, who sees
//! the old limits in the status, and does the same once more.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use vaina_proto::cri::LinuxContainerResources;
use vaina_sys::cgroup::Hierarchies;

use super::{
    Container, ContainerState, StateError, StepError, bundle,
    spec::{self, Host, SpecError},
    steps::Walk,
};
use crate::{
    app::App,
    error::{Chain, Classify, Kind},
    index::FindError,
    limits::{self, Limit, LimitError},
    runtime::RuntimeError,
    work::{blocking, lock},
};

/// Why limits stay as they were.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// No such container.
    #[error(transparent)]
    Find(FindError),
    /// It is in a state that has no limits.
    #[error(transparent)]
    State(StateError),
    /// Nothing for Linux.
    #[error("the request has no resources for Linux")]
    Missing,
    /// A value that can't be.
    #[error(transparent)]
    Spec(SpecError),
    /// It would be killed.
    #[error("memory limit {limit} is below what container {id} uses ({usage} bytes, after reclaim)")]
    Memory {
        /// The container.
        id: String,
        /// As asked.
        limit: u64,
        /// What can't be reclaimed.
        usage: u64,
    },
    /// The OCI runtime.
    #[error("set the container's limits")]
    Runtime(#[source] RuntimeError),
    /// The pod's shim is gone.
    #[error("set the container's limits: the pod's shim is gone")]
    NoShim,
    /// A file of its control group.
    #[error("set the container's limits")]
    Limit(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A process.
    #[error("set the OOM score of process {pid}")]
    Score {
        /// Which.
        pid: u32,
        /// Cause.
        source: io::Error,
    },
    /// Its bundle.
    #[error(transparent)]
    Bundle(bundle::BundleError),
    /// The record.
    #[error(transparent)]
    Record(StepError),
}

impl Classify for UpdateError {
    fn kind(&self) -> Kind {
        match self {
            Self::Find(source) => source.kind(),
            Self::State(source) => source.kind(),
            Self::Missing => Kind::InvalidArgument,
            Self::Spec(source) => source.kind(),
            Self::Memory { .. } => Kind::FailedPrecondition,
            Self::Runtime(source) => source.kind(),
            Self::NoShim => Kind::Unavailable,
            // What the kernel does not take is a value that can't be, here and now.
            Self::Limit(_) => Kind::FailedPrecondition,
            Self::Score { .. } => Kind::Internal,
            Self::Bundle(source) => source.kind(),
            Self::Record(source) => source.kind(),
        }
    }
}

impl From<LimitError> for UpdateError {
    fn from(error: LimitError) -> Self {
        Self::Limit(Box::new(error))
    }
}

/// Gives a container other limits.
pub async fn update(app: &Arc<App>, id: &str, asked: Option<LinuxContainerResources>) -> Result<(), UpdateError> {
    let asked = asked.ok_or(UpdateError::Missing)?;
    let container = app.index.containers.find(id).map_err(UpdateError::Find)?;
    let app = Arc::clone(app);
    app.changes.clone().run(async move { update_known(&app, &container, &asked).await }).await
}

async fn update_known(app: &App, container: &Container, asked: &LinuxContainerResources) -> Result<(), UpdateError> {
    let _changing = container.changing().await;
    let state = container.state();
    let is_running = match &state {
        ContainerState::Running(_) => true,
        // Those of a created one are set when it is started; those of an exited one only count as told.
        ContainerState::Created | ContainerState::Exited(_) if lock(&container.failure).is_none() => false,
        other => return Err(UpdateError::State(container.refuse(other))),
    };
    let old = container.resources().unwrap_or_default();
    let new = merge(&old, asked);
    let host = Host {
        cgroup_v2: app.cgroups.is_v2(),
        has_swap_accounting: bundle::has_swap_accounting(&app.cgroups),
        huge_pages: bundle::huge_pages(),
        ..Host::default()
    };
    let oci = spec::limits(&new, &host).map_err(UpdateError::Spec)?;
    spec::check_oom_score(new.oom_score_adj).map_err(UpdateError::Spec)?;
    let group = Group { cgroups: app.cgroups.clone(), path: container.cgroup(&app.config.cgroup.parent) };
    let mut before = Vec::new();
    let result = async {
        if is_running {
            before = group.set(container, &old, &new, &oci).await?;
        }
        bundle::rewrite_limits(app, container, &oci, new.oom_score_adj).await.map_err(UpdateError::Bundle)?;
        let kept = new.clone();
        Walk::new(app, container, None).put(|record| record.resources = Some(kept)).await.map_err(UpdateError::Record)
    }
    .await;
    if result.is_err() && !before.is_empty() {
        // As above, the other way round.
        group.restore(container, &before, old.oom_score_adj).await;
        let oci = spec::limits(&old, &host).unwrap_or_default();
        if let Err(error) = bundle::rewrite_limits(app, container, &oci, old.oom_score_adj).await {
            tracing::warn!(container = %container.id, error = %Chain(&error), "the spec has limits that were not set");
        }
    }
    result
}

/// The control group of a running container.
struct Group {
    cgroups: Hierarchies,
    path: PathBuf,
}

impl Group {
    /// Sets limits; answers what they were. After an error they are that again.
    async fn set(
        &self,
        container: &Container,
        old: &LinuxContainerResources,
        new: &LinuxContainerResources,
        oci: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Vec<Limit>, UpdateError> {
        let (cgroups, path, wanted) = (self.cgroups.clone(), self.path.clone(), new.clone());
        let before = blocking(move || limits::current(&cgroups, &path, wanted.unified.keys())).await;
        let result = self.set_all(container, &before, old, new, oci).await;
        if result.is_err() {
            self.restore(container, &before, old.oom_score_adj).await;
        }
        result.map(|()| before)
    }

    async fn set_all(
        &self,
        container: &Container,
        before: &[Limit],
        old: &LinuxContainerResources,
        new: &LinuxContainerResources,
        oci: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), UpdateError> {
        if let Some(limit) = u64::try_from(new.memory_limit_in_bytes).ok().filter(|limit| *limit > 0) {
            let (cgroups, path) = (self.cgroups.clone(), self.path.clone());
            if let Some(usage) = blocking(move || limits::shrink(&cgroups, &path, limit)).await? {
                return Err(UpdateError::Memory { id: container.id.to_string(), limit, usage });
            }
        }
        let shim = container.sandbox.shim().ok_or(UpdateError::NoShim)?;
        let text = serde_json::to_vec(oci).unwrap_or_default();
        shim.update_task(&container.id, text).await.map_err(UpdateError::Runtime)?;
        let (cgroups, path, wanted) = (self.cgroups.clone(), self.path.clone(), new.clone());
        // The brake of `shrink`, unless it is a wish of the client's.
        let brake: Vec<Limit> = before.iter().filter(|limit| limit.is_named("memory.high")).cloned().collect();
        blocking(move || {
            limits::apply(&brake)?;
            limits::apply(&limits::further(&cgroups, &path, &wanted))
        })
        .await?;
        if new.oom_score_adj != old.oom_score_adj {
            self.score(new.oom_score_adj).await?;
        }
        Ok(())
    }

    /// Best effort: there is nothing left to do about what fails here but to tell.
    async fn restore(&self, container: &Container, before: &[Limit], score: i64) {
        let limits = before.to_vec();
        let limited = blocking(move || limits::apply(&limits)).await.map_err(UpdateError::from);
        let scored = self.score(score).await;
        for error in [limited, scored].into_iter().filter_map(Result::err) {
            tracing::warn!(container = %container.id, error = %Chain(&error), "limits are not brought back");
        }
    }

    /// Gives all processes of the group an OOM score.
    async fn score(&self, score: i64) -> Result<(), UpdateError> {
        let (group, text) = (self.cgroups.group(&self.path), score.to_string());
        blocking(move || {
            let mut done = BTreeSet::new();
            loop {
                // Children inherit it: those that were started meanwhile have one or the other.
                let new: Vec<u32> =
                    group.pids().unwrap_or_default().into_iter().filter(|pid| !done.contains(pid)).collect();
                if new.is_empty() {
                    return Ok(());
                }
                for pid in new {
                    done.insert(pid);
                    set_score(pid, &text).map_err(|source| UpdateError::Score { pid, source })?;
                }
            }
        })
        .await
    }
}

fn set_score(pid: u32, score: &str) -> io::Result<()> {
    match fs::write(Path::new("/proc").join(pid.to_string()).join("oom_score_adj"), score) {
        // It is gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        // Without CAP_SYS_RESOURCE nobody can go lower, at the start of a container neither.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

/// The old limits where the request has none. A memory limit without a word on swap means none, as it does at the create.
fn merge(old: &LinuxContainerResources, asked: &LinuxContainerResources) -> LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &str, new: &str| if new.is_empty() { old.to_owned() } else { new.to_owned() };
    let mut hugepage_limits = old.hugepage_limits.clone();
    for page in &asked.hugepage_limits {
        hugepage_limits.retain(|known| known.page_size != page.page_size);
        hugepage_limits.push(page.clone());
    }
    let mut unified = old.unified.clone();
    unified.extend(asked.unified.iter().map(|(key, value)| (key.clone(), value.clone())));
    LinuxContainerResources {
        cpu_period: number(old.cpu_period, asked.cpu_period),
        cpu_quota: number(old.cpu_quota, asked.cpu_quota),
        cpu_shares: number(old.cpu_shares, asked.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, asked.memory_limit_in_bytes),
        oom_score_adj: number(old.oom_score_adj, asked.oom_score_adj),
        cpuset_cpus: text(&old.cpuset_cpus, &asked.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &asked.cpuset_mems),
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes: if asked.memory_limit_in_bytes != 0 {
            asked.memory_swap_limit_in_bytes
        } else {
            number(old.memory_swap_limit_in_bytes, asked.memory_swap_limit_in_bytes)
        },
    }
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::HugepageLimit;

    use super::*;

    #[test]
    fn what_is_not_asked_for_stays() {
        let page = |size: &str, limit| HugepageLimit { page_size: size.to_owned(), limit };
        let old = LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 100,
            memory_swap_limit_in_bytes: 150,
            cpuset_cpus: "0".into(),
            hugepage_limits: vec![page("2MB", 1), page("1GB", 2)],
            unified: [("memory.high".to_owned(), "9".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(merge(&old, &LinuxContainerResources::default()), old);
        let asked = LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: 200,
            hugepage_limits: vec![page("2MB", 7)],
            unified: [("io.weight".to_owned(), "5".to_owned())].into(),
            ..Default::default()
        };
        let new = merge(&old, &asked);
        assert_eq!((new.cpu_shares, new.cpu_quota, new.memory_limit_in_bytes), (512, -1, 200));
        assert_eq!(new.memory_swap_limit_in_bytes, 0, "the old sum would be below the new memory");
        assert_eq!(new.hugepage_limits, [page("1GB", 2), page("2MB", 7)]);
        assert_eq!(new.unified.len(), 2);
        assert_eq!(new.cpuset_cpus, "0");
    }
}
