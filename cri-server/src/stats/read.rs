//! Reads one control group, v1 or v2, and a pod's network counters. Blocking; nothing here waits for anybody, and what can't
//! be read is left out.
//!
//! Plain statistics read as few files as there can be (three of v1, seven of v2), since they are asked for every few
//! seconds for every group; the rest is read for metrics only.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use vaina_sys::cgroup::Hierarchies;

use super::parse::{self, Device, Interface, Pressure};

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// What CRI's statistics have of a pod, whose processes are those of its containers.
    Pod,
    /// What CRI's statistics have of a container.
    Container,
    /// All that metrics have.
    All,
}

/// What a control group uses at one moment.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Sample {
    pub(super) cpu: Option<Cpu>,
    pub(super) memory: Option<Memory>,
    pub(super) swap: Option<Swap>,
    pub(super) pressure: Pressures,
    /// Processes in it, or in what lies below it as well.
    pub(super) processes: Option<u64>,
    /// With [`Depth::All`] only.
    pub(super) details: Option<Details>,
}

/// Processor time in nanoseconds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cpu {
    pub(super) usage: u64,
    pub(super) user: Option<u64>,
    pub(super) system: Option<u64>,
    pub(super) throttling: Option<Throttling>,
}

/// What a quota did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Throttling {
    pub(super) periods: u64,
    pub(super) throttled_periods: u64,
    /// Nanoseconds.
    pub(super) throttled: u64,
}

/// Memory in bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) usage: u64,
    /// [`None`] without a limit.
    pub(super) limit: Option<u64>,
    pub(super) rss: u64,
    pub(super) cache: u64,
    pub(super) mapped_file: u64,
    pub(super) active_file: u64,
    pub(super) inactive_file: u64,
    pub(super) faults: u64,
    pub(super) major_faults: u64,
}

impl Memory {
    /// What can't be given back at once.
    pub(super) fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }
}

/// Swap in bytes, without the memory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swap {
    pub(super) usage: u64,
    /// [`None`] without a limit.
    pub(super) limit: Option<u64>,
}

/// Where the kernel counts it.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Pressures {
    pub(super) cpu: Option<Pressure>,
    pub(super) memory: Option<Pressure>,
    pub(super) io: Option<Pressure>,
}

/// What only metrics have.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Details {
    pub(super) memory_peak: Option<u64>,
    pub(super) memory_failures: Option<u64>,
    pub(super) memory_kernel: Option<u64>,
    pub(super) memory_reservation: Option<u64>,
    pub(super) oom_kills: Option<u64>,
    pub(super) cpu_shares: Option<u64>,
    pub(super) cpu_quota: Option<u64>,
    pub(super) cpu_period: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) threads_limit: Option<u64>,
    pub(super) descriptors: Option<u64>,
    pub(super) devices: Vec<Device>,
    pub(super) huge_pages: Vec<HugePages>,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct HugePages {
    pub(super) size: String,
    pub(super) usage: u64,
    pub(super) peak: Option<u64>,
    pub(super) failures: Option<u64>,
}

/// Where the host keeps what.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    layout: Layout,
}

#[derive(Debug, Clone)]
enum Layout {
    V1(Box<V1>),
    V2(PathBuf),
}

#[derive(Debug, Clone)]
struct V1 {
    cpu: Option<PathBuf>,
    cpuacct: Option<PathBuf>,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    blkio: Option<PathBuf>,
    hugetlb: Option<PathBuf>,
    /// The v2 tree beside them, which has no controllers but counts pressure.
    unified: Option<PathBuf>,
}

impl Reader {
    /// Of these hierarchies.
    pub(super) fn new(hierarchies: &Hierarchies) -> Self {
        let of = |name: &str| hierarchies.controller(name).map(Path::to_owned);
        let layout = match &hierarchies.v2 {
            Some(root) if hierarchies.is_v2() => Layout::V2(root.clone()),
            unified => Layout::V1(Box::new(V1 {
                cpu: of("cpu"),
                cpuacct: of("cpuacct"),
                memory: of("memory"),
                pids: of("pids"),
                blkio: of("blkio"),
                hugetlb: of("hugetlb"),
                unified: unified.clone(),
            })),
        };
        Self { layout }
    }

    /// What the group at `path` uses.
    pub(super) fn read(&self, path: &Path, depth: Depth) -> Sample {
        let path = path.strip_prefix("/").unwrap_or(path);
        match &self.layout {
            Layout::V1(roots) => roots.read(path, depth),
            Layout::V2(root) => v2(&root.join(path), depth),
        }
    }
}

