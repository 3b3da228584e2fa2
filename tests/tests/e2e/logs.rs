//! Log files, byte for byte.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;
use vaina_tests::{
    build::Container,
    node::{IMAGE, e2e_cri},
};

use crate::{assert_failed, failed};

/// The part of a record behind its time: `stdout F text`. The time must be RFC 3339 with nanoseconds.
fn without_time(line: &[u8]) -> Result<Vec<u8>> {
    let space = line.iter().position(|byte| *byte == b' ').context("a record has a time")?;
    let time = std::str::from_utf8(&line[..space])?;
    // `2006-01-02T15:04:05.999999999Z07:00` of Go: trailing zeroes of the fraction are left out.
    let (date, rest) = time.split_once('T').context("date and time")?;
    ensure!(date.len() == 10 && date.bytes().filter(|byte| *byte == b'-').count() == 2, "date {date:?}");
    let clock = rest.get(..8).context("hours, minutes and seconds")?;
    ensure!(clock.bytes().filter(|byte| *byte == b':').count() == 2, "clock {clock:?}");
    let zone = rest.find(['Z', '+', '-']).context("a zone")?;
    let fraction = &rest[8..zone];
    ensure!(
        fraction.is_empty() || (fraction.starts_with('.') && fraction.len() <= 10),
        "fraction {fraction:?} of {time:?}"
    );
    let zone = &rest[zone..];
    ensure!(zone == "Z" || zone.len() == 6, "zone {zone:?}");
    Ok(line[space + 1..].to_vec())
}

/// All records without their times; the file must end in a newline.
fn records(log: &[u8]) -> Result<Vec<Vec<u8>>> {
    ensure!(log.is_empty() || log.ends_with(b"\n"), "the log does not end in a newline");
    let mut lines: Vec<&[u8]> = log.split(|byte| *byte == b'\n').collect();
    lines.pop();
    lines.into_iter().map(without_time).collect()
}

#[track_caller]
fn assert_records(found: &[Vec<u8>], expected: &[&[u8]]) {
    let show = |record: &[u8]| {
        format!("{} ({} bytes)", String::from_utf8_lossy(&record[..record.len().min(80)]), record.len())
    };
    assert_eq!(
        found.iter().map(|record| show(record)).collect::<Vec<_>>(),
        expected.iter().map(|record| show(record)).collect::<Vec<_>>()
    );
    assert!(found.iter().map(Vec::as_slice).eq(expected.iter().copied()), "same lengths, other bytes");
}

// proves: PodSandboxConfig.log_directory, ContainerConfig.log_path, ContainerStatus.log_path
#[test]
fn each_line_is_a_record_of_its_stream() {
    e2e_cri(async |node| {
        let pod = node.pod("lines");
        let sandbox = node.run_pod(&pod).await?;
        // The pauses order the two streams, which are two pipes.
        let script = "echo one; sleep 0.2; echo two >&2; sleep 0.2; echo; sleep 0.2; echo ' three  ' >&2; sleep 0.2; \
                      printf 'a\\tb\\r\\n'; printf '\\377\\376 not utf-8\\n'";
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh(script)).await?;
        let status = node.wait_exited(&id).await?;
        assert_eq!(status.log_path, format!("{}/c/0.log", pod.config.log_directory));
        let expected: [&[u8]; 6] = [
            b"stdout F one",
            b"stderr F two",
            b"stdout F ",
            b"stderr F  three  ",
            b"stdout F a\tb\r",
            b"stdout F \xff\xfe not utf-8",
        ];
        assert_records(&records(&node.log(&status)?)?, &expected);
        let mode = fs::metadata(&status.log_path)?.permissions().mode() & 0o777;
        assert_eq!(mode, 0o640, "mode {mode:o}");
        node.remove_pod(&sandbox).await?;
        // The log is the kubelet's to remove.
        assert!(Path::new(&status.log_path).exists());
        Ok(())
    });
}

