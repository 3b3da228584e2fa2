//! What the kernel's files say. Pure; recorded files are in the tests. A word that is not understood is left out: the
//! kernel adds lines, and a number that is not known is better than no answer.

/// Pressure of a resource: stalled time of some tasks, and of all of them.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Pressure {
    pub(super) some: Stall,
    pub(super) full: Stall,
}

/// One line of a pressure file.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Stall {
    /// Nanoseconds.
    pub(super) total: u64,
    /// Percent over 10, 60 and 300 seconds.
    pub(super) averages: [f64; 3],
}

/// What a block device did for a group.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) read_bytes: u64,
    pub(super) write_bytes: u64,
    pub(super) reads: u64,
    pub(super) writes: u64,
}

/// Counters of one direction of a network interface.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) errors: u64,
    pub(super) dropped: u64,
}

/// A network interface.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) received: Traffic,
    pub(super) sent: Traffic,
}

/// A file that is one number; [`None`] for `max` and for what v1 writes instead.
pub(super) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|number| *number < UNLIMITED)
}

/// v1 has no word for "no limit"; it writes the largest number of whole pages.
const UNLIMITED: u64 = 1 << 62;

/// The values of these keys in lines of `key value`.
pub(super) fn keyed<const N: usize>(text: &str, keys: [&str; N]) -> [Option<u64>; N] {
    let mut values = [None; N];
    for line in text.lines() {
        let Some((key, value)) = line.split_once(' ') else { continue };
        if let Some(place) = keys.iter().position(|wanted| *wanted == key) {
            values[place] = number(value);
        }
    }
    values
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same of `full`, which old kernels lack for CPUs.
pub(super) fn pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| {
        let words = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let mut stall = Stall::default();
        for word in words.split_ascii_whitespace() {
            match word.split_once('=')? {
                ("avg10", value) => stall.averages[0] = value.parse().ok()?,
                ("avg60", value) => stall.averages[1] = value.parse().ok()?,
                ("avg300", value) => stall.averages[2] = value.parse().ok()?,
                // The kernel counts microseconds.
                ("total", value) => stall.total = value.parse::<u64>().ok()?.saturating_mul(1000),
                _ => {}
            }
        }
        Some(stall)
    };
    Some(Pressure { some: line("some")?, full: line("full").unwrap_or_default() })
}

fn device<'a>(devices: &'a mut Vec<Device>, number: &str) -> Option<&'a mut Device> {
    let (major, minor) = number.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let place = devices.iter().position(|known| (known.major, known.minor) == (major, minor));
    let place = place.unwrap_or_else(|| {
        devices.push(Device { major, minor, ..Device::default() });
        devices.len() - 1
    });
    devices.get_mut(place)
}

/// `io.stat` of v2: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
pub(super) fn io_stat(text: &str) -> Vec<Device> {
    let mut devices = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(device) = words.next().and_then(|number| device(&mut devices, number)) else { continue };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let value = value.parse().unwrap_or_default();
            match key {
                "rbytes" => device.read_bytes = value,
                "wbytes" => device.write_bytes = value,
                "rios" => device.reads = value,
                "wios" => device.writes = value,
                _ => {}
            }
        }
    }
    devices
}

/// Two files of v1, of bytes and of operations: `8:0 Read 1`.
pub(super) fn blkio(bytes: &str, operations: &str) -> Vec<Device> {
    let mut devices = Vec::new();
    for (text, counts_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(number), Some(operation), Some(value)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let Some(device) = device(&mut devices, number) else { continue };
            let value = value.parse().unwrap_or_default();
            match (operation, counts_bytes) {
                ("Read", true) => device.read_bytes = value,
                ("Write", true) => device.write_bytes = value,
                ("Read", false) => device.reads = value,
                ("Write", false) => device.writes = value,
                _ => {}
            }
        }
    }
    devices
}

