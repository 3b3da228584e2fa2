//! Archives that are broken or hostile: the command fails with the step and the cause, and the image store is as before.

use std::{fs, path::Path, process::Output};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use vaina_tests::{
    images::{
        Built, Image,
        archive::{self, Tagged},
        digest,
        layer::{Compression, Layer},
    },
    leak,
    node::{Node, e2e},
};

const NAME: &str = "vaina.test/bad:1";

fn image() -> Result<Built> {
    let text: String = (0..4000).map(|number| format!("{number:x}\n")).collect();
    Image::new()
        .compression(Compression::None)
        .layer(Layer::new().file("numbers", 0o644, text.as_bytes()))
        .layer(Layer::new().file("top", 0o644, b"top"))
        .build()
}

/// What the command says on stderr; it must fail, say one line and nothing on stdout.
fn complaint(output: &Output) -> Result<String> {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{}: {stderr}", output.status);
    ensure!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    ensure!(stderr.lines().count() == 1 && !stderr.contains("code:"), "{stderr}");
    Ok(stderr)
}

async fn refused(node: &Node, file: &Path, words: &[&str]) -> Result<()> {
    let before = leak::image_store(&node.images())?;
    let output = node.vaina(&["image", "import"]).arg(file).output().context("run vaina image import")?;
    let stderr = complaint(&output).with_context(|| file.display().to_string())?;
    for word in words.iter().chain([&&*file.to_string_lossy()]) {
        assert!(stderr.contains(word), "{}: the message lacks {word:?}: {stderr}", file.display());
    }
    assert!(node.cri().image(NAME).await?.is_none(), "{}", file.display());
    node.check_images(&before).await
}

/// An OCI layout whose files are changed before they are put into the tar.
fn oci(node: &Node, name: &str, image: &Built, change: impl FnOnce(&Path) -> Result<()>) -> Result<std::path::PathBuf> {
    let layout = node.directory().join("layout");
    archive::oci_layout(&layout, &[(NAME, Tagged::Image(image))])?;
    change(&layout)?;
    let path = node.directory().join(name);
    vaina_tests::node::run(std::process::Command::new("tar").arg("-cf").arg(&path).arg("-C").arg(&layout).arg("."))?;
    fs::remove_dir_all(&layout)?;
    Ok(path)
}

fn blob(layout: &Path, digest: &str) -> std::path::PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
    let mut bytes = fs::read(path).with_context(|| path.display().to_string())?;
    change(&mut bytes);
    Ok(fs::write(path, bytes)?)
}

#[test]
fn files_that_are_no_archive() {
    e2e(async |node| {
        let path = |name: &str| node.directory().join(name);
        let write = |name: &str, bytes: &[u8]| -> Result<_> {
            fs::write(path(name), bytes)?;
            Ok(path(name))
        };
        let good = path("good.tar");
        archive::oci_archive(&good, &[(NAME, Tagged::Image(&image()?))])?;
        let bytes = fs::read(&good)?;
        let packed = Compression::Gzip.apply(&bytes)?;
        let zstd = Compression::Zstd.apply(&bytes)?;
        let other = Layer::new().file("readme", 0o644, b"hello").into_tar();
        let manifest = |text: &[u8]| Layer::new().file("manifest.json", 0o644, text).into_tar();
        let index = |text: &[u8]| Layer::new().file("index.json", 0o644, text).into_tar();
        for (file, words) in [
            (path("missing.tar"), ["open archive", "No such file"]),
            (write("text.tar", &b"this is not a tar ".repeat(100))?, ["read archive", "checksum"]),
            (write("short.tar", b"x")?, ["read archive", "in the middle"]),
            (write("empty.tar", b"")?, ["neither an OCI layout", "docker save"]),
            (write("other.tar", &other)?, ["neither an OCI layout", "docker save"]),
            (write("half.tar", &bytes[..bytes.len() / 2])?, ["read archive", "in the middle of an entry"]),
            (write("half.tar.gz", &packed[..packed.len() / 2])?, ["decompress archive", "import"]),
            (write("half.tar.zst", &zstd[..zstd.len() / 2])?, ["decompress archive", "import"]),
            (write("manifest.tar", &manifest(b"{"))?, ["parse \"manifest.json\"", "line 1"]),
            (write("no-images.tar", &manifest(b"[]"))?, ["neither an OCI layout", "docker save"]),
            (write("index.tar", &index(b"<html>"))?, ["parse manifest", "line 1"]),
            (write("no-manifests.tar", &index(b"{\"manifests\":[]}"))?, ["neither an OCI layout", "docker save"]),
            (
                write("lacks.tar", &manifest(b"[{\"Config\":\"/etc/passwd\",\"Layers\":[]}]"))?,
                ["archive lacks", "/etc/passwd"],
            ),
            (node.volume("directory")?, ["open archive", "not a regular file"]),
        ] {
            refused(node, &file, &words).await.with_context(|| file.display().to_string())?;
        }
        // From a pipe it is the same.
        let mut command = node.vaina(&["image", "import", "-"]);
        let stderr = complaint(&command.stdin(fs::File::open(path("half.tar"))?).output()?)?;
        assert!(stderr.contains("in the middle of an entry"), "{stderr}");
        // A name that is none, and one name for two images.
        let output = node.vaina(&["image", "import", "--name", "Not A Name"]).arg(&good).output()?;
        assert!(complaint(&output)?.contains("Not A Name"), "{output:?}");
        Ok(())
    });
}

