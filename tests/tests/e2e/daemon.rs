//! The daemon itself: version, status, socket, configuration.

use std::{fs, os::unix::fs::MetadataExt as _, process::Output};

use anyhow::{Context as _, Result};
use tonic::Code;
use vaina_proto::cri::{self, CgroupDriver};
use vaina_tests::node::{Node, Options, SOCKET, e2e, e2e_with};

use crate::assert_failed;

// proves: Version, VersionResponse.{version, runtime_name, runtime_version, runtime_api_version}
#[test]
fn version_names_the_runtime_and_leaves_nothing_empty() {
    e2e(async |node| {
        let version = node.cri().version(cri::VersionRequest::default()).await?;
        assert_eq!(version.version, "0.1.0");
        assert_eq!(version.runtime_name, "vaina");
        assert!(!version.runtime_version.is_empty());
        assert_eq!(version.runtime_api_version, "v1");
        Ok(())
    });
}

// proves: Status, StatusResponse.{status, runtime_handlers}, RuntimeStatus.conditions, RuntimeCondition.{type, status}
// proves: RuntimeHandler.name
#[test]
fn status_reports_both_conditions_and_all_handlers() {
    e2e(async |node| {
        let status = node.cri().status(cri::StatusRequest { verbose: true }).await?;
        let conditions = status.status.context("a status")?.conditions;
        for wanted in ["RuntimeReady", "NetworkReady"] {
            let condition = conditions.iter().find(|condition| condition.r#type == wanted).context(wanted)?;
            assert!(condition.status, "{condition:?}");
        }
        let names: Vec<&str> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
        for wanted in ["", "vaina", "crun", "runc"] {
            assert!(names.contains(&wanted), "{names:?} lacks {wanted:?}");
        }
        Ok(())
    });
}

// proves: RuntimeConfig, RuntimeConfigResponse.linux, LinuxRuntimeConfiguration.cgroup_driver, CgroupDriver.CGROUPFS
#[test]
fn runtime_config_names_the_cgroup_driver() {
    e2e(async |node| {
        let config = node.cri().runtime_config(cri::RuntimeConfigRequest {}).await?;
        assert_eq!(config.linux.context("a Linux part")?.cgroup_driver(), CgroupDriver::Cgroupfs);
        Ok(())
    });
}

#[test]
fn the_socket_is_for_root_only() {
    e2e(async |_node| {
        let metadata = fs::metadata(SOCKET)?;
        let mode = metadata.mode() & 0o777;
        assert!(mode == 0o600 || mode == 0o660, "mode {mode:o}");
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0));
        Ok(())
    });
}

#[test]
fn what_is_not_served_yet_says_unimplemented() {
    e2e(async |node| {
        let request = cri::CheckpointContainerRequest { container_id: "c".to_owned(), ..Default::default() };
        assert_failed(node.cri().checkpoint_container(request).await, Code::Unimplemented, &[]);
        Ok(())
    });
}

fn serve_with(node: &Node, config: &str) -> Result<Output> {
    let path = node.directory().join("wrong.toml");
    fs::write(&path, config)?;
    node.vaina(&["serve", "--config"]).arg(&path).output().context("run vaina serve")
}

#[test]
fn a_wrong_configuration_is_refused_by_the_name_of_what_is_wrong() {
    e2e_with(Options { without_daemon: true, ..Options::default() }, async |node| {
        node.remember()?;
        for (config, words) in [
            ("nonsense = 1\n", ["nonsense", "wrong.toml"]),
            ("[network]\nnonsense = 1\n", ["nonsense", "wrong.toml"]),
            ("[image]\nnonsense = 1\n", ["nonsense", "wrong.toml"]),
            ("socket = 7\n", ["socket", "wrong.toml"]),
            ("socket = \n", ["wrong.toml", "1"]),
        ] {
            let output = serve_with(node, config)?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{config:?} was accepted");
            for word in words {
                assert!(stderr.contains(word), "{config:?}: the message lacks {word:?}: {stderr}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_configuration_that_is_not_there_is_an_error() {
    e2e_with(Options { without_daemon: true, ..Options::default() }, async |node| {
        node.remember()?;
        let output = node.vaina(&["serve", "--config", "/nonexistent/vaina.toml"]).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(stderr.contains("/nonexistent/vaina.toml"), "{stderr}");
        Ok(())
    });
}

#[test]
fn an_unknown_flag_and_an_unknown_command_are_refused() {
    e2e_with(Options { without_daemon: true, ..Options::default() }, async |node| {
        node.remember()?;
        for (arguments, word) in [(["serve", "--nonsense"], "--nonsense"), (["nonsense", "serve"], "nonsense")] {
            let output = node.vaina(&arguments).output()?;
            assert!(!output.status.success());
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(stderr.contains(word), "{stderr}");
        }
        Ok(())
    });
}

#[test]
fn a_second_daemon_on_the_same_directories_refuses_to_start() {
    e2e(async |node| {
        let output = node.vaina(&["serve"]).output()?;
        assert!(!output.status.success(), "two daemons on one state directory");
        // And the first one still serves.
        node.cri().version(cri::VersionRequest::default()).await?;
        Ok(())
    });
}

#[test]
fn the_daemon_starts_again_after_each_end() {
    e2e(async |node| {
        for _ in 0..3 {
            node.terminate_daemon()?;
            node.start_daemon().await?;
            node.kill_daemon()?;
            node.start_daemon().await?;
        }
        Ok(())
    });
}
