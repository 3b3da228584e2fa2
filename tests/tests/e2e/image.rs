//! The image service: what is listed, named, removed, counted and held, and the commands for people.

use std::{collections::BTreeSet, fs, path::Path, process::Output};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tonic::Code;
use vaina_proto::cri::{self, ImageFilter, ListImagesRequest};
use vaina_tests::{
    build::Container,
    client::spec,
    disturb::Disturbance,
    images::{
        self, Built, Flavour, Image,
        archive::{self, Tagged},
        layer::{Compression, Layer},
    },
    leak,
    node::{IMAGE, Node, e2e, e2e_cri},
    registry::{FakeRegistry, Manner},
};

use crate::assert_failed;

fn small(text: &str) -> Image {
    Image::new().layer(Layer::new().file("text", 0o644, text.as_bytes()))
}

async fn list(node: &Node, filter: &str) -> Result<Vec<cri::Image>> {
    let filter = ImageFilter { image: Some(spec(filter)) };
    Ok(node.cri().list_images(ListImagesRequest { filter: Some(filter) }).await?.images)
}

async fn listed(node: &Node) -> Result<BTreeSet<String>> {
    Ok(node.cri().list_images(ListImagesRequest::default()).await?.images.into_iter().map(|image| image.id).collect())
}

/// Imports an image under a name.
fn import(node: &Node, name: &str, image: &Built) -> Result<()> {
    let path = node.directory().join("import.tar");
    archive::oci_archive(&path, &[(name, Tagged::Image(image))])?;
    node.import(&path).map(drop)
}

// proves: ImageStatusResponse.image
#[test]
fn what_is_not_there_is_an_empty_status_and_removed() {
    e2e_cri(async |node| {
        let before = listed(node).await?;
        let digest = format!("sha256:{}", "0".repeat(64));
        for name in ["vaina.test/none:1", "none", &format!("vaina.test/none@{digest}"), &digest, &digest[7..17], "A B"]
        {
            assert!(node.cri().image(name).await.with_context(|| name.to_owned())?.is_none(), "{name}");
            node.cri().remove_image(name).await.with_context(|| name.to_owned())?;
            assert!(list(node, name).await?.is_empty(), "{name}");
        }
        assert_eq!(listed(node).await?, before);
        assert_failed(node.cri().image("").await, Code::InvalidArgument, &["no image"]);
        assert_failed(node.cri().remove_image("").await, Code::InvalidArgument, &["no image"]);
        Ok(())
    });
}

// proves: ListImages, ListImagesRequest.filter, ListImagesResponse.images, ImageFilter.image, ImageStatus
// proves: ImageStatusRequest.{image, verbose}, ImageStatusResponse.{image, info}, ImageSpec.image
// proves: Image.{id, repo_tags, repo_digests, size, uid, username}
#[test]
fn the_status_has_all_that_the_kubelet_reads() {
    e2e_cri(async |node| {
        for (user, uid, username) in [
            ("", Some(0), ""),
            ("1002", Some(1002), ""),
            ("1003:1004", Some(1003), ""),
            ("www-data", None, "www-data"),
            ("www-data:1004", None, "www-data"),
        ] {
            let image = small(user).config("User", json!(user)).build()?;
            node.give("vaina.test/user:1", &image).await?;
            let status = node.cri().image("vaina.test/user:1").await?.context("the image")?;
            assert_eq!(status.id, image.id());
            assert_eq!(status.repo_tags, ["vaina.test/user:1"]);
            assert_eq!(status.repo_digests, [format!("vaina.test/user@{}", image.manifest.digest)]);
            assert!(status.size > 0);
            assert_eq!((status.uid.map(|uid| uid.value), status.username.as_str()), (uid, username), "{user}");
            assert!(!status.pinned);
            // A status is an entry of the list, by each of its names.
            let (id, digest) = (status.id.as_str(), status.repo_digests[0].as_str());
            for name in [id, &id[7..], &id[7..19], digest, "vaina.test/user:1"] {
                assert_eq!(list(node, name).await?, std::slice::from_ref(&status), "{name}");
                assert_eq!(node.cri().image(name).await?.as_ref(), Some(&status), "{name}");
            }
            node.cri().remove_image(id).await?;
        }
        let request = cri::ImageStatusRequest { image: Some(spec(IMAGE)), verbose: true };
        let info = node.cri().image_status(request).await?.info;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("info")?)?;
        assert_eq!(info["imageSpec"]["config"]["Cmd"], json!(["/bin/sh"]));
        Ok(())
    });
}

