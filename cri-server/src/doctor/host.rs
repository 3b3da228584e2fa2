//! Looks at the host: kernel, rights, control groups, disk, programs, network.

use std::{fs, path::Path};

use rustix::fs::OFlags;
use vaina_sys::cgroup::Hierarchies;

use super::report::Check;
use crate::{
    config::Config,
    error::Chain,
    image::ImageStore,
    network::Network,
    readiness::{self, Disk},
    runtime::{Handlers, user_namespaces},
};

/// What design and tests hold for: older kernels lack `cgroup.kill` and more.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

pub(super) async fn look(config: &Config) -> Vec<Check> {
    let mut checks = kernel(config);
    checks.push(rights());
    checks.extend(groups(config));
    checks.extend([("root directory", &config.root), ("state directory", &config.state)].map(|(what, path)| {
        let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        disk(what, there, readiness::disk(there))
    }));
    checks.push(file_system(&config.root));
    checks.extend(handlers(config));
    checks.extend(network(config).await);
    checks
}

fn kernel(config: &Config) -> Vec<Check> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut checks = vec![release_of(release.trim())];
    let openat2 = fs::File::open("/").and_then(|root| {
        vaina_sys::fs::open_in_root(root, Path::new("proc"), OFlags::PATH | OFlags::CLOEXEC, 0).map(drop)
    });
    for (what, tried) in [("openat2", openat2), ("pidfd_open", vaina_sys::process::open(std::process::id()).map(drop))]
    {
        checks.push(match tried {
            Ok(()) => Check::ok(what, "it works"),
            Err(error) => Check::fail(what, format!("it is needed and does not work: {error}")),
        });
    }
    let layers = config.root.join("images");
    if layers.is_dir() {
        checks.push(match user_namespaces::problem(&layers, ImageStore::DIRECTORIES) {
            None => Check::ok("id-mapped mounts", "they work, with overlayfs too"),
            Some(why) => Check::ok("id-mapped mounts", format!("pods in user namespaces are refused: {why}")),
        });
    }
    checks
}

fn release_of(release: &str) -> Check {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST_KERNEL => Check::ok("kernel", release),
        (Some(_), Some(_)) => Check::fail("kernel", format!("{release} is older than 5.15")).advice("use a newer one"),
        _ => Check::warn("kernel", format!("its release {release:?} is not understood")),
    }
}

fn rights() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::ok("user", "root")
    } else {
        Check::fail("user", "not root, so the daemon can't run like this").advice("run it as root")
    }
}

fn groups(config: &Config) -> Vec<Check> {
    let groups = match Hierarchies::detect() {
        Ok(groups) => groups,
        Err(error) => return vec![Check::fail("control groups", format!("the mount table can't be read: {error}"))],
    };
    let kind = match (groups.is_v2(), groups.v2.is_some()) {
        (true, _) => "v2",
        (false, true) => "hybrid",
        (false, false) => "v1",
    };
    let parent = groups.group(Path::new(&config.cgroup.parent));
    let has = |name: &str| match &groups.v2 {
        Some(root) if groups.is_v2() => fs::read_to_string(root.join("cgroup.controllers"))
            .is_ok_and(|all| all.split_whitespace().any(|own| own == name)),
        _ => groups.controller(name).is_some(),
    };
    let missing: Vec<&str> = ["cpu", "memory", "pids"].into_iter().filter(|name| !has(name)).collect();
    let mut checks = vec![if missing.is_empty() {
        Check::ok("control groups", format!("{kind}, with cpu, memory and pids"))
    } else {
        Check::fail("control groups", format!("{kind}, without {}", missing.join(", ")))
            .advice("mount or enable them; limits and statistics need them")
    }];
    let read_only = parent.directories().find(|path| rustix::fs::access(*path, rustix::fs::Access::WRITE_OK).is_err());
    checks.push(match read_only {
        Some(path) => Check::fail("parent control group", format!("{} can't be written", path.display())),
        None if parent.exists() => Check::ok("parent control group", &config.cgroup.parent),
        None => Check::ok("parent control group", "it is not there yet; the daemon makes it at its start"),
    });
    let kill = groups.is_v2() && parent.directories().any(|path| path.join("cgroup.kill").exists());
    checks.push(Check::ok(
        "cgroup.kill",
        if kill { "it is used" } else { "not here; groups are killed process by process" },
    ));
    checks
}

