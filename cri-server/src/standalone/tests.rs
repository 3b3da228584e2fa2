//! The runner against a CRI server in memory: what it asks for, what it shows, what it leaves.

use std::{
    fs,
    future::Future,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{self, Handle},
    sync::watch,
    task::JoinHandle,
};
use vaina_proto::cri;

use super::{
    convert::Host,
    daemon::Daemon,
    directory::Pods,
    fake::{Fake, World},
    manifest,
    pod::{Context, Interrupts},
    ps, run, stop,
    terminal::{Terminal, tests::Kept},
};

struct Bench {
    directory: tempfile::TempDir,
    fake: Fake,
    out: Kept,
    err: Kept,
    interrupts: watch::Sender<Interrupts>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fake = Fake::start(directory.path());
        Self { fake, directory, out: Kept::default(), err: Kept::default(), interrupts: watch::Sender::default() }
    }

    fn pods(&self) -> Pods {
        Pods::new(&self.directory.path().join("root"), &self.directory.path().join("logs"))
    }

    fn daemon(&self) -> Daemon {
        Daemon::new(&self.fake.socket, None)
    }

    fn context(&self, several: bool) -> Arc<Context> {
        Arc::new(Context {
            daemon: self.daemon(),
            pods: self.pods(),
            host: Host { name: "node".to_owned(), memory: 1 << 30, resolver: String::new(), is_cgroup_v2: false },
            network: None,
            terminal: Terminal::new(Box::new(self.out.clone()), Box::new(self.err.clone()), false, 0),
            grace: None,
            back_off: Duration::from_millis(40),
            several,
        })
    }

    /// Runs pods; the answer is the exit code or the error.
    fn run(&self, text: &str) -> JoinHandle<Result<u8, String>> {
        self.run_on(&Handle::current(), text)
    }

    fn run_on(&self, runtime: &Handle, text: &str) -> JoinHandle<Result<u8, String>> {
        let pods = manifest::parse(text).unwrap();
        let context = self.context(pods.len() > 1);
        let interrupts = self.interrupts.subscribe();
        runtime.spawn(async move {
            run::run_all(&context, pods, &interrupts).await.map_err(|error| crate::error::Chain(&error).to_string())
        })
    }

    fn world<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.fake.world.lock().unwrap())
    }

    async fn until<T>(&self, what: &str, mut look: impl FnMut(&mut World) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = self.world(&mut look) {
                return found;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{what}\n{}\n{:?}",
                self.err.text(),
                self.world(|w| w.calls.clone())
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Nothing of any pod may be left.
    fn check_empty(&self) {
        self.world(|world| assert!(world.sandboxes.is_empty() && world.containers.is_empty()));
        assert!(self.pods().list().unwrap().is_empty());
        let left = |path: &Path| fs::read_dir(path).map_or(0, Iterator::count);
        assert_eq!(left(&self.directory.path().join("logs")), 0);
        assert_eq!(left(&self.directory.path().join("root/standalone")), 0);
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

fn pod(policy: &str, containers: &[(&str, &str)]) -> String {
    named("web", policy, containers)
}

fn named(name: &str, policy: &str, containers: &[(&str, &str)]) -> String {
    let containers: Vec<String> = containers
        .iter()
        .map(|(name, command)| {
            let words: Vec<String> = command.split(' ').map(|word| format!("\"{word}\"")).collect();
            format!(
                "{{name: {name}, image: \"i:1\", command: [{}], volumeMounts: [{{name: v, mountPath: /v}}]}}",
                words.join(", ")
            )
        })
        .collect();
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{restartPolicy: {policy}, \
         volumes: [{{name: v, emptyDir: {{}}}}], containers: [{}]}}}}\n",
        containers.join(", ")
    )
}

#[tokio::test]
async fn a_pod_that_is_done_ends_with_its_code_and_leaves_nothing() {
    for (policy, codes, expected) in
        [("Never", [0, 0], 0), ("Never", [0, 3], 3), ("Never", [7, 3], 7), ("OnFailure", [0, 0], 0)]
    {
        let bench = Bench::new();
        let [a, b] = codes.map(|code| format!("exit {code}"));
        let code = within(bench.run(&pod(policy, &[("a", &a), ("b", &b)]))).await.unwrap();
        assert_eq!(code, Ok(expected), "{policy} {codes:?}");
        bench.check_empty();
        let out = bench.out.text();
        let mut lines: Vec<_> = out.lines().collect();
        // Each container's own lines are in order; two containers' are as they come.
        lines.sort_unstable();
        assert_eq!(lines, ["a | hello from a", "b | hello from b"]);
        let err = bench.err.text();
        for part in ["Sandbox: at 10.88.0.9", "Started: created in ", "a ! attempt 0\n", "Removed: "] {
            assert!(err.contains(part), "{part}: {err}");
        }
        assert_eq!(err.contains("exit code 3 after"), codes[1] == 3);
    }
}

