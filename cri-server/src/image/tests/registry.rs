//! Pulls from a registry in this process that does what it is told: ask for tokens, lie, cut, hang.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::super::{
    testing::{Format, TestImage, dir, file, gzip, layer, zstd},
    *,
};

/// What the server got.
#[derive(Debug, Clone, Default)]
struct Asked {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Asked {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What it does about it.
enum Act {
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// States the whole length and closes after that many bytes.
    Cut(Vec<u8>, usize),
    /// The same, and then nothing.
    Stall(Vec<u8>, usize),
    /// Not a byte.
    Hang,
    Close,
    /// A body without end.
    Endless,
}

type Handler = dyn Fn(&Asked) -> Option<Act> + Send + Sync;

struct Server {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    content: Arc<Content>,
}

/// Media type and bytes by path.
type Content = Mutex<BTreeMap<String, (String, Vec<u8>)>>;

impl Server {
    /// `handler` first, the content else.
    fn start(handler: impl Fn(&Asked) -> Option<Act> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap().to_string(),
            asked: Arc::default(),
            content: Arc::default(),
        };
        let (asked, content) = (Arc::clone(&server.asked), Arc::clone(&server.content));
        let handler: Arc<Handler> = Arc::new(handler);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, content, handler) = (Arc::clone(&asked), Arc::clone(&content), Arc::clone(&handler));
                std::thread::spawn(move || serve(stream, &asked, &content, &handler));
            }
        });
        server
    }

    fn add(&self, repository: &str, tag: &str, image: &TestImage) {
        let mut content = self.content.lock().unwrap();
        for (digest, blob) in &image.blobs {
            content.insert(format!("/v2/{repository}/blobs/{digest}"), (String::new(), blob.clone()));
        }
        for version in [tag, &image.digest()] {
            let path = format!("/v2/{repository}/manifests/{version}");
            content.insert(path, (image.media_type.to_owned(), image.manifest.clone()));
        }
    }

    fn put(&self, path: &str, media_type: &str, bytes: &[u8]) {
        self.content.lock().unwrap().insert(path.to_owned(), (media_type.to_owned(), bytes.to_vec()));
    }

    fn count(&self, part: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.path.contains(part)).count()
    }
}

