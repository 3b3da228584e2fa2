//! The store as a whole: import, names, removal, holds, restarts, damage.

mod docker_registry;
mod registry;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    testing::{Format, Member, TestImage, dir, file, gzip, hard_link, layer, symlink, zstd},
    *,
};

struct Fixture {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        Self { dir, store }
    }

    async fn import(&self, archive: &[u8]) -> Result<Vec<Arc<Image>>, ImportError> {
        let path = self.dir.path().join("archive");
        std::fs::write(&path, archive).unwrap();
        self.store.import(&path, None).await
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    /// Waits until the thread that deletes has made it so.
    fn settle(&self, layers: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let counts = [count(&self.images().join("layers/sha256")), count(&self.images().join("l"))];
            let rest = count(&self.images().join("staging")) + count(&self.images().join("trash"));
            if counts == [layers; 2] && rest == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{counts:?} layers and links, {rest} in staging and trash");
            std::thread::yield_now();
        }
    }

    async fn reopen(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let store = open(dir.path()).await;
        Self { dir, store }
    }
}

async fn open(dir: &Path) -> ImageStore {
    let state = Store::open(&dir.join("state.db")).unwrap();
    ImageStore::open(ImageConfig::new(dir.join("images")), state).await.unwrap()
}

fn count(path: &Path) -> usize {
    std::fs::read_dir(path).map_or(0, Iterator::count)
}

fn two_layers(text: &str) -> TestImage {
    let base = layer(&[dir("etc"), file("etc/passwd", "root:x:0:0::/:/bin/sh\n")]);
    let top = layer(&[file("top", text), hard_link("other", "top")]);
    TestImage::new(Format::Oci, &[(base.clone(), gzip(&base)), (top.clone(), zstd(&top))])
}

fn named(name: &str) -> serde_json::Value {
    json!({"io.containerd.image.name": name})
}

mod root {
    use super::*;

    #[tokio::test]
    async fn imports_every_form() {
        let fixture = Fixture::new().await;
        let image = two_layers("a");
        for archive in [
            image.oci_archive(&named("docker.io/library/a:1")),
            image.oci_archive(&json!({"org.opencontainers.image.ref.name": "a:1"})),
            gzip(&image.oci_archive(&named("a:1"))),
            zstd(&image.docker_archive(&["a:1"])),
            image.docker_archive(&["a:1"]),
        ] {
            let images = fixture.import(&archive).await.unwrap();
            assert_eq!(images.len(), 1);
            assert_eq!(images[0].id.as_str(), image.id());
            assert_eq!(images[0].repo_tags, ["docker.io/library/a:1"]);
            assert_eq!(images[0].layers.len(), 2);
            assert_eq!(images[0].user(), ImageUser::Uid(1002));
            assert_eq!(std::fs::read_to_string(images[0].layers[1].join("other")).unwrap(), "a");
            assert!(images[0].layers[0].join("etc/passwd").is_file());
            fixture.settle(2);
        }
        assert_eq!(fixture.store.list().len(), 1);
        let info = fixture.store.fs_info().unwrap();
        assert_eq!((info.used_inodes, info.used_bytes), (3, 3 * 4096));
        for text in ["a:1", "docker.io/a:1", &image.id(), &image.id()[7..20], &format!("a@{}", image.digest())] {
            assert!(fixture.store.resolve(text).is_some(), "{text}");
        }
        for text in ["a", "a:2", "b:1", "ffff", "", "A B", "sha256:"] {
            assert!(fixture.store.resolve(text).is_none(), "{text}");
        }
        // Another name instead of the archive's.
        let name = Some("b:2".parse().unwrap());
        let images = fixture.store.import(&fixture.dir.path().join("archive"), name).await.unwrap();
        assert_eq!(images[0].repo_tags, ["docker.io/library/a:1", "docker.io/library/b:2"]);

        let fixture = fixture.reopen().await;
        assert_eq!(fixture.store.resolve("a:1").unwrap().repo_tags.len(), 2);
        fixture.settle(2);
    }

