//! From CloudEvents 1.0 to events and back: one in JSON (*structured* mode), an array of them (*batch*), and one in HTTP
//! headers (*binary* mode). No input or output.
//!
//! | CloudEvent | here | on the way in | on the way out |
//! |---|---|---|---|
//! | `specversion` | | must be `1.0` | `1.0` |
//! | `type` | `event_type` | required | always |
//! | `source` | `source` | required | always |
//! | `id` | `id` | required; with the source it becomes `idempotency_key`, `<source>/<id>` | the event's own id |
//! | `sessionid`, else `subject` | `session_id` | optional | `sessionid`, left out if the event has none |
//! | `userid` | `user_id` | optional | left out if the event has none |
//! | `datacontenttype` | | `application/json`, another `…+json`, or absent | `application/json` |
//! | `data` | `payload` | an object; absent and null are no payload | always, byte for byte |
//! | `time` | `timestamp` | not kept | the time of the commit |
//! | all others | | not kept | |
//!
//! `source` and `id` identify a CloudEvent, so the same pair again is a duplicate. A producer cannot choose our ids, because
//! they number the events in commit order. It cannot choose our timestamps either: they follow the same order, and a cursor
//! would miss an event with an earlier one. A producer that needs its own time puts it into `data`.
//!
//! Only the rules of CloudEvents are checked here. The result is the text of an event, which
//! [`Parser`](crate::event::Parser) checks like every other one.

use std::borrow::Cow;
use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::refusal::ValidationError;

/// The content type of one CloudEvent.
pub const MEDIA_TYPE: &str = "application/cloudevents+json";
/// The content type of an array of CloudEvents.
pub const BATCH_MEDIA_TYPE: &str = "application/cloudevents-batch+json";

const SPEC_VERSION: &str = "1.0";
const DATA_CONTENT_TYPE: &str = "application/json";

/// A CloudEvent translated into the JSON of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// The index in a batch.
    pub index: Option<usize>,
    /// The event as JSON, without the invalid attributes; `None` if the text is not a JSON object.
    pub event: Option<String>,
    /// Every rule of CloudEvents that it breaks.
    pub rejections: Vec<NotACloudEvent>,
}

/// Translates a structured CloudEvent; `index` is that in a batch.
pub fn of_json(json: &str, index: Option<usize>) -> Translation {
    let refused = |fault| NotACloudEvent { part: Part::Body, index, fault };
    // A map, because of two equal keys the last counts, as in every event; a derived struct would refuse them.
    let members: BTreeMap<String, &RawValue> = match serde_json::from_str(json) {
        Ok(members) => members,
        Err(error) => {
            let rejections = vec![refused(Fault::reading(&error, Fault::NotAnObject))];
            return Translation { index, event: None, rejections };
        }
    };
    // The JSON format lets an attribute that is not set be null.
    let member = |name| members.get(name).copied().filter(|value| value.get() != "null");
    let binary_data = member("data_base64").map(|_| Fault::BinaryData);
    let attribute = |name| match member(name).map(RawValue::get) {
        None => Ok(None),
        Some(string) if string.starts_with('"') => {
            let text: String = serde_json::from_str(string).map_err(|error| Fault::NotJson(error.to_string()))?;
            Ok(Some(text.into()))
        }
        Some(_) => Err(Fault::NotAString(name)),
    };
    let (event, faults) = translate(attribute, member("data"), binary_data);
    Translation { index, event: Some(event), rejections: faults.into_iter().map(refused).collect() }
}

