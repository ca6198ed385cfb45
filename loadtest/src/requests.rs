//! Requests, rendered before the clock starts.

use std::io::Write as _;
use std::ops::Range;

use event_pipeline::event::Timestamp;
use event_pipeline::wire::frame::{self, OpCode};
use memchr::memmem;

use crate::events::{Events, KEY_BYTES, KEY_FIELD, Keys, content};
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
    /// Where the idempotency key of each event stands, if it has one.
    blanks: Vec<Blank>,
    /// What makes the keys differ from those of other producers and other runs.
    salt: u64,
}

/// Where the digits of an idempotency key stand in `bytes`, and how they are masked.
struct Blank {
    at: usize,
    mask: [u8; 4],
}

impl Requests {
    /// The requests of one of `producers` producers, the same ones each time. A request holds `events_each`
    /// events: as one object, a JSON array, or, over HTTP, as lines.
    pub fn render(events: &Events, events_each: usize, framing: &Framing, producer: usize, producers: usize) -> Self {
        let mut generator = events.generator(producer);
        let count = (RENDERED_EVENTS / producers / events_each).max(1) * events_each;
        Self::of_events((0..count).map(|_| generator.render()), events_each, framing, producer)
    }

    /// The requests of one producer from events that are rendered already.
    pub fn of_events(
        events: impl IntoIterator<Item = (Vec<u8>, Keys)>,
        events_each: usize,
        framing: &Framing,
        producer: usize,
    ) -> Self {
        let mut masks = Random::new(producer);
        let (bytes, ends, keys, blanks) = Default::default();
        let salt = (Timestamp::now().0 as u64) << 16 | producer as u64;
        let mut requests = Self { bytes, ends, keys, events_each, blanks, salt };
        let is_array = matches!(framing, Framing::WebSocket) && events_each > 1;
        let [start, between, end]: [&[u8]; 3] = if is_array { [b"[", b",", b"]"] } else { [b"", b"\n", b""] };
        let mut body = Vec::new();
        for (text, keys) in events {
            body.extend_from_slice(if body.is_empty() { start } else { between });
            body.extend_from_slice(&text);
            requests.keys.push(match framing {
                // What comes back of another server is what was sent, and nothing else.
                Framing::Peer(..) => Keys { content: content(&text), ..keys },
                _ => keys,
            });
            if requests.keys.len().is_multiple_of(events_each) {
                body.extend_from_slice(end);
                requests.add(&body, framing, &mut masks);
                body.clear();
            }
        }
        requests
    }

    fn add(&mut self, body: &[u8], framing: &Framing, masks: &mut Random) {
        match framing {
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
        let start = self.bytes.len().saturating_sub(body.len());
        for field in memmem::find_iter(body, KEY_FIELD) {
            let in_body = field + KEY_FIELD.len();
            // The masking key of a WebSocket message stands before its payload.
            let mask = match framing {
                Framing::WebSocket => std::array::from_fn(|i| self.bytes[start - 4 + (in_body + i) % 4]),
                _ => [0; 4],
            };
            self.blanks.push(Blank { at: start + in_body, mask });
        }
        self.ends.push(self.bytes.len());
    }

    pub fn events_each(&self) -> usize {
        self.events_each
    }

    /// Appends `count` requests, beginning with number `first`.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>, first: u64, count: usize) {
        let (mut number, mut first, mut left) = (first, (first % self.ends.len() as u64) as usize, count);
        while left > 0 {
            let run = left.min(self.ends.len() - first);
            let (range, base) = (self.range(first..first + run), out.len());
            out.extend_from_slice(&self.bytes[range.clone()]);
            if !self.blanks.is_empty() {
                let events = first * self.events_each..(first + run) * self.events_each;
                for (event, Blank { at, mask }) in (number * self.events_each as u64..).zip(&self.blanks[events]) {
                    let key = format!("{:016x}", self.salt.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(event));
                    let digits = &mut out[base + at - range.start..][..KEY_BYTES];
                    for (n, (digit, of_key)) in digits.iter_mut().zip(key.bytes()).enumerate() {
                        *digit = of_key ^ mask[n % 4];
                    }
                }
            }
            (number, left, first) = (number + run as u64, left - run, 0);
        }
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
    use crate::events::PayloadBytes;
    use event_pipeline::wire::decoder::{Decoder, Message};
    use event_pipeline::wire::frame::Role;

    const EVENTS: Events =
        Events { sessions: 20, users: 50, skew: 0.0, payload_bytes: PayloadBytes(Some(40)), idempotency_keys: false };

    #[test]
    fn framings_hold_the_same_events_and_begin_anew_at_the_end() {
        let mut generator = EVENTS.generator(3);
        let events = (0..1_024).map(|_| generator.render()).collect::<Vec<_>>();
        let text = |event: usize| str::from_utf8(&events[event % 1_024].0).expect("UTF-8");
        let frames = Requests::render(&EVENTS, 8, &Framing::WebSocket, 3, 64);
        let mut out = Vec::new();
        frames.write(&mut out, 120, 300);
        let mut decoder = Decoder::new(Role::Server, 1 << 20).with_received(&out);
        for n in 120..420 {
            let Ok(Some(Message::Text(array))) = decoder.next() else { panic!("no text at {n}") };
            assert_eq!(array, format!("[{}]", (n * 8..n * 8 + 8).map(text).collect::<Vec<_>>().join(",")));
        }

        let framing = Framing::Http { path: "/events".into(), headers: "Host: h\r\n".into() };
        let posts = Requests::render(&EVENTS, 2, &framing, 3, 64);
        let mut out = Vec::new();
        posts.write(&mut out, 1, 1);
        let (head, body) = str::from_utf8(&out).expect("UTF-8").split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("POST /events HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-ndjson\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        assert_eq!(body, [text(2), text(3)].join("\n"));
    }

    #[test]
    fn each_event_has_an_idempotency_key_of_its_own() {
        let keyed = Events { idempotency_keys: true, ..EVENTS };
        let framing = Framing::Http { path: "/events".into(), headers: String::new() };
        let key = |event: &str| {
            let event: serde_json::Value = serde_json::from_str(event).expect("an event");
            event["idempotency_key"].as_str().expect("a key").to_owned()
        };
        let mut keys = std::collections::HashSet::new();
        for producer in 0..2 {
            let (mut frames, mut posts) = (Vec::new(), Vec::new());
            Requests::render(&keyed, 3, &Framing::WebSocket, producer, 64).write(&mut frames, 300, 100);
            Requests::render(&keyed, 3, &framing, producer + 2, 64).write(&mut posts, 340, 2);
            let mut decoder = Decoder::new(Role::Server, 1 << 20).with_received(&frames);
            for _ in 0..100 {
                let Ok(Some(Message::Text(array))) = decoder.next() else { panic!("no text") };
                let array: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(array).expect("an array");
                keys.extend(array.iter().map(|event| key(event.get())));
            }
            let posts = String::from_utf8(posts).expect("UTF-8");
            keys.extend(
                posts
                    .split("POST ")
                    .skip(1)
                    .flat_map(|post| post.split_once("\r\n\r\n").expect("a head").1.lines())
                    .map(key),
            );
        }
        assert_eq!(keys.len(), 2 * (100 + 2) * 3);
        assert!(keys.iter().all(|key| key.len() == KEY_BYTES));
    }
}
