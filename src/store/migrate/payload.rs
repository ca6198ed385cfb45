//! Payloads of the Python service, made into what a producer may send today.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::value::RawValue;

use crate::event::{EventTypes, Limits, Parser};

/// Converts payloads, and counts those it had to change.
pub struct Payloads {
    parser: Parser,
    envelope: String,
    payload: String,
    empty: u64,
    not_a_number: u64,
    wrapped: u64,
}

impl Payloads {
    pub fn new() -> Self {
        // Payloads that were stored under other limits stay.
        let limits = Limits { payload_keys_max: usize::MAX, payload_bytes_max: usize::MAX };
        let parser = Parser::new(Arc::new(EventTypes::builtin()), limits);
        Self { parser, envelope: String::new(), payload: String::new(), empty: 0, not_a_number: 0, wrapped: 0 }
    }

    /// A JSON object stays as it is, apart from line breaks and other layout. Python's `NaN` and infinities become
    /// `null`. An empty payload becomes `{}`. Anything else becomes a string in an object.
    pub fn convert(&mut self, old: Option<&[u8]>) -> &str {
        let text = String::from_utf8_lossy(old.unwrap_or_default());
        let is_utf8 = matches!(text, Cow::Borrowed(_));
        if is_utf8 && self.accept(&text) {
            return &self.payload;
        }
        self.payload.clear();
        if matches!(text.trim(), "" | "null") {
            self.empty += 1;
            self.payload.push_str("{}");
        } else if is_utf8 && self.accept(&without_nan(&text)) {
            self.not_a_number += 1;
        } else {
            self.wrapped += 1;
            let text = serde_json::to_string(&text).expect("a string is JSON");
            self.payload = format!(r#"{{"legacy_payload":{text}}}"#);
        }
        &self.payload
    }

    /// Whether our own parser accepts a text as a payload, which is then in `self.payload`.
    fn accept(&mut self, json: &str) -> bool {
        // The text of an incomplete JSON value could change the envelope around it.
        if serde_json::from_str::<&RawValue>(json).is_err() {
            return false;
        }
        self.envelope.clear();
        self.envelope.push_str(r#"{"event_type":"quiz_started","source":"upgrade","payload":"#);
        self.envelope.push_str(json);
        self.envelope.push('}');
        self.payload.clear();
        self.parser.parse(&self.envelope, |event| self.payload.push_str(event.payload));
        !self.payload.is_empty()
    }

    pub fn log_conversions(&self) {
        let Self { empty, not_a_number, wrapped, .. } = *self;
        if empty + not_a_number + wrapped > 0 {
            tracing::warn!(empty, not_a_number, wrapped, "payloads that were not JSON objects were converted");
        }
    }
}

/// The text with `null` for each `NaN`, `Infinity` and `-Infinity` that is not within a string.
fn without_nan(json: &str) -> String {
    let mut mended = String::with_capacity(json.len());
    let mut rest = json;
    while !rest.is_empty() {
        let (between, string) = rest.split_at(rest.find('"').unwrap_or(rest.len()));
        mended += &between.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
        let (string, after) = string.split_at(string_len(string.as_bytes()));
        mended += string;
        rest = after;
    }
    mended
}

/// Bytes of the JSON string that `text` begins with, or all of it if the string does not end.
fn string_len(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += 1 + usize::from(text[at] == b'\\');
    }
    text.len().min(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_payload_of_the_python_service_becomes_an_object_that_a_producer_may_send() {
        let mut payloads = Payloads::new();
        let mut check = |old: &str, want: &str| assert_eq!(payloads.convert(Some(old.as_bytes())), want, "{old:?}");
        for unchanged in [
            "{}",
            r#"{ "b": 1, "a": [0.10, 1e400, 123456789012345678901234567890], "b": "caf\u00e9 NaN" }"#,
            r#"{"emoji": "\ud83d\ude00 😀", "deep": {"x": {"y": null}}}"#,
        ] {
            check(unchanged, unchanged);
        }
        check(" {\"a\": \"b c\"}\n", r#"{"a": "b c"}"#);
        check("{\n  \"a b\": [1,\r\n 2],\t\"c\": \"x \\\" y\"\n}", r#"{"a b":[1,2],"c":"x \" y"}"#);
        check(
            r#"{"a": NaN, "b": [Infinity, -Infinity], "c": "NaN \" Infinity"}"#,
            r#"{"a": null, "b": [null, null], "c": "NaN \" Infinity"}"#,
        );
        for nothing in ["", "  ", "null"] {
            check(nothing, "{}");
        }
        check("[1, 2]", r#"{"legacy_payload":"[1, 2]"}"#);
        check("3", r#"{"legacy_payload":"3"}"#);
        check("NaN", r#"{"legacy_payload":"NaN"}"#);
        check("{'a': 1}\n", r#"{"legacy_payload":"{'a': 1}\n"}"#);
        check(r#"{"a": -NaN}"#, r#"{"legacy_payload":"{\"a\": -NaN}"}"#);
        check(r#"{"a": "\ud800"}"#, r#"{"legacy_payload":"{\"a\": \"\\ud800\"}"}"#);
        check(
            r#"{}, "user_id": "x", "payload": {}"#,
            r#"{"legacy_payload":"{}, \"user_id\": \"x\", \"payload\": {}"}"#,
        );
        check(r#"{"a": "unended"#, r#"{"legacy_payload":"{\"a\": \"unended"}"#);
        let deep = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        check(&deep(128), &deep(128));
        check(&deep(129), &format!(r#"{{"legacy_payload":{}}}"#, serde_json::to_string(&deep(129)).unwrap()));
        let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(300_000));
        check(&large, &large);
        assert_eq!(payloads.convert(None), "{}");
        assert_eq!(
            payloads.convert(Some(b"{\"a\": \"\xff\"}")),
            "{\"legacy_payload\":\"{\\\"a\\\": \\\"\u{fffd}\\\"}\"}"
        );
        assert_eq!((payloads.empty, payloads.not_a_number, payloads.wrapped), (4, 1, 10));
    }
}
