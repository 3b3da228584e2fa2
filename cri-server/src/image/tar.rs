//! Reads a tar stream: framing and header fields, nothing of a file system.
//!
//! Understands v7, ustar, GNU (long names, base-256 numbers) and PAX (any bytes in values, size override, negative and
//! fractional times, `SCHILY.xattr.*`), which is what image builders write. What the `tar` crate gets wrong for images
//! (binary PAX values, sizes above 8 GiB in `raw` mode, unbounded long names, negative times) is the reason to have this.
//! Sparse files are refused by name: no image builder writes them, and a wrong guess would be wrong content.
//!
//! Everything here comes from outside: no value is trusted, headers are bounded, nothing panics.

use std::{
    io::{self, Read},
    str,
};

use thiserror::Error;

const BLOCK: usize = 512;
/// Bound of one extension header (PAX, GNU long name); real ones are below a few kilobytes.
const EXTENSION_MAX: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// A regular file; its data follows.
    File,
    /// Another name of an earlier file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One member of the archive, extension headers applied. Names are bytes, as in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Name as written: may be absolute, may contain `..`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Target of a hard or symbolic link, as written.
    pub link: Vec<u8>,
    /// Length of the data; 0 for everything but files.
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Time of last modification: seconds (may be negative) and nanoseconds.
    pub mtime: (i64, u32),
    /// Device numbers, major and minor.
    pub device: (u32, u32),
    /// Extended attributes by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why a stream is not a tar archive that we accept.
