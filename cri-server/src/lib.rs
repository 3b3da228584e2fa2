//! The Vaina daemon and its commands.
//!
//! Path of a call: [`rpc`] (convert, detach, trace) → a verb in [`sandbox`], [`container`] or [`image`] → parts
//! ([`network`], [`snapshot`], [`runtime`], [`state`]) → `vaina-sys` or a shim over ttrpc.

pub mod app;
pub mod config;
pub mod container;
pub mod doctor;
pub mod error;
pub mod events;
pub mod exits;
#[cfg(feature = "failpoints")]
pub mod failpoints;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod group_moves;
pub mod id;
pub mod image;
pub mod index;
mod info;
mod limits;
pub mod network;
pub mod plan;
mod readiness;
pub mod recover;
pub mod rpc;
pub mod runtime;
pub mod sandbox;
pub mod snapshot;
pub mod standalone;
pub mod state;
pub mod stats;
pub mod streaming;
pub mod telemetry;
pub mod work;
