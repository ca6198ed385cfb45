//! Events encoded once. The thread that read an event renders the whole WebSocket frame of its delivery, with two blanks of
//! fixed width; the writer fills them with 12 digits of id and 27 bytes of time. After that the bytes are shared: by the
//! answer of the producer and by the sockets of all subscribers.

use std::ops::Range;

use super::committed::{Committed, Seqs};
use super::event_json::{JsonString, NULL, SKELETON, SKELETON_LEN, StoredEvent};
use super::frame::{self, OpCode};
use super::row::{Row, Span};
use crate::event::{
    Columns, Event, EventId, EventTypes, Field, Filter, Mismatch, Seq, Timestamp, TimestampText, ValueHash,
};

/// Events of one read or one request, encoded but neither numbered nor stored. Their frames follow each other without a
/// gap, so an unfiltered subscriber costs one slice a batch.
#[derive(Debug, Default)]
pub struct Batch {
    frames: Vec<u8>,
    /// Strings whose JSON has escapes, without these: as they are stored.
    decoded: Vec<u8>,
    rows: Vec<Row>,
    keyed: Vec<Keyed>,
}

/// The events of an idempotency key, which are stored once. Few batches have keys.
#[derive(Debug, Clone)]
pub struct Keyed {
    pub key: Box<str>,
    /// Their indexes in the batch.
    pub events: Range<usize>,
    /// The indexes of all events of their message, which is stored as a whole or not at all.
    pub message: Range<usize>,
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

    /// Removes the events after the first `len`.
    pub fn truncate(&mut self, len: usize) {
        if len < self.rows.len() {
            self.frames.truncate(len.checked_sub(1).map_or(0, |last| self.rows[last].end as usize));
            self.rows.truncate(len);
            self.keyed.retain(|keyed| keyed.events.end <= len);
        }
    }

    /// The idempotency keys of its events, in order.
    pub fn keyed(&self) -> &[Keyed] {
        &self.keyed
    }

    /// Notes that the events from `first` on came in one message, which is stored as a whole or not at all.
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

    /// The keys belong to a space: the same key in another space is another key. The empty space changes no usual key.
    pub fn set_space(&mut self, space: &str) {
        // No space has this character. So different pairs stay different, if keys of the empty space that have it get it in
        // front.
        const BETWEEN: char = '\u{1f}';
        for keyed in self.keyed.iter_mut().filter(|keyed| !space.is_empty() || keyed.key.contains(BETWEEN)) {
            keyed.key = format!("{space}{BETWEEN}{}", keyed.key).into();
        }
    }