#[tokio::test]
async fn containers_are_restarted_with_back_off() {
    let bench = Bench::new();
    let run = bench.run(&pod("Always", &[("a", "exit 1"), ("b", "sleep")]));
    bench.until("four attempts", |world| world.calls.contains(&"create a 3".to_owned()).then_some(())).await;
    let err = bench.err.text();
    let waits: Vec<_> = err.lines().filter(|line| line.contains("CrashLoopBackOff")).collect();
    // The first restart is at once.
    assert!(waits[0].contains("starting again in 40 ms") && waits[1].contains("in 80 ms"), "{waits:?}");
    // One ended attempt is kept, and its log.
    bench.world(|world| {
        let attempts: Vec<_> = world
            .containers
            .values()
            .filter_map(|c| c.config.metadata.clone())
            .filter(|m| m.name == "a")
            .map(|m| m.attempt)
            .collect();
        assert!(attempts.len() <= 3 && !attempts.contains(&0), "{attempts:?}");
    });
    bench.interrupts.send_modify(|interrupts| *interrupts = Interrupts { count: 1, signal: 2 });
    assert_eq!(within(run).await.unwrap(), Ok(130));
    bench.check_empty();
}

#[tokio::test]
async fn on_failure_goes_on_until_success() {
    let bench = Bench::new();
    let run = bench.run(&pod("OnFailure", &[("a", "sleep")]));
    let first = bench.until("a runs", |world| world.running("a")).await;
    bench.world(|world| world.end(&first, 1));
    let second = bench.until("a runs again", |world| world.running("a").filter(|id| *id != first)).await;
    bench.world(|world| world.end(&second, 0));
    assert_eq!(within(run).await.unwrap(), Ok(0));
    bench.check_empty();
}

#[tokio::test]
async fn an_interrupt_stops_all_containers_at_once_and_a_second_one_tells() {
    let bench = Bench::new();
    let text = pod("Always", &[("a", "stubborn"), ("b", "stubborn"), ("c", "sleep")])
        .replace("restartPolicy", "terminationGracePeriodSeconds: 3, restartPolicy");
    let run = bench.run(&text);
    bench.until("c runs", |world| world.running("c")).await;
    let begin = Instant::now();
    bench.interrupts.send_modify(|interrupts| *interrupts = Interrupts { count: 1, signal: 15 });
    bench.until("c is stopped", |world| world.calls.iter().any(|call| call.starts_with("stop c")).then_some(())).await;
    let table = ps_table(&bench).await;
    assert!(table.contains("Terminating"), "{table}");
    bench.interrupts.send_modify(|interrupts| interrupts.count += 1);
    assert_eq!(within(run).await.unwrap(), Ok(143));
    assert!(begin.elapsed() < Duration::from_millis(5500), "one grace period, not two");
    let err = bench.err.text();
    assert!(err.contains("Stopping: within 3 s") && err.contains("Waiting: for a, b; killed in "), "{err}");
    bench.world(|world| {
        for name in ["a", "b", "c"] {
            assert!(world.calls.contains(&format!("stop {name} within 3")), "{:?}", world.calls);
        }
    });
    bench.check_empty();
}

#[tokio::test]
async fn a_pod_is_stopped_from_elsewhere() {
    let bench = Bench::new();
    let run = bench.run(&pod("Always", &[("a", "sleep")]));
    bench.until("a runs", |world| world.running("a")).await;
    let table = ps_table(&bench).await;
    assert!(table.contains("default    web   Running  1/1    0         10.88.0.9"), "{table}");
    within(stop_pod(&bench, &["web"])).await.unwrap();
    assert_eq!(within(run).await.unwrap(), Ok(0));
    bench.check_empty();
    // No restart of what was being stopped.
    bench.world(|world| assert_eq!(world.calls.iter().filter(|call| call.starts_with("create")).count(), 1));
    let missing = within(stop_pod(&bench, &["web"])).await.unwrap_err();
    assert_eq!(missing, "find pod default/web: vaina run has started none of this name");
}

