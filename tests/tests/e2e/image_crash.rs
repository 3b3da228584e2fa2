//! A pull or an import that is killed, or for which the disk is too small: the next one works, and of the broken one
//! nothing is left.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount, umount};
use tonic::Code;
use vaina_proto::cri::ListImagesRequest;
use vaina_tests::{
    build::Container,
    images::{
        self, Built, Image,
        archive::{self, Tagged},
        layer::{Compression, Layer},
    },
    leak,
    node::{IMAGE, Node, Options, e2e, e2e_with},
    registry::{FakeRegistry, Manner},
    wait,
};

use crate::assert_failed;

/// Different for each seed; the layers travel as they are, so that sizes are what they seem.
fn data(seed: u64, length: usize) -> Vec<u8> {
    let mut data = seed.to_le_bytes().to_vec();
    data.resize(length, 1);
    data
}

/// Two layers of some files each, plain, so that half a layer is some of its files.
fn image(seed: u64) -> Result<Built> {
    let layer = |seed: u64| {
        (0..20).fold(Layer::new().directory("data/", 0o755), |layer, number| {
            layer.file(&format!("data/{seed}-{number}"), 0o644, &data(seed * 100 + number, 50_000))
        })
    };
    Image::new().compression(Compression::None).layer(layer(seed)).layer(layer(seed + 1)).build()
}

async fn ids(node: &Node) -> Result<Vec<String>> {
    Ok(node.cri().list_images(ListImagesRequest::default()).await?.images.into_iter().map(|image| image.id).collect())
}

fn entries(node: &Node, directory: &str) -> usize {
    fs::read_dir(node.images().join(directory)).map_or(0, Iterator::count)
}

/// The daemon is killed and comes back: it has what it had.
async fn kill_and_check(node: &mut Node, store: &[String], images: &[String]) -> Result<()> {
    node.kill_daemon()?;
    node.start_daemon().await?;
    assert_eq!(ids(node).await?, images);
    node.check_images(store).await
}

#[test]
fn a_pull_that_was_killed_leaves_nothing_and_works_the_next_time() {
    e2e(async |node| {
        let (store, before) = (leak::image_store(&node.images())?, ids(node).await?);
        for (number, point) in ["manifest", "config", "lower", "upper", "both"].into_iter().enumerate() {
            let registry = FakeRegistry::start(Manner::Open)?;
            let image = image(number as u64 * 10)?;
            registry.add("app", "1", &image)?;
            let name = format!("{}/app:1", registry.address);
            let [lower, upper] = [0, 1].map(|index| image.layers[index].digest.as_str());
            let held = match point {
                "manifest" => vec![image.manifest.digest.as_str()],
                "config" => vec![image.id()],
                "lower" => vec![lower],
                "upper" => vec![upper],
                _ => vec![lower, upper],
            };
            for digest in &held {
                registry.hold(digest);
            }
            let pull = {
                let (cri, name) = (node.cri(), name.clone());
                tokio::spawn(async move { cri.pull(&name).await })
            };
            // As far as it comes: half of what is held, and all of the rest.
            let layers = entries(node, "layers/sha256");
            let (staged, complete) = match point {
                "manifest" | "config" => (0, 0),
                "both" => (2, 0),
                _ => (1, 1),
            };
            wait::until("the pull is where it is to be killed", async || {
                let asked = if point == "manifest" { "/manifests/1" } else { held[0] };
                let is_there = registry.count(asked) > 0
                    && entries(node, "staging") == staged
                    && entries(node, "layers/sha256") == layers + complete
                    && has_files(&node.images().join("staging"));
                Ok(is_there.then_some(()))
            })
            .await?;
            kill_and_check(node, &store, &before).await.context(point)?;
            assert!(pull.await?.is_err(), "{point}");

            registry.release();
            assert_eq!(node.cri().pull(&name).await.context(point)?, image.id());
            assert_eq!(node.cri().image(&name).await?.context("the image")?.id, image.id());
            node.cri().remove_image(&name).await?;
            node.check_images(&store).await.context(point)?;
        }
        Ok(())
    });
}

