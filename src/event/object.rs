//! JSON objects in which a client asks for something: a filter, the options of a subscription. A key that is misspelled
//! or repeated would change the meaning silently, so both are found here.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Value};

/// A JSON object, and the keys that it has twice: its map has only the last of two equal keys, but the client may have
/// meant the first.
#[derive(Debug)]
pub struct Object {
    pub members: Map<String, Value>,
    /// A key that the object itself has twice.
    pub repeated: Option<String>,
    /// A key that an object within it has twice, at any depth, if its value is read ([`IsRead`]).
    pub repeated_within: Option<String>,
}

/// Whether the value of a key is read; the number is how many objects the key is within. Repeated keys within values that
/// are not read do no harm.
pub type IsRead<'s> = &'s dyn Fn(usize, &str) -> bool;

impl Object {
    /// # Errors
    /// What serde_json reports, and a value that is not an object.
    pub fn read(text: &[u8], is_read: IsRead<'_>) -> serde_json::Result<Self> {
        let (mut repeated, mut repeated_within) = (None, None);
        let reader = Reader { is_read, depth: 0, repeated: &mut repeated, repeated_within: &mut repeated_within };
        let mut text = serde_json::Deserializer::from_slice(text);
        let value = reader.deserialize(&mut text)?;
        text.end()?;
        match value {
            Value::Object(members) => Ok(Self { members, repeated, repeated_within }),
            _ => Err(serde_json::Error::custom("this is no JSON object")),
        }
    }

    /// A key that the object has twice, itself or within.
    pub fn repeated_anywhere(&self) -> Option<&str> {
        self.repeated.as_deref().or(self.repeated_within.as_deref())
    }
}

/// Refuses unknown keys: a misspelled one would have no effect, and its client would not notice.
pub fn only_known(object: &Map<String, Value>, is_known: impl Fn(&str) -> bool, what: &str) -> Result<(), String> {
    match object.keys().find(|key| !is_known(key)) {
        Some(key) => Err(format!("{what} has the unknown key '{key}'")),
        None => Ok(()),
    }
}

/// Reads a value and notes the keys that an object has twice.
struct Reader<'s> {
    is_read: IsRead<'s>,
    /// How many objects the value is within.
    depth: usize,
    repeated: &'s mut Option<String>,
    repeated_within: &'s mut Option<String>,
}

impl Reader<'_> {
    /// The reader for a value within an object or a list.
    fn within(&mut self, is_read: bool, depth: usize) -> Reader<'_> {
        let is_read: IsRead<'_> = if is_read { self.is_read } else { &|_, _| false };
        Reader { is_read, depth, repeated: self.repeated, repeated_within: self.repeated_within }
    }
}

/// serde_json (`arbitrary_precision`) hands over a number that is not an integer of 64 bits as an object with this key,
/// whose value is the digits as a text. The name is private to serde_json; the property test below fails if it changes.
const NUMBER: &str = "$serde_json::private::Number";

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == NUMBER {
                return map.next_value::<String>()?.parse().map(Value::Number).map_err(A::Error::custom);
            }
            let is_read = (self.is_read)(self.depth, &key);
            let value = map.next_value_seed(self.within(is_read, self.depth + 1))?;
            match members.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(value);
                }
                Entry::Occupied(mut entry) => {
                    let repeated = if self.depth == 0 { &mut *self.repeated } else { &mut *self.repeated_within };
                    if repeated.is_none() && (is_read || self.depth == 0) {
                        *repeated = Some(entry.key().clone());
                    }
                    entry.insert(value);
                }
            }
        }
        Ok(Value::Object(members))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self.within(true, self.depth))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::from(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::from(text))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Object {
        Object::read(text.as_bytes(), &|_, _| true).expect(text)
    }

    #[test]
    fn a_repeated_key_is_found_at_every_depth() {
        for (text, repeated, within) in [
            (r#"{"a":1,"b":{"a":1},"c":[{"a":1},{"a":2}]}"#, None, None),
            (r#"{"a":1,"\u0061":1}"#, Some("a"), None),
            (r#"{"a":1,"b":2,"b":3,"a":4}"#, Some("b"), None),
            (r#"{"a":{"b":1,"b":1}}"#, None, Some("b")),
            (r#"{"a":[7,[{"b":[{"c":null,"d":{},"c":0.5}]}]]}"#, None, Some("c")),
            (r#"{"a":{"b":1,"b":1},"a":1}"#, Some("a"), Some("b")),
        ] {
            let object = read(text);
            assert_eq!((object.repeated.as_deref(), object.repeated_within.as_deref()), (repeated, within), "{text}");
            assert_eq!(object.repeated_anywhere(), repeated.or(within), "{text}");
            assert_eq!(Value::Object(object.members), serde_json::from_str::<Value>(text).expect("JSON"), "{text}");
        }
    }

    #[test]
    fn a_value_that_is_not_read_may_have_a_key_twice() {
        let is_read = |depth: usize, key: &str| depth > 1 || key == "ours";
        let repeated_within = |text: &str| Object::read(text.as_bytes(), &is_read).expect(text).repeated_within;
        for text in [
            r#"{"theirs":{"a":1,"a":1,"ours":{"a":1,"a":1}}}"#,
            r#"{"theirs":[{"a":1,"a":1}]}"#,
            r#"{"ours":{"theirs":1,"theirs":{"a":1,"a":1}}}"#,
        ] {
            assert_eq!(repeated_within(text), None, "{text}");
        }
        assert_eq!(repeated_within(r#"{"ours":{"ours":1,"ours":1}}"#).as_deref(), Some("ours"));
        assert_eq!(repeated_within(r#"{"ours":{"ours":{"a":1,"a":1}}}"#).as_deref(), Some("a"));
    }

    #[test]
    fn a_text_that_is_not_an_object_is_refused() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for text in ["", "7", "[]", "null", "\"x\"", "{", "{}}", "{\"a\":01}", "{\"a\":\u{1}}", &deep] {
            assert!(Object::read(text.as_bytes(), &|_, _| true).is_err(), "{text}");
        }
        assert!(Object::read(b"{\"a\":\"\xff\"}", &|_, _| true).is_err(), "not UTF-8");
    }

    fn value() -> impl Strategy<Value = Value> {
        let numbers = "-?(0|[1-9][0-9]{0,40})([.][0-9]{1,40})?([eE][+-]?[0-9]{1,4})?";
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            numbers.prop_map(|digits| serde_json::from_str(&digits).expect("a number")),
            ".{0,8}".prop_map(Value::String),
        ];
        scalar.prop_recursive(4, 32, 4, |inner| {
            let object = prop::collection::vec((".{0,3}", inner.clone()), 0..4);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::Array),
                object.prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Every digit of a number, and the order of the keys.
        #[test]
        fn an_object_is_read_as_it_is_written(value in value()) {
            let text = format!(r#"{{"of":{value}}}"#);
            let object = read(&text);
            prop_assert_eq!(object.repeated_anywhere(), None);
            prop_assert_eq!(Value::Object(object.members).to_string(), text);
        }
    }
}
