//! The guest node itself: failures inside show outside, a power cut is seen as one, and the next boot works.
//!
//! Behind the feature `vm`, run by `make test-vm`.

use std::path::PathBuf;

use anyhow::Result;
use vaina_tests::guest::{Disk, PowerLost, image};

fn cache() -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/vaina-tools")
}

/// One guest for all of it: a boot is the expensive part.
#[test]
fn failures_show_outside_and_a_power_cut_is_survived() -> Result<()> {
    let image = image::ensure(&cache())?;
    let dir = tempfile::tempdir()?;
    let payload = dir.path().join("payload");
    std::fs::create_dir(&payload)?;
    std::fs::copy(env!("CARGO_BIN_EXE_vaina-guest-agent"), payload.join("vaina-guest-agent"))?;
    let disk = Disk::create(&image, &dir.path().join("run"), &payload)?;

    let mut guest = disk.boot()?;
    assert_eq!(guest.output(&["stat", "-fc", "%T", "/sys/fs/cgroup"])?.trim(), "cgroup2fs");
    assert_eq!(guest.output(&["cat", "/proc/1/comm"])?.trim(), "systemd");
    assert_eq!(guest.output(&["cat", "/sys/module/apparmor/parameters/enabled"])?.trim(), "Y");
    assert_eq!(guest.run(&["sh", "-c", "exit 7"], &mut |_| {})?, 7, "an exit code reaches the host");
    assert_eq!(guest.run(&["sh", "-c", "kill -9 $$"], &mut |_| {})?, 137, "a signal reaches the host");
    let error = guest.run(&["/no/such/program"], &mut |_| {}).expect_err("there is no such program");
    assert!(error.to_string().contains("/no/such/program"), "{error:#}");

    // Synced data survives the cut; what only the guest's page cache held does not have to.
    guest.output(&["sh", "-c", "echo kept > /root/kept && sync"])?;
    let first_boot = guest.output(&["cat", "/proc/sys/kernel/random/boot_id"])?;
    guest.start(&["sh", "-c", "while :; do echo run > /root/busy; done"])?;
    guest.cut_power()?;

    let mut guest = disk.boot()?;
    assert_eq!(guest.output(&["cat", "/root/kept"])?.trim(), "kept");
    assert_ne!(guest.output(&["cat", "/proc/sys/kernel/random/boot_id"])?, first_boot, "it is a new boot");

    // The machine that goes away under a program is told apart from a program that fails.
    let error =
        guest.run(&["sh", "-c", "echo o > /proc/sysrq-trigger; sleep 600"], &mut |_| {}).expect_err("no exit code");
    assert!(error.is::<PowerLost>(), "{error:#}");
    drop(guest);

    let guest = disk.boot()?;
    guest.shut_down()
}
