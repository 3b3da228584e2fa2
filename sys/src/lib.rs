//! Safe wrappers of the kernel interfaces that a pod runtime needs.
//!
//! Blocking, `io::Result`, descriptors as `OwnedFd`/`AsFd`, always close-on-exec. No policy, no choice of paths, no tokio, no
//! logs. This is the only crate with `unsafe`: `nix` first, `rustix` for the calls that it lacks.

pub mod answers;
pub mod cgroup;
pub mod device_filter;
pub mod fs;
pub mod inherit;
pub mod memory;
pub mod mount;
pub mod netns;
pub mod process;
pub mod pty;
pub mod seccomp;
pub mod semaphore;
pub mod sysvipc;
pub mod userns;
