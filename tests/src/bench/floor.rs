//! The floor: what a pod's life can't do without on this machine, done by this program itself and nothing more. New
//! namespaces, an overlay as root, the usual mounts, one program executed in them; its end; and a program executed in the
//! namespaces of another. No records, no cgroups, no address, no log, no answer to anybody.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{chroot, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::MsFlags,
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vaina_sys::mount;

use super::{Bench, FLOOR, sheet::Better};
use crate::images;

/// Ten are thrown away: the first ones find nothing in any cache.
const WARM_UP: usize = 10;

/// Measures it.
pub fn measure(bench: &mut Bench, ground: &Path) -> Result<()> {
    let home = ground.join("floor");
    let lower = home.join("lower");
    prepare(&lower)?;
    for (suffix, network) in [("host", false), ("net", true)] {
        for number in 0..WARM_UP + bench.scale.rounds * bench.scale.pods {
            let pod = home.join(format!("{suffix}{number}"));
            let life = life(&lower, &pod, network)?;
            if number >= WARM_UP {
                let rows = [(format!("pod_up_{suffix}"), life.up), (format!("pod_down_{suffix}"), life.down)];
                for (row, time) in rows.into_iter().chain([("exec_sync".to_owned(), life.exec)]) {
                    bench.sheet.row(&row, "ms", Better::Lower);
                    bench.sheet.add(&row, FLOOR, time);
                }
            }
        }
    }
    Ok(())
}

/// Milliseconds.
struct Life {
    up: f64,
    exec: f64,
    down: f64,
}

/// A root file system with the probe and a program that ends at once.
fn prepare(lower: &Path) -> Result<()> {
    for directory in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(lower.join(directory)).with_context(|| format!("create {directory} of the floor"))?;
    }
    fs::copy(images::probe_beside_this_program()?, lower.join("bin/probe")).context("copy the probe")?;
    fs::copy("/bin/busybox", lower.join("bin/busybox")).context("copy busybox (Debian package busybox-static)")?;
    symlink("busybox", lower.join("bin/true")).context("link bin/true")
}

fn life(lower: &Path, pod: &Path, network: bool) -> Result<Life> {
    let start = Instant::now();
    let (sender, receiver) = mpsc::channel();
    let (lower, root) = (lower.to_owned(), pod.to_owned());
    // Namespaces and root are the thread's own, and end with it.
    let up = thread::spawn(move || {
        let _ = sender.send(enter(&lower, &root, network));
    });
    let mut child = receiver.recv().context("the floor's thread died")??;
    let mut ready = [0; 7];
    // Open to the end: it says which signal ends it.
    let mut output = child.stdout.take().context("the child's stdout")?;
    output.read_exact(&mut ready).context("wait for the child")?;
    ensure!(ready == *b"waiting", "the child says {ready:?}");
    let up_time = start.elapsed();
    up.join().map_err(|_| anyhow::anyhow!("the floor's thread died"))?;

    let start = Instant::now();
    let pid = child.id();
    let exec = thread::spawn(move || exec(pid)).join().map_err(|_| anyhow::anyhow!("the floor's thread died"))?;
    let exec_time = start.elapsed();
    exec.context("execute in the namespaces")?;

    let start = Instant::now();
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM).context("end the child")?;
    ensure!(child.wait()?.success(), "the child did not end well");
    vaina_sys::fs::remove_tree(pod).context("remove the writable layer")?;
    let milliseconds = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    Ok(Life { up: milliseconds(up_time), exec: milliseconds(exec_time), down: milliseconds(start.elapsed()) })
}

/// Moves the calling thread into new namespaces and a new root, and starts the program there.
fn enter(lower: &Path, pod: &Path, network: bool) -> Result<Child> {
    let root = pod.join("root");
    let (upper, work) = (pod.join("upper"), pod.join("work"));
    for directory in [&root, &upper, &work] {
        fs::create_dir_all(directory)?;
    }
    let mut flags =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWPID;
    if network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).context("unshare namespaces")?;
    mount::set_propagation(Path::new("/"), mount::Propagation::Private, true).context("make mounts private")?;
    let (upper, work) = (path(&upper)?, path(&work)?);
    let options = [("upperdir", Some(upper.as_str())), ("workdir", Some(work.as_str()))];
    mount::overlay(&[lower.to_owned()], &options, false, &root).context("mount the overlay")?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // A new /proc could only be mounted by a process inside; a bind costs the same.
    mount::bind(Path::new("/proc"), &root.join("proc"), true).context("bind /proc")?;
    mount::filesystem("sysfs", "sysfs", &root.join("sys"), plain, "").context("mount /sys")?;
    mount::filesystem("tmpfs", "tmpfs", &root.join("dev"), MsFlags::MS_NOSUID, "mode=755").context("mount /dev")?;
    for (name, kind) in [("pts", "devpts"), ("mqueue", "mqueue"), ("shm", "tmpfs")] {
        let target = root.join("dev").join(name);
        fs::create_dir(&target)?;
        mount::filesystem(kind, kind, &target, plain, "").with_context(|| format!("mount /dev/{name}"))?;
    }
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let target = root.join("dev").join(name);
        File::create(&target)?;
        mount::bind(&Path::new("/dev").join(name), &target, false).with_context(|| format!("bind /dev/{name}"))?;
    }
    chroot(&root).context("change the root")?;
    std::env::set_current_dir("/").ok();
    Command::new("/bin/probe")
        .args(["signals", "SIGTERM=0"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("execute the program")
}

/// Runs `/bin/true` in the namespaces of a process.
fn exec(pid: u32) -> Result<()> {
    unshare(CloneFlags::CLONE_FS).context("have a root of our own")?;
    let pid = Pid::from_raw(i32::try_from(pid)?);
    let pidfd = vaina_sys::process::open(u32::try_from(pid.as_raw())?).context("open the process")?;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let root = File::open(root).context("open the process's root")?;
    let flags =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWPID;
    setns(pidfd, flags | CloneFlags::CLONE_NEWNET).context("join the namespaces")?;
    rustix::process::fchdir(&root).context("enter the root")?;
    chroot(".").context("change the root")?;
    let status = Command::new("/bin/true").status().context("execute /bin/true")?;
    ensure!(status.success(), "/bin/true: {status}");
    Ok(())
}

fn path(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not text", path.display()))?.to_owned())
}