/// A reader of small files with one buffer.
struct Files<'a> {
    directory: &'a Path,
    text: String,
}

impl<'a> Files<'a> {
    fn new(directory: &'a Path) -> Self {
        Self { directory, text: String::with_capacity(4096) }
    }

    fn text(&mut self, name: &str) -> Option<&str> {
        self.text.clear();
        File::open(self.directory.join(name)).ok()?.read_to_string(&mut self.text).ok()?;
        Some(&self.text)
    }

    fn number(&mut self, name: &str) -> Option<u64> {
        self.text(name).and_then(parse::number)
    }

    fn keyed<const N: usize>(&mut self, name: &str, keys: [&str; N]) -> Option<[Option<u64>; N]> {
        self.text(name).map(|text| parse::keyed(text, keys))
    }

    fn pressure(&mut self, name: &str) -> Option<Pressure> {
        self.text(name).and_then(parse::pressure)
    }
}

fn pressures(directory: &Path) -> Pressures {
    let mut files = Files::new(directory);
    Pressures {
        cpu: files.pressure("cpu.pressure"),
        memory: files.pressure("memory.pressure"),
        io: files.pressure("io.pressure"),
    }
}

fn v2(directory: &Path, depth: Depth) -> Sample {
    let mut files = Files::new(directory);
    let keys = ["usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"];
    let cpu = files.keyed("cpu.stat", keys).and_then(|[usage, user, system, periods, throttled_periods, throttled]| {
        let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
        let throttling = |periods| Throttling {
            periods,
            throttled_periods: throttled_periods.unwrap_or_default(),
            throttled: throttled.map(nanoseconds).unwrap_or_default(),
        };
        Some(Cpu {
            usage: usage.map(nanoseconds)?,
            user: user.map(nanoseconds),
            system: system.map(nanoseconds),
            throttling: periods.map(throttling),
        })
    });
    if cpu.is_none() {
        // Every group has this file.
        return Sample::default();
    }
    let usage = files.number("memory.current");
    let keys = ["anon", "file", "file_mapped", "active_file", "inactive_file", "pgfault", "pgmajfault", "kernel"];
    let mut kernel = None;
    let memory = usage.and_then(|usage| {
        let [anon, file, mapped, active, inactive, faults, major, of_kernel] = files.keyed("memory.stat", keys)?;
        kernel = of_kernel;
        Some(Memory {
            usage,
            limit: files.number("memory.max"),
            rss: anon.unwrap_or_default(),
            cache: file.unwrap_or_default(),
            mapped_file: mapped.unwrap_or_default(),
            active_file: active.unwrap_or_default(),
            inactive_file: inactive.unwrap_or_default(),
            faults: faults.unwrap_or_default(),
            major_faults: major.unwrap_or_default(),
        })
    });
    // Not there on a kernel without swap.
    let swap = files.number("memory.swap.current").map(|usage| Swap { usage, limit: files.number("memory.swap.max") });
    Sample {
        cpu,
        memory,
        swap,
        pressure: pressures(directory),
        processes: (depth != Depth::Pod).then(|| processes(directory)).flatten().map(|pids| pids.len() as u64),
        details: (depth == Depth::All).then(|| details_v2(directory, kernel)),
    }
}

fn details_v2(directory: &Path, memory_kernel: Option<u64>) -> Details {
    let mut files = Files::new(directory);
    let [max, oom_kill] = files.keyed("memory.events", ["max", "oom_kill"]).unwrap_or_default();
    let cpu_max = files.text("cpu.max").unwrap_or_default().trim().to_owned();
    let (quota, period) = cpu_max.split_once(' ').unwrap_or_default();
    let sizes = huge_page_sizes(directory, ".current");
    Details {
        memory_peak: files.number("memory.peak"),
        memory_failures: max,
        memory_kernel,
        memory_reservation: files.number("memory.low"),
        oom_kills: oom_kill,
        // The other way round than limits are set: clients know shares only.
        cpu_shares: files.number("cpu.weight").map(shares),
        cpu_quota: quota.parse().ok(),
        cpu_period: period.parse().ok(),
        threads: files.number("pids.current"),
        threads_limit: files.number("pids.max"),
        descriptors: descriptors(directory),
        devices: files.text("io.stat").map(parse::io_stat).unwrap_or_default(),
        huge_pages: sizes
            .into_iter()
            .map(|size| HugePages {
                usage: files.number(&format!("hugetlb.{size}.current")).unwrap_or_default(),
                peak: None,
                failures: files.keyed(&format!("hugetlb.{size}.events"), ["max"]).and_then(|[failures]| failures),
                size,
            })
            .collect(),
    }
}

