//! The ids in an answer, found without parsing it as JSON: at half a million answers a second a parser would cost as
//! much as the server. An answer that is spelled in another way is parsed.

use anyhow::{Context, bail};
use serde_json::Value;

use crate::events::content;

/// What an answer to a publisher says.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// This many events were acknowledged.
    Ok(usize),
    /// The reason given.
    Refused(String),
}

/// The sequence number in an event id, such as `evt_00000000002a`.
#[inline]
pub fn sequence(id: &[u8]) -> Option<u64> {
    let digits: &[u8; 12] = id.strip_prefix(b"evt_")?.try_into().ok()?;
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

/// Length of an event id.
pub const ID_BYTES: usize = 16;

/// Reads an answer of `/ws/publish` and visits the ids in it.
#[inline]
pub fn of_socket(text: &[u8], mut visit: impl FnMut(u64)) -> anyhow::Result<Answer> {
    // Behind the id, the level that was reached may stand.
    let known = text.strip_prefix(br#"{"status":"ok","event_id":""#);
    if let Some(id) = known.and_then(|rest| sequence(rest.get(..ID_BYTES)?)) {
        visit(id);
        return Ok(Answer::Ok(1));
    }
    if let Some(list) = text.strip_prefix(br#"{"status":"ok","event_ids":["#)
        && let Some(count) = ids(list, &mut visit)
    {
        return Ok(Answer::Ok(count));
    }
    let answer: Value = parse(text)?;
    match answer["status"].as_str() {
        Some("ok") if answer["event_ids"].is_array() => parsed_ids(&answer["event_ids"], visit),
        Some("ok") => parsed_ids(&answer["event_id"], visit),
        Some("error") => Ok(Answer::Refused(answer["message"].as_str().unwrap_or_default().to_owned())),
        _ => bail!("the server answered {answer}"),
    }
}

/// Reads an answer of `POST /events` and visits the ids in it.
pub fn of_post(status: u16, body: &[u8], mut visit: impl FnMut(u64)) -> anyhow::Result<Answer> {
    if status != 201 {
        return Ok(Answer::Refused(format!("{status} {}", String::from_utf8_lossy(body))));
    }
    let known = body.strip_prefix(br#"{"id":""#).and_then(|rest| sequence(rest.get(..ID_BYTES)?));
    if let Some(id) = known {
        visit(id);
        return Ok(Answer::Ok(1));
    }
    // Before the list stand a count and two ids.
    const LIST: &[u8] = br#""ids":["#;
    let list = body.windows(LIST.len()).take(200).position(|window| window == LIST);
    if let Some(count) = list.and_then(|at| ids(&body[at + LIST.len()..], &mut visit)) {
        return Ok(Answer::Ok(count));
    }
    let answer: Value = parse(body)?;
    parsed_ids(if answer["ids"].is_array() { &answer["ids"] } else { &answer["id"] }, visit)
}

/// An event as a server gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    pub sequence: u64,
    /// See [`content`].
    pub content: u64,
}

/// Reads an event as it is delivered; `None` of any other message.
#[inline]
pub fn of_delivery(text: &[u8]) -> anyhow::Result<Option<Delivery>> {
    const HEAD: &[u8] = br#"{"id":""#;
    const TAIL: &[u8] = br#"","timestamp":"2026-01-15T10:30:00.000000Z"}"#;
    const TIME: &[u8] = br#","timestamp":""#;
    // Between both stands what was sent, with the comma that follows the id.
    let (from, to) = (HEAD.len() + ID_BYTES + 2, (text.len() + 1).saturating_sub(TAIL.len()));
    if let Some(rest) = text.strip_prefix(HEAD)
        && let Some(sequence) = rest.get(..ID_BYTES).and_then(sequence)
        && let Some(sent) = text.get(from..to)
        && text[to..].starts_with(TIME)
    {
        return Ok(Some(Delivery { sequence, content: content(sent) }));
    }
    of_another_spelling(text)
}

/// The same of an event with spaces, with fields in another order or another form of its timestamp.
#[cold]
fn of_another_spelling(text: &[u8]) -> anyhow::Result<Option<Delivery>> {
    let mut fields = match parse(text)? {
        Value::Object(fields) => fields,
        message => bail!("the server sent {message}"),
    };
    let Some(id) = fields.remove("id") else { return Ok(None) };
    let sequence = id.as_str().and_then(|id| sequence(id.as_bytes())).context("an id is not an event id")?;
    let mut sent = serde_json::Map::new();
    for name in ["event_type", "source", "session_id", "user_id", "payload"] {
        sent.insert(name.to_owned(), fields.remove(name).unwrap_or_default());
    }
    let sent = Value::Object(sent).to_string();
    Ok(Some(Delivery { sequence, content: content(&sent.as_bytes()[1..sent.len() - 1]) }))
}

/// Visits the ids of `"evt_…","evt_…"]`; none if the text is spelled in another way.
#[inline]
fn ids(list: &[u8], visit: &mut impl FnMut(u64)) -> Option<usize> {
    const STEP: usize = ID_BYTES + 3;
    let count = list.iter().position(|b| *b == b']')?.div_ceil(STEP);
    let id = |i: usize| match list.get(i * STEP..(i + 1) * STEP)? {
        [b'"', id @ .., b'"', b',' | b']'] => sequence(id),
        _ => None,
    };
    (0..count).all(|i| id(i).is_some()).then(|| (0..count).filter_map(id).for_each(visit))?;
    Some(count)
}

fn parse(text: &[u8]) -> anyhow::Result<Value> {
    serde_json::from_slice(text).with_context(|| format!("the server answered {:?}", String::from_utf8_lossy(text)))
}

fn parsed_ids(ids: &Value, mut visit: impl FnMut(u64)) -> anyhow::Result<Answer> {
    let ids = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
    for id in ids {
        let sequence = id.as_str().and_then(|id| sequence(id.as_bytes()));
        visit(sequence.with_context(|| format!("the server answered with {id} in place of an event id"))?);
    }
    Ok(Answer::Ok(ids.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read = fn(&[u8], &mut dyn FnMut(u64)) -> anyhow::Result<Answer>;

    #[test]
    fn ids_are_found_in_every_spelling() {
        let check = |read: Read, text: &str, expected: &[u64]| {
            let mut found = Vec::new();
            let answer = read(text.as_bytes(), &mut |id| found.push(id)).expect(text);
            assert_eq!((answer, &*found), (Answer::Ok(expected.len()), expected), "{text}");
        };
        let socket = |text: &[u8], visit: &mut dyn FnMut(u64)| of_socket(text, visit);
        check(socket, r#"{"status":"ok","event_id":"evt_00000000002a"}"#, &[42]);
        check(socket, r#"{"status": "ok", "event_id": "evt_00000000002a"}"#, &[42]);
        check(socket, r#"{"status":"ok","event_ids":["evt_000000000001"]}"#, &[1]);
        check(socket, r#"{"status":"ok","event_ids":["evt_000000000001","evt_0000000000ff"]}"#, &[1, 255]);
        check(socket, r#"{"status":"ok","event_ids":["evt_000000000001", "evt_0000000000ff"]}"#, &[1, 255]);
        check(socket, r#"{"status":"ok","event_ids":[]}"#, &[]);
        let post = |text: &[u8], visit: &mut dyn FnMut(u64)| of_post(201, text, visit);
        check(post, r#"{"id":"evt_ffffffffffff","event_type":"a"}"#, &[(1 << 48) - 1]);
        check(post, r#"{ "event_type":"a","id":"evt_000000000003"}"#, &[3]);
        check(
            post,
            r#"{"count":2,"first_id":"evt_000000000001","last_id":"evt_000000000002","ids":["evt_000000000001","evt_000000000002"]}"#,
            &[1, 2],
        );
        check(post, r#"{"ids": ["evt_000000000001","evt_000000000002"]}"#, &[1, 2]);
    }

    #[test]
    fn other_answers_are_not_taken_for_acknowledgements() {
        let never = |id| panic!("{id}");
        let refused = |reason: &str| Answer::Refused(reason.to_owned());
        let answer = of_socket(br#"{"status":"error","message":"no"}"#, never);
        assert_eq!(answer.expect("an answer"), refused("no"));
        assert_eq!(of_post(503, b"later", never).expect("an answer"), refused("503 later"));
        for text in ["", "{}", "x", r#"{"status":"ok"}"#, r#"{"status":"ok","event_id":"evt_00000000002G"}"#] {
            assert!(of_socket(text.as_bytes(), never).is_err(), "{text}");
            assert!(of_post(201, text.as_bytes(), never).is_err(), "{text}");
        }
    }

    #[test]
    fn deliveries_are_distinguished_from_other_messages() {
        let sent = r#""event_type":"a","source":"s","session_id":"x","user_id":null,"payload":{"b":1,"a":[2]}"#;
        let delivery = Some(Delivery { sequence: 10, content: content(sent.as_bytes()) });
        let check = |text: &str, expected| assert_eq!(of_delivery(text.as_bytes()).expect(text), expected, "{text}");
        check(&format!(r#"{{"id":"evt_00000000000a",{sent},"timestamp":"2026-01-15T10:30:00.000000Z"}}"#), delivery);
        check(&format!(r#"{{"id":"evt_00000000000a",{sent},"timestamp":"2026-01-15T10:30:00Z"}}"#), delivery);
        check(&format!(r#"{{"timestamp":"", {sent}, "id": "evt_00000000000a"}}"#), delivery);
        check(r#"{"type":"keepalive"}"#, None);
        let other = format!(r#"{{"id":"evt_00000000000a",{},"timestamp":"t"}}"#, sent.replace("[2]", "[3]"));
        assert_ne!(of_delivery(other.as_bytes()).expect("an event"), delivery);
        assert!(of_delivery(br#"{"id":7}"#).is_err() && of_delivery(b"7").is_err());
    }
}
