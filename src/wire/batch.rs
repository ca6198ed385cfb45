//! Events encoded once. The thread that read an event renders the whole WebSocket frame of its
//! delivery, with two holes of fixed width; the writer fills in 12 digits of id and 27 bytes of time.
//! From then on the bytes are shared: by the 201 body, by every subscriber's socket, by everyone.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{self, OpCode};
use crate::event::{Columns, Event, EventId, EventTypes, Seq, Timestamp, TimestampText};

/// Events of one read or one request, encoded but neither numbered nor stored. Frames lie in one run
/// without gaps, so an unfiltered subscriber costs one slice a batch.
#[derive(Debug, Default)]
pub struct Batch {
    frames: Vec<u8>,
    /// Strings whose JSON spelling has escapes, as they are stored: without.
    decoded: Vec<u8>,
    rows: Vec<Row>,
    keyed: Vec<Keyed>,
}

/// Events that are stored once under an idempotency key. Hardly any batch has one.
#[derive(Debug, Clone)]
pub struct Keyed {
    pub key: Box<str>,
    /// Their places in the batch.
    pub events: Range<usize>,
    /// The places of all events that are stored with them or not at all.
    pub message: Range<usize>,
}

/// Where the parts of one event lie. Its frame begins where the one before it ends.
#[derive(Debug, Clone, Copy)]
struct Row {
    json: u32,
    end: u32,
    event_type: Span,
    source: Span,
    session_id: Span,
    user_id: Span,
    payload: Span,
}

/// A string within `frames`, or within `decoded` if `DECODED` is set.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    const NULL: Span = Span { start: u32::MAX, len: 0 };
    const DECODED: u32 = 1 << 31;

    #[inline]
    fn text<'b>(self, frames: &'b [u8], decoded: &'b [u8]) -> Option<&'b [u8]> {
        if self.start == u32::MAX {
            return None;
        }
        let home = if self.start & Self::DECODED == 0 { frames } else { decoded };
        let start = (self.start & !Self::DECODED) as usize;
        Some(&home[start..start + self.len as usize])
    }
}

impl Batch {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Bytes this batch holds in memory.
    pub fn bytes(&self) -> usize {
        self.frames.len() + self.decoded.len() + self.rows.len() * size_of::<Row>()
    }

    /// Undoes every push after the first `len`.
    pub fn truncate(&mut self, len: usize) {
        if len < self.rows.len() {
            self.frames.truncate(len.checked_sub(1).map_or(0, |last| self.rows[last].end as usize));
            self.rows.truncate(len);
            self.keyed.retain(|keyed| keyed.events.end <= len);
        }
    }

    /// The events with idempotency keys, in order.
    pub fn keyed(&self) -> &[Keyed] {
        &self.keyed
    }

    /// The events from `first` on came in one message: they are stored together or not at all.
    #[inline]
    pub fn end_message(&mut self, first: usize) {
        if !self.keyed.is_empty() {
            let message = first..self.len();
            let of_this = self.keyed.iter_mut().rev().take_while(|keyed| keyed.events.start >= first);
            of_this.for_each(|keyed| keyed.message = message.clone());
        }
    }

    /// Gives one key to all events together.
    pub fn set_key(&mut self, key: &str) {
        let all = 0..self.len();
        self.keyed = vec![Keyed { key: key.into(), events: all.clone(), message: all }];
    }

