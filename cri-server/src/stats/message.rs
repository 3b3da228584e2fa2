//! Samples in CRI's words. Pure.

use vaina_proto::cri::{
    self, CpuUsage, IoUsage, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PsiData, PsiStats, SwapUsage,
    UInt64Value,
};

use super::{
    parse::{Interface, Pressure, Stall},
    read::{Memory, Sample},
};

/// What CRI has of both containers and pods.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) cpu: Option<CpuUsage>,
    pub(super) memory: Option<MemoryUsage>,
    pub(super) swap: Option<SwapUsage>,
    pub(super) io: Option<IoUsage>,
}

pub(super) fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

/// `nano_cores` is the rate of the CPU time.
pub(super) fn usage(sample: &Sample, timestamp: i64, nano_cores: Option<u64>) -> Usage {
    Usage {
        cpu: sample.cpu.map(|cpu| CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(cpu.usage),
            usage_nano_cores: nano_cores.and_then(value),
            psi: sample.pressure.cpu.map(pressure),
        }),
        memory: sample.memory.map(|memory| MemoryUsage {
            timestamp,
            working_set_bytes: value(memory.working_set()),
            available_bytes: available(&memory).and_then(value),
            usage_bytes: value(memory.usage),
            rss_bytes: value(memory.rss),
            page_faults: value(memory.faults),
            major_page_faults: value(memory.major_faults),
            psi: sample.pressure.memory.map(pressure),
        }),
        swap: sample.swap.map(|swap| SwapUsage {
            timestamp,
            swap_available_bytes: swap.limit.map(|limit| limit.saturating_sub(swap.usage)).and_then(value),
            swap_usage_bytes: value(swap.usage),
        }),
        io: sample.pressure.io.map(|io| IoUsage { timestamp, psi: Some(pressure(io)) }),
    }
}

/// Without a limit there is no such number.
fn available(memory: &Memory) -> Option<u64> {
    Some(memory.limit?.saturating_sub(memory.working_set()))
}

fn pressure(pressure: Pressure) -> PsiStats {
    let data = |stall: Stall| {
        let [avg10, avg60, avg300] = stall.averages;
        Some(PsiData { total: stall.total, avg10, avg60, avg300 })
    };
    PsiStats { full: data(pressure.full), some: data(pressure.some) }
}

/// The interface that has the pod's address stands apart from the others.
pub(super) fn network(interfaces: &[Interface], timestamp: i64) -> NetworkUsage {
    let message = |interface: &Interface| NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: value(interface.received.bytes),
        rx_errors: value(interface.received.errors),
        tx_bytes: value(interface.sent.bytes),
        tx_errors: value(interface.sent.errors),
    };
    let default =
        interfaces.iter().position(|interface| interface.name == "eth0").or((!interfaces.is_empty()).then_some(0));
    NetworkUsage {
        timestamp,
        default_interface: default.and_then(|at| interfaces.get(at)).map(message),
        interfaces: interfaces
            .iter()
            .enumerate()
            .filter(|(at, _)| Some(*at) != default)
            .map(|(_, one)| message(one))
            .collect(),
    }
}

/// What several groups use together: for a pod that has no group to itself.
pub(super) fn sum<'a>(samples: impl Iterator<Item = &'a Sample>) -> Sample {
    let mut sum = Sample::default();
    let (mut cpu, mut memory) = (super::read::Cpu::default(), Memory::default());
    let mut swap: Option<super::read::Swap> = None;
    for sample in samples {
        cpu.usage += sample.cpu.map_or(0, |cpu| cpu.usage);
        if let Some(one) = &sample.memory {
            memory.usage += one.usage;
            memory.rss += one.rss;
            memory.cache += one.cache;
            memory.mapped_file += one.mapped_file;
            memory.active_file += one.active_file;
            memory.inactive_file += one.inactive_file;
            memory.faults += one.faults;
            memory.major_faults += one.major_faults;
        }
        if let Some(one) = sample.swap {
            swap.get_or_insert_default().usage += one.usage;
        }
    }
    (sum.cpu, sum.memory, sum.swap) = (Some(cpu), Some(memory), swap);
    sum
}

