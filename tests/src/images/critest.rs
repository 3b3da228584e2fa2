//! The images that critest names, made from Debian's packages, since none can be pulled.
//!
//! critest has their names built in (`registry.k8s.io/…`, `gcr.io/…`), so a registry on loopback serves them as a mirror. What
//! they must contain is what its specs look at: applets that are exec'd (a static busybox runs them in its own process), a
//! real nginx, manifest lists with a foreign architecture, both flavours of media types.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Built, DIRECTORIES, Flavour, Image, Index, PASSWD, layer::Layer, push::Target};

/// Packages whose files go into the images, with all that their programs are linked to.
const PACKAGES: [&str; 7] = ["busybox", "nginx", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"];

/// Hosts whose images these are.
pub const HOSTS: [&str; 3] = ["registry.k8s.io", "gcr.io", "k8s.gcr.io"];

/// Debian's packages, unpacked side by side.
#[derive(Debug, Clone)]
pub struct Debian {
    root: PathBuf,
}

impl Debian {
    /// Downloads and unpacks the packages below `cache`, once.
    pub fn ensure(cache: &Path) -> Result<Self> {
        let root = cache.join("critest-debian-1");
        if root.is_dir() {
            return Ok(Self { root });
        }
        fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
        // Made under another name and renamed at the end: what was cut is never taken for whole.
        let work = tempfile::Builder::new().prefix("critest-debian-").tempdir_in(cache)?;
        // `apt-get download` drops its privileges for the download, and needs the directory to be open for that.
        fs::set_permissions(work.path(), fs::Permissions::from_mode(0o777))?;
        run(Command::new("apt-get").args(["-qq", "download"]).args(PACKAGES).current_dir(work.path()))?;
        let unpacked = work.path().join("root");
        for entry in fs::read_dir(work.path())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&unpacked))?;
            }
        }
        fs::rename(&unpacked, &root).with_context(|| format!("put {} into the cache", root.display()))?;
        Ok(Self { root })
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let full = self.root.join(path);
        fs::read(&full).with_context(|| format!("read {}", full.display()))
    }

    /// A layer's entries for the libraries and the loader that a program is linked to.
    fn libraries(&self, mut layer: Layer, program: &str, seen: &mut BTreeSet<String>) -> Result<Layer> {
        let directories = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|path| self.root.join(path));
        let path = std::env::join_paths(&directories)?;
        let output = Command::new("ldd")
            .arg(self.root.join(program))
            .env("LD_LIBRARY_PATH", path)
            .output()
            .context("run ldd (Debian package libc-bin)")?;
        ensure!(output.status.success(), "ldd {program}: {}", String::from_utf8_lossy(&output.stderr));
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (target, source) = match words.as_slice() {
                [name, "=>", path, ..] => (format!("lib/x86_64-linux-gnu/{name}"), (*path).to_owned()),
                [path, ..] if path.starts_with("/lib64/") => (path[1..].to_owned(), (*path).to_owned()),
                _ => continue,
            };
            if seen.insert(target.clone()) {
                let bytes = fs::read(&source).with_context(|| format!("read {source}"))?;
                layer = layer.file(&target, 0o755, &bytes);
            }
        }
        Ok(layer)
    }
}

const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// Finds processes by name; busybox of Debian has none.
const PGREP: &str = "#!/bin/sh\nr=1\nfor d in /proc/[0-9]*; do\n\
    \x20 [ \"$(cat $d/comm 2>/dev/null)\" = \"$1\" ] && { echo ${d#/proc/}; r=0; }\ndone\nexit $r\n";

/// Lists shared memory segments; busybox of Debian has none.
const IPCS: &str = "#!/bin/sh\ncat /proc/sysvipc/shm\n";

/// Makes and pushes all images.
#[derive(Debug)]
pub struct Builder<'a> {
    debian: &'a Debian,
    probe: Vec<u8>,
    busybox: Layer,
}

impl<'a> Builder<'a> {
    /// `probe` is our static test program.
    pub fn new(debian: &'a Debian, probe: &Path) -> Result<Self> {
        let probe = fs::read(probe).with_context(|| format!("read {}", probe.display()))?;
        Ok(Self { debian, probe, busybox: busybox(debian)? })
    }

    fn image(&self) -> Image {
        Image::new().flavour(Flavour::Docker).layer(self.busybox.clone()).config("Cmd", json!(["sh"]))
    }

    fn with_file(&self, path: &str) -> Image {
        self.image().layer(Layer::new().file(path, 0o644, b"x"))
    }

    /// Pushes everything to a registry.
    pub fn push(&self, target: &Target) -> Result<()> {
        let foreign = self.image().architecture("arm64").build()?;
        let list = Index::new(vec![self.image().build()?, foreign])?;
        for tag in ["1.29-2", "1.29-4"] {
            target.push_index("e2e-test-images/busybox", tag, &list)?;
        }
        let one = |image: Built| Index::new(vec![image]);
        target.push_index("e2e-test-images/nginx", "1.14-2", &one(self.nginx(80)?)?)?;
        target.push("k8s-staging-cri-tools/hostnet-nginx-amd64", "latest", &self.nginx(12003)?)?;
        target.push_index("e2e-test-images/httpd", "2.4.39-4", &one(self.httpd()?)?)?;
        target.push_index("e2e-test-images/nonewprivs", "1.3", &one(self.no_new_privileges()?)?)?;
        for tag in ["3.9", "3.10", "3.10.1"] {
            target.push_index("pause", tag, &one(self.pause(tag)?)?)?;
        }
        let staging = |name: &str| format!("k8s-staging-cri-tools/{name}");
        for name in ["test-image-1", "test-image-2", "test-image-3", "test-image-latest", "test-image-digest"] {
            target.push(&staging(name), "latest", &self.with_file(name).build()?)?;
        }
        let same = self.with_file("same-image").build()?;
        for tag in ["1", "2", "3"] {
            target.push(&staging("test-image-tags"), tag, &same)?;
        }
        for tag in ["test", "all"] {
            let image = self.with_file(&format!("tag-{tag}")).flavour(Flavour::Oci);
            target.push(&staging("test-image-tag"), tag, &image.build()?)?;
        }
        for (name, user) in
            [("uid", "1002"), ("username", "www-data"), ("uid-group", "1003:1004"), ("username-group", "www-data:1004")]
        {
            let image = self.image().config("User", json!(user));
            target.push(&staging(&format!("test-image-user-{name}")), "latest", &image.build()?)?;
        }
        target.push(&staging("test-image-predefined-group"), "latest", &self.predefined_group()?)
    }

