//! The serving shim over its real socket, with real containers of each OCI runtime.

#![allow(missing_docs, clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test")]

mod root {
    use std::{
        fs,
        os::unix::fs::symlink,
        path::{Path, PathBuf},
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    use containerd_shim_protos::{
        api, protobuf::Message as _, protobuf::MessageField, protobuf::well_known_types::any::Any, sandbox_api,
        sandbox_async::SandboxClient, shim_async::TaskClient, types::mount::Mount,
    };
    use serde_json::{Value, json};
    use ttrpc::context;
    use vaina_proto::shim::{
        ExitReport, HelloRequest, InspectRequest, PodClient, ReopenLogRequest, SandboxOptions, StopRequest,
        TaskOptions, WaitExitRequest,
    };

    const OWN: &str = env!("CARGO_BIN_EXE_containerd-shim-vaina-v1");
    const ID: &str = "5a0db0x";

    /// A pod's shim with everything of it in one directory.
    struct Shim {
        dir: tempfile::TempDir,
        runtime: &'static str,
        pid: u32,
        sandbox: SandboxClient,
        tasks: TaskClient,
        pod: PodClient,
    }

    fn any(url: &str, message: &impl containerd_shim_protos::protobuf::Message) -> MessageField<Any> {
        MessageField::some(Any { type_url: url.to_owned(), value: message.write_to_bytes().unwrap(), ..Any::default() })
    }

    fn limit() -> context::Context {
        context::with_duration(Duration::from_secs(20))
    }

    fn code<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (ttrpc::Code, String) {
        match answer.unwrap_err() {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message.clone()),
            other => panic!("{other}"),
        }
    }

