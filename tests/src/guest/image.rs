//! The guest's disk, made once by debootstrap and kept under the hash of its recipe.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

/// Debian release of the guest; its kernel (6.1) is older than the host's, so fallbacks are run too.
const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
const PACKAGES: &str = "systemd,systemd-sysv,dbus,apparmor,linux-image-cloud-amd64,udev,kmod,procps,iproute2,nftables,\
iptables,conntrack,libseccomp2,busybox-static,docker-registry,runc,crun,ca-certificates,openssl,apache2-utils";

/// `virtio` uses `virtio_ring`, but its dependency is not recorded, so the order here matters.
const INITRAMFS_MODULES: &str = "virtio_ring\nvirtio\nvirtio_pci\nvirtio_blk\nvirtio_console\next4\n";

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

const FSTAB: &str = "/dev/vda / ext4 defaults 0 1\n/dev/vdb /payload ext4 ro 0 2\n";

/// What the pods' network and storage need; loaded at boot as a packaged runtime would have it.
const MODULES: &str = "overlay\nbr_netfilter\nveth\nnf_tables\n";

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
    let mut hash = Sha256::new();
    for part in [SUITE, MIRROR, PACKAGES, INITRAMFS_MODULES, AGENT_UNIT, FSTAB, MODULES, "3"] {
        hash.update(part);
        hash.update([0]);
    }
    let recipe: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
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
    eprintln!("guest: making the image {recipe} (debootstrap {SUITE}), once");
    run(Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE])
        .arg(&root)
        .arg(MIRROR))?;
    configure(&root)?;
    run(Command::new("chroot").arg(&root).args(["update-initramfs", "-u", "-k", "all"]))?;
    for (prefix, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd.img")] {
        let boot = root.join("boot");
        let found = fs::read_dir(&boot)?
            .flatten()
            .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .with_context(|| format!("no {prefix}* in {}", boot.display()))?;
        fs::copy(found.path(), out.join(name))?;
    }
    make_ext4(&root, &out.join("disk.raw"), "guest")?;
    fs::rename(&out, &dir).context("put the image into the cache")?;
    Ok(image)
}

fn configure(root: &Path) -> Result<()> {
    let write = |path: &str, text: &str| -> Result<()> {
        let path = root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    write("etc/fstab", FSTAB)?;
    write("etc/hostname", "vaina-guest\n")?;
    write("etc/hosts", "127.0.0.1 localhost vaina-guest\n::1 localhost\n")?;
    write("etc/modules-load.d/vaina.conf", MODULES)?;
    write("etc/initramfs-tools/modules", INITRAMFS_MODULES)?;
    write("etc/initramfs-tools/conf.d/vaina", "MODULES=list\n")?;
    write("etc/systemd/system/vaina-guest-agent.service", AGENT_UNIT)?;
    fs::create_dir_all(root.join("payload"))?;
    fs::set_permissions(root.join("payload"), fs::Permissions::from_mode(0o755))?;
    // Services of the packages that tests start themselves.
    run(Command::new("chroot").arg(root).args([
        "systemctl",
        "disable",
        "docker-registry.service",
        "apache-htcacheclean.service",
    ]))?;
    run(Command::new("chroot").arg(root).args(["systemctl", "enable", "vaina-guest-agent.service"]))
}

/// Makes an ext4 file system without a partition table from a directory; the file is as large as its content needs.
pub fn make_ext4(from: &Path, to: &Path, label: &str) -> Result<()> {
    let used = Command::new("du").args(["-sm"]).arg(from).output().context("run du")?;
    let used: u64 = String::from_utf8_lossy(&used.stdout)
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("measure {}", from.display()))?;
    // Tables, journal and some room; the root disk grows to its final size through the copy-on-write layer.
    let size = if label == "guest" { 20 * 1024 } else { used + used / 8 + 64 };
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", label, "-d"]).arg(from).arg(to).arg(format!("{size}M")))
}

/// Runs a program that must succeed; its output is shown when it does not.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let tail: Vec<&str> = text.lines().rev().take(20).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("{command:?} ended with {}:\n{}", output.status, tail.join("\n"));
    }
    Ok(())
}
