//! Pods without a kubelet: `vaina run` and the commands beside it.

mod convert;
mod manifest;
mod quantity;