#[tokio::test]
async fn a_shorter_stop_holds_for_a_pod_that_ends_already() {
    let bench = Bench::new();
    let run = bench.run(&pod("Always", &[("a", "stubborn")]));
    bench.until("a runs", |world| world.running("a")).await;
    let begin = Instant::now();
    bench.interrupts.send_modify(|interrupts| *interrupts = Interrupts { count: 1, signal: 2 });
    bench.until("the long stop", |world| world.calls.contains(&"stop a within 30".to_owned()).then_some(())).await;
    within(stop_pod(&bench, &["--force", "web"])).await.unwrap();
    assert_eq!(within(run).await.unwrap(), Ok(130));
    assert!(begin.elapsed() < Duration::from_secs(10));
    bench.world(|world| assert!(world.calls.contains(&"stop a within 2".to_owned()), "{:?}", world.calls));
    bench.check_empty();
}

#[tokio::test]
async fn a_pod_whose_runner_was_killed_is_stopped_too() {
    let bench = Bench::new();
    let process = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let run = bench.run_on(process.handle(), &pod("Always", &[("a", "sleep")]));
    bench.until("a runs", |world| world.running("a")).await;
    // All of it ends at once, wherever it is, and its lock goes.
    process.shutdown_background();
    assert!(run.await.unwrap_err().is_cancelled());
    let table = ps_table(&bench).await;
    assert!(table.contains("Running"), "{table}");
    within(stop_pod(&bench, &["web"])).await.unwrap();
    bench.world(|world| assert!(world.calls.contains(&"stop a within 30".to_owned()), "{:?}", world.calls));
    bench.check_empty();
}

#[tokio::test]
async fn a_sandbox_that_ends_under_its_pod_is_replaced() {
    let bench = Bench::new();
    let run = bench.run(&pod("Always", &[("a", "sleep"), ("b", "sleep")]));
    bench.until("b runs", |world| world.running("b")).await;
    bench.world(|world| {
        world.sandboxes.clear();
        world.containers.clear();
    });
    bench.until("both run again", |world| Some((world.running("a")?, world.running("b")?))).await;
    let err = bench.err.text();
    assert_eq!(err.matches("SandboxChanged").count(), 1, "{err}");
    bench.world(|world| {
        let attempts: Vec<_> =
            world.sandboxes.values().filter_map(|config| Some(config.metadata.clone()?.attempt)).collect();
        assert_eq!(attempts, [1]);
    });
    within(stop_pod(&bench, &["web"])).await.unwrap();
    within(run).await.unwrap().unwrap();
    bench.check_empty();
}

#[tokio::test]
async fn leftovers_are_taken_away_and_orphans_are_told_of() {
    let bench = Bench::new();
    // A runner that was killed before its pod had a sandbox.
    let mut dead = manifest::parse(&pod("Always", &[("a", "sleep")])).unwrap().remove(0);
    dead.metadata.uid = Some(super::directory::new_uid().unwrap());
    drop(bench.pods().lock().unwrap());
    drop(bench.pods().create(&dead).unwrap());
    assert_eq!(within(bench.run(&pod("Never", &[("a", "exit 0")]))).await.unwrap(), Ok(0));
    bench.check_empty();
    // And one whose pod goes on.
    dead.metadata.uid = Some(super::directory::new_uid().unwrap());
    drop(bench.pods().create(&dead).unwrap());
    let labels = [("io.kubernetes.pod.uid".to_owned(), dead.metadata.uid.clone().unwrap())];
    bench.world(|world| {
        let config = cri::PodSandboxConfig { labels: labels.clone().into(), ..Default::default() };
        world.sandboxes.insert("s".to_owned(), config);
        let config = cri::ContainerConfig {
            labels: labels.into(),
            metadata: Some(cri::ContainerMetadata::default()),
            command: vec!["sleep".to_owned()],
            ..Default::default()
        };
        let container = super::fake::Container {
            sandbox: "s".to_owned(),
            config,
            state: cri::ContainerState::ContainerRunning,
            code: 0,
            reason: String::new(),
            times: [1, 1, 0],
        };
        world.containers.insert("c".to_owned(), container);
    });
    let error = within(bench.run(&pod("Never", &[("a", "exit 0")]))).await.unwrap().unwrap_err();
    assert!(error.contains("still runs, without its runner (vaina stop web ends it)"), "{error}");
    within(stop_pod(&bench, &["web"])).await.unwrap();
    bench.check_empty();
}

