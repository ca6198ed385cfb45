//! Events as producers send them, one or an array: the server's parser is compared with one over serde_json that follows
//! the contract word by word. Accepted events are rendered, delivered, read back and acknowledged, and stay the same.

use std::sync::{Arc, LazyLock};

use event_pipeline::event::{
    Columns, EventTypes, Fault, KEY_CHARS_MAX, Limits, PAYLOAD_DEPTH_MAX, Parser, REFERENCE_CHARS_MAX, REJECTIONS_MAX,
    SOURCE_CHARS_MAX, Seq, Timestamp, TimestampText,
};
use event_pipeline::record::{AckLevel, Failure, Outcomes};
use event_pipeline::wire::answer::{Ack, AckMode, AnswerWriter, Answered, Answers};
use event_pipeline::wire::batch::{Batch, StoredText};
use event_pipeline::wire::event_json::StoredEvent;
use event_pipeline::wire::frame;

use super::json::{Json, NotRead, Value};

pub static TYPES: LazyLock<Arc<EventTypes>> = LazyLock::new(|| Arc::new(EventTypes::builtin()));

/// So low that small inputs reach both limits.
pub const LIMITS: Limits = Limits { payload_keys_max: 4, payload_bytes_max: 300 };

const REF_BYTES_MAX: usize = 256;

/// What an accepted event must be.
#[derive(Debug)]
pub struct Expected<'t> {
    pub event_type: &'t str,
    pub source: &'t str,
    pub session_id: Option<&'t str>,
    pub user_id: Option<&'t str>,
    pub payload: Json<'t>,
    pub idempotency_key: Option<&'t str>,
}

/// The event that a value is by the contract, or every invalid field; a field that is `None` is the whole value.
pub fn expected<'t>(json: &'t Json<'t>) -> Result<Expected<'t>, Vec<Option<&'static str>>> {
    let Value::Object(members) = &json.value else { return Err(vec![None]) };
    let mut faults = Vec::new();
    if members.iter().any(|(_, value)| value.depth() > PAYLOAD_DEPTH_MAX) {
        faults.push(None);
    }
    let mut require = |holds: bool, field: &'static str| {
        if !holds {
            faults.push(Some(field));
        }
    };
    let text = |name| json.get(name).and_then(Json::text);
    let is_null = |name| json.get(name).is_none_or(|value| matches!(value.value, Value::Null));
    let (event_type, source) = (text("event_type").unwrap_or_default(), text("source").unwrap_or_default());
    require(TYPES.iter().any(|(name, _)| name == event_type), "event_type");
    let of_source = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    require((1..=SOURCE_CHARS_MAX).contains(&source.chars().count()) && source.chars().all(of_source), "source");
    for name in ["session_id", "user_id"] {
        let fits = text(name).is_some_and(|text| text.chars().count() <= REFERENCE_CHARS_MAX);
        require(is_null(name) || fits, name);
    }
    let payload = match json.get("payload") {
        None => Json { raw: "{}", value: Value::Object(Vec::new()) },
        Some(payload) => payload.clone(),
    };
    let keys = if let Value::Object(members) = &payload.value { members.len() } else { usize::MAX };
    require(keys <= LIMITS.payload_keys_max && payload.raw.len() <= LIMITS.payload_bytes_max, "payload");
    require(json.get("ref").is_none_or(|reference| reference.raw.len() <= REF_BYTES_MAX), "ref");
    let is_key = text("idempotency_key").is_some_and(|key| (1..=KEY_CHARS_MAX).contains(&key.chars().count()));
    require(is_null("idempotency_key") || is_key, "idempotency_key");
    if !faults.is_empty() {
        return Err(faults);
    }
    let (session_id, user_id, idempotency_key) = (text("session_id"), text("user_id"), text("idempotency_key"));
    Ok(Expected { event_type, source, session_id, user_id, payload, idempotency_key })
}

/// Compares an event's columns with the expected ones.
pub fn check_columns(columns: &Columns<'_>, expected: &Expected<'_>) {
    assert_eq!(columns.event_type, expected.event_type.as_bytes());
    assert_eq!(columns.source, expected.source.as_bytes());
    assert_eq!(columns.session_id, expected.session_id.map(str::as_bytes));
    assert_eq!(columns.user_id, expected.user_id.map(str::as_bytes));
    let payload = str::from_utf8(columns.payload).unwrap();
    if expected.payload.raw.contains(['\n', '\r']) {
        assert!(!payload.contains(['\n', '\r']), "{payload}");
        let compact = Json::read(payload).expect("the payload is JSON");
        assert!(compact.says_the_same(&expected.payload), "{payload}\n{}", expected.payload.raw);
    } else {
        assert_eq!(payload, expected.payload.raw);
    }
}

