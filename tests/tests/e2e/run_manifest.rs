//! What a manifest says is done, seen from inside the containers; what is not possible is refused and leaves nothing.

use std::{fs, os::unix::net::UnixListener, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use vaina_tests::{
    http,
    node::{IMAGE, Node, e2e, e2e_with, run},
};

use super::run::{alone, container, sh, stay};

/// Runs a pod to its end and answers what its container wrote, without the name before each line.
async fn output(node: &Node, name: &str, mut spec: Value) -> Result<String> {
    spec["restartPolicy"] = "Never".into();
    let manifest = node.manifest(name, &spec)?;
    let ended = node.ended(&["run", &manifest]).await?;
    ensure!(ended.code == 0, "exit code {}:\n{}{}", ended.code, ended.out, ended.err);
    let text = |line: &str| Some(format!("{}\n", line.split_once(" | ")?.1));
    Ok(ended.out.lines().filter_map(text).collect())
}

/// As [`output`], of one container with more fields.
async fn output_of(node: &Node, script: &str, more: Value) -> Result<String> {
    let mut container = sh("c", script);
    merge(&mut container, more);
    output(node, "pod", json!({ "containers": [container] })).await
}

fn merge(value: &mut Value, more: Value) {
    if let (Some(fields), Value::Object(more)) = (value.as_object_mut(), more) {
        fields.extend(more);
    }
}

#[test]
fn command_arguments_environment_and_working_directory() {
    e2e(async |node| {
        let script = "pwd; echo \"$0 $1 $GREETING $NAME/$NAMESPACE $LABEL $NODE\"; echo $ADDRESS; hostname -i";
        let spec = json!({ "containers": [{
            "name": "c",
            "image": IMAGE,
            "command": ["sh", "-c", script],
            "args": ["zero", "$(WHO) $$(WHO)"],
            "workingDir": "/var",
            "env": [
                { "name": "WHO", "value": "you" },
                { "name": "GREETING", "value": "hello-$(WHO)" },
                { "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                { "name": "NAMESPACE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } },
                { "name": "LABEL", "valueFrom": { "fieldRef": { "fieldPath": "metadata.labels['app']" } } },
                { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                { "name": "ADDRESS", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            ],
        }]});
        let text = output(node, "web", spec).await?;
        let lines: Vec<&str> = text.lines().collect();
        let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        assert_eq!(lines[..2], ["/var", &format!("zero you $(WHO) hello-you web/default  {host}")]);
        assert_eq!(lines[2], lines[3]);
        // The image's own arguments go with the image's own command.
        assert_eq!(output(node, "none", json!({ "containers": [{ "name": "c", "image": IMAGE }] })).await?, "");
        Ok(())
    });
}

#[test]
fn empty_dirs_are_on_disk_or_in_memory_and_end_with_the_pod() {
    e2e(async |node| {
        let script = "echo x > /disk/x; stat -c %a /disk /memory; df -k /memory | awk 'NR == 2 { print $2 }'; \
            dd if=/dev/zero of=/memory/big bs=1M count=3 2>/dev/null || echo full; \
            cat /ro/x; touch /ro/x || echo read-only";
        let mut container = sh("c", script);
        container["volumeMounts"] = json!([
            { "name": "disk", "mountPath": "/disk" },
            { "name": "memory", "mountPath": "/memory" },
            { "name": "disk", "mountPath": "/ro", "readOnly": true },
        ]);
        let volumes = json!([
            { "name": "disk", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "2Mi" } },
        ]);
        let text = output(node, "web", json!({ "containers": [container], "volumes": volumes })).await?;
        assert_eq!(text, "777\n777\n2048\nfull\nx\nread-only\n");
        Ok(())
    });
}

#[test]
fn host_paths_are_checked_or_made_as_their_type_says() {
    e2e(async |node| {
        let base = node.volume("host")?;
        let at = |name: &str| base.join(name).to_string_lossy().into_owned();
        fs::write(at("file"), "content\n")?;
        let _socket = UnixListener::bind(at("socket"))?;
        let pod = |path: &str, kind: &str| {
            let mut container =
                sh("c", "if test -d /x; then echo dir; elif test -S /x; then echo socket; else cat /x; fi");
            container["volumeMounts"] = json!([{ "name": "v", "mountPath": "/x" }]);
            let volumes = json!([{ "name": "v", "hostPath": { "path": path, "type": kind } }]);
            json!({ "restartPolicy": "Never", "containers": [container], "volumes": volumes })
        };
        for (path, kind, seen) in [
            (at(""), "", "dir\n"),
            (at(""), "Directory", "dir\n"),
            (at("new/deep"), "DirectoryOrCreate", "dir\n"),
            (at("file"), "File", "content\n"),
            (at("new-file"), "FileOrCreate", ""),
            (at("socket"), "Socket", "socket\n"),
            ("/dev/null".to_owned(), "CharDevice", ""),
        ] {
            assert_eq!(output(node, "web", pod(&path, kind)).await.with_context(|| format!("{path} {kind}"))?, seen);
        }
        assert!(base.join("new/deep").is_dir() && base.join("new-file").is_file());
        for (path, kind, words) in [
            (at("file"), "Directory", "is not a directory"),
            (at("none"), "File", "is not a file"),
            (at("file"), "Socket", "is not a socket"),
            ("/dev/null".to_owned(), "BlockDevice", "is not a block device"),
        ] {
            let manifest = node.manifest("wrong", &pod(&path, kind))?;
            let refused = node.ended(&["run", &manifest]).await?.expect(1)?;
            let expected = format!("Failed: check hostPath volume v: {path} {words}");
            assert!(refused.err.contains(&expected), "{}", refused.err);
        }
        Ok(())
    });
}

#[test]
fn a_host_port_is_reached_from_the_node_and_goes_with_the_pod() {
    e2e(async |node| {
        let script = "mkdir /tmp/www; echo page > /tmp/www/index.html; httpd -p 80 -h /tmp/www; echo up";
        let mut web = stay("web", script);
        web["ports"] = json!([{ "containerPort": 80, "hostPort": 8088 }]);
        let spec = json!({ "containers": [web] });
        let manifest = node.manifest("web", &spec)?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("| up").await?;
        assert_eq!(http::get("127.0.0.1:8088", "/")?, "page\n");
        // Another pod can't have it.
        let manifest = node.manifest("other", &spec)?;
        let refused = node.ended(&["run", &manifest]).await?.expect(1)?;
        assert!(refused.err.contains("8088") && refused.err.contains("Removed: in"), "{}", refused.err);
        running.signal(Signal::SIGINT)?;
        running.end().await?.expect(130)?;
        assert!(http::get("127.0.0.1:8088", "/").is_err());
        Ok(())
    });
}

#[test]
fn the_nodes_namespaces_are_shared_as_the_manifest_says() {
    e2e(async |node| {
        let script = "for n in net ipc pid uts; do readlink /proc/self/ns/$n; done; hostname";
        let own: Vec<String> = ["net", "ipc", "pid", "uts"]
            .iter()
            .map(|kind| Ok(fs::read_link(format!("/proc/thread-self/ns/{kind}"))?.to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        for (field, shared) in
            [("none", vec![]), ("hostNetwork", vec![0, 3]), ("hostIPC", vec![1]), ("hostPID", vec![2])]
        {
            let mut spec = json!({ "containers": [sh("c", script)] });
            if field != "none" {
                spec[field] = true.into();
            }
            let text = output(node, "web", spec).await?;
            let lines: Vec<&str> = text.lines().collect();
            for (index, own) in own.iter().enumerate() {
                assert_eq!(lines[index] == own, shared.contains(&index), "{field}: {text}");
            }
            assert_eq!(lines[4], if field == "hostNetwork" { &host } else { "web" }, "{field}");
        }
        Ok(())
    });
}

#[test]
fn containers_that_share_processes_see_each_other() {
    e2e(async |node| {
        let look = "until pidof sleep >/dev/null; do :; done; kill -9 $(pidof sleep); cat /proc/1/comm";
        let spec = |shared: bool| {
            json!({
                "restartPolicy": "Never",
                "shareProcessNamespace": shared,
                "containers": [sh("sleeper", "exec sleep 1000"), sh("c", look)],
            })
        };
        let manifest = node.manifest("web", &spec(true))?;
        let ended = node.ended(&["run", &manifest]).await?.expect(137)?;
        assert!(!ended.out.contains("| sh"), "the first process is the pod's: {}", ended.out);
        Ok(())
    });
}

#[test]
fn users_groups_and_capabilities() {
    e2e(async |node| {
        let script = "id -u; id -g; id -G; grep CapEff /proc/self/status | cut -f2; \
            touch /x 2>/dev/null && echo writable; \
            grep NoNewPrivs /proc/self/status | cut -f2; ls /dev | grep -c kmsg";
        let none = "0000000000000000";
        // The image's user 1000 is in a group of the image.
        for (context, expected) in [
            (json!({}), "0\n0\n0\n00000000a80425fb\nwritable\n0\n0\n"),
            (json!({ "runAsUser": 1000, "runAsGroup": 2000 }), &format!("1000\n2000\n2000 50000\n{none}\n0\n0\n")),
            (
                json!({ "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] }, "readOnlyRootFilesystem": true }),
                "0\n0\n0\n0000000000001000\n0\n0\n",
            ),
            (json!({ "allowPrivilegeEscalation": false }), "0\n0\n0\n00000000a80425fb\nwritable\n1\n0\n"),
        ] {
            let more = json!({ "securityContext": context });
            let text = output_of(node, &format!("{script} || true"), more).await?;
            assert_eq!(text, expected, "{context}");
        }
        let text = output_of(node, script, json!({ "securityContext": { "privileged": true } })).await?;
        let lines: Vec<&str> = text.lines().collect();
        let all = fs::read_to_string("/proc/self/status")?;
        let all = all.lines().find_map(|line| line.strip_prefix("CapEff:\t")).context("CapEff")?;
        assert_eq!((lines[3], lines[6]), (all, "1"));
        Ok(())
    });
}

#[test]
fn a_volume_belongs_to_the_pods_group() {
    e2e(async |node| {
        let mut container = sh("c", "id -G; touch /v/x; stat -c '%u %g' /v/x");
        container["volumeMounts"] = json!([{ "name": "v", "mountPath": "/v" }]);
        let spec = json!({
            "securityContext": { "runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "supplementalGroups": [4000] },
            "containers": [container],
            "volumes": [{ "name": "v", "emptyDir": {} }],
        });
        assert_eq!(output(node, "web", spec).await?, "3000 2000 4000 50000\n1000 2000\n");
        let mut root = sh("c", "true");
        root["securityContext"] = json!({ "runAsNonRoot": true });
        let manifest = node.manifest("root", &json!({ "containers": [root] }))?;
        let refused = node.ended(&["run", &manifest]).await?.expect(1)?;
        let words = "run container c as non-root: the image's user is root, so runAsUser must name another";
        assert!(refused.err.contains(words), "{}", refused.err);
        Ok(())
    });
}

#[test]
fn resources_are_in_the_control_group() {
    e2e(async |node| {
        let mut limited = stay("c", "cat /proc/self/oom_score_adj; echo up");
        limited["resources"] =
            json!({ "requests": { "memory": "32Mi" }, "limits": { "cpu": "500m", "memory": "64Mi" } });
        let spec = json!({ "containers": [limited] });
        let manifest = node.manifest("web", &spec)?;
        let running = node.run_manifests(&[&manifest], 1).await?;
        running.wait_for("| up").await?;
        // Between those that have what they ask for and those that ask for nothing.
        let score = running.out().lines().next().and_then(|line| line.rsplit(' ').next()?.parse::<i32>().ok());
        assert!(score.is_some_and(|score| (900..=999).contains(&score)), "{}", running.out());
        let (_, found) = container("c").await?;
        let group = format!("vaina/{}/{}", found.pod_sandbox_id, found.id);
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let wanted = if unified {
            [("", "memory.max", "67108864"), ("", "cpu.max", "50000 100000")]
        } else {
            [("memory/", "memory.limit_in_bytes", "67108864"), ("cpu/", "cpu.cfs_quota_us", "50000")]
        };
        for (controller, file, value) in wanted {
            let path = format!("/sys/fs/cgroup/{controller}{group}/{file}");
            assert_eq!(fs::read_to_string(&path).context(path)?.trim(), value);
        }
        running.signal(Signal::SIGINT)?;
        running.end().await?.expect(130)?;
        Ok(())
    });
}

#[test]
fn a_rule_of_another_table_that_drops_the_pods_traffic_is_named() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let rules = "table ip foreign {\n chain guard {\n type filter hook forward priority 10; policy accept;\n \
            ip saddr 10.88.0.0/16 drop\n }\n }\n";
        let file = node.file("foreign.nft", rules)?;
        run(Command::new("nft").args(["-f", &file]))?;
        let manifest = node.manifest("web", &json!({ "restartPolicy": "Never", "containers": [sh("c", "true")] }))?;
        let ended = node.ended(&["run", &manifest]).await?.expect(0)?;
        let line = ended.err.lines().find(|line| line.contains("Firewall: ")).context(ended.err.clone())?;
        for word in ["foreign", "guard", "drop"] {
            assert!(line.contains(word), "no {word:?} in {line}");
        }
        run(Command::new("nft").args(["delete", "table", "ip", "foreign"]))?;
        let ended = node.ended(&["run", &manifest]).await?.expect(0)?;
        assert!(!ended.err.contains("Firewall"), "{}", ended.err);
        Ok(())
    });
}

#[test]
fn what_can_not_be_run_is_refused_with_its_place_and_leaves_nothing() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let pod = |rest: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{rest}");
        let container = "  containers:\n  - name: c\n    image: vaina.test/base:1\n";
        for (text, words) in [
            (
                pod(&format!("{container}    comand: [x]\n")),
                ":8: spec.containers[0].comand: unknown field (did you mean command?)",
            ),
            (
                pod(&format!("{container}    livenessProbe: {{exec: {{command: [x]}}}}\n")),
                ":8: spec.containers[0].livenessProbe is not supported yet",
            ),
            (pod(&format!("{container}  nodeSelector: {{a: b}}\n")), ":8: spec.nodeSelector is not supported yet"),
            (
                pod(&format!("{container}    volumeMounts: [{{name: v, mountPath: /v}}]\n")),
                "no volume \"v\" in spec.volumes",
            ),
            (pod("  containers: []\n"), "spec.containers: required"),
            ("apiVersion: v1\nkind: [Pod\n".to_owned(), "is not YAML: "),
            (
                "apiVersion: apps/v1\nkind: Deployment\n".to_owned(),
                ":1: kind Deployment of apiVersion apps/v1 is not supported",
            ),
            (String::new(), "holds no document"),
        ] {
            let file = node.file("wrong.yaml", &text)?;
            let refused = node.ended(&["run", &file]).await?.expect(1).context(text)?;
            assert!(refused.err.starts_with("vaina: ") && refused.err.contains(&file), "{}", refused.err);
            assert!(refused.err.contains(words), "no {words:?} in {}", refused.err);
        }
        let refused = node.ended(&["run", "/nonexistent/pod.yaml"]).await?.expect(1)?;
        assert_eq!(refused.err, "vaina: read /nonexistent/pod.yaml: No such file or directory (os error 2)\n");
        Ok(())
    });
}