#[test]
fn the_list_is_true_at_once() {
    e2e_cri(async |node| {
        let registry = FakeRegistry::start(Manner::Open)?;
        let before = listed(node).await?;
        let images: Vec<Built> = (0..8).map(|number| small(&number.to_string()).build()).collect::<Result<_>>()?;
        for (number, image) in images.iter().enumerate() {
            registry.add("app", &number.to_string(), image)?;
        }
        let name = |number: usize| format!("{}/app:{number}", registry.address);
        for number in 0..images.len() {
            let id = node.cri().pull(&name(number)).await?;
            assert!(listed(node).await?.contains(&id), "{number} is not listed after its pull");
        }
        for (number, image) in images.iter().enumerate() {
            node.cri().remove_image(&name(number)).await?;
            assert!(!listed(node).await?.contains(image.id()), "{number} is listed after its removal");
        }
        // All at once, and removed twice.
        let changes = (0..images.len()).map(|number| {
            let (cri, name) = (node.cri(), name(number));
            tokio::spawn(async move {
                let id = cri.pull(&name).await?;
                let all = cri.list_images(ListImagesRequest::default()).await?.images;
                ensure!(all.iter().any(|image| image.id == id), "{name} is not listed");
                let (one, two) = tokio::join!(cri.remove_image(&id), cri.remove_image(&name));
                one.and(two).map_err(Into::into)
            })
        });
        for change in changes.collect::<Vec<_>>() {
            change.await??;
        }
        assert_eq!(listed(node).await?, before);
        Ok(())
    });
}

// proves: RemoveImage, RemoveImageRequest.image
#[test]
fn names_come_and_go_one_by_one() {
    e2e(async |node| {
        let registry = FakeRegistry::start(Manner::Open)?;
        let (image, next) = (small("first").build()?, small("second").build()?);
        for repository in ["app", "other"] {
            for tag in ["1", "2"] {
                registry.add(repository, tag, &image)?;
            }
        }
        let name = |rest: &str| format!("{}/{rest}", registry.address);
        let digest = |repository: &str| format!("{}/{repository}@{}", registry.address, image.manifest.digest);
        let names = async |id: &str| -> Result<Vec<String>> {
            let found = node.cri().image(id).await?;
            let names = found.map(|image| image.repo_tags.into_iter().chain(image.repo_digests).collect());
            Ok(names.unwrap_or_default())
        };
        let pull_all = async || -> Result<()> {
            for rest in ["app:1", "app:2", "other:1"] {
                assert_eq!(node.cri().pull(&name(rest)).await?, image.id());
            }
            Ok(())
        };
        pull_all().await?;
        let all = [name("app:1"), name("app:2"), name("other:1"), digest("app"), digest("other")];
        assert_eq!(names(image.id()).await?, all);

        // By tag: only the tag; with a repository's last tag goes its digest.
        node.cri().remove_image(&name("app:1")).await?;
        assert_eq!(names(image.id()).await?, [name("app:2"), name("other:1"), digest("app"), digest("other")]);
        assert_eq!(names(&name("app:1")).await?, [""; 0]);
        node.cri().remove_image(&name("app:2")).await?;
        assert_eq!(names(image.id()).await?, [name("other:1"), digest("other")]);
        // By digest: the repository's names.
        node.cri().pull(&name("app:1")).await?;
        node.cri().remove_image(&digest("app")).await?;
        assert_eq!(names(image.id()).await?, [name("other:1"), digest("other")]);
        // By id: everything.
        pull_all().await?;
        node.cri().remove_image(image.id()).await?;
        assert!(node.cri().image(&name("other:1")).await?.is_none());

        // A tag that has moved belongs to the image that has it now, and the other one keeps the rest.
        pull_all().await?;
        registry.add("app", "1", &next)?;
        assert_eq!(node.cri().pull(&name("app:1")).await?, next.id());
        assert_eq!(names(image.id()).await?, [name("app:2"), name("other:1"), digest("app"), digest("other")]);
        for disturbance in Disturbance::ALL {
            disturbance.apply(node).await?;
            let found = node.cri().image(&name("app:1")).await?.context("the moved tag")?;
            assert_eq!(found.id, next.id(), "{disturbance:?}");
        }
        for id in [image.id(), next.id()] {
            node.cri().remove_image(id).await?;
        }
        Ok(())
    });
}

