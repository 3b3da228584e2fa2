//! Frames on the wire.
//!
//! Data comes out in pieces as it arrives, so the 16 MiB that a data frame may announce are never held; control frames are
//! held whole, and are refused above a size that none of Kubernetes comes near.

use bytes::{Buf as _, Bytes, BytesMut};

use super::headers::{Deflate, Headers, Inflate};

/// Most bytes of a control frame behind its header.
const CONTROL_MAX: usize = 32 << 10;
/// The bit that says it is a control frame.
const CONTROL: u32 = 1 << 31;
/// SPDY/3 and SPDY/3.1 name themselves alike.
const VERSION: u32 = 3;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a peer is not understood. The connection is of no use after it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpdyError {
    /// Another protocol, or none.
    #[error("read a SPDY frame: it is of version {0}")]
    Version(u32),
    /// A control frame that nobody needs.
    #[error("read a SPDY frame: a control frame of {0} bytes is too long")]
    TooLong(usize),
    /// Its fields can't be.
    #[error("read a SPDY frame: {0} is malformed")]
    Malformed(&'static str),
    /// A header block.
    #[error("read a SPDY frame's headers: {0}")]
    Headers(&'static str),
}

/// One frame, or a piece of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Opens a stream.
    SynStream { id: u32, fin: bool, unidirectional: bool, headers: Headers },
    /// Accepts a stream.
    SynReply { id: u32, fin: bool, headers: Headers },
    /// Ends a stream in both directions.
    RstStream { id: u32, status: u32 },
    /// Nothing of it has a meaning here.
    Settings,
    /// To be sent back, if the other side began it.
    Ping { id: u32 },
    /// No more streams will be opened.
    GoAway { last_good: u32, status: u32 },
    /// More headers for a stream.
    Headers { id: u32, fin: bool, headers: Headers },
    /// Nothing of it has a meaning here.
    WindowUpdate { id: u32, delta: u32 },
    /// Bytes of a stream.
    Data { id: u32, fin: bool, data: Bytes },
}

/// Reads frames from bytes in pieces of any size.
#[derive(Debug)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    inflate: Inflate,
    /// A data frame of which so many bytes are to come.
    data: Option<(u32, bool, usize)>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { buffer: BytesMut::new(), inflate: Inflate::new(), data: None }
    }

    /// Takes what arrived.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame of what arrived; [`None`] if more is needed.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        if let Some((id, fin, left)) = self.data {
            return Ok(self.piece(id, fin, left));
        }
        loop {
            let Some((header, rest)) = self.buffer.split_first_chunk::<8>() else { return Ok(None) };
            let [a, b, c, d, flags, e, f, g] = *header;
            let word = u32::from_be_bytes([a, b, c, d]);
            let length = usize::from(e) << 16 | usize::from(f) << 8 | usize::from(g);
            if word & CONTROL == 0 {
                if word == 0 {
                    return Err(SpdyError::Malformed("data of no stream"));
                }
                self.buffer.advance(8);
                return Ok(self.piece(word, flags & FIN != 0, length));
            }
            let version = word >> 16 & 0x7fff;
            if version != VERSION {
                return Err(SpdyError::Version(version));
            }
            if length > CONTROL_MAX {
                return Err(SpdyError::TooLong(length));
            }
            if rest.len() < length {
                return Ok(None);
            }
            self.buffer.advance(8);
            let body = self.buffer.split_to(length);
            let [_, _, kind @ ..] = word.to_be_bytes();
            // The specification has a type that is not known ignored.
            if let Some(frame) = self.control(u16::from_be_bytes(kind), flags, &body)? {
                return Ok(Some(frame));
            }
        }
    }

    fn piece(&mut self, id: u32, fin: bool, left: usize) -> Option<Frame> {
        let data = self.buffer.split_to(left.min(self.buffer.len())).freeze();
        let left = left - data.len();
        self.data = (left > 0).then_some((id, fin, left));
        if data.is_empty() && left > 0 {
            return None;
        }
        Some(Frame::Data { id, fin: fin && left == 0, data })
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Option<Frame>, SpdyError> {
        let fin = flags & FIN != 0;
        Ok(Some(match kind {
            SYN_STREAM => {
                // Behind its id: the stream that it belongs to, its priority, and a slot for credentials.
                let (id, rest) = stream_id(body, "SYN_STREAM")?;
                let block = rest.get(6..).ok_or(SpdyError::Malformed("SYN_STREAM"))?;
                Frame::SynStream { id, fin, unidirectional: flags & 2 != 0, headers: self.inflate.block(block)? }
            }
            SYN_REPLY => {
                let (id, block) = stream_id(body, "SYN_REPLY")?;
                Frame::SynReply { id, fin, headers: self.inflate.block(block)? }
            }
            HEADERS => {
                let (id, block) = stream_id(body, "HEADERS")?;
                Frame::Headers { id, fin, headers: self.inflate.block(block)? }
            }
            RST_STREAM => {
                let [id, status] = numbers(body, "RST_STREAM")?;
                Frame::RstStream { id: id & !CONTROL, status }
            }
            SETTINGS => Frame::Settings,
            PING => {
                let [id] = numbers(body, "PING")?;
                Frame::Ping { id }
            }
            GOAWAY => {
                let [last_good, status] = numbers(body, "GOAWAY")?;
                Frame::GoAway { last_good: last_good & !CONTROL, status }
            }
            WINDOW_UPDATE => {
                let [id, delta] = numbers(body, "WINDOW_UPDATE")?;
                Frame::WindowUpdate { id: id & !CONTROL, delta: delta & !CONTROL }
            }
            _ => return Ok(None),
        }))
    }
}

