//! The OCI runtime command line, run on real bundles. The same tests run `runc`, which tests the tests.

#![allow(missing_docs, clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test")]

mod root {
    use std::{
        fs,
        io::Read as _,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
        path::{Path, PathBuf},
        process::{Command, Output, Stdio},
        time::{Duration, Instant},
    };

    use serde_json::{Value, json};

    const OWN: &str = env!("CARGO_BIN_EXE_containerd-shim-vaina-v1");

    /// A runtime under test with a directory of its own; what is left of its containers goes with it.
    struct Runtime {
        own: bool,
        dir: tempfile::TempDir,
        name: String,
    }

    /// A container's bundle.
    struct Bundle<'a> {
        runtime: &'a Runtime,
        id: String,
        path: PathBuf,
        config: Value,
    }

    fn both(test: impl Fn(&Runtime)) {
        assert!(nix::unistd::geteuid().is_root(), "needs root");
        for own in [false, true] {
            let dir = tempfile::Builder::new().prefix("vaina-oci-").tempdir_in("/tmp").unwrap();
            let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
            test(&Runtime { own, dir, name });
        }
    }

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < deadline, "{what} does not come true");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    impl Runtime {
        fn root(&self) -> PathBuf {
            self.dir.path().join("root")
        }

        fn log(&self) -> PathBuf {
            self.dir.path().join("log.json")
        }

        fn command(&self, words: &[&str]) -> Command {
            let mut command = if self.own { Command::new(OWN) } else { Command::new("runc") };
            if self.own {
                command.arg("oci");
            }
            command.arg("--root").arg(self.root()).arg("--log").arg(self.log()).args(["--log-format", "json"]);
            command.args(words).stdin(Stdio::null());
            command
        }

        fn call(&self, words: &[&str]) -> Output {
            self.command(words).output().unwrap()
        }

        fn ok(&self, words: &[&str]) -> String {
            let output = self.call(words);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "own={} {words:?}: {error} {}", self.own, self.logged());
            String::from_utf8(output.stdout).unwrap()
        }

        /// The error of a command that must fail, from the log.
        fn error(&self, words: &[&str]) -> String {
            let _ = fs::remove_file(self.log());
            let output = self.call(words);
            assert_eq!(output.status.code(), Some(1), "own={} {words:?}", self.own);
            self.logged()
        }

        fn logged(&self) -> String {
            let text = fs::read_to_string(self.log()).unwrap_or_default();
            let last = text.lines().rev().find_map(|line| {
                let line: Value = serde_json::from_str(line).ok()?;
                (line["level"] == "error").then(|| line["msg"].as_str().unwrap_or_default().to_owned())
            });
            last.unwrap_or_default()
        }

        fn state(&self, id: &str) -> Value {
            serde_json::from_str(&self.ok(&["state", id])).unwrap()
        }

        fn bundle(&self, args: &[&str]) -> Bundle<'_> {
            let id = format!("{}-{}", self.name, fs::read_dir(self.dir.path()).unwrap().count());
            let path = self.dir.path().join(&id);
            let bin = path.join("rootfs/bin");
            fs::create_dir_all(&bin).unwrap();
            fs::create_dir(path.join("rootfs/tmp")).unwrap();
            fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
            for name in
                ["sh", "cat", "sleep", "id", "ls", "readlink", "stat", "dd", "head", "yes", "tty", "mount", "touch"]
            {
                symlink("busybox", bin.join(name)).unwrap();
            }
            let capabilities = json!(["CAP_KILL", "CAP_CHOWN"]);
            let config = json!({
                "ociVersion": "1.0.2",
                "hostname": "inside",
                "root": { "path": "rootfs" },
                "process": {
                    "user": { "uid": 0, "gid": 0 },
                    "cwd": "/",
                    "args": args,
                    "env": ["PATH=/bin", "B=2", "A=1"],
                    "noNewPrivileges": false,
                    "capabilities": {
                        "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                    },
                },
                "mounts": [
                    { "destination": "/proc", "type": "proc", "source": "proc" },
                    { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
                    { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                      "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
                    { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
                ],
                "linux": {
                    "cgroupsPath": format!("/{}/{id}", self.name),
                    "namespaces": [
                        { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" },
                    ],
                    "maskedPaths": ["/proc/kcore", "/sys/firmware"],
                    "readonlyPaths": ["/proc/sys"],
                },
            });
            Bundle { runtime: self, id, path, config }
        }
    }

    impl Drop for Runtime {
        fn drop(&mut self) {
            for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
                let id = entry.file_name();
                if !id.to_string_lossy().starts_with('.') {
                    self.call(&["delete", "--force", id.to_str().unwrap()]);
                }
            }
            for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
                let _ = fs::remove_dir(hierarchy.path().join(&self.name));
            }
        }
    }

    impl Bundle<'_> {
        fn write(&self) -> &Self {
            fs::write(self.path.join("config.json"), self.config.to_string()).unwrap();
            self
        }

        fn pid_file(&self) -> PathBuf {
            self.path.join("pid")
        }

        fn create_words(&self) -> Vec<String> {
            let path = |path: PathBuf| path.to_str().unwrap().to_owned();
            ["create", "--bundle", &path(self.path.clone()), "--pid-file", &path(self.pid_file()), &self.id]
                .map(str::to_owned)
                .to_vec()
        }

        /// Creates it; its output goes to the file `out` of the bundle.
        fn create(&self) -> u32 {
            self.write();
            let words = self.create_words();
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let out = fs::File::create(self.path.join("out")).unwrap();
            let mut command = self.runtime.command(&words);
            command.stdout(out.try_clone().unwrap()).stderr(out);
            let done = command.status().unwrap();
            assert!(done.success(), "own={}: {}", self.runtime.own, self.runtime.logged());
            fs::read_to_string(self.pid_file()).unwrap().trim().parse().unwrap()
        }

        fn start(&self) {
            self.runtime.ok(&["start", &self.id]);
        }

        fn run(&self) -> u32 {
            let pid = self.create();
            self.start();
            pid
        }

        fn stopped(&self) {
            eventually("stopped", || self.runtime.state(&self.id)["status"] == "stopped");
        }

        /// Runs it to its end, and answers what it wrote.
        fn output(&self) -> String {
            self.run();
            self.stopped();
            self.runtime.ok(&["delete", &self.id]);
            fs::read_to_string(self.path.join("out")).unwrap()
        }

        fn delete(&self) {
            self.runtime.ok(&["delete", "--force", &self.id]);
            assert!(!self.runtime.root().join(&self.id).exists());
            let group = format!("/sys/fs/cgroup/memory/{}/{}", self.runtime.name, self.id);
            assert!(!Path::new(&group).exists(), "{group} is left");
        }

        fn exec(&self, process: &Value) -> Output {
            let file = self.path.join("process.json");
            fs::write(&file, process.to_string()).unwrap();
            self.runtime.call(&["exec", "--process", file.to_str().unwrap(), &self.id])
        }
    }

    fn text(output: &Output) -> String {
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn a_container_goes_through_its_states() {
        both(|runtime| {
            let bundle = runtime.bundle(&["sh", "-c", "echo hello; exec sleep 1000"]);
            let pid = bundle.create();
            let state = runtime.state(&bundle.id);
            assert_eq!(state["status"], "created");
            assert_eq!(state["pid"], pid);
            assert_eq!(state["bundle"], bundle.path.to_str().unwrap());
            assert_eq!(state["id"], bundle.id.as_str());
            assert!(state["created"].as_str().unwrap().contains('T'));
            if runtime.own {
                // runc runs it, before the container's own program was.
                assert!(runtime.error(&["exec", &bundle.id, "sh"]).contains("cannot exec"));
            }
            bundle.start();
            eventually("output", || fs::read_to_string(bundle.path.join("out")).unwrap() == "hello\n");
            assert_eq!(runtime.state(&bundle.id)["status"], "running");
            assert!(runtime.error(&["start", &bundle.id]).contains("cannot start an already running container"));
            assert!(runtime.error(&["delete", &bundle.id]).contains("is not stopped: running"));
            let pids: Vec<u32> = serde_json::from_str(&runtime.ok(&["ps", "--format", "json", &bundle.id])).unwrap();
            assert_eq!(pids, [pid]);
            runtime.ok(&["pause", &bundle.id]);
            assert_eq!(runtime.state(&bundle.id)["status"], "paused");
            runtime.ok(&["resume", &bundle.id]);
            runtime.ok(&["kill", &bundle.id, "KILL"]);
            bundle.stopped();
            assert!(runtime.error(&["kill", &bundle.id, "KILL"]).contains("container not running"));
            assert!(runtime.error(&["start", &bundle.id]).contains("cannot start a container that has stopped"));
            runtime.ok(&["delete", &bundle.id]);
            assert!(runtime.error(&["state", &bundle.id]).contains("does not exist"));
            assert!(runtime.error(&["delete", &bundle.id]).contains("does not exist"));
            runtime.ok(&["delete", "--force", &bundle.id]);
            bundle.delete();
        });
    }

    #[test]
    fn a_signal_does_not_change_the_state() {
        both(|runtime| {
            let bundle =
                runtime.bundle(&["sh", "-c", "trap 'echo usr' USR1; echo ready; while :; do sleep 0.01; done"]);
            bundle.create();
            runtime.ok(&["kill", &bundle.id, "WINCH"]);
            assert_eq!(runtime.state(&bundle.id)["status"], "created");
            bundle.start();
            eventually("ready", || fs::read_to_string(bundle.path.join("out")).unwrap().contains("ready"));
            runtime.ok(&["kill", &bundle.id, "SIGUSR1"]);
            eventually("signal", || fs::read_to_string(bundle.path.join("out")).unwrap().contains("usr"));
            assert_eq!(runtime.state(&bundle.id)["status"], "running");
            bundle.delete();
        });
    }

    #[test]
    fn missing_commands_are_told_at_create_and_nothing_is_left() {
        both(|runtime| {
            for (command, message) in [
                ("nope", "exec: \"nope\": executable file not found in $PATH"),
                ("/bin/nope", "exec: \"/bin/nope\": stat /bin/nope: no such file or directory"),
                ("/etc-file", "exec: \"/etc-file\": permission denied"),
            ] {
                let bundle = runtime.bundle(&[command]);
                fs::write(bundle.path.join("rootfs/etc-file"), "text").unwrap();
                bundle.write();
                let words = bundle.create_words();
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let error = runtime.error(&words);
                assert!(error.contains(message), "own={}: {error}", runtime.own);
                assert!(runtime.error(&["state", &bundle.id]).contains("does not exist"));
                bundle.delete();
            }
            let bundle = runtime.bundle(&["sh"]);
            let error = runtime.error(&["create", "--bundle", bundle.path.to_str().unwrap(), &bundle.id]);
            assert!(error.contains("config.json"), "own={}: {error}", runtime.own);
        });
    }

    #[test]
    fn what_a_process_finds_is_what_was_asked_for() {
        both(|runtime| {
            let script = "id -u; id -g; id -G; readlink /proc/self/cwd; echo $A$B; cat /proc/sys/kernel/hostname; \
                 grep -E '^(SigIgn|SigBlk|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; \
                 stat -c '%a %t:%T' /dev/null /dev/zero; cat /proc/self/oom_score_adj; \
                 ls /sys/firmware | wc -l; echo x > /proc/sys/kernel/hostname || echo denied; umask; ulimit -n";
            let mut bundle = runtime.bundle(&["sh", "-c", script]);
            for name in ["grep", "wc", "echo"] {
                symlink("busybox", bundle.path.join("rootfs/bin").join(name)).unwrap();
            }
            let process = &mut bundle.config["process"];
            process["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6] });
            process["cwd"] = json!("/tmp");
            process["oomScoreAdj"] = json!(500);
            process["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 64, "hard": 64 }]);
            // Beyond the 31 classic signals it depends on who runs the tests.
            let output = bundle.output();
            let output = ["80000000", "100000000", "180000000"]
                .iter()
                .fold(output, |text, rest| text.replace(&format!("SigIgn:\t{rest:0>16}"), "SigIgn:\t0000000000000000"));
            let expected = "1000\n1001\n1001 5 6\n/tmp\n12\ninside\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n\
                CapEff:\t0000000000000000\nCapBnd:\t0000000000000021\nNoNewPrivs:\t0\nSeccomp:\t0\n666 1:3\n666 1:5\n500\n0\n\
                sh: can't create /proc/sys/kernel/hostname: Read-only file system\ndenied\n0022\n64\n";
            assert_eq!(output, expected, "own={}", runtime.own);
        });
    }

    #[test]
    fn a_root_file_system_can_be_read_only_and_devices_are_denied() {
        both(|runtime| {
            let script = "touch /x; echo $?; head -c1 /dev/zero | wc -c; mknod /dev/sda b 8 0 && head -c1 /dev/sda; echo $?; echo y >/dev/null; echo $?";
            let mut bundle = runtime.bundle(&["sh", "-c", script]);
            for name in ["wc", "echo", "mknod"] {
                symlink("busybox", bundle.path.join("rootfs/bin").join(name)).unwrap();
            }
            bundle.config["root"]["readonly"] = json!(true);
            let capabilities = json!(["CAP_MKNOD"]);
            bundle.config["process"]["capabilities"] =
                json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities });
            bundle.config["linux"]["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
            let output = bundle.output();
            let expected = "touch: /x: Read-only file system\n1\n1\nhead: /dev/sda: Operation not permitted\n1\n0\n";
            assert_eq!(output, expected, "own={}", runtime.own);
        });
    }

    #[test]
    fn existing_namespaces_are_joined() {
        both(|runtime| {
            let first = runtime.bundle(&["sleep", "1000"]);
            let pid = first.run();
            let mut second =
                runtime.bundle(&["sh", "-c", "for n in ipc uts net pid; do readlink /proc/self/ns/$n; done"]);
            // The hostname is the namespace's.
            second.config.as_object_mut().unwrap().remove("hostname");
            let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
            second.config["linux"]["namespaces"] = json!([
                { "type": "mount" }, { "type": "ipc", "path": path("ipc") }, { "type": "uts", "path": path("uts") },
                { "type": "network", "path": path("net") }, { "type": "pid", "path": path("pid") },
            ]);
            let found = second.output();
            let expected: String = ["ipc", "uts", "net", "pid"]
                .iter()
                .map(|kind| format!("{}\n", fs::read_link(path(kind)).unwrap().display()))
                .collect();
            assert_eq!(found, expected, "own={}", runtime.own);
            first.delete();
        });
    }

    #[test]
    fn the_hosts_processes_are_seen_without_a_pid_namespace_and_all_are_killed() {
        both(|runtime| {
            let mut bundle = runtime.bundle(&["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
            let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
            bundle.run();
            let pids =
                || -> Vec<u32> { serde_json::from_str(&runtime.ok(&["ps", "--format", "json", &bundle.id])).unwrap() };
            eventually("three processes", || pids().len() == 3);
            runtime.ok(&["kill", "--all", &bundle.id, "KILL"]);
            bundle.stopped();
            bundle.delete();
        });
    }

    #[test]
    fn an_exec_is_in_the_container_with_its_own_description() {
        both(|runtime| {
            let bundle = runtime.bundle(&["sleep", "1000"]);
            let pid = bundle.run();
            let process = |script: &str| {
                json!({ "user": { "uid": 7, "gid": 8, "additionalGids": [9] }, "cwd": "/tmp", "args": ["sh", "-c", script],
                        "env": ["PATH=/bin", "X=y"], "capabilities": bundle.config["process"]["capabilities"] })
            };
            let output = bundle.exec(&process(
                "id -u; id -g; id -G; pwd; echo $X; for n in ipc uts net pid mnt; do readlink /proc/self/ns/$n; done; \
                 cat /proc/self/cgroup; exit 42",
            ));
            let namespaces: String = ["ipc", "uts", "net", "pid", "mnt"]
                .iter()
                .map(|kind| format!("{}\n", fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().display()))
                .collect();
            let found = text(&output);
            assert!(found.starts_with(&format!("7\n8\n8 9\n/tmp\ny\n{namespaces}")), "own={}: {found}", runtime.own);
            let memory = format!(":memory:/{}/{}", runtime.name, bundle.id);
            assert!(found.contains(&memory), "own={}: {found}", runtime.own);
            assert_eq!(output.status.code(), Some(42), "own={}", runtime.own);

            let nope = json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["nope"], "env": ["PATH=/bin"] });
            let _ = fs::remove_file(runtime.log());
            assert!(!bundle.exec(&nope).status.success());
            assert!(
                runtime.logged().contains("exec: \"nope\": executable file not found in $PATH"),
                "{}",
                runtime.logged()
            );
            let lost = json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/lost", "args": ["sh"], "env": ["PATH=/bin"] });
            let _ = fs::remove_file(runtime.log());
            assert!(!bundle.exec(&lost).status.success());
            let error = runtime.logged();
            assert!(error.contains("chdir to cwd") && error.contains("no such file or directory"), "{error}");

            let file = bundle.path.join("process.json");
            fs::write(&file, process("exec sleep 1000").to_string()).unwrap();
            let pid_file = bundle.path.join("exec-pid");
            let (file, pid_name) = (file.to_str().unwrap(), pid_file.to_str().unwrap());
            let mut detached =
                runtime.command(&["exec", "--process", file, "--pid-file", pid_name, "--detach", &bundle.id]);
            assert!(detached.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
            let exec_pid = fs::read_to_string(&pid_file).unwrap();
            let pids = runtime.ok(&["ps", "--format", "json", &bundle.id]);
            assert!(pids.contains(exec_pid.trim()), "{pids} {exec_pid}");
            bundle.delete();
            if runtime.own {
                assert_eq!(fs::read_dir(runtime.root()).unwrap().count(), 0, "something is left of the execs");
            }
        });
    }

    #[test]
    fn a_terminal_is_handed_over() {
        both(|runtime| {
            let mut bundle = runtime.bundle(&["sh", "-c", "tty; sleep 1000"]);
            bundle.config["process"]["terminal"] = json!(true);
            bundle.write();
            let terminal = |words: &[&str]| {
                let path = bundle.path.join("console.sock");
                let _ = fs::remove_file(&path);
                let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
                let mut all = vec![words[0], "--console-socket", path.to_str().unwrap()];
                all.extend(&words[1..]);
                let mut command = runtime.command(&all);
                let done = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
                assert!(done.success(), "own={}: {}", runtime.own, runtime.logged());
                let (socket, _) = listener.accept().unwrap();
                fs::File::from(vaina_sys::pty::receive_fd(&socket).unwrap())
            };
            let line = |terminal: &mut fs::File| {
                let mut text = String::new();
                let mut byte = [0];
                while !text.ends_with('\n') {
                    terminal.read_exact(&mut byte).unwrap();
                    text.push(char::from(byte[0]));
                }
                text
            };
            let mut first = terminal(&["create", "--bundle", bundle.path.to_str().unwrap(), &bundle.id]);
            bundle.start();
            assert_eq!(line(&mut first), "/dev/pts/0\r\n");
            let process = json!({ "terminal": true, "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["tty"], "env": ["PATH=/bin"] });
            let file = bundle.path.join("process.json");
            fs::write(&file, process.to_string()).unwrap();
            let mut second = terminal(&["exec", "--detach", "--process", file.to_str().unwrap(), &bundle.id]);
            assert_eq!(line(&mut second), "/dev/pts/1\r\n");
            bundle.delete();
        });
    }

    #[test]
    fn limits_are_set_and_changed() {
        both(|runtime| {
            let mut bundle = runtime.bundle(&["sleep", "1000"]);
            bundle.config["linux"]["resources"] = json!({
                "memory": { "limit": 67_108_864 }, "cpu": { "shares": 200, "quota": 20_000, "period": 100_000 },
                "pids": { "limit": 77 },
            });
            bundle.run();
            let read = |controller: &str, file: &str| {
                let path = format!("/sys/fs/cgroup/{controller}/{}/{}/{file}", runtime.name, bundle.id);
                fs::read_to_string(path).unwrap().trim().to_owned()
            };
            assert_eq!(read("memory", "memory.limit_in_bytes"), "67108864");
            assert_eq!(read("cpu", "cpu.shares"), "200");
            assert_eq!(read("cpu", "cpu.cfs_quota_us"), "20000");
            assert_eq!(read("pids", "pids.max"), "77");
            let file = bundle.path.join("resources.json");
            fs::write(&file, json!({ "memory": { "limit": 33_554_432 } }).to_string()).unwrap();
            runtime.ok(&["update", "--resources", file.to_str().unwrap(), &bundle.id]);
            assert_eq!(read("memory", "memory.limit_in_bytes"), "33554432");
            assert_eq!(read("cpu", "cpu.shares"), "200");
            bundle.delete();
        });
    }

    #[test]
    fn a_filter_holds_for_the_container_and_for_execs() {
        both(|runtime| {
            for no_new_privileges in [false, true] {
                let mut bundle = runtime.bundle(&["sh", "-c", "mkdir /tmp/a || echo refused; sleep 1000"]);
                symlink("busybox", bundle.path.join("rootfs/bin/mkdir")).unwrap();
                bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
                bundle.config["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }],
                });
                bundle.run();
                let out = || fs::read_to_string(bundle.path.join("out")).unwrap();
                eventually("refusal", || out().contains("refused"));
                let process = json!({ "user": { "uid": 1, "gid": 1 }, "cwd": "/", "env": ["PATH=/bin"],
                    "noNewPrivileges": no_new_privileges, "capabilities": bundle.config["process"]["capabilities"],
                    "args": ["sh", "-c", "mkdir /tmp/b || echo refused; cat /proc/self/status"] });
                let found = text(&bundle.exec(&process));
                assert!(found.starts_with("refused\n"), "own={} {found} {}", runtime.own, runtime.logged());
                assert!(found.contains("Seccomp:\t2\n"), "own={} {found}", runtime.own);
                assert!(found.contains("CapBnd:\t0000000000000021\n"), "own={} {found}", runtime.own);
                assert!(found.contains("CapEff:\t0000000000000000\n"), "own={} {found}", runtime.own);
                bundle.delete();
            }
        });
    }

    #[test]
    fn a_long_root_is_no_obstacle() {
        both(|runtime| {
            let mut long = runtime.bundle(&["sleep", "1000"]);
            long.id = format!("{}-{}", runtime.name, "x".repeat(150));
            long.config["linux"]["cgroupsPath"] = json!(format!("/{}/{}", runtime.name, long.id));
            long.run();
            let process =
                json!({ "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["id", "-u"], "env": ["PATH=/bin"] });
            assert_eq!(text(&long.exec(&process)), "0\n", "own={} {}", runtime.own, runtime.logged());
            long.delete();
        });
    }

    #[test]
    fn a_user_namespace_has_the_container_its_execs_and_the_owners_of_its_mounts() {
        both(|runtime| {
            // Neither Debian's runc nor the library knows mounts with other owners.
            if !runtime.own {
                return;
            }
            assert!(runtime.ok(&["features"]).contains(r#""idmap":{"enabled":true}"#));
            let map = json!([{ "containerID": 0, "hostID": 300_000, "size": 1000 }]);
            let mut bundle =
                runtime.bundle(&["sh", "-c", "stat -c %u /v/file /plain/file; id -u; echo x > /v/new; sleep 1000"]);
            let volume = bundle.path.join("volume");
            fs::create_dir(&volume).unwrap();
            fs::write(volume.join("file"), "").unwrap();
            for directory in [runtime.dir.path(), &bundle.path] {
                fs::set_permissions(directory, fs::Permissions::from_mode(0o711)).unwrap();
            }
            std::os::unix::fs::chown(bundle.path.join("rootfs"), Some(300_000), Some(300_000)).unwrap();
            let linux = &mut bundle.config["linux"];
            linux["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
            linux["uidMappings"] = map.clone();
            linux["gidMappings"] = map.clone();
            let mounts = bundle.config["mounts"].as_array_mut().unwrap();
            mounts.push(json!({ "destination": "/v", "type": "bind", "source": volume, "options": ["rbind"],
                "uidMappings": map, "gidMappings": map }));
            mounts.push(json!({ "destination": "/plain", "type": "bind", "source": volume, "options": ["bind"] }));
            let pid = bundle.run();
            let out = || fs::read_to_string(bundle.path.join("out")).unwrap();
            eventually("written", || volume.join("new").exists());
            assert_eq!(out(), "0\n65534\n0\n");
            assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), 300_000);
            assert_eq!(fs::metadata(volume.join("new")).unwrap().uid(), 0);
            let process = json!({ "user": { "uid": 7, "gid": 8, "additionalGids": [9] }, "cwd": "/", "env": ["PATH=/bin"],
                "args": ["sh", "-c", "id -u; id -G; cat /proc/self/uid_map; head -n 60 /proc/self/status"] });
            let said = text(&bundle.exec(&process));
            let mut lines = said.lines();
            assert_eq!((lines.next(), lines.next()), (Some("7"), Some("8 9")), "{said}");
            let map: Vec<_> = lines.next().unwrap().split_whitespace().collect();
            assert_eq!(map, ["0", "300000", "1000"]);
            // Joining gives all capabilities of the namespace. The container has KILL and CHOWN, and this user none.
            assert!(said.contains("CapBnd:\t0000000000000021") && said.contains("CapEff:\t0000000000000000"), "{said}");
            bundle.delete();
        });
    }

    #[test]
    fn a_container_can_not_write_the_runtimes_executable() {
        let hash = || fs::read(OWN).unwrap();
        let before = (hash(), fs::metadata(OWN).unwrap().mtime_nsec());
        both(|runtime| {
            if !runtime.own {
                return;
            }
            // A container in the host's PID namespace with every capability, beside one whose init still is the runtime.
            let waiting = runtime.bundle(&["sleep", "1000"]);
            let pid = waiting.create();
            // While it runs, here or in a test beside this one, a program can't be written anyway. What leads to its file is
            // kept until it runs no more.
            let script = format!(
                "exec 2>&1 3</proc/{pid}/exe; echo open; while [ ! -e /go ]; do sleep 0.01; done; \
                 while said=$(dd if=/bin/busybox of=/proc/self/fd/3 bs=1 count=1 conv=notrunc 2>&1); \
                 echo \"$said\" | grep -q busy; do sleep 0.01; done; echo \"$said\"; echo done; sleep 1000"
            );
            let mut attacker = runtime.bundle(&["sh", "-c", &script]);
            let all: Vec<Value> =
                ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"].iter().map(|&name| json!(name)).collect();
            attacker.config["process"]["capabilities"] = json!({ "bounding": all, "effective": all, "permitted": all });
            let namespaces = attacker.config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
            attacker.run();
            let out = || fs::read_to_string(attacker.path.join("out")).unwrap();
            eventually("open", || out().contains("open"));
            waiting.delete();
            fs::write(attacker.path.join("rootfs/go"), "").unwrap();
            eventually("done", || out().contains("done"));
            assert!(out().contains("Read-only file system"), "{}", out());
            attacker.delete();
        });
        assert!(before == (hash(), fs::metadata(OWN).unwrap().mtime_nsec()), "the executable was changed");
        assert_eq!(fs::metadata(OWN).unwrap().permissions().mode() & 0o111, 0o111);
    }
}
