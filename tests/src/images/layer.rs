//! Layer tars, entry by entry. Names go into the headers as they are given, so a layer may climb out with `..` or be
//! absolute: what must survive that is the runtime, not the writer.

use std::io::Write as _;

use anyhow::Result;
use tar::{EntryType, Header};

/// How a layer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// Compresses `tar`.
    pub fn apply(self, tar: &[u8]) -> Result<Vec<u8>> {
        Ok(match self {
            Self::None => tar.to_vec(),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar)?;
                encoder.finish()?
            }
            Self::Zstd => zstd::encode_all(tar, 1)?,
        })
    }
}

/// A layer being written. Paths have no leading slash, directories end in one.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    tar: Vec<u8>,
    owner: (u64, u64),
}

impl Layer {
    /// A layer without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Owner of the entries that follow.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// A directory.
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, "", mode, &[])
    }

    /// A regular file.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, "", mode, content)
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777, &[])
    }

    /// A hard link to an earlier entry, of this layer or of one below: a program, for there are runtimes that give the mode
    /// of the link to the file.
    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o755, &[])
    }

    /// A named pipe.
    pub fn fifo(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Fifo, path, "", mode, &[])
    }

    /// A character device.
    pub fn character_device(mut self, path: &str, mode: u32, major: u32, minor: u32) -> Self {
        let mut header = self.header(EntryType::Char, path, "", mode, 0);
        header
            .set_device_major(major)
            .and_then(|()| header.set_device_minor(minor))
            .expect("a ustar header has devices");
        header.set_cksum();
        self.tar.extend_from_slice(header.as_bytes());
        self
    }

    /// A regular file with extended attributes, which travel in a PAX header.
    pub fn file_with_xattrs(mut self, path: &str, mode: u32, content: &[u8], xattrs: &[(&str, &[u8])]) -> Self {
        let mut records = Vec::new();
        for (name, value) in xattrs {
            append_pax_record(&mut records, &format!("SCHILY.xattr.{name}"), value);
        }
        self = self.entry(EntryType::XHeader, "pax", "", 0o644, &records);
        self.file(path, mode, content)
    }

    /// Removes what lower layers have under this path.
    pub fn whiteout(self, path: &str) -> Self {
        let (directory, name) = path.rsplit_once('/').map_or(("", path), |(directory, name)| (directory, name));
        let slash = if directory.is_empty() { "" } else { "/" };
        self.file(&format!("{directory}{slash}.wh.{name}"), 0o644, &[])
    }

    /// Hides all that lower layers have in this directory.
    pub fn opaque(self, directory: &str) -> Self {
        self.file(&format!("{}/.wh..wh..opq", directory.trim_end_matches('/')), 0o644, &[])
    }

    /// Bytes that are no tar at all.
    pub fn garbage() -> Self {
        Self { tar: b"this is not a tar ".repeat(100), owner: (0, 0) }
    }

    /// The tar, ended as POSIX wants it.
    pub fn into_tar(mut self) -> Vec<u8> {
        self.tar.extend_from_slice(&[0; 1024]);
        self.tar
    }

    fn entry(mut self, kind: EntryType, path: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let header = self.header(kind, path, link, mode, content.len() as u64);
        self.tar.extend_from_slice(header.as_bytes());
        self.tar.extend_from_slice(content);
        let padding = content.len().next_multiple_of(512) - content.len();
        self.tar.resize(self.tar.len() + padding, 0);
        self
    }

    fn header(&self, kind: EntryType, path: &str, link: &str, mode: u32, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(1_767_225_600);
        header.set_size(size);
        let old = header.as_old_mut();
        // Not `set_path`, which refuses the names that bad layers have.
        assert!(path.len() <= 100 && link.len() <= 100, "names in test layers are short: {path} {link}");
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        header
    }
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn append_pax_record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_tar_reads_back_as_written() {
        let tar = Layer::new()
            .directory("etc/", 0o755)
            .owner(3, 4)
            .file("etc/a", 0o640, b"text")
            .symlink("etc/b", "a")
            .character_device("dev/null", 0o666, 1, 3)
            .into_tar();
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            seen.push((entry.path().unwrap().to_str().unwrap().to_owned(), entry.header().uid().unwrap(), content));
        }
        let expected = [("etc/", 0, ""), ("etc/a", 3, "text"), ("etc/b", 3, ""), ("dev/null", 3, "")];
        assert_eq!(seen, expected.map(|(path, uid, text)| (path.to_owned(), uid, text.to_owned())));
    }

    #[test]
    fn a_pax_record_counts_its_own_length() {
        for value in [1, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 980, 981, 982, 983, 984, 985] {
            let mut records = Vec::new();
            append_pax_record(&mut records, "SCHILY.xattr.user.a", &vec![b'x'; value]);
            let text = String::from_utf8(records).unwrap();
            let length: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, text.len());
        }
    }

    #[test]
    fn whiteouts_lie_beside_what_they_hide() {
        let tar = Layer::new().whiteout("etc/gone").whiteout("gone").opaque("var/").into_tar();
        let mut archive = tar::Archive::new(tar.as_slice());
        let names: Vec<String> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["etc/.wh.gone", ".wh.gone", "var/.wh..wh..opq"]);
    }
}
