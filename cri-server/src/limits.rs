//! Limits of control groups where no OCI runtime sets them: a pod's own group, and what runtimes leave out of an update.
//! Also what a group's limits are now, to be brought back exactly. Blocking.
//!
//! The kernel ties some files together (memory and swap in v1, period and quota), and which has to be written first
//! depends on both the old and the new values. So files are written round by round as long as a round gets further.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use vaina_proto::cri::LinuxContainerResources;
use vaina_sys::cgroup::Hierarchies;

/// A file of a group and what is to be in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limit {
    path: PathBuf,
    value: String,
}

/// A limit that the kernel did not take.
#[derive(Debug, thiserror::Error)]
#[error("write {value:?} to {}", .path.display())]
pub(crate) struct LimitError {
    path: PathBuf,
    value: String,
    pub(crate) source: io::Error,
}

/// Files that hold limits, by controller of v1.
const V1: &[(&str, &[&str])] = &[
    ("cpu", &["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"]),
    ("cpuset", &["cpuset.cpus", "cpuset.mems"]),
    ("memory", &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]),
];

/// The same of v2.
const V2: &[&str] = &[
    "cpu.weight",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.max",
    "memory.swap.max",
    "memory.high",
    "memory.low",
    "memory.min",
    "pids.max",
];

/// The directory of a group that has a controller's files.
fn directory(cgroups: &Hierarchies, group: &Path, controller: &str) -> Option<PathBuf> {
    let root = if cgroups.is_v2() { cgroups.v2.as_deref() } else { cgroups.controller(controller) };
    Some(root?.join(group.strip_prefix("/").unwrap_or(group)))
}

/// The group's limits as they are; `further` are the names of files of v2 beside the usual ones.
pub(crate) fn current<'a>(
    cgroups: &Hierarchies,
    group: &Path,
    further: impl IntoIterator<Item = &'a String>,
) -> Vec<Limit> {
    let mut paths = Vec::new();
    let mut add = |controller: &str, names: &mut dyn Iterator<Item = &str>| {
        if let Some(directory) = directory(cgroups, group, controller) {
            paths.extend(names.map(|name| directory.join(name)));
        }
    };
    if cgroups.is_v2() {
        add("", &mut V2.iter().copied().chain(further.into_iter().map(String::as_str)));
    } else {
        for (controller, names) in V1 {
            add(controller, &mut names.iter().copied());
        }
    }
    if let Some(directory) = directory(cgroups, group, "hugetlb") {
        let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        paths.extend(names.filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("hugetlb.") && (name.ends_with(".max") || name.ends_with(".limit_in_bytes"))
        }));
    }
    paths
        .into_iter()
        .filter_map(|path| Some(Limit { value: fs::read_to_string(&path).ok()?.trim().to_owned(), path }))
        .collect()
}

/// What OCI runtimes leave out of an update: the end of a quota, huge pages, and single files of v2.
pub(crate) fn further(cgroups: &Hierarchies, group: &Path, wanted: &LinuxContainerResources) -> Vec<Limit> {
    let mut limits = Vec::new();
    if wanted.cpu_quota < 0
        && let Some(directory) = directory(cgroups, group, "cpu")
    {
        let (name, value) = if cgroups.is_v2() {
            ("cpu.max", format!("max {}", period(wanted)))
        } else {
            ("cpu.cfs_quota_us", "-1".to_owned())
        };
        limits.push(Limit { path: directory.join(name), value });
    }
    if let Some(directory) = directory(cgroups, group, "hugetlb").filter(|directory| directory.is_dir()) {
        for page in &wanted.hugepage_limits {
            let endings: [&str; 2] =
                if cgroups.is_v2() { ["max", "rsvd.max"] } else { ["limit_in_bytes", "rsvd.limit_in_bytes"] };
            for ending in endings {
                let path = directory.join(format!("hugetlb.{}.{ending}", page.page_size));
                // Reservations are counted since 5.7, and sizes that the machine lacks can't be limited.
                if path.exists() {
                    limits.push(Limit { path, value: page.limit.to_string() });
                }
            }
        }
    }
    if cgroups.is_v2()
        && let Some(directory) = directory(cgroups, group, "")
    {
        let lines = wanted.unified.iter().map(|(name, value)| (directory.join(name), value));
        limits.extend(lines.map(|(path, value)| Limit { path, value: value.trim().to_owned() }));
    }
    limits
}

