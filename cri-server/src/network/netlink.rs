//! Blocking netlink: one request, its answers, its acknowledgement.
//!
//! The kernel does the work of a request inside `send` and answers at once, so there is nothing to be asynchronous
//! about; callers run on threads for blocking work. A channel on which anything failed is dropped by its user, so that
//! no late answer is taken for another's.

use std::{io, marker::PhantomData, time::Duration};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterProtoFamily, nftables::NfTablesMessage, none::ControlMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::sys::{
    socket::{setsockopt, sockopt},
    time::{TimeVal, TimeValLike},
};

/// What a request does beside being one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Acts on what there is.
    Plain,
    /// Makes what is missing and takes what is there.
    Create,
    /// Makes what must not be there.
    CreateNew,
    /// Makes one more at the end of a list.
    Append,
    /// Lists all.
    Dump,
}

impl Mode {
    fn flags(self) -> u16 {
        NLM_F_REQUEST
            | match self {
                Self::Plain => 0,
                Self::Create => NLM_F_CREATE,
                Self::CreateNew => NLM_F_CREATE | NLM_F_EXCL,
                Self::Append => NLM_F_CREATE | NLM_F_APPEND,
                Self::Dump => NLM_F_DUMP,
            }
    }
}

/// The answers to a list: what could be read, and how many could not.
#[derive(Debug)]
pub(super) struct Listed<I> {
    pub(super) messages: Vec<I>,
    pub(super) unreadable: usize,
}

/// A socket of one protocol, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Channel<I> {
    socket: Socket,
    sequence: u32,
    /// The protocol's messages.
    messages: PhantomData<fn(I) -> I>,
}

/// Links, addresses and routes.
pub(super) type RouteChannel = Channel<RouteNetlinkMessage>;
/// nftables and connection tracking.
pub(super) type FilterChannel = Channel<NetfilterMessage>;

/// The kernel answers at once; this only keeps a kernel that does not from holding a thread for ever.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// A list that changed while it was read is read anew this often.
const LIST_ATTEMPTS: usize = 5;

impl RouteChannel {
    pub(super) fn open() -> io::Result<Self> {
        Self::with_protocol(NETLINK_ROUTE)
    }
}

impl FilterChannel {
    pub(super) fn open() -> io::Result<Self> {
        Self::with_protocol(NETLINK_NETFILTER)
    }

    /// Does all of the changes or none, in one transaction.
    pub(super) fn transaction(
        &mut self,
        family: NetfilterProtoFamily,
        changes: Vec<(NfTablesMessage, Mode)>,
    ) -> io::Result<()> {
        let control =
            |message| NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES), message);
        let last = changes.len();
        let mut bytes = Vec::new();
        self.append(control(ControlMessage::BatchBegin), NLM_F_REQUEST, &mut bytes);
        let first = self.sequence;
        for (index, (change, mode)) in changes.into_iter().enumerate() {
            // One acknowledgement is enough: a failure of any is told in any case, and before it.
            let ack = if index + 1 == last { NLM_F_ACK } else { 0 };
            let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), change);
            self.append(message, mode.flags() | ack, &mut bytes);
        }
        let acknowledged = self.sequence;
        self.append(control(ControlMessage::BatchEnd), NLM_F_REQUEST, &mut bytes);
        self.send(&bytes)?;
        self.receive(first, acknowledged).map(drop)
    }
}

/// Number of the nftables subsystem, which the batch's header names.
const NFTABLES: u16 = 10;

impl<I: NetlinkSerializable + NetlinkDeserializable> Channel<I> {
    fn with_protocol(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        let limit = TimeVal::seconds(i64::try_from(ANSWER_LIMIT.as_secs()).unwrap_or(i64::MAX));
        setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
        Ok(Self { socket, sequence: 0, messages: PhantomData })
    }

    /// Sends one request and waits for its acknowledgement; answers what came before it.
    pub(super) fn request(&mut self, message: I, mode: Mode) -> io::Result<Vec<I>> {
        let mut bytes = Vec::new();
        self.append(message, mode.flags() | NLM_F_ACK, &mut bytes);
        self.send(&bytes)?;
        self.receive(self.sequence, self.sequence).map(|answer| answer.listed.messages)
    }

    /// Lists all that matches `message`, as it is at one moment.
    pub(super) fn list(&mut self, message: I) -> io::Result<Listed<I>>
    where
        I: Clone,
    {
        for _ in 0..LIST_ATTEMPTS {
            let mut bytes = Vec::new();
            self.append(message.clone(), Mode::Dump.flags(), &mut bytes);
            self.send(&bytes)?;
            let answer = self.receive(self.sequence, self.sequence)?;
            if !answer.interrupted {
                return Ok(answer.listed);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "the list changes faster than it can be read"))
    }

    fn append(&mut self, message: I, flags: u16, bytes: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(ALIGN), 0);
        message.serialize(&mut bytes[start..]);
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads until the request numbered `last` is acknowledged or its list ends, or any from `first` on fails.
    fn receive(&self, first: u32, last: u32) -> io::Result<Answer<I>> {
        let mut answer = Answer { listed: Listed { messages: Vec::new(), unreadable: 0 }, interrupted: false };
        let own = |sequence: u32| sequence.wrapping_sub(first) <= last.wrapping_sub(first);
        loop {
            let (datagram, _) = match self.socket.recv_from_full() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // What the receive limit of the socket comes out as.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer"));
                }
                other => other?,
            };
            let mut rest = datagram.as_slice();
            while let Some((length, flags, sequence)) = header(rest) {
                let (message, behind) = rest.split_at(length);
                rest = behind.get(length.next_multiple_of(ALIGN) - length..).unwrap_or_default();
                if !own(sequence) {
                    continue;
                }
                answer.interrupted |= flags & DUMP_INTERRUPTED != 0;
                match NetlinkMessage::<I>::deserialize(message).map(|message| message.payload) {
                    Ok(NetlinkPayload::Error(error)) => match error.code {
                        Some(_) => return Err(error.to_io()),
                        None if sequence == last => return Ok(answer),
                        None => {}
                    },
                    Ok(NetlinkPayload::Done(done)) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    Ok(NetlinkPayload::Done(_)) => return Ok(answer),
                    Ok(NetlinkPayload::Overrun(_)) => return Err(io::Error::from(io::ErrorKind::OutOfMemory)),
                    Ok(NetlinkPayload::InnerMessage(message)) => answer.listed.messages.push(message),
                    Ok(_) => {}
                    Err(_) => answer.listed.unreadable += 1,
                }
            }
        }
    }
}

#[derive(Debug)]
struct Answer<I> {
    listed: Listed<I>,
    interrupted: bool,
}

/// Messages begin at multiples of this.
const ALIGN: usize = 4;
/// `NLM_F_DUMP_INTR`: the list changed while it was read.
const DUMP_INTERRUPTED: u16 = 0x10;
const HEADER: usize = 16;

/// Length, flags and sequence number of the next message; none at the end or when it is cut off.
fn header(bytes: &[u8]) -> Option<(usize, u16, u32)> {
    let field = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let length = usize::try_from(field(0)?).ok()?;
    let flags = bytes.get(6..8)?.try_into().ok().map(u16::from_ne_bytes)?;
    (HEADER..=bytes.len()).contains(&length).then_some((length, flags, field(8)?))
}
