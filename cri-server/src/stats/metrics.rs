//! Metrics under the names, types and labels that cAdvisor gave them, so that dashboards and alerts go on. Pure but for the
//! names of block devices.
//!
//! CRI's values are whole numbers; seconds lose their fraction there (and the kubelet can't tell). Left out is what cAdvisor
//! itself only fills on request or with zeros: load averages, task states, open sockets, times of disks that blk-mq has no
//! more, per-NUMA-node memory and perf events.

use vaina_proto::cri::{Metric, MetricDescriptor, MetricType};

use super::{
    message::value,
    parse::{Interface, Pressure},
    read::{Memory, Sample, device_name},
};
use crate::snapshot;

/// Labels of every metric; a family's own follow.
const BASE: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// Metrics of one name.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
}

macro_rules! families {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(const $constant: Family = Family {
            name: $name,
            help: $help,
            kind: MetricType::$kind,
            labels: &[$($label),*],
        };)*
        const FAMILIES: &[Family] = &[$($constant),*];
    };
}

families! {
    CPU_USAGE = Counter "container_cpu_usage_seconds_total" ["cpu"] "Cumulative cpu time consumed in seconds.";
    CPU_USER = Counter "container_cpu_user_seconds_total" [] "Cumulative user cpu time consumed in seconds.";
    CPU_SYSTEM = Counter "container_cpu_system_seconds_total" [] "Cumulative system cpu time consumed in seconds.";
    CPU_PERIODS = Counter "container_cpu_cfs_periods_total" [] "Number of elapsed enforcement period intervals.";
    CPU_THROTTLED_PERIODS = Counter "container_cpu_cfs_throttled_periods_total" []
        "Number of throttled period intervals.";
    CPU_THROTTLED = Counter "container_cpu_cfs_throttled_seconds_total" []
        "Total time duration the container has been throttled.";
    MEMORY_CACHE = Gauge "container_memory_cache" [] "Number of bytes of page cache memory.";
    MEMORY_RSS = Gauge "container_memory_rss" [] "Size of RSS in bytes.";
    MEMORY_KERNEL = Gauge "container_memory_kernel_usage" [] "Size of kernel memory allocated in bytes.";
    MEMORY_MAPPED = Gauge "container_memory_mapped_file" [] "Size of memory mapped files in bytes.";
    MEMORY_SWAP = Gauge "container_memory_swap" [] "Container swap usage in bytes.";
    MEMORY_FAILURES = Counter "container_memory_failcnt" [] "Number of memory usage hits limits.";
    MEMORY_USAGE = Gauge "container_memory_usage_bytes" []
        "Current memory usage in bytes, including all memory regardless of when it was accessed.";
    MEMORY_PEAK = Gauge "container_memory_max_usage_bytes" [] "Maximum memory usage recorded in bytes.";
    MEMORY_WORKING_SET = Gauge "container_memory_working_set_bytes" [] "Current working set in bytes.";
    MEMORY_ACTIVE_FILE = Gauge "container_memory_total_active_file_bytes" [] "Current total active file in bytes.";
    MEMORY_INACTIVE_FILE = Gauge "container_memory_total_inactive_file_bytes" []
        "Current total inactive file in bytes.";
    MEMORY_FAULTS = Counter "container_memory_failures_total" ["failure_type", "scope"]
        "Cumulative count of memory allocation failures.";
    OOM_EVENTS = Counter "container_oom_events_total" []
        "Count of out of memory events observed for the container.";
    HUGE_PAGES_USAGE = Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Current hugepage usage in bytes.";
    HUGE_PAGES_PEAK = Gauge "container_hugetlb_max_usage_bytes" ["pagesize"]
        "Maximum hugepage usage recorded in bytes.";
    HUGE_PAGES_FAILURES = Counter "container_hugetlb_failcnt" ["pagesize"] "Number of hugepage usage hits limits.";
    NETWORK_RECEIVE_BYTES = Counter "container_network_receive_bytes_total" ["interface"]
        "Cumulative count of bytes received.";
    NETWORK_RECEIVE_PACKETS = Counter "container_network_receive_packets_total" ["interface"]
        "Cumulative count of packets received.";
    NETWORK_RECEIVE_DROPPED = Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Cumulative count of packets dropped while receiving.";
    NETWORK_RECEIVE_ERRORS = Counter "container_network_receive_errors_total" ["interface"]
        "Cumulative count of errors encountered while receiving.";
    NETWORK_TRANSMIT_BYTES = Counter "container_network_transmit_bytes_total" ["interface"]
        "Cumulative count of bytes transmitted.";
    NETWORK_TRANSMIT_PACKETS = Counter "container_network_transmit_packets_total" ["interface"]
        "Cumulative count of packets transmitted.";
    NETWORK_TRANSMIT_DROPPED = Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Cumulative count of packets dropped while transmitting.";
    NETWORK_TRANSMIT_ERRORS = Counter "container_network_transmit_errors_total" ["interface"]
        "Cumulative count of errors encountered while transmitting.";
    DISK_READ_BYTES = Counter "container_fs_reads_bytes_total" ["device"] "Cumulative count of bytes read.";
    DISK_READS = Counter "container_fs_reads_total" ["device"] "Cumulative count of reads completed.";
    DISK_WRITE_BYTES = Counter "container_fs_writes_bytes_total" ["device"] "Cumulative count of bytes written.";
    DISK_WRITES = Counter "container_fs_writes_total" ["device"] "Cumulative count of writes completed.";
    DISK_DEVICE_USAGE = Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"]
        "Blkio Device bytes usage.";
    FS_USAGE = Gauge "container_fs_usage_bytes" []
        "Number of bytes that are consumed by the container on this filesystem.";
    FS_INODES = Gauge "container_fs_inodes_used" []
        "Number of inodes that are consumed by the container on this filesystem.";
    PROCESSES = Gauge "container_processes" [] "Number of processes running inside the container.";
    THREADS = Gauge "container_threads" [] "Number of threads running inside the container.";
    THREADS_LIMIT = Gauge "container_threads_max" []
        "Maximum number of threads allowed inside the container, infinity if value is zero.";
    DESCRIPTORS = Gauge "container_file_descriptors" [] "Number of open file descriptors for the container.";
    SPEC_SHARES = Gauge "container_spec_cpu_shares" [] "CPU share of the container.";
    SPEC_QUOTA = Gauge "container_spec_cpu_quota" [] "CPU quota of the container.";
    SPEC_PERIOD = Gauge "container_spec_cpu_period" [] "CPU period of the container.";
    SPEC_MEMORY = Gauge "container_spec_memory_limit_bytes" [] "Memory limit for the container.";
    SPEC_MEMORY_SWAP = Gauge "container_spec_memory_swap_limit_bytes" [] "Memory swap limit for the container.";
    SPEC_MEMORY_RESERVATION = Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory reservation limit for the container.";
    PRESSURE_CPU_WAITING = Counter "container_pressure_cpu_waiting_seconds_total" []
        "Total time duration tasks in the container have waited due to CPU congestion.";
    PRESSURE_CPU_STALLED = Counter "container_pressure_cpu_stalled_seconds_total" []
        "Total time duration no tasks in the container could make progress due to CPU congestion.";
    PRESSURE_MEMORY_WAITING = Counter "container_pressure_memory_waiting_seconds_total" []
        "Total time duration tasks in the container have waited due to memory congestion.";
    PRESSURE_MEMORY_STALLED = Counter "container_pressure_memory_stalled_seconds_total" []
        "Total time duration no tasks in the container could make progress due to memory congestion.";
    PRESSURE_IO_WAITING = Counter "container_pressure_io_waiting_seconds_total" []
        "Total time duration tasks in the container have waited due to IO congestion.";
    PRESSURE_IO_STALLED = Counter "container_pressure_io_stalled_seconds_total" []
        "Total time duration no tasks in the container could make progress due to IO congestion.";
    START_TIME = Gauge "container_start_time_seconds" [] "Start time of the container since unix epoch in seconds.";
    LAST_SEEN = Gauge "container_last_seen" [] "Last time a container was seen by the exporter.";
}

