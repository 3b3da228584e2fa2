//! Seccomp filters, as classic BPF programs.

use std::io;

use nix::libc::{self, sock_filter, sock_fprog};

/// Bytes of one instruction.
pub const INSTRUCTION: usize = size_of::<sock_filter>();

/// `SECCOMP_FILTER_FLAG_*` for [`load`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// What the filter does not allow is logged.
    pub log: bool,
    /// Speculative store bypass is not switched off.
    pub speculation: bool,
    /// All threads of the process get the filter.
    pub all_threads: bool,
}

/// Loads a filter into this thread, for good. `program` is a sequence of `struct sock_filter` in the machine's byte order.
///
/// Without "no new privileges" it takes CAP_SYS_ADMIN (EACCES). EINVAL: the kernel does not accept the program.
pub fn load(program: &[u8], flags: Flags) -> io::Result<()> {
    let (whole, rest) = program.as_chunks::<INSTRUCTION>();
    let length = u16::try_from(whole.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    if !rest.is_empty() || length == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut instructions: Vec<sock_filter> = whole
        .iter()
        .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| sock_filter {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        })
        .collect();
    let program = sock_fprog { len: length, filter: instructions.as_mut_ptr() };
    let mut bits: libc::c_ulong = 0;
    for (wanted, bit) in [
        (flags.log, libc::SECCOMP_FILTER_FLAG_LOG),
        (flags.speculation, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
        (flags.all_threads, libc::SECCOMP_FILTER_FLAG_TSYNC),
    ] {
        if wanted {
            bits |= bit;
        }
    }
    // SAFETY: `program` points to `len` instructions that live until after the call, and the kernel copies them.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, bits, &raw const program) };
    match done {
        0 => Ok(()),
        // With TSYNC a thread that can't have the filter is answered by its id.
        id if id > 0 => Err(io::Error::other(format!("thread {id} has a filter of its own"))),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_program_is_refused() {
        for wrong in [&[][..], &[0; 7][..]] {
            assert_eq!(load(wrong, Flags::default()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(load(&[0; 8 * 70_000], Flags::default()).unwrap_err().raw_os_error(), Some(libc::E2BIG));
        // A program that does not end in a return.
        assert!(load(&[0; 8], Flags::default()).is_err());
    }
}
