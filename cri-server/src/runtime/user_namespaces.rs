//! Whether this node can run pods in user namespaces: tried once, in a mount namespace that ends with the try.
//!
//! Images are shared by all pods and are not copied or changed for one, so their layers must be shown with a pod's owners
//! (id-mapped mounts: Linux 5.12, per file system later), and overlayfs must take such layers (Linux 5.19).

use std::{io, path::Path, thread};

use nix::sched::{CloneFlags, unshare};
use vaina_sys::{
    mount::{self, Propagation},
    userns::{self, IdMap},
};

/// Any mapping will do.
const MAP: [IdMap; 1] = [IdMap { inside: 0, outside: 65_536, length: 65_536 }];

/// What is missing, in words. `store` is where layers are, in directories below the two of `layers`. Blocking.
pub fn problem(store: &Path, layers: [&str; 2]) -> Option<String> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("userns".to_owned());
        match thread.spawn_scoped(scope, || try_out(store, layers)).map(thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result.err(),
            Ok(Err(_)) => Some("the try to use one has ended without an answer".to_owned()),
            Err(error) => Some(format!("start a thread that tries one: {error}")),
        }
    })
}

fn try_out(store: &Path, layers: [&str; 2]) -> Result<(), String> {
    let step = |what: String| move |error: io::Error| format!("{what}: {error}");
    let user = userns::create(&MAP, &MAP).map_err(step("this kernel makes no user namespace".to_owned()))?;
    let alone = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount::set_propagation(Path::new("/"), Propagation::Private, true)
    };
    alone().map_err(step("make a mount namespace to try it in".to_owned()))?;
    let tree = mount::detached(store, false).map_err(step(format!("clone the mount of {}", store.display())))?;
    mount::map_ids(&tree, user, false)
        .map_err(step(format!("the file system of {} can't be id-mapped by this kernel", store.display())))?;
    mount::attach(tree, store).map_err(step(format!("mount {} id-mapped", store.display())))?;
    mount::overlay(&layers.map(|layer| store.join(layer)), &[], true, store)
        .map_err(step("overlayfs takes no id-mapped layers (Linux 5.19 brings that)".to_owned()))
}

#[cfg(test)]
mod tests {
    mod root {
        use super::super::*;

        #[test]
        fn what_is_missing_is_said_and_nothing_stays_mounted() {
            let store = tempfile::tempdir().unwrap();
            for layer in ["a", "b"] {
                std::fs::create_dir(store.path().join(layer)).unwrap();
            }
            assert_eq!(problem(store.path(), ["a", "b"]), None);
            assert!(!mount::table().unwrap().iter().any(|mount| mount.target.starts_with(store.path())));
            // A file system that can't be shown with other owners.
            let text = problem(Path::new("/proc/sys"), ["fs", "net"]).unwrap();
            assert!(text.contains("file system of /proc/sys can't be id-mapped"), "{text}");
        }
    }
}
