//! The guest's disk, made once by debootstrap and kept under the hash of its recipe.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::require;

/// Debian release of the guest; its kernel (6.1) is older than the host's, so fallbacks are run too.
const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
const PACKAGES: &str = "systemd,systemd-sysv,dbus,apparmor,linux-image-cloud-amd64,udev,kmod,procps,iproute2,nftables,\
iptables,conntrack,libseccomp2,busybox-static,docker-registry,runc,crun,ca-certificates,openssl";

/// Packages that the host needs, with a program of each; the Makefile has the same list.
const HOST: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("debootstrap", "debootstrap"),
    ("mke2fs", "e2fsprogs"),
    ("setpriv", "util-linux"),
];

/// What is written into the root file system.
const FILES: [(&str, &str); 9] = [
    ("etc/fstab", "/dev/vda / ext4 defaults 0 1\n/dev/vdb /payload ext4 defaults 0 0\n"),
    ("etc/hostname", "vaina-guest\n"),
    ("etc/hosts", "127.0.0.1 localhost vaina-guest\n::1 localhost\n"),
    // What the pods' network and storage need; loaded at boot as a packaged runtime would have it.
    ("etc/modules-load.d/vaina.conf", "overlay\nbr_netfilter\nveth\nnf_tables\n"),
    // `virtio` uses `virtio_ring`, but its dependency is not recorded, so the order here matters.
    ("etc/initramfs-tools/modules", "virtio_ring\nvirtio\nvirtio_pci\nvirtio_blk\nvirtio_console\next4\n"),
    ("etc/initramfs-tools/conf.d/vaina", "MODULES=list\n"),
    ("etc/systemd/system/vaina-guest-agent.service", AGENT_UNIT),
    // The serial console is for people: no password.
    (
        "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf",
        "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --keep-baud 115200,57600,38400,9600 - $TERM\n",
    ),
    ("payload/.keep", ""),
];

/// The agent comes with the payload; the unit only knows where.
const AGENT_UNIT: &str = "[Unit]
Description=Runs what the host asks for
DefaultDependencies=yes
After=local-fs.target systemd-modules-load.service dbus.service
RequiresMountsFor=/payload

[Service]
ExecStart=/payload/vaina-guest-agent /dev/virtio-ports/org.vaina.agent
Restart=always
# What a test leaves behind must be seen by its leak check, not hidden by systemd.
KillMode=process
Delegate=yes

[Install]
WantedBy=multi-user.target
";

/// A cached image: kernel, initramfs and root file system.
#[derive(Debug, Clone)]
pub struct Image {
    /// Kernel, for `-kernel`.
    pub kernel: PathBuf,
    /// Initial RAM disk, for `-initrd`.
    pub initrd: PathBuf,
    /// Whole-disk ext4, never written after it was made.
    pub disk: PathBuf,
}

/// The image of this recipe, made now if the cache does not hold it.
pub fn ensure(cache: &Path) -> Result<Image> {
    require::root().context("the guest's disk is made and booted by root")?;
    for (program, package) in HOST {
        require::tool(program, package).context("`make test-vm` installs what the guest node needs")?;
    }
    let recipe = recipe();
    let dir = cache.join(format!("guest-{recipe}"));
    let image = Image { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd.img"), disk: dir.join("disk.raw") };
    if dir.is_dir() {
        return Ok(image);
    }
    fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
    // Made under another name and renamed at the end, so a build that was cut is never taken for an image.
    let work = tempfile::Builder::new().prefix("guest-build-").tempdir_in(cache)?;
    let (root, out) = (work.path().join("root"), work.path().join("out"));
    fs::create_dir(&out)?;
    eprintln!("guest: making the image {recipe} (debootstrap {SUITE}), once; it takes some minutes");
    // In a mount namespace of its own: if it is killed, no mounts are left in the directory that is then removed.
    run(Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(["debootstrap", "--variant=minbase", &format!("--include={PACKAGES}"), SUITE])
        .arg(&root)
        .arg(MIRROR))?;
    configure(&root)?;
    for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
        let boot = root.join("boot");
        let found = fs::read_dir(&boot)?
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .with_context(|| format!("no {prefix}* in {}", boot.display()))?;
        fs::copy(found.path(), out.join(name))?;
    }
    make_ext4(&root, &out.join("disk.raw"), "guest", DISK_MIB)?;
    match fs::rename(&out, &dir) {
        // Another run was as far at the same time.
        Err(_) if dir.is_dir() => Ok(image),
        renamed => renamed.context("put the image into the cache").map(|()| image),
    }
}

/// The size of the root file system; what is not written is a hole.
const DISK_MIB: u64 = 20 * 1024;

fn recipe() -> String {
    let mut hash = Sha256::new();
    // The number counts the changes of the steps that are code.
    let files = FILES.iter().flat_map(|(path, text)| [*path, *text]);
    for part in [SUITE, MIRROR, PACKAGES, "4"].into_iter().chain(files) {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn configure(root: &Path) -> Result<()> {
    for (path, text) in FILES {
        let path = root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let chroot = |arguments: &[&str]| run(Command::new("chroot").arg(root).args(arguments));
    // Tests start their registries themselves.
    chroot(&["systemctl", "disable", "docker-registry.service"])?;
    chroot(&["systemctl", "enable", "vaina-guest-agent.service"])?;
    chroot(&["update-initramfs", "-u", "-k", "all"])
}

/// Makes an ext4 file system without a partition table from a directory.
pub fn make_ext4(from: &Path, to: &Path, label: &str, size_mib: u64) -> Result<()> {
    // An old one is written over, holes and all, and not looked at.
    let _ = fs::remove_file(to);
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-L", label, "-d"])
        .arg(from)
        .arg(to)
        .arg(format!("{size_mib}M")))
}

/// Runs a program that must succeed; its output is shown when it does not.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        bail!("{command:?} ended with {}:\n{}", output.status, tail(&String::from_utf8_lossy(&text)));
    }
    Ok(())
}

/// The last lines of a text.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