/// Whether each directory in it has something in it.
fn has_files(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| {
        entries.all(|entry| {
            entry.is_ok_and(|entry| fs::read_dir(entry.path().join("data")).is_ok_and(|mut data| data.next().is_some()))
        })
    })
}

#[test]
fn an_import_that_was_killed_leaves_nothing_and_works_the_next_time() {
    e2e(async |node| {
        let (store, before) = (leak::image_store(&node.images())?, ids(node).await?);
        let name = "vaina.test/killed:1";
        let layer = |seed: u64| {
            (0..100).fold(Layer::new().directory("data/", 0o755), |layer, number| {
                layer.file(&format!("data/{number}"), 0o644, &data(seed + number, 100_000))
            })
        };
        let image = Image::new().compression(Compression::None).layer(layer(1)).layer(layer(1000)).build()?;
        let plain = node.directory().join("plain.tar");
        archive::oci_archive(&plain, &[(name, Tagged::Image(&image))])?;
        let packed = node.directory().join("packed.tar.gz");
        fs::write(&packed, Compression::Gzip.apply(&fs::read(&plain)?)?)?;
        let layers = entries(node, "layers/sha256");
        for (archive, staged, complete) in [(&plain, 1, 0), (&plain, 0, 1), (&packed, 1, 0)] {
            let mut command = node.vaina(&["image", "import"]);
            let mut import = command.arg(archive).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            // A look at each moment: whatever it is in the middle of, it is killed there.
            wait::until("the import is under way", async || {
                let reached = entries(node, "staging") >= staged && entries(node, "layers/sha256") >= layers + complete;
                Ok(reached.then_some(()))
            })
            .await?;
            node.kill_daemon()?;
            import.wait()?;
            node.start_daemon().await?;
            // It may have been complete already; then it is whole.
            let after = ids(node).await?;
            if after != before {
                assert!(after.contains(&image.id().to_owned()), "{after:?}");
                node.cri().remove_image(image.id()).await?;
            }
            node.check_images(&store).await?;
            node.import(archive)?;
            assert_eq!(node.cri().image(name).await?.context("the image")?.id, image.id());
            node.cri().remove_image(name).await?;
            node.check_images(&store).await?;
        }
        Ok(())
    });
}

#[test]
fn a_removal_that_was_killed_is_done_or_not() {
    e2e(async |node| {
        let store = leak::image_store(&node.images())?;
        let registry = FakeRegistry::start(Manner::Open)?;
        for seed in 0..5 {
            let image = image(1000 + seed * 10)?;
            registry.add("app", &seed.to_string(), &image)?;
            let name = format!("{}/app:{seed}", registry.address);
            node.cri().pull(&name).await?;
            let with = leak::image_store(&node.images())?;
            let removal = {
                let (cri, name) = (node.cri(), name.clone());
                tokio::spawn(async move { cri.remove_image(&name).await })
            };
            // Somewhere between its beginning and its end, earlier and later.
            for _ in 0..seed {
                tokio::task::yield_now().await;
            }
            node.kill_daemon()?;
            drop(removal.await?);
            node.start_daemon().await?;
            if let Some(found) = node.cri().image(&name).await? {
                assert_eq!(found.id, image.id());
                node.check_images(&with).await?;
                node.cri().remove_image(&name).await?;
            }
            node.check_images(&store).await?;
        }
        Ok(())
    });
}

/// A node whose disk has so many bytes; the daemon is started by [`boot`].
fn on_a_small_disk(test: impl AsyncFnOnce(&mut Node) -> Result<()> + Send + 'static) {
    e2e_with(Options { without_daemon: true, ..Options::default() }, async |node| {
        let root = Path::new("/var/lib/vaina");
        fs::create_dir_all(root)?;
        mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), Some("size=28m,mode=755"))?;
        node.boot().await?;
        test(node).await?;
        node.check_leaks().await?;
        // The mount is the test's own.
        node.terminate_daemon()?;
        umount(root).context("unmount the small disk")?;
        fs::remove_dir(root)?;
        fs::create_dir_all(root)?;
        node.remember()
    });
}

fn free(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail * stat.f_frsize)
}

