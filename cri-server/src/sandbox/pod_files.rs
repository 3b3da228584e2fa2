//! The files that all containers of a pod see: `resolv.conf`, `hostname`, `hosts`. Pure texts, and where they lie.

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use vaina_proto::cri::DnsConfig;

/// Where the files of a pod are.
#[derive(Debug, Clone)]
pub struct PodFiles {
    /// For `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// For `/etc/hostname`.
    pub hostname: PathBuf,
    /// For `/etc/hosts`, unless the client mounts its own.
    pub hosts: PathBuf,
    /// For `/dev/shm`.
    pub shm: PathBuf,
    /// FIFOs of execs.
    pub io: PathBuf,
    /// Pin of the IPC namespace.
    pub ipc: PathBuf,
    /// Pin of the UTS namespace.
    pub uts: PathBuf,
}

impl PodFiles {
    /// Below the pod's directory.
    pub fn new(directory: &Path) -> Self {
        Self {
            resolv_conf: directory.join("resolv.conf"),
            hostname: directory.join("hostname"),
            hosts: directory.join("hosts"),
            shm: directory.join("shm"),
            io: directory.join("io"),
            ipc: directory.join("ns/ipc"),
            uts: directory.join("ns/uts"),
        }
    }

    /// Makes the directories and writes the files.
    pub(super) fn write(&self, dns: Option<&DnsConfig>, hostname: &str, hosts: &str) -> io::Result<()> {
        for directory in [Some(self.shm.as_path()), Some(self.io.as_path()), self.ipc.parent()].into_iter().flatten() {
            fs::create_dir_all(directory)?;
        }
        let resolv_conf = match dns.map(resolv_conf) {
            Some(text) => text.into_bytes(),
            // What the node uses; a node without the file resolves nothing, and neither does the pod.
            None => match fs::read("/etc/resolv.conf") {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error),
            },
        };
        fs::write(&self.resolv_conf, resolv_conf)?;
        fs::write(&self.hostname, format!("{hostname}\n"))?;
        fs::write(&self.hosts, hosts)
    }
}

impl PodFiles {
    /// Lets the root of the pod's user namespace have the files, and reach what it is to join: to the node it is anybody.
    pub(super) fn give(&self, directory: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
        for file in [&self.resolv_conf, &self.hostname, &self.hosts] {
            std::os::unix::fs::chown(file, Some(uid), Some(gid))?;
        }
        for directory in [Some(directory), self.ipc.parent()].into_iter().flatten() {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o711))?;
        }
        Ok(())
    }
}

/// `resolv.conf` as resolvers read it: one server a line.
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

/// `hosts` of a pod with addresses of its own.
pub(super) fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n\
                    ::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::0\tip6-localnet\n\
                    fe00::0\tip6-mcastprefix\n\
                    fe00::1\tip6-allnodes\n\
                    fe00::2\tip6-allrouters\n"
        .to_owned();
    for address in addresses {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_a_line_for_each_server() {
        let dns = DnsConfig {
            servers: vec!["10.96.0.10".into(), "1.1.1.1".into()],
            searches: vec!["ns.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into(), "edns0".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search ns.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:5 edns0\n"
        );
        assert_eq!(resolv_conf(&DnsConfig::default()), "");
    }

    #[test]
    fn files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let files = PodFiles::new(dir.path());
        files.write(None, "web", &hosts("web", &["10.0.0.2".parse().unwrap()])).unwrap();
        assert_eq!(fs::read_to_string(&files.hostname).unwrap(), "web\n");
        assert!(fs::read_to_string(&files.hosts).unwrap().ends_with("10.0.0.2\tweb\n"));
        assert!(files.shm.is_dir() && files.io.is_dir() && dir.path().join("ns").is_dir());
    }
}
