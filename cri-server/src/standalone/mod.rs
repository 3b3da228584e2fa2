//! Pods without a kubelet: `vaina run` and the commands beside it.

mod back_off;
mod convert;
mod directory;
mod log;
mod manifest;
mod quantity;
mod volumes;