/// All that can occur.
pub(super) fn descriptors() -> Vec<MetricDescriptor> {
    let labels = |family: &Family| BASE.iter().chain(family.labels).map(|&label| label.to_owned()).collect();
    FAMILIES
        .iter()
        .map(|family| MetricDescriptor {
            name: family.name.to_owned(),
            help: family.help.to_owned(),
            label_keys: labels(family),
        })
        .collect()
}

/// Whose metrics they are: values of the base labels, and what no group tells.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Subject<'a> {
    /// Name of the container; empty for the pod as a whole.
    pub(super) container: &'a str,
    /// Its control group.
    pub(super) id: &'a str,
    pub(super) image: &'a str,
    /// Id of the container or sandbox.
    pub(super) name: &'a str,
    pub(super) namespace: &'a str,
    pub(super) pod: &'a str,
    /// Unix nanoseconds.
    pub(super) started_at: i64,
    /// What it has written to its layer.
    pub(super) written: Option<snapshot::Usage>,
}

struct Out<'a> {
    subject: &'a Subject<'a>,
    metrics: Vec<Metric>,
}

impl Out<'_> {
    fn add(&mut self, family: &Family, labels: &[&str], number: impl Into<Option<u64>>) {
        let Some(number) = number.into() else { return };
        let Subject { container, id, image, name, namespace, pod, .. } = self.subject;
        let base = [container, id, image, name, namespace, pod];
        debug_assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        self.metrics.push(Metric {
            name: family.name.to_owned(),
            // "Generated at the time of the call."
            timestamp: 0,
            metric_type: family.kind.into(),
            label_values: base.into_iter().copied().chain(labels.iter().copied()).map(str::to_owned).collect(),
            value: value(number),
        });
    }

    fn pressure(&mut self, waiting: &Family, stalled: &Family, pressure: Option<Pressure>) {
        self.add(waiting, &[], pressure.map(|pressure| seconds(pressure.some.total)));
        self.add(stalled, &[], pressure.map(|pressure| seconds(pressure.full.total)));
    }

    fn cpu(&mut self, sample: &Sample) {
        let Some(cpu) = sample.cpu else { return };
        self.add(&CPU_USAGE, &["total"], seconds(cpu.usage));
        self.add(&CPU_USER, &[], cpu.user.map(seconds));
        self.add(&CPU_SYSTEM, &[], cpu.system.map(seconds));
        if let Some(throttling) = cpu.throttling {
            self.add(&CPU_PERIODS, &[], throttling.periods);
            self.add(&CPU_THROTTLED_PERIODS, &[], throttling.throttled_periods);
            self.add(&CPU_THROTTLED, &[], seconds(throttling.throttled));
        }
    }

    fn memory(&mut self, memory: &Memory) {
        self.add(&MEMORY_CACHE, &[], memory.cache);
        self.add(&MEMORY_RSS, &[], memory.rss);
        self.add(&MEMORY_MAPPED, &[], memory.mapped_file);
        self.add(&MEMORY_USAGE, &[], memory.usage);
        self.add(&MEMORY_WORKING_SET, &[], memory.working_set());
        self.add(&MEMORY_ACTIVE_FILE, &[], memory.active_file);
        self.add(&MEMORY_INACTIVE_FILE, &[], memory.inactive_file);
        for scope in ["container", "hierarchy"] {
            self.add(&MEMORY_FAULTS, &["pgfault", scope], memory.faults);
            self.add(&MEMORY_FAULTS, &["pgmajfault", scope], memory.major_faults);
        }
        // No limit is 0, as cAdvisor has it.
        self.add(&SPEC_MEMORY, &[], memory.limit.unwrap_or_default());
    }

    fn network(&mut self, interfaces: &[Interface]) {
        for Interface { name, received, sent } in interfaces {
            let label = [name.as_str()];
            self.add(&NETWORK_RECEIVE_BYTES, &label, received.bytes);
            self.add(&NETWORK_RECEIVE_PACKETS, &label, received.packets);
            self.add(&NETWORK_RECEIVE_DROPPED, &label, received.dropped);
            self.add(&NETWORK_RECEIVE_ERRORS, &label, received.errors);
            self.add(&NETWORK_TRANSMIT_BYTES, &label, sent.bytes);
            self.add(&NETWORK_TRANSMIT_PACKETS, &label, sent.packets);
            self.add(&NETWORK_TRANSMIT_DROPPED, &label, sent.dropped);
            self.add(&NETWORK_TRANSMIT_ERRORS, &label, sent.errors);
        }
    }

    fn details(&mut self, sample: &Sample) {
        let Some(details) = &sample.details else { return };
        self.add(&MEMORY_KERNEL, &[], details.memory_kernel);
        self.add(&MEMORY_FAILURES, &[], details.memory_failures);
        self.add(&MEMORY_PEAK, &[], details.memory_peak);
        self.add(&OOM_EVENTS, &[], details.oom_kills);
        self.add(&SPEC_MEMORY_RESERVATION, &[], details.memory_reservation.unwrap_or_default());
        self.add(&SPEC_SHARES, &[], details.cpu_shares);
        self.add(&SPEC_QUOTA, &[], details.cpu_quota);
        self.add(&SPEC_PERIOD, &[], details.cpu_period);
        self.add(&THREADS, &[], details.threads);
        self.add(&THREADS_LIMIT, &[], details.threads_limit.unwrap_or_default());
        self.add(&DESCRIPTORS, &[], details.descriptors);
        for pages in &details.huge_pages {
            let label = [pages.size.as_str()];
            self.add(&HUGE_PAGES_USAGE, &label, pages.usage);
            self.add(&HUGE_PAGES_PEAK, &label, pages.peak);
            self.add(&HUGE_PAGES_FAILURES, &label, pages.failures);
        }
        for device in &details.devices {
            let name = device_name(device);
            let (major, minor) = (device.major.to_string(), device.minor.to_string());
            // A name may be missing; the numbers tell devices apart.
            let label = if name.is_empty() { format!("{major}:{minor}") } else { name };
            self.add(&DISK_READ_BYTES, &[&label], device.read_bytes);
            self.add(&DISK_READS, &[&label], device.reads);
            self.add(&DISK_WRITE_BYTES, &[&label], device.write_bytes);
            self.add(&DISK_WRITES, &[&label], device.writes);
            self.add(&DISK_DEVICE_USAGE, &[&label, &major, &minor, "Read"], device.read_bytes);
            self.add(&DISK_DEVICE_USAGE, &[&label, &major, &minor, "Write"], device.write_bytes);
        }
    }
}

fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000_000
}

/// The metrics of one container, or of a pod as a whole with its interfaces.
pub(super) fn of(subject: &Subject<'_>, sample: &Sample, interfaces: &[Interface], at: i64) -> Vec<Metric> {
    let mut out = Out { subject, metrics: Vec::with_capacity(FAMILIES.len()) };
    out.cpu(sample);
    if let Some(memory) = &sample.memory {
        out.memory(memory);
    }
    out.add(&MEMORY_SWAP, &[], sample.swap.map(|swap| swap.usage));
    out.add(&SPEC_MEMORY_SWAP, &[], sample.swap.map(|swap| swap.limit.unwrap_or_default()));
    out.network(interfaces);
    out.add(&PROCESSES, &[], sample.processes);
    out.details(sample);
    out.add(&FS_USAGE, &[], subject.written.map(|written| written.bytes));
    out.add(&FS_INODES, &[], subject.written.map(|written| written.inodes));
    out.pressure(&PRESSURE_CPU_WAITING, &PRESSURE_CPU_STALLED, sample.pressure.cpu);
    out.pressure(&PRESSURE_MEMORY_WAITING, &PRESSURE_MEMORY_STALLED, sample.pressure.memory);
    out.pressure(&PRESSURE_IO_WAITING, &PRESSURE_IO_STALLED, sample.pressure.io);
    let whole = |at: i64| u64::try_from(at).map(seconds).ok();
    out.add(&START_TIME, &[], whole(subject.started_at));
    out.add(&LAST_SEEN, &[], whole(at));
    out.metrics
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{
        super::{
            parse::Device,
            read::{Cpu, Details, HugePages, Pressures, Swap, Throttling},
        },
        *,
    };

    fn full() -> Sample {
        let cpu = Cpu {
            usage: 7_900_000_000,
            user: Some(5_000_000_000),
            system: Some(2_000_000_000),
            throttling: Some(Throttling { periods: 9, throttled_periods: 3, throttled: 1 }),
        };
        let device = Device { major: 259, minor: 987_654, read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 };
        Sample {
            cpu: Some(cpu),
            memory: Some(Memory { usage: 5, limit: Some(8), ..Memory::default() }),
            swap: Some(Swap { usage: 1, limit: Some(2) }),
            pressure: Pressures {
                cpu: Some(Pressure::default()),
                memory: Some(Pressure::default()),
                io: Some(Pressure::default()),
            },
            processes: Some(3),
            details: Some(Details {
                memory_peak: Some(1),
                memory_failures: Some(1),
                memory_kernel: Some(1),
                memory_reservation: None,
                oom_kills: Some(1),
                cpu_shares: Some(1024),
                cpu_quota: Some(1),
                cpu_period: Some(1),
                threads: Some(1),
                threads_limit: None,
                descriptors: Some(1),
                devices: vec![device],
                huge_pages: ["1GB", "2MB"]
                    .map(|size| HugePages { size: size.into(), usage: 1, peak: Some(1), failures: Some(1) })
                    .into(),
            }),
        }
    }

    #[test]
    fn every_family_occurs_with_all_its_labels_and_no_metric_twice() {
        let subject = Subject { container: "c", started_at: 5_000_000_000, ..Subject::default() };
        let subject = Subject { written: Some(snapshot::Usage { bytes: 1, inodes: 2 }), ..subject };
        let interfaces = ["eth0", "net1"].map(|name| Interface { name: name.into(), ..Interface::default() });
        let metrics = of(&subject, &full(), &interfaces, 9_000_000_000);
        let descriptors = descriptors();
        let names: HashSet<_> = descriptors.iter().map(|descriptor| descriptor.name.as_str()).collect();
        assert_eq!(names.len(), descriptors.len());
        assert_eq!(names, metrics.iter().map(|metric| metric.name.as_str()).collect());
        let mut seen = HashSet::new();
        for metric in &metrics {
            let descriptor = descriptors.iter().find(|descriptor| descriptor.name == metric.name).unwrap();
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
            assert!(seen.insert((&metric.name, &metric.label_values)), "{metric:?}");
        }
        let find = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap().value.unwrap().value;
        assert_eq!(find("container_cpu_usage_seconds_total"), 7);
        assert_eq!(find("container_start_time_seconds"), 5);
        assert_eq!(find("container_spec_memory_limit_bytes"), 8);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let metrics = of(&Subject::default(), &Sample::default(), &[], 0);
        let names: Vec<_> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["container_start_time_seconds", "container_last_seen"]);
    }
}