/// The shares that a weight of v2 stands for, by the straight line that the kernel's documentation suggests.
fn shares(weight: u64) -> u64 {
    2 + weight.saturating_sub(1).saturating_mul(262_142) / 9999
}

impl V1 {
    fn read(&self, path: &Path, depth: Depth) -> Sample {
        let of = |root: &Option<PathBuf>| root.as_ref().map(|root| root.join(path));
        let mut sample = Sample::default();
        if let Some(directory) = of(&self.cpuacct) {
            let mut files = Files::new(&directory);
            sample.cpu = files.number("cpuacct.usage").map(|usage| Cpu { usage, ..Cpu::default() });
            if sample.cpu.is_none() {
                return Sample::default();
            }
            if let (Depth::All, Some(cpu)) = (depth, &mut sample.cpu) {
                cpu.user = files.number("cpuacct.usage_user");
                cpu.system = files.number("cpuacct.usage_sys");
            }
        }
        if let Some(directory) = of(&self.memory) {
            (sample.memory, sample.swap) = memory_v1(&directory);
        }
        if let Some(unified) = of(&self.unified) {
            // The group may be there without having its processes.
            let populated = Files::new(&unified).keyed("cgroup.events", ["populated"]);
            if populated == Some([Some(1)]) {
                sample.pressure = pressures(&unified);
            }
        }
        if depth != Depth::Pod {
            // Any hierarchy lists the processes.
            let any = of(&self.pids).or_else(|| of(&self.cpuacct)).or_else(|| of(&self.memory));
            sample.processes = any.as_deref().and_then(processes).map(|pids| pids.len() as u64);
        }
        if depth == Depth::All {
            sample.details = Some(self.details(path));
            if let (Some(cpu), Some(directory)) = (&mut sample.cpu, of(&self.cpu)) {
                let keys = ["nr_periods", "nr_throttled", "throttled_time"];
                cpu.throttling =
                    Files::new(&directory).keyed("cpu.stat", keys).map(|[periods, throttled, time]| Throttling {
                        periods: periods.unwrap_or_default(),
                        throttled_periods: throttled.unwrap_or_default(),
                        throttled: time.unwrap_or_default(),
                    });
            }
        }
        sample
    }

    fn details(&self, path: &Path) -> Details {
        let of = |root: &Option<PathBuf>| root.as_ref().map(|root| root.join(path)).unwrap_or_default();
        let (cpu, memory, pids) = (of(&self.cpu), of(&self.memory), of(&self.pids));
        let (blkio, hugetlb) = (of(&self.blkio), of(&self.hugetlb));
        let (mut cpu, mut memory, mut pid_files) = (Files::new(&cpu), Files::new(&memory), Files::new(&pids));
        let (mut blkio, mut pages) = (Files::new(&blkio), Files::new(&hugetlb));
        let bytes = blkio.text("blkio.throttle.io_service_bytes_recursive").unwrap_or_default().to_owned();
        let operations = blkio.text("blkio.throttle.io_serviced_recursive").unwrap_or_default();
        Details {
            memory_peak: memory.number("memory.max_usage_in_bytes"),
            memory_failures: memory.number("memory.failcnt"),
            memory_kernel: memory.number("memory.kmem.usage_in_bytes"),
            memory_reservation: memory.number("memory.soft_limit_in_bytes"),
            oom_kills: memory.keyed("memory.oom_control", ["oom_kill"]).and_then(|[kills]| kills),
            cpu_shares: cpu.number("cpu.shares"),
            cpu_quota: cpu.number("cpu.cfs_quota_us"),
            cpu_period: cpu.number("cpu.cfs_period_us"),
            threads: pid_files.number("pids.current"),
            threads_limit: pid_files.number("pids.max"),
            descriptors: descriptors(&pids),
            devices: parse::blkio(&bytes, operations),
            huge_pages: huge_page_sizes(&hugetlb, ".usage_in_bytes")
                .into_iter()
                .map(|size| HugePages {
                    usage: pages.number(&format!("hugetlb.{size}.usage_in_bytes")).unwrap_or_default(),
                    peak: pages.number(&format!("hugetlb.{size}.max_usage_in_bytes")),
                    failures: pages.number(&format!("hugetlb.{size}.failcnt")),
                    size,
                })
                .collect(),
        }
    }
}

