//! From a producer's text to checked events. simd-json parses; what it leaves open is decided here on purpose: numbers
//! beyond 64 bits are fine (nothing computes with them), the last of two equal keys counts, nesting is bounded, and the
//! payload stays the producer's own bytes.

use std::sync::Arc;

use simd_json::{Buffers, ErrorType, Node, Tape};

use super::fields::{Event, Limits, PAYLOAD_DEPTH_MAX, REF_BYTES_MAX};
use super::json::{WHITESPACE, replace_numbers, string_end};
use super::rejection::{Fault, REJECTIONS_MAX, Rejection};
use super::rules::Rules;
use super::tape::Cursor;
use super::types::EventTypes;

/// Parses events. A connection or thread has one parser, whose buffers serve each message after the other.
pub struct Parser {
    types: Arc<EventTypes>,
    limits: Limits,
    scratch: Vec<u8>,
    buffers: Buffers,
    tape: Tape<'static>,
    compact: String,
}

/// A large array is parsed in chunks of elements of about this size; a longer element is a chunk of its own. What
/// simd-json notes of a text takes up to seventy times its length, and a body may be an array of 16 MiB.
const CHUNK_BYTES: usize = 64 << 10;

/// Levels around a payload: the event's own object and the array that may hold it.
const ENVELOPE_DEPTH: usize = 2;

/// What one text held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<'t> {
    /// The `ref` of a single event, as raw JSON; also there when the event was refused.
    pub reference: Option<&'t str>,
    /// When every event went to the sink: `None` for a single object, the length of an array. Otherwise all that is
    /// wrong, at least one thing and at most [`REJECTIONS_MAX`].
    pub result: Result<Option<usize>, Vec<Rejection>>,
}

impl<'t> Parsed<'t> {
    fn refused(reference: Option<&'t str>, fault: Fault) -> Self {
        Self { reference, result: Err(vec![Rejection { index: None, fault }]) }
    }
}

impl Parser {
    pub fn new(types: Arc<EventTypes>, limits: Limits) -> Self {
        Self {
            types,
            limits,
            scratch: Vec::new(),
            buffers: Buffers::with_max_depth(0, PAYLOAD_DEPTH_MAX + ENVELOPE_DEPTH),
            tape: Tape(Vec::new()),
            compact: String::new(),
        }
    }

    /// The registered types that it checks against.
    pub fn types(&self) -> &Arc<EventTypes> {
        &self.types
    }

