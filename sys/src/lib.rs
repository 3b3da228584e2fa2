//! Safe wrappers of the kernel interfaces that a pod runtime needs.
//!
//! Blocking, `io::Result`, descriptors as `OwnedFd`/`AsFd`, always close-on-exec. No policy, no choice of paths, no tokio, no
//! logs. This is the only crate with `unsafe`: `nix` first, `rustix` for the calls that it lacks.

pub mod answers;
pub mod cgroup;
pub mod device_filter;
#[cfg(feature = "failpoints")]
pub mod failpoint;
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

/// Passes a point in a task: `failpoint!(name, make_error)` returns `Err(make_error(io::Error))` when it fails;
/// `failpoint!(name)` can't fail; `failpoint!(blocking name, make_error)` is for threads. Nothing at all without the feature of
/// the crate that says it.
#[macro_export]
macro_rules! failpoint {
    (blocking $name:expr, $error:expr) => {
        #[cfg(feature = "failpoints")]
        match $crate::failpoint::pass($name) {
            None => {}
            Some($crate::failpoint::Strike::Error(error)) => return Err($error(error)),
            Some($crate::failpoint::Strike::Hold(held)) => held.block(),
        }
    };
    ($name:expr, $error:expr) => {
        #[cfg(feature = "failpoints")]
        match $crate::failpoint::pass($name) {
            None => {}
            Some($crate::failpoint::Strike::Error(error)) => return Err($error(error)),
            Some($crate::failpoint::Strike::Hold(held)) => {
                while held.lasts() {
                    tokio::time::sleep($crate::failpoint::INTERVAL).await;
                }
            }
        }
    };
    ($name:expr) => {
        #[cfg(feature = "failpoints")]
        if let Some($crate::failpoint::Strike::Hold(held)) = $crate::failpoint::pass($name) {
            while held.lasts() {
                tokio::time::sleep($crate::failpoint::INTERVAL).await;
            }
        }
    };
}
