//! What a container finds of its image: its files as the layers say, and its config as the process shows it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use vaina_tests::{
    build::{Container, Pod},
    images::{
        self, Image,
        layer::{Compression, Layer},
    },
    node::{Node, e2e_cri},
};

const NAME: &str = "vaina.test/content:1";

/// An image with busybox and the probe under what a test adds.
fn base() -> Result<Image> {
    Ok(images::base(&images::probe_beside_this_program()?)?.compression(Compression::None))
}

/// Gives the node the image and runs a pod; [`done`] takes both away.
async fn prepare(node: &mut Node, image: &Image) -> Result<(Pod, String)> {
    node.give(NAME, &image.build()?).await?;
    let pod = node.pod("content").host_network();
    let sandbox = node.run_pod(&pod).await?;
    Ok((pod, sandbox))
}

async fn done(node: &Node, sandbox: &str) -> Result<()> {
    node.remove_pod(sandbox).await?;
    node.cri().remove_image(NAME).await?;
    Ok(())
}

#[test]
fn upper_layers_hide_replace_and_continue_lower_ones() {
    e2e_cri(async |node| {
        let image = base()?
            .layer(
                Layer::new()
                    .directory("data/", 0o755)
                    .file("data/kept", 0o644, b"kept")
                    .file("data/removed", 0o644, b"old")
                    .file("data/replaced", 0o644, b"old")
                    .directory("data/gone/", 0o755)
                    .file("data/gone/file", 0o644, b"old")
                    .directory("data/opaque/", 0o700)
                    .file("data/opaque/old", 0o644, b"old")
                    .directory("data/opaque/sub/", 0o755)
                    .file("data/opaque/sub/old", 0o644, b"old")
                    .directory("data/reborn/", 0o755)
                    .file("data/reborn/old", 0o644, b"old")
                    .directory("data/to-file/", 0o755)
                    .file("data/to-file/old", 0o644, b"old")
                    .file("data/to-directory", 0o644, b"old")
                    .directory("data/sticky/", 0o1777)
                    .symlink("data/link", "kept"),
            )
            .layer(
                Layer::new()
                    .whiteout("data/removed")
                    .whiteout("data/gone")
                    .opaque("data/opaque")
                    .file("data/opaque/new", 0o644, b"new")
                    .whiteout("data/reborn")
                    .file("data/replaced", 0o644, b"new")
                    .whiteout("data/to-file")
                    .file("data/to-file", 0o644, b"new")
                    .whiteout("data/to-directory")
                    .directory("data/to-directory/", 0o755)
                    .file("data/to-directory/new", 0o644, b"new")
                    // Says nothing of the directory itself.
                    .file("data/sticky/new", 0o644, b"new")
                    .whiteout("data/link")
                    // Of something that is nowhere: no error.
                    .whiteout("data/never"),
            )
            .layer(Layer::new().directory("data/reborn/", 0o711).file("data/reborn/new", 0o644, b"new"));
        let (pod, sandbox) = prepare(node, &image).await?;
        let container = node.start(&sandbox, &pod, &Container::new("c", NAME).sh("sleep 1000")).await?;
        let script = "cd /data; find . -type d | sort | xargs stat -c '%n %a'; for f in $(find . -type f | sort); do echo $f $(cat $f); done";
        let expected = "\
. 755
./opaque 700
./reborn 711
./sticky 1777
./to-directory 755
./kept kept
./opaque/new new
./reborn/new new
./replaced new
./sticky/new new
./to-directory/new new
./to-file new";
        assert_eq!(node.sh(&container, script).await?, expected);
        // Whiteouts are not seen, whatever asks.
        assert_eq!(node.sh(&container, "ls -A /data | grep -c wh || true").await?, "0");
        // What the container changes is its own: a second one sees the image.
        let change = "rm -r /data/opaque /data/kept; echo mine > /data/replaced; mkdir /data/removed";
        node.sh(&container, change).await?;
        let other = node.start(&sandbox, &pod, &Container::new("d", NAME).sh("sleep 1000")).await?;
        assert_eq!(node.sh(&other, script).await?, expected);
        done(node, &sandbox).await
    });
}

