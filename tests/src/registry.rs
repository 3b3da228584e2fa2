//! Registries on loopback: Debian's `docker-registry` for what a real one does, and a fake one for what a real one can't
//! be made to do (token authentication without a token server, hanging, resetting, lying).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufReader, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use nix::sys::socket::{setsockopt, sockopt::Linger};

use crate::{
    http::{Head, Request, exchange, read_head},
    images::{Blob, Built, Index, push::Target},
    node::run,
    require, wait,
};

/// The user that registries with authentication know.
pub const USER: &str = "tester";
/// Its password.
pub const PASSWORD: &str = "secret";
/// `htpasswd -nbBC 4 tester secret`.
const HTPASSWD: &str = "tester:$2b$04$XALlm8oeL6qjoEJRN.WI2OP72HXGZKIg4lhuT./SDUYw/6ehDAlYe\n";

/// What a server shows to prove who it is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate of who signed it.
    pub authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Identity {
    /// Makes one for 127.0.0.1, signed by an authority that nobody else knows.
    pub fn make(directory: &Path) -> Result<Self> {
        let openssl = require::tool("openssl", "openssl")?;
        let path = |name: &str| directory.join(name);
        let new = |name: &str, more: &[&str]| -> Result<()> {
            let mut command = Command::new(&openssl);
            command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
            command.args(["-days", "2", "-subj", &format!("/CN=vaina test {name}")]).args(more);
            command.arg("-keyout").arg(path(&format!("{name}.key"))).arg("-out").arg(path(&format!("{name}.pem")));
            run(&mut command).map(drop)
        };
        new("authority", &[])?;
        let authority = path("authority.pem");
        let (signer, key) = (authority.to_string_lossy(), path("authority.key"));
        let server = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"];
        new("server", &[&server[..], &["-CA", &signer, "-CAkey", &key.to_string_lossy()]].concat())?;
        Ok(Self { certificate: path("server.pem"), key: path("server.key"), authority })
    }
}

/// A running `docker-registry`.
#[derive(Debug)]
pub struct DockerRegistry {
    child: Child,
    /// Where it listens, and the credentials that it wants.
    pub target: Target,
}

impl DockerRegistry {
    /// Starts one in `directory` on a port of 127.0.0.1 of this thread's network namespace.
    pub fn start(directory: &Path, port: u16, basic: bool) -> Result<Self> {
        let registry = Self::spawn(directory, port, basic, None)?;
        let address = registry.target.address.clone();
        wait::blocking("docker-registry answers", STARTS, || {
            exchange(&address, &Request::new("GET", "/v2/")).is_ok().then_some(())
        })?;
        Ok(registry)
    }

    /// Starts one that speaks https only. Our own pushes don't, so it serves what an earlier one left in `directory`.
    pub fn start_tls(directory: &Path, port: u16, identity: &Identity) -> Result<Self> {
        let registry = Self::spawn(directory, port, false, Some(identity))?;
        let address = registry.target.address.clone();
        wait::blocking("docker-registry listens", STARTS, || TcpStream::connect(&address).ok())?;
        Ok(registry)
    }

