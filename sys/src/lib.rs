//! Kernel wrappers.

pub mod sysvipc;
