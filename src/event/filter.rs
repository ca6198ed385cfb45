//! Which events somebody wants: one language for subscriptions, queries, exports and deletions.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::decimal::{Decimal, Spelled};
use super::object::only_known;
use super::types::NAME_CHARS_MAX;
use super::{Columns, REFERENCE_CHARS_MAX, SOURCE_CHARS_MAX};

/// Selects events by their fields; what is not named does not matter.
///
/// As JSON, `{"event_types": […], "session_id": "a" or ["a", "b"], "user_id": …, "source": …,
/// "payload": {"key": scalar or [scalars]}, "exclude": {the same keys}}`: an event passes if each field
/// has one of the values named for it, each payload key is equal to one of its, and nothing of
/// `exclude` is true of it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub struct Filter {
    /// By [`Field`]: any of these, sorted and without repeats; empty means every value. A type need not
    /// be registered: history may hold types that a past configuration knew.
    wanted: [Values; 4],
    /// What no index knows. Rare, so everybody else pays one word for it.
    rest: Option<Arc<Rest>>,
}

type Values = Box<[Box<str>]>;

/// Conditions that are looked up in the event itself.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
struct Rest {
    unwanted: [Values; 4],
    payload: Vec<PayloadKey>,
    unwanted_payload: Vec<PayloadKey>,
}

/// A top-level key of the payload, and the scalars it may be equal to: those of a kind sorted and without repeats, so
/// that a value is looked up among a thousand.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
struct PayloadKey {
    key: Box<str>,
    null: bool,
    bools: [bool; 2],
    texts: Values,
    numbers: Box<[Decimal]>,
    /// Whether a number with an exponent beyond all use is among them. Only a kept filter has one, and it is equal to
    /// nothing.
    has_no_number: bool,
}

/// A value of a payload, read once for all that it is compared with: it may be as long as a payload.
enum Scalar<'p> {
    Null,
    Bool(bool),
    /// Unescaped.
    Text(Cow<'p, str>),
    Number(Spelled<'p>),
}

/// A field that filters select by and the record is indexed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Type = 0,
    Source = 1,
    Session = 2,
    User = 3,
}

impl Field {
    pub const ALL: [Field; 4] = [Field::Type, Field::Source, Field::Session, Field::User];

    /// Its key in a filter, which for the type is older than lists for the others.
    pub fn name(self) -> &'static str {
        ["event_types", "source", "session_id", "user_id"][self as usize]
    }

    /// Characters of the longest value that an event may have.
    fn chars_max(self) -> usize {
        match self {
            Field::Type => NAME_CHARS_MAX,
            Field::Source => SOURCE_CHARS_MAX,
            Field::Session | Field::User => REFERENCE_CHARS_MAX,
        }
    }
}

