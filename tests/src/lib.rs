//! What the end-to-end tests, the benchmark and the demo are made of.
//!
//! A [`node::Node`] is a machine of its own as far as the kernel allows it without a virtual one: own mount and network
//! namespaces, own `/run` and `/var/lib`, and a real `vaina serve` in it. Tests talk to it through [`client`] with configs
//! from [`build`], or run commands with [`running`], disturb it with [`disturb`], wait with [`wait`], and end with the
//! comparison of [`leak`]; those that know only the CRI are tried on a [`peer`] too. [`images`] makes what they run,
//! [`registry`] serves it. [`guest`] is a whole machine, for what namespaces can't show.

pub mod bench;
pub mod build;
pub mod client;
pub mod conformance;
pub mod containerd;
pub mod crictl;
pub mod disturb;
pub mod ground;
pub mod guest;
pub mod http;
pub mod images;
pub mod leak;
pub mod node;
pub mod peer;
pub mod profile;
pub mod registry;
pub mod require;
pub mod running;
pub mod wait;
