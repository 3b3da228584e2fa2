//! One layer's blob: hashed, decompressed, hashed again and unpacked in a single pass while it arrives. Blocking.
//!
//! What a blob is compressed with is read from its first bytes, not from the media type: both digests are checked
//! anyway, and registries do get media types wrong.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use flate2::bufread::MultiGzDecoder;
use thiserror::Error;

use super::{
    digest::{Digest, HashingReader},
    unpack::{Limits, UnpackError, Unpacked, unpack},
};
use crate::error::{Classify, Kind};

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// What may follow the end of the archive: tar pads to its record size, 10 KiB by custom.
const TRAILING_MAX: u64 = 64 << 20;
/// No real layer comes near; the bound keeps a file system that makes inodes as it goes from being flooded.
const ENTRIES_MAX: u64 = 8_000_000;
/// Share of the free space that one layer may take, in percent.
const FREE_SHARE: u64 = 95;

/// What a layer must be.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// Digest and size of the blob as it was transferred; an archive of `docker save` does not say.
    pub blob: Option<(Digest, u64)>,
    /// Digest of the uncompressed tar, from the image's config.
    pub diff_id: Digest,
}

/// Why a layer was refused.
#[derive(Debug, Error)]
pub enum LayerError {
    /// The source of the blob failed.
    #[error("read layer blob")]
    Read(#[source] io::Error),
    /// The compressed stream is damaged.
    #[error("decompress layer")]
    Decompress(#[source] io::Error),
    /// The tar was not unpacked.
    #[error("unpack layer")]
    Unpack(#[source] UnpackError),
    /// The target directory or its file system.
    #[error("open {}", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The blob is not what the manifest names.
    #[error("layer blob has digest {found}, the manifest says {expected}")]
    BlobDigest {
        /// From the manifest.
        expected: Digest,
        /// Of what came.
        found: Digest,
    },
    /// The blob has another length than the manifest says.
    #[error("layer blob has {found} bytes, the manifest says {expected}")]
    BlobSize {
        /// From the manifest.
        expected: u64,
        /// Of what came.
        found: u64,
    },
    /// The content is not what the config names.
    #[error("layer content has digest {found}, the image config says {expected}")]
    DiffId {
        /// From the config.
        expected: Digest,
        /// Of what came.
        found: Digest,
    },
    /// Something that is not padding follows the archive.
    #[error("layer has more than 64 MiB behind the end of its archive")]
    Trailing,
}

impl Classify for LayerError {
    fn kind(&self) -> Kind {
        match self {
            Self::Unpack(UnpackError::TooLarge(_) | UnpackError::TooMany(_) | UnpackError::Directories) => {
                Kind::ResourceExhausted
            }
            Self::Unpack(UnpackError::Entry { source, .. }) if is_full(source) => Kind::ResourceExhausted,
            Self::Directory { source, .. } if is_full(source) => Kind::ResourceExhausted,
            Self::Read(_) => Kind::Unavailable,
            Self::Directory { .. } => Kind::Internal,
            Self::Decompress(_)
            | Self::Unpack(_)
            | Self::BlobDigest { .. }
            | Self::BlobSize { .. }
            | Self::DiffId { .. }
            | Self::Trailing => Kind::FailedPrecondition,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Unpacks `blob` into the empty directory `dir` and checks it against `expected`.
pub(super) fn apply<R: Read>(blob: R, expected: &Expected, dir: &Path) -> Result<Unpacked, LayerError> {
    let open = |source: io::Error| LayerError::Directory { path: dir.to_owned(), source };
    let root = File::open(dir).map_err(open)?;
    let limits = limits(&root).map_err(open)?;

    let algorithm = expected.blob.as_ref().map_or(expected.diff_id.algorithm(), |(digest, _)| digest.algorithm());
    let blob = BufReader::with_capacity(64 << 10, HashingReader::new(Tagged(blob), algorithm));
    let decoder = Decoder::new(blob).map_err(from_io)?;
    let content = BufReader::with_capacity(128 << 10, HashingReader::new(decoder, expected.diff_id.algorithm()));

    let (unpacked, mut content) = unpack(root.as_fd(), content, &limits).map_err(|error| match error {
        UnpackError::Tar(super::tar::TarError::Read(error)) => from_io(error),
        error => LayerError::Unpack(error),
    })?;
    // The digests are of everything, so the padding behind the archive is read too.
    let trailing = io::copy(&mut (&mut content).take(TRAILING_MAX + 1), &mut io::sink()).map_err(from_io)?;
    if trailing > TRAILING_MAX {
        return Err(LayerError::Trailing);
    }
    let content = content.into_inner();
    let (decoder, diff_id) = content.into_parts();
    let mut blob = decoder.into_inner();
    io::copy(&mut blob, &mut io::sink()).map_err(from_io)?;
    let (found, size) = blob.into_inner().finish();

    if let Some((digest, length)) = &expected.blob {
        if size != *length {
            return Err(LayerError::BlobSize { expected: *length, found: size });
        }
        if found != *digest {
            return Err(LayerError::BlobDigest { expected: digest.clone(), found });
        }
    }
    if diff_id != expected.diff_id {
        return Err(LayerError::DiffId { expected: expected.diff_id.clone(), found: diff_id });
    }
    Ok(unpacked)
}

/// What one layer may take of the file system as it is now.
fn limits(root: &File) -> io::Result<Limits> {
    let stat = rustix::fs::fstatvfs(root)?;
    let bytes = stat.f_bavail.saturating_mul(stat.f_frsize) / 100 * FREE_SHARE;
    // Some file systems make inodes as they need them and report none.
    let entries = if stat.f_files == 0 { ENTRIES_MAX } else { stat.f_favail.min(ENTRIES_MAX) };
    Ok(Limits { bytes, entries })
}

/// Marks the errors of the source, so that they are told apart from damage in what it sent.
struct Tagged<R>(R);

#[derive(Debug, Error)]
#[error(transparent)]
struct SourceError(io::Error);

impl<R: Read> Read for Tagged<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, SourceError(error)),
        })
    }
}

fn from_io(error: io::Error) -> LayerError {
    match error.downcast::<SourceError>() {
        Ok(SourceError(error)) => LayerError::Read(error),
        Err(error) => LayerError::Decompress(error),
    }
}

enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
}

impl<R: BufRead> Decoder<R> {
    fn new(mut blob: R) -> io::Result<Self> {
        let head = blob.fill_buf()?;
        Ok(if head.starts_with(GZIP) {
            Self::Gzip(Box::new(MultiGzDecoder::new(blob)))
        } else if head.starts_with(ZSTD) {
            Self::Zstd(zstd::stream::read::Decoder::with_buffer(blob)?)
        } else {
            Self::Plain(blob)
        })
    }

    fn into_inner(self) -> R {
        match self {
            Self::Plain(blob) => blob,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(blob) => blob.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// A whole archive file that may be compressed, as a plain stream.
pub(super) fn decompressed<'a>(archive: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Decoder::new(archive)? {
        Decoder::Plain(plain) => Box::new(plain),
        decoder => Box::new(decoder),
    })
}
