//! PID 1 of pods that share a PID namespace: collects orphans and sleeps.
//!
//! A program of its own, with no library at all, since it is there once for each such pod: a few pages. Built by the shim's
//! build script, embedded in the shim, and run from a sealed copy in memory, so that no container that shares the PID namespace
//! can overwrite it through `/proc/1/exe`.
//!
//! It blocks all signals and takes them one by one: SIGCHLD means to collect, SIGTERM and SIGINT from outside the namespace to
//! end, others mean nothing. Its end takes the namespace with it, so a container must not be able to order it: a blocked signal
//! is queued even for PID 1, and what tells the two apart is that a sender outside has no pid in here.

#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
mod number {
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const EXIT: usize = 60;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 128;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const EXIT: usize = 93;
    pub(crate) const WAIT4: usize = 260;
    pub(crate) const RT_SIGTIMEDWAIT: usize = 137;
}

// The kernel enters with the stack aligned; a call keeps what the ABI of a function asks for.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor %ebp, %ebp", "call main", "ud2", options(att_syntax));
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, #0", "bl main", "brk #1");

const SIGINT: isize = 2;
const SIGTERM: isize = 15;
const SIG_BLOCK: usize = 0;
const WNOHANG: usize = 1;
const ANY_CHILD: usize = usize::MAX;

/// # Safety
///
/// The arguments must be what the system call asks for: pointers are null or valid for it.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: the instruction clobbers rcx, r11 and memory, all declared; the arguments are the caller's duty.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// # Safety
///
/// The arguments must be what the system call asks for: pointers are null or valid for it.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: the instruction changes x0 and memory, both declared; the arguments are the caller's duty.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d, options(nostack));
    }
    result
}

/// `siginfo_t`: 128 bytes, of which the sender's pid is read.
#[repr(C, align(8))]
struct SignalInfo {
    number_error_code: [i32; 4],
    sender: i32,
    rest: [u8; 108],
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    let all: u64 = u64::MAX;
    let mask = &raw const all as usize;
    // SAFETY: the mask is eight bytes that live to the end of this function, which never returns; the old mask is not asked for.
    unsafe { call(number::RT_SIGPROCMASK, SIG_BLOCK, mask, 0, size_of::<u64>()) };
    loop {
        // Collect first: a child may have ended before the signals were blocked.
        // SAFETY: no status and no usage are asked for, so both pointers are null.
        while unsafe { call(number::WAIT4, ANY_CHILD, 0, WNOHANG, 0) } > 0 {}
        let mut info = SignalInfo { number_error_code: [0; 4], sender: 0, rest: [0; 108] };
        let place = &raw mut info as usize;
        // SAFETY: the mask as above; `info` has the size and alignment of what is written there and lives through the call; no
        // time limit is given, so that pointer is null.
        let signal = unsafe { call(number::RT_SIGTIMEDWAIT, mask, place, 0, size_of::<u64>()) };
        // SAFETY: it is initialised and lives; read as volatile, since the compiler does not see the kernel write it.
        let sender = unsafe { core::ptr::read_volatile(&raw const info.sender) };
        if (signal == SIGTERM || signal == SIGINT) && sender == 0 {
            // SAFETY: ends the process; takes no pointer.
            unsafe { call(number::EXIT, 0, 0, 0, 0) };
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
