//! Images that are broken, hostile or not there, and registries that misbehave: each a clear error that names the step and
//! the cause, and an image store that is as before.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tonic::Code;
use vaina_proto::cri::ListImagesRequest;
use vaina_tests::{
    build::Container,
    images::{
        Blob, Built, Image, Index, digest,
        layer::{Compression, Layer},
    },
    leak,
    node::{Node, Options, e2e, e2e_with},
    registry::{FakeRegistry, Manner},
};

use crate::assert_failed;

/// With a registry that is given up after a second of silence.
fn impatient() -> Options {
    let config = Some("[image]\nprogress_timeout_seconds = 1\n".to_owned());
    Options { config, ..Options::default() }
}

/// An image with two layers of some kilobytes.
fn image() -> Image {
    image_of("")
}

/// The same with a lower layer of its own.
fn image_of(tag: &str) -> Image {
    let text: String = (0..4000).map(|number| format!("{tag}{number:x}\n")).collect();
    Image::new()
        .layer(Layer::new().directory("etc/", 0o755).file("etc/numbers", 0o644, text.as_bytes()))
        .layer(Layer::new().file("top", 0o644, b"top"))
}

/// What must be as it was after a refused call.
struct Before {
    store: Vec<String>,
    images: Vec<vaina_proto::cri::Image>,
}

impl Before {
    async fn look(node: &Node) -> Result<Self> {
        let images = node.cri().list_images(ListImagesRequest::default()).await?.images;
        Ok(Self { store: leak::image_store(&node.images())?, images })
    }

    async fn check(&self, node: &Node) -> Result<()> {
        assert_eq!(node.cri().list_images(ListImagesRequest::default()).await?.images, self.images);
        node.check_images(&self.store).await
    }
}

/// Pulls what can't be pulled.
async fn refused(node: &Node, reference: &str, code: Code, words: &[&str]) -> Result<()> {
    let before = Before::look(node).await?;
    let answer = node.cri().pull(reference).await;
    if let Err(status) = &answer {
        println!("{reference}: {:?}: {}", status.code(), status.message());
        assert!(!status.message().contains('\n'), "more than one line: {}", status.message());
    }
    assert_failed(answer, code, words);
    assert!(node.cri().image(reference).await.is_ok_and(|image| image.is_none()) || code == Code::InvalidArgument);
    before.check(node).await.with_context(|| reference.to_owned())
}

/// Changes the manifest after the fact.
fn edit_manifest(image: &mut Built, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let mut manifest: Value = serde_json::from_slice(&image.manifest.bytes)?;
    edit(&mut manifest);
    let bytes = serde_json::to_vec(&manifest)?;
    image.manifest = Blob { digest: digest(&bytes), bytes, ..image.manifest.clone() };
    Ok(())
}

/// Changes the config, and the manifest with it.
fn edit_config(image: &mut Built, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let mut config: Value = serde_json::from_slice(&image.config.bytes)?;
    edit(&mut config);
    let bytes = serde_json::to_vec(&config)?;
    image.config = Blob { digest: digest(&bytes), bytes, ..image.config.clone() };
    image.rewrite_manifest()
}

