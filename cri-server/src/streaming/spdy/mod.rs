//! SPDY/3.1 as Kubernetes speaks it: frames, header blocks and the states of streams. Pure: bytes in, frames out, no I/O.
//!
//! Clients and proxies of Kubernetes use one Go library, which knows no flow control: it ignores WINDOW_UPDATE and sends
//! none. So no window is kept here, and what holds a sender back is the connection itself, which is not read while a
//! stream's queue is full. Everything a peer can make large has a limit; what breaks one ends the connection.
//!
//! The format is that of <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>.

mod frame;
mod headers;
mod session;

pub(crate) use self::{
    frame::{Decoder, Encoder, Frame, SpdyError},
    headers::Headers,
    session::{Event, Session},
};