/// All limits of a pod's own group: those of its resources with the overhead on top.
pub(crate) fn of_pod(
    cgroups: &Hierarchies,
    group: &Path,
    resources: &LinuxContainerResources,
    overhead: &LinuxContainerResources,
) -> Vec<Limit> {
    let total = with_overhead(resources, overhead);
    let mut limits = Vec::new();
    let mut add = |controller: &str, name: &str, value: String| {
        if let Some(path) = directory(cgroups, group, controller).map(|directory| directory.join(name))
            && path.exists()
        {
            limits.push(Limit { path, value });
        }
    };
    let period = period(&total);
    if cgroups.is_v2() {
        if total.cpu_shares > 0 {
            add("", "cpu.weight", weight(total.cpu_shares).to_string());
        }
        if total.cpu_quota > 0 {
            add("", "cpu.max", format!("{} {period}", total.cpu_quota));
        }
        if total.memory_limit_in_bytes != 0 {
            let limit = total.memory_limit_in_bytes;
            add("", "memory.max", if limit < 0 { "max".to_owned() } else { limit.to_string() });
        }
    } else {
        if total.cpu_shares > 0 {
            add("cpu", "cpu.shares", total.cpu_shares.to_string());
        }
        if total.cpu_quota > 0 {
            add("cpu", "cpu.cfs_period_us", period.to_string());
            add("cpu", "cpu.cfs_quota_us", total.cpu_quota.to_string());
        }
        if total.memory_limit_in_bytes != 0 {
            add("memory", "memory.limit_in_bytes", total.memory_limit_in_bytes.max(-1).to_string());
        }
    }
    if !total.cpuset_cpus.is_empty() {
        add("cpuset", "cpuset.cpus", total.cpuset_cpus.clone());
    }
    if !total.cpuset_mems.is_empty() {
        add("cpuset", "cpuset.mems", total.cpuset_mems.clone());
    }
    limits.extend(further(cgroups, group, &total));
    limits
}

fn with_overhead(resources: &LinuxContainerResources, overhead: &LinuxContainerResources) -> LinuxContainerResources {
    let mut total = resources.clone();
    let add = |own: &mut i64, more: i64| {
        // Without a limit there is nothing to add to.
        if *own > 0 && more > 0 {
            *own = own.saturating_add(more);
        }
    };
    add(&mut total.cpu_shares, overhead.cpu_shares);
    add(&mut total.memory_limit_in_bytes, overhead.memory_limit_in_bytes);
    add(&mut total.cpu_quota, overhead.cpu_quota.saturating_mul(period(resources)) / period(overhead));
    total
}

/// Microseconds that a quota is of; the kernel's default if nobody says.
fn period(resources: &LinuxContainerResources) -> i64 {
    if resources.cpu_period > 0 { resources.cpu_period } else { 100_000 }
}

/// The weight of v2 that stands for a number of shares: 1024 is the default of both, and the ends of the ranges meet. The
/// curve is that of current OCI runtimes, by which small requests are not crushed.
pub(crate) fn weight(shares: i64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        shares => {
            #[expect(clippy::cast_precision_loss, reason = "fewer than 2^18")]
            let l = (shares as f64).log2();
            let weight = 10_f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0);
            // Without the tail of the logarithm, which would lift whole numbers to the next.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10000")]
            let weight = (weight - 1e-9).ceil() as u64;
            weight.clamp(1, 10_000)
        }
    }
}

impl Limit {
    /// Whether it is the limit of this name.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.path.file_name().is_some_and(|own| own == name)
    }
}

/// Writes what differs, all of it; an error can leave some written.
pub(crate) fn apply(limits: &[Limit]) -> Result<(), LimitError> {
    let mut left: Vec<&Limit> = limits.iter().filter(|limit| !is_in_force(limit)).collect();
    loop {
        let before = left.len();
        let mut first = None;
        left.retain(|limit| match fs::write(&limit.path, &limit.value) {
            Ok(()) => false,
            Err(source) => {
                let Limit { path, value } = (*limit).clone();
                first.get_or_insert(LimitError { path, value, source });
                true
            }
        });
        match first {
            None => return Ok(()),
            Some(error) if left.len() == before => return Err(error),
            Some(_) => {}
        }
    }
}

fn is_in_force(limit: &Limit) -> bool {
    fs::read_to_string(&limit.path).is_ok_and(|text| text.trim() == limit.value)
}

/// Writes what differs, or leaves all as it was.
pub(crate) fn apply_or_restore(limits: &[Limit]) -> Result<(), LimitError> {
    let before: Vec<Limit> = limits
        .iter()
        .filter_map(|limit| {
            let value = fs::read_to_string(&limit.path).ok()?.trim().to_owned();
            Some(Limit { path: limit.path.clone(), value })
        })
        .collect();
    apply(limits).inspect_err(|_| {
        if let Err(error) = apply(&before) {
            tracing::warn!(error = %crate::error::Chain(&error), "limits are not brought back");
        }
    })
}

