//! Filters, each in two forms: as JSON for the server, and as lists of values by which the model decides, without the
//! server's code, which events pass.

use serde_json::{Map, Value, json};

use super::event::{ModelEvent, NUMBERS, SESSIONS, SOURCES, TYPES, USERS};
use super::random::Random;
use crate::event::{Field, Filter};

/// A filter of the server, and what it has to mean.
#[derive(Debug, Clone, Default)]
pub struct ModelFilter {
    pub real: Filter,
    included: Conditions,
    excluded: Conditions,
}

/// The values named for each field and for the payload's number; none means no condition.
#[derive(Debug, Clone, Default)]
struct Conditions {
    fields: [Vec<&'static str>; 4],
    numbers: Vec<u64>,
}

impl ModelFilter {
    pub fn of_type(event_type: &'static str) -> Self {
        let mut included = Conditions::default();
        included.fields[Field::Type as usize].push(event_type);
        Self::new(included, Conditions::default())
    }

    pub fn random(random: &mut Random) -> Self {
        if random.one_in(4) {
            return Self::default();
        }
        let included = Conditions::random(random, 3);
        let excluded = if random.one_in(4) { Conditions::random(random, 4) } else { Conditions::default() };
        Self::new(included, excluded)
    }

    fn new(included: Conditions, excluded: Conditions) -> Self {
        let mut asked = included.json();
        let exclude = excluded.json();
        if !exclude.is_empty() {
            asked.insert("exclude".to_owned(), Value::Object(exclude));
        }
        Self { real: Filter::parse(&asked).expect("a filter"), included, excluded }
    }

    pub fn passes(&self, event: &ModelEvent) -> bool {
        let names = |values: &[&str], field| event.field(field).is_some_and(|value| values.contains(&value));
        let numbers = |values: &[u64]| event.number.is_some_and(|number| values.contains(&number));
        let (included, excluded) = (&self.included, &self.excluded);
        let has = |field: &Field| {
            let values = &included.fields[*field as usize];
            values.is_empty() || names(values, *field)
        };
        Field::ALL.iter().all(has)
            && (included.numbers.is_empty() || numbers(&included.numbers))
            && !Field::ALL.iter().any(|field| names(&excluded.fields[*field as usize], *field))
            && !numbers(&excluded.numbers)
    }
}

impl Conditions {
    /// Each field has a condition once in `n` times.
    fn random(random: &mut Random, n: u64) -> Self {
        let mut conditions = Self::default();
        let values = [&[&TYPES[..], &["error_occurred"]].concat()[..], &SESSIONS, &USERS, &SOURCES];
        for field in Field::ALL {
            if random.one_in(n) {
                conditions.fields[field as usize] = random.some(values[field as usize], 3);
            }
        }
        if random.one_in(n) {
            conditions.numbers = random.some(&NUMBERS, 3);
        }
        conditions
    }

    fn json(&self) -> Map<String, Value> {
        let mut asked = Map::new();
        for field in Field::ALL {
            let value = match &self.fields[field as usize][..] {
                [] => continue,
                [one] if field != Field::Type => json!(one),
                many => json!(many),
            };
            asked.insert(field.name().to_owned(), value);
        }
        let number = match &self.numbers[..] {
            [] => return asked,
            [one] => json!({ "n": one }),
            many => json!({ "n": many }),
        };
        asked.insert("payload".to_owned(), number);
        asked
    }
}
