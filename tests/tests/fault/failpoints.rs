//! Every failpoint of a pod's life, with everything that can happen there. Then the client's retries must lead to the same end:
//! one thing of each, the container's own exit code and whole log where its shim lived, receipts without remains, no leaks.
//!
//! `make fault` plays a few cases, chosen by the seed; `make fault-all` plays all of them (`VAINA_FAULT_ALL`).
//! `VAINA_FAULT_CASE` names one point. A point that no life passes fails the suite.

use std::env;

use anyhow::{Context as _, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vaina_tests::{
    images::{self, layer::Layer},
    leak,
    node::{Node, e2e_with},
    registry::{FakeRegistry, Manner},
    wait,
};

use crate::{
    life::Life,
    moments::Moments,
    points::{Place, Points, place},
};

/// What happens to who passes a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    /// It is killed: the daemon, the shim or the OCI runtime.
    Kill,
    /// It fails.
    Error,
    /// The client leaves while it is held, and calls again.
    Cut,
    /// The shims die while the daemon or the runtime is held.
    KillShim,
    /// The daemon dies while the shim or the runtime is held.
    KillDaemon,
}

impl Disturbance {
    fn is_possible(self, point: &str, fails: bool) -> bool {
        match self {
            Self::Kill | Self::Cut => true,
            Self::Error => fails,
            Self::KillShim => place(point) != Place::Shim,
            Self::KillDaemon => place(point) != Place::Daemon,
        }
    }

    /// Whether the container may lose its end: its shim was killed.
    fn costs_the_shim(self, point: &str) -> bool {
        self == Self::KillShim || (self == Self::Kill && place(point) == Place::Shim)
    }

    fn action(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Error => "error",
            Self::Cut | Self::KillShim | Self::KillDaemon => "hold",
        }
    }

    /// What is done once somebody is struck.
    async fn strike(self, node: &mut Node, points: &Points, life: &Life, point: &str) -> Result<()> {
        match self {
            Self::Kill if place(point) == Place::Daemon => {
                node.kill_daemon()?;
                node.start_daemon().await
            }
            Self::Kill | Self::Error => Ok(()),
            Self::Cut => {
                life.cut.notify_one();
                points.release(point);
                Ok(())
            }
            Self::KillShim => {
                for process in leak::processes(&node.scope())? {
                    if process.pid != node.daemon_pid() && crate::is_shim(process.pid) {
                        let _ = kill(Pid::from_raw(i32::try_from(process.pid)?), Signal::SIGKILL);
                    }
                }
                points.release(point);
                Ok(())
            }
            Self::KillDaemon => {
                node.kill_daemon()?;
                points.release(point);
                node.start_daemon().await
            }
        }
    }
}

/// Plays all cases of one disturbance, or as many as are asked for.
fn suite(disturbance: Disturbance) {
    let points = Points::new().expect("make the directory of the failpoints");
    e2e_with(points.options().expect("find the programs"), async move |node| {
        // The log is searched for what must not be in it; of the rest much is said where so much fails.
        node.allow("");
        let mut moments = Moments::from_environment(8);
        play(node, &points, "undisturbed", None).await?;
        let all = points.all()?;
        let reached = points.reached()?;
        ensure!(all.keys().eq(&reached), "points {:?} and those passed {reached:?} differ", all.keys());

        let mut cases: Vec<_> = all
            .iter()
            .filter(|(point, fails)| disturbance.is_possible(point, **fails))
            .map(|(point, _)| point)
            .collect();
        ensure!(!cases.is_empty(), "{disturbance:?} is possible nowhere: the programs' points are not all seen");
        if let Ok(wanted) = env::var("VAINA_FAULT_CASE") {
            cases.retain(|point| **point == wanted);
        } else if env::var_os("VAINA_FAULT_ALL").is_none() {
            cases =
                (0..moments.rounds.min(cases.len())).map(|_| cases.swap_remove(moments.below(cases.len()))).collect();
        }
        let mut failures = Vec::new();
        for (number, point) in cases.iter().enumerate() {
            if let Err(error) = play(node, &points, &format!("case-{number}"), Some((disturbance, point))).await {
                println!("FAILED {disturbance:?} at {point}: {error:?}");
                failures.push(format!("{disturbance:?} at {point}: {error:#}"));
                points.release(point);
                break;
            }
        }
        println!("{moments}: {disturbance:?} at {} failpoints of {}", cases.len(), all.len());
        ensure!(failures.is_empty(), "{moments}:\n{}", failures.join("\n"));
        Ok(())
    });
}

/// One life, with one disturbance.
async fn play(node: &mut Node, points: &Points, name: &str, case: Option<(Disturbance, &String)>) -> Result<()> {
    let registry = FakeRegistry::start(Manner::Open)?;
    registry.add("app", "1", &images::Image::new().layer(Layer::new().file("app", 0o644, b"hello")).build()?)?;
    let life = Life::new(node, name, &format!("{}/app:1", registry.address))?;
    let end = match case {
        None => life.live().await?,
        Some((disturbance, point)) => {
            points.arm(point, disturbance.action())?;
            let strike = async {
                wait::until(&format!("{point} is passed"), async || Ok(points.has_struck(point).then_some(()))).await?;
                disturbance.strike(node, points, &life, point).await
            };
            let (end, struck) = tokio::join!(life.live(), strike);
            points.release(point);
            struck?;
            end?
        }
    };
    let shim_lived = !case.is_some_and(|(disturbance, point)| disturbance.costs_the_shim(point));
    ensure!(!shim_lived || (end.code == 7 && end.log_is_whole), "{end:?}");
    ensure!(!life.was_doubled(), "two copies of the container ran at the same time");
    for text in ["but not all of it", "panicked at"] {
        ensure!(!node.daemon_log().contains(text), "the daemon's log says {text:?}");
    }
    // The daemon keeps its connection as long as the registry does.
    drop(registry);
    node.check_leaks().await.context("after the last removal")
}

#[test]
fn whoever_is_killed_at_a_failpoint_costs_nothing() {
    suite(Disturbance::Kill);
}

#[test]
fn an_error_at_a_failpoint_costs_nothing() {
    suite(Disturbance::Error);
}

#[test]
fn a_client_that_leaves_at_a_failpoint_costs_nothing() {
    suite(Disturbance::Cut);
}

#[test]
fn a_shim_that_dies_while_somebody_is_at_a_failpoint_costs_its_pod_only() {
    suite(Disturbance::KillShim);
}

#[test]
fn a_daemon_that_dies_while_somebody_is_at_a_failpoint_costs_nothing() {
    suite(Disturbance::KillDaemon);
}

/// What is shipped has none: neither the variable nor a name is in it.
#[test]
fn the_programs_of_users_have_no_failpoints() {
    let programs = vaina_tests::require::programs().expect("find the programs");
    let with = vaina_tests::require::programs_with_failpoints().expect("find the programs with failpoints");
    let has = |path: &std::path::Path| {
        let bytes = std::fs::read(path).expect("read a program");
        bytes.windows(16).any(|window| window == b"VAINA_FAILPOINTS")
    };
    assert!(!has(&programs.vaina) && !has(&programs.shim), "failpoints are in {programs:?}");
    assert!(has(&with.vaina) && has(&with.shim), "failpoints are not in {with:?}");
}