/// Leaves so much of the disk.
fn fill(left: u64) -> Result<std::path::PathBuf> {
    let path = Path::new("/var/lib/vaina/filler").to_owned();
    let size = free(Path::new("/var/lib/vaina"))?.saturating_sub(left);
    fs::write(&path, vec![1; usize::try_from(size)?]).context("fill the disk")?;
    Ok(path)
}

#[test]
fn a_disk_that_is_full_is_said_and_left_as_it_was() {
    on_a_small_disk(async |node| {
        let (store, before) = (leak::image_store(&node.images())?, ids(node).await?);
        let registry = FakeRegistry::start(Manner::Open)?;
        let name = |tag: &str| format!("{}/app:{tag}", registry.address);
        let file = |seed: u64, length: usize| Layer::new().file("data", 0o644, &data(seed, length));
        // One layer that can't fit; two of which each would; one with more files than the disk has inodes for.
        let large = Image::new().compression(Compression::None).layer(file(1, 24 << 20)).build()?;
        let zeros = Image::new().layer(Layer::new().file("zeros", 0o644, &vec![0; 24 << 20])).build()?;
        let third = usize::try_from(free(Path::new("/var/lib/vaina"))?)? / 3 * 2;
        let both = Image::new().compression(Compression::None).layer(file(2, third)).layer(file(3, third)).build()?;
        for (tag, image, words) in [
            ("large", &large, ["pull layer", "unpack layer", "all that the disk can spare"]),
            ("zeros", &zeros, ["pull layer", "unpack layer", "all that the disk can spare"]),
            ("both", &both, ["pull layer", "unpack layer", ""]),
        ] {
            registry.add("app", tag, image)?;
            assert_failed(node.cri().pull(&name(tag)).await, Code::ResourceExhausted, &words);
            assert!(node.cri().image(&name(tag)).await?.is_none());
            assert_eq!(ids(node).await?, before);
            node.check_images(&store).await.context(tag)?;
            let path = node.directory().join("large.tar");
            archive::oci_archive(&path, &[("vaina.test/large:1", Tagged::Image(image))])?;
            let output = node.vaina(&["image", "import"]).arg(&path).output()?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(1) && stderr.contains("import layer"), "{stderr}");
            node.check_images(&store).await.context(tag)?;
        }

        // A disk without a free byte: not even the smallest image, and then, with room again, that one.
        let small = Image::new().layer(Layer::new().file("text", 0o644, b"small")).build()?;
        registry.add("app", "small", &small)?;
        let filler = fill(0)?;
        assert_failed(node.cri().pull(&name("small")).await, Code::ResourceExhausted, &["app:small"]);
        assert_eq!(ids(node).await?, before);
        fs::remove_file(&filler)?;
        node.check_images(&store).await?;
        assert_eq!(node.cri().pull(&name("small")).await?, small.id());
        // What is there can be removed when the disk is full, also after a new start: that is how it gets room.
        let pod = node.pod("full").host_network();
        let sandbox = node.run_pod(&pod).await?;
        node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        let filler = fill(0)?;
        assert_failed(node.run_pod(&node.pod("late").host_network()).await, Code::ResourceExhausted, &["full"]);
        node.kill_daemon()?;
        node.start_daemon().await?;
        node.remove_pod(&sandbox).await?;
        node.cri().remove_image(small.id()).await?;
        assert_eq!(ids(node).await?, before);
        node.check_images(&store).await?;
        fs::remove_file(&filler)?;
        Ok(())
    });
}

#[test]
fn what_nobody_owns_goes_at_the_next_start() {
    e2e(async |node| {
        let store = leak::image_store(&node.images())?;
        let staging = node.images().join("staging/7");
        fs::create_dir_all(staging.join("data"))?;
        fs::write(staging.join("data/half"), "half")?;
        fs::create_dir_all(node.images().join("trash/3"))?;
        let orphan = images::digest(b"nobody's");
        fs::create_dir_all(node.images().join("layers").join(orphan.replace(':', "/")))?;
        node.kill_daemon()?;
        node.start_daemon().await?;
        node.check_images(&store).await?;
        assert!(node.cri().image(IMAGE).await?.is_some());
        Ok(())
    });
}