    /// Keeps only the events in places that pass.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let mut frames = Vec::with_capacity(self.frames.len());
        let mut rows = Vec::with_capacity(self.rows.len());
        let mut start = 0;
        for (index, row) in self.rows.iter().enumerate() {
            let end = row.end as usize;
            if keep(index) {
                rows.push(row.moved(start as u32, frames.len() as u32));
                frames.extend_from_slice(&self.frames[start..end]);
            }
            start = end;
        }
        (self.frames, self.rows, self.keyed) = (frames, rows, Vec::new());
    }

    /// Encodes one event at the end.
    #[inline]
    pub fn push(&mut self, event: &Event<'_>, types: &EventTypes) {
        let event_type: &str = types.name(event.event_type);
        let session_id = event.session_id.map(Json::of);
        let user_id = event.user_id.map(Json::of);
        let json_len = SKELETON_LEN
            + event_type.len()
            + event.source.len()
            + session_id.as_ref().map_or(NULL.len(), Json::len)
            + user_id.as_ref().map_or(NULL.len(), Json::len)
            + event.payload.len();
        self.frames.reserve(frame::head_len(json_len) + json_len);
        frame::write_head(&mut self.frames, OpCode::Text, json_len);
        let json = self.frames.len() as u32;
        self.frames.extend_from_slice(SKELETON[0]);
        self.frames.extend_from_slice(&[0; EventId::DIGITS]);
        self.frames.extend_from_slice(SKELETON[1]);
        let event_type = self.plain(event_type);
        self.frames.extend_from_slice(SKELETON[2]);
        let source = self.plain(event.source);
        self.frames.extend_from_slice(SKELETON[3]);
        let session_id = self.string(session_id);
        self.frames.extend_from_slice(SKELETON[4]);
        let user_id = self.string(user_id);
        self.frames.extend_from_slice(SKELETON[5]);
        let payload = self.plain(event.payload);
        self.frames.extend_from_slice(SKELETON[6]);
        self.frames.extend_from_slice(&[0; Timestamp::LEN]);
        self.frames.extend_from_slice(SKELETON[7]);
        let end = self.frames.len() as u32;
        debug_assert_eq!((end - json) as usize, json_len);
        if let Some(key) = event.idempotency_key {
            let events = self.rows.len()..self.rows.len() + 1;
            self.keyed.push(Keyed { key: key.into(), message: events.clone(), events });
        }
        self.rows.push(Row { json, end, event_type, source, session_id, user_id, payload });
    }

    /// Encodes an event that was read back, complete, at the end. Returns the bytes of its frame.
    pub fn push_stored(&mut self, event: &StoredEvent<'_>, text: &mut StoredText) -> usize {
        text.json.clear();
        event.write_json(&mut text.json, &mut text.time);
        self.frames.reserve(frame::head_len(text.json.len()) + text.json.len());
        frame::write_head(&mut self.frames, OpCode::Text, text.json.len());
        let json = self.frames.len() as u32;
        self.frames.extend_from_slice(&text.json);
        let end = self.frames.len() as u32;
        let after_payload = SKELETON[6].len() + Timestamp::LEN + SKELETON[7].len();
        let payload_len = event.payload.len() as u32;
        let payload = Span { start: end - after_payload as u32 - payload_len, len: payload_len };
        let mut decoded = |text: &str| {
            let start = self.decoded.len() as u32 | Span::DECODED;
            self.decoded.extend_from_slice(text.as_bytes());
            Span { start, len: text.len() as u32 }
        };
        let (event_type, source) = (decoded(event.event_type), decoded(event.source));
        let session_id = event.session_id.map_or(Span::NULL, &mut decoded);
        let user_id = event.user_id.map_or(Span::NULL, &mut decoded);
        self.rows.push(Row { json, end, event_type, source, session_id, user_id, payload });
        frame::head_len(text.json.len()) + text.json.len()
    }

    #[inline]
    fn plain(&mut self, text: &str) -> Span {
        let start = self.frames.len() as u32;
        self.frames.extend_from_slice(text.as_bytes());
        Span { start, len: text.len() as u32 }
    }

    #[inline]
    fn string(&mut self, json: Option<Json<'_>>) -> Span {
        match json {
            None => {
                self.frames.extend_from_slice(NULL);
                Span::NULL
            }
            Some(Json { text, escapes: 0 }) => {
                self.frames.push(b'"');
                let span = self.plain(text);
                self.frames.push(b'"');
                span
            }
            Some(json) => {
                json.write(&mut self.frames);
                let start = self.decoded.len() as u32 | Span::DECODED;
                self.decoded.extend_from_slice(json.text.as_bytes());
                Span { start, len: json.text.len() as u32 }
            }
        }
    }

    /// Fills the holes of event number `index`.
    #[inline]
    pub fn stamp(&mut self, index: usize, seq: Seq, time: &[u8; Timestamp::LEN]) {
        let row = &self.rows[index];
        let id = row.json as usize + SKELETON[0].len();
        self.frames[id..id + EventId::DIGITS].copy_from_slice(&seq.id().digits());
        let time_end = row.end as usize - SKELETON[7].len();
        self.frames[time_end - Timestamp::LEN..time_end].copy_from_slice(time);
    }

    #[inline]
    pub fn columns(&self, index: usize) -> Columns<'_> {
        self.rows[index].columns(&self.frames, &self.decoded)
    }

    /// The batch after its commit, for sharing. Every event must have been stamped, with `first` and
    /// the numbers that follow it.
    pub fn committed(self, first: Seq) -> Committed {
        self.shared(Seqs::From(first))
    }

    /// The batch for sharing, when its events were read back: those of these numbers.
    pub fn read_back(self, seqs: Vec<Seq>) -> Committed {
        assert_eq!(seqs.len(), self.len(), "each event has its number");
        self.shared(Seqs::Each(seqs))
    }

    fn shared(self, seqs: Seqs) -> Committed {
        Committed { seqs, frames: self.frames.into(), decoded: self.decoded, rows: self.rows }
    }
}

