//! The guest node itself: failures inside show outside, a power cut is seen as one, and the next boot works.
//!
//! Behind the feature `vm`, run by `make test-vm`.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use vaina_tests::{
    guest::{Disk, PowerLost, image, payload},
    require,
};

const BOOT_ID: [&str; 2] = ["cat", "/proc/sys/kernel/random/boot_id"];

fn disk(directory: &Path, tests: &[payload::TestProgram]) -> Result<Disk> {
    let image = image::ensure(&require::cache()?)?;
    let payload = directory.join("payload");
    payload::assemble(&payload, tests)?;
    Disk::create(&image, &directory.join("run"), &payload)
}

/// One guest for all of it: a boot is the expensive part.
#[test]
fn exit_codes_reach_the_host_and_a_power_cut_is_survived() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut guest = disk(directory.path(), &[])?.boot()?;
    assert_eq!(guest.run(&["sh", "-c", "exit 7"], &mut |_| {})?, 7, "an exit code reaches the host");
    assert_eq!(guest.run(&["sh", "-c", "kill -9 $$"], &mut |_| {})?, 137, "a signal reaches the host");
    let error = guest.run(&["/no/such/program"], &mut |_| {}).expect_err("there is no such program");
    assert!(error.to_string().contains("/no/such/program"), "{error:#}");

    // Synced data survives the cut; what only the guest's page cache held does not have to.
    guest.output(&["sh", "-c", "echo kept > /root/kept && sync"])?;
    let first_boot = guest.output(&BOOT_ID)?;
    guest.start(&["sh", "-c", "echo begun; while :; do echo run > /root/busy; done"])?;
    guest.wait_output("begun")?;
    let mut guest = guest.cut_power_and_boot()?;
    assert_eq!(guest.output(&["cat", "/root/kept"])?.trim(), "kept");
    let second_boot = guest.output(&BOOT_ID)?;
    assert_ne!(second_boot, first_boot, "it is a new boot");

    // A reboot in order writes everything first.
    guest.output(&["sh", "-c", "echo unsynced > /root/unsynced"])?;
    let mut guest = guest.reboot()?;
    assert_eq!(guest.output(&["cat", "/root/unsynced"])?.trim(), "unsynced");
    assert_ne!(guest.output(&BOOT_ID)?, second_boot, "it is a new boot");

    // The machine that goes away under a program is told apart from a program that fails.
    let error = guest
        .run(&["sh", "-c", "echo o > /proc/sysrq-trigger; exec sleep 600"], &mut |_| {})
        .expect_err("there is no exit code");
    assert!(error.is::<PowerLost>(), "{error:#}");
    Ok(())
}

#[test]
fn a_power_cut_among_running_tests_is_one_and_the_same_disk_runs_them_after_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let tests = payload::build(&["-p", "vaina-tests", "--test", "e2e"])?;
    let mut guest = disk(directory.path(), &tests)?.boot()?;
    let test = ["/payload/tests/e2e", "container::exit_codes", "--nocapture"];
    guest.start(&test)?;
    guest.wait_output("running 1 test")?;
    // The daemon has begun to write: its database is on the disk that loses its power.
    let mut guest = guest.cut_power_and_boot()?;
    let text = guest.output(&test)?;
    ensure!(text.contains("test result: ok. 1 passed"), "{text}");
    guest.shut_down()
}

#[test]
fn a_test_that_fails_inside_fails_outside() -> Result<()> {
    let results = tempfile::tempdir()?;
    let run = |order: &str| -> Result<(Option<i32>, String)> {
        let output = Command::new(env!("CARGO_BIN_EXE_vaina-guest"))
            .args(["test", "self-check", "--results"])
            .arg(results.path())
            .env("VAINA_TEST_SELF_CHECK", order)
            .output()
            .context("run vaina-guest")?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
    };
    let (code, text) = run("fail")?;
    // What the harness of Rust exits with.
    assert_eq!(code, Some(101), "{text}");
    assert!(text.contains("it_fails_when_it_is_told_to ... FAILED") && text.contains("; 1 failed;"), "{text}");
    let log = std::fs::read_to_string(results.path().join("self-check/output.log"))?;
    assert!(text.contains(&log), "the log is what was shown: {log}");
    assert!(results.path().join("self-check/journal.log").exists());

    let (code, text) = run("pass")?;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("test result: ok."), "{text}");
    Ok(())
}

#[test]
fn an_unknown_group_is_refused_by_name() -> Result<()> {
    let output = Command::new(env!("CARGO_BIN_EXE_vaina-guest")).args(["test", "nonsense"]).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("nonsense") && text.contains("e2e-cgroup2"), "{text}");
    Ok(())
}