/// A text that is one event, or an array of them.
pub fn event(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let mut parser = Parser::new(TYPES.clone(), LIMITS);
    let mut read = || {
        let mut batch = Batch::default();
        let parsed = parser.parse(text, |event| batch.push(&event, &TYPES));
        if parsed.result.is_err() {
            batch.truncate(0);
        }
        (parsed, batch)
    };
    let (parsed, batch) = read();
    let (again, batch_again) = read();
    assert_eq!(parsed, again, "what a parser read before changes nothing");
    assert_eq!(batch.len(), batch_again.len());

    acknowledge(&parsed);
    let json = match Json::read(text) {
        Err(NotRead::Invalid) => return assert!(parsed.result.is_err(), "{:?}", parsed.result),
        Err(NotRead::Deep) => return assert!(parsed.result.is_err()),
        Ok(json) if json.depth() > PAYLOAD_DEPTH_MAX + 2 => {
            return assert_eq!(parsed.result.unwrap_err()[0].fault, Fault::TooDeep);
        }
        Ok(json) => json,
    };
    let (items, is_array) = match &json.value {
        Value::List(items) => (&items[..], true),
        _ => (std::slice::from_ref(&json), false),
    };
    let reference = json.get("ref").map(|reference| reference.raw).filter(|raw| raw.len() <= REF_BYTES_MAX);
    assert_eq!(parsed.reference, reference);
    let faults_of = |(place, item)| {
        let faults = expected(item).err().into_iter().flatten();
        faults.map(move |field| (is_array.then_some(place), field))
    };
    let mut refused: Vec<_> = items.iter().enumerate().flat_map(faults_of).collect();
    refused.extend(items.is_empty().then_some((None, None)));
    match &parsed.result {
        Ok(count) => assert_eq!((*count, refused), (is_array.then_some(items.len()), Vec::new())),
        Err(rejections) => {
            assert!(!rejections.iter().any(|rejection| matches!(rejection.fault, Fault::NotJson(_))), "{rejections:?}");
            let mut told: Vec<_> = rejections.iter().map(|told| (told.index, told.fault.field())).collect();
            let is_cut = told.len() == REJECTIONS_MAX;
            // A payload can have too many keys and too many bytes.
            told.dedup();
            if is_cut {
                refused.truncate(told.len());
            }
            return assert_eq!(told, refused);
        }
    }
    let expected: Vec<_> = items.iter().map(|item| expected(item).unwrap()).collect();
    let keys: Vec<_> = expected.iter().filter_map(|event| event.idempotency_key).collect();
    assert_eq!(batch.keyed().iter().map(|keyed| &*keyed.key).collect::<Vec<_>>(), keys);
    deliver(batch, &expected);
}

/// Numbers a batch, and checks its deliveries to live subscribers and to those that read it back.
fn deliver(mut batch: Batch, expected: &[Expected<'_>]) {
    let (first, start) = (Seq(0xfff), Timestamp(1_768_473_000_999_999));
    let mut text = TimestampText::default();
    for index in 0..batch.len() {
        batch.stamp(index, first.plus(index), &text.render(Timestamp(start.0 + index as i64)));
    }
    let committed = batch.committed(first);
    let (mut stored, mut room) = (Batch::default(), StoredText::default());
    for (index, expected) in expected.iter().enumerate() {
        check_columns(&committed.columns(index), expected);
        let (seq, time) = (committed.seq(index), committed.time(index));
        assert_eq!((seq, time), (first.plus(index), Timestamp(start.0 + index as i64)));

        let delivered = committed.json(index);
        let delivered = str::from_utf8(&delivered).unwrap();
        assert!(!delivered.contains(['\n', '\r']), "it would end a line: {delivered}");
        let json = Json::read(delivered).expect("what is delivered is JSON");
        let Value::Object(members) = &json.value else { panic!("{delivered}") };
        let names: Vec<_> = members.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["id", "event_type", "source", "session_id", "user_id", "payload", "timestamp"]);
        let said = |name| json.get(name).unwrap().text();
        assert_eq!(said("id"), Some(&*seq.id().to_string()));
        assert_eq!(said("timestamp"), Some(&*time.to_string()));
        assert_eq!((said("event_type"), said("source")), (Some(expected.event_type), Some(expected.source)));
        assert_eq!((said("session_id"), said("user_id")), (expected.session_id, expected.user_id));

        let columns = committed.columns(index);
        assert_eq!(json.get("payload").unwrap().raw.as_bytes(), columns.payload);
        let payload = str::from_utf8(columns.payload).unwrap();
        let Expected { event_type, source, session_id, user_id, .. } = *expected;
        let event = StoredEvent { seq, time, event_type, source, session_id, user_id, payload, legacy_id: None };
        stored.push_stored(&event, &mut room);
    }
    let stored = stored.read_back((0..expected.len()).map(|index| first.plus(index)).collect());
    assert_eq!(committed.frames(), stored.frames(), "stored and live bytes are the same");
    let frames = committed.frames();
    let payloads: Vec<_> = frame::payloads(&frames).collect();
    assert_eq!(payloads, (0..expected.len()).map(|index| stored.json(index)).collect::<Vec<_>>());
}

/// Every answer to a message is JSON with the producer's `ref`.
fn acknowledge(parsed: &event_pipeline::event::Parsed<'_>) {
    for level in [None, Some(AckLevel::Stored)] {
        for outcomes in [Ok(Outcomes::From(Seq(7), AckLevel::Synced)), Ok(Outcomes::Queued), Err(Failure::QueueFull)] {
            let mut answers = Answers::default();
            answers.note(parsed);
            let is_well = parsed.result.is_ok() && outcomes.is_ok();
            let mut frames = Vec::new();
            let mut writer = AnswerWriter::new(Ack { mode: AckMode::Each, level });
            writer.write(&Answered { outcomes, answers }, &mut frames);
            writer.finish(&mut frames);
            let payloads: Vec<_> = frame::payloads(&frames).collect();
            let [answer] = payloads[..] else { panic!("{} answers", payloads.len()) };
            let answer = Json::read(str::from_utf8(answer).unwrap()).expect("an answer is JSON");
            assert_eq!(answer.get("status").unwrap().text(), Some(if is_well { "ok" } else { "error" }));
            assert_eq!(answer.get("ref").map(|reference| reference.raw), parsed.reference);
        }
    }
}