fn stream_id<'a>(body: &'a [u8], kind: &'static str) -> Result<(u32, &'a [u8]), SpdyError> {
    match body.split_first_chunk() {
        Some((id, rest)) if u32::from_be_bytes(*id) & !CONTROL != 0 => Ok((u32::from_be_bytes(*id) & !CONTROL, rest)),
        _ => Err(SpdyError::Malformed(kind)),
    }
}

fn numbers<const N: usize>(body: &[u8], kind: &'static str) -> Result<[u32; N], SpdyError> {
    let mut numbers = [0; N];
    let (chunks, rest) = body.as_chunks::<4>();
    if chunks.len() != N || !rest.is_empty() {
        return Err(SpdyError::Malformed(kind));
    }
    for (number, chunk) in numbers.iter_mut().zip(chunks) {
        *number = u32::from_be_bytes(*chunk);
    }
    Ok(numbers)
}

/// Writes frames.
#[derive(Debug)]
pub(crate) struct Encoder {
    deflate: Deflate,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { deflate: Deflate::new() }
    }

    /// Appends a frame. Data of more than a frame can hold is cut into several.
    pub(crate) fn encode(&mut self, frame: &Frame, out: &mut Vec<u8>) {
        let flag = |fin: bool| u8::from(fin) * FIN;
        match frame {
            Frame::SynStream { id, fin, unidirectional, headers } => {
                let flags = flag(*fin) | u8::from(*unidirectional) << 1;
                self.control(SYN_STREAM, flags, &[&id.to_be_bytes()[..], &[0; 6]].concat(), Some(headers), out);
            }
            Frame::SynReply { id, fin, headers } => {
                self.control(SYN_REPLY, flag(*fin), &id.to_be_bytes(), Some(headers), out);
            }
            Frame::Headers { id, fin, headers } => {
                self.control(HEADERS, flag(*fin), &id.to_be_bytes(), Some(headers), out);
            }
            Frame::RstStream { id, status } => self.pair(RST_STREAM, *id, *status, out),
            Frame::Settings => self.control(SETTINGS, 0, &[0; 4], None, out),
            Frame::Ping { id } => self.control(PING, 0, &id.to_be_bytes(), None, out),
            Frame::GoAway { last_good, status } => self.pair(GOAWAY, *last_good, *status, out),
            Frame::WindowUpdate { id, delta } => self.pair(WINDOW_UPDATE, *id, *delta, out),
            Frame::Data { id, fin, data } => {
                let mut data = &data[..];
                loop {
                    let (piece, rest) = data.split_at(data.len().min(0xff_ffff));
                    data = rest;
                    out.extend_from_slice(&id.to_be_bytes());
                    let flags = flag(*fin && rest.is_empty());
                    out.extend_from_slice(&header_end(flags, piece.len()));
                    out.extend_from_slice(piece);
                    if rest.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    fn pair(&mut self, kind: u16, first: u32, second: u32, out: &mut Vec<u8>) {
        let body = [first.to_be_bytes(), second.to_be_bytes()];
        self.control(kind, 0, body.as_flattened(), None, out);
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8], headers: Option<&Headers>, out: &mut Vec<u8>) {
        out.extend_from_slice(&(CONTROL | VERSION << 16 | u32::from(kind)).to_be_bytes());
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(body);
        if let Some(headers) = headers {
            self.deflate.block(headers, out);
        }
        let length = out.len() - start - 4;
        out[start..start + 4].copy_from_slice(&header_end(flags, length));
    }
}

/// The second half of a frame's header.
fn header_end(flags: u8, length: usize) -> [u8; 4] {
    let [_, high, middle, low] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [flags, high, middle, low]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `streamType: error`, written by moby/spdystream.
    const GO_SYN_STREAM: &[u8] = &[
        0x80, 0x03, 0x00, 0x01, 0x00, 0x00, 0x00, 0x29, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x62, 0x60, 0x60, 0x60, 0x04, 0xa7, 0xb3, 0x92, 0xa2, 0xd4, 0xc4, 0x5c,
        0x68, 0x51, 0xc2, 0x9a, 0x0a, 0x0a, 0x68, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff,
    ];

    fn all(decoder: &mut Decoder) -> Result<Vec<Frame>, SpdyError> {
        std::iter::from_fn(|| decoder.next().transpose()).collect()
    }

    /// As `Decoder` may cut data where it likes, pieces are joined before they are compared.
    fn join(frames: Vec<Frame>) -> Vec<Frame> {
        let mut joined: Vec<Frame> = Vec::new();
        for frame in frames {
            match (joined.last_mut(), frame) {
                (Some(Frame::Data { id, fin, data }), Frame::Data { id: next, fin: end, data: more })
                    if *id == next && !*fin =>
                {
                    *data = [&data[..], &more[..]].concat().into();
                    *fin = end;
                }
                (_, frame) => joined.push(frame),
            }
        }
        joined
    }

    fn frames() -> impl Strategy<Value = Frame> {
        let id = || 1_u32..=0x7fff_ffff;
        let headers = || prop::collection::btree_map("[a-z]{1,12}", "[ -~]{0,40}", 0..4).prop_map(Headers::from_iter);
        prop_oneof![
            (id(), any::<bool>(), any::<bool>(), headers()).prop_map(|(id, fin, unidirectional, headers)| {
                Frame::SynStream { id, fin, unidirectional, headers }
            }),
            (id(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::SynReply { id, fin, headers }),
            (id(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::Headers { id, fin, headers }),
            (id(), any::<u32>()).prop_map(|(id, status)| Frame::RstStream { id, status }),
            Just(Frame::Settings),
            any::<u32>().prop_map(|id| Frame::Ping { id }),
            (id(), any::<u32>()).prop_map(|(last_good, status)| Frame::GoAway { last_good, status }),
            (id(), id()).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
            (id(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..3000))
                .prop_map(|(id, fin, data)| Frame::Data { id, fin, data: data.into() }),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(frames in prop::collection::vec(frames(), 0..20), cut in 1_usize..500) {
            let (mut encoder, mut bytes) = (Encoder::new(), Vec::new());
            frames.iter().for_each(|frame| encoder.encode(frame, &mut bytes));
            let (mut decoder, mut found) = (Decoder::new(), Vec::new());
            for piece in bytes.chunks(cut) {
                decoder.feed(piece);
                found.extend(all(&mut decoder).unwrap());
            }
            prop_assert_eq!(join(found), join(frames));
            prop_assert!(decoder.buffer.is_empty());
        }

        #[test]
        fn anything_is_frames_or_an_error(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..10),
            control in any::<bool>(),
        ) {
            let mut decoder = Decoder::new();
            if control {
                decoder.feed(&[0x80, 3, 0]);
            }
            for piece in pieces {
                decoder.feed(&piece);
                while let Ok(Some(_)) = decoder.next() {}
            }
        }
    }

    #[test]
    fn what_a_go_client_sends_is_read() {
        let mut decoder = Decoder::new();
        decoder.feed(GO_SYN_STREAM);
        let frame = decoder.next().unwrap();
        let Some(Frame::SynStream { id: 1, fin: false, unidirectional: false, headers }) = frame else {
            panic!("{frame:?}")
        };
        assert_eq!(headers.get("streamType"), Some("error"));
    }

    #[test]
    fn limits_are_kept() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::new();
            decoder.feed(bytes);
            all(&mut decoder).unwrap_err()
        };
        assert_eq!(refused(&[0x80, 2, 0, 6, 0, 0, 0, 4]), SpdyError::Version(2));
        assert_eq!(refused(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]), SpdyError::TooLong(0xff_ffff));
        assert_eq!(refused(&[0x80, 3, 0, 6, 0, 0, 0, 3, 0, 0, 0]), SpdyError::Malformed("PING"));
        assert_eq!(refused(&[0x80, 3, 0, 1, 0, 0, 0, 4, 0, 0, 0, 0]), SpdyError::Malformed("SYN_STREAM"));
        assert_eq!(refused(&[0, 0, 0, 0, 0, 0, 0, 0]), SpdyError::Malformed("data of no stream"));
    }

    #[test]
    fn an_unknown_frame_is_passed_over() {
        let mut decoder = Decoder::new();
        decoder.feed(&[0x80, 3, 0, 99, 0, 0, 0, 2, 1, 2, 0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7]);
        assert_eq!(all(&mut decoder), Ok(vec![Frame::Ping { id: 7 }]));
    }

    #[test]
    fn a_large_data_frame_comes_in_pieces() {
        let mut decoder = Decoder::new();
        decoder.feed(&[0, 0, 0, 5, 1, 0, 0, 4, b'a', b'b']);
        let data = |fin, data: &'static [u8]| Frame::Data { id: 5, fin, data: Bytes::from_static(data) };
        assert_eq!(all(&mut decoder), Ok(vec![data(false, b"ab")]));
        decoder.feed(b"c");
        assert_eq!(all(&mut decoder), Ok(vec![data(false, b"c")]));
        decoder.feed(b"d");
        assert_eq!(all(&mut decoder), Ok(vec![data(true, b"d")]));
    }
}
