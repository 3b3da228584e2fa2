//! Our own executable as a container can't change it.
//!
//! While a container is made, a process in it still runs this program, and `/proc/<pid>/exe` leads whoever may look there back
//! to its file on the host (CVE-2019-5736). So what runs as an OCI runtime is executed from a read-only mount of the
//! file that stands in no mount table: opened through `/proc/<pid>/exe`, the file is on that mount, and it can't be
//! written. Where the kernel refuses such a mount it is a sealed copy in memory.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use rustix::fs::{
    CWD, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals, fstatvfs,
    memfd_create, openat,
};

const OWN: &str = "/proc/self/exe";

/// Opens this executable so that it can be run from `/proc/self/fd/<n>` and not be written through it.
pub(crate) fn own_executable() -> io::Result<OwnedFd> {
    if is_sealed()? {
        return Ok(openat(CWD, OWN, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
    }
    vaina_sys::mount::detached_read_only(Path::new(OWN)).or_else(|_| sealed_copy(&mut File::open(OWN)?))
}

/// Whether this process runs from such a mount or copy.
pub(crate) fn is_sealed() -> io::Result<bool> {
    let own = openat(CWD, OWN, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    if fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SealFlags::WRITE)) {
        return Ok(true);
    }
    Ok(fstatvfs(&own)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Becomes the sealed form of this program, with the same arguments. Returns only if that can't be done.
pub(crate) fn run_again(arguments: impl IntoIterator<Item = OsString>) -> io::Error {
    match own_executable() {
        Ok(own) => {
            let mut arguments = arguments.into_iter();
            let mut command = Command::new(format!("/proc/self/fd/{}", own.as_raw_fd()));
            command.arg0(arguments.next().unwrap_or_default()).args(arguments).exec()
        }
        Err(error) => error,
    }
}

/// Copies a program into memory and forbids any change of it.
pub(crate) fn sealed_copy(program: &mut impl io::Read) -> io::Result<OwnedFd> {
    let copy = memfd_create("vaina-sealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(copy);
    io::copy(program, &mut file)?;
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_is_refused(fd: &OwnedFd) -> io::Error {
        // As a process that finds it below /proc would.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        match std::fs::OpenOptions::new().write(true).open(path) {
            Err(error) => error,
            Ok(mut file) => io::Write::write_all(&mut file, b"x").unwrap_err(),
        }
    }

    #[test]
    fn a_copy_can_be_run_and_not_be_written() {
        let copy = sealed_copy(&mut File::open("/bin/true").unwrap()).unwrap();
        assert_eq!(write_is_refused(&copy).raw_os_error(), Some(nix::libc::EPERM));
        assert!(Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd())).status().unwrap().success());
    }

    mod root {
        use super::*;

        #[test]
        fn the_own_file_is_opened_on_a_read_only_mount() {
            let own = own_executable().unwrap();
            assert!(fstatvfs(&own).unwrap().f_flag.contains(StatVfsMountFlags::RDONLY));
            // A file that is not being executed, which would be refused for that alone.
            let file = tempfile::NamedTempFile::new().unwrap();
            let mount = vaina_sys::mount::detached_read_only(file.path()).unwrap();
            assert_eq!(write_is_refused(&mount).raw_os_error(), Some(nix::libc::EROFS));
            std::fs::write(file.path(), "x").unwrap();
        }
    }
}
