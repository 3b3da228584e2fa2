//! The benchmark: measures endpoints of the CRI, knows nothing else of them, and lets them take turns, so that ratios hold
//! on a noisy machine.
//!
//! [`endpoint`] is a socket and the pods on it. [`daemon`] starts the daemons that are compared on a [`ground`] of their own.
//! [`lifecycle`], [`idle`] and [`data`] measure, [`floor`] says what no runtime can get below. All figures go to the
//! [`sheet`], and from there to a [`report`] and a picture ([`svg`]).

pub mod daemon;
pub mod data;
pub mod endpoint;
pub mod floor;
pub mod ground;
pub mod idle;
pub mod images;
pub mod lifecycle;
pub mod machine;
pub mod report;
pub mod sheet;
pub mod svg;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use self::{
    endpoint::{Endpoint, Kind},
    images::{Images, Size},
    machine::Cpu,
    sheet::Sheet,
};

/// The endpoint of what the benchmark does itself.
pub const FLOOR: &str = "floor";

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Turns of each endpoint with pods and exec.
    pub rounds: usize,
    /// Pods one after the other in a turn.
    pub pods: usize,
    /// Pods in a turn with some at a time.
    pub crowd: usize,
    /// How many at a time.
    pub at_a_time: usize,
    /// Calls of ExecSync in a turn.
    pub execs: usize,
    /// Idle pods.
    pub idle: usize,
    /// Turns of each endpoint with idle pods.
    pub idle_rounds: usize,
    /// For how long idle CPU is watched.
    pub idle_time: Duration,
    /// Calls of each List, Status and Stats in a turn.
    pub reads: usize,
    /// Restarts of the daemon in a turn.
    pub restarts: usize,
    /// Turns of each endpoint with logs and pulls.
    pub data_rounds: usize,
    /// What a container writes.
    pub log_bytes: usize,
    /// What is pulled.
    pub image: Size,
    /// How long the machine may finish what was begun, and how long its idleness is watched.
    pub settle: Duration,
}

impl Scale {
    /// The figures that are published.
    pub const FULL: Self = Self {
        rounds: 10,
        pods: 5,
        crowd: 30,
        at_a_time: 10,
        execs: 50,
        idle: 100,
        idle_rounds: 2,
        idle_time: Duration::from_secs(10),
        reads: 20,
        restarts: 3,
        data_rounds: 3,
        log_bytes: 1 << 30,
        image: Size { bytes: 280_000_000, files: 12_000 },
        settle: Duration::from_millis(1000),
    };

    /// Every row once, in seconds: for checks that the benchmark works. Names say how much smaller it is.
    pub const QUICK: Self = Self {
        rounds: 1,
        pods: 2,
        crowd: 4,
        at_a_time: 2,
        execs: 5,
        idle: 4,
        idle_rounds: 1,
        idle_time: Duration::from_millis(100),
        reads: 2,
        restarts: 1,
        data_rounds: 1,
        log_bytes: 4 << 20,
        image: Size { bytes: 3_000_000, files: 120 },
        settle: Duration::from_millis(30),
    };
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Idle pods: memory, CPU, reading calls, restart.
    Idle,
    /// Pods up and down.
    Pods,
    /// ExecSync.
    Exec,
    /// Log throughput.
    Logs,
    /// Pull and unpack.
    Pull,
    /// What no runtime can get below.
    Floor,
}

/// What the parts share.
#[derive(Debug)]
pub struct Bench {
    /// Who takes turns.
    pub endpoints: Vec<Endpoint>,
    /// What they pull.
    pub images: Images,
    /// How much is done.
    pub scale: Scale,
    /// What came out.
    pub sheet: Sheet,
}

impl Bench {
    /// Runs the parts in their order. An endpoint that fails loses the rows that it failed in, and nothing else.
    pub async fn run(&mut self, parts: &[Part], ground: &std::path::Path) -> Result<()> {
        for endpoint in &mut self.endpoints {
            endpoint.ready().await?;
            endpoint.sweep().await.context("remove what an earlier run left")?;
            endpoint.pull().await?;
            // The first pod of a daemon makes bridges, rules and caches.
            for network in [false, true] {
                let number = endpoint.next_number();
                let warm = endpoint.up(Kind { network, seccomp: false }, number).await;
                if let Ok((running, _)) = warm {
                    endpoint.down(&running).await?;
                }
            }
        }
        for part in parts {
            eprintln!("measuring {part:?}");
            match part {
                Part::Idle => idle::pods(self).await?,
                Part::Pods => lifecycle::pods(self).await?,
                Part::Exec => lifecycle::exec(self).await?,
                Part::Logs => data::logs(self).await?,
                Part::Pull => data::pull(self).await?,
                Part::Floor => floor::measure(self, ground)?,
            }
        }
        for endpoint in &mut self.endpoints {
            endpoint.sweep().await?;
            endpoint.forget().await?;
            endpoint.rest()?;
        }
        Ok(())
    }

    /// Has the endpoints take turns. Who fails is out, with the reason in the rows that are `names`.
    async fn turns(
        &mut self,
        names: &[String],
        rounds: usize,
        mut turn: impl AsyncFnMut(&mut Self, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let mut failed = vec![false; self.endpoints.len()];
        for round in 0..rounds {
            for (index, failed) in failed.iter_mut().enumerate() {
                if *failed {
                    continue;
                }
                if let Err(error) = turn(self, index, round).await {
                    *failed = true;
                    let endpoint = &mut self.endpoints[index];
                    let reason = format!("{error:#}").replace('\n', " ");
                    eprintln!("{}: {reason}", endpoint.name);
                    for name in names {
                        self.sheet.refuse(name, &endpoint.name, &reason);
                    }
                    endpoint.ready().await.context("after a failure")?;
                    endpoint.sweep().await.context("after a failure")?;
                }
            }
        }
        Ok(())
    }

    /// Processes that serve the measurement, and are not measured.
    fn others(&self) -> [u32; 2] {
        [std::process::id(), self.images.pid()]
    }

    /// The machine's CPU time now.
    fn cpu(&self) -> Result<Cpu> {
        Cpu::now(&self.others())
    }

    /// Seconds of CPU since then, without what the machine uses anyway at that rate.
    fn used(&self, since: &Cpu, idle: f64) -> Result<f64> {
        let (busy, elapsed) = since.since(&self.others())?;
        Ok((busy - idle * elapsed).max(0.0))
    }

    /// What part of a CPU the machine uses while nothing is measured.
    async fn idle_rate(&self) -> Result<f64> {
        self.settle().await;
        let cpu = self.cpu()?;
        tokio::time::sleep(self.scale.settle).await;
        let (busy, elapsed) = cpu.since(&self.others())?;
        ensure!(elapsed > 0.0, "time stands still");
        Ok(busy / elapsed)
    }

    /// Lets the machine finish what goes on behind answers.
    async fn settle(&self) {
        tokio::time::sleep(self.scale.settle).await;
    }
}