#[derive(Debug, Error)]
pub enum TarError {
    /// The stream itself failed.
    #[error("read archive")]
    Read(#[source] io::Error),
    /// The stream ended inside a header or an entry.
    #[error("archive ends in the middle of an entry")]
    Truncated,
    /// The checksum of a header does not match.
    #[error("tar header checksum does not match at byte {0}")]
    Checksum(u64),
    /// A numeric field is not a number.
    #[error("malformed {0} in tar header")]
    Number(&'static str),
    /// A PAX record is broken.
    #[error("malformed PAX record {0:?}")]
    Pax(String),
    /// A PAX or long-name header above the bound.
    #[error("tar extension header of {0} bytes is larger than 1 MiB")]
    ExtensionTooLarge(u64),
    /// An extension header at the end of the archive.
    #[error("tar extension header without an entry")]
    DanglingExtension,
    /// A sparse file.
    #[error("sparse file {0:?} is not supported")]
    Sparse(String),
    /// Any other type flag.
    #[error("entry {path:?} has unsupported type {flag:?}")]
    Unsupported {
        /// The entry.
        path: String,
        /// Its type flag.
        flag: char,
    },
    /// A name that no file can have.
    #[error("entry name is empty or contains a NUL byte")]
    Name,
}

/// Iterates over the entries of a stream; reading from it yields the data of the current one.
#[derive(Debug)]
pub(super) struct Archive<R> {
    inner: R,
    /// Bytes of the current entry that were not read yet.
    data: u64,
    /// Filling after the current entry.
    padding: u64,
    offset: u64,
    done: bool,
}

impl<R: Read> Archive<R> {
    /// Begins at the start of `inner`, which should be buffered.
    pub(super) fn new(inner: R) -> Self {
        Self { inner, data: 0, padding: 0, offset: 0, done: false }
    }

    /// How many bytes of the stream were read: behind a header, where the data of its entry begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The stream, standing behind the end of the archive.
    pub(super) fn into_inner(self) -> R {
        self.inner
    }

    /// Skips what is left of the current entry and reads the next header; `None` at the end of the archive.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return if extensions.is_empty() { Ok(None) } else { Err(TarError::DanglingExtension) };
            };
            let size = header.number(field::SIZE, "size")?;
            match header.flag() {
                // A global header says things like git's commit; image tools ignore it.
                b'g' => {
                    self.extension(size)?;
                }
                b'x' | b'X' => {
                    let data = self.extension(size)?;
                    extensions.pax(&data)?;
                }
                b'L' => extensions.path = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => extensions.link = Some(until_nul(&self.extension(size)?).to_vec()),
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions) -> Result<Entry, TarError> {
        let path = extensions.path.unwrap_or_else(|| header.path());
        let link = extensions.link.unwrap_or_else(|| header.link());
        if path.is_empty() || path.contains(&0) || link.contains(&0) {
            return Err(TarError::Name);
        }
        if extensions.sparse {
            return Err(TarError::Sparse(lossy(&path)));
        }
        let kind = match header.flag() {
            // v7 has no type for directories, only the slash.
            b'0' | 0 if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'S' => return Err(TarError::Sparse(lossy(&path))),
            flag => {
                return Err(TarError::Unsupported { path: lossy(&path), flag: char::from(flag) });
            }
        };
        // Only files have data; a size on anything else means nothing (as in every other reader).
        let size = match kind {
            EntryKind::File => extensions.size.unwrap_or(size),
            _ => 0,
        };
        self.begin(size)?;
        let device = |range, name| u32::try_from(header.number(range, name)?).map_err(|_| TarError::Number(name));
        let device = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                (device(field::MAJOR, "device major")?, device(field::MINOR, "device minor")?)
            }
            _ => (0, 0),
        };
        let mode = header.number(field::MODE, "mode")? & 0o7777;
        Ok(Entry {
            kind,
            size,
            mode: u32::try_from(mode).unwrap_or_default(),
            uid: match extensions.uid {
                Some(uid) => uid,
                None => header.number(field::UID, "uid")?,
            },
            gid: match extensions.gid {
                Some(gid) => gid,
                None => header.number(field::GID, "gid")?,
            },
            mtime: match extensions.mtime {
                Some(mtime) => mtime,
                None => (header.signed(field::MTIME, "mtime")?, 0),
            },
            device,
            xattrs: extensions.xattrs,
            path,
            link,
        })
    }

    fn begin(&mut self, size: u64) -> Result<(), TarError> {
        // A size beyond what a file can have is nonsense, and must not overflow the sums below.
        if i64::try_from(size).is_err() {
            return Err(TarError::Number("size"));
        }
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > EXTENSION_MAX {
            return Err(TarError::ExtensionTooLarge(size));
        }
        self.begin(size)?;
        let mut data = Vec::new();
        self.read_to_end(&mut data).map_err(from_io)?;
        Ok(data)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.data + self.padding;
        let copied = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink()).map_err(from_io)?;
        self.offset += copied;
        (self.data, self.padding) = (0, 0);
        if copied == rest { Ok(()) } else { Err(TarError::Truncated) }
    }

    /// The next header that is not a block of zeros; `None` when the archive or the stream ends here.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        if self.done {
            return Ok(None);
        }
        let mut zeros = 0;
        loop {
            let mut block = [0; BLOCK];
            let at = self.offset;
            let read = read_full(&mut self.inner, &mut block).map_err(from_io)?;
            self.offset += read as u64;
            if read == 0 {
                self.done = true;
                return Ok(None);
            }
            if read < BLOCK {
                return Err(TarError::Truncated);
            }
            if block.iter().any(|byte| *byte != 0) {
                let header = Header(block);
                // One lone block of zeros and then more is what a broken writer or an attack makes: the checksum of
                // the rest decides nothing, so it is refused like any other damage.
                return if zeros == 0 && header.checksum_matches() {
                    Ok(Some(header))
                } else {
                    Err(TarError::Checksum(at))
                };
            }
            zeros += 1;
            if zeros == 2 {
                self.done = true;
                return Ok(None);
            }
        }
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.data == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let limit = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(buffer.get_mut(..limit).unwrap_or_default())?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= read as u64;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Fields of the header block.
mod field {
    use std::ops::Range;

