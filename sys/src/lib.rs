//! Kernel wrappers.
