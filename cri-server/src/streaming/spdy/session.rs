//! The streams of one connection and what may happen to them, as the side that is connected to.
//!
//! ```text
//!                FIN of the peer ┌──────────────┐ our FIN
//!             ┌─────────────────▶│ half closed  │─────────────┐
//!  SYN_STREAM │                  └──────────────┘             ▼
//!  ─────────▶ open ─────────────────────────────────────▶ forgotten
//!             │     our FIN      ┌──────────────┐ FIN of the  ▲  (also by RST_STREAM of either side)
//!             └─────────────────▶│ half closed  │─────────────┘
//!                                └──────────────┘ peer
//! ```

use std::collections::HashMap;

use bytes::Bytes;

use super::{Frame, Headers};

/// Most streams that are open at a time: forwarded connections have two each.
const STREAMS_MAX: usize = 2048;

const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

/// Which directions of a stream are open.
#[derive(Debug, Clone, Copy)]
struct Stream {
    theirs: bool,
    ours: bool,
}

/// All streams of a connection.
#[derive(Debug, Default)]
pub(crate) struct Session {
    streams: HashMap<u32, Stream>,
    last: u32,
    is_leaving: bool,
}

/// What a frame of the peer means to those who use the streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is a new stream. The answer must be sent before its data.
    Open { id: u32, headers: Headers },
    /// Bytes of a stream.
    Data { id: u32, data: Bytes },
    /// The peer sends no more on a stream.
    End { id: u32 },
    /// The stream is gone.
    Reset { id: u32 },
}

/// What to do about a frame: events in their order, and a frame to send back.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reaction {
    pub(crate) events: Vec<Event>,
    pub(crate) answer: Option<Frame>,
}

impl Session {
    /// Takes a frame of the peer. What belongs to no stream that is open is dropped: it may have been sent before the peer
    /// heard of the end.
    pub(crate) fn receive(&mut self, frame: Frame) -> Reaction {
        match frame {
            Frame::SynStream { id, fin, unidirectional, headers } => self.open(id, fin, unidirectional, headers),
            Frame::Data { id, fin, data } => {
                let mut events = Vec::new();
                if self.streams.get(&id).is_some_and(|stream| stream.theirs) {
                    if !data.is_empty() {
                        events.push(Event::Data { id, data });
                    }
                    if fin {
                        events.extend(self.end(id));
                    }
                }
                Reaction { events, answer: None }
            }
            Frame::Headers { id, fin: true, .. } => {
                Reaction { events: self.end(id).into_iter().collect(), answer: None }
            }
            Frame::RstStream { id, .. } => {
                let known = self.streams.remove(&id).is_some();
                Reaction { events: known.then_some(Event::Reset { id }).into_iter().collect(), answer: None }
            }
            // Even ones would be answers to ours.
            Frame::Ping { id } if id % 2 == 1 => Reaction { events: Vec::new(), answer: Some(Frame::Ping { id }) },
            // Streams that are open live on until they end or the connection does.
            Frame::GoAway { .. }
            | Frame::Headers { .. }
            | Frame::SynReply { .. }
            | Frame::Settings
            | Frame::Ping { .. }
            | Frame::WindowUpdate { .. } => Reaction::default(),
        }
    }

    fn open(&mut self, id: u32, fin: bool, unidirectional: bool, headers: Headers) -> Reaction {
        let refuse = |status| Reaction { events: Vec::new(), answer: Some(Frame::RstStream { id, status }) };
        if id.is_multiple_of(2) || id <= self.last {
            // What is wrong with a new stream must not end the old one of its number.
            let is_open = self.streams.contains_key(&id);
            return if is_open { Reaction::default() } else { refuse(PROTOCOL_ERROR) };
        }
        self.last = id;
        if self.is_leaving || self.streams.len() >= STREAMS_MAX {
            return refuse(REFUSED_STREAM);
        }
        let answer = (!unidirectional).then(|| Frame::SynReply { id, fin: false, headers: Headers::default() });
        self.streams.insert(id, Stream { theirs: true, ours: !unidirectional });
        let mut events = vec![Event::Open { id, headers }];
        if fin {
            events.extend(self.end(id));
        }
        Reaction { events, answer }
    }

    fn end(&mut self, id: u32) -> Option<Event> {
        let stream = self.streams.get_mut(&id).filter(|stream| stream.theirs)?;
        stream.theirs = false;
        if !stream.ours {
            self.streams.remove(&id);
        }
        Some(Event::End { id })
    }

    /// The frame that sends data; [`None`] if the stream can't take it any more.
    pub(crate) fn data(&mut self, id: u32, data: Bytes) -> Option<Frame> {
        let is_open = self.streams.get(&id).is_some_and(|stream| stream.ours);
        is_open.then_some(Frame::Data { id, fin: false, data })
    }

    /// The frame that says that we send no more on a stream.
    pub(crate) fn finish(&mut self, id: u32) -> Option<Frame> {
        let stream = self.streams.get_mut(&id).filter(|stream| stream.ours)?;
        stream.ours = false;
        if !stream.theirs {
            self.streams.remove(&id);
        }
        Some(Frame::Data { id, fin: true, data: Bytes::new() })
    }

