//! Runs in the guest node and says whether it is what it is meant to be. Behind the feature `vm`, run by `make test-vm`.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use vaina_sys::cgroup::Hierarchies;

fn read(path: &str) -> Result<String> {
    Ok(fs::read_to_string(path).with_context(|| format!("read {path}"))?.trim().to_owned())
}

#[test]
fn systemd_is_the_first_process() -> Result<()> {
    assert_eq!(read("/proc/1/comm")?, "systemd");
    ensure!(fs::exists("/run/dbus/system_bus_socket")?, "D-Bus runs");
    Ok(())
}

#[test]
fn all_controllers_are_on_cgroup_v2() -> Result<()> {
    ensure!(Hierarchies::detect()?.is_v2());
    let controllers = read("/sys/fs/cgroup/cgroup.controllers")?;
    for wanted in ["cpu", "cpuset", "io", "memory", "pids"] {
        ensure!(controllers.split(' ').any(|found| found == wanted), "{wanted} is not among {controllers:?}");
    }
    Ok(())
}

#[test]
fn apparmor_is_enabled() -> Result<()> {
    assert_eq!(read("/sys/module/apparmor/parameters/enabled")?, "Y");
    Ok(())
}

/// `VAINA_TEST_SELF_CHECK=fail make test-vm GROUPS=self-check` must fail.
#[test]
fn it_fails_when_it_is_told_to() {
    assert_ne!(std::env::var("VAINA_TEST_SELF_CHECK").as_deref(), Ok("fail"), "told to fail");
}
