//! Which events somebody wants, told apart from the filter that is tested: as JSON it is asked for, as lists
//! it is looked through.

use serde_json::{Map, Value, json};

use super::model::{ModelEvent, NUMBERS, SESSIONS, SOURCES, TYPES, USERS};
use super::random::Random;
use crate::event::{Field, Filter};

/// A filter, and what it has to mean.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    pub filter: Filter,
    wanted: Conditions,
    unwanted: Conditions,
}

/// For each field, and for the payload's number, the values that are named; none means that nothing is asked.
#[derive(Debug, Clone, Default)]
struct Conditions {
    fields: [Vec<&'static str>; 4],
    numbers: Vec<u64>,
}

impl Wish {
    pub fn of_type(event_type: &'static str) -> Self {
        let mut wanted = Conditions::default();
        wanted.fields[Field::Type as usize].push(event_type);
        Self::new(wanted, Conditions::default())
    }

    pub fn random(random: &mut Random) -> Self {
        if random.one_in(4) {
            return Self::default();
        }
        let wanted = Conditions::random(random, 3);
        let unwanted = if random.one_in(4) { Conditions::random(random, 4) } else { Conditions::default() };
        Self::new(wanted, unwanted)
    }

    fn new(wanted: Conditions, unwanted: Conditions) -> Self {
        let mut asked = wanted.json();
        let exclude = unwanted.json();
        if !exclude.is_empty() {
            asked.insert("exclude".to_owned(), Value::Object(exclude));
        }
        Self { filter: Filter::parse(&asked).expect("a filter"), wanted, unwanted }
    }

    pub fn passes(&self, event: &ModelEvent) -> bool {
        let names = |values: &[&str], field| event.field(field).is_some_and(|value| values.contains(&value));
        let numbers = |values: &[u64]| event.number.is_some_and(|number| values.contains(&number));
        let (wanted, unwanted) = (&self.wanted, &self.unwanted);
        let has = |field: &Field| {
            let values = &wanted.fields[*field as usize];
            values.is_empty() || names(values, *field)
        };
        Field::ALL.iter().all(has)
            && (wanted.numbers.is_empty() || numbers(&wanted.numbers))
            && !Field::ALL.iter().any(|field| names(&unwanted.fields[*field as usize], *field))
            && !numbers(&unwanted.numbers)
    }
}

impl Conditions {
    /// Each is asked for once in `n` times.
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
