//! Pulls from real registries and from one that does as it is told: all forms of images, credentials, mirrors, encryption,
//! and pulls that meet.

use std::fs;

use anyhow::{Context as _, Result};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use tonic::Code;
use vaina_proto::cri::AuthConfig;
use vaina_tests::{
    build::Container,
    images::{
        self, Applets, Flavour, Image, Index,
        layer::{Compression, Layer},
    },
    leak,
    node::{Node, Options, e2e, e2e_cri, e2e_with},
    registry::{DockerRegistry, FakeRegistry, Identity, Manner, PASSWORD, USER},
    wait,
};

use crate::assert_failed;

/// In a directory that is the node's own.
const REGISTRIES: &str = "/var/lib/registries";

fn with_registries(environment: Vec<(String, String)>) -> Options {
    let config = Some(format!("[image]\nregistries = '{REGISTRIES}'\n"));
    Options { config, environment, ..Options::default() }
}

fn write_hosts(registry: &str, text: &str) -> Result<()> {
    let directory = format!("{REGISTRIES}/{registry}");
    fs::create_dir_all(&directory)?;
    Ok(fs::write(format!("{directory}/hosts.toml"), text)?)
}

fn small(text: &str) -> Image {
    Image::new().layer(Layer::new().file("text", 0o644, text.as_bytes()))
}

/// The names of all images but the node's own.
async fn ids(node: &Node) -> Result<Vec<String>> {
    let images = node.cri().list_images(Default::default()).await?.images;
    // A peer has its pause image too.
    let own = [vaina_tests::node::IMAGE, vaina_tests::containerd::PAUSE];
    let is_own = |image: &&vaina_proto::cri::Image| image.repo_tags.iter().any(|tag| own.contains(&tag.as_str()));
    Ok(images.iter().filter(|image| !is_own(image)).map(|image| image.id.clone()).collect())
}