/// One file has all but the usage; the limits in it are those of the tightest group above.
fn memory_v1(directory: &Path) -> (Option<Memory>, Option<Swap>) {
    let mut files = Files::new(directory);
    let Some(usage) = files.number("memory.usage_in_bytes") else { return (None, None) };
    let keys = [
        "total_rss",
        "total_cache",
        "total_mapped_file",
        "total_active_file",
        "total_inactive_file",
        "total_pgfault",
        "total_pgmajfault",
        "total_swap",
        "hierarchical_memory_limit",
        "hierarchical_memsw_limit",
    ];
    let Some(values) = files.keyed("memory.stat", keys) else { return (None, None) };
    let [rss, cache, mapped, active, inactive, faults, major, swap, limit, both] = values;
    let memory = Memory {
        usage,
        limit,
        rss: rss.unwrap_or_default(),
        cache: cache.unwrap_or_default(),
        mapped_file: mapped.unwrap_or_default(),
        active_file: active.unwrap_or_default(),
        inactive_file: inactive.unwrap_or_default(),
        faults: faults.unwrap_or_default(),
        major_faults: major.unwrap_or_default(),
    };
    // The second limit is of memory and swap.
    let swap_limit = both.zip(limit).map(|(both, limit)| both.saturating_sub(limit));
    (Some(memory), swap.map(|usage| Swap { usage, limit: swap_limit }))
}

/// The processes of a group and of those below it.
fn processes(directory: &Path) -> Option<Vec<u32>> {
    let mut text = String::with_capacity(1024);
    let mut pids = Vec::new();
    collect(directory, &mut text, &mut pids)?;
    Some(pids)
}

fn collect(directory: &Path, text: &mut String, pids: &mut Vec<u32>) -> Option<()> {
    let mut file = File::open(directory.join("cgroup.procs")).ok()?;
    text.clear();
    // A threaded group can't be read: its processes are counted where it hangs.
    if file.read_to_string(text).is_ok() {
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    // A directory has two links of its own and one of each directory in it, so that most need not be listed.
    if fs::metadata(directory).is_ok_and(|found| found.nlink() > 2) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                collect(&entry.path(), text, pids);
            }
        }
    }
    Some(())
}

/// Open files of all processes of a group.
fn descriptors(directory: &Path) -> Option<u64> {
    let of = |pid: u32| {
        let path = format!("/proc/{pid}/fd");
        match fs::metadata(&path).ok()?.len() {
            // A kernel before 6.2, which does not count them there.
            0 => Some(fs::read_dir(&path).ok()?.count() as u64),
            count => Some(count),
        }
    };
    Some(processes(directory)?.into_iter().filter_map(of).sum())
}

/// The sizes that files like `hugetlb.2MB.current` are there for.
fn huge_page_sizes(directory: &Path, ending: &str) -> Vec<String> {
    let mut sizes: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(ending)?;
            (!size.contains('.')).then(|| size.to_owned())
        })
        .collect();
    sizes.sort_unstable();
    sizes
}

/// The interfaces in the network namespace of a process.
pub(super) fn interfaces(pid: u32) -> Option<Vec<Interface>> {
    Some(parse::net_dev(&fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?))
}

