//! Hostile and honest layers.

use std::os::fd::AsFd as _;

use super::*;
use crate::image::testing::{Member, dir, file, hard_link, layer, symlink};

const LIMITS: Limits = Limits { bytes: 1 << 30, entries: 1000 };

/// Unpacks and looks whether anything beside the root changed.
fn run(members: &[Member<'_>], limits: &Limits) -> (tempfile::TempDir, Result<Unpacked, UnpackError>) {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("secret"), "untouched").unwrap();
    let root = outer.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let fd = std::fs::File::open(&root).unwrap();
    let bytes = layer(members);
    let result = unpack(fd.as_fd(), bytes.as_slice(), limits).map(|(unpacked, _)| unpacked);
    let mut names: Vec<_> = std::fs::read_dir(outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["root", "secret"]);
    assert_eq!(std::fs::read_to_string(outer.path().join("secret")).unwrap(), "untouched");
    assert_eq!(std::fs::metadata(outer.path().join("secret")).unwrap().permissions().mode() & 0o777, 0o644);
    (outer, result)
}

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

fn refused(members: &[Member<'_>], text: &str) {
    let (_outer, result) = run(members, &LIMITS);
    let error = result.unwrap_err();
    let chain = crate::error::Chain(&error).to_string();
    assert!(chain.contains(text), "{chain} lacks {text}");
}

#[test]
fn below_root_is_text_only() {
    assert_eq!(below_root(b"/a//./b/").unwrap(), Path::new("a/b"));
    assert_eq!(below_root(b"./").unwrap(), Path::new(""));
    for name in [&b"../a"[..], b"a/../b", b"/..", b"a/.."] {
        assert!(matches!(below_root(name), Err(UnpackError::Climbs(_))));
    }
}

mod root {
    use super::*;

    #[test]
    fn every_way_out_is_closed() {
        refused(&[file("../secret", "x")], "climbs out");
        refused(&[file("a/../../secret", "x")], "climbs out");
        refused(&[dir("..")], "climbs out");
        refused(&[file("/../secret", "x")], "climbs out");
        refused(&[symlink("up", ".."), file("up/secret", "x")], "symlink \"up\" -> \"..\"");
        refused(&[symlink("up", "../../../../../../../tmp"), file("up/vaina-climb", "x")], "leads out of the layer");
        refused(&[symlink("abs", "/etc"), file("abs/passwd", "x")], "symlink \"abs\" -> \"/etc\"");
        refused(&[symlink("a", "b"), symlink("b", ".."), file("a/secret", "x")], "leads out of the layer");
        refused(&[symlink("self", "/proc/self/root"), file("self/vaina", "x")], "symlink \"self\"");
        refused(&[hard_link("l", "../secret")], "climbs out");
        refused(&[hard_link("l", "/etc/passwd")], "not a file of this layer");
        refused(&[symlink("up", ".."), hard_link("l", "up/secret")], "leads out of the layer");
        refused(&[hard_link("l", "missing")], "not a file of this layer");
        refused(&[dir("d"), hard_link("l", "d")], "not a file of this layer");
        refused(&[file("l", "x"), hard_link("l", "l")], "not a file of this layer");
        refused(&[symlink("up", ".."), file("up/.wh.secret", "")], "leads out of the layer");
        refused(&[symlink("up", ".."), file("up/.wh..wh..opq", "")], "leads out of the layer");
        refused(&[file(".wh...", "")], "malformed whiteout");
        refused(&[file(".wh.", "")], "malformed whiteout");
        refused(&[file("f", "x"), file("f/below", "x")], "open directory of");
        refused(&[Member { owner: (u64::from(u32::MAX), 0), ..file("f", "") }], "impossible owner");
    }

    #[test]
    fn last_component_is_never_followed() {
        // A symlink gives way to what is written under its name.
        let (outer, result) = run(&[symlink("l", "../secret"), file("l", "mine")], &LIMITS);
        result.unwrap();
        assert_eq!(std::fs::read_to_string(outer.path().join("root/l")).unwrap(), "mine");
        let (outer, result) = run(&[symlink("d", ".."), dir("d"), file("d/f", "x")], &LIMITS);
        result.unwrap();
        assert!(outer.path().join("root/d/f").is_file());
        // Attributes of a symlink are its own: the secret keeps its mode.
        let (_outer, result) = run(&[Member { mode: 0o777, owner: (5, 5), ..symlink("l", "../secret") }], &LIMITS);
        result.unwrap();
        // A directory entry over a symlink that points out.
        let (outer, result) = run(&[symlink("l", "../secret"), hard_link("h", "l"), file("h", "mine")], &LIMITS);
        result.unwrap();
        assert!(outer.path().join("root/l").symlink_metadata().unwrap().is_symlink());
    }

    #[test]
    fn symlinks_inside_are_followed_inside() {
        let members = [dir("run"), dir("var"), symlink("var/run", "/run"), file("var/run/pid", "1")];
        let (outer, result) = run(&members, &LIMITS);
        result.unwrap();
        assert!(outer.path().join("root/run/pid").is_file());
        let members = [dir("usr/lib"), symlink("lib", "usr/lib"), file("/lib/x.so", "1")];
        let (outer, result) = run(&members, &LIMITS);
        assert!(result.unwrap().implied.iter().eq([Path::new("usr")]));
        assert!(outer.path().join("root/usr/lib/x.so").is_file());
    }

    #[test]
    fn whiteouts_become_overlays() {
        let opaque = |path: &Path| {
            let mut value = [0; 4];
            rustix::fs::lgetxattr(path, OPAQUE_XATTR, &mut value).map(|length| value[..length].to_vec())
        };
        let members = [
            dir("etc"),
            file("etc/.wh.passwd", ""),
            dir("opt"),
            file("opt/.wh..wh..opq", ""),
            // Own things stay, whichever comes first.
            file("kept", "x"),
            file(".wh.kept", ""),
            file(".wh.later", ""),
            dir("later"),
            dir("before"),
            file(".wh.before", ""),
            file(".wh.deep", ""),
            file("deep/file", "x"),
            file(".wh..wh.plnk/1.2", ""),
        ];
        let (outer, result) = run(&members, &LIMITS);
        result.unwrap();
        let root = outer.path().join("root");
        let stat = std::fs::symlink_metadata(root.join("etc/passwd")).unwrap();
        assert!(stat.file_type().is_char_device() && stat.rdev() == 0);
        assert_eq!(std::fs::read_to_string(root.join("kept")).unwrap(), "x");
        for name in ["opt", "later", "before", "deep"] {
            assert_eq!(opaque(&root.join(name)).as_deref(), Ok(&b"y"[..]), "{name}");
        }
        assert!(opaque(&root.join("etc")).is_err());
    }

    #[test]
    fn attributes_arrive_whole() {
        let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0a\x00\x00\x00";
        let members = [
            Member { mode: 0o1777, ..dir("./") },
            Member { mode: 0o2750, owner: (7, 8), ..dir("d") },
            Member {
                mode: 0o4755,
                owner: (1000, 2000),
                pax: &[
                    ("SCHILY.xattr.security.capability", capability),
                    ("SCHILY.xattr.user.x", b"a\nb"),
                    ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                    ("mtime", b"-1.5"),
                ],
                ..file("d/su", "s")
            },
            hard_link("d/link", "d/su"),
            Member { kind: b'3', device: (1, 3), mode: 0o666, name: b"null", ..Member::default() },
            Member { kind: b'6', mode: 0o622, owner: (3, 4), name: b"pipe", ..Member::default() },
            Member { owner: (9, 9), ..symlink("s", "d/su") },
        ];
        let (outer, result) = run(&members, &LIMITS);
        let unpacked = result.unwrap();
        assert_eq!((unpacked.inodes, unpacked.bytes), (5, 5 * 4096));
        let root = outer.path().join("root");
        let stat = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
        let of = |name: &str| (stat(name).mode() & 0o7777, stat(name).uid(), stat(name).gid());
        assert_eq!(of("").0, 0o1777);
        assert_eq!(of("d"), (0o2750, 7, 8));
        assert_eq!(of("d/su"), (0o4755, 1000, 2000));
        assert_eq!((stat("d/su").nlink(), stat("d/su").ino()), (2, stat("d/link").ino()));
        assert_eq!((stat("d/su").mtime(), stat("d/su").mtime_nsec()), (-2, 500_000_000));
        assert_eq!((stat("d").mtime(), stat("").mtime()), (1_500_000_000, 1_500_000_000));
        assert_eq!((of("null").0, stat("null").rdev()), (0o666, rustix::fs::makedev(1, 3)));
        assert!(stat("pipe").file_type().is_fifo());
        assert_eq!(of("pipe"), (0o622, 3, 4));
        assert_eq!((of("s").1, of("s").2), (9, 9));
        let xattr = |name: &str| {
            let mut value = [0; 64];
            rustix::fs::getxattr(root.join("d/su"), name, &mut value).map(|length| value[..length].to_vec())
        };
        assert_eq!(xattr("security.capability").unwrap(), capability);
        assert_eq!(xattr("user.x").unwrap(), b"a\nb");
        assert!(xattr("trusted.overlay.redirect").is_err());
    }

    #[test]
    fn bombs_are_refused() {
        let (_outer, result) = run(&[file("a", "x"), file("b", "x")], &Limits { bytes: 1 << 30, entries: 1 });
        assert!(matches!(result, Err(UnpackError::TooMany(1))));
        let (_outer, result) = run(&[file("a", "x"), file("b", "x")], &Limits { bytes: 4096, entries: 9 });
        assert!(matches!(result, Err(UnpackError::TooLarge(4096))));
    }
}