/// Room to work in for [`Batch::push_stored`].
#[derive(Debug, Default)]
pub struct StoredText {
    json: Vec<u8>,
    time: TimestampText,
}

impl Row {
    /// The same row when its frame begins elsewhere.
    fn moved(&self, from: u32, to: u32) -> Self {
        let place = |at: u32| at - from + to;
        let span = |span: Span| {
            let is_in_frame = span.start & Span::DECODED == 0;
            if is_in_frame { Span { start: place(span.start), ..span } } else { span }
        };
        Self {
            json: place(self.json),
            end: place(self.end),
            event_type: span(self.event_type),
            source: span(self.source),
            session_id: span(self.session_id),
            user_id: span(self.user_id),
            payload: span(self.payload),
        }
    }

    // Left to the compiler, an edit anywhere else may have the fan-out call it: 20 instructions more an event (2 %).
    #[inline(always)]
    fn columns<'b>(&self, frames: &'b [u8], decoded: &'b [u8]) -> Columns<'b> {
        let text = |span: Span| span.text(frames, decoded);
        Columns {
            event_type: text(self.event_type).expect("every event has a type"),
            source: text(self.source).expect("every event has a source"),
            session_id: text(self.session_id),
            user_id: text(self.user_id),
            payload: text(self.payload).expect("every event has a payload"),
        }
    }
}

/// A batch that is on disk: numbered, immutable, its bytes shared by all who deliver it.
#[derive(Debug)]
pub struct Committed {
    seqs: Seqs,
    frames: Bytes,
    decoded: Vec<u8>,
    rows: Vec<Row>,
}

/// The numbers of a batch's events.
#[derive(Debug)]
enum Seqs {
    /// Just committed: this one and those that follow it.
    From(Seq),
    /// Read back through a filter.
    Each(Vec<Seq>),
}

impl Committed {
    /// The number of the first event; there must be one, or the batch be just committed.
    pub fn first(&self) -> Seq {
        self.seq(0)
    }

    /// The number of an event. Those of a batch just committed follow each other without gap.
    pub fn seq(&self, index: usize) -> Seq {
        match &self.seqs {
            Seqs::From(first) => first.plus(index),
            Seqs::Each(seqs) => seqs[index],
        }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The WebSocket frames of all events, one after the other.
    pub fn frames(&self) -> Bytes {
        self.frames.clone()
    }

    /// The WebSocket frames of the events `from..to`.
    pub fn frames_between(&self, from: usize, to: usize) -> Bytes {
        self.frames.slice(self.frames_range(from, to))
    }

    fn frames_range(&self, from: usize, to: usize) -> Range<usize> {
        let start = from.checked_sub(1).map_or(0, |before| self.rows[before].end as usize);
        start..self.rows[to - 1].end as usize
    }

    /// The event itself, as JSON.
    pub fn json(&self, index: usize) -> Bytes {
        let row = &self.rows[index];
        self.frames.slice(row.json as usize..row.end as usize)
    }

    /// When the event was stored.
    pub fn time(&self, index: usize) -> Timestamp {
        let end = self.rows[index].end as usize - SKELETON[7].len();
        let text = std::str::from_utf8(&self.frames[end - Timestamp::LEN..end]).expect("digits are ASCII");
        Timestamp::parse_floor(text).expect("the writer spells times")
    }

    #[inline]
    pub fn columns(&self, index: usize) -> Columns<'_> {
        self.rows[index].columns(&self.frames, &self.decoded)
    }
}

