//! What a pod costs the node beside its workload.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use vaina_proto::cri::NamespaceMode;
use vaina_tests::{
    build::Container,
    node::{IMAGE, e2e},
};

/// What a shim may take after its container has logged and had an exec, in kB. It takes 345, and 220 beside a silent
/// container; linked position-independent it takes 220 more, and an allocator that keeps what it had takes it to a thousand.
const SHIM: u64 = 400;

/// What each further container may add to its shim, in kB: a table entry, two pipes and their buffers.
const CONTAINER: u64 = 12;

/// What the reaping init of a pod with one PID namespace may take, in kB.
const INIT: u64 = 40;

/// What a process has for itself, in kB. The program's own pages are left out: all pods of a node map the same ones, and
/// how many pods run beside this test is not ours to say.
fn own(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).context("a line Pss_Anon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn parent(pid: u32) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(status.lines().find_map(|line| line.strip_prefix("PPid:")).context("PPid")?.trim().parse()?)
}

#[test]
fn a_shim_stays_at_a_quarter_of_a_megabyte() {
    e2e(async |node| {
        for mode in [NamespaceMode::Container, NamespaceMode::Pod] {
            let pod = node.pod(&format!("memory-{}", i32::from(mode))).pid(mode);
            let sandbox = node.run_pod(&pod).await?;
            // Logs and execs are part of it: what they need must not stay.
            let container = |name: &str| Container::new(name, IMAGE).sh("seq 20000; echo ready; exec sleep 1000");
            let mut found = Vec::new();
            for number in 1..=5 {
                let id = node.start(&sandbox, &pod, &container(&format!("c{number}"))).await?;
                node.wait_log(&id, "ready").await?;
                node.sh(&id, "true").await?;
                let reported = node.cri().sandbox_pid(&sandbox).await?;
                let shim = if mode == NamespaceMode::Pod { parent(reported)? } else { reported };
                let command = fs::read_to_string(format!("/proc/{shim}/cmdline"))?;
                ensure!(command.contains("containerd-shim-vaina-v1"), "{command:?} is no shim");
                found.push(own(shim)?);
                if mode == NamespaceMode::Pod {
                    let init = own(reported)?;
                    assert!(init <= INIT, "the init takes {init} kB");
                }
            }
            println!("{mode:?}: {found:?} kB with 1 to 5 containers");
            assert!(found[0] <= SHIM, "{mode:?}: with one container the shim takes {} kB", found[0]);
            assert!(found[4] <= SHIM + 4 * CONTAINER, "{mode:?}: with five containers the shim takes {} kB", found[4]);
            node.remove_pod(&sandbox).await?;
        }
        Ok(())
    });
}