/// CPU time at one moment, and the rate that it had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    at: i64,
    usage: u64,
    /// Billionths of a CPU.
    pub(super) nano_cores: u64,
}

/// Shorter than this the kernel's own steps would show.
const WINDOW: i64 = 500_000_000;

impl Rate {
    /// The rate since the last look, or else since the `start`, when the usage was nothing.
    pub(super) fn next(previous: Option<Self>, start: i64, at: i64, usage: u64) -> Self {
        let base = match previous {
            Some(previous) if (0..WINDOW).contains(&(at - previous.at)) => return previous,
            // The clock was set back, or the group is another one.
            Some(previous) if at < previous.at || usage < previous.usage => return Self { at, usage, ..previous },
            Some(previous) => previous,
            None => Self { at: start, usage: 0, nano_cores: 0 },
        };
        let elapsed = u128::try_from(at - base.at).unwrap_or_default();
        let spent = u128::from(usage - base.usage) * 1_000_000_000;
        let nano_cores = spent.checked_div(elapsed).unwrap_or_default();
        Self { at, usage, nano_cores: u64::try_from(nano_cores).unwrap_or(u64::MAX) }
    }
}

/// Whether an object with these ids and labels meets every condition.
pub(super) fn matches<'a>(
    ids: impl IntoIterator<Item = (&'a str, &'a str)>,
    labels: &std::collections::BTreeMap<String, String>,
    selector: &std::collections::BTreeMap<String, String>,
) -> bool {
    ids.into_iter().all(|(id, wanted)| id.starts_with(wanted))
        && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What a layer takes, on the file system that images are on as well.
pub(super) fn writable_layer(measured: Option<super::layer::Measured>, mountpoint: &str) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp: measured.map_or(0, |measured| measured.at),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
        used_bytes: measured.map(|measured| UInt64Value { value: measured.usage.bytes }),
        inodes_used: measured.map(|measured| UInt64Value { value: measured.usage.inodes }),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            parse::Traffic,
            read::{Cpu, Pressures, Swap},
        },
        *,
    };

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn rates_are_over_a_window_that_is_long_enough() {
        let start = 100 * SECOND;
        let first = Rate::next(None, start, start + 4 * SECOND, 2_000_000_000);
        assert_eq!(first.nano_cores, 500_000_000, "since the start");
        assert_eq!(Rate::next(Some(first), start, first.at + 1000, 9_000_000_000), first, "too soon");
        let second = Rate::next(Some(first), start, first.at + 2 * SECOND, 6_000_000_000);
        assert_eq!(second.nano_cores, 2_000_000_000);
        let back = Rate::next(Some(second), start, second.at - SECOND, 7_000_000_000);
        assert_eq!((back.nano_cores, back.at), (2_000_000_000, second.at - SECOND), "the clock was set back");
        assert_eq!(Rate::next(None, start, start, 5).nano_cores, 0);
    }

    #[test]
    fn available_is_what_the_limit_leaves() {
        let memory = Memory { usage: 100, inactive_file: 30, limit: Some(90), ..Memory::default() };
        let sample = Sample {
            cpu: Some(Cpu { usage: 7, ..Cpu::default() }),
            memory: Some(memory),
            swap: Some(Swap { usage: 5, limit: None }),
            ..Sample::default()
        };
        let message = usage(&sample, 3, Some(9));
        let of_memory = message.memory.unwrap();
        assert_eq!((of_memory.working_set_bytes, of_memory.available_bytes), (value(70), value(20)));
        assert_eq!(message.swap.unwrap().swap_available_bytes, None);
        assert_eq!(message.cpu.unwrap().usage_nano_cores, value(9));
        assert_eq!(message.io, None);
        let free = Sample { memory: Some(Memory { limit: None, ..memory }), ..sample };
        assert_eq!(usage(&free, 3, None).memory.unwrap().available_bytes, None);
    }

    // proves: CpuUsage.{timestamp, psi}
    // proves: MemoryUsage.{timestamp, usage_bytes, rss_bytes, page_faults, major_page_faults, psi}
    // proves: SwapUsage.{timestamp, swap_available_bytes, swap_usage_bytes}, IoUsage.{timestamp, psi}
    // proves: PsiStats.{Full, Some}, PsiData.{Total, Avg10, Avg60, Avg300}
    #[test]
    fn every_number_has_its_place() {
        let stall = |first: u64| Stall { total: first, averages: [1, 2, 3].map(|next| (first + next) as f64) };
        let pressure = |first: u64| Some(Pressure { some: stall(first), full: stall(first + 10) });
        let sample = Sample {
            cpu: Some(Cpu { usage: 1, ..Cpu::default() }),
            memory: Some(Memory { usage: 2, rss: 3, faults: 4, major_faults: 5, ..Memory::default() }),
            swap: Some(Swap { usage: 6, limit: Some(13) }),
            pressure: Pressures { cpu: pressure(100), memory: pressure(200), io: pressure(300) },
            ..Sample::default()
        };
        let told = |first: u64| {
            let data = |total: u64| {
                let [avg10, avg60, avg300] = [1, 2, 3].map(|next| (total + next) as f64);
                Some(PsiData { total, avg10, avg60, avg300 })
            };
            Some(PsiStats { some: data(first), full: data(first + 10) })
        };
        let Usage { cpu, memory, swap, io } = usage(&sample, 9, None);
        let (cpu, memory) = (cpu.unwrap(), memory.unwrap());
        assert_eq!((cpu.timestamp, cpu.psi), (9, told(100)));
        assert_eq!((memory.timestamp, memory.psi), (9, told(200)));
        assert_eq!((memory.usage_bytes, memory.rss_bytes), (value(2), value(3)));
        assert_eq!((memory.page_faults, memory.major_page_faults), (value(4), value(5)));
        assert_eq!(swap, Some(SwapUsage { timestamp: 9, swap_available_bytes: value(7), swap_usage_bytes: value(6) }));
        assert_eq!(io, Some(IoUsage { timestamp: 9, psi: told(300) }));
    }

    // proves: NetworkUsage.{timestamp, default_interface, interfaces}
    // proves: NetworkInterfaceUsage.{name, rx_bytes, rx_errors, tx_bytes, tx_errors}
    #[test]
    fn the_pods_own_interface_stands_apart() {
        let interface = |name: &str| Interface {
            name: name.to_owned(),
            received: Traffic { bytes: 1, errors: 2, ..Traffic::default() },
            sent: Traffic { bytes: 3, errors: 4, ..Traffic::default() },
        };
        let usage = network(&[interface("net1"), interface("eth0")], 5);
        let default = usage.default_interface.unwrap();
        assert_eq!((default.name.as_str(), default.rx_bytes, default.tx_errors), ("eth0", value(1), value(4)));
        assert_eq!((default.rx_errors, default.tx_bytes, usage.timestamp), (value(2), value(3), 5));
        assert_eq!(usage.interfaces.iter().map(|other| other.name.as_str()).collect::<Vec<_>>(), ["net1"]);
        assert_eq!(network(&[interface("net1")], 5).default_interface.unwrap().name, "net1");
        assert!(network(&[], 5).default_interface.is_none());
    }

    #[test]
    fn groups_are_added_up() {
        let one = Sample {
            cpu: Some(Cpu { usage: 7, ..Cpu::default() }),
            memory: Some(Memory { usage: 100, inactive_file: 30, limit: Some(90), ..Memory::default() }),
            ..Sample::default()
        };
        let sum = sum([&one, &one, &Sample::default()].into_iter());
        assert_eq!(sum.cpu.unwrap().usage, 14);
        assert_eq!((sum.memory.unwrap().working_set(), sum.memory.unwrap().limit), (140, None));
        assert_eq!(sum.swap, None);
    }
}