    async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < deadline, "{what} does not come true");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Runs a test with each runtime, in one thread.
    fn each<F: Future<Output = ()>>(test: impl Fn(&'static str) -> F) {
        assert!(nix::unistd::geteuid().is_root(), "needs root");
        for runtime in ["", "runc"] {
            let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            event_loop.block_on(test(runtime));
        }
    }

    fn command(bundle: &Path, action: &str) -> Command {
        let mut command = Command::new(OWN);
        command.args(["-namespace", "vaina-test", "-id", ID, "-address", "", "-bundle"]).arg(bundle).arg(action);
        command.current_dir(bundle).stdin(Stdio::null());
        command
    }

    impl Shim {
        async fn start(runtime: &'static str) -> Self {
            let dir = tempfile::Builder::new().prefix("vaina-shim-").tempdir_in("/tmp").unwrap();
            let bundle = dir.path().join("pod");
            fs::create_dir(&bundle).unwrap();
            let output = command(&bundle, "start").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let address = String::from_utf8(output.stdout).unwrap();
            assert!(address.starts_with("unix:///"), "{address}");
            let client = ttrpc::r#async::Client::connect(&address).await.unwrap();
            let pod = PodClient::new(client.clone());
            let pid = pod.hello(limit(), &HelloRequest::new()).await.unwrap().pid;
            let (sandbox, tasks) = (SandboxClient::new(client.clone()), TaskClient::new(client));
            Self { dir, runtime, pid, sandbox, tasks, pod }
        }

        async fn sandbox(&self, options: SandboxOptions) -> u32 {
            let request = sandbox_api::CreateSandboxRequest {
                sandbox_id: ID.to_owned(),
                options: any("vaina.shim.v1.SandboxOptions", &options),
                ..Default::default()
            };
            self.sandbox.create_sandbox(limit(), &request).await.unwrap();
            self.sandbox.create_sandbox(limit(), &request).await.unwrap();
            let start = sandbox_api::StartSandboxRequest { sandbox_id: ID.to_owned(), ..Default::default() };
            self.sandbox.start_sandbox(limit(), &start).await.unwrap().pid
        }

        fn bundle(&self, id: &str, args: &[&str], pid: Option<u32>) -> PathBuf {
            let bundle = self.dir.path().join(id);
            let image = self.dir.path().join("image");
            let bin = image.join("bin");
            if !bin.exists() {
                fs::create_dir_all(&bin).unwrap();
                fs::create_dir(image.join("tmp")).unwrap();
                fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
                for name in ["sh", "cat", "sleep", "readlink", "tty", "head", "mount", "mkdir", "ls"] {
                    symlink("busybox", bin.join(name)).unwrap();
                }
            }
            for part in ["rootfs", "upper", "work"] {
                fs::create_dir_all(bundle.join(part)).unwrap();
            }
            let path = |kind: &str| format!("/proc/{}/ns/{kind}", self.pid);
            let capabilities = json!(["CAP_SYS_ADMIN", "CAP_KILL"]);
            let mut config = json!({
                "ociVersion": "1.0.2",
                "root": { "path": "rootfs" },
                "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": args, "env": ["PATH=/bin"],
                    "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities } },
                "mounts": [
                    { "destination": "/proc", "type": "proc", "source": "proc" },
                    { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
                    { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                      "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
                ],
                "linux": {
                    "cgroupsPath": format!("/{}/{id}", self.name()),
                    "namespaces": [
                        { "type": "mount" }, { "type": "ipc", "path": path("ipc") }, { "type": "uts", "path": path("uts") },
                        { "type": "network", "path": path("net") },
                    ],
                },
            });
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(match pid {
                Some(pid) => json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") }),
                None => json!({ "type": "pid" }),
            });
            fs::write(bundle.join("config.json"), config.to_string()).unwrap();
            bundle
        }

        fn name(&self) -> String {
            self.dir.path().file_name().unwrap().to_str().unwrap().to_owned()
        }

        fn log(&self, id: &str) -> PathBuf {
            self.dir.path().join("logs").join(id).join("0.log")
        }

        /// The contents of the log without their times.
        fn lines(&self, id: &str) -> Vec<String> {
            let text = fs::read_to_string(self.log(id)).unwrap_or_default();
            text.split_terminator('\n').map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
        }

        fn rootfs(&self, bundle: &Path) -> Mount {
            let overlay = |key: &str, path: PathBuf| format!("{key}={}", path.display());
            Mount {
                type_: "overlay".to_owned(),
                source: "overlay".to_owned(),
                options: vec![
                    overlay("lowerdir", self.dir.path().join("image")),
                    overlay("upperdir", bundle.join("upper")),
                    overlay("workdir", bundle.join("work")),
                ],
                ..Mount::default()
            }
        }

        async fn create(&self, id: &str, bundle: &Path, terminal: bool) -> ttrpc::Result<u32> {
            let options = TaskOptions {
                binary_name: self.runtime.to_owned(),
                root: self.dir.path().join("oci").to_str().unwrap().to_owned(),
                log_path: self.log(id).to_str().unwrap().to_owned(),
                ..TaskOptions::default()
            };
            let request = api::CreateTaskRequest {
                id: id.to_owned(),
                bundle: bundle.to_str().unwrap().to_owned(),
                rootfs: vec![self.rootfs(bundle)],
                terminal,
                options: any("vaina.shim.v1.TaskOptions", &options),
                ..Default::default()
            };
            self.tasks.create(limit(), &request).await.map(|answer| answer.pid)
        }

        async fn start_task(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
            let request = api::StartRequest { id: id.to_owned(), exec_id: exec_id.to_owned(), ..Default::default() };
            self.tasks.start(limit(), &request).await.map(|answer| answer.pid)
        }

        async fn run(&self, id: &str, args: &[&str], pid: Option<u32>) -> u32 {
            let bundle = self.bundle(id, args, pid);
            let created = self.create(id, &bundle, false).await.unwrap();
            assert_eq!(self.start_task(id, "").await.unwrap(), created);
            created
        }

        async fn exit(&self, id: &str) -> ExitReport {
            let request = WaitExitRequest { id: id.to_owned(), ..Default::default() };
            self.pod.wait_exit(limit(), &request).await.unwrap()
        }

        async fn stop(&self, id: &str, signal: u32, grace: Duration) {
            let grace = i64::try_from(grace.as_nanos()).unwrap();
            let request = StopRequest { id: id.to_owned(), signal, grace, ..Default::default() };
            self.pod.stop(limit(), &request).await.unwrap();
        }

        async fn delete(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
            let request = api::DeleteRequest { id: id.to_owned(), exec_id: exec_id.to_owned(), ..Default::default() };
            self.tasks.delete(limit(), &request).await.map(|answer| answer.exit_status)
        }

        async fn exec(&self, id: &str, exec_id: &str, args: &[&str]) -> ttrpc::Result<()> {
            let process = json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": args, "env": ["PATH=/bin"] });
            let out = format!("file://{}", self.dir.path().join(exec_id).display());
            let request = api::ExecProcessRequest {
                id: id.to_owned(),
                exec_id: exec_id.to_owned(),
                stdout: out.clone(),
                stderr: out,
                spec: MessageField::some(Any { value: process.to_string().into_bytes(), ..Any::default() }),
                ..Default::default()
            };
            self.tasks.exec(limit(), &request).await.map(drop)
        }

        async fn exec_output(&self, id: &str, exec_id: &str, args: &[&str]) -> (u32, String) {
            self.exec(id, exec_id, args).await.unwrap();
            self.start_task(id, exec_id).await.unwrap();
            let request = api::WaitRequest { id: id.to_owned(), exec_id: exec_id.to_owned(), ..Default::default() };
            let status = self.tasks.wait(limit(), &request).await.unwrap().exit_status;
            assert_eq!(self.delete(id, exec_id).await.unwrap(), status);
            (status, fs::read_to_string(self.dir.path().join(exec_id)).unwrap())
        }

        /// Ends the shim; nothing of the pod may be left.
        async fn end(self) {
            let request = sandbox_api::ShutdownSandboxRequest { sandbox_id: ID.to_owned(), ..Default::default() };
            let _ = self.sandbox.shutdown_sandbox(limit(), &request).await;
            let pid = self.pid;
            eventually("the shim's end", || !is_alive(pid)).await;
            self.nothing_left();
        }

        fn nothing_left(&self) {
            let name = self.name();
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!table.contains(&name), "mounts are left: {table}");
            for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
                let group = hierarchy.path().join(&name);
                if let Err(error) = fs::remove_dir(&group) {
                    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", group.display());
                }
            }
            assert!(!self.dir.path().join("pod/shim.sock").exists());
            let left: Vec<_> = fs::read_dir(self.dir.path().join("oci")).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    impl Drop for Shim {
        /// After a failed test; after the others it finds nothing.
        fn drop(&mut self) {
            if is_alive(self.pid) {
                let _ = command(&self.dir.path().join("pod"), "delete").output();
            }
        }
    }

    fn is_alive(pid: u32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    fn namespace(pid: u32, kind: &str) -> PathBuf {
        fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
    }

    #[test]
    fn a_pod_lives_and_dies() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            let sandbox_pid =
                shim.sandbox(SandboxOptions { hostname: "pod-name".to_owned(), ..Default::default() }).await;
            assert_eq!(sandbox_pid, shim.pid);
            assert_eq!(fs::read_dir(format!("/proc/{}/task", shim.pid)).unwrap().count(), 1, "one thread");
            let pid = shim.run("a", &["sh", "-c", "cat /proc/sys/kernel/hostname; echo err >&2; exit 7"], None).await;
            assert!(pid > 0);
            let exit = shim.exit("a").await;
            assert_eq!((exit.exit_code, exit.signal, exit.oom_killed, exit.unknown), (7, 0, false, false));
            assert!(exit.exited_at > 0);
            let mut lines = shim.lines("a");
            lines.sort();
            assert_eq!(lines, ["stderr F err", "stdout F pod-name"]);
            assert_eq!(shim.delete("a", "").await.unwrap(), 7);
            assert_eq!(code(shim.delete("a", "").await).0, ttrpc::Code::NOT_FOUND);
            shim.end().await;
        });
    }

    #[test]
    fn containers_are_in_the_pods_namespaces_and_see_later_mounts() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            shim.sandbox(SandboxOptions::default()).await;
            let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let first = shim.run("a", &["sleep", "1000"], None).await;
            assert_eq!(before, fs::read_to_string("/proc/self/mountinfo").unwrap(), "the host's table is as before");
            for kind in ["net", "ipc", "uts"] {
                assert_eq!(namespace(first, kind), namespace(shim.pid, kind), "{kind}");
                assert_ne!(namespace(first, kind), namespace(std::process::id(), kind), "{kind}");
            }
            // A mount that the host made after the shim had started.
            let volume = shim.dir.path().join("volume");
            fs::create_dir(&volume).unwrap();
            vaina_sys::mount::filesystem("tmpfs", "late", &volume, nix::mount::MsFlags::empty(), "").unwrap();
            fs::write(volume.join("file"), "late").unwrap();
            let bundle = shim.bundle("b", &["cat", "/volume/file"], None);
            let path = bundle.join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let mount =
                json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "rprivate"] });
            config["mounts"].as_array_mut().unwrap().push(mount);
            fs::write(&path, config.to_string()).unwrap();
            shim.create("b", &bundle, false).await.unwrap();
            shim.start_task("b", "").await.unwrap();
            assert_eq!(shim.exit("b").await.exit_code, 0);
            assert_eq!(shim.lines("b"), ["stdout P late"]);
            vaina_sys::mount::detach(&volume).unwrap();
            shim.end().await;
        });
    }

    #[test]
    fn a_bidirectional_volume_reaches_the_host_and_nothing_else_does() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            shim.sandbox(SandboxOptions::default()).await;
            let volume = shim.dir.path().join("volume");
            fs::create_dir(&volume).unwrap();
            vaina_sys::mount::filesystem("tmpfs", "shared", &volume, nix::mount::MsFlags::empty(), "").unwrap();
            vaina_sys::mount::set_propagation(&volume, vaina_sys::mount::Propagation::Shared, false).unwrap();
            let bundle =
                shim.bundle("a", &["sh", "-c", "mkdir /volume/m && mount -t tmpfs inner /volume/m; sleep 1000"], None);
            let path = bundle.join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            let mount =
                json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "rshared"] });
            config["mounts"].as_array_mut().unwrap().push(mount);
            config["linux"]["rootfsPropagation"] = json!("rshared");
            fs::write(&path, config.to_string()).unwrap();
            shim.create("a", &bundle, false).await.unwrap();
            shim.start_task("a", "").await.unwrap();
            let inner = volume.join("m");
            eventually("the mount on the host", || {
                fs::read_to_string("/proc/self/mountinfo").unwrap().contains(inner.to_str().unwrap())
            })
            .await;
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            assert!(!table.contains("rootfs"), "{table}");
            shim.stop("a", 0, Duration::ZERO).await;
            shim.exit("a").await;
            vaina_sys::mount::detach(&inner).unwrap();
            vaina_sys::mount::detach(&volume).unwrap();
            shim.end().await;
        });
    }

    #[test]
    fn a_shared_pid_namespace_is_reaped_and_emptied() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            let init = shim.sandbox(SandboxOptions { shared_pid: true, ..Default::default() }).await;
            assert_ne!(init, shim.pid);
            assert!(fs::read_to_string(format!("/proc/{init}/cmdline")).unwrap().starts_with("vaina-init"));
            assert_eq!(namespace(init, "net"), namespace(shim.pid, "net"));
            // A child whose parent ends is the init's, and a zombie only for a moment.
            let script = "(sleep 0.05 & echo $! >/tmp/orphan; exec sleep 0) ; sleep 1000 & exec sleep 1000";
            let first = shim.run("a", &["sh", "-c", script], Some(init)).await;
            let second = shim.run("b", &["sleep", "1000"], Some(init)).await;
            assert_eq!(namespace(first, "pid"), namespace(second, "pid"));
            let shared = namespace(first, "pid");
            let inside = || {
                fs::read_dir("/proc")
                    .unwrap()
                    .flatten()
                    .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
                    .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == shared))
                    .count()
            };
            // The init, two of the first, one of the second.
            eventually("the orphan's end", || inside() == 4).await;
            // The first container's second process is killed with it, though the namespace lives on.
            shim.stop("a", 15, Duration::from_secs(30)).await;
            let exit = shim.exit("a").await;
            assert_eq!((exit.exit_code, exit.signal), (143, 15));
            eventually("the rest", || inside() == 2).await;
            // What its own processes send it does not end it.
            let (status, _) = shim.exec_output("b", "e", &["sh", "-c", "kill -9 1; kill -15 1; exit 0"]).await;
            assert_eq!(status, 0);
            assert!(is_alive(init));
            shim.end().await;
            assert!(!is_alive(init));
        });
    }

    #[test]
    fn execs_run_fail_and_are_killed() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            shim.sandbox(SandboxOptions::default()).await;
            shim.run("a", &["sleep", "1000"], None).await;
            let found = shim.exec_output("a", "one", &["sh", "-c", "echo out; echo err >&2; exit 3"]).await;
            assert_eq!(found, (3, "out\nerr\n".to_owned()));
            shim.exec("a", "nope", &["nope"]).await.unwrap();
            let (_, message) = code(shim.start_task("a", "nope").await);
            assert!(message.contains("executable file not found in $PATH"), "{message}");
            shim.delete("a", "nope").await.unwrap();
            // A probe that hangs is killed with what it started.
            shim.exec("a", "hang", &["sh", "-c", "sleep 1001 & sleep 1001; :"]).await.unwrap();
            shim.start_task("a", "hang").await.unwrap();
            let pids = || async {
                let request = api::PidsRequest { id: "a".to_owned(), ..Default::default() };
                shim.tasks.pids(limit(), &request).await.unwrap().processes.len()
            };
            while pids().await < 4 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert_eq!(code(shim.exec("a", "hang", &["sh"]).await).0, ttrpc::Code::ALREADY_EXISTS);
            let kill = api::KillRequest {
                id: "a".to_owned(),
                exec_id: "hang".to_owned(),
                signal: 9,
                all: true,
                ..Default::default()
            };
            shim.tasks.kill(limit(), &kill).await.unwrap();
            let wait = api::WaitRequest { id: "a".to_owned(), exec_id: "hang".to_owned(), ..Default::default() };
            assert_eq!(shim.tasks.wait(limit(), &wait).await.unwrap().exit_status, 137);
            while pids().await > 1 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert_eq!(code(shim.tasks.kill(limit(), &kill).await).0, ttrpc::Code::NOT_FOUND);
            shim.end().await;
        });
    }

    #[test]
    fn a_failed_create_leaves_nothing_and_names_the_cause() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            shim.sandbox(SandboxOptions::default()).await;
            let bundle = shim.bundle("a", &["nope"], None);
            let (_, message) = code(shim.create("a", &bundle, false).await);
            assert!(message.contains("\"nope\": executable file not found in $PATH"), "{message}");
            assert_eq!(code(shim.delete("a", "").await).0, ttrpc::Code::NOT_FOUND);
            // The same name can be made again.
            shim.run("a", &["sleep", "1000"], None).await;
            assert_eq!(code(shim.create("a", &bundle, false).await).0, ttrpc::Code::ALREADY_EXISTS);
            assert_eq!(code(shim.start_task("a", "").await).0, ttrpc::Code::FAILED_PRECONDITION);
            assert_eq!(code(shim.delete("a", "").await).0, ttrpc::Code::FAILED_PRECONDITION);
            shim.end().await;
        });
    }

    #[test]
    fn a_stop_ends_by_signal_by_clock_or_at_once() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            shim.sandbox(SandboxOptions::default()).await;
            let deaf = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"];
            for id in ["a", "b", "c"] {
                shim.run(id, &deaf, None).await;
                eventually("ready", || shim.lines(id) == ["stdout F ready"]).await;
            }
            let begun = Instant::now();
            shim.stop("a", 15, Duration::from_millis(300)).await;
            let exit = shim.exit("a").await;
            assert_eq!((exit.exit_code, exit.signal), (137, 9));
            assert!(begun.elapsed() >= Duration::from_millis(300));
            // A later call shortens the clock and can't lengthen it.
            shim.stop("b", 15, Duration::from_secs(600)).await;
            shim.stop("b", 15, Duration::from_millis(50)).await;
            shim.stop("b", 15, Duration::from_secs(600)).await;
            assert_eq!(shim.exit("b").await.signal, 9);
            shim.stop("c", 0, Duration::ZERO).await;
            assert_eq!(shim.exit("c").await.signal, 9);
            // Again, after the end: nothing to do.
            shim.stop("c", 15, Duration::ZERO).await;
            let inspected = shim.pod.inspect(limit(), &InspectRequest::new()).await.unwrap();
            assert_eq!(inspected.containers.len(), 3);
            assert!(inspected.containers.iter().all(|container| container.exit.exit_code == 137 && container.pid == 0));
            shim.end().await;
        });
    }

    #[test]
    fn a_created_container_can_be_deleted() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            shim.sandbox(SandboxOptions::default()).await;
            let bundle = shim.bundle("a", &["sleep", "1000"], None);
            shim.create("a", &bundle, false).await.unwrap();
            assert_eq!(shim.delete("a", "").await.unwrap(), 137);
            shim.end().await;
        });
    }

    #[test]
    fn terminals_are_logged_and_logs_reopened() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            shim.sandbox(SandboxOptions::default()).await;
            let bundle = shim.bundle(
                "a",
                &["sh", "-c", "tty; while [ ! -e /go ]; do sleep 0.01; done; echo two; sleep 1000"],
                None,
            );
            let path = bundle.join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config["process"]["terminal"] = json!(true);
            fs::write(&path, config.to_string()).unwrap();
            shim.create("a", &bundle, true).await.unwrap();
            shim.start_task("a", "").await.unwrap();
            eventually("tty", || shim.lines("a") == ["stdout F /dev/pts/0\r"]).await;
            let size = api::ResizePtyRequest { id: "a".to_owned(), width: 100, height: 40, ..Default::default() };
            shim.tasks.resize_pty(limit(), &size).await.unwrap();
            let old = shim.dir.path().join("old.log");
            fs::rename(shim.log("a"), &old).unwrap();
            let reopen = ReopenLogRequest { id: "a".to_owned(), ..Default::default() };
            shim.pod.reopen_log(limit(), &reopen).await.unwrap();
            assert!(shim.log("a").exists());
            shim.exec_output("a", "go", &["sh", "-c", ": >/go"]).await;
            eventually("the second line", || shim.lines("a") == ["stdout F two\r"]).await;
            shim.end().await;
        });
    }

    #[test]
    fn a_delete_cleans_up_after_a_killed_shim() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            let init = shim.sandbox(SandboxOptions { shared_pid: true, ..Default::default() }).await;
            let first = shim.run("a", &["sleep", "1000"], Some(init)).await;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim.pid.cast_signed()), nix::sys::signal::SIGKILL)
                .unwrap();
            eventually("the shim's end", || !is_alive(shim.pid)).await;
            assert!(is_alive(first), "containers outlive their shim");
            let output = command(&shim.dir.path().join("pod"), "delete").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let answer = api::DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
            assert_eq!(answer.exit_status, 137);
            eventually("the container's end", || !is_alive(first) && !is_alive(init)).await;
            shim.nothing_left();
            // Again: done is done.
            assert!(command(&shim.dir.path().join("pod"), "delete").status().unwrap().success());
        });
    }

    #[test]
    fn an_oom_kill_is_told() {
        each(|runtime| async move {
            let shim = Shim::start(runtime).await;
            shim.sandbox(SandboxOptions::default()).await;
            let bundle = shim.bundle("a", &["sh", "-c", "x=a; while :; do x=$x$x; done"], None);
            let path = bundle.join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config["linux"]["resources"] = json!({ "memory": { "limit": 16_777_216 } });
            fs::write(&path, config.to_string()).unwrap();
            shim.create("a", &bundle, false).await.unwrap();
            shim.start_task("a", "").await.unwrap();
            let exit = shim.exit("a").await;
            assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, true));
            shim.end().await;
        });
    }
}
