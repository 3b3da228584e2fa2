//! What a client may send to the streaming server after its upgrade: frames in pieces of any size, into the states of the
//! connection's streams. Whatever comes is an error or is understood; what was understood means the same once it was
//! written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The codec is pure, so it is built alone: the whole daemon would take minutes.
#[allow(dead_code, reason = "this uses a part of it")]
#[path = "../../cri-server/src/streaming/spdy/mod.rs"]
mod spdy;

use spdy::{Decoder, Encoder, Session};

// The last byte is the size of the pieces.
fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_last() else { return };
    let (mut decoder, mut session) = (Decoder::new(), Session::default());
    let (mut encoder, mut again) = (Encoder::new(), Decoder::new());
    let mut out = Vec::new();
    for piece in bytes.chunks(usize::from(*cut).max(1)) {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => {
                    out.clear();
                    encoder.encode(&frame, &mut out);
                    again.feed(&out);
                    assert_eq!(again.next(), Ok(Some(frame.clone())));
                    if let Some(answer) = session.receive(frame).answer {
                        out.clear();
                        encoder.encode(&answer, &mut out);
                        again.feed(&out);
                        assert_eq!(again.next(), Ok(Some(answer)));
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