    fn spawn(directory: &Path, port: u16, basic: bool, identity: Option<&Identity>) -> Result<Self> {
        let data = directory.join("data");
        fs::create_dir_all(&data).with_context(|| format!("create {}", data.display()))?;
        let auth = if basic {
            let path = directory.join("htpasswd");
            fs::write(&path, HTPASSWD).with_context(|| format!("write {}", path.display()))?;
            format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n", path.display())
        } else {
            String::new()
        };
        let tls = identity.map_or_else(String::new, |Identity { certificate, key, .. }| {
            format!(", tls: {{ certificate: {}, key: {} }}", certificate.display(), key.display())
        });
        let config = directory.join("registry.yml");
        let text = format!(
            "version: 0.1\n\
             log: {{ level: error, accesslog: {{ disabled: true }} }}\n\
             storage: {{ filesystem: {{ rootdirectory: {} }}, delete: {{ enabled: true }} }}\n\
             http: {{ addr: '127.0.0.1:{port}'{tls} }}\n{auth}",
            data.display()
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let log = fs::File::create(directory.join("registry.log"))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry (Debian package docker-registry)")?;
        let basic = basic.then(|| (USER.to_owned(), PASSWORD.to_owned()));
        Ok(Self { child, target: Target { address: format!("127.0.0.1:{port}"), basic } })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `host:port/repository:tag`.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.target.address)
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a [`FakeRegistry`] does wrong, or asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Serves everybody.
    Open,
    /// Wants a bearer token, and gives one to [`USER`].
    Token,
    /// Takes connections and never says a word.
    Hang,
    /// Resets each connection.
    Reset,
    /// Serves all but the second half of each layer, and stays silent there.
    HangInLayer,
    /// Serves half of each layer and resets the connection.
    ResetInLayer,
    /// Answers 500 to each request for a manifest.
    Broken,
}

/// How long a registry may take to start.
const STARTS: Duration = Duration::from_secs(20);

/// A read-only registry in this process.
#[derive(Debug)]
pub struct FakeRegistry {
    /// `host:port`.
    pub address: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    manner: Manner,
    address: String,
    stopped: AtomicBool,
    content: Mutex<BTreeMap<String, Blob>>,
    requests: Mutex<Vec<String>>,
    /// Digests of which only the first half is served.
    held: Mutex<BTreeSet<String>>,
    released: Condvar,
    /// Those that live, so that they can be ended.
    connections: Mutex<BTreeMap<usize, TcpStream>>,
}

/// The token that the token server hands out.
const TOKEN: &str = "a-token-for-tests";

impl FakeRegistry {
    /// Listens on a free port of 127.0.0.1 of this thread's network namespace.
    pub fn start(manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            manner,
            address: address.clone(),
            stopped: AtomicBool::new(false),
            content: Mutex::default(),
            requests: Mutex::default(),
            held: Mutex::default(),
            released: Condvar::new(),
            connections: Mutex::default(),
        });
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().flatten().enumerate() {
                if for_thread.stopped.load(Ordering::Acquire) {
                    return;
                }
                let shared = Arc::clone(&for_thread);
                lock(&shared.connections).extend(stream.try_clone().map(|stream| (number, stream)));
                thread::spawn(move || {
                    // A broken connection is the client's affair, and part of some tests.
                    drop(shared.serve(stream));
                    lock(&shared.connections).remove(&number);
                });
            }
        });
        Ok(Self { address, shared })
    }

    /// Serves an image under a tag and its digest.
    pub fn add(&self, repository: &str, tag: &str, image: &Built) -> Result<()> {
        self.add_image(repository, image)?;
        self.put(format!("/v2/{repository}/manifests/{tag}"), &image.manifest)
    }

    /// Serves an index and all that it names.
    pub fn add_index(&self, repository: &str, tag: &str, index: &Index) -> Result<()> {
        for image in &index.images {
            self.add_image(repository, image)?;
        }
        self.put(format!("/v2/{repository}/manifests/{tag}"), &index.manifest)
    }

    /// Serves any bytes as a manifest.
    pub fn add_manifest(&self, repository: &str, tag: &str, bytes: &[u8]) -> Result<()> {
        let blob = Blob {
            media_type: "application/vnd.oci.image.manifest.v1+json",
            digest: crate::images::digest(bytes),
            bytes: bytes.to_vec(),
        };
        self.put(format!("/v2/{repository}/manifests/{tag}"), &blob)
    }

    /// Serves other bytes under the digest of a blob, as a broken disk or proxy would.
    pub fn replace(&self, repository: &str, blob: &Blob, bytes: &[u8]) -> Result<()> {
        let other = Blob { bytes: bytes.to_vec(), ..blob.clone() };
        self.put(format!("/v2/{repository}/blobs/{}", blob.digest), &other)
    }

    /// Serves only the first half of the blob or manifest with this digest, until [`release`](Self::release).
    pub fn hold(&self, digest: &str) {
        lock(&self.shared.held).insert(digest.to_owned());
    }

    /// Serves the other halves too.
    pub fn release(&self) {
        lock(&self.shared.held).clear();
        self.shared.released.notify_all();
    }

    /// The requests so far, as `METHOD path`.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }

    /// How many GET requests had this in their path.
    pub fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.starts_with("GET ") && request.contains(part)).count()
    }

    fn add_image(&self, repository: &str, image: &Built) -> Result<()> {
        self.put(format!("/v2/{repository}/manifests/{}", image.manifest.digest), &image.manifest)?;
        for blob in image.layers.iter().chain([&image.config]) {
            self.put(format!("/v2/{repository}/blobs/{}", blob.digest), blob)?;
        }
        Ok(())
    }

    fn put(&self, path: String, blob: &Blob) -> Result<()> {
        ensure!(!path.contains(' '), "path {path:?}");
        lock(&self.shared.content).insert(path, blob.clone());
        Ok(())
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.release();
        // A client keeps connections for later; they are of no use to it now.
        for connection in lock(&self.shared.connections).values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the listener so that it sees the flag.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        match self.manner {
            Manner::Hang => return silence(stream),
            Manner::Reset => return reset(&stream),
            _ => {}
        }
        let mut reader = BufReader::new(stream.try_clone()?);
        loop {
            let head = match read_head(&mut reader) {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(()),
                Err(error) => {
                    // So says a real one to who begins a TLS session, and that one then knows what to do.
                    stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")?;
                    return Err(error);
                }
            };
            lock(&self.requests).push(format!("{} {}", head.method, head.path));
            let path = head.path.split('?').next().unwrap_or_default();
            if path == "/token" {
                self.token(&head, &mut stream)?;
                continue;
            }
            if self.manner == Manner::Token && head.header("authorization") != Some(&format!("Bearer {TOKEN}")) {
                let challenge = format!(
                    "www-authenticate: Bearer realm=\"http://{}/token\",service=\"registry.test\",scope=\"repository:x:pull\"\r\n",
                    self.address
                );
                answer(&mut stream, &head, "401 Unauthorized", &challenge, br#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)?;
                continue;
            }
            if self.manner == Manner::Broken && path.contains("/manifests/") {
                answer(&mut stream, &head, "500 Internal Server Error", "", b"the registry is broken")?;
                continue;
            }
            let blob = lock(&self.content).get(path).cloned();
            match blob {
                _ if path == "/v2/" => answer(&mut stream, &head, "200 OK", "", b"{}")?,
                None => {
                    answer(&mut stream, &head, "404 Not Found", "", br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#)?;
                }
                Some(blob) => {
                    let headers =
                        format!("content-type: {}\r\ndocker-content-digest: {}\r\n", blob.media_type, blob.digest);
                    let is_layer = blob.media_type.contains("layer") || blob.media_type.contains("rootfs");
                    if is_layer && head.method == "GET" && self.manner == Manner::HangInLayer {
                        half(&mut stream, &headers, &blob.bytes)?;
                        return silence(stream);
                    }
                    if is_layer && head.method == "GET" && self.manner == Manner::ResetInLayer {
                        half(&mut stream, &headers, &blob.bytes)?;
                        return reset(&stream);
                    }
                    let is_held = |held: &mut BTreeSet<String>| held.contains(&blob.digest);
                    if head.method == "GET" && is_held(&mut lock(&self.held)) {
                        half(&mut stream, &headers, &blob.bytes)?;
                        let held = self.released.wait_while(lock(&self.held), is_held);
                        drop(held.unwrap_or_else(PoisonError::into_inner));
                        stream.write_all(&blob.bytes[blob.bytes.len() / 2..])?;
                        continue;
                    }
                    answer(&mut stream, &head, "200 OK", &headers, &blob.bytes)?;
                }
            }
        }
    }

    fn token(&self, head: &Head, stream: &mut TcpStream) -> Result<()> {
        let wanted = format!("Basic {}", BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}")));
        if head.header("authorization") == Some(&wanted) {
            let body = format!(r#"{{"token":"{TOKEN}","expires_in":300}}"#);
            answer(stream, head, "200 OK", "content-type: application/json\r\n", body.as_bytes())
        } else {
            answer(stream, head, "401 Unauthorized", "", br#"{"details":"incorrect username or password"}"#)
        }
    }
}

fn answer(stream: &mut TcpStream, head: &Head, status: &str, headers: &str, body: &[u8]) -> Result<()> {
    let text = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n", body.len());
    stream.write_all(text.as_bytes())?;
    if head.method != "HEAD" {
        stream.write_all(body)?;
    }
    Ok(())
}

fn half(stream: &mut TcpStream, headers: &str, body: &[u8]) -> Result<()> {
    let text = format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.len());
    stream.write_all(text.as_bytes())?;
    Ok(stream.write_all(&body[..body.len() / 2])?)
}

/// Holds the connection until the client gives it up.
fn silence(mut stream: TcpStream) -> Result<()> {
    let mut sink = [0; 4096];
    while stream.read(&mut sink)? > 0 {}
    Ok(())
}

/// Closes with RST: a linger time of nothing drops what is queued.
fn reset(stream: &TcpStream) -> Result<()> {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(setsockopt(stream, Linger, &linger)?)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