#[test]
fn long_lines_come_in_pieces_of_16_kib() {
    e2e_cri(async |node| {
        let pod = node.pod("long");
        let sandbox = node.run_pod(&pod).await?;
        let script = "head -c 40000 /dev/zero | tr '\\0' a; echo; echo short";
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh(script)).await?;
        let status = node.wait_exited(&id).await?;
        let piece = |tag: &str, length: usize| format!("stdout {tag} {}", "a".repeat(length)).into_bytes();
        let expected = [piece("P", 16384), piece("P", 16384), piece("F", 7232), b"stdout F short".to_vec()];
        let expected: Vec<&[u8]> = expected.iter().map(Vec::as_slice).collect();
        assert_records(&records(&node.log(&status)?)?, &expected);
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn a_last_line_without_newline_is_partial() {
    e2e_cri(async |node| {
        let pod = node.pod("last");
        let sandbox = node.run_pod(&pod).await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("echo whole; printf torn")).await?;
        let status = node.wait_exited(&id).await?;
        assert_records(&records(&node.log(&status)?)?, &[b"stdout F whole", b"stdout P torn"]);
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn the_file_is_there_when_the_start_returns() {
    e2e_cri(async |node| {
        let pod = node.pod("silent");
        let sandbox = node.run_pod(&pod).await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("sleep 1000")).await?;
        let status = node.cri().container(&id).await?;
        assert_eq!(fs::metadata(&status.log_path).context("the log of a silent container")?.len(), 0);
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

// proves: ReopenContainerLog, ReopenContainerLogRequest.container_id
#[test]
fn rotation_loses_and_doubles_nothing() {
    e2e_cri(async |node| {
        let pod = node.pod("rotation");
        let sandbox = node.run_pod(&pod).await?;
        let script = "i=0; while [ ! -e /tmp/end ]; do i=$((i+1)); echo line $i; usleep 500; done; echo end";
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh(script)).await?;
        let status = node.cri().container(&id).await?;
        let log = Path::new(&status.log_path).to_owned();
        let mut rotated = Vec::new();
        for round in 0..5 {
            node.wait_log(&id, "line").await?;
            let to = log.with_extension(format!("log.{round}"));
            fs::rename(&log, &to)?;
            node.cri().reopen_container_log(&id).await?;
            assert!(log.exists(), "the new file must be there when the call returns");
            rotated.push(to);
        }
        // The container ends with it, and may take it along before it has ended itself.
        node.exec(&id, &["touch", "/tmp/end"]).await?;
        node.wait_exited(&id).await?;
        rotated.push(log);
        let mut all = Vec::new();
        for path in &rotated {
            all.extend(records(&fs::read(path)?)?);
        }
        assert_eq!(all.pop().as_deref(), Some(b"stdout F end".as_slice()));
        for (number, record) in all.iter().enumerate() {
            let expected = format!("stdout F line {}", number + 1);
            assert_eq!(String::from_utf8_lossy(record), expected);
        }
        ensure!(all.len() > 10, "only {} lines", all.len());
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn only_a_running_container_can_reopen_its_log() {
    e2e_cri(async |node| {
        let pod = node.pod("reopen");
        let sandbox = node.run_pod(&pod).await?;
        let id = node.create(&sandbox, &pod, &Container::new("c", IMAGE).sh("echo done")).await?;
        failed(node.cri().reopen_container_log(&id).await);
        node.cri().start_container(&id).await?;
        node.wait_exited(&id).await?;
        failed(node.cri().reopen_container_log(&id).await);
        assert_failed(node.cri().reopen_container_log(&"0".repeat(64)).await, Code::NotFound, &[]);
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn a_container_without_a_log_path_runs() {
    e2e_cri(async |node| {
        let mut pod = node.pod("none");
        pod.config.log_directory.clear();
        let sandbox = node.run_pod(&pod).await?;
        let mut config = Container::new("c", IMAGE).sh("head -c 1000000 /dev/zero; exit 3");
        config.config.log_path.clear();
        let id = node.start(&sandbox, &pod, &config).await?;
        let status = node.wait_exited(&id).await?;
        assert_eq!((status.exit_code, status.log_path.as_str()), (3, ""));
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}

#[test]
fn much_output_is_all_there_when_the_exit_is_seen() {
    e2e_cri(async |node| {
        let pod = node.pod("much");
        let sandbox = node.run_pod(&pod).await?;
        let id = node.start(&sandbox, &pod, &Container::new("c", IMAGE).sh("seq 1 200000")).await?;
        let status = node.wait_exited(&id).await?;
        let records = records(&node.log(&status)?)?;
        assert_eq!(records.len(), 200_000);
        assert_eq!(records[199_999], b"stdout F 200000");
        // In a shared PID namespace a child may outlive the main process and keep its pipes: the exit is still seen.
        node.remove_pod(&sandbox).await?;
        Ok(())
    });
}
