//! Network namespaces, pinned by bind mounts as `ip netns` does, so that they outlive the processes in them.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{
    mount::{self, Propagation},
    userns::Member,
};

/// Makes a network namespace and pins it at `pin`, whose directory is made a shared mount first, so that the pin
/// shows (and goes) in every mount namespace. A left-over pin of the same name is replaced.
pub fn create(pin: &Path) -> io::Result<()> {
    create_owned(pin, None)
}

/// As [`create`], with a user namespace that it belongs to: who is root there may change it.
pub fn create_owned(pin: &Path, owner: Option<BorrowedFd<'_>>) -> io::Result<()> {
    prepare_directory(pin.parent().unwrap_or_else(|| Path::new("/")))?;
    unpin(pin)?;
    fs::OpenOptions::new().write(true).create_new(true).open(pin)?;
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount::bind(Path::new("/proc/thread-self/ns/net"), pin, false)
    };
    let made = match owner {
        None => on_own_thread(make),
        Some(user) => Member::join(user, CloneFlags::CLONE_NEWNET)
            .and_then(|member| mount::bind(Path::new(&member.path("net")), pin, false)),
    };
    if made.is_err() {
        let _ = fs::remove_file(pin);
    }
    made
}

/// Opens a pinned namespace; an error if the file is there and is no pin (the mount went, as after a reboot).
pub fn open(pin: &Path) -> io::Result<OwnedFd> {
    let file = fs::File::open(pin)?;
    if rustix::fs::fstatfs(&file)?.f_type != NSFS_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is no namespace", pin.display())));
    }
    Ok(file.into())
}

const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;

/// Whether `path` is a pinned namespace now.
pub fn is_pinned(pin: &Path) -> bool {
    open(pin).is_ok()
}

/// Removes a pin; one that is not there is removed. The namespace goes with the last process in it.
pub fn unpin(pin: &Path) -> io::Result<()> {
    mount::detach(pin)?;
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs `work` inside the namespace, on a thread that ends afterwards, so no early return leaves a thread astray.
pub fn run_in<T: Send, E: From<io::Error> + Send>(
    namespace: impl AsFd,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    let namespace = namespace.as_fd();
    on_own_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        work()
    })
}

fn on_own_thread<T: Send, E: From<io::Error> + Send>(work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes the directory of pins a shared mount, if it is none yet.
pub fn prepare_directory(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let directory = fs::canonicalize(directory)?;
    let table = mount::table()?;
    let own = table.iter().rfind(|mount| mount.target == directory);
    match own {
        Some(own) if own.shared => Ok(()),
        Some(_) => mount::set_propagation(&directory, Propagation::Shared, false),
        None => {
            // As `ip netns add` does it. On a host whose root is shared already this costs one mount for good.
            mount::bind(&directory, &directory, true)?;
            mount::set_propagation(&directory, Propagation::Shared, false)
        }
    }
}

#[cfg(test)]
mod tests {
    mod root {
        use super::super::*;

        #[test]
        fn a_namespace_is_made_entered_and_gone() {
            let dir = tempfile::tempdir().unwrap();
            let pins = dir.path().join("netns");
            let pin = pins.join("a");
            create(&pin).unwrap();
            create(&pin).unwrap();
            assert!(is_pinned(&pin));
            let inside = run_in(open(&pin).unwrap(), || fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
            assert_eq!(inside.lines().count(), 3, "only lo: {inside}");
            unpin(&pin).unwrap();
            unpin(&pin).unwrap();
            assert!(open(&pin).is_err());
            mount::detach(&fs::canonicalize(&pins).unwrap()).unwrap();
        }
    }
}