#[test]
fn content_that_is_not_what_its_digest_says() {
    e2e(async |node| {
        let registry = FakeRegistry::start(Manner::Open)?;
        let one = |tag: &str, compression: Compression, spoil: fn(&mut Vec<u8>)| -> Result<Built> {
            let image = image_of(tag).compression(compression).build()?;
            registry.add("app", tag, &image)?;
            let mut bytes = image.layers[0].bytes.clone();
            spoil(&mut bytes);
            registry.replace("app", &image.layers[0], &bytes)?;
            Ok(image)
        };
        let flip: fn(&mut Vec<u8>) = |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        };
        let layer = |image: &Built| format!("pull layer {}", image.layers[0].digest);
        let mut cases = Vec::new();
        let plain = one("plain", Compression::None, flip)?;
        let words = vec![layer(&plain), "has digest sha256:".to_owned(), plain.layers[0].digest.clone()];
        cases.push(("plain", Code::FailedPrecondition, words));
        let packed = one("packed", Compression::Gzip, flip)?;
        cases.push(("packed", Code::FailedPrecondition, vec![layer(&packed)]));
        // Shorter and longer than the manifest says, though a body of its own is whole.
        let short = one("short", Compression::Gzip, |bytes| bytes.truncate(bytes.len() / 2))?;
        let words = vec![layer(&short), format!("of {} bytes", short.layers[0].bytes.len())];
        cases.push(("short", Code::Unavailable, words));
        let long = one("long", Compression::Gzip, |bytes| bytes.extend([0; 100]))?;
        cases.push(("long", Code::FailedPrecondition, vec![layer(&long), "is longer than the".to_owned()]));
        // Right by its digest, and cut before it was pushed.
        let mut cut = image().build()?;
        let half = cut.layers[0].bytes.len() / 2;
        cut.layers[0].bytes.truncate(half);
        cut.layers[0].digest = digest(&cut.layers[0].bytes);
        cut.rewrite_manifest()?;
        registry.add("app", "cut", &cut)?;
        cases.push(("cut", Code::FailedPrecondition, vec![layer(&cut), "ends in the middle".to_owned()]));
        // The manifest names one content and the config another.
        let mut other = image().build()?;
        edit_config(&mut other, |config| config["rootfs"]["diff_ids"][0] = json!(digest(b"other")))?;
        registry.add("app", "other", &other)?;
        let words = vec![layer(&other), "the image config says".to_owned(), digest(b"other")];
        cases.push(("other", Code::FailedPrecondition, words));
        // A config that is not the manifest's.
        let config = image().config("Tag", json!("config")).build()?;
        registry.add("app", "config", &config)?;
        registry.replace("app", &config.config, &vec![b' '; config.config.bytes.len()])?;
        let words = vec!["download config".to_owned(), "has digest".to_owned(), config.id().to_owned()];
        cases.push(("config", Code::FailedPrecondition, words));
        for (tag, code, words) in cases {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            refused(node, &format!("{}/app:{tag}", registry.address), code, &words).await.context(tag)?;
        }
        // A manifest that was asked for by digest.
        let manifest = image().config("Tag", json!("manifest")).build()?;
        registry.add_manifest("app", &manifest.manifest.digest, &plain.manifest.bytes)?;
        let reference = format!("{}/app@{}", registry.address, manifest.manifest.digest);
        refused(node, &reference, Code::FailedPrecondition, &["resolve image", "has digest", &plain.manifest.digest])
            .await
    });
}

#[test]
fn layers_that_climb_out() {
    e2e(async |node| {
        let registry = FakeRegistry::start(Manner::Open)?;
        let outside = node.volume("outside")?;
        let out = outside.to_string_lossy().into_owned();
        let file = |path: &str| Layer::new().file(path, 0o644, b"owned");
        for (tag, layer, words) in [
            ("dots", file("../../../../tmp/owned"), ["\"../../../../tmp/owned\" climbs out", "'..'"]),
            ("inner-dots", file("a/../../owned"), ["\"a/../../owned\" climbs out", "'..'"]),
            ("directory", Layer::new().directory("../owned/", 0o777), ["\"../owned/\" climbs out", "'..'"]),
            (
                "symlink",
                Layer::new().symlink("a", "../../../../../..").file("a/owned", 0o644, b"owned"),
                ["\"a/owned\" goes through symlink \"a\"", "leads out of the layer"],
            ),
            (
                "chain",
                Layer::new().directory("d/", 0o755).symlink("d/a", "..").symlink("d/b", "a/../../..").file(
                    "d/b/owned",
                    0o644,
                    b"owned",
                ),
                ["\"d/b/owned\" goes through symlink", "leads out of the layer"],
            ),
            (
                "hard-link",
                Layer::new().hard_link("passwd", "../../../../etc/passwd"),
                ["\"../../../../etc/passwd\" climbs out", "'..'"],
            ),
            (
                "absolute-link",
                Layer::new().hard_link("passwd", "/etc/passwd"),
                ["hard link \"passwd\" to \"/etc/passwd\"", "not a file of this layer"],
            ),
            (
                "link-through-symlink",
                Layer::new().symlink("e", "/etc").hard_link("passwd", "e/passwd"),
                ["passwd", "e"],
            ),
            ("whiteout", file("../.wh.x"), ["\"../.wh.x\" climbs out", "'..'"]),
            ("whiteout-of-dots", file("a/.wh..."), ["a/.wh..", "whiteout"]),
            ("garbage", Layer::garbage(), ["unpack layer", "checksum"]),
        ] {
            let layer = if tag == "whiteout-of-dots" { file("a/.wh...") } else { layer };
            registry.add("app", tag, &Image::new().layer(layer).build()?)?;
            let reference = format!("{}/app:{tag}", registry.address);
            let words = [&["pull layer", "unpack layer"][..], &words].concat();
            refused(node, &reference, Code::FailedPrecondition, &words).await.context(tag)?;
        }
        // What stays inside when it is taken as the container will see it: below the image's own root.
        let inside = Layer::new().file(&format!("{out}/absolute"), 0o644, b"inside").symlink("out", &out).file(
            "out/through",
            0o644,
            b"inside",
        );
        registry.add("app", "inside", &Image::new().layer(inside).build()?)?;
        let id = node.cri().pull(&format!("{}/app:inside", registry.address)).await?;
        assert_eq!(std::fs::read_dir(&outside)?.count(), 0, "an absolute name left the layer");
        node.cri().remove_image(&id).await?;
        Ok(())
    });
}