    /// The frame that ends a stream at once.
    pub(crate) fn reset(&mut self, id: u32) -> Option<Frame> {
        self.streams.remove(&id).map(|_| Frame::RstStream { id, status: CANCEL })
    }

    /// The frame that says that no more streams are taken.
    pub(crate) fn leave(&mut self) -> Frame {
        self.is_leaving = true;
        Frame::GoAway { last_good: self.last, status: 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn syn(id: u32) -> Frame {
        Frame::SynStream { id, fin: false, unidirectional: false, headers: Headers::default() }
    }

    fn data(id: u32, fin: bool) -> Frame {
        Frame::Data { id, fin, data: Bytes::from_static(b"x") }
    }

    fn rst(id: u32, status: u32) -> Option<Frame> {
        Some(Frame::RstStream { id, status })
    }

    #[test]
    fn a_stream_lives_until_both_sides_have_ended_it() {
        let mut session = Session::default();
        let opened = session.receive(syn(1));
        assert_eq!(opened.events, [Event::Open { id: 1, headers: Headers::default() }]);
        assert!(matches!(opened.answer, Some(Frame::SynReply { id: 1, fin: false, .. })));
        let sent = session.receive(data(1, true)).events;
        assert_eq!(sent, [Event::Data { id: 1, data: Bytes::from_static(b"x") }, Event::End { id: 1 }]);
        assert_eq!(session.receive(data(1, false)), Reaction::default(), "it had ended");
        assert!(session.data(1, Bytes::new()).is_some(), "our side is open");
        assert!(session.finish(1).is_some());
        assert!(session.finish(1).is_none() && session.data(1, Bytes::new()).is_none() && session.reset(1).is_none());
        assert!(session.streams.is_empty());
    }

    #[test]
    fn ids_rise_and_are_odd() {
        let mut session = Session::default();
        assert_eq!(session.receive(syn(2)).answer, rst(2, PROTOCOL_ERROR));
        session.receive(syn(5));
        assert_eq!(session.receive(syn(3)).answer, rst(3, PROTOCOL_ERROR));
        assert_eq!(session.receive(syn(5)), Reaction::default(), "the one that is open stays");
        assert!(session.data(5, Bytes::new()).is_some());
        session.receive(Frame::RstStream { id: 5, status: CANCEL });
        assert_eq!(session.receive(syn(5)).answer, rst(5, PROTOCOL_ERROR), "not twice");
    }

    #[test]
    fn too_many_streams_and_late_ones_are_refused() {
        let mut session = Session::default();
        let ids = (1..).step_by(2);
        for id in ids.take(STREAMS_MAX) {
            assert!(matches!(session.receive(syn(id)).answer, Some(Frame::SynReply { .. })));
        }
        let next = session.last + 2;
        assert_eq!(session.receive(syn(next)).answer, rst(next, REFUSED_STREAM));
        session.reset(1);
        assert!(matches!(session.receive(syn(next + 2)).answer, Some(Frame::SynReply { .. })));
        assert_eq!(session.leave(), Frame::GoAway { last_good: next + 2, status: 0 });
        session.reset(3);
        assert_eq!(session.receive(syn(next + 4)).answer, rst(next + 4, REFUSED_STREAM));
    }

    #[test]
    fn pings_of_the_peer_are_sent_back_and_the_rest_is_tolerated() {
        let mut session = Session::default();
        assert_eq!(session.receive(Frame::Ping { id: 7 }).answer, Some(Frame::Ping { id: 7 }));
        for frame in [
            Frame::Ping { id: 8 },
            Frame::Settings,
            Frame::WindowUpdate { id: 1, delta: 1 },
            Frame::GoAway { last_good: 0, status: 0 },
            Frame::SynReply { id: 9, fin: true, headers: Headers::default() },
            data(9, true),
        ] {
            assert_eq!(session.receive(frame), Reaction::default());
        }
    }

    proptest! {
        /// Nothing is told of a stream before it is opened, after its end, or after its reset.
        #[test]
        fn events_of_a_stream_are_in_order(steps in prop::collection::vec((0_u8..7, 0_u32..12), 0..200)) {
            let mut session = Session::default();
            let mut heard = HashMap::new();
            for (step, id) in steps {
                let frame = match step {
                    0 => syn(id),
                    1 => data(id, false),
                    2 => data(id, true),
                    3 => Frame::RstStream { id, status: CANCEL },
                    4 => Frame::Headers { id, fin: true, headers: Headers::default() },
                    5 => { session.finish(id); continue }
                    _ => { if session.reset(id).is_some() { heard.insert(id, false); } continue }
                };
                for event in session.receive(frame).events {
                    match event {
                        Event::Open { id, .. } => prop_assert_eq!(heard.insert(id, true), None),
                        Event::Data { id, .. } => prop_assert_eq!(heard.get(&id), Some(&true)),
                        Event::End { id } => prop_assert_eq!(heard.insert(id, false), Some(true)),
                        Event::Reset { id } => { heard.insert(id, false); }
                    }
                }
            }
        }
    }
}
