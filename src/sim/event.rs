//! Events, and the bytes each has to become.

use super::random::Random;
use crate::event::{Event, EventTypes, Field, Seq, Timestamp};
use crate::wire::Batch;

pub const TYPES: [&str; 3] = ["quiz_started", "timer_tick", "answer_submitted"];
pub const SOURCES: [&str; 2] = ["quiz-engine", "timer"];
pub const SESSIONS: [&str; 3] = ["class-a", "class-b", "\u{fc}\"c"];
pub const USERS: [&str; 4] = ["1", "2", "3", "4"];
/// The numbers that payloads hold.
pub const NUMBERS: [u64; 6] = [0, 1, 2, 3, 4, 5];
const PADDING_BYTES_MAX: u64 = 600;
/// Larger than the frame of any event.
pub const EVENT_BYTES_MAX: usize = PADDING_BYTES_MAX as usize + 300;

#[derive(Clone)]
pub struct ModelEvent {
    event_type: &'static str,
    source: &'static str,
    session_id: Option<&'static str>,
    user_id: Option<&'static str>,
    pub number: Option<u64>,
    payload: String,
    pub key: Option<String>,
    pub time: Timestamp,
    pub is_deleted: bool,
}

impl ModelEvent {
    pub fn random(random: &mut Random) -> Self {
        let padding = if random.one_in(4) { random.below(PADDING_BYTES_MAX) } else { 0 };
        let padding = "x".repeat(padding as usize);
        let number = (!random.one_in(8)).then(|| random.pick(&NUMBERS));
        let payload = match number {
            Some(number) => format!(r#"{{"n":{number},"padding":"{padding}"}}"#),
            None => format!(r#"{{"padding":"{padding}"}}"#),
        };
        Self {
            event_type: random.pick(&TYPES),
            source: random.pick(&SOURCES),
            session_id: (!random.one_in(4)).then(|| random.pick(&SESSIONS)),
            user_id: (!random.one_in(4)).then(|| random.pick(&USERS)),
            number,
            payload,
            key: None,
            time: Timestamp::default(),
            is_deleted: false,
        }
    }

    pub fn push_to(&self, batch: &mut Batch, types: &EventTypes) {
        let Self { source, session_id, user_id, ref payload, ref key, .. } = *self;
        let event_type = types.get(self.event_type).expect("built in");
        batch.push(&Event { event_type, source, session_id, user_id, payload, idempotency_key: key.as_deref() }, types);
    }

    pub fn field(&self, field: Field) -> Option<&'static str> {
        match field {
            Field::Type => Some(self.event_type),
            Field::Source => Some(self.source),
            Field::Session => self.session_id,
            Field::User => self.user_id,
        }
    }

    pub fn json(&self, seq: Seq) -> String {
        let Self { event_type, source, payload, time, .. } = self;
        let [session, user] = [self.session_id, self.user_id].map(|id| serde_json::to_string(&id).expect("JSON"));
        let (id, ids) = (seq.id(), format!(r#""session_id":{session},"user_id":{user}"#));
        let fields = format!(r#""event_type":"{event_type}","source":"{source}",{ids},"payload":{payload}"#);
        format!(r#"{{"id":"{id}",{fields},"timestamp":"{time}"}}"#)
    }
}