/// Whether the value of a condition on a field, or of a time, means "any": null, an empty text and an empty list do.
pub fn says_nothing(asked: &Value) -> bool {
    match asked {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// Values of one condition: a class's worth of sessions. Each costs its own look at an index.
pub const VALUES_MAX: usize = 1_000;
/// Payload keys of one filter, each a comparison for every event that passes the rest of it.
const PAYLOAD_KEYS_MAX: usize = 20;

impl Filter {
    /// The filter that the keys of a JSON object ask for; other keys are left to their owner.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn parse(asked: &Map<String, Value>) -> Result<Self, String> {
        let filter = Self::parse_kept(asked)?;
        let rest = filter.rest.as_deref();
        let mut payload_keys = rest.into_iter().flat_map(|rest| rest.payload.iter().chain(&rest.unwanted_payload));
        if let Some(bad) = payload_keys.find(|key| key.has_no_number) {
            return Err(not_scalars(&bad.key));
        }
        for field in Field::ALL {
            let unwanted = rest.map_or(&[][..], |rest| &rest.unwanted[field as usize]);
            for value in filter.wanted(field).iter().chain(unwanted) {
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

    /// A filter from the database. An older version may have stored it, which accepted empty and longer values in
    /// lists, and numbers with any exponent. Texts are compared as they are; such a number is equal to nothing, not even
    /// to itself in a payload.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse_kept(asked: &Map<String, Value>) -> Result<Self, String> {
        let mut rest = Rest { payload: payload_keys(asked)?, ..Rest::default() };
        match asked.get("exclude") {
            None | Some(Value::Null) => {}
            Some(Value::Object(exclude)) => {
                // With a misspelled key left out, the client would get what it wants to exclude.
                only_known(exclude, |key| key == "payload" || is_field(key), "Filter 'exclude'")?;
                rest.unwanted = values_of(exclude)?;
                rest.unwanted_payload = payload_keys(exclude)?;
            }
            Some(_) => return Err("Filter 'exclude' must be an object or null".to_owned()),
        }
        let rest = (rest != Rest::default()).then(|| Arc::new(rest));
        Ok(Self { wanted: values_of(asked)?, rest })
    }

    /// The first condition that is present and empty. For a query it means any event; a deletion refuses it, for the
    /// client may have meant to spare events by it.
    pub fn empty_condition(asked: &Map<String, Value>) -> Option<&str> {
        asked.iter().filter(|(key, _)| Self::is_key(key)).find_map(|(key, value)| match value {
            nothing if says_nothing(nothing) => Some(&**key),
            Value::Object(inner) if inner.is_empty() => Some(&**key),
            // A payload may have any of the scalars, but none of no scalars.
            Value::Object(keys) if key == "payload" => {
                keys.values().any(|values| values.as_array().is_some_and(Vec::is_empty)).then_some(&**key)
            }
            // Within `exclude` there is no other one: that is refused as no filter.
            Value::Object(exclude) if key == "exclude" => {
                Self::empty_condition(exclude).filter(|key| *key != "exclude")
            }
            Value::Array(list) if is_field(key) => list.iter().any(|of| of == "").then_some(&**key),
            _ => None,
        })
    }

    /// The keys of a JSON object that belong to its filter.
    pub fn is_key(key: &str) -> bool {
        matches!(key, "payload" | "exclude") || is_field(key)
    }

    /// The same filter for these values of a field only; none at all means every value.
    pub fn with<S: Into<Box<str>>>(mut self, field: Field, values: impl IntoIterator<Item = S>) -> Self {
        self.wanted[field as usize] = sorted(values.into_iter().map(Into::into).collect());
        self
    }

    /// The same filter for these types only; none at all means every type.
    pub fn with_types<S: Into<Box<str>>>(self, types: impl IntoIterator<Item = S>) -> Self {
        self.with(Field::Type, types)
    }

    /// The values asked for, sorted; empty means every value.
    pub fn wanted(&self, field: Field) -> &[Box<str>] {
        &self.wanted[field as usize]
    }

    /// Whether every event passes.
    pub fn is_any(&self) -> bool {
        !self.is_indexed() && !self.has_rest()
    }

    /// Whether it asks for values of a field, which an index finds.
    pub fn is_indexed(&self) -> bool {
        self.wanted.iter().any(|values| !values.is_empty())
    }

    /// Whether it asks for more than an index finds: then [`matches`](Self::matches) decides.
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
            let wanted = self.wanted(field);
            if !wanted.is_empty() && !event.field(field).is_some_and(|value| holds(wanted, value)) {
                return Some(Mismatch::NotWanted(field, wanted));
            }
        }
        let rest = self.rest.as_deref()?;
        for field in Field::ALL {
            if event.field(field).is_some_and(|value| holds(&rest.unwanted[field as usize], value)) {
                return Some(Mismatch::Excluded(field.name()));
            }
        }
        if rest.payload.is_empty() && rest.unwanted_payload.is_empty() {
            return None;
        }
        let found = Found::within(event.payload, &rest.payload, &rest.unwanted_payload);
        if let Some(key) = rest.payload.iter().zip(&found.wanted).find_map(|(key, is)| (!is).then_some(key)) {
            return Some(Mismatch::Payload(&key.key));
        }
        let excluded = rest.unwanted_payload.iter().zip(&found.unwanted).find_map(|(key, is)| is.then_some(key));
        excluded.map(|key| Mismatch::Excluded(&key.key))
    }
}

/// Why an event does not pass a filter, as a sentence for whoever asks.
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

fn sorted(mut values: Vec<Box<str>>) -> Values {
    values.sort_unstable();
    values.dedup();
    values.into()
}

/// Whether sorted values hold one.
fn holds(values: &[Box<str>], value: &[u8]) -> bool {
    match values {
        // The usual cases, without a search.
        [] => false,
        [one] => one.as_bytes() == value,
        many => many.binary_search_by(|other| other.as_bytes().cmp(value)).is_ok(),
    }
}

/// For each field what a JSON object says of it: one value or a list; what says nothing leaves any.
fn values_of(object: &Map<String, Value>) -> Result<[Values; 4], String> {
    let mut values = <[Values; 4]>::default();
    for field in Field::ALL {
        let key = field.name();
        let Some(asked) = object.get(key).filter(|asked| !says_nothing(asked)) else { continue };
        values[field as usize] = match asked {
            Value::String(text) if field != Field::Type => [text.as_str().into()].into(),
            Value::Array(list) if list.len() <= VALUES_MAX => {
                let texts = list.iter().map(|value| value.as_str().map(Box::from));
                let not_texts = || format!("Filter '{key}' must be a list of strings");
                sorted(texts.collect::<Option<_>>().ok_or_else(not_texts)?)
            }
            Value::Array(_) => return Err(format!("Filter '{key}' has more than {VALUES_MAX} values")),
            _ if field == Field::Type => return Err(format!("Filter '{key}' must be a list of strings or null")),
            _ => return Err(format!("Filter '{key}' must be a string, a list of strings or null")),
        };
    }
    Ok(values)
}

fn payload_keys(object: &Map<String, Value>) -> Result<Vec<PayloadKey>, String> {
    let keys = match object.get("payload") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(keys)) if keys.len() <= PAYLOAD_KEYS_MAX => keys,
        Some(Value::Object(_)) => return Err(format!("Filter 'payload' has more than {PAYLOAD_KEYS_MAX} keys")),
        Some(_) => return Err("Filter 'payload' must be an object or null".to_owned()),
    };
    let mut parsed = Vec::with_capacity(keys.len());
    for (key, value) in keys {
        let asked = value.as_array().map_or(std::slice::from_ref(value), |list| list);
        let is_well = (1..=VALUES_MAX).contains(&asked.len());
        let of_key = if is_well { PayloadKey::of(key, asked) } else { None };
        parsed.push(of_key.ok_or_else(|| not_scalars(key))?);
    }
    // Filters that ask for the same are equal, in whatever order they are spelled.
    parsed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    Ok(parsed)
}

