//! Conditions on the top-level keys of a payload.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::decimal::{Decimal, Spelled};
use super::values::{self, Sorted, VALUES_MAX};

/// Most payload keys of one filter. Each costs a comparison for every event that passes the rest of the filter.
const KEYS_MAX: usize = 20;

/// A top-level key of the payload, and the scalars that its value may be equal to; with none of them nothing is equal.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub struct PayloadKey {
    pub key: Box<str>,
    null: bool,
    bools: [bool; 2],
    texts: Sorted<Box<str>>,
    numbers: Sorted<Decimal>,
    /// Whether the exponent of one of its numbers is out of [`Decimal`]'s range. Only stored filters have such a number,
    /// and nothing is equal to it.
    pub has_no_number: bool,
}

impl PayloadKey {
    /// The conditions that a JSON object has under `payload`, sorted by key.
    pub fn parse_all(object: &Map<String, Value>) -> Result<Vec<Self>, String> {
        let keys = match object.get("payload") {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Object(keys)) if keys.len() <= KEYS_MAX => keys,
            Some(Value::Object(_)) => return Err(format!("Filter 'payload' has more than {KEYS_MAX} keys")),
            Some(_) => return Err("Filter 'payload' must be an object or null".to_owned()),
        };
        let mut parsed = Vec::with_capacity(keys.len());
        for (key, value) in keys {
            let scalars = value.as_array().map_or(std::slice::from_ref(value), |list| list);
            let is_valid = (1..=VALUES_MAX).contains(&scalars.len());
            let of_key = if is_valid { Self::parse(key, scalars) } else { None };
            parsed.push(of_key.ok_or_else(|| not_scalars(key))?);
        }
        // So equal conditions make equal filters, in whatever order they are spelled.
        parsed.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(parsed)
    }

    /// `None` if one of the values is not a scalar.
    fn parse(key: &str, values: &[Value]) -> Option<Self> {
        let mut parsed = Self { key: key.into(), ..Self::default() };
        let (mut texts, mut numbers) = (Vec::new(), Vec::new());
        for value in values {
            match value {
                Value::Null => parsed.null = true,
                Value::Bool(bool) => parsed.bools[usize::from(*bool)] = true,
                Value::String(text) => texts.push(text.as_str().into()),
                Value::Number(number) => match Decimal::parse(number.as_str()) {
                    Some(number) => numbers.push(number),
                    None => parsed.has_no_number = true,
                },
                Value::Array(_) | Value::Object(_) => return None,
            }
        }
        Some(Self { texts: values::sorted(texts), numbers: values::sorted(numbers), ..parsed })
    }

    /// Whether a value is equal to one of the scalars: texts unescaped, numbers by value.
    fn holds(&self, value: &Scalar<'_>) -> bool {
        match value {
            Scalar::Null => self.null,
            Scalar::Bool(value) => self.bools[usize::from(*value)],
            Scalar::Text(text) => values::holds(&self.texts, text.as_bytes()),
            Scalar::Number(number) => self.numbers.binary_search_by(|asked| asked.cmp_spelled(number)).is_ok(),
        }
    }

    /// The conditions of both: for a key of both, only the scalars that both have.
    pub fn narrowed(one: &[Self], other: &[Self]) -> Vec<Self> {
        Self::merged(one, other, |one, other| Self {
            key: one.key.clone(),
            null: one.null && other.null,
            bools: [one.bools[0] && other.bools[0], one.bools[1] && other.bools[1]],
            texts: values::in_both(&one.texts, &other.texts),
            numbers: values::in_both(&one.numbers, &other.numbers),
            has_no_number: one.has_no_number && other.has_no_number,
        })
    }

    /// The conditions of either: for a key of both, the scalars that either has.
    pub fn joined(one: &[Self], other: &[Self]) -> Vec<Self> {
        Self::merged(one, other, |one, other| Self {
            key: one.key.clone(),
            null: one.null || other.null,
            bools: [one.bools[0] || other.bools[0], one.bools[1] || other.bools[1]],
            texts: values::in_either(&one.texts, &other.texts),
            numbers: values::in_either(&one.numbers, &other.numbers),
            has_no_number: one.has_no_number || other.has_no_number,
        })
    }

    fn merged(one: &[Self], other: &[Self], merge: impl Fn(&Self, &Self) -> Self) -> Vec<Self> {
        let of_key = |keys: &'_ [Self], key: &str| keys.iter().position(|of| *of.key == *key);
        let mut merged: Vec<_> = one
            .iter()
            .map(|of| of_key(other, &of.key).map_or_else(|| of.clone(), |index| merge(of, &other[index])))
            .collect();
        merged.extend(other.iter().filter(|of| of_key(one, &of.key).is_none()).cloned());
        merged.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        merged
    }
}

pub fn not_scalars(key: &str) -> String {
    format!(
        "Filter 'payload' key '{key}' must be a string, a number (its exponent of at most 18 digits), true, false, \
         null, or a list of up to {VALUES_MAX} of these"
    )
}

/// Which conditions a payload meets: a flag for each of the wanted and of the excluded keys.
pub struct Comparison<'k> {
    wanted_keys: &'k [PayloadKey],
    excluded_keys: &'k [PayloadKey],
    pub wanted: Vec<bool>,
    pub excluded: Vec<bool>,
}

impl<'k> Comparison<'k> {
    pub fn of(payload: &[u8], wanted_keys: &'k [PayloadKey], excluded_keys: &'k [PayloadKey]) -> Self {
        let (wanted, excluded) = (vec![false; wanted_keys.len()], vec![false; excluded_keys.len()]);
        let mut comparison = Self { wanted_keys, excluded_keys, wanted, excluded };
        // A payload that the Python service stored may not be JSON to serde_json; then nothing is equal.
        let _ = serde_json::Deserializer::from_slice(payload).deserialize_map(&mut comparison);
        comparison
    }
}

#[derive(Deserialize)]
struct Key<'p>(#[serde(borrow)] Cow<'p, str>);

impl<'p> Visitor<'p> for &mut Comparison<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a payload")
    }

    fn visit_map<M: MapAccess<'p>>(self, mut payload: M) -> Result<(), M::Error> {
        while let Some(Key(key)) = payload.next_key()? {
            let index_in = |keys: &[PayloadKey]| keys.iter().position(|of| *of.key == *key);
            let (wanted, excluded) = (index_in(self.wanted_keys), index_in(self.excluded_keys));
            if wanted.is_none() && excluded.is_none() {
                payload.next_value::<IgnoredAny>()?;
                continue;
            }
            let value = Scalar::parse(payload.next_value::<&RawValue>()?.get());
            let is_one_of = |of: &PayloadKey| value.as_ref().is_some_and(|value| of.holds(value));
            // The last of two equal keys counts.
            if let Some(index) = wanted {
                self.wanted[index] = is_one_of(&self.wanted_keys[index]);
            }
            if let Some(index) = excluded {
                self.excluded[index] = is_one_of(&self.excluded_keys[index]);
            }
        }
        Ok(())
    }
}

/// A value of a payload. It may be as long as a payload, so it is parsed once for all scalars that it is compared with.
enum Scalar<'p> {
    Null,
    Bool(bool),
    /// Unescaped.
    Text(Cow<'p, str>),
    Number(Spelled<'p>),
}

impl<'p> Scalar<'p> {
    /// `None` if the value is not a scalar, or is a number that nothing can be equal to.
    fn parse(json: &'p str) -> Option<Self> {
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