/// `/proc/<pid>/net/dev`, without the loopback.
pub(super) fn net_dev(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> = counters.split_ascii_whitespace().map_while(|word| word.parse().ok()).collect();
        let traffic = |at: usize| {
            let [bytes, packets, errors, dropped] = *counters.get(at..at + 4)? else { return None };
            Some(Traffic { bytes, packets, errors, dropped })
        };
        Some(Interface { name: name.trim().to_owned(), received: traffic(0)?, sent: traffic(8)? })
    };
    text.lines().filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_the_words_for_no_limit() {
        for (text, wanted) in [
            ("4096\n", Some(4096)),
            ("0\n", Some(0)),
            ("max\n", None),
            ("9223372036854771712\n", None),
            ("", None),
            ("-1\n", None),
        ] {
            assert_eq!(number(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn keys_are_whole_words() {
        let text = include_str!("recorded/v1-memory.stat");
        let keys =
            ["total_rss", "rss", "hierarchical_memory_limit", "total_pgfault", "none", "hierarchical_memsw_limit"];
        assert_eq!(
            keyed(text, keys),
            [Some(1_081_344), Some(1_081_344), Some(33_554_432), Some(1386), None, Some(33_554_432)]
        );
        let text = include_str!("recorded/v2-memory.stat");
        assert_eq!(keyed(text, ["anon", "file", "inactive_file"]), [Some(1_130_496), Some(12_288), Some(8192)]);
        let text = include_str!("recorded/v2-cpu.stat");
        assert_eq!(keyed(text, ["usage_usec", "nr_throttled"]), [Some(7_312_345), Some(12)]);
    }

    #[test]
    fn pressure_with_and_without_full() {
        let both = pressure(
            "some avg10=88.60 avg60=85.37 avg300=63.52 total=453357519\nfull avg10=0.00 avg60=1.50 avg300=0.00 total=3\n",
        );
        let both = both.unwrap();
        assert_eq!(both.some, Stall { total: 453_357_519_000, averages: [88.6, 85.37, 63.52] });
        assert_eq!(both.full, Stall { total: 3000, averages: [0.0, 1.5, 0.0] });
        let some = pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n").unwrap();
        assert_eq!((some.some.total, some.full), (1000, Stall::default()));
        assert_eq!(pressure(""), None);
        assert_eq!(pressure("some avg10=much\n"), None);
    }

    #[test]
    fn devices_of_both_versions_are_the_same() {
        let v2 =
            io_stat("8:0 rbytes=90112 wbytes=4096 rios=22 wios=1 dbytes=0 dios=0\n252:16 rbytes=1\nnonsense\n7:0 \n");
        let wanted = Device { major: 8, minor: 0, read_bytes: 90_112, write_bytes: 4096, reads: 22, writes: 1 };
        assert_eq!((v2.len(), &v2[0]), (3, &wanted));
        assert_eq!((v2[1].major, v2[1].minor, v2[1].read_bytes), (252, 16, 1));
        let v1 = blkio(
            "8:0 Read 90112\n8:0 Write 4096\n8:0 Sync 4096\n8:0 Total 94208\nTotal 94208\n",
            "8:0 Read 22\n8:0 Write 1\n8:0 Total 23\nTotal 23\n",
        );
        assert_eq!(v1, [wanted]);
        assert!(blkio("Total 0\n", "Total 0\n").is_empty());
    }

    #[test]
    fn interfaces_but_the_loopback() {
        let interfaces = net_dev(include_str!("recorded/net-dev"));
        let names: Vec<_> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["eth0", "net1"]);
        assert_eq!(interfaces[0].received, Traffic { bytes: 393_691_723, packets: 19_751, errors: 1, dropped: 2 });
        assert_eq!(interfaces[0].sent, Traffic { bytes: 1_443_381, packets: 14_348, errors: 3, dropped: 4 });
        assert!(net_dev("broken\neth0: 1 2\n").is_empty());
    }
}