fn serve(mut stream: TcpStream, asked: &Mutex<Vec<Asked>>, content: &Content, handler: &Arc<Handler>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?);
    let next = |lines: &mut BufReader<TcpStream>| {
        let mut line = String::new();
        lines.read_line(&mut line).ok().map(|_| line.trim_end().to_owned())
    };
    let first = next(&mut lines)?;
    let mut words = first.split(' ').map(ToOwned::to_owned);
    let mut request = Asked { method: words.next()?, path: words.next()?, ..Asked::default() };
    loop {
        let line = next(&mut lines)?;
        match line.split_once(':') {
            Some((name, value)) => request.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let length = request.header("content-length").parse().unwrap_or(0);
    let mut body = vec![0; length];
    std::io::Read::read_exact(&mut lines, &mut body).ok()?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    asked.lock().unwrap().push(request.clone());

    let path = request.path.split('?').next()?;
    let act = handler(&request).unwrap_or_else(|| match content.lock().unwrap().get(path) {
        Some((media_type, bytes)) => Act::Answer(200, vec![("content-type", media_type.clone())], bytes.clone()),
        None => {
            let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
            Act::Answer(404, vec![], body.to_string().into_bytes())
        }
    });
    let head = |status: u16, length: usize| {
        format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n")
    };
    match act {
        Act::Answer(status, headers, body) => {
            let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            write!(stream, "{}{headers}\r\n", head(status, body.len())).ok()?;
            stream.write_all(&body).ok()?;
        }
        Act::Cut(body, at) => {
            write!(stream, "{}\r\n", head(200, body.len())).ok()?;
            stream.write_all(&body[..at]).ok()?;
        }
        Act::Stall(body, at) => {
            write!(stream, "{}\r\n", head(200, body.len())).ok()?;
            stream.write_all(&body[..at]).ok()?;
            stream.flush().ok()?;
            // Until the client leaves.
            next(&mut lines);
        }
        Act::Hang => {
            next(&mut lines);
        }
        Act::Close => {}
        Act::Endless => {
            write!(stream, "HTTP/1.1 200 X\r\nconnection: close\r\n\r\n").ok()?;
            while stream.write_all(&[b' '; 65536]).is_ok() {}
        }
    }
    stream.shutdown(Shutdown::Both).ok()
}

async fn open(dir: &Path, change: impl FnOnce(&mut ImageConfig)) -> ImageStore {
    let mut config = ImageConfig::new(dir.join("images"));
    config.registries = dir.join("registries");
    config.progress_timeout = Duration::from_millis(1500);
    change(&mut config);
    ImageStore::open(config, Store::open(&dir.join("state.db")).unwrap()).await.unwrap()
}

async fn pull(store: &ImageStore, reference: &str) -> Result<Arc<Image>, PullError> {
    pull_as(store, reference, None).await
}

async fn pull_as(store: &ImageStore, reference: &str, auth: Option<Credentials>) -> Result<Arc<Image>, PullError> {
    store.pull(PullRequest { reference: reference.to_owned(), auth }).await
}

fn user(password: &str) -> Option<Credentials> {
    Some(Credentials { username: "user".to_owned(), password: password.to_owned(), ..Credentials::default() })
}

fn image(format: Format) -> TestImage {
    let base = layer(&[dir("etc"), file("etc/passwd", "root:x:0:0::/:/bin/sh\n")]);
    let big: String = (0..40_000).map(|number| format!("{number:x}\n")).collect();
    let top = layer(&[file("top", &big), file("etc/.wh.passwd", "")]);
    TestImage::new(format, &[(base.clone(), gzip(&base)), (top.clone(), zstd(&top)), (base.clone(), base)])
}

fn chain(error: &PullError) -> String {
    Chain(error).to_string()
}

mod root {
    use super::*;

    #[tokio::test]
    async fn pulls_tags_digests_indexes() {
        for format in [Format::Oci, Format::Docker] {
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path(), |_| {}).await;
            let server = Server::start(|_| None);
            let image = image(format);
            server.add("a/b", "1", &image);
            let index = image.index(format);
            server.put("/v2/a/b/manifests/multi", format.index(), &index);
            let name = format!("{}/a/b", server.address);

            let pulled = pull(&store, &format!("{name}:1")).await.unwrap();
            assert_eq!(pulled.id.as_str(), image.id());
            assert_eq!(pulled.repo_tags, [format!("{name}:1")]);
            assert_eq!(pulled.repo_digests, [format!("{name}@{}", image.digest())]);
            // The base came twice, compressed and plain: it is one layer, the upper one.
            assert_eq!(pulled.layers.len(), 2);
            assert!(pulled.layers[1].join("etc/passwd").is_file());
            assert!(pulled.size > 200_000);
            assert_eq!(server.count("/blobs/"), 3, "config and two layers");

            let again = pull(&store, &format!("{name}@{}", image.digest())).await.unwrap();
            assert_eq!(again.id, pulled.id);
            let again = pull(&store, &format!("{name}:multi")).await.unwrap();
            assert_eq!(again.repo_tags, [format!("{name}:1"), format!("{name}:multi")]);
            assert_eq!(again.repo_digests[1], format!("{name}@{}", Digest::sha256(&index)));
            assert_eq!(server.count("/blobs/"), 3, "config and layers are there already");
            assert_eq!(store.list().len(), 1);
        }
    }

    #[tokio::test]
    async fn joins_and_outlives_its_caller() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), |_| {}).await;
        let closed = Arc::new(AtomicBool::new(false));
        let gate = Arc::clone(&closed);
        let server = Server::start(move |_| {
            while gate.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            None
        });
        let image = image(Format::Oci);
        server.add("a", "1", &image);
        let name = format!("{}/a:1", server.address);
        let pulls = futures::future::join_all((0..8).map(|_| pull(&store, &name))).await;
        assert!(pulls.iter().all(|pulled| pulled.as_ref().unwrap().id.as_str() == image.id()));
        assert_eq!(server.count("/blobs/"), 3);

        store.remove(&name).await.unwrap();
        closed.store(true, Ordering::Release);
        let leaving = tokio::time::timeout(Duration::from_millis(20), pull(&store, &name)).await;
        assert!(leaving.is_err());
        closed.store(false, Ordering::Release);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while store.resolve(&name).is_none() {
            assert!(std::time::Instant::now() < deadline, "the pull ended with its caller");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn token_server(asked: &Asked, address: &str) -> Option<Act> {
        if let Some(query) = asked.path.strip_prefix("/token") {
            let basic = format!("Basic {}", STANDARD.encode("user:right"));
            let allowed = if asked.method == "POST" {
                asked.body.contains("grant_type=refresh_token")
                    && asked.body.contains("refresh_token=my%2Btoken")
                    && asked.body.contains("scope=repository%3Aa%3Apull")
            } else {
                asked.header("authorization") == basic
                    && query.contains("scope=repository%3Aa%3Apull")
                    && query.contains("service=test%20registry")
            };
            return Some(if allowed {
                Act::Answer(200, vec![], br#"{"access_token":"good","expires_in":300}"#.to_vec())
            } else {
                Act::Answer(401, vec![], br#"{"errors":[{"message":"wrong password"}]}"#.to_vec())
            });
        }
        (asked.header("authorization") != "Bearer good").then(|| {
            let challenge = format!(r#"Bearer realm="http://{address}/token",service="test registry""#);
            Act::Answer(401, vec![("www-authenticate", challenge)], Vec::new())
        })
    }

    // proves: AuthConfig.{username, password, identity_token, registry_token}
    #[tokio::test]
    async fn authenticates_every_way() {
        let address = Arc::new(Mutex::new(String::new()));
        let known = Arc::clone(&address);
        let server = Server::start(move |asked| token_server(asked, &known.lock().unwrap()));
        address.lock().unwrap().clone_from(&server.address);
        server.add("a", "1", &image(Format::Docker));
        let name = format!("{}/a:1", server.address);
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), |_| {}).await;

        let error = pull(&store, &name).await.unwrap_err();
        assert!(chain(&error).contains("refuses access without credentials (wrong password)"), "{}", chain(&error));
        let error = pull_as(&store, &name, user("wrong")).await.unwrap_err();
        assert!(chain(&error).contains("get token from http://"), "{}", chain(&error));
        assert!(chain(&error).contains("refuses the credentials"), "{}", chain(&error));
        let before = server.count("/token");
        pull_as(&store, &name, user("right")).await.unwrap();
        assert_eq!(server.count("/token"), before + 1, "the token is kept");
        let identity = Credentials { identity_token: "my+token".to_owned(), ..Credentials::default() };
        pull_as(&store, &name, Some(identity)).await.unwrap();
        let registry = Credentials { registry_token: "good".to_owned(), ..Credentials::default() };
        let before = server.count("/token");
        pull_as(&store, &name, Some(registry)).await.unwrap();
        assert_eq!(server.count("/token"), before);

        // Basic.
        let server = Server::start(|asked| {
            let basic = format!("Basic {}", STANDARD.encode("user:right"));
            (asked.header("authorization") != basic)
                .then(|| Act::Answer(401, vec![("www-authenticate", "Basic realm=\"x\"".to_owned())], Vec::new()))
        });
        server.add("a", "1", &image(Format::Docker));
        let name = format!("{}/a:1", server.address);
        assert!(chain(&pull(&store, &name).await.unwrap_err()).contains("without credentials"));
        assert!(chain(&pull_as(&store, &name, user("wrong")).await.unwrap_err()).contains("refuses the credentials"));
        pull_as(&store, &name, user("right")).await.unwrap();
    }

    #[tokio::test]
    async fn redirects_do_not_take_credentials_along() {
        let store_server = Server::start(|asked| {
            (!asked.header("authorization").is_empty()).then(|| Act::Answer(400, vec![], Vec::new()))
        });
        let image = image(Format::Oci);
        store_server.add("a", "1", &image);
        let target = store_server.address.clone();
        let server = Server::start(move |asked| {
            if asked.header("authorization").is_empty() {
                return Some(Act::Answer(401, vec![("www-authenticate", "Basic".to_owned())], Vec::new()));
            }
            let location = format!("http://{target}{}?signature=secret", asked.path);
            asked.path.contains("/blobs/").then(|| Act::Answer(307, vec![("location", location)], Vec::new()))
        });
        server.add("a", "1", &image);
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), |_| {}).await;
        pull_as(&store, &format!("{}/a:1", server.address), user("x")).await.unwrap();
        assert_eq!(store_server.count("/blobs/"), 3);

        let server = Server::start(|asked| {
            asked.path.contains("/v2/").then(|| Act::Answer(302, vec![("location", asked.path.clone())], Vec::new()))
        });
        let error = pull(&store, &format!("{}/a:1", server.address)).await.unwrap_err();
        assert!(chain(&error).contains("redirected too often"), "{}", chain(&error));
    }

    #[tokio::test]
    async fn resumes_what_was_cut() {
        for knows_ranges in [true, false] {
            let image = image(Format::Oci);
            let (digest, blob) = image.blobs.iter().max_by_key(|(_, blob)| blob.len()).unwrap();
            let (path, blob) = (format!("/blobs/{digest}"), blob.clone());
            let server = Server::start(move |asked| {
                if !asked.path.ends_with(&path) {
                    return None;
                }
                let from: usize =
                    asked.header("range").strip_prefix("bytes=").unwrap_or("0-").trim_end_matches('-').parse().unwrap();
                if from > blob.len() / 2 && !knows_ranges {
                    return None;
                }
                if from > blob.len() * 3 / 4 {
                    let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                    return Some(Act::Answer(206, vec![("content-range", range)], blob[from..].to_vec()));
                }
                // Each connection brings something and breaks.
                if knows_ranges && from > 0 {
                    let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                    let half = blob[from..from + blob.len() / 4].to_vec();
                    return Some(Act::Answer(206, vec![("content-range", range)], half));
                }
                Some(Act::Cut(blob.clone(), blob.len() / 2 + 1))
            });
            server.add("a", "1", &image);
            let dir = tempfile::tempdir().unwrap();
            let store = open(dir.path(), |_| {}).await;
            let pulled = pull(&store, &format!("{}/a:1", server.address)).await.unwrap();
            assert_eq!(pulled.id.as_str(), image.id());
            assert!(server.count(digest) >= 2);
        }
    }

    #[tokio::test]
    async fn hostile_registries_are_named() {
        let image = Arc::new(image(Format::Oci));
        let (big, blob) = image.blobs.iter().max_by_key(|(_, blob)| blob.len()).unwrap();
        let (big, blob) = (big.clone(), blob.clone());
        let manifests =
            |act: fn() -> Act| -> Box<Handler> { Box::new(move |asked| asked.path.contains("/manifests/").then(act)) };
        let blobs = |act: Box<dyn Fn(&Asked) -> Act + Send + Sync>| -> Box<Handler> {
            let path = format!("/blobs/{big}");
            Box::new(move |asked| asked.path.ends_with(&path).then(|| act(asked)))
        };
        let [cut, stalled, longer, flipped] = [(); 4].map(|()| blob.clone());
        let cases: Vec<(Box<Handler>, &str, bool)> = vec![
            (manifests(|| Act::Hang), "no answer within 1.5s", true),
            (manifests(|| Act::Close), "resolve image", true),
            (manifests(|| Act::Endless), "more than 4194304 bytes", false),
            (manifests(|| Act::Stall(vec![b' '; 100], 50)), "nothing came for 1.5s", true),
            (manifests(|| Act::Answer(200, vec![], b"<html>".to_vec())), "parse manifest", false),
            (manifests(|| Act::Answer(503, vec![], Vec::new())), "status 503", true),
            (manifests(|| Act::Answer(418, vec![], Vec::new())), "status 418", false),
            (manifests(|| Act::Answer(307, vec![], Vec::new())), "redirected to nowhere", false),
            (manifests(|| Act::Answer(404, vec![], Vec::new())), "not found at 127.0.0.1", false),
            (blobs(Box::new(move |_| Act::Cut(cut.clone(), 0))), "read http://", true),
            (blobs(Box::new(move |_| Act::Stall(stalled.clone(), 0))), "nothing came for 1.5s", true),
            (
                blobs(Box::new(move |_| Act::Answer(200, vec![], [longer.as_slice(), b"x"].concat()))),
                "longer than the",
                false,
            ),
            (
                blobs(Box::new(move |_| {
                    let mut flipped = flipped.clone();
                    let last = flipped.len() - 1;
                    flipped[last] ^= 1;
                    Act::Answer(200, vec![], flipped)
                })),
                "layer",
                false,
            ),
            (blobs(Box::new(|_| Act::Answer(404, vec![], Vec::new()))), "not found at 127.0.0.1", false),
        ];
        let runs = cases.into_iter().map(|(handler, text, is_unavailable)| {
            let image = Arc::clone(&image);
            async move {
                let server = Server::start(handler);
                server.add("a", "1", &image);
                let dir = tempfile::tempdir().unwrap();
                let store = open(dir.path(), |_| {}).await;
                let error = pull(&store, &format!("{}/a:1", server.address)).await.unwrap_err();
                assert!(chain(&error).contains(text), "{} lacks {text}", chain(&error));
                assert!(!chain(&error).contains("signature"));
                assert_eq!(error.is_registry_unavailable(), is_unavailable, "{}", chain(&error));
                assert!(store.list().is_empty());
                let deadline = std::time::Instant::now() + Duration::from_secs(10);
                for name in ["layers/sha256", "staging", "trash", "l"] {
                    let path = dir.path().join("images").join(name);
                    while std::fs::read_dir(&path).map_or(0, Iterator::count) > 0 {
                        assert!(std::time::Instant::now() < deadline, "{} is not empty", path.display());
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                }
            }
        });
        futures::future::join_all(runs).await;
    }

    #[tokio::test]
    async fn digests_are_checked_not_believed() {
        let (image, other) = (image(Format::Oci), super::image(Format::Docker));
        let server = Server::start(|_| None);
        server.add("a", "1", &image);
        let name = format!("{}/a", server.address);
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), |_| {}).await;
        // The right digest in the header, something else in the body.
        let lying = other.manifest.clone();
        let digest = image.digest();
        server.put(&format!("/v2/a/manifests/{digest}"), "", &lying);
        let error = pull(&store, &format!("{name}@{digest}")).await.unwrap_err();
        assert!(chain(&error).contains(&format!("has digest {}", other.digest())), "{}", chain(&error));
        // A config that is not the one of the manifest.
        let config = Digest::sha256(&image.config);
        server.put(&format!("/v2/a/blobs/{config}"), "", b"{}");
        let error = pull(&store, &format!("{name}:1")).await.unwrap_err();
        assert!(chain(&error).contains("download config"), "{}", chain(&error));
        let error = pull(&store, "Not A Name").await.unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(store.list().is_empty());
    }

    #[tokio::test]
    async fn mirrors_come_first_and_may_fail() {
        let image = image(Format::Oci);
        let empty = Server::start(|_| None);
        let mirror = Server::start(|asked| {
            let expected = "ns=registry.example%3A5000";
            (!asked.path.contains(expected)).then(|| Act::Answer(400, vec![], Vec::new()))
        });
        mirror.add("lib/a", "1", &image);
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("registries/registry.example:5000");
        std::fs::create_dir_all(&hosts).unwrap();
        let text = format!(
            "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            empty.address, mirror.address
        );
        std::fs::write(hosts.join("hosts.toml"), text).unwrap();
        let store = open(dir.path(), |_| {}).await;
        let pulled = pull(&store, "registry.example:5000/lib/a:1").await.unwrap();
        assert_eq!(pulled.repo_tags, ["registry.example:5000/lib/a:1"]);
        assert!(empty.count("/manifests/") == 1);
        let error = pull(&store, "registry.example:5000/lib/b:1").await.unwrap_err();
        let text = chain(&error);
        assert!(text.contains("not found at") && text.contains("connect to 127.0.0.1:1"), "{text}");
        assert!(error.is_registry_unavailable());
        std::fs::write(hosts.join("hosts.toml"), "servr = \"x\"").unwrap();
        let error = pull(&store, "registry.example:5000/lib/a:1").await.unwrap_err();
        assert!(chain(&error).contains("servr"), "{}", chain(&error));
    }
}
