//! Standard streams of containers and execs, and what is written of them.

pub(crate) mod attach;
pub(crate) mod log;
pub(crate) mod stdio;