/// Translates a request in binary mode: `get` gives the value of a header by its lower-case name, `body` is the data.
pub fn of_headers<'h>(get: impl Fn(&str) -> Option<&'h str>, body: &str) -> Translation {
    let attribute = |name| match name {
        // This attribute is HTTP's own header, and has HTTP's spelling.
        "datacontenttype" => Ok(get("content-type").map(Cow::Borrowed)),
        _ => get(&format!("ce-{name}")).map(|value| decoded(value).ok_or(Fault::NotUtf8(name))).transpose(),
    };
    // The body is put into an object, so it has to be one whole value: other text could end the object and add fields.
    let data: Result<Option<&RawValue>, Fault> = match body.trim_ascii() {
        "" | "null" => Ok(None),
        _ => serde_json::from_str(body).map(Some).map_err(|error| Fault::NotJson(error.to_string())),
    };
    let (data, fault) = data.map_or_else(|fault| (None, Some(fault)), |data| (data, None));
    let (event, faults) = translate(attribute, data, fault);
    let refused = |fault: Fault| {
        let part = if fault.field().is_some() { Part::Header } else { Part::Body };
        NotACloudEvent { part, index: None, fault }
    };
    Translation { index: None, event: Some(event), rejections: faults.into_iter().map(refused).collect() }
}

/// The CloudEvents of a batch.
pub fn items(json: &str) -> Result<Vec<&RawValue>, NotACloudEvent> {
    let refused = |fault| NotACloudEvent { part: Part::Body, index: None, fault };
    serde_json::from_str(json).map_err(|error| refused(Fault::reading(&error, Fault::NotAnArray)))
}

/// Appends the structured CloudEvent of a delivered event's JSON.
pub fn of_event(json: &[u8], out: &mut Vec<u8>) {
    let event: Delivered<'_> = serde_json::from_slice(json).expect("a delivered event is JSON");
    let cloud_event = CloudEvent {
        specversion: SPEC_VERSION,
        id: event.id,
        event_type: event.event_type,
        source: event.source,
        time: event.timestamp,
        sessionid: event.session_id,
        userid: event.user_id,
        datacontenttype: DATA_CONTENT_TYPE,
        data: event.payload,
    };
    serde_json::to_writer(out, &cloud_event).expect("writing JSON into memory cannot fail");
}

/// Why a text or a request is not a CloudEvent that the server accepts, and the part at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{fault}", .index.map(|index| format!("Event {index}: ")).unwrap_or_default())]
pub struct NotACloudEvent {
    pub part: Part,
    /// The index in a batch.
    pub index: Option<usize>,
    pub fault: Fault,
}

/// The part of a request that is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Header,
    Body,
}

/// What can be wrong with a CloudEvent. The text of each is for the client that sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("Not valid JSON: {0}")]
    NotJson(String),
    #[error("A CloudEvent is a JSON object")]
    NotAnObject,
    #[error("A batch of CloudEvents is a JSON array")]
    NotAnArray,
    #[error("Attribute '{0}' is required")]
    Missing(&'static str),
    #[error("Attribute '{0}' must not be empty")]
    Empty(&'static str),
    #[error("Attribute '{0}' must be a string")]
    NotAString(&'static str),
    #[error("Attribute '{0}' is not percent-encoded UTF-8")]
    NotUtf8(&'static str),
    #[error("Attribute 'specversion' must be '{SPEC_VERSION}', no other version is understood")]
    OtherVersion,
    #[error("Attribute 'datacontenttype' must be application/json or end in +json, no other data is kept")]
    DataNotJson,
    #[error("Binary data is not kept: send a JSON object as 'data' instead of 'data_base64'")]
    BinaryData,
}

impl Fault {
    /// What serde_json's error means: `expected` if the JSON has another shape, otherwise that the text is not JSON.
    fn reading(error: &serde_json::Error, expected: Fault) -> Self {
        if error.is_data() { expected } else { Self::NotJson(error.to_string()) }
    }

    /// The attribute at fault; `None` if the fault is not that of one attribute.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::Missing(name) | Self::Empty(name) | Self::NotAString(name) | Self::NotUtf8(name) => Some(name),
            Self::OtherVersion => Some("specversion"),
            Self::DataNotJson => Some("datacontenttype"),
            Self::BinaryData => Some("data_base64"),
            Self::NotJson(_) | Self::NotAnObject | Self::NotAnArray => None,
        }
    }

    /// A word for programs; it does not change. Faults that events have, too, have the same word there.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotJson(_) => "json_invalid",
            Self::NotAnObject => "object_type",
            Self::NotAnArray => "list_type",
            Self::Missing(_) => "missing",
            Self::Empty(_) => "string_too_short",
            Self::NotAString(_) => "wrong_type",
            Self::NotUtf8(_) => "string_unicode",
            Self::OtherVersion | Self::DataNotJson => "enum",
            Self::BinaryData => "extra_forbidden",
        }
    }
}

