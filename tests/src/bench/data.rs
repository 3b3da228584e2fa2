//! Bytes: how fast a container's output becomes its log, and an image its layers.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use vaina_proto::cri;

use super::{
    Bench,
    endpoint::{Kind, call},
    machine,
    sheet::Better::{Higher, Lower},
};
use crate::build::Container;

/// How `probe lines` ends.
const LAST: &str = "the last line";

/// How long a container may take to write its lines.
const LOG_LIMIT: Duration = Duration::from_secs(300);

/// How long the files of a removed image may take to go.
const REMOVED_LIMIT: Duration = Duration::from_secs(30);

/// Lines of 100 bytes from a container to its log: from the call that starts it until the last line is in the file.
pub async fn logs(bench: &mut Bench) -> Result<()> {
    bench.sheet.row("log_throughput", "MB/s", Higher);
    bench.sheet.row("log_cpu_gib", "s", Lower);
    let names = ["log_throughput", "log_cpu_gib"].map(str::to_owned);
    bench
        .turns(&names, bench.scale.data_rounds, async |bench, index, _| {
            let idle = bench.idle_rate().await?;
            let kind = Kind { network: false, seccomp: false };
            let lines = bench.scale.log_bytes / 100;
            let endpoint = &mut bench.endpoints[index];
            let number = endpoint.next_number();
            let pod = endpoint.pod(kind, number);
            let mut container =
                Container::new("c", &endpoint.image).command(&["/bin/probe", "lines", &lines.to_string()]);
            container.config.linux = endpoint.container(&pod, kind).config.linux;
            let path = Path::new(&pod.config.log_directory).join(&container.config.log_path);
            let endpoint = &bench.endpoints[index];
            let cpu = bench.cpu()?;
            let (running, [_, _, started]) = endpoint.up_with(&pod, &container).await?;
            let start = Instant::now();
            loop {
                let status = call(endpoint.cri()?.container(&running.container)).await?;
                if status.state() == cri::ContainerState::ContainerExited && ends_with(&path, LAST)? {
                    ensure!(status.exit_code == 0, "the writer exited with {}", status.exit_code);
                    break;
                }
                ensure!(start.elapsed() < LOG_LIMIT, "the log is not complete after {LOG_LIMIT:?}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let elapsed = start.elapsed().as_secs_f64() + started / 1e3;
            let used = bench.used(&cpu, idle)?;
            let endpoint = &bench.endpoints[index];
            let found = count_lines(&path)?;
            endpoint.down(&running).await?;
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            ensure!(found == lines + 1, "{found} records of {} lines", lines + 1);
            let bytes = (lines * 100) as f64;
            let name = endpoint.name.clone();
            bench.sheet.add("log_throughput", &name, bytes / 1e6 / elapsed);
            bench.sheet.add("log_cpu_gib", &name, used / (bytes / f64::from(1 << 30)));
            Ok(())
        })
        .await
}

/// Waits until no more files go away, since the next one's pull must not pay for what this one removes behind its answer.
async fn removed() -> Result<()> {
    let free = || Ok::<_, anyhow::Error>(nix::sys::statvfs::statvfs(&std::env::temp_dir())?.files_free());
    let start = Instant::now();
    let mut before = free()?;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = free()?;
        if now <= before || start.elapsed() > REMOVED_LIMIT {
            return Ok(());
        }
        before = now;
    }
}

fn ends_with(path: &Path, text: &str) -> Result<bool> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(200)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).trim_end().ends_with(text))
}

fn count_lines(path: &Path) -> Result<usize> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    let mut lines = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(lines),
            length => lines += buffer[..length].iter().filter(|byte| **byte == b'\n').count(),
        }
    }
}

/// Pull and unpack of the large image, which is removed before and after.
pub async fn pull(bench: &mut Bench) -> Result<()> {
    let name = format!("pull_{}mb", bench.scale.image.bytes / 1_000_000);
    let cpu_name = format!("{name}_cpu");
    let memory_name = format!("{name}_peak_rss");
    bench.sheet.row(&name, "s", Lower);
    bench.sheet.row(&cpu_name, "s", Lower);
    bench.sheet.row(&memory_name, "MB", Lower);
    bench.images.add_large(bench.scale.image)?;
    let image = bench.images.large.clone();
    // One more than is counted: the first pull finds the registry's files on disk, later ones in memory.
    let rounds = bench.scale.data_rounds + 1;
    bench
        .turns(&[name.clone(), cpu_name.clone(), memory_name.clone()], rounds, async |bench, index, round| {
            let daemon = bench.endpoints[index].daemon_pid()?;
            let idle = bench.idle_rate().await?;
            machine::reset_peak(daemon)?;
            let cpu = bench.cpu()?;
            let start = Instant::now();
            let endpoint = &bench.endpoints[index];
            call(endpoint.cri()?.pull(&image)).await.context("PullImage")?;
            let elapsed = start.elapsed().as_secs_f64();
            let used = bench.used(&cpu, idle)?;
            let peak = machine::peak(daemon)?;
            let endpoint = &bench.endpoints[index];
            let known = call(endpoint.cri()?.image(&image)).await.context("ImageStatus")?;
            if known.is_none_or(|known| known.size == 0) {
                bail!("the image is not there after its pull");
            }
            call(endpoint.cri()?.remove_image(&image)).await.context("RemoveImage")?;
            removed().await?;
            bench.settle().await;
            if round > 0 {
                let endpoint = bench.endpoints[index].name.clone();
                bench.sheet.add(&name, &endpoint, elapsed);
                bench.sheet.add(&cpu_name, &endpoint, used);
                bench.sheet.add(&memory_name, &endpoint, peak * 1024.0 / 1e6);
            }
            Ok(())
        })
        .await
}