/// Brings memory down to a limit before it is set, so that the container is not killed by it. Answers the usage if it stays
/// above. On v2 the group is throttled from here on, so that it does not grow meanwhile; the caller brings `memory.high`
/// back.
pub(crate) fn shrink(cgroups: &Hierarchies, group: &Path, limit: u64) -> Result<Option<u64>, LimitError> {
    let Some(directory) = directory(cgroups, group, "memory") else { return Ok(None) };
    let (usage, brake) = if cgroups.is_v2() {
        ("memory.current", "memory.high")
    } else {
        // Which v1 does not set while more is in use.
        ("memory.usage_in_bytes", "memory.limit_in_bytes")
    };
    let usage = directory.join(usage);
    let above = || {
        let usage: Option<u64> = fs::read_to_string(&usage).ok().and_then(|text| text.trim().parse().ok());
        usage.filter(|usage| *usage > limit)
    };
    let Some(before) = above() else { return Ok(None) };
    let path = directory.join(brake);
    match fs::write(&path, limit.to_string()) {
        Ok(()) => Ok(above()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(Some(above().unwrap_or(before))),
        Err(source) => Err(LimitError { path, value: limit.to_string(), source }),
    }
}

#[cfg(test)]
mod tests {
    use vaina_proto::cri::HugepageLimit;

    use super::*;

    #[test]
    fn weights_follow_the_curve() {
        for (shares, wanted) in
            [(0, 1), (2, 1), (102, 17), (512, 59), (1024, 100), (2000, 170), (262_144, 10_000), (i64::MAX, 10_000)]
        {
            assert_eq!(weight(shares), wanted, "{shares}");
        }
    }

    #[test]
    fn overhead_comes_on_top_of_limits() {
        let resources = LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 20_000,
            cpu_period: 50_000,
            memory_limit_in_bytes: 100,
            ..Default::default()
        };
        let overhead = LinuxContainerResources {
            cpu_shares: 256,
            cpu_quota: 10_000,
            memory_limit_in_bytes: 11,
            ..Default::default()
        };
        let total = with_overhead(&resources, &overhead);
        assert_eq!((total.cpu_shares, total.cpu_quota, total.memory_limit_in_bytes), (768, 25_000, 111));
        let none = with_overhead(&LinuxContainerResources::default(), &overhead);
        assert_eq!(none, LinuxContainerResources::default(), "no limit stays none");
    }

    fn v2(root: &Path) -> Hierarchies {
        Hierarchies { v1: Vec::new(), v2: Some(root.to_owned()) }
    }

    #[test]
    fn limits_are_read_written_and_brought_back() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("pod");
        fs::create_dir(&group).unwrap();
        for (name, value) in [
            ("cpu.max", "max 100000\n"),
            ("cpu.weight", "100\n"),
            ("memory.max", "max\n"),
            ("memory.high", "max\n"),
            ("hugetlb.2MB.max", "max\n"),
        ] {
            fs::write(group.join(name), value).unwrap();
        }
        let cgroups = v2(root.path());
        let before = current(&cgroups, Path::new("/pod"), &["io.weight".to_owned()]);
        assert_eq!(before.len(), 5, "{before:?}");
        let resources = LinuxContainerResources {
            cpu_shares: 1024,
            cpu_quota: 5000,
            memory_limit_in_bytes: 77,
            hugepage_limits: ["2MB", "1GB"]
                .map(|size| HugepageLimit { page_size: size.into(), limit: 4_194_304 })
                .into(),
            unified: [("memory.high".to_owned(), "70".to_owned())].into(),
            ..Default::default()
        };
        let limits = of_pod(&cgroups, Path::new("/pod"), &resources, &LinuxContainerResources::default());
        apply(&limits).unwrap();
        let read = |name: &str| fs::read_to_string(group.join(name)).unwrap();
        assert_eq!(
            (read("cpu.max"), read("memory.max"), read("memory.high")),
            ("5000 100000".into(), "77".into(), "70".into())
        );
        assert_eq!(read("hugetlb.2MB.max"), "4194304");
        assert_eq!(read("cpu.weight"), "100\n", "it was so already");
        apply(&before).unwrap();
        assert_eq!((read("cpu.max"), read("memory.high")), ("max 100000".into(), "max".into()));

        // A directory can't be written.
        fs::create_dir(group.join("memory.low")).unwrap();
        let bad = Limit { path: group.join("memory.low"), value: "1".into() };
        let good = Limit { path: group.join("memory.max"), value: "5".into() };
        let error = apply_or_restore(&[bad, good]).unwrap_err();
        assert!(error.to_string().contains("memory.low"), "{error}");
        assert_eq!(read("memory.max"), "max");
    }

    #[test]
    fn memory_that_stays_is_told() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("memory.current"), "1000\n").unwrap();
        let cgroups = v2(root.path());
        assert_eq!(shrink(&cgroups, Path::new("/"), 1000).unwrap(), None);
        assert!(!root.path().join("memory.high").exists(), "nothing is touched");
        assert_eq!(shrink(&cgroups, Path::new("/"), 999).unwrap(), Some(1000));
        assert_eq!(fs::read_to_string(root.path().join("memory.high")).unwrap(), "999");
    }
}