#[test]
fn every_form_of_an_image_is_pulled_and_runs() {
    e2e_cri(async |node| {
        let registry = DockerRegistry::start(&node.directory().join("registry"), 5000, false)?;
        let pod = node.pod("forms").host_network();
        let sandbox = node.run_pod(&pod).await?;
        let base = Image::new().layer(images::busybox(Applets::HardLinks)?);
        for flavour in [Flavour::Docker, Flavour::Oci] {
            for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
                let name = format!("{flavour:?}-{compression:?}").to_lowercase();
                let text = format!("this is {name}\n");
                let image = base.clone().layer(Layer::new().file("text", 0o644, text.as_bytes()));
                let image = image.flavour(flavour).compression(compression).build()?;
                registry.target.push("forms/app", &name, &image).context(name.clone())?;
                let reference = registry.reference("forms/app", &name);

                let id = node.cri().pull(&reference).await.context(name.clone())?;
                assert_eq!(id, image.id(), "{name}");
                let found = node.cri().image(&reference).await?.context("the image")?;
                assert_eq!(found.id, id);
                assert_eq!(found.repo_tags, [reference]);
                assert_eq!(found.repo_digests, [format!("127.0.0.1:5000/forms/app@{}", image.manifest.digest)]);

                let config = Container::new(&name, &id).command(&["/bin/cat", "/text"]);
                let (status, log) = node.run_to_exit(&sandbox, &pod, &config).await.context(name.clone())?;
                assert_eq!((status.exit_code, log), (0, text), "{name}");
                node.cri().remove_container(&status.id).await?;
                node.cri().remove_image(&id).await?;
            }
        }
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn of_an_index_this_machines_image_is_taken() {
    e2e_cri(async |node| {
        let registry = DockerRegistry::start(&node.directory().join("registry"), 5000, false)?;
        for flavour in [Flavour::Docker, Flavour::Oci] {
            let image = |architecture: &str| small(architecture).flavour(flavour).architecture(architecture).build();
            let index = Index::new(vec![image("s390x")?, image("arm64")?, image("amd64")?, image("riscv64")?])?;
            let name = format!("{flavour:?}").to_lowercase();
            registry.target.push_index("multi", &name, &index)?;
            let ours = &index.images[2];
            let by_index = format!("127.0.0.1:5000/multi@{}", index.manifest.digest);
            let by_manifest = format!("127.0.0.1:5000/multi@{}", ours.manifest.digest);

            // By the digest of the index, by tag, by the digest of the one manifest: one image.
            assert_eq!(node.cri().pull(&by_index).await?, ours.id(), "{flavour:?}");
            let found = node.cri().image(&by_index).await?.context("the image")?;
            assert_eq!((found.repo_tags.len(), &found.repo_digests), (0, &vec![by_index.clone()]));
            assert_eq!(node.cri().pull(&registry.reference("multi", &name)).await?, ours.id());
            assert_eq!(node.cri().pull(&by_manifest).await?, ours.id());
            let found = node.cri().image(&by_manifest).await?.context("the image")?;
            assert_eq!(found.repo_tags, [registry.reference("multi", &name)]);
            assert_eq!(found.repo_digests, [by_index, by_manifest]);
            assert_eq!(ids(node).await?, [ours.id()]);

            // A foreign image by its own digest is what was asked for.
            let foreign = &index.images[0];
            let by_digest = format!("127.0.0.1:5000/multi@{}", foreign.manifest.digest);
            assert_eq!(node.cri().pull(&by_digest).await?, foreign.id());
            for id in ids(node).await? {
                node.cri().remove_image(&id).await?;
            }
        }
        Ok(())
    });
}

// proves: PullImageRequest.auth, AuthConfig.{username, password, auth, server_address}
#[test]
fn basic_authentication_lets_in_who_knows_the_password() {
    e2e(async |node| {
        let registry = DockerRegistry::start(&node.directory().join("registry"), 5000, true)?;
        registry.target.push("private", "1", &small("private").build()?)?;
        credentials(node, &registry.reference("private", "1")).await
    });
}

// proves: PullImageRequest.auth, AuthConfig.{username, password, auth, server_address}
#[test]
fn token_authentication_lets_in_who_knows_the_password() {
    e2e(async |node| {
        let registry = FakeRegistry::start(Manner::Token)?;
        registry.add("private", "1", &small("private").build()?)?;
        credentials(node, &format!("{}/private:1", registry.address)).await
    });
}

/// Right, wrong and missing credentials in every form that the CRI has for a user and a password.
async fn credentials(node: &Node, reference: &str) -> Result<()> {
    let before = leak::image_store(&node.images())?;
    let user = |password: &str| AuthConfig {
        username: USER.to_owned(),
        password: password.to_owned(),
        ..AuthConfig::default()
    };
    let encoded = |text: &str| AuthConfig { auth: BASE64_STANDARD.encode(text), ..AuthConfig::default() };
    let at = |address: &str, auth: AuthConfig| AuthConfig { server_address: address.to_owned(), ..auth };
    let host = reference.split('/').next().context("host")?;
    let password = format!("{USER}:{PASSWORD}");

    for (auth, code, words) in [
        (None, Code::FailedPrecondition, ["resolve image", "refuses access without credentials"]),
        (Some(user("wrong")), Code::FailedPrecondition, ["resolve image", "refuses the credentials"]),
        (Some(encoded("tester:wrong")), Code::FailedPrecondition, ["resolve image", "refuses the credentials"]),
        // For somebody else: they are not shown.
        (
            Some(at("other.example", user(PASSWORD))),
            Code::FailedPrecondition,
            ["resolve image", "refuses access without credentials"],
        ),
        (
            Some(AuthConfig { auth: "%%%".to_owned(), ..AuthConfig::default() }),
            Code::InvalidArgument,
            ["auth", "base64"],
        ),
        (Some(encoded("nocolon")), Code::InvalidArgument, ["auth", "user:password"]),
    ] {
        let answer = node.cri().pull_as(reference, auth.clone()).await;
        if let Err(status) = &answer {
            let message = status.message();
            assert!(!message.contains(PASSWORD) && !message.contains("wrong"), "{message}");
        }
        assert_failed(answer, code, &words);
        assert!(node.cri().image(reference).await?.is_none(), "{auth:?} left an image");
        assert_eq!(leak::image_store(&node.images())?, before, "{auth:?}");
    }
    for auth in [
        user(PASSWORD),
        encoded(&password),
        at(host, user(PASSWORD)),
        at(&format!("http://{host}/v2/"), encoded(&password)),
    ] {
        let id = node.cri().pull_as(reference, Some(auth)).await?;
        assert!(node.cri().image(reference).await?.is_some());
        // What one pod may see does not let in the next.
        assert_failed(node.cri().pull(reference).await, Code::FailedPrecondition, &["without credentials"]);
        node.cri().remove_image(&id).await?;
    }
    let log = node.daemon_log();
    assert!(!log.contains(PASSWORD) && !log.contains(&BASE64_STANDARD.encode(&password)), "a password is in the log");
    Ok(())
}

#[test]
fn mirrors_are_asked_in_their_order_and_then_the_registry() {
    e2e_with(with_registries(Vec::new()), async |node| {
        let [first, second, own] = [
            FakeRegistry::start(Manner::Broken)?,
            FakeRegistry::start(Manner::Open)?,
            FakeRegistry::start(Manner::Open)?,
        ];
        let (image, rare) = (small("mirrored").build()?, small("only at home").build()?);
        second.add("lib/app", "1", &image)?;
        own.add("lib/rare", "1", &rare)?;
        write_hosts(
            "registry.example:5000",
            &format!(
                "server = 'http://{}'\n[host.'http://{}']\ncapabilities = ['pull', 'resolve']\n[host.'http://{}']\n",
                own.address, first.address, second.address
            ),
        )?;
        let name = "registry.example:5000/lib/app:1";
        let id = node.cri().pull(name).await?;
        assert_eq!(id, image.id());
        let found = node.cri().image(name).await?.context("the image")?;
        // The image has the name that was asked for, and the mirror was told which registry is meant.
        assert_eq!(found.repo_tags, [name]);
        assert!(first.count("/manifests/1?ns=registry.example%3A5000") > 0, "{:?}", first.requests());
        assert_eq!(second.count("/manifests/1?ns=registry.example%3A5000"), 1, "{:?}", second.requests());
        assert!(own.requests().is_empty(), "{:?}", own.requests());

        let rare_id = node.cri().pull("registry.example:5000/lib/rare:1").await?;
        assert_eq!(rare_id, rare.id());
        assert_eq!(own.count("/manifests/1"), 1);

        // What is nowhere: each says its word.
        let answer = node.cri().pull("registry.example:5000/lib/none:1").await;
        assert_failed(answer, Code::NotFound, &["status 500", &second.address, &own.address, "not found"]);

        // The file is read anew for each pull; what it has wrong is named.
        write_hosts("registry.example:5000", "[host.'http://127.0.0.1:1']\nskip_verify = true\n")?;
        let words = ["find servers of registry registry.example:5000", "hosts.toml", "skip_verify"];
        assert_failed(node.cri().pull(name).await, Code::FailedPrecondition, &words);
        for id in [id, rare_id] {
            node.cri().remove_image(&id).await?;
        }
        Ok(())
    });
}

/// A registry with an image, which speaks https only.
fn encrypted(node: &Node, identity: &Identity) -> Result<(DockerRegistry, String)> {
    let place = node.directory().join("registry");
    let image = small("encrypted").build()?;
    DockerRegistry::start(&place, 5000, false)?.target.push("app", "1", &image)?;
    write_hosts("127.0.0.1:5001", "server = 'https://127.0.0.1:5001'\n")?;
    Ok((DockerRegistry::start_tls(&place, 5001, identity)?, image.id().to_owned()))
}

#[test]
fn an_encrypted_registry_must_be_who_it_says() {
    let directory = tempfile::tempdir().expect("a directory");
    let identity = Identity::make(directory.path()).expect("a certificate");
    let trust = ("SSL_CERT_FILE".to_owned(), identity.authority.to_string_lossy().into_owned());
    let known = identity.clone();
    e2e_with(with_registries(vec![trust]), async move |node| {
        let (_registry, id) = encrypted(node, &known)?;
        assert_eq!(node.cri().pull("127.0.0.1:5001/app:1").await?, id);
        node.cri().remove_image(&id).await?;
        // A certificate is for a name, too.
        write_hosts("127.0.0.1:5001", "server = 'https://localhost:5001'\n")?;
        let answer = node.cri().pull("127.0.0.1:5001/app:1").await;
        assert_failed(answer, Code::Unknown, &["connect to localhost:5001", "certificate"]);
        Ok(())
    });
    e2e_with(with_registries(Vec::new()), async move |node| {
        let _registry = encrypted(node, &identity)?;
        let answer = node.cri().pull("127.0.0.1:5001/app:1").await;
        assert_failed(answer, Code::Unknown, &["resolve image", "connect to 127.0.0.1:5001", "certificate"]);
        assert!(ids(node).await?.is_empty());
        Ok(())
    });
}

#[test]
fn pulls_that_meet_fetch_everything_once() {
    e2e_cri(async |node| {
        let registry = FakeRegistry::start(Manner::Open)?;
        let shared = Layer::new().file("shared", 0o644, &[7; 100_000]);
        let [one, two] = ["one", "two"].map(|name| {
            Image::new().layer(shared.clone()).layer(Layer::new().file("name", 0o644, name.as_bytes())).build()
        });
        let (one, two) = (one?, two?);
        registry.add("app", "one", &one)?;
        registry.add("app", "two", &two)?;
        let name = |tag: &str| format!("{}/app:{tag}", registry.address);
        registry.hold(&one.layers[0].digest);

        // Eight pulls of one image and eight of another that stands on the same layer.
        let pulls: Vec<_> = (0..16)
            .map(|number| {
                let (cri, name) = (node.cri(), name(if number % 2 == 0 { "one" } else { "two" }));
                tokio::spawn(async move { cri.pull(&name).await })
            })
            .collect();
        wait::until("both images wait for the layer", async || {
            let all = [&one, &two].iter().all(|image| registry.count(&image.layers[1].digest) > 0);
            Ok((all && registry.count(&one.layers[0].digest) > 0).then_some(()))
        })
        .await?;
        // One client leaves; its pull does not end with it.
        pulls[0].abort();
        registry.release();
        for (number, pull) in pulls.into_iter().enumerate().skip(1) {
            assert_eq!(pull.await??, if number % 2 == 0 { one.id() } else { two.id() });
        }
        for blob in one.layers.iter().chain(&two.layers).chain([&one.config, &two.config]) {
            assert_eq!(registry.count(&blob.digest), 1, "{:?}", registry.requests());
        }

        // A pull of what is there asks for the manifest only: the tag may have moved.
        let before = registry.requests().len();
        node.cri().pull(&name("one")).await?;
        assert_eq!(registry.requests()[before..], ["GET /v2/app/manifests/one"]);
        for id in [one.id(), two.id()] {
            node.cri().remove_image(id).await?;
        }
        Ok(())
    });
}

#[test]
fn a_pull_goes_on_when_its_client_leaves() {
    e2e_cri(async |node| {
        let registry = FakeRegistry::start(Manner::Open)?;
        let image = small(&"left alone ".repeat(1000)).build()?;
        registry.add("app", "1", &image)?;
        registry.hold(&image.layers[0].digest);
        let name = format!("{}/app:1", registry.address);
        let pull = {
            let (cri, name) = (node.cri(), name.clone());
            tokio::spawn(async move { cri.pull(&name).await })
        };
        wait::until("the layer is asked for", async || Ok((registry.count(&image.layers[0].digest) > 0).then_some(())))
            .await?;
        pull.abort();
        assert!(pull.await.is_err_and(|error| error.is_cancelled()));
        assert!(node.cri().image(&name).await?.is_none(), "an image is complete or not there");
        registry.release();
        wait::until("the image is there", async || Ok(node.cri().image(&name).await?)).await?;
        node.cri().remove_image(&name).await?;
        Ok(())
    });
}