    /// Parses one event object, or an array of them, and hands each event to `sink` in order. If an array has a bad
    /// event, the sink has already got those before it: the caller has to undo them.
    #[inline]
    pub fn parse<'t>(&mut self, text: &'t str, sink: impl FnMut(Event<'_>)) -> Parsed<'t> {
        if text.len() > CHUNK_BYTES
            && let Some(elements) = text.trim_start_matches(WHITESPACE).strip_prefix('[')
        {
            return Parsed { reference: None, result: self.parse_in_chunks(elements, CHUNK_BYTES, sink).map(Some) };
        }
        self.parse_whole(text, sink)
    }

    /// Parses an array in chunks of elements; `rest` is everything after its '['.
    fn parse_in_chunks(
        &mut self,
        mut rest: &str,
        chunk_bytes: usize,
        mut sink: impl FnMut(Event<'_>),
    ) -> Result<usize, Vec<Rejection>> {
        let (mut count, mut rejections, mut text) = (0, Vec::new(), String::new());
        loop {
            let Chunk { len, elements, is_last } = Chunk::first_of(rest, chunk_bytes);
            let (chunk, behind) = rest.split_at(len);
            text.clear();
            // The last chunk has the end of the array, and whatever follows that.
            text.extend(if is_last { ["[", chunk, ""] } else { ["[", chunk, "]"] });
            if text[1..].trim_start_matches(WHITESPACE).starts_with(']') && !(is_last && count == 0) {
                // Between two commas, or behind the last comma, there is no element: this is not JSON.
                "[,".clone_into(&mut text);
            }
            let is_valid_so_far = rejections.is_empty();
            let parsed = self.parse_whole(&text, |event| {
                if is_valid_so_far {
                    sink(event);
                }
            });
            match parsed.result {
                // A text that is not JSON is refused for that alone, whichever chunk shows it.
                Err(of_all) if of_all.iter().any(|rejection| rejection.index.is_none()) => return Err(of_all),
                Err(of_chunk) => rejections.extend(of_chunk.into_iter().map(|rejection| {
                    let index = rejection.index.map(|index| count + index);
                    Rejection { index, ..rejection }
                })),
                Ok(_) => {}
            }
            rejections.truncate(REJECTIONS_MAX);
            count += elements;
            if is_last {
                return if rejections.is_empty() { Ok(count) } else { Err(rejections) };
            }
            rest = &behind[1..];
        }
    }

    fn parse_whole<'t>(&mut self, text: &'t str, mut sink: impl FnMut(Event<'_>)) -> Parsed<'t> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        fill(&mut scratch, text);
        let (tape, read) = match simd_json::fill_tape_padded(&mut scratch, text.len(), &mut self.buffers, &mut tape) {
            Ok(()) => (tape, Ok(())),
            Err(error) if too_deep(&error) => (tape.reset(), Err(error)),
            Err(_) => {
                let mut tape = tape.reset();
                fill(&mut scratch, text);
                replace_numbers(&mut scratch[..text.len()]);
                let read = simd_json::fill_tape_padded(&mut scratch, text.len(), &mut self.buffers, &mut tape);
                (tape, read)
            }
        };
        let parsed = match (read, tape.0.first()) {
            (Err(error), _) => Parsed::refused(None, Fault::of_json(&error)),
            (Ok(()), Some(&Node::Array { len, .. })) => {
                let mut cursor = Cursor::new(text, &tape, &self.buffers);
                let rules = Rules { types: &self.types, limits: self.limits };
                let result = array(&mut cursor, len, &rules, &mut self.compact, &mut sink);
                Parsed { reference: None, result: result.map(|()| Some(len)) }
            }
            (Ok(()), Some(Node::Object { .. })) => {
                let whole = || Cursor::new(text, &tape, &self.buffers);
                let rules = Rules { types: &self.types, limits: self.limits };
                let fields = whole().object();
                let reference = fields.reference;
                match rules.check(fields, &mut self.compact) {
                    None => Parsed {
                        reference: reference.filter(|raw| raw.len() <= REF_BYTES_MAX),
                        result: Err(rules.rejections(None, whole())),
                    },
                    Some(event) => {
                        sink(event);
                        Parsed { reference, result: Ok(None) }
                    }
                }
            }
            (Ok(()), _) => Parsed::refused(None, Fault::NotAnObject),
        };
        self.tape = tape.reset();
        self.scratch = scratch;
        self.shrink();
        parsed
    }

    /// Ten thousand connections share the memory, so a parser gives back what a large message needed.
    fn shrink(&mut self) {
        /// Largest text whose buffers are kept: four of [`CHUNK_BYTES`], which usual messages never reach.
        const SCRATCH_BYTES_MAX: usize = 256 << 10;
        if self.scratch.capacity() > SCRATCH_BYTES_MAX {
            self.scratch = Vec::new();
            self.buffers = Buffers::with_max_depth(0, PAYLOAD_DEPTH_MAX + ENVELOPE_DEPTH);
            self.tape = Tape(Vec::new());
            self.compact = String::new();
        }
    }
}

/// The first elements of an array.
struct Chunk {
    /// Its bytes, without the comma after its last element; those of the last chunk are all that is left of the text.
    len: usize,
    elements: usize,
    is_last: bool,
}

impl Chunk {
    /// The elements up to the first comma between two of them that has at least `bytes_min` before it. Brackets and
    /// quotes are counted as if the text were JSON; if it is not, the mistake is within one of the chunks.
    fn first_of(elements_left: &str, bytes_min: usize) -> Self {
        let bytes = elements_left.as_bytes();
        let (mut at, mut depth, mut elements) = (0, 0usize, 1);
        while at < bytes.len() {
            match bytes[at] {
                b'"' => at = string_end(bytes, at),
                b'[' | b'{' => depth += 1,
                b']' | b'}' if depth == 0 => break,
                b']' | b'}' => depth -= 1,
                b',' if depth == 0 && at >= bytes_min => return Self { len: at, elements, is_last: false },
                b',' if depth == 0 => elements += 1,
                _ => {}
            }
            at += 1;
        }
        Self { len: bytes.len(), elements, is_last: true }
    }
}

fn array(
    cursor: &mut Cursor<'_, '_, '_>,
    len: usize,
    rules: &Rules<'_>,
    compact: &mut String,
    sink: &mut impl FnMut(Event<'_>),
) -> Result<(), Vec<Rejection>> {
    if len == 0 {
        return Err(vec![Rejection { index: None, fault: Fault::NoEvents }]);
    }
    let mut rejections = Vec::new();
    cursor.node += 1;
    for index in 0..len {
        cursor.structural += 1; // over the '[' or ',' before the element
        let Node::Object { .. } = cursor.nodes[cursor.node] else {
            cursor.value();
            rejections.push(Rejection { index: Some(index), fault: Fault::NotAnObject });
            continue;
        };
        let (node, structural) = (cursor.node, cursor.structural);
        match rules.check(cursor.object(), compact) {
            // Once one of them is refused, none is stored.
            Some(event) if rejections.is_empty() => sink(event),
            Some(_) => {}
            None => rejections.extend(rules.rejections(Some(index), Cursor { node, structural, ..*cursor })),
        }
        if rejections.len() >= REJECTIONS_MAX {
            break;
        }
    }
    rejections.truncate(REJECTIONS_MAX);
    if rejections.is_empty() { Ok(()) } else { Err(rejections) }
}

/// Copies the text, with padding behind it: simd-json reads whole vectors, and unescapes strings within the copy.
fn fill(scratch: &mut Vec<u8>, text: &str) {
    scratch.clear();
    scratch.reserve(text.len() + simd_json::INPUT_PADDING);
    scratch.extend_from_slice(text.as_bytes());
    scratch.extend_from_slice(&[b' '; simd_json::INPUT_PADDING]);
}

fn too_deep(error: &simd_json::Error) -> bool {
    matches!(error.error(), ErrorType::DepthLimitExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::fields::KEY_CHARS_MAX;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { payload_keys_max: 50, payload_bytes_max: 65_536 };

    type Owned = (String, String, Option<String>, Option<String>, String);

    fn parse(text: &str) -> (Result<Vec<Owned>, Vec<Rejection>>, Option<String>) {
        let types = Arc::new(EventTypes::builtin());
        let mut parser = Parser::new(types.clone(), LIMITS);
        let mut events = Vec::new();
        let parsed = parser.parse(text, |e| {
            events.push((
                types.name(e.event_type).to_string(),
                e.source.to_owned(),
                e.session_id.map(str::to_owned),
                e.user_id.map(str::to_owned),
                e.payload.to_owned(),
            ));
        });
        (parsed.result.map(|_| events), parsed.reference.map(str::to_owned))
    }

    fn payload(json: &str) -> Result<String, Fault> {
        let text = format!(r#"{{"event_type":"timer_tick","payload":{json},"source":"s"}}"#);
        parse(&text).0.map(|events| events[0].4.clone()).map_err(|refused| refused[0].fault.clone())
    }

    #[test]
    fn fields_may_come_in_any_order_and_shape() {
        let (events, reference) = parse(
            r#" { "user_id" : "ü\u00e9" , "x":[1,{"payload":2}], "payload" : {"a" : [ {} , [] ] } , "ref":7 , "source":"a.b-C_1","session_id":null, "event_type" : "timer_tick" } "#,
        );
        let want = ("timer_tick".into(), "a.b-C_1".into(), None, Some("üé".into()), r#"{"a" : [ {} , [] ] }"#.into());
        assert_eq!((events, reference.as_deref()), (Ok(vec![want]), Some("7")));
    }

    #[test]
    fn an_array_is_parsed_element_by_element() {
        let item = r#"{"event_type":"timer_tick","source":"s","payload":{"n":1}}"#;
        let (events, _) = parse(&format!("[{item}, {item} ,{item}]"));
        assert_eq!(events.map(|e| e.len()), Ok(3));
        let check = |text: &str, refused: &[(usize, Fault)]| {
            let refused = refused.iter().cloned().map(|(index, fault)| Rejection { index: Some(index), fault });
            assert_eq!(parse(text).0, Err(refused.collect()), "{text}");
        };
        assert_eq!(parse("[]").0, Err(vec![Rejection { index: None, fault: Fault::NoEvents }]));
        let missing = |index| [(index, Fault::Missing("event_type")), (index, Fault::Missing("source"))];
        check(&format!("[{item},{{}}]"), &missing(1));
        check(&format!("[{{}},{item},{{}},{item}]"), &[missing(0), missing(2)].concat());
        check(&format!("[{item},7]"), &[(1, Fault::NotAnObject)]);
        check(
            &format!("[[{item}],{item},\"[,]\",{{}}]"),
            &[&[(0, Fault::NotAnObject), (2, Fault::NotAnObject)][..], &missing(3)].concat(),
        );
    }

    #[test]
    fn every_fault_of_an_event_is_reported_up_to_100_of_them() {
        let event = format!(
            r#"{{"event_type":"nope","source":"","session_id":1,"user_id":"{}","payload":[],"ref":"{}","idempotency_key":7}}"#,
            "u".repeat(201),
            "r".repeat(REF_BYTES_MAX),
        );
        let fields = |text: &str| {
            let refused = parse(text).0.expect_err("many faults");
            refused.iter().map(|refused| (refused.index, refused.fault.field().expect("a field"))).collect::<Vec<_>>()
        };
        let all = ["event_type", "source", "session_id", "user_id", "payload", "ref", "idempotency_key"];
        assert_eq!(fields(&event), all.map(|field| (None, field)));
        let many = fields(&format!("[{}]", vec![&*event; 200].join(",")));
        let first = (0..200).flat_map(|index| all.map(|field| (Some(index), field))).take(REJECTIONS_MAX);
        assert_eq!(many, first.collect::<Vec<_>>());
    }

    #[test]
    fn a_payload_stays_as_it_was_sent_but_for_line_breaks() {
        for json in [
            "{}",
            r#"{"b":1,"a":2,"b":3}"#,
            r#"{"n":1e400,"m":-1E-400,"i":123456789012345678901234567890,"f":0.10,"z":-0}"#,
            r#"{"s":"\u0000\ud83d\ude00\/","ü":"😀 \\\" x"}"#,
            r#"{ "spaced" : [ 1 , 2 ] }"#,
        ] {
            assert_eq!(payload(json).as_deref(), Ok(json));
        }
        assert_eq!(
            payload("{\n  \"a b\": \"c \\\" d\",\r\n\t\"e\": [1, 1e999]\n}").as_deref(),
            Ok(r#"{"a b":"c \" d","e":[1,1e999]}"#)
        );
    }

    #[test]
    fn a_text_that_is_not_json_is_refused() {
        for json in [
            "--1",
            "-+1",
            "[1e400,--1]",
            "NaN",
            "Infinity",
            "-Infinity",
            "-",
            "+1",
            "01",
            "-01",
            "1.",
            ".5",
            "1e",
            "1e+",
            "0x10",
            "1_000",
            "'a'",
            "tru",
            "nulll",
            "truefalse",
            r#""\ud800""#,
            r#""\udc00""#,
            r#""\ud800\u0041""#,
            r#""\u12""#,
            r#""\x41""#,
            "\"\u{1}\"",
            "[1,]",
            "[1 2]",
            "[,1]",
            "{\"a\":1,}",
            "{\"a\"}",
            "{a:1}",
            "[1e400 1]",
            "[1e400,01]",
            "[99999999999999999999,-]",
            "99999999999999999999x",
            "1e400.5",
            "",
            "[",
            "]",
            "\"",
        ] {
            let fault = payload(&format!(r#"{{"v":{json}}}"#));
            assert!(matches!(fault, Err(Fault::NotJson(_))), "{json}: {fault:?}");
        }
        for text in ["", " ", "{", "}", "{}}", "{} {}", "\u{feff}{}"] {
            let refused = parse(text).0.expect_err(text);
            assert!(matches!(refused[..], [Rejection { fault: Fault::NotJson(_), .. }]), "{text}");
        }
        for text in ["1", "null", "\"x\"", "1e400"] {
            assert_eq!(parse(text).0, Err(vec![Rejection { index: None, fault: Fault::NotAnObject }]), "{text}");
        }
    }

    #[test]
    fn every_limit_allows_its_maximum_and_nothing_more() {
        let nested = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
        assert!(payload(&nested(PAYLOAD_DEPTH_MAX)).is_ok());
        assert_eq!(payload(&nested(PAYLOAD_DEPTH_MAX + 1)), Err(Fault::TooDeep));
        assert_eq!(payload(&nested(100_000)), Err(Fault::TooDeep));
        assert_eq!(payload(&format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000))), Err(Fault::TooDeep));
        let keys = |n: usize| format!("{{{}}}", (0..n).map(|i| format!(r#""k{i}":{i}"#)).collect::<Vec<_>>().join(","));
        assert!(payload(&keys(50)).is_ok());
        assert_eq!(payload(&keys(51)), Err(Fault::PayloadKeys { found: 51, max: 50 }));
        let bytes = |n: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(n - 8));
        assert!(payload(&bytes(65_536)).is_ok());
        assert_eq!(payload(&bytes(65_537)), Err(Fault::PayloadBytes { found: 65_537, max: 65_536 }));
        let event = |field: &str, value: &str| {
            parse(&format!(r#"{{"event_type":"timer_tick","source":"s","{field}":"{value}"}}"#))
                .0
                .map(|_| ())
                .map_err(|refused| refused[0].fault.clone())
        };
        assert_eq!(event("source", &"a".repeat(100)), Ok(()));
        for bad in ["", "a b", "ä", &"a".repeat(101)] {
            assert_eq!(event("source", bad), Err(Fault::BadSource), "{bad}");
        }
        for field in ["session_id", "user_id"] {
            assert_eq!(event(field, &"😀".repeat(200)), Ok(()));
            assert_eq!(event(field, &"é".repeat(201)), Err(Fault::TooLong(field)));
            assert_eq!(event(field, ""), Ok(()));
        }
    }

    #[test]
    fn a_field_of_the_wrong_type_or_missing_is_refused() {
        let check =
            |text: &str, fault: Fault| assert_eq!(parse(text).0, Err(vec![Rejection { index: None, fault }]), "{text}");
        check(r#"{"source":"s"}"#, Fault::Missing("event_type"));
        check(r#"{"event_type":"timer_tick"}"#, Fault::Missing("source"));
        check(r#"{"event_type":1,"source":"s"}"#, Fault::WrongType { field: "event_type", expected: "a string" });
        check(
            r#"{"event_type":"timer_tick","source":null}"#,
            Fault::WrongType { field: "source", expected: "a string" },
        );
        check(
            r#"{"event_type":"timer_tick","source":"s","session_id":7}"#,
            Fault::WrongType { field: "session_id", expected: "a string or null" },
        );
        let known = EventTypes::builtin().iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ");
        let unknown = Fault::UnknownType { name: "nope".into(), known };
        check(r#"{"event_type":"nope","source":"s"}"#, unknown);
        for key in ["7", "\"\"", "[]", &format!("\"{}\"", "k".repeat(KEY_CHARS_MAX + 1))] {
            let event = format!(r#"{{"event_type":"timer_tick","source":"s","idempotency_key":{key}}}"#);
            check(&event, Fault::BadKey);
        }
        for value in ["null", "[]", "1", "\"{}\""] {
            assert_eq!(payload(value), Err(Fault::WrongType { field: "payload", expected: "an object" }));
        }
        let (result, reference) = parse(r#"{"event_type":"nope","ref":"r1"}"#);
        assert_eq!((result.is_err(), reference.as_deref()), (true, Some(r#""r1""#)));
    }

    /// JSON as serde_json spells it, which simd-json must agree with.
    fn json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("JSON has no others", |f| f.is_finite()).prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((".{0,6}", inner), 0..5).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_payload_stays_as_it_was_sent(values in prop::collection::vec(("[a-z]{1,4}", json()), 0..6), pretty: bool) {
            let object = serde_json::Value::Object(values.into_iter().collect());
            let compact = object.to_string();
            let sent = if pretty { serde_json::to_string_pretty(&object).expect("JSON") } else { compact.clone() };
            prop_assert_eq!(payload(&sent), Ok(if sent.contains('\n') { compact } else { sent }));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in r#"[\[\]{}:,"\\a0-9.eE+ -]{0,40}"#) {
            let _ = payload(&text);
            let _ = parse(&text);
        }

        #[test]
        fn scalars_are_accepted_as_serde_json_accepts_them(text in r#"[0-9.eE+\-ntrufalse"]{1,8}"#) {
            let reference = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
            prop_assert_eq!(payload(&format!(r#"{{"v":{text}}}"#)).is_ok(), reference);
        }
    }

    /// The result of parsing an array in one piece or in chunks. The reason why a text is not JSON is left out: of two
    /// mistakes, chunks may show the other one first.
    fn read(text: &str, chunk_bytes: Option<usize>) -> (Result<Option<usize>, Vec<Rejection>>, Vec<String>) {
        let types = Arc::new(EventTypes::builtin());
        let (mut parser, mut events) = (Parser::new(types, LIMITS), Vec::new());
        let sink = |event: Event<'_>| events.push(format!("{event:?}"));
        let result = match chunk_bytes {
            None => parser.parse_whole(text, sink).result,
            Some(bytes) => parser.parse_in_chunks(text.strip_prefix('[').expect("an array"), bytes, sink).map(Some),
        };
        let result = result.map_err(|mut rejections| {
            for rejection in &mut rejections {
                if let Fault::NotJson(why) = &mut rejection.fault {
                    *why = "";
                }
            }
            rejections
        });
        let events = if result.is_ok() { events } else { Vec::new() };
        (result, events)
    }

    #[test]
    fn an_array_that_is_parsed_in_chunks_gives_the_same_events_and_rejections() {
        let event = r#"{"event_type":"timer_tick","source":"s","payload":{"a":[",]",{"b":1e999}]}}"#;
        let deep = "[".repeat(PAYLOAD_DEPTH_MAX + ENVELOPE_DEPTH) + &"]".repeat(PAYLOAD_DEPTH_MAX + ENVELOPE_DEPTH);
        for text in [
            "[]",
            "[ \n]",
            "[",
            "[,]",
            "[ ,0]",
            "[0,]",
            "[0, ]",
            "[0,,0]",
            "[0 , ,0]",
            "[0,0",
            "[0,0,",
            "[0,0]]",
            "[0,0],0",
            "[0,0}",
            "[0,\"]",
            "[0,\"\\\"]",
            r#"[\",0,"]"#,
            "[0,01,0]",
            &format!("[{}]", vec!["0"; 300].join(",")),
            &format!("[{}{{]", "0,".repeat(300)),
            &format!("[{event},0,{event} , {event},{{}},[{event}]]"),
            &format!("[{event}, {event},{event}\n] "),
            &format!("[{event},0,{deep},1]"),
        ] {
            for chunk_bytes in [0, 1, 3, 100, 1_000] {
                assert_eq!(read(text, Some(chunk_bytes)), read(text, None), "{text} in chunks of {chunk_bytes}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_array_gives_the_same_in_chunks_as_in_one_piece(
            elements in prop::collection::vec(
                prop_oneof![
                    3 => Just(r#"{"event_type":"timer_tick","source":"s","payload":{"t":"\\\"],"}}"#.to_owned()),
                    1 => Just(r#"{"event_type":"timer_tick","payload":[{}]}"#.to_owned()),
                    1 => "[ \n]{0,2}[0-9]{0,2}|\\{\\}|\\[(0,0)?\\]|\"[,\\]a]\"",
                ],
                0..12,
            ),
            changed in prop::option::of((0usize..400, "[]\\[{},:\" \\\\0a]?")),
            chunk_bytes in 0usize..200,
        ) {
            let mut text = format!("[{}]", elements.join(","));
            if let Some((at, by)) = changed
                && at > 0
                && at < text.len()
            {
                text.replace_range(at..=at, &by);
            }
            prop_assert_eq!(read(&text, Some(chunk_bytes)), read(&text, None), "{}", text);
        }
    }
}