#[test]
fn what_can_not_be_started_is_told_with_its_cause_and_taken_away() {
    e2e_with(alone(), async |node| {
        node.furnish()?;
        let with = |field: &str, value: Value| {
            let mut container = sh("c", "true");
            container[field] = value;
            json!({ "containers": [container] })
        };
        let mut handler = json!({ "containers": [sh("c", "true")] });
        handler["runtimeClassName"] = "nonsense".into();
        let mut never = with("image", "vaina.test/none:1".into());
        never["containers"][0]["imagePullPolicy"] = "Never".into();
        let mut nowhere = with("image", "127.0.0.1:1/none:1".into());
        nowhere["restartPolicy"] = "Never".into();
        for (name, spec, code, words) in [
            ("command", with("command", json!(["/bin/nonsense"])), 128, vec!["start container c: ", "/bin/nonsense"]),
            ("directory", with("workingDir", "/etc/passwd".into()), 128, vec!["start container c: ", "/etc/passwd"]),
            ("handler", handler, 1, vec!["nonsense"]),
            ("never", never, 1, vec!["find image vaina.test/none:1: it is not here and imagePullPolicy is Never"]),
            ("nowhere", nowhere, 1, vec!["start container c: ", "127.0.0.1:1/none:1", "Connection refused"]),
        ] {
            let manifest = node.manifest(name, &spec)?;
            let ended = node.ended(&["run", &manifest]).await?.expect(code).context(name)?;
            let line = ended.err.lines().find(|line| line.contains(" Failed: ")).context(ended.err.clone())?;
            for word in words {
                assert!(line.contains(word), "no {word:?} in {line}");
            }
            assert!(ended.err.contains("Removed: in"), "{}", ended.err);
        }
        Ok(())
    });
}
