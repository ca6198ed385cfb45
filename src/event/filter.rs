//! Which events a client selects: one language for subscriptions, queries, exports and deletions.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::fields::{Columns, Field};
use super::object::only_known;
use super::payload::{Comparison, PayloadKey, not_scalars};
use super::values::{self, Sorted, VALUES_MAX};

/// Selects events by their fields. A field that the filter does not name may have any value.
///
/// As JSON, `{"event_types": […], "session_id": "a" or ["a", "b"], "user_id": …, "source": …,
/// "payload": {"key": scalar or [scalars]}, "exclude": {the same keys}}`: an event passes if each field
/// has one of the values named for it, each payload key is equal to one of its scalars, and nothing of
/// `exclude` is true of it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub struct Filter {
    /// By [`Field`]: the values that pass; with none of them no event passes. `None` lets every event pass, also one without
    /// the field. A type need not be registered: stored events may have types that an earlier configuration knew.
    wanted: [Option<Sorted<Box<str>>>; 4],
    /// What the index does not know. Few filters have it, so the others pay only one word for it.
    rest: Option<Arc<Rest>>,
}

/// Conditions that are looked up in the event itself.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
struct Rest {
    /// By [`Field`].
    excluded: [Sorted<Box<str>>; 4],
    payload: Vec<PayloadKey>,
    excluded_payload: Vec<PayloadKey>,
}

impl Rest {
    fn within(&self, other: &Self) -> Self {
        Self {
            excluded: std::array::from_fn(|field| values::in_either(&self.excluded[field], &other.excluded[field])),
            payload: PayloadKey::narrowed(&self.payload, &other.payload),
            excluded_payload: PayloadKey::joined(&self.excluded_payload, &other.excluded_payload),
        }
    }
}