    /// The first event from this index on that does not pass: its place behind that index, and why.
    pub fn mismatch<'f>(&self, from: usize, filter: &'f Filter) -> Option<(usize, Mismatch<'f>)> {
        (from..self.len()).find_map(|index| Some((index - from, filter.mismatch(&self.columns(index))?)))
    }

    /// Removes all events but those whose index passes.
    pub fn retain(&mut self, passes: impl Fn(usize) -> bool) {
        let mut frames = Vec::with_capacity(self.frames.len());
        let mut rows = Vec::with_capacity(self.rows.len());
        let mut start = 0;
        for (index, row) in self.rows.iter().enumerate() {
            let end = row.end as usize;
            if passes(index) {
                rows.push(row.moved(start as u32, frames.len() as u32));
                frames.extend_from_slice(&self.frames[start..end]);
            }
            start = end;
        }
        (self.frames, self.rows, self.keyed) = (frames, rows, Vec::new());
    }

    /// Encodes one event and appends it.
    #[inline]
    pub fn push(&mut self, event: &Event<'_>, types: &EventTypes) {
        let event_type: &str = types.name(event.event_type);
        let session_id = event.session_id.map(JsonString::of);
        let user_id = event.user_id.map(JsonString::of);
        let json_len = SKELETON_LEN
            + event_type.len()
            + event.source.len()
            + session_id.as_ref().map_or(NULL.len(), JsonString::len)
            + user_id.as_ref().map_or(NULL.len(), JsonString::len)
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
        let of = |value: Option<&str>| value.map_or(ValueHash::default(), |value| ValueHash::of(value.as_bytes()));
        let hashes = [types.hash(event.event_type), of(event.session_id), of(event.user_id), of(Some(event.source))];
        self.rows.push(Row { json, end, event_type, source, session_id, user_id, payload, hashes });
    }

    /// Appends an event that was read back, with its number and time. Returns the bytes of its frame.
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
        let hashes = Default::default();
        self.rows.push(Row { json, end, event_type, source, session_id, user_id, payload, hashes });
        frame::head_len(text.json.len()) + text.json.len()
    }

    #[inline]
    fn plain(&mut self, text: &str) -> Span {
        let start = self.frames.len() as u32;
        self.frames.extend_from_slice(text.as_bytes());
        Span { start, len: text.len() as u32 }
    }

    #[inline]
    fn string(&mut self, json: Option<JsonString<'_>>) -> Span {
        match json {
            None => {
                self.frames.extend_from_slice(NULL);
                Span::NULL
            }
            Some(JsonString { text, escapes: 0 }) => {
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

    /// Fills the blanks of an event.
    #[inline]
    pub fn stamp(&mut self, index: usize, seq: Seq, time: &[u8; Timestamp::LEN]) {
        let row = &self.rows[index];
        let id = row.json as usize + SKELETON[0].len();
        self.frames[id..id + EventId::DIGITS].copy_from_slice(&seq.id().digits());
        let time_end = row.end as usize - SKELETON[7].len();
        self.frames[time_end - Timestamp::LEN..time_end].copy_from_slice(time);
    }

    // `always`, as `Row::columns`: called, it costs the writer 140 instructions (2 %) an event.
    #[inline(always)]
    pub fn columns(&self, index: usize) -> Columns<'_> {
        self.rows[index].columns(&self.frames, &self.decoded)
    }

    /// The value of a field of an event, and its hash; `None` if the event has none.
    #[inline]
    pub fn field(&self, index: usize, field: Field) -> Option<(&[u8], ValueHash)> {
        let row = &self.rows[index];
        row.field(field, &self.frames, &self.decoded).map(|value| (value, row.hashes[field as usize]))
    }

    /// The hash of the value that an event has in a field.
    #[inline(always)]
    pub fn hash(&self, index: usize, field: Field) -> ValueHash {
        self.rows[index].hashes[field as usize]
    }

    /// Whether two events have the same source.
    #[inline]
    pub fn has_source_of(&self, one: usize, other: usize) -> bool {
        self.field(one, Field::Source) == self.field(other, Field::Source)
    }

    /// The batch after its commit, for sharing. Its events must have been stamped with `first` and the numbers that
    /// follow it.
    pub fn committed(self, first: Seq) -> Committed {
        self.shared(Seqs::From(first))
    }

    /// The batch for sharing, if its events were read back and have these numbers.
    pub fn read_back(self, seqs: Vec<Seq>) -> Committed {
        assert_eq!(seqs.len(), self.len(), "each event has its number");
        self.shared(Seqs::Each(seqs))
    }

    fn shared(self, seqs: Seqs) -> Committed {
        Committed { seqs, frames: self.frames.into(), decoded: self.decoded, rows: self.rows }
    }
}

/// Buffers that [`Batch::push_stored`] uses again for each event.
#[derive(Debug, Default)]
pub struct StoredText {
    json: Vec<u8>,
    time: TimestampText,
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
            let time = TimestampText::default().render(Timestamp(i as i64));
            batch.stamp(i, Seq(7).plus(i), &time);
        }
        batch.committed(Seq(7))
    }

    #[test]
    fn an_event_has_the_same_bytes_live_and_read_back() {
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
    fn events_that_are_retained_stay_as_they_were() {
        let types = EventTypes::builtin();
        let events: Vec<_> = [Some("a"), Some("\n"), None, Some("b\"")].map(|s| event(&types, s, "{}")).into();
        let mut batch = Batch::default();
        events.iter().for_each(|e| batch.push(e, &types));
        batch.retain(|i| i % 2 == 1);
        let retained = [events[1], events[3]];
        let mut expected = Batch::default();
        retained.iter().for_each(|e| expected.push(e, &types));
        assert_eq!(batch.frames, expected.frames);
        for (i, event) in retained.iter().enumerate() {
            assert_eq!(batch.columns(i).session_id, event.session_id.map(str::as_bytes));
            assert_eq!((batch.columns(i).event_type, batch.columns(i).payload), (&b"timer_tick"[..], &b"{}"[..]));
        }
    }

    #[test]
    fn truncating_removes_the_last_events() {
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

    /// An event's session, user, one text of its payload, and whether it is retained.
    type Drawn = (Option<String>, Option<String>, String, bool);

    proptest! {
        #[test]
        fn any_event_is_delivered_as_it_was_published(
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
            let retained: Vec<_> = drawn.iter().zip(&payloads).filter(|((.., is_retained), _)| *is_retained).collect();
            prop_assert_eq!(batch.len(), retained.len());
            for index in 0..batch.len() {
                let time = TimestampText::default().render(Timestamp(first as i64 + index as i64));
                batch.stamp(index, Seq(first).plus(index), &time);
            }
            let committed = batch.committed(Seq(first));
            for (index, ((session_id, user_id, ..), payload)) in retained.into_iter().enumerate() {
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