    #[tokio::test]
    async fn hostile_archives_leave_nothing() {
        let fixture = Fixture::new().await;
        let single = |members: &[Member<'_>]| {
            let tar = layer(members);
            TestImage::new(Format::Oci, &[(tar.clone(), gzip(&tar))]).oci_archive(&named("x"))
        };
        let image = two_layers("a");
        let good = image.oci_archive(&named("x"));
        let mut swapped = image.clone();
        let digest = Digest::sha256(&gzip(&image.layers[0])).to_string();
        swapped.blobs.insert(digest.clone(), gzip(&image.layers[1]));
        let mut lost = image.clone();
        lost.blobs.remove(&digest);
        let tar = layer(&[file("a", "x")]);
        let other = Digest::sha256(b"other").to_string();
        let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [other]}});
        let lied = TestImage::with_config(Format::Oci, &[(tar.clone(), tar.clone())], &config);
        let mut flipped = gzip(&tar);
        flipped[12] ^= 0xff;
        let damaged = TestImage::new(Format::Oci, &[(tar, flipped)]);
        for (archive, text) in [
            (single(&[file("../x", "x")]), "\"../x\" climbs out"),
            (single(&[symlink("e", "/etc"), file("e/passwd", "x")]), "\"e/passwd\" goes through symlink"),
            (single(&[hard_link("h", "/etc/passwd")]), "hard link \"h\""),
            (swapped.oci_archive(&named("x")), "the manifest says"),
            (lost.oci_archive(&named("x")), "archive lacks"),
            (lied.oci_archive(&named("x")), "the image config says"),
            (damaged.oci_archive(&named("x")), "decompress layer"),
            (image.oci_archive(&named("X Y:")), "invalid image reference"),
            (good[..good.len() / 2].to_vec(), "in the middle of an entry"),
            (layer(&[file("readme", "x")]), "neither an OCI layout"),
            (b"not a tar".to_vec(), "in the middle of an entry"),
            (vec![7; 4096], "checksum"),
            (Vec::new(), "neither an OCI layout"),
        ] {
            let error = fixture.import(&archive).await.unwrap_err();
            let chain = Chain(&error).to_string();
            assert!(chain.contains(text), "{chain} lacks {text}");
            fixture.settle(0);
        }
        assert!(fixture.store.list().is_empty());
    }

    #[tokio::test]
    async fn names_move_and_images_go_with_the_last() {
        let fixture = Fixture::new().await;
        let (first, second) = (two_layers("first"), two_layers("second"));
        fixture.import(&first.oci_archive(&named("a:1"))).await.unwrap();
        fixture.import(&second.oci_archive(&named("a:1"))).await.unwrap();
        assert_eq!(fixture.store.resolve("a:1").unwrap().id.as_str(), second.id());
        assert!(fixture.store.resolve(&first.id()).unwrap().repo_tags.is_empty());
        // The base is shared.
        fixture.settle(3);

        fixture.store.remove(&first.id()).await.unwrap();
        assert!(fixture.store.resolve(&first.id()).is_none());
        fixture.settle(2);
        fixture.import(&second.oci_archive(&named("a:2"))).await.unwrap();
        fixture.store.remove("a:1").await.unwrap();
        assert_eq!(fixture.store.resolve("a:2").unwrap().repo_tags, ["docker.io/library/a:2"]);
        fixture.store.remove("a:2").await.unwrap();
        assert!(fixture.store.list().is_empty());
        fixture.store.remove("a:2").await.unwrap();
        fixture.store.remove("not a name").await.unwrap();
        fixture.settle(0);
        assert_eq!(fixture.store.fs_info().unwrap().used_bytes, 0);
    }

    #[tokio::test]
    async fn held_images_keep_their_layers() {
        let fixture = Fixture::new().await;
        let image = two_layers("a");
        fixture.import(&image.oci_archive(&named("a"))).await.unwrap();
        let id = ImageId::new(image.id());
        fixture.store.hold(&id, "one").unwrap();
        fixture.store.remove(&image.id()).await.unwrap();
        assert!(fixture.store.list().is_empty() && fixture.store.resolve("a").is_none());
        assert!(fixture.store.hold(&ImageId::new("sha256:0"), "x").is_err());
        fixture.settle(2);

        // The next daemon does not list it, and recovery repeats the hold.
        let fixture = fixture.reopen().await;
        assert!(fixture.store.list().is_empty());
        let held = fixture.store.hold(&id, "one").unwrap();
        assert!(held.layers[1].join("top").is_file());
        drop(held);
        fixture.store.sweep().await.unwrap();
        fixture.settle(2);
        // Pulled again while held, it is one image again.
        fixture.import(&image.oci_archive(&named("a"))).await.unwrap();
        assert_eq!(fixture.store.list().len(), 1);
        fixture.store.release("one").await.unwrap();
        fixture.settle(2);
        fixture.store.hold(&id, "two").unwrap();
        fixture.store.remove("a").await.unwrap();
        fixture.store.release("two").await.unwrap();
        fixture.store.release("two").await.unwrap();
        fixture.settle(0);
        let fixture = fixture.reopen().await;
        fixture.store.sweep().await.unwrap();
        fixture.settle(0);
    }

    #[tokio::test]
    async fn has_one_owner() {
        let fixture = Fixture::new().await;
        let state = Store::open(&fixture.dir.path().join("state.db")).unwrap();
        let error = ImageStore::open(ImageConfig::new(fixture.images()), state).await.unwrap_err();
        assert!(Chain(&error).to_string().contains("for this process alone"), "{}", Chain(&error));
        fixture.reopen().await;
    }

    #[tokio::test]
    async fn opens_after_any_damage() {
        let fixture = Fixture::new().await;
        let (first, second) = (two_layers("first"), two_layers("second"));
        fixture.import(&first.oci_archive(&named("a"))).await.unwrap();
        fixture.import(&second.oci_archive(&named("b"))).await.unwrap();
        let lost = std::fs::canonicalize(&fixture.store.resolve("a").unwrap().layers[1]).unwrap();
        let images = fixture.images();
        // Half an unpack, half a deletion, and a layer that was committed before a record named it.
        for path in ["staging/7/etc", "trash/7/etc", "layers/sha256/0000"] {
            std::fs::create_dir_all(images.join(path)).unwrap();
        }
        std::fs::remove_dir_all(lost).unwrap();
        let fixture = fixture.reopen().await;
        fixture.settle(2);
        assert_eq!(fixture.store.list().len(), 1);
        assert_eq!(fixture.store.damaged(), [ImageId::new(first.id())]);
        fixture.import(&first.oci_archive(&named("a"))).await.unwrap();
        fixture.settle(3);
        assert!(fixture.store.damaged().is_empty());
        let fixture = fixture.reopen().await;
        assert_eq!(fixture.store.list().len(), 2);
    }

    /// The directory that [`victim`] works in.
    const VICTIM: &str = "VAINA_TEST_IMAGE_VICTIM";

    /// Killed at any moment, the store opens with whole images only and with nothing else on disk.
    #[tokio::test]
    async fn survives_being_killed_at_any_moment() {
        let mut dir = tempfile::tempdir().unwrap();
        let images: Vec<_> = (0..4).map(|number| two_layers(&number.to_string().repeat(100_000))).collect();
        for (number, image) in images.iter().enumerate() {
            std::fs::write(dir.path().join(number.to_string()), image.oci_archive(&named(&format!("a:{number}"))))
                .unwrap();
        }
        let mut seen = 0;
        for round in 0..25 {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "image::tests::root::victim"])
                .env(VICTIM, dir.path())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            // Some of its life is the start of the process; the rest is spread over what it does.
            let begun = Instant::now();
            let ready = dir.path().join("ready");
            while !ready.exists() {
                assert!(begun.elapsed() < Duration::from_secs(20));
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_micros(round * 1_700));
            child.kill().unwrap();
            child.wait().unwrap();
            std::fs::remove_file(ready).unwrap();

            let store = open(dir.path()).await;
            let fixture = Fixture { dir, store };
            let listed = fixture.store.list();
            let mut layers = std::collections::HashSet::new();
            for image in &listed {
                layers.extend(image.layers.iter().cloned());
                let expected = images.iter().find(|expected| expected.id() == image.id.as_str()).unwrap();
                assert!(image.layers[0].join("etc/passwd").is_file());
                let content = std::fs::read(image.layers[1].join("other")).unwrap();
                assert!(expected.layers[1].windows(100).any(|window| window == &content[..100]));
                assert_eq!(content.len(), 100_000);
            }
            assert!(fixture.store.damaged().is_empty());
            fixture.settle(layers.len());
            seen += listed.len();
            dir = fixture.dir;
        }
        assert!(seen > 0, "never got as far as one image");
    }

    /// Not a test of its own: the process that the test above kills. Imports and removes without end.
    #[tokio::test]
    async fn victim() {
        let Some(dir) = std::env::var_os(VICTIM).map(PathBuf::from) else { return };
        let store = open(&dir).await;
        std::fs::write(dir.join("ready"), "").unwrap();
        for number in (0..4).cycle() {
            store.import(&dir.join(number.to_string()), None).await.unwrap();
            store.remove(&format!("a:{}", (number + 2) % 4)).await.unwrap();
        }
    }
}