#[test]
fn manifests_that_are_none() {
    e2e(async |node| {
        let registry = FakeRegistry::start(Manner::Open)?;
        let bytes = |value: Value| value.to_string().into_bytes();
        let foreign =
            Index::new(vec![image().architecture("s390x").build()?, image().architecture("riscv64").build()?])?;
        let small = digest(b"x");
        let mut nested = foreign.manifest.clone();
        for depth in 0..5 {
            let index = json!({ "schemaVersion": 2, "depth": depth, "manifests": [
                { "mediaType": nested.media_type, "digest": nested.digest, "size": nested.bytes.len(),
                  "platform": { "os": "linux", "architecture": "amd64" } }
            ] });
            registry.add_manifest("app", &nested.digest, &nested.bytes)?;
            nested = Blob { media_type: nested.media_type, digest: digest(&bytes(index.clone())), bytes: bytes(index) };
        }
        let chart = "application/vnd.cncf.helm.config.v1+json";
        for (tag, manifest, words) in [
            ("html", b"<html>Please log in</html>".to_vec(), ["parse manifest", "line 1"]),
            ("empty", Vec::new(), ["parse manifest", "EOF"]),
            ("neither", b"{}".to_vec(), ["neither an image manifest nor an index", "read manifest"]),
            ("large", vec![b' '; (4 << 20) + 1], ["more than 4194304 bytes", "/manifests/large"]),
            ("schema-1", bytes(json!({ "schemaVersion": 1, "fsLayers": [] })), ["schema version 1", "push"]),
            (
                "chart",
                bytes(json!({ "schemaVersion": 2, "layers": [],
                    "config": { "mediaType": chart, "digest": small, "size": 1 } })),
                ["not a container image", chart],
            ),
            (
                "digest",
                bytes(json!({ "schemaVersion": 2, "layers": [], "config": { "digest": "sha256:../../x", "size": 1 } })),
                ["descriptor of config", "digest"],
            ),
            ("foreign", foreign.manifest.bytes.clone(), ["no image for linux/amd64", "linux/s390x, linux/riscv64"]),
            ("nested", nested.bytes.clone(), ["nest more than 3 deep", "resolve image"]),
        ] {
            registry.add_manifest("app", tag, &manifest)?;
            let reference = format!("{}/app:{tag}", registry.address);
            let words = [&["resolve image", reference.as_str()][..], &words].concat();
            refused(node, &reference, Code::FailedPrecondition, &words).await.context(tag)?;
        }

        // Configs and layers that fit no manifest.
        for (tag, words) in [
            ("windows", ["read config", "image is for windows"]),
            ("count", ["read config", "2 layers, the image config has 1"]),
            ("no-json", ["read config", "parse image config"]),
            ("large-config", ["download config", "more than 8388608 bytes"]),
            ("encrypted", ["read manifest", "+encrypted\" can't be unpacked"]),
        ] {
            let mut image = image().build()?;
            match tag {
                "windows" => edit_config(&mut image, |config| config["os"] = json!("windows"))?,
                "count" => edit_config(&mut image, |config| config["rootfs"]["diff_ids"] = json!([digest(b"x")]))?,
                "no-json" => {
                    image.config = Blob { digest: digest(b"config"), bytes: b"config".to_vec(), ..image.config };
                    image.rewrite_manifest()?;
                }
                "large-config" => {
                    let large = vec![b' '; (8 << 20) + 1];
                    image.config = Blob { digest: digest(&large), bytes: large, ..image.config };
                    image.rewrite_manifest()?;
                }
                _ => {
                    let secret: Vec<u8> = image.layers[0].bytes.iter().map(|byte| byte ^ 0x55).collect();
                    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
                    image.layers[0] = Blob { media_type, digest: digest(&secret), bytes: secret };
                    image.rewrite_manifest()?;
                }
            }
            registry.add("app", tag, &image)?;
            let reference = format!("{}/app:{tag}", registry.address);
            refused(node, &reference, Code::FailedPrecondition, &words).await.context(tag)?;
        }
        Ok(())
    });
}