fn not_scalars(key: &str) -> String {
    format!(
        "Filter 'payload' key '{key}' must be a string, a number (its exponent of at most 18 digits), true, false, \
         null, or a list of up to {VALUES_MAX} of these"
    )
}

/// Which payload keys were found to be equal to what is asked for.
struct Found<'k> {
    wanted_keys: &'k [PayloadKey],
    unwanted_keys: &'k [PayloadKey],
    wanted: Vec<bool>,
    unwanted: Vec<bool>,
}

impl<'k> Found<'k> {
    fn within(payload: &[u8], wanted_keys: &'k [PayloadKey], unwanted_keys: &'k [PayloadKey]) -> Self {
        let (wanted, unwanted) = (vec![false; wanted_keys.len()], vec![false; unwanted_keys.len()]);
        let mut found = Self { wanted_keys, unwanted_keys, wanted, unwanted };
        // A payload of the service before this one may be no JSON that we know; then nothing is equal.
        let _ = serde_json::Deserializer::from_slice(payload).deserialize_map(&mut found);
        found
    }
}

#[derive(Deserialize)]
struct Key<'p>(#[serde(borrow)] Cow<'p, str>);

impl<'p> Visitor<'p> for &mut Found<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a payload")
    }

    fn visit_map<M: MapAccess<'p>>(self, mut payload: M) -> Result<(), M::Error> {
        while let Some(Key(key)) = payload.next_key()? {
            let place = |keys: &[PayloadKey]| keys.iter().position(|asked| *asked.key == *key);
            let (wanted, unwanted) = (place(self.wanted_keys), place(self.unwanted_keys));
            if wanted.is_none() && unwanted.is_none() {
                payload.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = Scalar::of(payload.next_value::<&RawValue>()?.get());
            let is_one_of = |asked: &PayloadKey| value.as_ref().is_some_and(|value| asked.holds(value));
            // The last of two equal keys counts.
            if let Some(place) = wanted {
                self.wanted[place] = is_one_of(&self.wanted_keys[place]);
            }
            if let Some(place) = unwanted {
                self.unwanted[place] = is_one_of(&self.unwanted_keys[place]);
            }
        }
        Ok(())
    }
}

