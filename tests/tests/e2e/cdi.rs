//! Devices of vendors by the Container Device Interface: what their spec files say is done to the container, by each handler.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tonic::Code;
use vaina_proto::cri::CdiDevice;
use vaina_tests::{
    build::{Container, Pod},
    node::{IMAGE, Node, Options, e2e_with},
    require,
};

use crate::assert_failed;

/// Directories of the node's own, the second over the first.
const DIRECTORIES: [&str; 2] = ["/var/lib/cdi/static", "/var/lib/cdi/dynamic"];

fn directories() -> Options {
    Options { config: Some(format!("[cdi]\ndirectories = {DIRECTORIES:?}\n")), ..Options::default() }
}

fn write(directory: &str, name: &str, text: &str) -> Result<PathBuf> {
    fs::create_dir_all(directory)?;
    let path = Path::new(directory).join(name);
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn device(mut container: Container, name: &str) -> Container {
    container.config.cdi_devices.push(CdiDevice { name: name.to_owned() });
    container
}

/// A spec whose devices each set a variable to `value`.
fn variables(value: &str, devices: &[&str]) -> Value {
    let device = |name: &&str| json!({ "name": name, "containerEdits": { "env": [format!("{}={value}", name.to_uppercase())] } });
    json!({ "cdiVersion": "0.6.0", "kind": "vaina.test/gpu", "devices": devices.iter().map(device).collect::<Vec<_>>() })
}

/// One device of which everything is changed, and what all devices of the file do.
fn full(volume: &Path) -> String {
    format!(
        r#"
cdiVersion: 0.7.0
kind: vaina.test/full
containerEdits:
  env: [ALL=yes]
devices:
- name: one
  containerEdits:
    env: [ONE=1, PATH=/vendor/bin:/bin]
    deviceNodes:
    - path: /dev/vendor/full
      hostPath: /dev/full
      permissions: r
      fileMode: 0o444
    - {{ path: /dev/vendor/zero, type: c, major: 1, minor: 5, uid: 3, gid: 4 }}
    mounts:
    - {{ hostPath: {volume}, containerPath: /vendor/lib, options: [ro, nosuid, nodev, bind] }}
    - {{ hostPath: none, containerPath: /vendor/tmp, type: tmpfs, options: [size=64k] }}
    hooks:
    - {{ hookName: createRuntime, path: /bin/sh, args: [sh, -c, "cat > {volume}/created"], timeout: 30 }}
    - {{ hookName: poststop, path: /bin/sh, args: [sh, -c, "cat > /dev/null; echo $WORD > {volume}/stopped"], env: [WORD=ended] }}
    additionalGids: [44, 45]
- name: two
  containerEdits:
    env: [TWO=2]
"#,
        volume = volume.display()
    )
}

// proves: ContainerConfig.{CDI_devices, annotations}, CDIDevice.name
#[test]
fn a_device_does_what_its_spec_says_with_every_handler() {
    e2e_with(directories(), async |node| {
        require::cgroups_for_crun()?;
        for handler in ["", "crun", "runc"] {
            let volume = node.volume(&format!("vendor{handler}"))?;
            fs::write(volume.join("library"), "the library")?;
            write(DIRECTORIES[0], "full.yaml", &full(&volume))?;
            let pod = node.pod(&format!("device{handler}")).handler(handler).host_network();
            let sandbox = node.run_pod(&pod).await?;
            let script = "echo $ALL $ONE $TWO; echo $PATH; stat -c '%F %t:%T %a %u:%g' /dev/vendor/zero; \
                          stat -c '%t:%T %a' /dev/vendor/full; cat /vendor/lib/library; echo; \
                          head -c 3 /dev/vendor/zero | tr '\\0' 0; echo; head -c 2 /dev/vendor/full | tr '\\0' f; echo; \
                          touch /vendor/lib/x 2>&1 | grep -o Read-only; grep -c ' /vendor/tmp tmpfs' /proc/mounts; \
                          id -G; trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";
            // One by the field and one by an annotation, as older device plugins name it; both of both is one.
            let container = device(Container::new("c", IMAGE).sh(script), "vaina.test/full=one")
                .annotation("cdi.k8s.io/plugin", "vaina.test/full=two,vaina.test/full=one");
            let id = node.start(&sandbox, &pod, &container).await.with_context(|| format!("handler {handler:?}"))?;
            let text = node.wait_log(&id, "ready").await?;
            assert_eq!(
                text,
                "yes 1 2\n/vendor/bin:/bin\ncharacter special file 1:5 666 3:4\n1:7 444\nthe library\n000\nff\nRead-only\n1\n\
                 0 44 45\nready\n",
                "handler {handler:?}"
            );
            // What is in the environment is in an exec's too.
            assert_eq!(node.sh(&id, "echo $ALL $ONE $TWO").await?, "yes 1 2");
            let user = node.cri().container(&id).await?.user.and_then(|user| user.linux).context("a user")?;
            assert_eq!(user.supplemental_groups, [0, 44, 45], "handler {handler:?}");
            let state: Value = serde_json::from_str(&fs::read_to_string(volume.join("created"))?)?;
            assert_eq!(state["id"], id.as_str(), "a hook is told of the container: {state}");
            assert!(!volume.join("stopped").exists());
            node.cri().stop_container(&id, 600).await?;
            node.cri().remove_container(&id).await?;
            assert_eq!(fs::read_to_string(volume.join("stopped"))?, "ended\n", "handler {handler:?}");
            node.remove_pod(&sandbox).await?;
            fs::remove_dir_all(DIRECTORIES[0])?;
        }
        Ok(())
    });
}

#[test]
fn a_node_may_do_what_its_permissions_say_and_no_more() {
    e2e_with(directories(), async |node| {
        let spec = json!({
            "cdiVersion": "0.6.0", "kind": "vaina.test/null",
            "devices": [{ "name": "n", "containerEdits": { "deviceNodes": [
                // Not one of those that every container has.
                { "path": "/dev/vendor", "hostPath": "/dev/loop-control", "permissions": "r" },
            ] } }],
        });
        write(DIRECTORIES[1], "null.json", &spec.to_string())?;
        let pod = node.pod("permissions").host_network();
        let sandbox = node.run_pod(&pod).await?;
        let script = "(exec 3</dev/vendor) && echo readable; (exec 3>/dev/vendor) 2>&1 | grep -o 'not permitted'; true";
        let with = device(Container::new("with", IMAGE).sh(script), "vaina.test/null=n");
        assert_eq!(node.run_to_exit(&sandbox, &pod, &with).await?.1, "readable\nnot permitted\n");
        node.remove_pod(&sandbox).await?;
        Ok(fs::remove_dir_all(DIRECTORIES[1])?)
    });
}

#[test]
fn the_last_directory_counts_and_what_is_nowhere_is_named() {
    e2e_with(directories(), async |node| {
        let pod = node.pod("named").host_network();
        let sandbox = node.run_pod(&pod).await?;
        let create = async |node: &Node, pod: &Pod, names: &[&str]| {
            let container = names.iter().fold(Container::new("c", IMAGE).sh("true"), |all, name| device(all, name));
            node.create(&sandbox, pod, &container).await
        };
        // Neither directory is there.
        let tried = create(node, &pod, &["vaina.test/gpu=a", "vaina.test/gpu=b"]).await;
        let words = ["unresolvable CDI devices vaina.test/gpu=a, vaina.test/gpu=b", DIRECTORIES[0], DIRECTORIES[1]];
        assert_failed(tried, Code::NotFound, &words);

        write(DIRECTORIES[0], "gpu.json", &variables("static", &["a", "b"]).to_string())?;
        write(DIRECTORIES[1], "gpu.yaml", &variables("dynamic", &["a"]).to_string())?;
        write(DIRECTORIES[1], "broken.yaml", "cdiVersion: 7\n")?;
        let all = device(device(Container::new("all", IMAGE).sh("echo $A $B"), "vaina.test/gpu=a"), "vaina.test/gpu=b");
        assert_eq!(node.run_to_exit(&sandbox, &pod, &all).await?.1, "dynamic static\n", "at once, without a restart");

        let tried = create(node, &pod, &["vaina.test/gpu=a", "vaina.test/gpu=c"]).await;
        assert_failed(tried, Code::NotFound, &["unresolvable CDI devices vaina.test/gpu=c:", "broken.yaml"]);
        assert_failed(create(node, &pod, &["gpu"]).await, Code::InvalidArgument, &["CDI_devices", "\"gpu\""]);
        let annotated = Container::new("c", IMAGE).annotation("cdi.k8s.io/x", "vaina.test/gpu");
        let tried = node.create(&sandbox, &pod, &annotated).await;
        assert_failed(tried, Code::InvalidArgument, &["annotation cdi.k8s.io/x", "vaina.test/gpu"]);

        write(DIRECTORIES[1], "other.json", &variables("other", &["a"]).to_string())?;
        let words = ["vaina.test/gpu=a", "gpu.yaml", "other.json"];
        assert_failed(create(node, &pod, &["vaina.test/gpu=a"]).await, Code::FailedPrecondition, &words);

        let lost = json!({ "name": "lost", "containerEdits": { "deviceNodes": [{ "path": "/dev/none" }] } });
        let lost = json!({ "cdiVersion": "0.6.0", "kind": "vaina.test/lost", "devices": [lost] });
        write(DIRECTORIES[1], "lost.json", &lost.to_string())?;
        assert_failed(create(node, &pod, &["vaina.test/lost=lost"]).await, Code::FailedPrecondition, &["/dev/none"]);
        assert_eq!(fs::read_dir("/run/vaina/containers")?.count(), 1, "nothing is left of them");
        node.remove_pod(&sandbox).await?;
        Ok(fs::remove_dir_all("/var/lib/cdi")?)
    });
}