fn disk(what: &str, path: &Path, disk: Option<Disk>) -> Check {
    let path = path.display();
    match disk.map(|disk| disk.problem(&path.to_string())) {
        None => Check::fail(what, format!("{path} can't be looked at")),
        Some(Some((_, why))) => Check::fail(what, why).advice("no pod can be started until that is changed"),
        Some(None) => Check::ok(what, format!("{path} has room")),
    }
}

/// File systems that overlayfs does not take as the upper one, or that lose what it needs.
fn file_system(root: &Path) -> Check {
    let there = root.ancestors().find_map(|path| fs::canonicalize(path).ok()).unwrap_or_else(|| "/".into());
    let what = "file system of the images";
    match vaina_sys::mount::table() {
        Err(error) => Check::fail(what, format!("the mount table can't be read: {error}")),
        Ok(table) => match vaina_sys::mount::containing(&table, &there).map(|mount| mount.fs_type.as_str()) {
            Some(kind @ ("overlay" | "nfs" | "nfs4" | "cifs" | "vfat" | "exfat" | "9p")) => {
                Check::fail(what, format!("overlayfs can't have its writable layers on {kind}"))
                    .advice("set `root` to a directory on ext4, xfs, btrfs or tmpfs")
            }
            Some(kind) => Check::ok(what, kind),
            None => Check::warn(what, format!("{} is on no mount that can be seen", there.display())),
        },
    }
}

fn handlers(config: &Config) -> Vec<Check> {
    let handlers = Handlers::new(&config.handlers, &config.state);
    let mut checks = Vec::new();
    for handler in handlers.iter() {
        let what =
            if handler.name.is_empty() { "default handler".to_owned() } else { format!("handler {}", handler.name) };
        let runtime = Path::new(&handler.runtime);
        checks.push(if !readiness::is_program(&handler.shim) {
            Check::fail(what, format!("its shim {} can't be executed", handler.shim.display())).advice("install it")
        } else if handler.runtime.is_empty() || readiness::is_program(runtime) {
            Check::ok(what, "its programs are there")
        } else if config.handlers.contains_key(&handler.name) {
            Check::fail(what, format!("its OCI runtime {} can't be executed", handler.runtime))
                .advice("install it, or take the handler out of the configuration")
        } else {
            Check::ok(what, format!("{} is not installed; pods that ask for it fail", handler.runtime))
        });
    }
    checks
}

async fn network(config: &Config) -> Vec<Check> {
    let network = match Network::look(&config.network) {
        Ok(network) => network,
        Err(error) => return vec![Check::fail("network", Chain(&error).to_string())],
    };
    let has_run = config.root.join("state.db").exists();
    let mut checks = vec![match network.status().await {
        Ok(()) => Check::ok("network", format!("bridge {} and its nftables table are there", config.network.bridge)),
        Err(error) if has_run => Check::fail("network", Chain(&error).to_string())
            .advice("a restart of the daemon, or `vaina doctor --repair` without one, makes it again"),
        Err(_) => Check::ok("network", "it is not there yet; the daemon makes it at its start"),
    }];
    match network.findings(&[]).await {
        Ok(found) if found.is_empty() => checks.push(Check::ok("firewall", "no other table drops what pods send")),
        Ok(found) => checks.extend(
            found
                .into_iter()
                .map(|rule| Check::fail("firewall", rule).advice("let it accept; an accept of ours can't override it")),
        ),
        Err(error) => checks.push(Check::fail("nftables", Chain(&error).to_string())),
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_judged_by_their_numbers() {
        assert_eq!(release_of("5.15.0-91-generic"), Check::ok("kernel", "5.15.0-91-generic"));
        assert_eq!(release_of("6.1-rc1"), Check::ok("kernel", "6.1-rc1"));
        assert_ne!(release_of("5.4.0"), Check::ok("kernel", "5.4.0"));
        assert_eq!(release_of("x"), Check::warn("kernel", "its release \"x\" is not understood"));
    }

    #[test]
    fn what_readiness_refuses_is_a_failure() {
        let good = Disk { is_read_only: false, bytes: 1 << 30, inodes: 100_000, has_inodes: true };
        let path = Path::new("/x");
        assert_eq!(disk("d", path, Some(good)), Check::ok("d", "/x has room"));
        let bad = Check::fail("d", "the file system of /x is mounted read-only");
        let read_only = disk("d", path, Some(Disk { is_read_only: true, ..good }));
        assert_eq!(read_only, bad.advice("no pod can be started until that is changed"));
    }
}