#[test]
fn links_devices_owners_modes_and_times_are_those_of_the_layer() {
    e2e_cri(async |node| {
        let image = base()?.layer(
            Layer::new()
                .directory("data/", 0o755)
                .owner(1000, 50000)
                .file("data/first", 0o640, b"one file\n")
                .hard_link("data/second", "data/first")
                .symlink("data/absolute", "/data/first")
                .symlink("data/broken", "../../../nowhere")
                .owner(0, 4_000_000_000)
                .fifo("data/fifo", 0o622)
                .character_device("data/zero", 0o666, 1, 5)
                .owner(33, 33)
                .file("data/setuid", 0o4755, b"")
                .file("data/setgid", 0o2755, b"")
                .directory("data/both/", 0o6770)
                .directory("data/sticky/", 0o1777)
                .file("data/nothing", 0o000, b""),
        );
        let (pod, sandbox) = prepare(node, &image).await?;
        let container = node.start(&sandbox, &pod, &Container::new("c", NAME).sh("sleep 1000")).await?;
        let stat = async |format: &str, names: &str| -> Result<String> {
            node.sh(&container, &format!("cd /data; stat -c '{format}' {names}")).await
        };
        assert_eq!(
            stat("%n %F %a %u:%g %Y", "first fifo setuid setgid both sticky nothing absolute").await?,
            "first regular file 640 1000:50000 1767225600\n\
             fifo fifo 622 0:4000000000 1767225600\n\
             setuid regular empty file 4755 33:33 1767225600\n\
             setgid regular empty file 2755 33:33 1767225600\n\
             both directory 6770 33:33 1767225600\n\
             sticky directory 1777 33:33 1767225600\n\
             nothing regular empty file 0 33:33 1767225600\n\
             absolute symbolic link 777 1000:50000 1767225600"
        );
        // Two names of one file: the same inode, also after one is written to.
        let same = "[ first -ef second ] && [ $(stat -c %h first) = 2 ] && cat second absolute && readlink broken";
        assert_eq!(node.sh(&container, &format!("cd /data; {same}")).await?, "one file\none file\n../../../nowhere");
        assert_eq!(stat("%F %t,%T %a", "zero").await?, "character special file 1,5 666");
        assert_eq!(node.sh(&container, "head -c 3 /data/zero | od -An -tx1").await?.trim(), "00 00 00");
        assert_eq!(node.sh(&container, "(echo through > /data/fifo &) ; cat /data/fifo").await?, "through");
        done(node, &sandbox).await
    });
}

