//! Pods up and down, one and ten at a time, on both kinds of network, without seccomp and under the default profile; and
//! what ExecSync takes.

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    Bench,
    endpoint::{Down, Endpoint, Kind, Up},
    sheet::Better,
};

/// The steps up and down, and both sums.
const STEPS: [&str; 9] =
    ["sandbox", "create", "start", "pod_up", "stop", "remove", "sandbox_stop", "sandbox_remove", "pod_down"];

/// The kinds of pods, with how their rows end.
const KINDS: [(Kind, &str); 4] = [
    (Kind { network: false, seccomp: false }, "host"),
    (Kind { network: true, seccomp: false }, "net"),
    (Kind { network: false, seccomp: true }, "host_seccomp"),
    (Kind { network: true, seccomp: true }, "net_seccomp"),
];

/// Pods up and down.
pub async fn pods(bench: &mut Bench) -> Result<()> {
    for (kind, suffix) in KINDS {
        let rows = Rows::new(bench, kind, suffix);
        for row in &rows.all {
            bench.sheet.row(&row.0, row.1, row.2);
        }
        let names: Vec<String> = rows.all.iter().map(|row| row.0.clone()).collect();
        bench
            .turns(&names, bench.scale.rounds, async |bench, index, round| {
                if round == 0 {
                    check_seccomp(&mut bench.endpoints[index], kind).await?;
                }
                serial(bench, index, kind, &rows).await?;
                crowd(bench, index, kind, &rows).await
            })
            .await?;
    }
    Ok(())
}

struct Rows {
    suffix: &'static str,
    at_a_time: usize,
    /// Under seccomp only the times of one at a time are of interest.
    crowded: bool,
    all: Vec<(String, &'static str, Better)>,
}

impl Rows {
    fn new(bench: &Bench, kind: Kind, suffix: &'static str) -> Self {
        let at_a_time = bench.scale.at_a_time;
        let mut rows = Self { suffix, at_a_time, crowded: !kind.seccomp, all: Vec::new() };
        rows.all.extend(STEPS.map(|step| (format!("{step}_{suffix}"), "ms", Better::Lower)));
        if rows.crowded {
            rows.all.extend(STEPS.map(|step| (rows.crowd_name(step), "ms", Better::Lower)));
            rows.all.push((format!("lifecycles_{suffix}"), "1/s", Better::Higher));
            rows.all.push((format!("cpu_lifecycle_{suffix}"), "ms", Better::Lower));
        }
        rows
    }

    fn crowd_name(&self, step: &str) -> String {
        format!("{step}_{}_x{}", self.suffix, self.at_a_time)
    }
}

/// The nine figures of a pod's life.
fn steps(up: Up, down: Down) -> [f64; 9] {
    let [run, create, start] = up;
    let [stop, remove, sandbox_stop, sandbox_remove] = down;
    let (up, down) = (up.iter().sum(), down.iter().sum());
    [run, create, start, up, stop, remove, sandbox_stop, sandbox_remove, down]
}

/// A profile that is asked for and not set, or the other way round, would make figures of different things.
async fn check_seccomp(endpoint: &mut Endpoint, kind: Kind) -> Result<()> {
    let number = endpoint.next_number();
    let (running, _) = endpoint.up(kind, number).await?;
    let (status, _) = endpoint.exec(&running.container, &["/bin/cat", "/proc/1/status"]).await?;
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).context("no seccomp mode")?.trim();
    ensure!(mode == if kind.seccomp { "2" } else { "0" }, "the container's seccomp mode is {mode}");
    endpoint.down(&running).await.map(drop)
}

async fn serial(bench: &mut Bench, index: usize, kind: Kind, rows: &Rows) -> Result<()> {
    for _ in 0..bench.scale.pods {
        let endpoint = &mut bench.endpoints[index];
        let number = endpoint.next_number();
        let (running, up) = endpoint.up(kind, number).await?;
        let down = endpoint.down(&running).await?;
        let name = endpoint.name.clone();
        for (step, sample) in STEPS.iter().zip(steps(up, down)) {
            bench.sheet.add(&format!("{step}_{}", rows.suffix), &name, sample);
        }
    }
    Ok(())
}

/// So many lives with some under way at any time: rate, CPU, and the steps under this load.
async fn crowd(bench: &mut Bench, index: usize, kind: Kind, rows: &Rows) -> Result<()> {
    if !rows.crowded {
        return Ok(());
    }
    let idle = bench.idle_rate().await?;
    let count = bench.scale.crowd;
    let numbers: Vec<usize> = (0..count).map(|_| bench.endpoints[index].next_number()).collect();
    let endpoint = &bench.endpoints[index];
    let cpu = bench.cpu()?;
    let start = std::time::Instant::now();
    let lives: Vec<[f64; 9]> = stream::iter(numbers)
        .map(async |number| {
            let (running, up) = endpoint.up(kind, number).await?;
            let down = endpoint.down(&running).await?;
            anyhow::Ok(steps(up, down))
        })
        .buffer_unordered(rows.at_a_time)
        .try_collect()
        .await?;
    let elapsed = start.elapsed().as_secs_f64();
    // What is done behind the answers counts too: interfaces, namespaces and directories that go later.
    bench.settle().await;
    let used = bench.used(&cpu, idle)?;
    let name = endpoint.name.clone();
    for life in lives {
        for (step, sample) in STEPS.iter().zip(life) {
            bench.sheet.add(&rows.crowd_name(step), &name, sample);
        }
    }
    let count = count as f64;
    bench.sheet.add(&format!("lifecycles_{}", rows.suffix), &name, count / elapsed);
    bench.sheet.add(&format!("cpu_lifecycle_{}", rows.suffix), &name, used * 1e3 / count);
    Ok(())
}

/// ExecSync of `/bin/true`, one after the other in one container.
pub async fn exec(bench: &mut Bench) -> Result<()> {
    bench.sheet.row("exec_sync", "ms", Better::Lower);
    bench.sheet.row("exec_sync_cpu", "ms", Better::Lower);
    let names = ["exec_sync", "exec_sync_cpu"].map(str::to_owned);
    bench
        .turns(&names, bench.scale.rounds, async |bench, index, _| {
            let idle = bench.idle_rate().await?;
            let endpoint = &mut bench.endpoints[index];
            let number = endpoint.next_number();
            let (running, _) = endpoint.up(KINDS[1].0, number).await?;
            endpoint.exec(&running.container, &["/bin/true"]).await?;
            let mut times = Vec::new();
            let cpu = bench.cpu()?;
            for _ in 0..bench.scale.execs {
                times.push(bench.endpoints[index].exec(&running.container, &["/bin/true"]).await?.1);
            }
            let used = bench.used(&cpu, idle)?;
            let endpoint = &bench.endpoints[index];
            endpoint.down(&running).await?;
            let name = endpoint.name.clone();
            bench.sheet.add("exec_sync_cpu", &name, used * 1e3 / times.len() as f64);
            for time in times {
                bench.sheet.add("exec_sync", &name, time);
            }
            Ok(())
        })
        .await
}
