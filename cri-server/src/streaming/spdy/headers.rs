//! Name/value blocks: deflated with a dictionary of the specification and one context for each direction of a connection.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;

/// The specification's dictionary.
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");
/// Most bytes of an inflated block. Clients of Kubernetes send three short headers.
const BLOCK_MAX: usize = 16 << 10;
/// Most headers in a block.
const COUNT_MAX: u32 = 64;

/// Headers of a stream, names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header, by its name in any case.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(pairs: T) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Inflates the blocks of a connection, in their order.
#[derive(Debug)]
pub(super) struct Inflate(Decompress);

impl Inflate {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Inflates and reads one block. After an error the context is of no use any more.
    pub(super) fn block(&mut self, deflated: &[u8]) -> Result<Headers, SpdyError> {
        let mut block = Vec::with_capacity(1024);
        let start = self.0.total_in();
        loop {
            let taken = usize::try_from(self.0.total_in() - start).unwrap_or(usize::MAX);
            let rest = deflated.get(taken..).unwrap_or_default();
            let before = (rest.len(), block.len());
            match self.0.decompress_vec(rest, &mut block, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(SpdyError::Headers("they end the deflated stream")),
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(DICTIONARY).map_err(|_| SpdyError::Headers("their dictionary is another"))?;
                    continue;
                }
                Err(_) => return Err(SpdyError::Headers("they can't be inflated")),
            }
            if block.len() > BLOCK_MAX {
                return Err(SpdyError::Headers("they are too long"));
            }
            let taken = usize::try_from(self.0.total_in() - start).unwrap_or(usize::MAX);
            if block.len() == block.capacity() {
                block.reserve(block.len());
            } else if taken >= deflated.len() {
                return parse(&block);
            } else if (deflated.len() - taken, block.len()) == before {
                return Err(SpdyError::Headers("they can't be inflated"));
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Headers, SpdyError> {
    const SHORT: SpdyError = SpdyError::Headers("they are cut off");
    fn number(block: &mut &[u8]) -> Result<u32, SpdyError> {
        let (number, rest) = block.split_first_chunk().ok_or(SHORT)?;
        *block = rest;
        Ok(u32::from_be_bytes(*number))
    }
    fn text(block: &mut &[u8]) -> Result<String, SpdyError> {
        let length = usize::try_from(number(block)?).map_err(|_| SHORT)?;
        let (text, rest) = block.split_at_checked(length).ok_or(SHORT)?;
        *block = rest;
        String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Headers("they are not text"))
    }
    let count = number(&mut block)?;
    if count > COUNT_MAX {
        return Err(SpdyError::Headers("they are too many"));
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let (name, value) = (text(&mut block)?, text(&mut block)?);
        if name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(SpdyError::Headers("a name is empty or in upper case"));
        }
        if headers.get(&name).is_some() {
            return Err(SpdyError::Headers("a name is there twice"));
        }
        headers.0.push((name, value));
    }
    if block.is_empty() { Ok(headers) } else { Err(SpdyError::Headers("something follows them")) }
}

/// Deflates the blocks of a connection, in their order.
#[derive(Debug)]
pub(super) struct Deflate(Compress);

impl Deflate {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        // Refused only in the middle of a stream.
        let _ = compress.set_dictionary(DICTIONARY);
        Self(compress)
    }

    /// Appends a block.
    pub(super) fn block(&mut self, headers: &Headers, out: &mut Vec<u8>) {
        let mut block = Vec::new();
        let mut number = |length: usize, text: &str| {
            block.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        };
        number(headers.0.len(), "");
        for (name, value) in &headers.0 {
            number(name.len(), &name.to_ascii_lowercase());
            number(value.len(), value);
        }
        let start = self.0.total_in();
        loop {
            let taken = usize::try_from(self.0.total_in() - start).unwrap_or(usize::MAX);
            // Room for a flush marker: where it doesn't fit, zlib writes it again with each call.
            out.reserve(block.len() + 64);
            let compressed = self.0.compress_vec(block.get(taken..).unwrap_or_default(), out, FlushCompress::Sync);
            if compressed.is_err() || out.len() < out.capacity() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_specifications() {
        let (mut low, mut high) = (1_u32, 0_u32);
        for byte in DICTIONARY {
            low = (low + u32::from(*byte)) % 65_521;
            high = (high + low) % 65_521;
        }
        assert_eq!((DICTIONARY.len(), high << 16 | low), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_inflated() {
        let mut bomb = Compress::new(Compression::best(), true);
        bomb.set_dictionary(DICTIONARY).unwrap();
        let mut deflated = Vec::with_capacity(1 << 20);
        bomb.compress_vec(&vec![0; 8 << 20], &mut deflated, FlushCompress::Sync).unwrap();
        assert!(deflated.len() < 20 << 10);
        assert!(Inflate::new().block(&deflated).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let refused = |block: &[u8]| {
            let mut compress = Compress::new(Compression::fast(), true);
            compress.set_dictionary(DICTIONARY).unwrap();
            let mut deflated = Vec::with_capacity(4096);
            compress.compress_vec(block, &mut deflated, FlushCompress::Sync).unwrap();
            Inflate::new().block(&deflated).unwrap_err().to_string()
        };
        for (block, word) in [
            (&b""[..], "cut off"),
            (b"\0\0\0\x01", "cut off"),
            (b"\xff\xff\xff\xff", "too many"),
            (b"\0\0\0\x01\xff\xff\xff\xff", "cut off"),
            (b"\0\0\0\x01\0\0\0\x01A\0\0\0\0", "upper case"),
            (b"\0\0\0\x01\0\0\0\0\0\0\0\0", "empty"),
            (b"\0\0\0\x02\0\0\0\x01a\0\0\0\0\0\0\0\x01a\0\0\0\0", "twice"),
            (b"\0\0\0\x01\0\0\0\x01a\0\0\0\x01\xff", "not text"),
            (b"\0\0\0\0more", "follows"),
        ] {
            assert!(refused(block).contains(word), "{block:?}: {}", refused(block));
        }
        assert!(Inflate::new().block(b"not zlib").is_err());
        assert!(Inflate::new().block(b"").is_err());
    }

    proptest! {
        #[test]
        fn blocks_come_back_in_their_order(
            blocks in prop::collection::vec(prop::collection::btree_map("[a-z0-9-]{1,20}", ".{0,200}", 0..8), 1..10),
        ) {
            let (mut deflate, mut inflate) = (Deflate::new(), Inflate::new());
            for block in blocks {
                let headers: Headers = block.into_iter().collect();
                let mut deflated = Vec::new();
                deflate.block(&headers, &mut deflated);
                prop_assert_eq!(inflate.block(&deflated).unwrap(), headers);
            }
        }

        #[test]
        fn anything_else_is_an_error_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let _ = Inflate::new().block(&bytes);
        }
    }
}