    pub(super) const NAME: Range<usize> = 0..100;
    pub(super) const MODE: Range<usize> = 100..108;
    pub(super) const UID: Range<usize> = 108..116;
    pub(super) const GID: Range<usize> = 116..124;
    pub(super) const SIZE: Range<usize> = 124..136;
    pub(super) const MTIME: Range<usize> = 136..148;
    pub(super) const CHECKSUM: Range<usize> = 148..156;
    pub(super) const FLAG: usize = 156;
    pub(super) const LINK: Range<usize> = 157..257;
    pub(super) const MAGIC: Range<usize> = 257..263;
    pub(super) const MAJOR: Range<usize> = 329..337;
    pub(super) const MINOR: Range<usize> = 337..345;
    pub(super) const PREFIX: Range<usize> = 345..500;
}

struct Header([u8; BLOCK]);

impl Header {
    fn bytes(&self, range: std::ops::Range<usize>) -> &[u8] {
        self.0.get(range).unwrap_or_default()
    }

    fn flag(&self) -> u8 {
        self.0[field::FLAG]
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(self.bytes(field::NAME));
        // Only POSIX ustar has the prefix; GNU keeps other things there.
        let prefix = match self.bytes(field::MAGIC) {
            b"ustar\0" => until_nul(self.bytes(field::PREFIX)),
            _ => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn link(&self) -> Vec<u8> {
        until_nul(self.bytes(field::LINK)).to_vec()
    }

    fn checksum_matches(&self) -> bool {
        let Ok(stated) = self.signed(field::CHECKSUM, "checksum") else {
            return false;
        };
        let sum = |value: fn(u8) -> i64| -> i64 {
            self.0
                .iter()
                .enumerate()
                .map(|(index, byte)| value(if field::CHECKSUM.contains(&index) { b' ' } else { *byte }))
                .sum()
        };
        // Some old writers summed signed chars.
        stated == sum(i64::from) || stated == sum(|byte| i64::from(byte.cast_signed()))
    }

    fn number(&self, range: std::ops::Range<usize>, name: &'static str) -> Result<u64, TarError> {
        u64::try_from(self.signed(range, name)?).map_err(|_| TarError::Number(name))
    }

    /// Octal text, or two's complement big-endian when the first bit is set (GNU base-256).
    fn signed(&self, range: std::ops::Range<usize>, name: &'static str) -> Result<i64, TarError> {
        let bytes = self.bytes(range);
        let Some(first) = bytes.first().filter(|first| **first & 0x80 != 0) else {
            let text = until_nul(bytes).trim_ascii();
            if text.is_empty() {
                return Ok(0);
            }
            return str::from_utf8(text)
                .ok()
                .filter(|text| !text.starts_with(['+', '-']))
                .and_then(|text| i64::from_str_radix(text, 8).ok())
                .ok_or(TarError::Number(name));
        };
        let mut value: i128 = if first & 0x40 != 0 { -1 } else { i128::from(first & 0x3f) };
        if value < 0 {
            value = value << 6 | i128::from(first & 0x3f);
        }
        for byte in bytes.get(1..).unwrap_or_default() {
            value = value << 8 | i128::from(*byte);
        }
        i64::try_from(value).map_err(|_| TarError::Number(name))
    }
}

/// What extension headers say about the entry that follows them.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
    seen: bool,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        !self.seen && self.path.is_none() && self.link.is_none()
    }

    /// Records are `length key=value\n`; the length counts itself, so values may hold any byte.
    fn pax(&mut self, mut data: &[u8]) -> Result<(), TarError> {
        self.seen = true;
        while !data.is_empty() {
            let bad = || TarError::Pax(lossy(data.get(..data.len().min(64)).unwrap_or_default()));
            let space = data.iter().take(20).position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length =
                data.get(..space).and_then(decimal).and_then(|length| usize::try_from(length).ok()).ok_or_else(bad)?;
            let record = data.get(space + 1..length).ok_or_else(bad)?;
            let Some((b'\n', record)) = record.split_last() else {
                return Err(bad());
            };
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = (record.get(..equals).unwrap_or_default(), record.get(equals + 1..).unwrap_or_default());
            self.record(key, value).ok_or_else(bad)?;
            data = data.get(length..).unwrap_or_default();
        }
        Ok(())
    }

