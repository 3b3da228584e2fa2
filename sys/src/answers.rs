//! What the kernel answers to calls that come to nothing: shows a system call filter from inside.

use std::io;

/// `clone` with a flag that makes a namespace; the kernel refuses the other one beside it, whoever asks.
const NEW_USER_AND_SHARED_FS: libc::c_long = (libc::CLONE_NEWUSER | libc::CLONE_FS) as libc::c_long;

/// The call's number and its first argument, with which, all others being 0, it does nothing.
fn harmless(call: &str) -> Option<(libc::c_long, libc::c_long)> {
    Some(match call {
        "bpf" => (libc::SYS_bpf, -1),
        "clone-namespace" => (libc::SYS_clone, NEW_USER_AND_SHARED_FS),
        "clone3" => (libc::SYS_clone3, 0),
        "fchmodat2" => (452, -1),
        "io_uring_setup" => (libc::SYS_io_uring_setup, 0),
        "keyctl" => (libc::SYS_keyctl, -1),
        "mount" => (libc::SYS_mount, 0),
        "open_by_handle_at" => (libc::SYS_open_by_handle_at, -1),
        "personality" => (libc::SYS_personality, 0xffff_ffff),
        "perf_event_open" => (libc::SYS_perf_event_open, 0),
        "ptrace" => (libc::SYS_ptrace, -1),
        "setns" => (libc::SYS_setns, -1),
        "socket-alg" => (libc::SYS_socket, libc::AF_ALG.into()),
        "socket-netlink" => (libc::SYS_socket, libc::AF_NETLINK.into()),
        "socket-nonsense" => (libc::SYS_socket, 1000),
        "socket-vsock" => (libc::SYS_socket, libc::AF_VSOCK.into()),
        "unshare" => (libc::SYS_unshare, 0),
        "userfaultfd" => (libc::SYS_userfaultfd, -1),
        // Above all that the kernel has.
        "no-such-call" => (0xfff, 0),
        _ => return None,
    })
}

/// Makes a call of that name; [`None`] if it is not one of those that are known to do nothing.
pub fn answer(call: &str) -> Option<io::Result<()>> {
    let (number, first) = harmless(call)?;
    // SAFETY: each pair of the table is refused by the kernel for its arguments or changes nothing: there is no address among
    // the arguments but null, descriptor -1 is never open, and no flags that make a process or a namespace get through.
    let result = unsafe { libc::syscall(number, first, 0_usize, 0_usize, 0_usize, 0_usize, 0_usize) };
    Some(if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_the_kernels() {
        let errno = |call| answer(call).map(|answer| answer.err().and_then(|error| error.raw_os_error()));
        assert_eq!(errno("no-such-call"), Some(Some(libc::ENOSYS)));
        assert_eq!(errno("setns"), Some(Some(libc::EBADF)));
        assert_eq!(errno("clone-namespace"), Some(Some(libc::EINVAL)));
        assert_eq!(errno("personality"), Some(None));
        assert_eq!(errno("unshare"), Some(None));
        assert_eq!(errno("exit"), None);
    }
}