impl From<&NotACloudEvent> for ValidationError {
    fn from(refused: &NotACloudEvent) -> Self {
        let part = match refused.part {
            Part::Header => "header",
            Part::Body => "body",
        };
        let NotACloudEvent { index, fault, .. } = refused;
        Self::at(part, *index, fault.field(), refused.to_string(), fault.kind())
    }
}

/// An event as a producer publishes it, without the attributes that are invalid.
#[derive(Serialize)]
struct Published<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    event_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
}

/// An event as it is delivered. Its values are not decoded, so they keep their spelling.
#[derive(Deserialize)]
struct Delivered<'a> {
    #[serde(borrow)]
    id: &'a RawValue,
    event_type: &'a RawValue,
    source: &'a RawValue,
    session_id: Option<&'a RawValue>,
    user_id: Option<&'a RawValue>,
    payload: &'a RawValue,
    timestamp: &'a RawValue,
}

/// A delivered event as a structured CloudEvent.
#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: &'a RawValue,
    #[serde(rename = "type")]
    event_type: &'a RawValue,
    source: &'a RawValue,
    time: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessionid: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    userid: Option<&'a RawValue>,
    datacontenttype: &'static str,
    data: &'a RawValue,
}

/// The text of a header's value: without its double quotes, which older senders use, and percent-decoded. `None` if the
/// result is not UTF-8.
fn decoded(value: &str) -> Option<Cow<'_, str>> {
    let Some(quoted) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return percent_decode_str(value).decode_utf8().ok();
    };
    let mut plain = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(char) = chars.next() {
        plain.push(if char == '\\' { chars.next().unwrap_or(char) } else { char });
    }
    percent_decode_str(&plain).decode_utf8().ok().map(|text| text.into_owned().into())
}

/// The translation of attributes, from JSON or headers; `fault` is that of the data.
fn translate<'a>(
    attribute: impl Fn(&'static str) -> Result<Option<Cow<'a, str>>, Fault>,
    data: Option<&RawValue>,
    fault: Option<Fault>,
) -> (String, Vec<Fault>) {
    let mut faults: Vec<_> = fault.into_iter().collect();
    let mut or_none = |attribute: Result<Option<Cow<'a, str>>, Fault>| {
        attribute.unwrap_or_else(|fault| {
            faults.push(fault);
            None
        })
    };
    let filled = |name| match attribute(name)? {
        Some(text) if text.is_empty() => Err(Fault::Empty(name)),
        text => Ok(text),
    };
    let required = |name| filled(name)?.ok_or(Fault::Missing(name)).map(Some);
    let version = required("specversion");
    or_none(version.and_then(|version| match version.as_deref() == Some(SPEC_VERSION) {
        true => Ok(version),
        false => Err(Fault::OtherVersion),
    }));
    let (id, source, event_type) = (or_none(required("id")), or_none(required("source")), or_none(required("type")));
    or_none(attribute("datacontenttype").and_then(|media_type| match media_type.as_deref().is_none_or(is_json) {
        true => Ok(media_type),
        false => Err(Fault::DataNotJson),
    }));
    for not_kept in ["time", "dataschema"] {
        or_none(filled(not_kept));
    }
    let subject = or_none(filled("subject"));
    let (session_id, user_id) = (or_none(attribute("sessionid")).or(subject), or_none(attribute("userid")));
    let event = Published {
        event_type: event_type.as_deref(),
        source: source.as_deref(),
        session_id: session_id.as_deref(),
        user_id: user_id.as_deref(),
        payload: data,
        // No two pairs have the same key: the source of an event has no '/', and other sources are refused later.
        idempotency_key: source.as_deref().zip(id.as_deref()).map(|(source, id)| format!("{source}/{id}")),
    };
    (serde_json::to_string(&event).expect("strings and raw JSON can be serialized"), faults)
}