/// Neighbouring events of a batch, shared.
#[derive(Debug, Clone)]
pub struct Run {
    batch: Arc<Committed>,
    from: u32,
    to: u32,
}

impl Run {
    /// The events `from..to`, at least one.
    pub fn new(batch: Arc<Committed>, from: usize, to: usize) -> Self {
        debug_assert!(from < to && to <= batch.len());
        Self { batch, from: from as u32, to: to as u32 }
    }

    /// All events of a batch that has any.
    pub fn whole(batch: Arc<Committed>) -> Self {
        let len = batch.len();
        Self::new(batch, 0, len)
    }

    /// Their WebSocket frames.
    pub fn frames(&self) -> Bytes {
        self.batch.frames_between(self.from as usize, self.to as usize)
    }

    pub fn batch(&self) -> &Arc<Committed> {
        &self.batch
    }

    /// Their places in the batch.
    pub fn range(&self) -> Range<usize> {
        self.from as usize..self.to as usize
    }

    /// Bytes of their frames.
    pub fn bytes(&self) -> usize {
        self.batch.frames_range(self.from as usize, self.to as usize).len()
    }

    /// Whether the event `next` of `batch` follows the last of these.
    pub fn is_before(&self, batch: &Arc<Committed>, next: usize) -> bool {
        Arc::ptr_eq(&self.batch, batch) && self.to as usize == next
    }

    /// Makes the run longer, up to the event before `to`.
    pub fn extend(&mut self, to: usize) {
        debug_assert!((self.to as usize) < to && to <= self.batch.len());
        self.to = to as u32;
    }
}

/// All that one transaction stored, in order: what the store hands on.
#[derive(Debug)]
pub struct Commit {
    pub batches: Vec<Arc<Committed>>,
    /// The number of the last event: after this commit everything up to it is stored.
    pub through: Seq,
}

impl Commit {
    /// Bytes of its events' frames.
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(|batch| batch.frames.len()).sum()
    }
}

/// An event read back from storage.
#[derive(Debug, Clone, Copy)]
pub struct StoredEvent<'r> {
    pub seq: Seq,
    pub time: Timestamp,
    pub event_type: &'r str,
    pub source: &'r str,
    pub session_id: Option<&'r str>,
    pub user_id: Option<&'r str>,
    pub payload: &'r str,
    /// The id it had in the service this one replaces, if it came from there.
    pub legacy_id: Option<&'r str>,
}

impl StoredEvent<'_> {
    pub fn columns(&self) -> Columns<'_> {
        Columns {
            event_type: self.event_type.as_bytes(),
            source: self.source.as_bytes(),
            session_id: self.session_id.map(str::as_bytes),
            user_id: self.user_id.map(str::as_bytes),
            payload: self.payload.as_bytes(),
        }
    }

    /// Appends the delivered JSON: the bytes a live subscriber got.
    pub fn write_json(&self, out: &mut Vec<u8>, time: &mut TimestampText) {
        match self.legacy_id {
            None => {
                out.extend_from_slice(SKELETON[0]);
                out.extend_from_slice(&self.seq.id().digits());
            }
            Some(id) => {
                out.extend_from_slice(SKELETON[0].strip_suffix(b"\"evt_").expect("the skeleton begins with an id"));
                let quoted = Json::of(id);
                let mut text = Vec::with_capacity(quoted.len());
                quoted.write(&mut text);
                out.extend_from_slice(&text[..text.len() - 1]);
            }
        }
        out.extend_from_slice(SKELETON[1]);
        Json::of(self.event_type).write_inside(out);
        out.extend_from_slice(SKELETON[2]);
        Json::of(self.source).write_inside(out);
        for (label, value) in [(SKELETON[3], self.session_id), (SKELETON[4], self.user_id)] {
            out.extend_from_slice(label);
            match value {
                Some(text) => Json::of(text).write(out),
                None => out.extend_from_slice(NULL),
            }
        }
        out.extend_from_slice(SKELETON[5]);
        out.extend_from_slice(self.payload.as_bytes());
        out.extend_from_slice(SKELETON[6]);
        out.extend_from_slice(&time.render(self.time));
        out.extend_from_slice(SKELETON[7]);
    }
}

const NULL: &[u8] = b"null";

