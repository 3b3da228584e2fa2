//! End-to-end tests: the real daemon, the real shim, real containers, over the real socket. Each test has a node of its
//! own and ends with the comparison of what is there before and after; see `vaina_tests::node`.

mod bad_archive;
mod bad_input;
mod bench;
mod cdi;
mod container;
mod crictl;
mod daemon;
mod doctor;
mod environment;
mod events;
mod examples;
mod exec;
mod fields;
mod fields_container;
mod fields_sandbox;
mod fields_stats;
mod handlers;
mod image;
mod image_content;
mod image_crash;
mod image_volumes;
mod logs;
mod memory;
mod network;
mod pull;
mod restart;
mod run;
mod run_commands;
mod run_end;
mod run_manifest;
mod sandbox;
mod seccomp;
mod security;
mod shared;
mod stats;
mod stop;
mod stream_lists;
mod streaming;
mod telemetry;
mod update;
mod user_namespaces;
mod verbose;

use tonic::{Code, Status};

/// The status of a call that must have failed.
#[track_caller]
fn failed<T: std::fmt::Debug>(result: Result<T, Status>) -> Status {
    result.expect_err("the call must fail")
}

/// A failed call's code and words that its message must contain: ours, since the CRI fixes neither but for what is not found.
#[track_caller]
fn assert_failed<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &[&str]) {
    let status = failed(result);
    if vaina_tests::peer::is_wanted() {
        return;
    }
    assert_eq!(status.code(), code, "{status:?}");
    for word in words {
        assert!(status.message().contains(word), "the message lacks {word:?}: {}", status.message());
    }
}