/// Whether data of this content type, whatever its parameters, is JSON.
fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    essence == DATA_CONTENT_TYPE || essence.ends_with("+json")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::event::{EventTypes, Limits, Parser};

    const MINIMAL: &str = r#""specversion":"1.0","id":"1","source":"s","type":"timer_tick""#;

    fn well(translated: Translation) -> Result<String, Vec<NotACloudEvent>> {
        if translated.rejections.is_empty() {
            Ok(translated.event.expect("an event"))
        } else {
            Err(translated.rejections)
        }
    }

    fn to_event(json: &str) -> Result<String, Vec<NotACloudEvent>> {
        well(of_json(json, None))
    }

    /// Each of a batch.
    fn to_events(json: &str) -> Vec<Result<String, Vec<NotACloudEvent>>> {
        let items = items(json).expect("a batch");
        items.iter().enumerate().map(|(index, item)| well(of_json(item.get(), Some(index)))).collect()
    }

    #[track_caller]
    fn check(cloud_event: &str, event: &str) {
        assert_eq!(to_event(cloud_event).as_deref(), Ok(event));
        assert_eq!(to_events(&format!(" [{cloud_event},\n{cloud_event}]")), [event, event].map(|e| Ok(e.to_owned())));
    }

    #[track_caller]
    fn check_refused(cloud_event: &str, fault: Fault) {
        let refused = |index| Err(vec![NotACloudEvent { part: Part::Body, index, fault: fault.clone() }]);
        assert_eq!(to_event(cloud_event), refused(None));
        assert_eq!(to_events(&format!("[{{{MINIMAL}}},{cloud_event}]"))[1], refused(Some(1)));
    }

    #[track_caller]
    fn binary_mode(headers: &[(&str, &str)], body: &str) -> Result<String, Vec<NotACloudEvent>> {
        let minimal = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "s"), ("ce-type", "timer_tick")];
        let get =
            |name: &str| headers.iter().chain(&minimal).find(|(known, _)| *known == name).map(|(_, value)| *value);
        well(of_headers(get, body))
    }

    #[test]
    fn a_cloud_event_becomes_an_event() {
        check(&format!("{{{MINIMAL}}}"), r#"{"event_type":"timer_tick","source":"s","idempotency_key":"s/1"}"#);
        check(
            r#"{ "data" : { "n":1e400, "f":0.10, "b":1,"a":2 }, "userid":"u", "sessionid":"x \"é\"", "subject":"no",
                "type":"quiz_started", "source":"quiz.web", "id":"a/b", "specversion":"1\u002e0", "other":[1],
                "time":"2026-01-15T10:30:00Z", "datacontenttype":"application/json; charset=utf-8" }"#,
            r#"{"event_type":"quiz_started","source":"quiz.web","session_id":"x \"é\"","user_id":"u","payload":{ "n":1e400, "f":0.10, "b":1,"a":2 },"idempotency_key":"quiz.web/a/b"}"#,
        );
        for (more, becomes) in [
            (r#""subject":"t""#, r#""session_id":"t","#),
            (r#""sessionid":null,"subject":"t""#, r#""session_id":"t","#),
            (r#""sessionid":"","subject":"t""#, r#""session_id":"","#),
            (r#""userid":"v""#, r#""user_id":"v","#),
            (r#""userid":"v","userid":"w""#, r#""user_id":"w","#),
            (r#""data":null"#, ""),
            (r#""data":{},"data_base64":null"#, r#""payload":{},"#),
            (r#""data":[1]"#, r#""payload":[1],"#),
            (r#""datacontenttype":"Application/Vnd.Quiz+JSON""#, ""),
            (r#""time":null,"dataschema":"https://example.com/s""#, ""),
        ] {
            check(
                &format!("{{{MINIMAL},{more}}}"),
                &format!(r#"{{"event_type":"timer_tick","source":"s",{becomes}"idempotency_key":"s/1"}}"#),
            );
        }
        assert!(to_events("[]").is_empty());
    }

    #[test]
    fn a_cloud_event_that_breaks_a_rule_is_refused() {
        for text in ["[]", "1", "null", "\"x\""] {
            check_refused(text, Fault::NotAnObject);
        }
        for name in ["specversion", "id", "source", "type"] {
            let with = |value: &str| format!("{{{MINIMAL},\"{name}\":{value}}}");
            check_refused(&with("null"), Fault::Missing(name));
            check_refused(&with("\"\""), Fault::Empty(name));
        }
        for name in [
            "specversion",
            "id",
            "source",
            "type",
            "subject",
            "sessionid",
            "userid",
            "time",
            "dataschema",
            "datacontenttype",
        ] {
            for value in ["1", "true", "{}", "[\"x\"]", "1e400"] {
                check_refused(&format!("{{{MINIMAL},\"{name}\":{value}}}"), Fault::NotAString(name));
            }
        }
        for name in ["subject", "time", "dataschema"] {
            check_refused(&format!("{{{MINIMAL},\"{name}\":\"\"}}"), Fault::Empty(name));
        }
        for version in ["0.3", "1", "1.0.2", " 1.0"] {
            check_refused(&format!(r#"{{{MINIMAL},"specversion":"{version}"}}"#), Fault::OtherVersion);
        }
        for media_type in ["", "text/plain", "application/xml; x=+json", "application/jsonx", "json"] {
            check_refused(&format!(r#"{{{MINIMAL},"datacontenttype":"{media_type}"}}"#), Fault::DataNotJson);
        }
        check_refused(&format!(r#"{{{MINIMAL},"data_base64":"e30="}}"#), Fault::BinaryData);
        for text in ["", "{", "{}{}", "{\"id\":NaN}", r#"{"specversion":"\ud800"}"#] {
            let refused = to_event(text).expect_err(text);
            assert!(matches!(refused[0].fault, Fault::NotJson(_)), "{text}");
        }
        for text in ["{}", "1"] {
            assert_eq!(items(text).expect_err(text).fault, Fault::NotAnArray, "{text}");
        }
    }

    #[test]
    fn every_fault_of_every_cloud_event_is_reported() {
        let faults = |refused: Vec<NotACloudEvent>| -> Vec<_> {
            refused.into_iter().map(|refused| (refused.index, refused.fault)).collect()
        };
        let bad = r#"{"specversion":"0.3","id":"","type":7,"time":"","data_base64":""}"#;
        let of_it = |index| {
            [
                Fault::BinaryData,
                Fault::OtherVersion,
                Fault::Empty("id"),
                Fault::Missing("source"),
                Fault::NotAString("type"),
                Fault::Empty("time"),
            ]
            .map(|fault| (index, fault))
        };
        assert_eq!(faults(to_event(bad).expect_err(bad)), of_it(None));
        let batch = to_events(&format!("[{bad},{{{MINIMAL}}},7,{bad}]"));
        let told: Vec<_> = batch.into_iter().filter_map(Result::err).flat_map(faults).collect();
        assert_eq!(told, [&of_it(Some(0))[..], &[(Some(2), Fault::NotAnObject)], &of_it(Some(3))].concat());
        // The valid attributes can still be checked against the rules of events.
        let bad = r#"{"source":"a b","type":7,"sessionid":"s","data":[1]}"#;
        let event = r#"{"source":"a b","session_id":"s","payload":[1]}"#;
        assert_eq!(of_json(bad, None).event.as_deref(), Some(event));
        assert_eq!(of_json("[]", None).event, None);
    }

    #[test]
    fn headers_become_an_event() {
        let check = |headers: &[(&str, &str)], body: &str, becomes: &str| {
            let event = format!(r#"{{"event_type":"timer_tick","source":"s",{becomes}}}"#);
            assert_eq!(binary_mode(headers, body), Ok(event), "{headers:?} {body}");
        };
        check(&[], "", r#""idempotency_key":"s/1""#);
        check(&[], " null\n", r#""idempotency_key":"s/1""#);
        check(&[("ce-id", "a%2Fb")], r#" {"f":0.10} "#, r#""payload":{"f":0.10},"idempotency_key":"s/a/b""#);
        check(&[("content-type", "application/json; charset=utf-8")], "{}", r#""payload":{},"idempotency_key":"s/1""#);
        for (sent, meant) in [
            ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
            ("%e2%82%ac", "€"),
            ("%41%2525", "A%25"),
            ("100%", "100%"),
            ("€", "€"),
            (r#""a b""#, "a b"),
            (r#""a%20\%41""#, "a A"),
            (r#"x"y"#, r#"x\"y"#),
            (r#""x\"y""#, r#"x\"y"#),
            ("\"", "\\\""),
        ] {
            let session = format!(r#""session_id":"{meant}","idempotency_key":"s/1""#);
            check(&[("ce-sessionid", sent), ("ce-subject", "t")], "", &session);
            check(&[("ce-subject", sent)], "", &session);
            check(&[("ce-userid", sent)], "", &session.replace("session_id", "user_id"));
        }
    }

    #[test]
    fn headers_that_break_a_rule_are_refused() {
        let check = |headers: &[(&str, &str)], fault| {
            let refused = NotACloudEvent { part: Part::Header, index: None, fault };
            assert_eq!(binary_mode(headers, "{}"), Err(vec![refused]), "{headers:?}");
        };
        check(&[("ce-specversion", "0.3")], Fault::OtherVersion);
        check(&[("ce-id", "")], Fault::Empty("id"));
        check(&[("ce-userid", "%C0%A0")], Fault::NotUtf8("userid"));
        check(&[("ce-type", "\"%ff\"")], Fault::NotUtf8("type"));
        check(&[("ce-time", "%ff")], Fault::NotUtf8("time"));
        check(&[("content-type", "text/plain")], Fault::DataNotJson);
        let missing = |name| NotACloudEvent { part: Part::Header, index: None, fault: Fault::Missing(name) };
        let rejections = ["specversion", "id", "source", "type"].map(missing).to_vec();
        let event = Some(r#"{"payload":{}}"#.to_owned());
        assert_eq!(of_headers(|_| None, "{}"), Translation { index: None, event, rejections });
        for body in [r#"{},"event_type":"quiz_started""#, "{", "NaN", "{} {}"] {
            let refused = binary_mode(&[], body).expect_err(body);
            assert!(
                matches!(refused[..], [NotACloudEvent { part: Part::Body, fault: Fault::NotJson(_), .. }]),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn a_delivered_event_becomes_a_cloud_event() {
        let check = |session_id: &str, user_id: &str, ids: &str| {
            let event = format!(
                r#"{{"id":"evt_00000000000a","event_type":"timer_tick","source":"s","session_id":{session_id},"user_id":{user_id},"payload":{{ "n":1e400 }},"timestamp":"2026-01-15T10:30:00.000000Z"}}"#
            );
            let mut out = b"[".to_vec();
            of_event(event.as_bytes(), &mut out);
            assert_eq!(
                String::from_utf8(out).expect("UTF-8"),
                format!(
                    r#"[{{"specversion":"1.0","id":"evt_00000000000a","type":"timer_tick","source":"s","time":"2026-01-15T10:30:00.000000Z",{ids}"datacontenttype":"application/json","data":{{ "n":1e400 }}}}"#
                )
            );
        };
        check("null", "null", "");
        check(r#""\"\u0001é""#, "null", r#""sessionid":"\"\u0001é","#);
        check("null", r#""""#, r#""userid":"","#);
        check(r#""a""#, r#""b""#, r#""sessionid":"a","userid":"b","#);
    }

    #[test]
    fn a_delivered_cloud_event_can_be_published_again() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(127), "]".repeat(127));
        let payloads =
            ["{}", r#"{"n":1e400,"f":0.10,"b":1,"a":2}"#, r#"{"b":1,"b":2,"\u0062":"\/\ud83d\ude00"}"#, &deep];
        let limits = Limits { payload_keys_max: 50, payload_bytes_max: 65_536 };
        let mut parser = Parser::new(Arc::new(EventTypes::builtin()), limits);
        for (session_id, user_id) in [(None, None), (Some("s \\ \"\u{1}\n😀"), Some("")), (None, Some("u"))] {
            for payload in payloads {
                let text = |id: Option<&str>| serde_json::json!(id).to_string();
                let delivered = format!(
                    r#"{{"id":"evt_000000000001","event_type":"quiz_started","source":"quiz.web-1","session_id":{},"user_id":{},"payload":{payload},"timestamp":"2026-01-15T10:30:00.000000Z"}}"#,
                    text(session_id),
                    text(user_id)
                );
                let mut cloud_event = Vec::new();
                of_event(delivered.as_bytes(), &mut cloud_event);
                let event = to_event(str::from_utf8(&cloud_event).expect("UTF-8")).expect("a CloudEvent");
                let mut count = 0;
                let parsed = parser.parse(&event, |event| {
                    count += 1;
                    assert_eq!(&**EventTypes::builtin().name(event.event_type), "quiz_started");
                    assert_eq!(event.source, "quiz.web-1");
                    assert_eq!((event.session_id, event.user_id, event.payload), (session_id, user_id, payload));
                });
                assert_eq!((parsed.result, count), (Ok(None), 1));
                assert!(event.ends_with(r#""idempotency_key":"quiz.web-1/evt_000000000001"}"#), "{event}");
            }
        }
    }

    #[test]
    fn a_problem_names_the_fault_and_its_part_of_the_request() {
        let check = |part, index, fault, problem: serde_json::Value| {
            assert_eq!(serde_json::json!(ValidationError::from(&NotACloudEvent { part, index, fault })), problem);
        };
        check(
            Part::Body,
            Some(2),
            Fault::Missing("id"),
            serde_json::json!({ "loc": ["body", 2, "id"], "msg": "Event 2: Attribute 'id' is required", "type": "missing" }),
        );
        check(
            Part::Header,
            None,
            Fault::OtherVersion,
            serde_json::json!({
                "loc": ["header", "specversion"],
                "msg": "Attribute 'specversion' must be '1.0', no other version is understood",
                "type": "enum",
            }),
        );
        check(
            Part::Body,
            None,
            Fault::NotAnObject,
            serde_json::json!({ "loc": ["body"], "msg": "A CloudEvent is a JSON object", "type": "object_type" }),
        );
    }

    proptest! {
        #[test]
        fn texts_and_data_are_translated_unchanged_both_ways(
            id in ".{1,20}", session in prop::option::of(".{0,20}"), user in prop::option::of(".{0,20}"), data in ".{0,40}",
        ) {
            let data = serde_json::json!({ "text": data });
            let sent = serde_json::json!({
                "specversion": "1.0", "id": id, "source": "s", "type": "timer_tick", "sessionid": session,
                "userid": user, "data": data,
            });
            let event: serde_json::Value =
                serde_json::from_str(&to_event(&sent.to_string()).expect("a CloudEvent")).expect("JSON");
            prop_assert_eq!(&event["idempotency_key"], &format!("s/{id}"));
            let text = |name: &str| event.get(name).and_then(|value| value.as_str());
            prop_assert_eq!((text("session_id"), text("user_id")), (session.as_deref(), user.as_deref()));
            prop_assert_eq!(&event["payload"], &data);

            let delivered = serde_json::json!({
                "id": "evt_000000000001", "event_type": "timer_tick", "source": "s", "session_id": session,
                "user_id": user, "payload": data, "timestamp": "2026-01-15T10:30:00.000000Z",
            });
            let mut out = Vec::new();
            of_event(delivered.to_string().as_bytes(), &mut out);
            let again = to_event(str::from_utf8(&out).expect("UTF-8")).expect("a CloudEvent");
            let again: serde_json::Value = serde_json::from_str(&again).expect("JSON");
            prop_assert_eq!(&again["idempotency_key"], "s/evt_000000000001");
            for name in ["event_type", "source", "session_id", "user_id", "payload"] {
                prop_assert_eq!(again.get(name), event.get(name), "{}", name);
            }
        }
    }
}
