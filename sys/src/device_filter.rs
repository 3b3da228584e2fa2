//! Which devices the processes of a control group may use: of version 2 it is the answer of a small program (`bpf(2)`), which
//! the kernel asks at each open and mknod. The program is attached to the group and goes with it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// One instruction as the kernel has it in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// The destination register, and the source register in the higher half.
    pub registers: u8,
    /// Of a jump, or in memory.
    pub offset: i16,
    /// Constant.
    pub immediate: i32,
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` needs.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

/// The part of `union bpf_attr` that `BPF_PROG_ATTACH` needs.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Programs of the groups above, and others of this one, are asked as well.
const ALLOW_MULTI: u32 = 2;

/// Has the program decide for the group whose directory `cgroup` is. The kernel refuses a program that may not end.
pub fn attach(program: &[Instruction], cgroup: impl AsFd) -> io::Result<()> {
    let program = load(program)?;
    let fd = |fd: i32| u32::try_from(fd).map_err(io::Error::other);
    let attach = Attach {
        target: fd(cgroup.as_fd().as_raw_fd())?,
        program: fd(program.as_raw_fd())?,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attach).map(drop)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr().addr() as u64,
        licence: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
        name: *b"vaina_devices\0\0\0",
    };
    let fd = bpf(PROG_LOAD, &load)?;
    // SAFETY: the call has succeeded, so that this is a new descriptor, which nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: both commands read the attributes for as long as the call takes, and no more of them than the size that is
    // given; what they point to (the instructions, the licence) outlives the call, as it is borrowed by or static in the
    // callers; neither writes anything.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}
