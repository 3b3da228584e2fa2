//! The shim's own messages: lines on stderr, which is a file of the bundle (`shim.log`).
//!
//! A subscriber with filters and spans costs more memory than the rest of an idle shim, and there is little to say: what
//! concerns a call is answered to the caller.

use std::io::Write as _;

/// Writes one line; a full disk must not stop a pod, so a failure is dropped.
pub(crate) fn line(level: &str, message: std::fmt::Arguments<'_>) {
    let text = format!("{} {level} {message}\n", crate::io::log::Timestamp::now());
    let _ = std::io::stderr().write_all(text.as_bytes());
}

macro_rules! warning {
    ($($argument:tt)*) => { $crate::log::line("WARN", format_args!($($argument)*)) };
}

pub(crate) use warning;
