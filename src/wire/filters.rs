//! The filters of a subscription: what is compared with events, and the JSON that the client sent.

use serde_json::{Map, Value};

use crate::event::{Filter, Object, only_known};

/// A filter, and the JSON that asked for it, which answers repeat.
#[derive(Debug, Clone, PartialEq)]
pub struct Filters {
    pub filter: Filter,
    asked: Map<String, Value>,
}

/// Most memory that filters may take: 512 KiB are twice what those for 1,000 sessions and 1,000 users by UUID take. Each
/// subscriber and each durable subscription may have filters, and all of them are in memory.
pub const FILTERS_BYTES_MAX: usize = 512 << 10;

impl Filters {
    pub fn parse(message: &Map<String, Value>) -> Result<Self, String> {
        Ok(Self::new(Filter::parse(message)?, message))
    }

    /// The filters of an `update_filters`.
    pub(super) fn parse_update(mut message: Object, strict: bool) -> Result<Self, String> {
        if strict {
            only_known(&message.members, |key| matches!(key, "type" | "filters"), "'update_filters'")?;
        }
        no_repeats(message.repeated_within.or(message.repeated.filter(|_| strict)), "'update_filters'")?;
        match message.members.get_mut("filters").map(Value::take) {
            None if strict => Err("'update_filters' needs 'filters'".to_owned()),
            None | Some(Value::Null) => Self::parse(&Map::new()),
            Some(Value::Object(filters)) => {
                if strict {
                    only_known(&filters, Filter::is_key, "'filters'")?;
                }
                Self::parse(&filters)?.within_bounds()
            }
            Some(_) => Err("'filters' must be an object".to_owned()),
        }
    }

    /// Filters from the database. They may be from an older version, which accepted more than this one.
    pub fn parse_stored(stored: &Map<String, Value>) -> Result<Self, String> {
        Ok(Self::new(Filter::parse_stored(stored)?, stored))
    }

    fn new(filter: Filter, message: &Map<String, Value>) -> Self {
        let asked = message.iter().filter(|(key, _)| Filter::is_key(key));
        Self { filter, asked: asked.map(|(key, value)| (key.clone(), value.clone())).collect() }
    }

    /// The same filters, if they are no larger than a subscription may have them.
    pub(super) fn within_bounds(self) -> Result<Self, String> {
        match self.bytes() > FILTERS_BYTES_MAX {
            true => {
                Err(format!("The filters take more than {FILTERS_BYTES_MAX} bytes of memory: ask for fewer values"))
            }
            false => Ok(self),
        }
    }

    /// Memory that they take: for the JSON, and as much again for the filter.
    pub fn bytes(&self) -> usize {
        2 * self.asked.iter().map(|(key, value)| size_of::<String>() + key.len() + bytes_of(value)).sum::<usize>()
    }

    /// The same, but the filter is exactly what was asked for: it may have been narrowed since.
    #[must_use]
    pub fn as_asked(self) -> Self {
        match Filter::parse_stored(&self.asked) {
            Ok(filter) => Self { filter, ..self },
            Err(_) => self,
        }
    }

    /// The JSON that asked for them.
    pub fn asked(&self) -> &Map<String, Value> {
        &self.asked
    }
}

fn bytes_of(value: &Value) -> usize {
    size_of::<Value>()
        + match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            Value::String(text) => text.len(),
            Value::Array(list) => list.iter().map(bytes_of).sum(),
            Value::Object(object) => {
                object.iter().map(|(key, value)| size_of::<String>() + key.len() + bytes_of(value)).sum()
            }
        }
}

/// Refuses a repeated key: only one of its two values can count, and the client may have meant the other.
pub(super) fn no_repeats(repeated: Option<String>, what: &str) -> Result<(), String> {
    repeated.map_or(Ok(()), |key| Err(format!("{what} has the key '{key}' twice")))
}