impl PayloadKey {
    /// `None` if nothing of a payload is compared with one of the values.
    fn of(key: &str, values: &[Value]) -> Option<Self> {
        let mut parsed = Self { key: key.into(), ..Self::default() };
        let (mut texts, mut numbers) = (Vec::new(), Vec::new());
        for value in values {
            match value {
                Value::Null => parsed.null = true,
                Value::Bool(asked) => parsed.bools[usize::from(*asked)] = true,
                Value::String(text) => texts.push(text.as_str().into()),
                Value::Number(number) => match Decimal::parse(number.as_str()) {
                    Some(number) => numbers.push(number),
                    None => parsed.has_no_number = true,
                },
                Value::Array(_) | Value::Object(_) => return None,
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        Some(Self { texts: sorted(texts), numbers: numbers.into(), ..parsed })
    }

    /// Whether a value is equal to one of its own: texts unescaped, numbers by value.
    fn holds(&self, value: &Scalar<'_>) -> bool {
        match value {
            Scalar::Null => self.null,
            Scalar::Bool(value) => self.bools[usize::from(*value)],
            Scalar::Text(text) => holds(&self.texts, text.as_bytes()),
            Scalar::Number(number) => self.numbers.binary_search_by(|asked| asked.cmp_spelled(number)).is_ok(),
        }
    }
}

impl<'p> Scalar<'p> {
    /// What the JSON of a value says; `None` if it can be equal to nothing.
    fn of(json: &'p str) -> Option<Self> {
        match json.as_bytes() {
            b"null" => Some(Self::Null),
            b"true" => Some(Self::Bool(true)),
            b"false" => Some(Self::Bool(false)),
            [b'"', text @ .., b'"'] => match text.contains(&b'\\') {
                false => Some(Self::Text(json[1..json.len() - 1].into())),
                true => serde_json::from_str(json).ok().map(|text: String| Self::Text(text.into())),
            },
            [b'-' | b'0'..=b'9', ..] => Spelled::of(json).map(Self::Number),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn what_does_not_pass_is_told_why() {
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
    fn what_is_no_filter_is_refused() {
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
                    let kept = asked.as_object().expect("an object");
                    assert!(Filter::parse_kept(kept).is_ok(), "an older version took it: {asked}");
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
    fn a_filter_that_was_kept_asks_for_the_same() {
        for number in ["184467440737095516160001", "0.1", "1e400", "-5e-324", "-0", "9007199254740993.0"] {
            let text = format!(r#"{{"payload":{{"n":{number}}}}}"#);
            let asked: Value = serde_json::from_str(&text).expect(number);
            assert_eq!(filter(&asked.to_string()), filter(&text), "{number}");
        }
    }

    #[test]
    fn a_kept_number_beyond_all_use_is_equal_to_nothing() {
        for number in ["1e-99999999999999999999", "1e99999999999999999999", "-1e1000000000000000001"] {
            let passes = |text: &str, payload: &str| {
                let asked: Value = serde_json::from_str(text).expect(number);
                assert!(Filter::parse(asked.as_object().expect("an object")).is_err(), "a client is told: {text}");
                let kept = Filter::parse_kept(asked.as_object().expect("an object")).expect(text);
                kept.matches(&Columns { payload: payload.as_bytes(), ..EVENT })
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
    fn an_events_value_is_taken_apart_once_however_many_it_is_compared_with() {
        use crate::event::decimal::TAKEN_APART;
        let numbers = Value::from((0..VALUES_MAX).collect::<Vec<_>>());
        let asked = filter(&format!(r#"{{"payload":{{"n":{numbers}}},"exclude":{{"payload":{{"n":{numbers}}}}}}}"#));
        let (asked, before) = (asked.expect("a filter"), TAKEN_APART.get());
        assert!(!asked.matches(&Columns { payload: br#"{"n":1000}"#, ..EVENT }));
        assert_eq!(TAKEN_APART.get() - before, 1);
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

    /// Whether two values are equal, looked at one by one.
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