    /// An empty value takes back an earlier one (POSIX pax); xattrs may be empty.
    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let bytes = (!value.is_empty()).then(|| value.to_vec());
        let number = || if value.is_empty() { Some(None) } else { decimal(value).map(Some) };
        match key {
            b"path" => self.path = bytes,
            b"linkpath" => self.link = bytes,
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) {
                        return None;
                    }
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`; a negative time with a fraction lies below its whole seconds.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match dot {
        Some(dot) => (text.get(..dot)?, text.get(dot + 1..)?),
        None => (text, &b""[..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos =
        (0..9).fold(0, |nanos: u32, index| nanos * 10 + u32::from(fraction.get(index).map_or(0, |digit| digit - b'0')));
    match (negative, nanos) {
        (false, nanos) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, nanos) => Some(((-seconds).checked_sub(1)?, 1_000_000_000 - nanos)),
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A name for a message.
pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(300).collect()
}

fn from_io(error: io::Error) -> TarError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TarError::Truncated,
        _ => TarError::Read(error),
    }
}

fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tar::{Builder, EntryType, Header as Writer};

    use super::*;

    fn writer(kind: EntryType, size: u64) -> Writer {
        let mut header = Writer::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o4755);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000);
        header
    }

    fn block(mut header: Writer, name: &str) -> Vec<u8> {
        header.set_path(name).unwrap();
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn member(kind: u8, name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = block(writer(EntryType::new(kind), data.len() as u64), name);
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
    }

    fn all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
        let mut archive = Archive::new(bytes);
        let mut entries = Vec::new();
        while let Some(entry) = archive.next_entry()? {
            let mut data = Vec::new();
            archive.read_to_end(&mut data).map_err(from_io)?;
            entries.push((entry, data));
        }
        Ok(entries)
    }

    #[test]
    fn reads_what_the_tar_crate_writes() {
        let mut builder = Builder::new(Vec::new());
        let long = "d/".repeat(120) + "file";
        let mut header = writer(EntryType::Regular, 3);
        builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
        let mut header = writer(EntryType::Symlink, 0);
        builder.append_link(&mut header, "link", "x".repeat(200)).unwrap();
        let mut header = writer(EntryType::Char, 0);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        builder.append_data(&mut header, "null", io::empty()).unwrap();
        let mut header = writer(EntryType::Regular, 0);
        header.set_uid(5_000_000_000);
        builder.append_data(&mut header, "big-uid", io::empty()).unwrap();
        let entries = all(&builder.into_inner().unwrap()).unwrap();

        let (file, data) = &entries[0];
        assert_eq!((file.path.as_slice(), data.as_slice()), (long.as_bytes(), &b"abc"[..]));
        assert_eq!((file.mode, file.uid, file.gid, file.mtime), (0o4755, 7, 8, (1_000, 0)));
        assert_eq!((entries[1].0.kind, entries[1].0.link.len()), (EntryKind::Symlink, 200));
        assert_eq!((entries[2].0.kind, entries[2].0.device), (EntryKind::CharDevice, (1, 3)));
        assert_eq!(entries[3].0.uid, 5_000_000_000);
    }

    #[test]
    fn pax_values_may_hold_any_byte_and_override() {
        let capability = b"\x01\x00\x00\x02\n\n=\x00 5 x=\n";
        let pax = [
            record("path", b"a/\xff\xfe"),
            record("size", b"5"),
            record("mtime", b"-1.25"),
            record("uid", b"4000000000"),
            record("SCHILY.xattr.security.capability", capability),
        ]
        .concat();
        let mut bytes = member(b'x', "pax", &pax);
        // The header says 0, the extension 5.
        bytes.extend(block(writer(EntryType::Regular, 0), "short"));
        bytes.extend(b"hello");
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes.extend(member(b'0', "next", b""));
        let entries = all(&bytes).unwrap();
        let (entry, data) = &entries[0];
        assert_eq!(entry.path, b"a/\xff\xfe");
        assert_eq!(data, b"hello");
        assert_eq!(entry.mtime, (-2, 750_000_000));
        assert_eq!(entry.uid, 4_000_000_000);
        assert_eq!(entry.xattrs, [(b"security.capability".to_vec(), capability.to_vec())]);
        assert_eq!(
            (entries[1].0.path.as_slice(), entries[1].0.uid),
            (&b"next"[..], 7),
            "extensions end with their entry"
        );
    }

    #[test]
    fn negative_base_256_time() {
        let mut header = writer(EntryType::Regular, 0);
        header.as_gnu_mut().unwrap().mtime = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x9c];
        assert_eq!(all(&block(header, "old")).unwrap()[0].0.mtime, (-100, 0));
    }

    #[test]
    fn refuses_damage_by_name() {
        let good = member(b'0', "f", &[1; 700]);
        let check = |bytes: &[u8], text: &str| {
            let error = all(bytes).unwrap_err().to_string();
            assert!(error.contains(text), "{error} lacks {text}");
        };
        check(&good[..700], "middle of an entry");
        check(&good[..300], "middle of an entry");
        let mut flipped = good.clone();
        flipped[0] ^= 1;
        check(&flipped, "checksum");
        check(&[vec![0; BLOCK], good.clone()].concat(), "checksum");
        check(&member(b'S', "s", b""), "sparse");
        check(&[member(b'x', "p", &record("GNU.sparse.major", b"1")), good.clone()].concat(), "sparse");
        check(&member(b'V', "v", b""), "unsupported type 'V'");
        check(&block(writer(EntryType::XHeader, 1 << 30), "p"), "1 MiB");
        check(&block(writer(EntryType::GNULongName, 1 << 30), "p"), "1 MiB");
        check(&member(b'x', "p", &record("path", b"x")), "without an entry");
        for pax in [
            &b"3 a"[..],
            b"99 path=x\n",
            b"0 path=x\n",
            b"x path=x\n",
            b"7 path\n",
            b"10 size=1x\n",
            b"999999999999999999999 a=b\n",
        ] {
            check(&[member(b'x', "p", pax), good.clone()].concat(), "PAX");
        }
        check(&[member(b'x', "p", &record("path", b"a\0b")), good.clone()].concat(), "NUL");
        check(&[member(b'x', "p", &record("size", b"18446744073709551615")), good].concat(), "size");
        let mut header = writer(EntryType::Regular, 0);
        header.as_gnu_mut().unwrap().mode = *b"zzzzzzz\0";
        check(&block(header, "m"), "mode");
        assert!(all(b"").unwrap().is_empty());
        assert!(all(&[0; 1024]).unwrap().is_empty());
    }

    #[test]
    fn times() {
        for (text, time_) in
            [("0", (0, 0)), ("1.5", (1, 500_000_000)), ("-3", (-3, 0)), ("2.1234567891", (2, 123_456_789))]
        {
            assert_eq!(time(text.as_bytes()), Some(time_));
        }
        for text in ["", "-", "x", "1.x", "--1", "99999999999999999999"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = all(&bytes);
        }

        #[test]
        fn never_panics_behind_a_valid_header(pax in proptest::collection::vec(any::<u8>(), 0..600), flag in any::<u8>()) {
            let _ = all(&[member(b'x', "p", &pax), member(flag, "f", &pax)].concat());
        }

        #[test]
        fn survives_any_flipped_byte(index in 0usize..2048, value in any::<u8>()) {
            let mut bytes = [member(b'x', "p", &record("path", b"abc")), member(b'0', "f", b"data")].concat();
            if let Some(byte) = bytes.get_mut(index) {
                *byte = value;
            }
            let _ = all(&bytes);
        }

        #[test]
        fn pax_records_round_trip(value in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = [member(b'x', "p", &record("SCHILY.xattr.user.x", &value)), member(b'0', "f", b"")].concat();
            prop_assert_eq!(&all(&bytes).unwrap()[0].0.xattrs[0].1, &value);
        }
    }
}