#[test]
fn a_removed_image_stays_for_its_containers() {
    e2e(async |node| {
        let layers = leak::image_store(&node.images())?;
        let base = images::base(&images::probe_beside_this_program()?)?.compression(Compression::None);
        let image = base.layer(Layer::new().file("text", 0o644, b"still here\n")).build()?;
        import(node, "vaina.test/held:1", &image)?;
        let pod = node.pod("held").host_network();
        let sandbox = node.run_pod(&pod).await?;
        let config = |name: &str| Container::new(name, image.id()).sh("cat /text; sleep 1000");
        let running = node.start(&sandbox, &pod, &config("running")).await?;
        let created = node.create(&sandbox, &pod, &config("created")).await?;

        node.cri().remove_image("vaina.test/held:1").await?;
        assert!(node.cri().image(image.id()).await?.is_none());
        assert!(!listed(node).await?.contains(image.id()));
        assert_failed(node.create(&sandbox, &pod, &config("late")).await, Code::NotFound, &["not on this node"]);
        for disturbance in Disturbance::ALL {
            disturbance.apply(node).await?;
            assert_eq!(node.sh(&running, "cat /text").await?, "still here", "{disturbance:?}");
            assert!(!listed(node).await?.contains(image.id()), "{disturbance:?}");
        }
        node.cri().start_container(&created).await?;
        node.wait_log(&created, "still here").await?;
        let status = node.cri().container(&created).await?;
        assert_eq!(status.image.context("image")?.image, "vaina.test/held:1");
        assert_eq!(status.image_id, image.id());

        // The layers go with the last container, and not before.
        node.cri().remove_container(&created).await?;
        assert_eq!(node.sh(&running, "cat /text").await?, "still here");
        node.cri().remove_container(&running).await?;
        node.check_images(&layers).await?;

        // Removed and pulled again while it is held: it is listed again, and stays.
        import(node, "vaina.test/held:1", &image)?;
        let again = node.start(&sandbox, &pod, &config("again")).await?;
        node.cri().remove_image(image.id()).await?;
        import(node, "vaina.test/held:2", &image)?;
        node.cri().remove_container(&again).await?;
        let found = node.cri().image(image.id()).await?.context("the image")?;
        assert_eq!(found.repo_tags, ["vaina.test/held:2"]);
        node.start(&sandbox, &pod, &config("more")).await?;
        node.remove_pod(&sandbox).await?;
        node.cri().remove_image(image.id()).await?;
        Ok(())
    });
}