/// The name of a block device, as `/dev/<name>`; empty if the kernel does not tell.
pub(super) fn device_name(device: &Device) -> String {
    let link = fs::read_link(format!("/sys/dev/block/{}:{}", device.major, device.minor)).unwrap_or_default();
    link.file_name().map(|name| format!("/dev/{}", name.to_string_lossy())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
    }

    const PRESSURE: &str =
        "some avg10=1.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4\n";

    #[test]
    fn a_group_of_v2() {
        let root = tempfile::tempdir().unwrap();
        let reader = Reader { layout: Layout::V2(root.path().to_owned()) };
        assert_eq!(reader.read(Path::new("/pod/c"), Depth::All), Sample::default(), "there is none");
        write(
            &root.path().join("pod/c"),
            &[
                ("cpu.stat", include_str!("recorded/v2-cpu.stat")),
                ("memory.current", "1634304\n"),
                ("memory.max", "67108864\n"),
                ("memory.stat", include_str!("recorded/v2-memory.stat")),
                ("memory.swap.current", "4096\n"),
                ("memory.swap.max", "max\n"),
                ("memory.events", "low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n"),
                ("memory.low", "0\n"),
                ("cpu.pressure", PRESSURE),
                ("cpu.max", "50000 100000\n"),
                ("cpu.weight", "39\n"),
                ("cgroup.procs", "11\n12\n"),
                ("pids.current", "5\n"),
                ("pids.max", "max\n"),
                ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
                ("hugetlb.2MB.current", "2097152\n"),
                ("hugetlb.2MB.events", "max 7\n"),
                ("hugetlb.2MB.rsvd.current", "0\n"),
            ],
        );
        write(&root.path().join("pod/c/inner"), &[("cgroup.procs", "13\n")]);
        let sample = reader.read(Path::new("/pod/c"), Depth::All);
        let throttling = Throttling { periods: 340, throttled_periods: 12, throttled: 901_234_000 };
        let cpu = Cpu {
            usage: 7_312_345_000,
            user: Some(5_100_000_000),
            system: Some(2_212_345_000),
            throttling: Some(throttling),
        };
        assert_eq!(sample.cpu, Some(cpu));
        let memory = sample.memory.unwrap();
        assert_eq!((memory.usage, memory.working_set(), memory.rss), (1_634_304, 1_626_112, 1_130_496));
        assert_eq!((memory.limit, memory.faults, memory.major_faults), (Some(67_108_864), 3201, 5));
        assert_eq!(sample.swap, Some(Swap { usage: 4096, limit: None }));
        assert_eq!(sample.pressure.cpu.map(|pressure| pressure.some.total), Some(5000));
        assert_eq!(sample.pressure.io, None);
        assert_eq!(sample.processes, Some(3), "with those below");
        assert_eq!(reader.read(Path::new("/pod/c"), Depth::Pod).processes, None);
        let details = sample.details.unwrap();
        assert_eq!(
            (details.cpu_quota, details.cpu_period, details.cpu_shares),
            (Some(50_000), Some(100_000), Some(998))
        );
        assert_eq!((details.threads, details.threads_limit, details.oom_kills), (Some(5), None, Some(1)));
        assert_eq!((details.memory_kernel, details.memory_failures), (Some(487_424), Some(3)));
        let pages = HugePages { size: "2MB".into(), usage: 2_097_152, peak: None, failures: Some(7) };
        assert_eq!(details.huge_pages, [pages]);
        assert_eq!(details.devices.len(), 1);
        assert!(reader.read(Path::new("/pod/c"), Depth::Container).details.is_none());
    }

    #[test]
    fn a_group_of_v1() {
        let root = tempfile::tempdir().unwrap();
        let of = |name: &str| Some(root.path().join(name));
        let roots = V1 {
            cpu: of("cpu"),
            cpuacct: of("cpuacct"),
            memory: of("memory"),
            pids: None,
            blkio: of("blkio"),
            hugetlb: of("hugetlb"),
            unified: of("unified"),
        };
        let reader = Reader { layout: Layout::V1(Box::new(roots)) };
        assert_eq!(reader.read(Path::new("/pod/c"), Depth::All), Sample::default(), "there is none");
        let group = |name: &str, files: &[(&str, &str)]| write(&root.path().join(name).join("pod/c"), files);
        group("cpuacct", &[("cpuacct.usage", "77\n"), ("cpuacct.usage_user", "70\n"), ("cgroup.procs", "11\n")]);
        group("cpu", &[("cpu.stat", "nr_periods 3\nnr_throttled 2\nthrottled_time 9\n"), ("cpu.cfs_quota_us", "-1\n")]);
        group(
            "memory",
            &[
                ("memory.usage_in_bytes", "1634304\n"),
                ("memory.stat", include_str!("recorded/v1-memory.stat")),
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            ],
        );
        group("unified", &[("memory.pressure", PRESSURE), ("cgroup.events", "populated 0\nfrozen 0\n")]);
        assert_eq!(reader.read(Path::new("/pod/c"), Depth::Container).pressure, Pressures::default());
        group("unified", &[("cgroup.events", "populated 1\nfrozen 0\n")]);
        let sample = reader.read(Path::new("/pod/c"), Depth::All);
        let throttling = Throttling { periods: 3, throttled_periods: 2, throttled: 9 };
        let cpu = Cpu { usage: 77, user: Some(70), system: None, throttling: Some(throttling) };
        assert_eq!(sample.cpu, Some(cpu));
        let memory = sample.memory.unwrap();
        assert_eq!((memory.working_set(), memory.limit, memory.major_faults), (1_499_136, Some(33_554_432), 7));
        assert_eq!(sample.swap, Some(Swap { usage: 4096, limit: Some(0) }));
        assert_eq!(sample.processes, Some(1));
        assert!(sample.pressure.memory.is_some() && sample.pressure.cpu.is_none());
        let details = sample.details.unwrap();
        assert_eq!((details.oom_kills, details.cpu_quota), (Some(2), None));
    }
}
