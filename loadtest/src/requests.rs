//! Requests, rendered before the clock starts.

use std::io::Write as _;
use std::ops::Range;

use event_pipeline::wire::frame::{self, OpCode};

use crate::events::{Events, Keys, types};
use crate::random::Random;

/// Events rendered in advance, over all producers; they are sent again and again. As many as the server has in a
/// segment, so that the posting lists of each segment are as if the events never repeated.
const RENDERED_EVENTS: usize = 65_536;

/// The rendered requests of one producer. Request `n` is the one at `n` modulo their number.
pub struct Requests {
    bytes: Vec<u8>,
    /// Where each request ends in `bytes`.
    ends: Vec<usize>,
    /// The keys of each event, request by request.
    keys: Vec<Keys>,
    events_each: usize,
}

impl Requests {
    /// The requests of one of `producers` producers, the same ones each time. A request holds `events_each`
    /// events: as one object, a JSON array, or, over HTTP, as lines.
    pub fn render(events: &Events, events_each: usize, framing: &Framing, producer: usize, producers: usize) -> Self {
        let types = types();
        let (mut random, mut masks) = (Random::new(producer), Random::new(producer));
        let count = (RENDERED_EVENTS / producers / events_each).max(1);
        let (count, events_each, array) = match framing {
            Framing::Plain => (count * events_each, 1, false),
            Framing::WebSocket => (count, events_each, events_each > 1),
            Framing::Http { .. } | Framing::Peer(..) => (count, events_each, false),
        };
        let mut requests = Self { bytes: Vec::new(), ends: Vec::new(), keys: Vec::new(), events_each };
        let mut body = Vec::new();
        for _ in 0..count {
            body.clear();
            for i in 0..events_each {
                let keys = Keys {
                    event_type: random.below(types.len() as u32),
                    session: random.below(events.sessions),
                    user: random.below(events.users),
                };
                body.extend_from_slice(match (array, i) {
                    (true, 0) => b"[",
                    (true, _) => b",",
                    (false, 0) => b"",
                    (false, _) => b"\n",
                });
                events.render(&mut body, keys, &types, producer, &mut random);
                requests.keys.push(keys);
            }
            if array {
                body.push(b']');
            }
            requests.add(&body, framing, &mut masks);
        }
        requests
    }

    /// The requests of one producer from events that are rendered already, one event each.
    pub fn of_events(events: impl IntoIterator<Item = (Vec<u8>, Keys)>, framing: &Framing, producer: usize) -> Self {
        let mut masks = Random::new(producer);
        let mut requests = Self { bytes: Vec::new(), ends: Vec::new(), keys: Vec::new(), events_each: 1 };
        for (body, keys) in events {
            requests.add(&body, framing, &mut masks);
            requests.keys.push(keys);
        }
        requests
    }

    fn add(&mut self, body: &[u8], framing: &Framing, masks: &mut Random) {
        match framing {
            Framing::Plain => self.bytes.extend_from_slice(body),
            Framing::Peer(render, producer) => render(&mut self.bytes, *producer, body),
            Framing::WebSocket => frame::masked(&mut self.bytes, OpCode::Text, body, masks.next().to_ne_bytes()),
            Framing::Http { path, headers } => {
                let content_type = if self.events_each > 1 { "application/x-ndjson" } else { "application/json" };
                let length = body.len();
                write!(
                    self.bytes,
                    "POST {path} HTTP/1.1\r\n{headers}Content-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
                )
                .expect("a vector takes everything");
                self.bytes.extend_from_slice(body);
            }
        }
        self.ends.push(self.bytes.len());
    }

    pub fn events_each(&self) -> usize {
        self.events_each
    }

    /// Appends `count` requests, beginning with number `first`.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>, first: u64, count: usize) {
        let (mut first, mut left) = ((first % self.ends.len() as u64) as usize, count);
        while left > 0 {
            let run = left.min(self.ends.len() - first);
            out.extend_from_slice(&self.bytes[self.range(first..first + run)]);
            left -= run;
            first = 0;
        }
    }

    /// One request as it is sent.
    pub fn get(&self, number: u64) -> &[u8] {
        let number = (number % self.ends.len() as u64) as usize;
        &self.bytes[self.range(number..number + 1)]
    }

    /// The keys of an event, counted over all requests.
    #[inline]
    pub fn keys(&self, event: u64) -> Keys {
        self.keys[(event % self.keys.len() as u64) as usize]
    }

    fn range(&self, requests: Range<usize>) -> Range<usize> {
        let start = requests.start.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[requests.end - 1]
    }
}

/// How a request is framed on the wire.
#[derive(Debug, Clone)]
pub enum Framing {
    /// No framing, and each event is a request by itself: to compare others with.
    Plain,
    /// A masked WebSocket message, each with a masking key of its own. Masking in advance is the one thing that costs
    /// less here than in a real client; the server cannot tell.
    WebSocket,
    /// `POST /events`, with these lines in its head.
    Http { path: String, headers: String },
    /// A message of another protocol, rendered with the number of its producer.
    Peer(fn(&mut Vec<u8>, usize, &[u8]), usize),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{session, user};
    use event_pipeline::wire::decoder::{Decoder, Message};
    use event_pipeline::wire::frame::Role;
    use serde_json::Value;

    const EVENTS: Events = Events { sessions: 20, users: 50, payload_bytes: 40 };

    fn check(text: &[u8], keys: Keys) {
        let event: Value = serde_json::from_slice(text).expect("an event");
        assert_eq!(event["event_type"], types()[keys.event_type as usize]);
        assert_eq!(event["session_id"], session(keys.session));
        assert_eq!(event["user_id"], user(keys.user));
        assert_eq!(event["source"], "loadtest-3");
        assert_eq!(event["payload"].to_string().len(), 40);
    }

    #[test]
    fn requests_are_what_they_say_and_begin_anew_at_the_end() {
        let requests = Requests::render(&EVENTS, 1, &Framing::Plain, 3, 64);
        assert_eq!(requests.ends.len(), 1_024);
        (0..2_000).for_each(|n| check(requests.get(n), requests.keys(n)));

        let mut out = Vec::new();
        requests.write(&mut out, 1_020, 3_000);
        assert_eq!(out, (1_020..4_020).flat_map(|n| requests.get(n)).copied().collect::<Vec<_>>());
    }

    #[test]
    fn framings_hold_the_same_events() {
        let plain = Requests::render(&EVENTS, 1, &Framing::Plain, 3, 64);
        let frames = Requests::render(&EVENTS, 8, &Framing::WebSocket, 3, 64);
        let mut decoder = Decoder::new(Role::Server, 1 << 20).with_received(&frames.bytes);
        for n in 0..128 {
            let Ok(Some(Message::Text(text))) = decoder.next() else { panic!("no text at {n}") };
            let array = (0..8).map(|i| String::from_utf8_lossy(plain.get(n * 8 + i)).into_owned()).collect::<Vec<_>>();
            assert_eq!(text, format!("[{}]", array.join(",")));
        }

        let framing = Framing::Http { path: "/events".into(), headers: "Host: h\r\n".into() };
        let posts = Requests::render(&EVENTS, 2, &framing, 3, 64);
        let (head, body) = str::from_utf8(posts.get(0)).expect("UTF-8").split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("POST /events HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-ndjson\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        assert!(body.lines().enumerate().all(|(n, line)| line.as_bytes() == plain.get(n as u64)));
    }
}