/// What stands between the parts of a delivered event. Keys and their order are the contract's.
const SKELETON: [&[u8]; 8] = [
    br#"{"id":"evt_"#,
    br#"","event_type":""#,
    br#"","source":""#,
    br#"","session_id":"#,
    br#","user_id":"#,
    br#","payload":"#,
    br#","timestamp":""#,
    br#""}"#,
];

/// Bytes of a delivered event besides its own strings.
const SKELETON_LEN: usize = {
    let (mut len, mut i) = (EventId::DIGITS + Timestamp::LEN, 0);
    while i < SKELETON.len() {
        len += SKELETON[i].len();
        i += 1;
    }
    len
};

/// A string on its way into JSON.
struct Json<'t> {
    text: &'t str,
    /// Bytes that its escapes add.
    escapes: usize,
}

impl<'t> Json<'t> {
    #[inline]
    fn of(text: &'t str) -> Self {
        let extra = |b: u8| match b {
            b'"' | b'\\' => 1,
            0..0x20 => 5,
            _ => 0,
        };
        Self { text, escapes: text.bytes().map(extra).sum() }
    }

    /// Bytes of the JSON string with its quotes.
    fn len(&self) -> usize {
        self.text.len() + self.escapes + 2
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        self.write_inside(out);
        out.push(b'"');
    }