/// `security.capability` with CAP_NET_RAW permitted and effective (VFS_CAP_REVISION_2).
fn net_raw() -> Vec<u8> {
    [0x0200_0001_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn setuid_bits_and_attributes_work_and_foreign_ones_stay_out() {
    e2e_cri(async |node| {
        let probe = fs::read(images::probe_beside_this_program()?)?;
        let busybox = fs::read("/bin/busybox").context("read busybox (Debian package busybox-static)")?;
        let capability = net_raw();
        let attributes: [(&str, &[u8]); 5] = [
            ("user.note", b"binary \0\xff value"),
            ("security.capability", &capability),
            // Of the layer's file system and of another host's security module: not an image's to set.
            ("trusted.overlay.opaque", b"y"),
            ("trusted.note", b"x"),
            ("security.selinux", b"system_u:object_r:etc_t:s0\0"),
        ];
        let image = base()?.layer(
            Layer::new()
                .directory("data/", 0o755)
                .file("data/as-root", 0o4755, &probe)
                .file("data/as-me", 0o755, &probe)
                .file_with_xattrs("data/busybox", 0o755, &busybox, &attributes),
        );
        let (pod, sandbox) = prepare(node, &image).await?;
        let config = Container::new("c", NAME).user(1000).sh("sleep 1000");
        let container = node.start(&sandbox, &pod, &config).await?;
        assert_eq!(
            node.sh(&container, "/data/as-root effective-uid; /data/as-me effective-uid").await?,
            "Effective uid: 0\nEffective uid: 1000"
        );
        let effective = "grep CapEff /proc/self/status; /data/busybox grep CapEff /proc/self/status";
        assert_eq!(node.sh(&container, effective).await?, "CapEff:\t0000000000000000\nCapEff:\t0000000000002000");

        let pid = node.cri().container_pid(&container).await?;
        let path = format!("/proc/{pid}/root/data/busybox");
        let read = |name: &str| {
            let mut value = [0; 256];
            rustix::fs::getxattr(&path, name, &mut value[..]).ok().map(|length| value[..length].to_vec())
        };
        assert_eq!(read("user.note").as_deref(), Some(attributes[0].1));
        assert_eq!(read("security.capability"), Some(capability.clone()));
        for name in ["trusted.overlay.opaque", "trusted.note", "security.selinux"] {
            assert_eq!(read(name), None, "{name}");
        }

        // Who may gain nothing gains nothing.
        let mut config = Container::new("d", NAME).user(1000).sh("/data/as-root effective-uid");
        config.security().no_new_privs = true;
        let (_, text) = node.run_to_exit(&sandbox, &pod, &config).await?;
        assert_eq!(text, "Effective uid: 1000\n");
        done(node, &sandbox).await
    });
}

#[test]
fn the_process_is_what_the_image_says_unless_the_container_says_otherwise() {
    e2e_cri(async |node| {
        let show = "echo \"$0 $*\"; echo \"$A|$B|$C\"; pwd; id -u; id -g";
        let image = base()?
            .layer(Layer::new().directory("work/", 0o755))
            .config("Entrypoint", json!(["/bin/sh", "-c", show, "entry"]))
            .config("Cmd", json!(["one", "two words"]))
            .config("Env", json!(["PATH=/bin", "A=image", "B=image", "B=twice"]))
            .config("WorkingDir", json!("/work"))
            .config("User", json!("default-user:group-defined-in-image"));
        let (pod, sandbox) = prepare(node, &image).await?;
        let container = |name: &str| Container::new(name, NAME);
        for (config, expected) in [
            (container("image"), "entry one two words\nimage|twice|\n/work\n1000\n50000\n"),
            (container("args"), "entry x\nimage|twice|\n/work\n1000\n50000\n"),
            (container("env"), "entry one two words\nimage|mine|new\n/work\n1000\n50000\n"),
            (container("dir"), "entry one two words\nimage|twice|\n/tmp\n1000\n50000\n"),
            (container("user"), "entry one two words\nimage|twice|\n/work\n33\n33\n"),
            (container("command"), "mine\n"),
        ] {
            let name = config.config.metadata.clone().unwrap_or_default().name;
            let config = match name.as_str() {
                "args" => config.args(&["x"]),
                "env" => config.env("B", "mine").env("C", "new"),
                "dir" => config.working_dir("/tmp"),
                "user" => config.user(33),
                // A command takes the image's arguments along with its entry point.
                "command" => config.command(&["/bin/echo", "mine"]),
                _ => config,
            };
            let (_, text) = node.run_to_exit(&sandbox, &pod, &config).await.context(name.clone())?;
            assert_eq!(text, expected, "{name}");
        }
        done(node, &sandbox).await
    });
}

#[test]
fn an_image_without_a_command_needs_one() {
    e2e_cri(async |node| {
        let image = base()?.config("Cmd", json!(null));
        let (pod, sandbox) = prepare(node, &image).await?;
        let status = crate::failed(node.create(&sandbox, &pod, &Container::new("none", NAME)).await);
        assert!(status.message().contains("command"), "{status:?}");
        let (_, text) = node.run_to_exit(&sandbox, &pod, &Container::new("c", NAME).args(&["/bin/echo", "x"])).await?;
        assert_eq!(text, "x\n");
        done(node, &sandbox).await
    });
}

#[test]
fn the_images_stop_signal_is_sent() {
    e2e_cri(async |node| {
        let image = base()?
            .config("StopSignal", json!("SIGQUIT"))
            .config("Entrypoint", json!(["/bin/probe", "signals", "SIGQUIT=7"]))
            .config("Cmd", json!(null));
        let (pod, sandbox) = prepare(node, &image).await?;
        let container = node.start(&sandbox, &pod, &Container::new("c", NAME)).await?;
        node.wait_log(&container, "waiting").await?;
        // Known from the creation on: the image may be gone at the stop.
        node.cri().remove_image(NAME).await?;
        node.cri().stop_container(&container, 60).await?;
        let status = node.cri().container(&container).await?;
        assert_eq!(status.exit_code, 7, "{status:?}");
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn volumes_of_the_image_are_directories_that_can_be_written_to() {
    e2e_cri(async |node| {
        let image = base()?
            .layer(Layer::new().directory("given/", 0o750).file("given/file", 0o644, b"of the image\n"))
            .config("Volumes", json!({ "/given": {}, "/var/lib/made/deep": {}, "/var/lib/made": {}, "/mine/": {} }));
        let (pod, sandbox) = prepare(node, &image).await?;
        let mine = node.volume("mine")?;
        let made = "/var/lib/made";
        let script = format!(
            "cat /given/file; stat -c '%a %F' /given {made} {made}/deep; \
             echo x > {made}/deep/x && echo y > {made}/y && echo z > /mine/z && find {made} -type f | sort"
        );
        let expected = "of the image\n750 directory\n755 directory\n755 directory\n\
                        /var/lib/made/deep/x\n/var/lib/made/y\n";
        for (name, config) in [
            ("plain", Container::new("plain", NAME)),
            // They are writable where the rest of the image is not.
            ("readonly", Container::new("readonly", NAME).readonly()),
        ] {
            let config = config.mount(&mine, "/mine").sh(&script);
            let (_, text) = node.run_to_exit(&sandbox, &pod, &config).await.context(name)?;
            assert_eq!(text, expected, "{name}");
            // The client's volume takes the place of the image's.
            fs::remove_file(mine.join("z")).context(name)?;
        }
        done(node, &sandbox).await
    });
}

#[test]
fn users_are_looked_up_in_the_image_and_not_on_the_node() {
    e2e_cri(async |node| {
        let image = base()?
            .layer(Layer::new().file("usr/etc/group", 0o644, b"root:x:0:\nof-image:x:4343:\nmore:x:4444:only-here\n"))
            .layer(
                Layer::new()
                    .file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\nonly-here:x:4242:4343::/:/bin/sh\n")
                    // To another layer, by a way that a hostile one would take: it ends at the image's root.
                    .symlink("etc/group", "../../../../../../tmp/../usr/etc/group"),
            );
        let image = image.config("User", json!("only-here"));
        let (pod, sandbox) = prepare(node, &image).await?;
        let (_, text) = node.run_to_exit(&sandbox, &pod, &Container::new("c", NAME).sh("id -u; id -G")).await?;
        assert_eq!(text, "4242\n4343 4444\n");
        let mut config = Container::new("d", NAME).sh("true");
        // Every Debian node has it.
        config.security().run_as_username = "daemon".to_owned();
        let status = crate::failed(node.create(&sandbox, &pod, &config).await);
        assert!(status.message().contains("daemon"), "{status:?}");
        done(node, &sandbox).await
    });
}

#[test]
fn many_layers_are_stacked_in_their_order() {
    e2e_cri(async |node| {
        let mut image = base()?;
        for number in 0..120 {
            let layer = Layer::new()
                .directory("data/", 0o755)
                .file("data/last", 0o644, number.to_string().as_bytes())
                .file(&format!("data/{number:03}"), 0o644, b"");
            image = image.layer(layer);
        }
        let (pod, sandbox) = prepare(node, &image).await?;
        let config = Container::new("c", NAME).sh("cat /data/last; echo; ls /data | wc -l");
        let (_, text) = node.run_to_exit(&sandbox, &pod, &config).await?;
        assert_eq!(text, "119\n121\n");
        done(node, &sandbox).await
    });
}

#[test]
fn an_image_that_repeats_a_layer_or_has_none_is_an_image() {
    e2e_cri(async |node| {
        let again = Layer::new().directory("data/", 0o755).file("data/a", 0o644, b"again\n");
        let between = Layer::new().whiteout("data/a");
        let image = base()?.layer(again.clone()).layer(between).layer(again);
        let (pod, sandbox) = prepare(node, &image).await?;
        let (_, text) = node.run_to_exit(&sandbox, &pod, &Container::new("c", NAME).sh("cat /data/a")).await?;
        assert_eq!(text, "again\n");

        // From nothing: only what the node mounts into it is there.
        node.give("vaina.test/empty:1", &Image::new().build()?).await?;
        let found = node.cri().image("vaina.test/empty:1").await?.context("the image")?;
        ensure!(found.size > 0, "{found:?}");
        let tools = node.volume("tools")?;
        let busybox = tools.join("busybox");
        fs::copy("/bin/busybox", &busybox).context("copy busybox (Debian package busybox-static)")?;
        let config = Container::new("empty", "vaina.test/empty:1").mount(Path::new(&tools), "/tools").command(&[
            "/tools/busybox",
            "ls",
            "/",
        ]);
        let (_, text) = node.run_to_exit(&sandbox, &pod, &config).await?;
        assert_eq!(text, "dev\netc\nproc\nsys\ntools\n");
        node.remove_pod(&sandbox).await?;
        for name in [NAME, "vaina.test/empty:1"] {
            node.cri().remove_image(name).await?;
        }
        Ok(())
    });
}

#[test]
fn odd_names_are_names() {
    e2e_cri(async |node| {
        let image = base()?.layer(
            Layer::new()
                .directory("data/", 0o755)
                .file("/data/absolute", 0o644, b"a")
                .file("./data/./dotted", 0o644, b"b")
                .file("data//double", 0o644, b"c")
                .file("data/back\\slash", 0o644, b"d")
                .file("data/new\nline", 0o644, b"e")
                .file("data/…", 0o644, b"f")
                .file("data/...", 0o644, b"g"),
        );
        let (pod, sandbox) = prepare(node, &image).await?;
        let script = "cd /data; cat absolute dotted double 'back\\slash' \"$(printf 'new\\nline')\" … ...";
        let (_, text) = node.run_to_exit(&sandbox, &pod, &Container::new("c", NAME).sh(script)).await?;
        assert_eq!(text, "abcdefg");
        done(node, &sandbox).await
    });
}
