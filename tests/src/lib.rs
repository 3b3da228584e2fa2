//! Harness.

pub mod guest;
