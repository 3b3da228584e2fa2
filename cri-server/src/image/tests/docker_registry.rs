//! Pulls from Debian's `docker-registry`: what a real registry does, as far as it does it.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::super::{
    testing::{Format, TestImage, dir, file, gzip, layer, zstd},
    *,
};

/// `htpasswd -nbBC 4 user right`.
const HTPASSWD: &str = "user:$2b$04$N5CDN9NNpIFken.F/93tUuHoINqWgTANp.K7NlUkK8/sZmguk3gLy\n";

struct DockerRegistry {
    child: Child,
    address: String,
    authorization: &'static str,
}

impl DockerRegistry {
    fn start(dir: &Path, basic: bool) -> Self {
        // The port is free now; nothing else takes ports by number here.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        std::fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        let auth = match basic {
            true => format!("auth: {{ htpasswd: {{ realm: test, path: {}/htpasswd }} }}\n", dir.display()),
            false => String::new(),
        };
        let config = format!(
            "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {}/data }} }}\nhttp: {{ addr: {address} }}\n{auth}",
            dir.display()
        );
        std::fs::write(dir.join("registry.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve".as_ref(), dir.join("registry.yml").as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&address).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::yield_now();
        }
        Self { child, address, authorization: if basic { "Basic dXNlcjpyaWdodA==" } else { "Basic eDp5" } }
    }

    fn push(&self, repository: &str, tag: &str, image: &TestImage, index: Option<&[u8]>) {
        for (digest, blob) in &image.blobs {
            let start = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
            let location = start.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap().to_owned();
            let path = location.split_once(&self.address).map_or(location.as_str(), |(_, path)| path);
            let answer = self.request("PUT", &format!("{path}&digest={digest}"), "application/octet-stream", blob);
            assert!(answer.contains(" 201 "), "{answer}");
        }
        let mut manifests = vec![(image.digest(), image.media_type, image.manifest.as_slice())];
        match index {
            Some(index) => manifests.push((tag.to_owned(), Format::Docker.index(), index)),
            None => manifests[0].0 = tag.to_owned(),
        }
        for (version, media_type, bytes) in manifests {
            let answer = self.request("PUT", &format!("/v2/{repository}/manifests/{version}"), media_type, bytes);
            assert!(answer.contains(" 201 "), "{answer}");
        }
    }

    fn request(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\nauthorization: {}\r\n\
             content-type: {media_type}\r\ncontent-length: {}\r\n\r\n",
            self.address,
            self.authorization,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).replace('\r', "")
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn pull(store: &ImageStore, reference: &str, password: Option<&str>) -> Result<Arc<Image>, PullError> {
    let auth = password.map(|password| Credentials {
        username: "user".to_owned(),
        password: password.to_owned(),
        ..Credentials::default()
    });
    store.pull(PullRequest { reference: reference.to_owned(), auth }).await
}

mod root {
    use super::*;

    #[tokio::test]
    async fn pulls_every_form_with_and_without_password() {
        let base = layer(&[dir("etc"), file("etc/os-release", "test")]);
        for basic in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let registry = DockerRegistry::start(dir.path(), basic);
            let state = Store::open(&dir.path().join("state.db")).unwrap();
            let mut config = ImageConfig::new(dir.path().join("images"));
            config.registries = dir.path().join("registries");
            let store = ImageStore::open(config, state).await.unwrap();
            for (number, format) in [Format::Oci, Format::Docker].into_iter().enumerate() {
                let top = layer(&[file("number", &number.to_string())]);
                let image = TestImage::new(format, &[(base.clone(), gzip(&base)), (top.clone(), zstd(&top))]);
                let tag = format!("v{number}");
                registry.push("deep/path/app", &tag, &image, None);
                let name = format!("{}/deep/path/app", registry.address);
                let password = basic.then_some("right");
                let pulled = pull(&store, &format!("{name}:{tag}"), password).await.unwrap();
                assert_eq!(pulled.id.as_str(), image.id());
                assert_eq!(std::fs::read_to_string(pulled.layers[1].join("number")).unwrap(), number.to_string());
                let by_digest = format!("{name}@{}", image.digest());
                assert_eq!(pull(&store, &by_digest, password).await.unwrap().repo_digests, [by_digest]);
                let error = pull(&store, &format!("{name}:missing"), password).await.unwrap_err();
                assert!(Chain(&error).to_string().contains("(manifest unknown)"), "{}", Chain(&error));
                assert_eq!(error.kind(), Kind::NotFound);
                if basic {
                    for wrong in [None, Some("wrong")] {
                        let error = pull(&store, &format!("{name}:{tag}"), wrong).await.unwrap_err();
                        assert!(Chain(&error).to_string().contains("refuses"), "{}", Chain(&error));
                    }
                }
            }
            assert_eq!(store.list().len(), 2);
        }
    }

    #[tokio::test]
    async fn picks_its_platform_from_a_manifest_list() {
        let dir = tempfile::tempdir().unwrap();
        let registry = DockerRegistry::start(dir.path(), false);
        let state = Store::open(&dir.path().join("state.db")).unwrap();
        let store = ImageStore::open(ImageConfig::new(dir.path().join("images")), state).await.unwrap();
        let tar = layer(&[file("ours", "x")]);
        let image = TestImage::new(Format::Docker, &[(tar.clone(), gzip(&tar))]);
        // The registry wants to know every manifest of a list.
        let config =
            serde_json::json!({"architecture": "s390x", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
        let foreign = TestImage::with_config(Format::Docker, &[], &config);
        registry.push("app", &foreign.digest(), &foreign, None);
        let index = image.index_with(Format::Docker, &foreign);
        registry.push("app", "multi", &image, Some(&index));
        let name = format!("{}/app", registry.address);
        let pulled = pull(&store, &format!("{name}:multi"), None).await.unwrap();
        assert_eq!(pulled.id.as_str(), image.id());
        assert_eq!(pulled.repo_digests, [format!("{name}@{}", Digest::sha256(&index))]);
    }
}
