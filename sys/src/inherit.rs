//! What a process hands down to the program that it becomes: signal dispositions and the session keyring.

use std::{ffi::CStr, io};

use nix::{
    errno::Errno,
    sys::signal::{SigHandler, SigSet, Signal, signal},
};

/// Gives every signal its default disposition and unblocks all.
///
/// Ignored and blocked signals survive an exec, and a Rust program ignores SIGPIPE from its start on: `yes | head` in a
/// container would not end.
pub fn default_signals() -> io::Result<()> {
    for number in Signal::iterator() {
        if matches!(number, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: the default disposition runs no code of this process, so nothing has to be async-signal-safe; the
        // handler that is replaced is not called again.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Joins the session keyring of that name, made if there is none, so that what is started next can't reach this one's
/// keys. Success on a kernel without keys.
pub fn join_session_keyring(name: &CStr) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is NUL-terminated and lives through the call, which only reads it.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if result >= 0 {
        return Ok(());
    }
    match Errno::last() {
        Errno::ENOSYS => Ok(()),
        errno => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_signal_stays_ignored_or_blocked() {
        std::thread::spawn(|| {
            default_signals().unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            for field in ["SigBlk:", "SigIgn:"] {
                let line = status.lines().find(|line| line.starts_with(field)).unwrap();
                assert_eq!(u64::from_str_radix(line[field.len()..].trim(), 16).unwrap() & 0x7fff_ffff, 0, "{line}");
            }
        })
        .join()
        .unwrap();
    }
}
