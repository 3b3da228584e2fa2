//! What the machine and its processes use, read from `/proc`.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// CPU time of the whole machine at one moment: every process, short-lived ones and the kernel's own threads too.
///
/// It is what the CPUs were not idle for. The kernel counts idleness by its clock, and busy time by samples at each tick,
/// which miss what is shorter.
#[derive(Debug, Clone, Copy)]
pub struct Cpu {
    at: Instant,
    idle: f64,
    cpus: f64,
    others: f64,
}

impl Cpu {
    /// Reads it. `others` are processes that serve the measurement itself and don't count: this one, the registry.
    pub fn now(others: &[u32]) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let ticks = ticks()?;
        let total = stat.lines().next().context("/proc/stat is empty")?;
        let field = |index: usize| -> Result<f64> {
            let text = total.split_whitespace().nth(index).with_context(|| format!("/proc/stat: {total:?}"))?;
            text.parse::<f64>().with_context(|| format!("/proc/stat: {total:?}"))
        };
        // user nice system idle iowait irq softirq steal: stolen time was nobody's here.
        let idle = (field(4)? + field(5)? + field(8)?) / ticks;
        let cpus = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count() as f64;
        let mut used = 0.0;
        for pid in others {
            used += process_cpu(*pid).unwrap_or(0.0);
        }
        Ok(Self { at: Instant::now(), idle, cpus, others: used })
    }

    /// Seconds of CPU since `self`, and seconds of time.
    pub fn since(&self, others: &[u32]) -> Result<(f64, f64)> {
        let now = Self::now(others)?;
        let elapsed = (now.at - self.at).as_secs_f64();
        let busy = elapsed * self.cpus - (now.idle - self.idle) - (now.others - self.others);
        Ok((busy.max(0.0), elapsed))
    }
}

/// Seconds of CPU that a process has used, with the children that it waited for.
pub fn process_cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in parentheses and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').context("a name in parentheses")?.1.split_whitespace().collect();
    let mut sum = 0.0;
    for index in 11..15 {
        sum += fields.get(index).context("a short stat")?.parse::<f64>()?;
    }
    Ok(sum / ticks()?)
}

fn ticks() -> Result<f64> {
    Ok(sysconf(SysconfVar::CLK_TCK)?.context("clock ticks per second")? as f64)
}

/// `MemAvailable`, in kB.
pub fn available() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    field(&text, "MemAvailable:").context("MemAvailable")
}

/// PSS of a process, in kB.
pub fn pss(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    field(&text, "Pss:").context("Pss")
}

/// The most that a process has had resident since [`reset_peak`], in kB.
pub fn peak(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    field(&text, "VmHWM:").context("VmHWM")
}

/// Starts [`peak`] anew.
pub fn reset_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("write {path}"))
}

fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// A process: its pid and its command line.
pub type Processes = BTreeMap<u32, Vec<String>>;

/// All processes that have a command line, so no threads of the kernel and no zombies.
pub fn processes() -> Result<Processes> {
    let mut found = Processes::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let path: PathBuf = entry.context("list /proc")?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may end while we look.
        let Ok(line) = fs::read(path.join("cmdline")) else { continue };
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .filter(|word| !word.is_empty())
            .collect();
        if !words.is_empty() {
            found.insert(pid, words);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let pid = std::process::id();
        assert!(processes().unwrap().contains_key(&pid));
        assert!(pss(pid).unwrap() > 0.0);
        assert!(peak(pid).unwrap() >= pss(pid).unwrap());
        assert!(process_cpu(pid).unwrap() >= 0.0);
        assert!(available().unwrap() > 0.0);
        assert!(pss(u32::MAX).is_err());
    }

    #[test]
    fn time_passes_on_the_machine() {
        let start = Cpu::now(&[]).unwrap();
        while start.at.elapsed().as_millis() < 20 {}
        let (busy, elapsed) = start.since(&[]).unwrap();
        assert!(elapsed >= 0.02 && busy <= elapsed * start.cpus);
    }

    #[test]
    fn fields_are_found_by_name() {
        let text = "MemTotal:       100 kB\nMemAvailable:    42 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(42.0));
        assert_eq!(field(text, "Swap:"), None);
    }
}