    fn write_inside(&self, out: &mut Vec<u8>) {
        if self.escapes == 0 {
            return out.extend_from_slice(self.text.as_bytes());
        }
        for &byte in self.text.as_bytes() {
            match byte {
                b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
                0..0x20 => {
                    let digit = |n: u8| b"0123456789abcdef"[n as usize];
                    out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
                }
                _ => out.push(byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event<'a>(types: &EventTypes, session_id: Option<&'a str>, payload: &'a str) -> Event<'a> {
        let event_type = types.get("timer_tick").expect("built in");
        Event { event_type, source: "s", session_id, user_id: Some("u"), payload, idempotency_key: None }
    }

    fn stamped(events: &[Event<'_>], types: &EventTypes) -> Committed {
        let mut batch = Batch::default();
        events.iter().for_each(|e| batch.push(e, types));
        for i in 0..batch.len() {
            let time = crate::event::TimestampText::default().render(Timestamp(i as i64));
            batch.stamp(i, Seq(7).plus(i), &time);
        }
        batch.committed(Seq(7))
    }

    #[test]
    fn live_and_stored_bytes_are_the_same() {
        let types = EventTypes::builtin();
        let long = format!(r#"{{"x":"{}"}}"#, "y".repeat(70_000));
        let sessions = [None, Some("plain é"), Some("quote \" slash \\ control \u{1}\n"), Some("")];
        let events: Vec<_> =
            sessions.iter().flat_map(|s| ["{}", r#"{"a":1}"#, &long].map(|p| event(&types, *s, p))).collect();
        let committed = stamped(&events, &types);
        let (mut read_back, mut text) = (Batch::default(), StoredText::default());
        for (i, event) in events.iter().enumerate() {
            let stored = StoredEvent {
                seq: Seq(7).plus(i),
                time: Timestamp(i as i64),
                event_type: "timer_tick",
                source: "s",
                session_id: event.session_id,
                user_id: Some("u"),
                payload: event.payload,
                legacy_id: None,
            };
            let mut json = Vec::new();
            stored.write_json(&mut json, &mut TimestampText::default());
            assert_eq!(committed.json(i), json);
            let value: serde_json::Value = serde_json::from_slice(&json).expect("valid JSON");
            assert_eq!(value["session_id"].as_str(), event.session_id);
            assert_eq!(committed.columns(i).session_id, event.session_id.map(str::as_bytes));
            assert_eq!(committed.columns(i).payload, event.payload.as_bytes());
            read_back.push_stored(&stored, &mut text);
        }
        let read_back = read_back.read_back((0..events.len()).map(|i| Seq(7).plus(i)).collect());
        assert_eq!(committed.frames(), read_back.frames());
        assert_eq!(committed.frames_between(0, events.len()), read_back.frames());
        for i in 0..events.len() {
            let (one, other) = (committed.columns(i), read_back.columns(i));
            assert_eq!((one.event_type, one.source), (other.event_type, other.source));
            assert_eq!((one.session_id, one.user_id, one.payload), (other.session_id, other.user_id, other.payload));
            assert_eq!((committed.seq(i), committed.time(i)), (read_back.seq(i), Timestamp(i as i64)));
        }
    }

    #[test]
    fn a_delivered_event_has_its_keys_in_the_contracts_order() {
        let types = EventTypes::builtin();
        let committed = stamped(&[event(&types, None, "{}")], &types);
        assert_eq!(
            committed.json(0),
            r#"{"id":"evt_000000000007","event_type":"timer_tick","source":"s","session_id":null,"user_id":"u","payload":{},"timestamp":"1970-01-01T00:00:00.000000Z"}"#
        );
    }

    #[test]
    fn what_is_kept_stays_as_it_was() {
        let types = EventTypes::builtin();
        let events: Vec<_> = [Some("a"), Some("\n"), None, Some("b\"")].map(|s| event(&types, s, "{}")).into();
        let mut batch = Batch::default();
        events.iter().for_each(|e| batch.push(e, &types));
        batch.retain(|i| i % 2 == 1);
        let kept = [events[1], events[3]];
        let mut expected = Batch::default();
        kept.iter().for_each(|e| expected.push(e, &types));
        assert_eq!(batch.frames, expected.frames);
        for (i, event) in kept.iter().enumerate() {
            assert_eq!(batch.columns(i).session_id, event.session_id.map(str::as_bytes));
            assert_eq!((batch.columns(i).event_type, batch.columns(i).payload), (&b"timer_tick"[..], &b"{}"[..]));
        }
    }

    #[test]
    fn truncate_undoes_pushes() {
        let types = EventTypes::builtin();
        let mut batch = Batch::default();
        batch.push(&event(&types, Some("a"), "{}"), &types);
        let bytes = batch.frames.clone();
        batch.push(&event(&types, Some("\n"), "{}"), &types);
        batch.truncate(1);
        assert_eq!((batch.len(), &batch.frames), (1, &bytes));
        batch.truncate(0);
        assert!(batch.is_empty() && batch.frames.is_empty());
    }

    /// An event's session, user, one text of its payload, and whether it is kept.
    type Drawn = (Option<String>, Option<String>, String, bool);

    proptest! {
        #[test]
        fn any_event_is_delivered_as_it_came(
            drawn in prop::collection::vec(any::<Drawn>(), 1..8),
            first in 1..1u64 << 40,
        ) {
            let types = EventTypes::builtin();
            let event_type = types.get("quiz_started").expect("built in");
            let payload_of = |text: &String| serde_json::json!({ "text": text, "n": text.len() }).to_string();
            let payloads: Vec<_> = drawn.iter().map(|(_, _, text, _)| payload_of(text)).collect();
            let mut batch = Batch::default();
            for ((session_id, user_id, ..), payload) in drawn.iter().zip(&payloads) {
                let (session_id, user_id) = (session_id.as_deref(), user_id.as_deref());
                let (source, idempotency_key) = ("s", None);
                batch.push(&Event { event_type, source, session_id, user_id, payload, idempotency_key }, &types);
            }
            batch.retain(|index| drawn[index].3);
            let kept: Vec<_> = drawn.iter().zip(&payloads).filter(|((.., is_kept), _)| *is_kept).collect();
            prop_assert_eq!(batch.len(), kept.len());
            for index in 0..batch.len() {
                let time = TimestampText::default().render(Timestamp(first as i64 + index as i64));
                batch.stamp(index, Seq(first).plus(index), &time);
            }
            let committed = batch.committed(Seq(first));
            for (index, ((session_id, user_id, ..), payload)) in kept.into_iter().enumerate() {
                let (columns, id) = (committed.columns(index), Seq(first).plus(index).id().to_string());
                prop_assert_eq!(columns.session_id, session_id.as_ref().map(String::as_bytes));
                prop_assert_eq!(columns.user_id, user_id.as_ref().map(String::as_bytes));
                prop_assert_eq!(columns.payload, payload.as_bytes());
                let payload: serde_json::Value = serde_json::from_str(payload).expect("JSON");
                let expected = serde_json::json!({
                    "id": id, "event_type": "quiz_started", "source": "s", "session_id": session_id,
                    "user_id": user_id, "payload": payload, "timestamp": committed.time(index).to_string(),
                });
                let delivered: serde_json::Value = serde_json::from_slice(&committed.json(index)).expect("JSON");
                prop_assert_eq!(delivered, expected);
            }
        }
    }
}
