//! JSON as serde_json reads it, but with numbers of any size and the spelling of every value. The parser of events is
//! compared with this.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

#[derive(Debug, Clone)]
pub struct Json<'t> {
    pub raw: &'t str,
    pub value: Value<'t>,
}

#[derive(Debug, Clone)]
pub enum Value<'t> {
    Null,
    Bool(bool),
    /// The text that spells it.
    Number(&'t str),
    Text(String),
    List(Vec<Json<'t>>),
    /// In order, with repeated keys.
    Object(Vec<(String, Json<'t>)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRead {
    Invalid,
    /// Well-formed up to where the depth ended it.
    Deep,
}

/// More levels than any accepted text has.
const DEPTH_MAX: usize = 160;

struct Members<'t>(Vec<(String, &'t RawValue)>);

impl<'t> Deserialize<'t> for Members<'t> {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'t> Visitor<'t> for InOrder {
            type Value = Members<'t>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'t>>(self, mut map: M) -> Result<Members<'t>, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl<'t> Json<'t> {
    pub fn read(text: &'t str) -> Result<Self, NotRead> {
        let raw: &RawValue = serde_json::from_str(text).map_err(|_| NotRead::Invalid)?;
        Self::of(raw.get(), 0)
    }

    fn of(raw: &'t str, depth: usize) -> Result<Self, NotRead> {
        if depth > DEPTH_MAX {
            return Err(NotRead::Deep);
        }
        fn read<'t, T: Deserialize<'t>>(raw: &'t str) -> Result<T, NotRead> {
            serde_json::from_str(raw).map_err(|_| NotRead::Invalid)
        }
        let value = match raw.as_bytes()[0] {
            b'n' => Value::Null,
            b't' | b'f' => Value::Bool(read(raw)?),
            b'"' => Value::Text(read(raw)?),
            b'[' => {
                let items: Vec<&RawValue> = read(raw)?;
                Value::List(items.into_iter().map(|item| Self::of(item.get(), depth + 1)).collect::<Result<_, _>>()?)
            }
            b'{' => {
                let Members(members) = read(raw)?;
                let members = members.into_iter().map(|(key, value)| Ok((key, Self::of(value.get(), depth + 1)?)));
                Value::Object(members.collect::<Result<_, _>>()?)
            }
            _ => Value::Number(raw),
        };
        Ok(Self { raw, value })
    }

    /// The levels of nested arrays and objects.
    pub fn depth(&self) -> usize {
        match &self.value {
            Value::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Value::Object(members) => 1 + members.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// The last member of this name.
    pub fn get(&self, name: &str) -> Option<&Json<'t>> {
        let Value::Object(members) = &self.value else { return None };
        members.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether both are equal apart from whitespace.
    pub fn says_the_same(&self, other: &Json<'_>) -> bool {
        match (&self.value, &other.value) {
            (Value::Null, Value::Null) => true,
            (Value::Bool(one), Value::Bool(other)) => one == other,
            (Value::Number(one), Value::Number(other)) => one == other,
            (Value::Text(one), Value::Text(other)) => one == other,
            (Value::List(one), Value::List(other)) => {
                one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.says_the_same(other))
            }
            (Value::Object(one), Value::Object(other)) => {
                let is_same = |((key, one), (other_key, other)): (&(String, Json<'_>), &(String, Json<'_>))| {
                    key == other_key && one.says_the_same(other)
                };
                one.len() == other.len() && one.iter().zip(other).all(is_same)
            }
            _ => false,
        }
    }
}