// proves: ImageFsInfo, ImageFsInfoResponse.image_filesystems
// proves: FilesystemUsage.{timestamp, fs_id, used_bytes, inodes_used}, FilesystemIdentifier.mountpoint
#[test]
fn the_file_system_is_where_it_is_said_and_counts_what_is_on_it() {
    e2e(async |node| {
        let look = async || -> Result<(String, u64, u64)> {
            let answer = node.cri().image_fs_info(cri::ImageFsInfoRequest {}).await?;
            let first = answer.image_filesystems.first().context("a file system")?;
            ensure!(first.timestamp > 0, "{first:?}");
            let mountpoint = first.fs_id.as_ref().context("fs_id")?.mountpoint.clone();
            let bytes = first.used_bytes.context("used_bytes")?.value;
            Ok((mountpoint, bytes, first.inodes_used.context("inodes_used")?.value))
        };
        let (mountpoint, bytes, inodes) = look().await?;
        assert!(Path::new(&mountpoint).is_dir(), "{mountpoint}");
        assert!(bytes > 0 && inodes > 0, "the base image takes {bytes} bytes and {inodes} inodes");

        let data = vec![1; 3 << 20];
        let layer = (0..20).fold(Layer::new().file("data", 0o600, &data), |layer, number| {
            layer.file(&format!("file-{number}"), 0o600, b"x")
        });
        let image = Image::new().layer(layer.clone()).build()?;
        import(node, "vaina.test/large:1", &image)?;
        let (_, more_bytes, more_inodes) = look().await?;
        assert_eq!(more_inodes, inodes + 21);
        assert!(more_bytes >= bytes + (3 << 20), "{bytes} {more_bytes}");
        let size = node.cri().image("vaina.test/large:1").await?.context("the image")?.size;
        assert!(size >= 3 << 20, "{size}");

        // A second image on the same layer takes nothing more.
        import(node, "vaina.test/large:2", &Image::new().layer(layer).config("User", json!("1")).build()?)?;
        assert_eq!(look().await?, (mountpoint.clone(), more_bytes, more_inodes));
        node.cri().remove_image("vaina.test/large:1").await?;
        assert_eq!(look().await?, (mountpoint.clone(), more_bytes, more_inodes));
        node.cri().remove_image("vaina.test/large:2").await?;
        assert_eq!(look().await?, (mountpoint, bytes, inodes));
        Ok(())
    });
}

// proves: PullImage, PullImageRequest.image, PullImageResponse.image_ref, ContainerStatus.{image, image_ref, image_id}
#[test]
fn a_pulls_answer_is_the_image_of_a_container() {
    e2e_cri(async |node| {
        let registry = FakeRegistry::start(Manner::Open)?;
        let base = images::base(&images::probe_beside_this_program()?)?.compression(Compression::None);
        let image = base.layer(Layer::new().file("text", 0o644, b"pulled\n")).build()?;
        // The image gets a second name, and the container's is the one that it asked for.
        registry.add("app", "0", &image)?;
        registry.add("app", "1", &image)?;
        let name = format!("{}/app:1", registry.address);
        node.cri().pull(&format!("{}/app:0", registry.address)).await?;
        let answer = node.cri().pull(&name).await?;
        assert_eq!(registry.count(&image.layers[0].digest), 0, "a layer that is there is not fetched");

        let pod = node.pod("pulled").host_network();
        let sandbox = node.run_pod(&pod).await?;
        let mut config = Container::new("c", &answer).command(&["/bin/cat", "/text"]);
        config.config.image.get_or_insert_default().user_specified_image = name.clone();
        let (status, log) = node.run_to_exit(&sandbox, &pod, &config).await?;
        assert_eq!(log, "pulled\n");
        assert_eq!(status.image.context("image")?.image, name);
        assert_eq!(status.image_ref, format!("{}/app@{}", registry.address, image.manifest.digest));
        assert_eq!(status.image_id, answer);
        node.remove_pod(&sandbox).await?;
        node.cri().remove_image(&answer).await?;
        Ok(())
    });
}

fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn archives_of_every_form_are_imported() {
    e2e(async |node| {
        let image = small("imported").build()?;
        let other = small("other").flavour(Flavour::Docker).build()?;
        let path = |name: &str| node.directory().join(name);
        let (oci, docker) = (path("oci.tar"), path("docker.tar"));
        let tagged = |image| Tagged::Image(image);
        archive::oci_archive(&oci, &[("vaina.test/a:1", tagged(&image)), ("vaina.test/b:1", tagged(&other))])?;
        archive::docker_archive(&docker, &[("vaina.test/a:1", &image), ("vaina.test/b:1", &other)])?;
        let mut forms = vec![oci.clone(), docker.clone()];
        for (compression, end) in [(Compression::Gzip, "gz"), (Compression::Zstd, "zst")] {
            for archive in [&oci, &docker] {
                let packed = archive.with_extension(format!("tar.{end}"));
                fs::write(&packed, compression.apply(&fs::read(archive)?)?)?;
                forms.push(packed);
            }
        }
        for form in forms {
            let text = node.import(&form).with_context(|| form.display().to_string())?;
            let lines: Vec<&str> = text.lines().collect();
            let form = form.display();
            assert_eq!(lines.len(), 2, "{form}: {text}");
            for (name, image) in [("vaina.test/a:1", &image), ("vaina.test/b:1", &other)] {
                let line = lines.iter().find(|line| line.contains(name)).with_context(|| format!("{form}: {text}"))?;
                assert!(line.starts_with(&image.id()[7..19]), "{form}: {text}");
                let found = node.cri().image(name).await?.with_context(|| form.to_string())?;
                assert_eq!(found.id, image.id(), "{form}");
                node.cri().remove_image(name).await?;
                assert!(node.cri().image(image.id()).await?.is_none(), "{form}");
            }
        }
        Ok(())
    });
}

#[test]
fn the_commands_for_people() {
    e2e(async |node| {
        let registry = FakeRegistry::start(Manner::Token)?;
        let image = small("for people").build()?;
        registry.add("app", "1", &image)?;
        let name = format!("{}/app:1", registry.address);
        let short = &image.id()[7..19];
        let vaina = |arguments: &[&str]| -> Result<_> { Ok(said(&node.vaina(arguments).output()?)) };
        let password = |password: &str| -> Result<_> {
            let path = node.directory().join("password");
            fs::write(&path, password)?;
            let mut command = node.vaina(&["image", "pull", "--username", "tester", "--password-stdin", &name]);
            Ok(said(&command.stdin(fs::File::open(path)?).output()?))
        };

        let (code, out, err) = vaina(&["image", "pull", &name])?;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains(&name) && err.contains("refuses access without credentials"), "{err}");
        let (code, _, err) = password("wrong\n")?;
        assert!(code == 1 && err.contains("refuses the credentials"), "{code} {err}");
        let (code, out, err) = password("secret\n")?;
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.starts_with(&format!("{short}  {name}  ")), "{out}");

        let (code, out, _) = vaina(&["image", "ls"])?;
        let line = out.lines().find(|line| line.starts_with(&name)).with_context(|| out.clone())?;
        assert!(code == 0 && line.contains(short) && out.starts_with("NAME"), "{out}");
        let (_, listed, _) = vaina(&["image", "list"])?;
        assert_eq!(listed, out);
        let (_, out, _) = vaina(&["image", "ls", "--digests"])?;
        assert!(out.contains(&format!("/app@{}", image.manifest.digest)) && out.contains(image.id()), "{out}");
        let (_, out, _) = vaina(&["image", "ls", "-q"])?;
        assert!(out.lines().any(|line| line == image.id()) && out.lines().count() == 2, "{out}");

        // The same image under a second name; then one name goes, then the image.
        let path = node.directory().join("again.tar");
        archive::docker_archive(&path, &[("vaina.test/x:1", &image)])?;
        let mut command = node.vaina(&["image", "import", "--name", "again:1", "-"]);
        let (code, out, err) = said(&command.stdin(fs::File::open(&path)?).output()?);
        assert!(code == 0 && out.contains("docker.io/library/again:1"), "{out}{err}");
        let (code, out, _) = vaina(&["image", "rm", "again:1"])?;
        assert_eq!((code, out.as_str()), (0, "untagged again:1\n"));
        let (code, out, _) = vaina(&["image", "remove", short])?;
        assert!(code == 0 && out.starts_with(&format!("removed {short}  ")), "{out}");
        let (code, out, err) = vaina(&["image", "rm", &name])?;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains("no image") && err.contains(&name), "{err}");
        let (code, _, err) = vaina(&["image", "pull", "Not A Name"])?;
        assert!(code == 1 && err.contains("Not A Name"), "{err}");
        // A command line that can't be is told apart.
        assert_eq!(vaina(&["image", "rm"])?.0, 2);
        Ok(())
    });
}