#[test]
fn sizes_that_are_lies() {
    e2e(async |node| {
        let registry = FakeRegistry::start(Manner::Open)?;
        for (tag, size, code, word) in [
            ("less", json!(10), Code::FailedPrecondition, "is longer than the 10 bytes"),
            ("more", json!(10_000_000), Code::Unavailable, "of 10000000 bytes"),
            ("huge", json!(u64::MAX), Code::Unavailable, "of 18446744073709551615 bytes"),
            ("negative", json!(-1), Code::FailedPrecondition, "parse manifest"),
        ] {
            let mut image = image().build()?;
            edit_manifest(&mut image, |manifest| manifest["layers"][0]["size"] = size)?;
            registry.add("app", tag, &image)?;
            refused(node, &format!("{}/app:{tag}", registry.address), code, &[word]).await.context(tag)?;
        }
        Ok(())
    });
}

#[test]
fn registries_that_misbehave() {
    e2e_with(impatient(), async |node| {
        for (manner, words) in [
            (Manner::Hang, ["resolve image", "no answer within 1s"]),
            (Manner::Reset, ["resolve image", "reset by peer"]),
            (Manner::Broken, ["resolve image", "status 500"]),
            (Manner::HangInLayer, ["pull layer sha256:", "nothing came for 1s"]),
            (Manner::ResetInLayer, ["pull layer sha256:", "read http://"]),
        ] {
            let registry = FakeRegistry::start(manner)?;
            registry.add("app", "1", &image().build()?)?;
            let reference = format!("{}/app:1", registry.address);
            // The kubelet's word for it, and the image and the address for people.
            let words = [&["RegistryUnavailable: ", reference.as_str()][..], &words].concat();
            refused(node, &reference, Code::Unknown, &words).await.with_context(|| format!("{manner:?}"))?;
        }
        // Nobody listens.
        let words = ["RegistryUnavailable: resolve image 127.0.0.1:1/app:1", "connect to 127.0.0.1:1", "refused"];
        refused(node, "127.0.0.1:1/app:1", Code::Unknown, &words).await?;
        let words = ["RegistryUnavailable: resolve image registry.invalid/app:1", "connect to registry.invalid"];
        refused(node, "registry.invalid/app:1", Code::Unknown, &words).await
    });
}

#[test]
fn images_that_are_not_there_and_names_that_are_none() {
    e2e(async |node| {
        let registry = FakeRegistry::start(Manner::Open)?;
        let mut image = image().build()?;
        registry.add("app", "1", &image)?;
        for reference in ["none:1", "app:none", &format!("app@{}", digest(b"none"))] {
            let reference = format!("{}/{reference}", registry.address);
            let words = ["resolve image", reference.as_str(), "not found at", registry.address.as_str()];
            refused(node, &reference, Code::NotFound, &words).await?;
        }
        // A manifest whose layer or config is not there.
        image.layers[1].digest = digest(b"lost");
        image.rewrite_manifest()?;
        registry.add_manifest("app", "lost-layer", &image.manifest.bytes)?;
        let reference = format!("{}/app:lost-layer", registry.address);
        let words = ["pull layer", &digest(b"lost"), "not found at"];
        refused(node, &reference, Code::NotFound, &words).await?;
        image.config.digest = digest(b"lost");
        image.rewrite_manifest()?;
        registry.add_manifest("app", "lost-config", &image.manifest.bytes)?;
        let reference = format!("{}/app:lost-config", registry.address);
        refused(node, &reference, Code::NotFound, &["download config", "not found at"]).await?;

        let long = format!("a/{}", "b".repeat(300));
        for reference in [
            "A/B:1",
            "a b",
            "app:",
            "app@",
            "app@sha256:zz",
            "app@md5:d41d8cd98f00b204e9800998ecf8427e",
            "http://a/b:1",
            "../app",
            "a//b",
            "a:b:c",
            ":1",
            "/app",
            &long,
            "app:\u{0}",
            "ä:1",
        ] {
            let before = Before::look(node).await?;
            assert_failed(node.cri().pull(reference).await, Code::InvalidArgument, &["image reference"]);
            before.check(node).await?;
        }
        assert_failed(node.cri().pull("").await, Code::InvalidArgument, &["names no image"]);
        let nothing = node.cri().pull_image(Default::default()).await;
        assert_failed(nothing, Code::InvalidArgument, &["names no image"]);

        // And containers of images that are not there.
        let pod = node.pod("imageless").host_network();
        let sandbox = node.run_pod(&pod).await?;
        for reference in ["vaina.test/none:1", &digest(b"none"), "A B"] {
            let answer = node.create(&sandbox, &pod, &Container::new("c", reference)).await;
            assert_failed(answer, Code::NotFound, &[reference, "not on this node"]);
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}