/// Whether the value of a condition on a field, or of a time, means "any": null, an empty text and an empty list do.
pub fn means_any(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

impl Filter {
    /// The filter that a JSON object asks for; keys that are not a filter's are ignored.
    pub fn parse(object: &Map<String, Value>) -> Result<Self, String> {
        let filter = Self::parse_stored(object)?;
        let rest = filter.rest.as_deref();
        let mut payload_keys = rest.into_iter().flat_map(|rest| rest.payload.iter().chain(&rest.excluded_payload));
        if let Some(bad) = payload_keys.find(|key| key.has_no_number) {
            return Err(not_scalars(&bad.key));
        }
        for field in Field::ALL {
            let excluded = rest.map_or(&[][..], |rest| &rest.excluded[field as usize]);
            for value in filter.wanted(field).unwrap_or_default().iter().chain(excluded) {
                let (name, chars_max) = (field.name(), field.chars_max());
                if value.is_empty() {
                    return Err(format!("Filter '{name}' has an empty value in its list"));
                }
                if value.len() > chars_max && value.chars().count() > chars_max {
                    return Err(format!(
                        "Filter '{name}' has a value of more than {chars_max} characters, as no event has"
                    ));
                }
            }
        }
        Ok(filter)
    }

    /// A filter from the database. It may be from an older version, which accepted empty and longer values in lists, and
    /// numbers with any exponent. The texts are compared as they are. A number whose exponent is out of range is
    /// equal to nothing, not even to itself in a payload.
    pub fn parse_stored(object: &Map<String, Value>) -> Result<Self, String> {
        let mut rest = Rest { payload: PayloadKey::parse_all(object)?, ..Rest::default() };
        match object.get("exclude") {
            None | Some(Value::Null) => {}
            Some(Value::Object(exclude)) => {
                // If a misspelled key were ignored, the client would get the events that it wants to exclude.
                only_known(exclude, |key| key == "payload" || is_field(key), "Filter 'exclude'")?;
                for field in Field::ALL {
                    rest.excluded[field as usize] = values_of(exclude, field)?.unwrap_or_default();
                }
                rest.excluded_payload = PayloadKey::parse_all(exclude)?;
            }
            Some(_) => return Err("Filter 'exclude' must be an object or null".to_owned()),
        }
        let mut filter = Self { rest: (rest != Rest::default()).then(|| Arc::new(rest)), ..Self::default() };
        for field in Field::ALL {
            filter.wanted[field as usize] = values_of(object, field)?;
        }
        Ok(filter)
    }

    /// The first condition of a JSON object that is present and empty. In a query it means any event. A deletion refuses
    /// it, because the client may have meant to spare events by it.
    pub fn empty_condition(object: &Map<String, Value>) -> Option<&str> {
        object.iter().filter(|(key, _)| Self::is_key(key)).find_map(|(key, value)| match value {
            empty if means_any(empty) => Some(&**key),
            Value::Object(inner) if inner.is_empty() => Some(&**key),
            // A payload's scalar may be an empty text or null; its list may not be empty.
            Value::Object(keys) if key == "payload" => {
                keys.values().any(|values| values.as_array().is_some_and(Vec::is_empty)).then_some(&**key)
            }
            // An `exclude` within `exclude` is left to `parse`, which refuses it.
            Value::Object(exclude) if key == "exclude" => {
                Self::empty_condition(exclude).filter(|key| *key != "exclude")
            }
            Value::Array(list) if is_field(key) => list.iter().any(|value| value == "").then_some(&**key),
            _ => None,
        })
    }

    /// Whether a key of a JSON object belongs to its filter.
    pub fn is_key(key: &str) -> bool {
        matches!(key, "payload" | "exclude") || is_field(key)
    }

    /// The same filter, but with only these values of a field; with none of them no event passes.
    pub fn with<S: Into<Box<str>>>(mut self, field: Field, values: impl IntoIterator<Item = S>) -> Self {
        self.wanted[field as usize] = Some(values::sorted(values.into_iter().map(Into::into).collect()));
        self
    }

    /// The same filter, but with only these types; with none of them no event passes.
    pub fn with_types<S: Into<Box<str>>>(self, types: impl IntoIterator<Item = S>) -> Self {
        self.with(Field::Type, types)
    }

    /// This filter narrowed by another one: an event passes if it passes both.
    #[must_use]
    pub fn within(&self, other: &Self) -> Self {
        let wanted = std::array::from_fn(|field| match (&self.wanted[field], &other.wanted[field]) {
            (None, wanted) | (wanted, None) => wanted.clone(),
            (Some(one), Some(other)) => Some(values::in_both(one, other)),
        });
        let rest = match (&self.rest, &other.rest) {
            (None, rest) | (rest, None) => rest.clone(),
            (Some(one), Some(other)) => Some(Arc::new(one.within(other))),
        };
        Self { wanted, rest }
    }

    /// The values of a field that pass, sorted; `None` if every value does.
    pub fn wanted(&self, field: Field) -> Option<&[Box<str>]> {
        self.wanted[field as usize].as_deref()
    }

    /// Whether every event passes.
    pub fn is_any(&self) -> bool {
        !self.is_indexed() && !self.has_rest()
    }

    /// Whether it names values of a field, which the index finds.
    pub fn is_indexed(&self) -> bool {
        self.wanted.iter().any(Option::is_some)
    }

    /// Whether it asks for more than the index finds: then [`matches`](Self::matches) decides.
    pub fn has_rest(&self) -> bool {
        self.rest.is_some()
    }

    /// Whether an event passes.
    pub fn matches(&self, event: &Columns<'_>) -> bool {
        self.mismatch(event).is_none()
    }

    /// The first condition that an event does not meet.
    pub fn mismatch(&self, event: &Columns<'_>) -> Option<Mismatch<'_>> {
        for field in Field::ALL {
            if let Some(wanted) = self.wanted(field)
                && !event.field(field).is_some_and(|value| values::holds(wanted, value))
            {
                return Some(Mismatch::NotWanted(field, wanted));
            }
        }
        let rest = self.rest.as_deref()?;
        for field in Field::ALL {
            if event.field(field).is_some_and(|value| values::holds(&rest.excluded[field as usize], value)) {
                return Some(Mismatch::Excluded(field.name()));
            }
        }
        if rest.payload.is_empty() && rest.excluded_payload.is_empty() {
            return None;
        }
        let found = Comparison::of(event.payload, &rest.payload, &rest.excluded_payload);
        if let Some(key) = rest.payload.iter().zip(&found.wanted).find_map(|(key, is)| (!is).then_some(key)) {
            return Some(Mismatch::Payload(&key.key));
        }
        let excluded = rest.excluded_payload.iter().zip(&found.excluded).find_map(|(key, is)| is.then_some(key));
        excluded.map(|key| Mismatch::Excluded(&key.key))
    }
}

/// Why an event does not pass a filter, as a sentence for the client that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch<'f> {
    NotWanted(Field, &'f [Box<str>]),
    Payload(&'f str),
    Excluded(&'f str),
}

impl fmt::Display for Mismatch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWanted(field, [one]) => write!(f, "{} is not {one:?}", field.name()),
            Self::NotWanted(field, many) => write!(f, "{} is none of {many:?}", field.name()),
            Self::Payload(key) => write!(f, "payload key {key:?} is not equal to what is asked for"),
            Self::Excluded(key) => write!(f, "{key} is excluded"),
        }
    }
}

/// Whether a key of a filter is that of a field.
fn is_field(key: &str) -> bool {
    Field::ALL.iter().any(|field| field.name() == key)
}

/// The values that a JSON object has for a field, one or a list; `None` if it leaves every value.
fn values_of(object: &Map<String, Value>, field: Field) -> Result<Option<Sorted<Box<str>>>, String> {
    let key = field.name();
    match object.get(key).filter(|value| !means_any(value)) {
        None => Ok(None),
        Some(Value::String(text)) if field != Field::Type => Ok(Some([text.as_str().into()].into())),
        Some(Value::Array(list)) if list.len() <= VALUES_MAX => {
            let texts = list.iter().map(|value| value.as_str().map(Box::from));
            let not_texts = || format!("Filter '{key}' must be a list of strings");
            texts.collect::<Option<_>>().map(|texts| Some(values::sorted(texts))).ok_or_else(not_texts)
        }
        Some(Value::Array(_)) => Err(format!("Filter '{key}' has more than {VALUES_MAX} values")),
        Some(_) if field == Field::Type => Err(format!("Filter '{key}' must be a list of strings or null")),
        Some(_) => Err(format!("Filter '{key}' must be a string, a list of strings or null")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::decimal::Decimal;
    use proptest::prelude::*;

    fn filter(json: &str) -> Result<Filter, String> {
        Filter::parse(serde_json::from_str::<Value>(json).expect("JSON").as_object().expect("an object"))
    }

    const EVENT: Columns<'_> = Columns {
        event_type: b"timer_tick",
        source: b"timer",
        session_id: Some("caf\u{e9}".as_bytes()),
        user_id: None,
        payload: br#"{"n":7,"quiz":"a\u0062","x":1e400,"on":true,"deep":{"n":8},"z":null,"twice":1,"twice":2}"#,
    };

    #[test]
    fn an_event_passes_if_every_condition_holds() {
        let check = |json: &str, passes: bool| assert_eq!(filter(json).expect(json).matches(&EVENT), passes, "{json}");
        check("{}", true);
        check(r#"{"event_types":["timer_tick","x"],"source":"timer","session_id":"café"}"#, true);
        check(r#"{"event_types":["x"]}"#, false);
        check(r#"{"session_id":["b","café","a"]}"#, true);
        check(r#"{"session_id":["b","a"]}"#, false);
        check(r#"{"user_id":"u"}"#, false);
        check(r#"{"payload":{"n":7}}"#, true);
        check(r#"{"payload":{"n":7.0}}"#, true);
        check(r#"{"payload":{"n":"7"}}"#, false);
        check(r#"{"payload":{"n":8}}"#, false);
        check(r#"{"payload":{"quiz":"ab","on":true,"z":null}}"#, true);
        check(r#"{"payload":{"quiz":["x","ab"]}}"#, true);
        check(r#"{"payload":{"absent":null}}"#, false);
        check(r#"{"payload":{"twice":1}}"#, false);
        check(r#"{"payload":{"twice":2}}"#, true);
        check(r#"{"exclude":{"event_types":["timer_tick"]}}"#, false);
        check(r#"{"exclude":{"user_id":"u","session_id":["b"]}}"#, true);
        check(r#"{"session_id":"café","exclude":{"payload":{"n":[6,7]}}}"#, false);
        check(r#"{"exclude":{"payload":{"n":6,"absent":1}}}"#, true);
    }

    #[test]
    fn a_mismatch_names_the_condition_that_is_not_met() {
        let why = |json: &str| filter(json).expect(json).mismatch(&EVENT).map(|why| why.to_string());
        assert_eq!(why("{}"), None);
        assert_eq!(why(r#"{"source":"x"}"#).as_deref(), Some(r#"source is not "x""#));
        assert_eq!(why(r#"{"user_id":["a","b"]}"#).as_deref(), Some(r#"user_id is none of ["a", "b"]"#));
        assert_eq!(
            why(r#"{"payload":{"n":1}}"#).as_deref(),
            Some(r#"payload key "n" is not equal to what is asked for"#)
        );
        assert_eq!(why(r#"{"exclude":{"source":"timer"}}"#).as_deref(), Some("source is excluded"));
    }

    #[test]
    fn a_filter_of_another_shape_is_refused() {
        for bad in [
            r#"{"event_types":"a"}"#,
            r#"{"event_types":[1]}"#,
            r#"{"session_id":7}"#,
            r#"{"source":[null]}"#,
            r#"{"payload":[]}"#,
            r#"{"payload":{"a":{}}}"#,
            r#"{"payload":{"a":[]}}"#,
            r#"{"payload":{"a":[[1]]}}"#,
            r#"{"payload":{"a":1e1000000000000000000}}"#,
            r#"{"exclude":[]}"#,
            r#"{"exclude":{"sesion_id":"a"}}"#,
            r#"{"event_types":["a",""]}"#,
            r#"{"user_id":[""]}"#,
            r#"{"exclude":{"source":["", "a"]}}"#,
            &format!(r#"{{"user_id":{}}}"#, Value::from(vec!["u"; VALUES_MAX + 1])),
        ] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_longer_than_any_event_can_have_is_refused() {
        for (key, chars_max) in [("event_types", 64), ("source", 100), ("session_id", 200), ("user_id", 200)] {
            for (letter, list) in [("x", false), ("\u{1f600}", true), ("\u{e9}", true)] {
                let asked = |count: usize| {
                    let value = Value::from(letter.repeat(count));
                    let value = if list || key == "event_types" { Value::from(vec![value]) } else { value };
                    [serde_json::json!({ key: value }), serde_json::json!({ "exclude": { key: value } })]
                };
                asked(chars_max).into_iter().for_each(|asked| assert!(filter(&asked.to_string()).is_ok(), "{asked}"));
                for asked in asked(chars_max + 1) {
                    assert!(filter(&asked.to_string()).is_err(), "{asked}");
                    let stored = asked.as_object().expect("an object");
                    assert!(Filter::parse_stored(stored).is_ok(), "an older version took it: {asked}");
                }
            }
        }
    }

    #[test]
    fn an_empty_condition_is_found_wherever_it_is() {
        let found = |json: &str| {
            let asked = serde_json::from_str::<Value>(json).expect("JSON");
            Filter::empty_condition(asked.as_object().expect("an object")).map(str::to_owned)
        };
        for (json, key) in [
            (r#"{"source":"a","session_id":""}"#, "session_id"),
            (r#"{"source":"a","event_types":[]}"#, "event_types"),
            (r#"{"source":"a","event_types":["a",""]}"#, "event_types"),
            (r#"{"source":"a","user_id":null}"#, "user_id"),
            (r#"{"source":"a","payload":{}}"#, "payload"),
            (r#"{"source":"a","exclude":null}"#, "exclude"),
            (r#"{"source":"a","exclude":{}}"#, "exclude"),
            (r#"{"source":"a","exclude":{"user_id":""}}"#, "user_id"),
            (r#"{"source":"a","exclude":{"payload":{}}}"#, "payload"),
            (r#"{"payload":""}"#, "payload"),
            (r#"{"payload":[]}"#, "payload"),
            (r#"{"payload":{"x":1,"k":[]}}"#, "payload"),
            (r#"{"exclude":""}"#, "exclude"),
            (r#"{"exclude":[]}"#, "exclude"),
            (r#"{"exclude":{"payload":{"exclude":[]}}}"#, "payload"),
        ] {
            assert_eq!(found(json).as_deref(), Some(key), "{json}");
        }
        let values = r#"{"source":"a","payload":{"x":"","y":null,"z":["",null]},"exclude":{"payload":{"":""}}}"#;
        assert_eq!(found(values), None, "of a payload these are values");
        assert_eq!(found("{}"), None);
    }

    #[test]
    fn a_stored_filter_asks_for_the_same_as_it_did_from_the_client() {
        for number in ["184467440737095516160001", "0.1", "1e400", "-5e-324", "-0", "9007199254740993.0"] {
            let text = format!(r#"{{"payload":{{"n":{number}}}}}"#);
            let asked: Value = serde_json::from_str(&text).expect(number);
            assert_eq!(filter(&asked.to_string()), filter(&text), "{number}");
        }
    }

    #[test]
    fn a_stored_number_with_an_exponent_out_of_range_is_equal_to_nothing() {
        for number in ["1e-99999999999999999999", "1e99999999999999999999", "-1e1000000000000000001"] {
            let passes = |text: &str, payload: &str| {
                let asked: Value = serde_json::from_str(text).expect(number);
                assert!(
                    Filter::parse(asked.as_object().expect("an object")).is_err(),
                    "a client may not use it: {text}"
                );
                let stored = Filter::parse_stored(asked.as_object().expect("an object")).expect(text);
                stored.matches(&Columns { payload: payload.as_bytes(), ..EVENT })
            };
            let (wanted, one_of) =
                (format!(r#"{{"payload":{{"n":{number}}}}}"#), format!(r#"{{"payload":{{"n":[{number},7]}}}}"#));
            let excluded = format!(r#"{{"exclude":{{"payload":{{"n":{number}}}}}}}"#);
            let same = format!(r#"{{"n":{number}}}"#);
            for payload in [r#"{"n":0}"#, r#"{"n":null}"#, "{}", &same] {
                assert!(!passes(&wanted, payload) && !passes(&one_of, payload), "{number}, {payload}");
                assert!(passes(&excluded, payload), "{number}, {payload}");
            }
            assert!(passes(&one_of, r#"{"n":7}"#), "{number}");
        }
    }

    #[test]
    fn numbers_are_compared_digit_by_digit() {
        let passes = |asked: &str, payload: &str| {
            let payload = format!(r#"{{"n":{payload}}}"#);
            let asked = filter(&format!(r#"{{"payload":{{"n":{asked}}}}}"#)).expect(asked);
            asked.matches(&Columns { payload: payload.as_bytes(), ..EVENT })
        };
        for (asked, payload) in [
            ("18446744073709551615", "18446744073709551615.0"),
            ("1e400", "1E+400"),
            ("0", "-0.0"),
            ("[1,2e0]", "20e-1"),
        ] {
            assert!(passes(asked, payload), "{asked} is {payload}");
        }
        for (asked, payload) in [
            ("18446744073709551615", "18446744073709551616"),
            ("1e-400", "0"),
            ("0", "1e-400"),
            ("1e400", "1e401"),
            ("0.1", "0.1000000000000000055511151231257827021181583404541015625"),
            ("1", "\"1\""),
            ("1", "1e1000000000000000000"),
        ] {
            assert!(!passes(asked, payload), "{asked} is not {payload}");
        }
    }

    #[test]
    fn a_number_of_a_payload_is_parsed_once_for_all_that_it_is_compared_with() {
        use crate::event::decimal::PARSED;
        let numbers = Value::from((0..VALUES_MAX).collect::<Vec<_>>());
        let asked = filter(&format!(r#"{{"payload":{{"n":{numbers}}},"exclude":{{"payload":{{"n":{numbers}}}}}}}"#));
        let (asked, before) = (asked.expect("a filter"), PARSED.get());
        assert!(!asked.matches(&Columns { payload: br#"{"n":1000}"#, ..EVENT }));
        assert_eq!(PARSED.get() - before, 1);
    }

    #[test]
    fn equal_filters_are_equal_however_they_are_spelled() {
        assert_eq!(
            filter(r#"{"session_id":["b","a","b"],"payload":{"x":1,"y":[2,"a",null]}}"#),
            filter(
                r#"{"payload":{"y":[null,"a",2.0,"a"],"x":[10e-1]},"session_id":["a","b"],"user_id":null,"other":1}"#
            )
        );
        assert!(
            filter(r#"{"event_types":"","session_id":"","user_id":null,"source":[],"exclude":{},"payload":{}}"#)
                .expect("empty")
                .is_any()
        );
    }

    /// Of few values, spelled in several ways each.
    fn scalar() -> impl Strategy<Value = String> {
        let number = (-12i64..12, -2i64..3).prop_map(|(number, exponent)| format!("{number}e{exponent}"));
        prop_oneof![
            "null|true|false",
            number,
            "-?(0|[1-3][0-3]{0,2})([.][0-3]{1,2})?",
            "(a|b|\\\\\"|\\\\u0061|\u{e9}){0,2}".prop_map(|text| format!("\"{text}\"")),
            "[{]}|\\[\\]|\\[1]",
        ]
    }

    /// A filter of a few values each, among them lists and keys that another one shares.
    fn any_filter() -> impl Strategy<Value = Filter> {
        let values = || prop::collection::vec("[a-d]", 1..4);
        let fields = || {
            let field = prop::sample::select(Field::ALL.to_vec());
            prop::collection::vec((field, values()), 0..3).prop_map(|fields| {
                fields.into_iter().map(|(field, values)| (field.name().to_owned(), values.into())).collect()
            })
        };
        let keys = || {
            let scalars = prop_oneof!["[1-3](\\.0)?", "null|true|false", "\"[ab]\""];
            let list = prop::collection::vec(scalars, 1..5);
            prop::collection::btree_map("[k-m]", list, 0..3).prop_map(|keys| {
                let keys = keys.into_iter().map(|(key, list)| format!("{key:?}:[{}]", list.join(",")));
                format!("{{{}}}", keys.collect::<Vec<_>>().join(","))
            })
        };
        (fields(), fields(), keys(), keys()).prop_map(|(wanted, excluded, payload, excluded_payload)| {
            let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
            let (mut wanted, mut excluded): (Map<_, _>, Map<_, _>) = (wanted, excluded);
            excluded.insert("payload".to_owned(), json(&excluded_payload));
            wanted.insert("payload".to_owned(), json(&payload));
            wanted.insert("exclude".to_owned(), excluded.into());
            Filter::parse(&wanted).expect("a filter")
        })
    }

    #[test]
    fn a_filter_narrowed_to_disjoint_values_passes_nothing() {
        let of = |session: &str| Filter::default().with(Field::Session, [session]);
        let (both, other) = (of("a").within(&of("b")), of("a").within(&Filter::default()));
        assert_eq!((both.wanted(Field::Session), both.is_any(), both.is_indexed()), (Some(&[][..]), false, true));
        assert!(!both.matches(&Columns { session_id: Some(b"a"), ..EVENT }));
        assert!(other.matches(&Columns { session_id: Some(b"a"), ..EVENT }));
        let key =
            |scalar: i64| filter(&serde_json::json!({ "payload": { "n": scalar } }).to_string()).expect("a filter");
        assert!(key(7).matches(&EVENT) && !key(7).within(&key(8)).matches(&EVENT));
    }

    /// Whether two values are equal, compared one by one.
    fn are_equal(one: &Value, other: &Value) -> bool {
        match (one, other) {
            (Value::Number(one), Value::Number(other)) => {
                Decimal::parse(one.as_str()) == Decimal::parse(other.as_str())
            }
            (Value::Array(_) | Value::Object(_), _) => false,
            (one, other) => one == other,
        }
    }

    proptest! {
        #[test]
        fn an_event_passes_a_narrowed_filter_if_it_passes_both(
            (one, other) in (any_filter(), any_filter()),
            (event_type, source) in ("[a-d]", "[a-d]"),
            (session, user) in (prop::option::of("[a-d]"), prop::option::of("[a-d]")),
            payload in prop::collection::btree_map("[k-m]", "[1-3]|null|true|false|\"[ab]\"", 0..4),
        ) {
            let payload = payload.into_iter().map(|(key, value)| format!("{key:?}:{value}")).collect::<Vec<_>>().join(",");
            let payload = format!("{{{payload}}}");
            let event = Columns {
                event_type: event_type.as_bytes(),
                source: source.as_bytes(),
                session_id: session.as_ref().map(String::as_bytes),
                user_id: user.as_ref().map(String::as_bytes),
                payload: payload.as_bytes(),
            };
            let both = one.within(&other);
            prop_assert_eq!(both.matches(&event), one.matches(&event) && other.matches(&event), "{:?}", both);
            prop_assert_eq!(&both, &other.within(&one));
            prop_assert_eq!(&both, &both.within(&one));
            prop_assert_eq!(&one, &one.within(&Filter::default()));
        }

        #[test]
        fn a_value_is_found_among_many_if_it_is_equal_to_one(
            values in prop::collection::vec(scalar(), 1..24),
            value in scalar(),
        ) {
            let read = |json: &String| serde_json::from_str::<Value>(json).expect(json);
            let asked: Vec<Value> =
                values.iter().map(read).filter(|asked| !asked.is_array() && !asked.is_object()).collect();
            prop_assume!(!asked.is_empty());
            let filter = filter(&serde_json::json!({ "payload": { "k": asked } }).to_string()).expect("a filter");
            let payload = format!(r#"{{"k":{value}}}"#);
            let passes = filter.matches(&Columns { payload: payload.as_bytes(), ..EVENT });
            let is_one = asked.iter().any(|asked| are_equal(asked, &read(&value)));
            prop_assert_eq!(passes, is_one, "{} among {:?}", value, asked);
        }
    }
}