#[tokio::test]
async fn a_name_that_runs_is_refused_and_a_new_pod_has_a_new_uid() {
    let bench = Bench::new();
    let first = bench.run(&pod("Always", &[("a", "sleep")]));
    let uid = |world: &mut World| {
        world.running("a")?;
        Some(world.sandboxes.values().next()?.metadata.clone()?.uid)
    };
    let old = bench.until("a runs", uid).await;
    let error = within(bench.run(&pod("Never", &[("a", "exit 0")]))).await.unwrap().unwrap_err();
    assert_eq!(error, "run pod default/web: a pod of this name still runs (vaina stop web ends it)");
    within(stop_pod(&bench, &["web"])).await.unwrap();
    assert_eq!(within(first).await.unwrap(), Ok(0));
    let second = bench.run(&pod("Always", &[("a", "sleep")]));
    let new = bench.until("a runs", uid).await;
    assert_ne!(old, new);
    within(stop_pod(&bench, &["web"])).await.unwrap();
    within(second).await.unwrap().unwrap();
    bench.check_empty();
}

#[tokio::test]
async fn what_can_not_be_started_is_told_with_its_cause() {
    for (text, code, words) in [
        (
            pod("Always", &[("a", "nostart")]),
            128,
            "start container a: StartContainer: start process: executable file not found",
        ),
        (pod("Always", &[("a", "nocreate")]), 1, "start container a: CreateContainer: this container can't be"),
        (
            pod("Always", &[("a", "sleep")]).replace("i:1", "unknown:1"),
            1,
            "start container a: PullImage: pull unknown:1: manifest unknown",
        ),
        (
            pod("Always", &[("a", "sleep")]).replace("i:1\"", "none:1\", imagePullPolicy: Never"),
            1,
            "start container a: find image none:1: it is not here and imagePullPolicy is Never",
        ),
        (
            pod("Always", &[("a", "sleep")]).replace("emptyDir: {}", "hostPath: {path: /nonexistent, type: Directory}"),
            1,
            "check hostPath volume v: /nonexistent is not a directory",
        ),
    ] {
        let bench = Bench::new();
        assert_eq!(within(bench.run(&text)).await.unwrap(), Ok(code), "{words}");
        let err = bench.err.text();
        assert!(err.contains(&format!("Failed: {words}\n")), "{words}: {err}");
        bench.check_empty();
    }
}

#[tokio::test]
async fn a_pull_that_may_work_later_is_tried_again() {
    let bench = Bench::new();
    bench.world(|world| world.failing_pulls = 2);
    let text = pod("OnFailure", &[("a", "exit 0")]).replace("i:1", "other:1");
    assert_eq!(within(bench.run(&text)).await.unwrap(), Ok(0));
    let err = bench.err.text();
    assert!(err.contains("ErrImagePull: PullImage: registry does not answer; trying again in 40 ms"), "{err}");
    assert!(err.contains("Pulled: image other:1 in "), "{err}");
    bench.check_empty();
    // Not for ever, and not for a pod that is to run once.
    for (policy, tries) in [("Always", 3), ("Never", 1)] {
        let bench = Bench::new();
        bench.world(|world| world.failing_pulls = 10);
        let text = pod(policy, &[("a", "exit 0")]).replace("i:1", "other:1");
        assert_eq!(within(bench.run(&text)).await.unwrap(), Ok(1));
        bench.world(|world| assert_eq!(world.failing_pulls, 10 - tries));
        bench.check_empty();
    }
}

#[tokio::test]
async fn several_pods_run_beside_each_other() {
    let bench = Bench::new();
    let text =
        format!("{}---\n{}", named("one", "Never", &[("a", "exit 0")]), named("two", "Never", &[("a", "exit 5")]));
    assert_eq!(within(bench.run(&text)).await.unwrap(), Ok(5));
    bench.check_empty();
    let err = bench.err.text();
    assert!(err.contains("one/a ") && err.contains("two/a "), "{err}");
}

async fn ps_table(bench: &Bench) -> String {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: ps::PsArguments,
    }
    let line = <Line as clap::Parser>::parse_from(["ps"]);
    ps::run(line.arguments, bench.daemon(), bench.pods()).await.unwrap().table
}

async fn stop_pod(bench: &Bench, words: &[&str]) -> Result<(), String> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: stop::StopArguments,
    }
    let line = <Line as clap::Parser>::parse_from(["stop"].iter().chain(words));
    let result = stop::run(line.arguments, bench.daemon(), bench.pods()).await;
    result.map_err(|error| crate::error::Chain(&error).to_string())
}