    fn nginx(&self, port: u16) -> Result<Built> {
        let configuration = format!(
            "user nobody nogroup;\nworker_processes 1;\npid /var/run/nginx.pid;\nevents {{ worker_connections 128; }}\n\
             http {{\n  access_log /dev/stdout;\n  error_log /dev/stderr;\n  server {{ listen {port}; listen [::]:{port}; \
             root /usr/share/nginx/html; index index.html; }}\n}}\n"
        );
        let mut layer = Layer::new();
        for path in ["usr/sbin/", "var/log/", "var/log/nginx/", "var/lib/", "var/lib/nginx/", "var/run/", "etc/nginx/"]
        {
            layer = layer.directory(path, 0o755);
        }
        layer = layer
            .file("usr/sbin/nginx", 0o755, &self.debian.read("usr/sbin/nginx")?)
            .symlink("var/log/nginx/access.log", "/dev/stdout")
            .symlink("var/log/nginx/error.log", "/dev/stderr")
            .file("usr/share/nginx/html/index.html", 0o644, b"<html><title>Welcome to nginx!</title></html>\n")
            .file("etc/nginx/nginx.conf", 0o644, configuration.as_bytes());
        let layer = self.debian.libraries(layer, "usr/sbin/nginx", &mut BTreeSet::new())?;
        let ports: Value = [(format!("{port}/tcp"), json!({}))].into_iter().collect();
        self.image()
            .layer(layer)
            .config("Cmd", json!(["nginx", "-g", "daemon off;"]))
            .config("ExposedPorts", ports)
            .config("StopSignal", json!("SIGTERM"))
            .build()
    }

    /// A server that says its name on stdout, as the specs of logs and of exec'd probes expect.
    fn httpd(&self) -> Result<Built> {
        let script = "#!/bin/sh\necho 'AH00094: Command line: httpd -D FOREGROUND'\n\
            exec httpd -f -v -p 80 -h /usr/local/apache2/htdocs\n";
        let layer = Layer::new().file("usr/local/bin/httpd-foreground", 0o755, script.as_bytes()).file(
            "usr/local/apache2/htdocs/index.html",
            0o644,
            b"<html><body><h1>It works!</h1></body></html>\n",
        );
        self.image()
            .layer(layer)
            .config("Cmd", json!(["httpd-foreground"]))
            .config("WorkingDir", json!("/usr/local/apache2"))
            .config("ExposedPorts", json!({ "80/tcp": {} }))
            .build()
    }

    /// A program with the setuid bit that says whom it runs as.
    fn no_new_privileges(&self) -> Result<Built> {
        self.image()
            .layer(Layer::new().file("nnp", 0o4755, &self.probe))
            .config("Entrypoint", json!(["/nnp", "effective-uid"]))
            .config("Cmd", Value::Null)
            .build()
    }

    /// For peers; Vaina needs none.
    fn pause(&self, version: &str) -> Result<Built> {
        Image::new()
            .flavour(Flavour::Docker)
            .layer(Layer::new().file("pause", 0o755, &self.probe))
            .config("Entrypoint", json!(["/pause", "pause"]))
            .config("User", json!("65535:65535"))
            .config("Labels", json!({ "version": version }))
            .build()
    }

    fn predefined_group(&self) -> Result<Built> {
        let group = format!("{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n");
        let layer =
            Layer::new().file("etc/passwd", 0o644, PASSWD.as_bytes()).file("etc/group", 0o644, group.as_bytes());
        self.image().layer(layer).config("User", json!("1000")).build()
    }
}

fn busybox(debian: &Debian) -> Result<Layer> {
    let program = debian.root.join("bin/busybox");
    let list = Command::new(&program).arg("--list").output().context("list the applets of busybox")?;
    ensure!(list.status.success(), "{} --list: {}", program.display(), list.status);
    let mut layer = Layer::new();
    for (path, mode) in DIRECTORIES {
        layer = layer.directory(path, mode);
    }
    layer = layer.file("bin/busybox", 0o755, &debian.read("bin/busybox")?);
    let own = ["busybox", "pgrep", "ipcs"];
    for name in std::str::from_utf8(&list.stdout)?.lines().filter(|name| !own.contains(name)) {
        layer = layer.hard_link(&format!("bin/{name}"), "bin/busybox");
    }
    layer = layer
        .file("bin/pgrep", 0o755, PGREP.as_bytes())
        .file("bin/ipcs", 0o755, IPCS.as_bytes())
        .file("etc/passwd", 0o644, PASSWD.as_bytes())
        .file("etc/group", 0o644, GROUP.as_bytes());
    debian.libraries(layer, "bin/busybox", &mut BTreeSet::new())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