#[test]
fn blobs_that_are_lost_or_changed() {
    e2e(async |node| {
        let good = image()?;
        let layer = good.layers[0].digest.clone();
        let flip = |bytes: &mut Vec<u8>| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        };
        let lost = oci(node, "lost-layer.tar", &good, |layout| Ok(fs::remove_file(blob(layout, &layer))?))?;
        refused(node, &lost, &["archive lacks", &layer[7..]]).await?;
        let lost = oci(node, "lost-config.tar", &good, |layout| Ok(fs::remove_file(blob(layout, good.id()))?))?;
        refused(node, &lost, &["archive lacks", &good.id()[7..]]).await?;
        let flipped = oci(node, "layer.tar", &good, |layout| edit(&blob(layout, &layer), flip))?;
        refused(node, &flipped, &["import layer", &layer, "has digest"]).await?;
        let flipped = oci(node, "config.tar", &good, |layout| edit(&blob(layout, good.id()), flip))?;
        refused(node, &flipped, &["has digest", &good.id()[7..]]).await?;
        let manifest = good.manifest.digest.clone();
        let flipped = oci(node, "manifest.tar", &good, |layout| edit(&blob(layout, &manifest), flip))?;
        refused(node, &flipped, &["has digest", &manifest[7..]]).await?;

        // Docker's form has no digests of layers but those in the config.
        let saved = node.directory().join("saved.tar");
        archive::docker_archive(&saved, &[(NAME, &good)])?;
        edit(&saved, |bytes| {
            let needle = b"\n7d0\n7d1\n";
            let at = bytes.windows(needle.len()).position(|window| window == needle).expect("the layer is in the tar");
            bytes[at + 1] ^= 1;
        })?;
        refused(node, &saved, &["import layer", "layer.tar", "the image config says"]).await?;

        // One good image beside a bad one: none of them.
        let bad = Image::new().layer(Layer::new().file("../owned", 0o644, b"x")).build()?;
        let both = node.directory().join("both.tar");
        archive::oci_archive(&both, &[(NAME, Tagged::Image(&good)), ("vaina.test/worse:1", Tagged::Image(&bad))])?;
        refused(node, &both, &["import layer", "\"../owned\" climbs out"]).await?;
        assert!(node.cri().image("vaina.test/worse:1").await?.is_none());
        Ok(())
    });
}

#[test]
fn archives_that_climb_out() {
    e2e(async |node| {
        // Members are looked up in a table: one that is a link to a file of the node is not followed there.
        let secret = node.directory().join("secret");
        fs::write(&secret, b"{}")?;
        let good = image()?;
        for (name, target) in
            [("absolute", secret.clone()), ("dots", Path::new("../../../../../../etc/hostname").to_owned())]
        {
            let config = good.id().to_owned();
            let linked = oci(node, &format!("{name}.tar"), &good, |layout| {
                fs::remove_file(blob(layout, &config))?;
                Ok(std::os::unix::fs::symlink(&target, blob(layout, &config))?)
            })?;
            refused(node, &linked, &["archive lacks", &config[7..]]).await.context(name)?;
        }
        for (name, layer, word) in [
            ("dots", Layer::new().file("../owned", 0o644, b"x"), "\"../owned\" climbs out"),
            (
                "symlink",
                Layer::new().symlink("a", "../..").file("a/owned", 0o644, b"x"),
                "\"a/owned\" goes through symlink \"a\"",
            ),
            ("link", Layer::new().hard_link("a", "/etc/passwd"), "hard link \"a\" to \"/etc/passwd\""),
        ] {
            let bad = Image::new().layer(layer).build()?;
            for (form, path) in
                [("oci", node.directory().join("oci.tar")), ("docker", node.directory().join("docker.tar"))]
            {
                match form {
                    "oci" => archive::oci_archive(&path, &[(NAME, Tagged::Image(&bad))])?,
                    _ => archive::docker_archive(&path, &[(NAME, &bad)])?,
                }
                refused(node, &path, &["import layer", "unpack layer", word])
                    .await
                    .with_context(|| format!("{name} {form}"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn images_of_another_platform() {
    e2e(async |node| {
        let mut foreign = image()?;
        let path = node.directory().join("windows.tar");
        let mut config: Value = serde_json::from_slice(&foreign.config.bytes)?;
        config["os"] = json!("windows");
        foreign.config.bytes = serde_json::to_vec(&config)?;
        foreign.config.digest = digest(&foreign.config.bytes);
        foreign.rewrite_manifest()?;
        archive::oci_archive(&path, &[(NAME, Tagged::Image(&foreign))])?;
        refused(node, &path, &["image is for windows"]).await?;

        let of = |architecture: &str| {
            Image::new().architecture(architecture).layer(Layer::new().file("a", 0o644, b"a")).build()
        };
        let index = vaina_tests::images::Index::new(vec![of("s390x")?, of("arm64")?])?;
        let path = node.directory().join("foreign.tar");
        archive::oci_archive(&path, &[(NAME, Tagged::Index(&index))])?;
        refused(node, &path, &["no image for linux/amd64", "linux/s390x, linux/arm64"]).await
    });
}
