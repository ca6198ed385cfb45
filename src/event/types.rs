//! The registry of event types: the fifteen every deployment has and those the configuration adds.

use std::collections::HashMap;
use std::sync::Arc;

use super::value_hash::ValueHash;

/// A registered type, by its index in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventType(u16);

/// Every type that may be published, with its description, in registration order.
#[derive(Debug, Clone)]
pub struct EventTypes {
    entries: Vec<Entry>,
    by_name: HashMap<Arc<str>, EventType, foldhash::fast::RandomState>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: Arc<str>,
    description: String,
    hash: ValueHash,
}

const BUILTIN: [(&str, &str); 15] = [
    ("quiz_started", "A student started a quiz"),
    ("quiz_completed", "A student completed a quiz"),
    ("quiz_timeout", "A quiz ended because its time was up"),
    ("answer_submitted", "A student submitted an answer"),
    ("answer_changed", "A student changed an answer"),
    ("question_viewed", "A student saw a question"),
    ("question_skipped", "A student skipped a question"),
    ("timer_started", "A timer started"),
    ("timer_tick", "A running timer ticked, as each does every second"),
    ("timer_warning", "A timer is about to run out"),
    ("mastery_updated", "A student's mastery of a topic changed"),
    ("learning_gap_detected", "A gap in a student's knowledge was found"),
    ("session_created", "A session was created"),
    ("session_ended", "A session ended"),
    ("error_occurred", "A service reported an error"),
];

/// Longest name of a type: with 64 characters a metric's label and a column of a table stay readable.
pub(super) const NAME_CHARS_MAX: usize = 64;

/// Most names in a message: more than most deployments have, and still only a few lines.
const NAMES_LISTED_MAX: usize = 50;

impl EventTypes {
    /// The fifteen types that nothing can remove.
    pub fn builtin() -> Self {
        let mut types = Self { entries: Vec::new(), by_name: HashMap::default() };
        for (name, description) in BUILTIN {
            types.extend(name, description).expect("the built-in names are valid");
        }
        types
    }

    /// Registers a further type, or gives a registered one another description.
    ///
    /// # Errors
    /// A sentence if the name is not a lower-case letter and up to 63 of `[a-z0-9_]`, or if the registry is full.
    pub fn extend(&mut self, name: &str, description: &str) -> Result<(), String> {
        let valid = name.len() <= NAME_CHARS_MAX
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !valid {
            return Err(format!("event type {name:?} is not a lower-case letter and up to 63 of a-z, 0-9 and _"));
        }
        if let Some(known) = self.get(name) {
            self.entries[known.0 as usize].description = description.to_owned();
            return Ok(());
        }
        let id = u16::try_from(self.entries.len()).map_err(|_| "more than 65,536 event types".to_owned())?;
        let name: Arc<str> = name.into();
        let hash = ValueHash::of(name.as_bytes());
        self.entries.push(Entry { name: name.clone(), description: description.to_owned(), hash });
        self.by_name.insert(name, EventType(id));
        Ok(())
    }

    /// The type of this name, if it is registered.
    #[inline]
    pub fn get(&self, name: &str) -> Option<EventType> {
        self.by_name.get(name).copied()
    }

    /// The name of a type of this registry.
    #[inline]
    pub fn name(&self, event_type: EventType) -> &Arc<str> {
        &self.entries[event_type.0 as usize].name
    }

    /// The hash of its name.
    #[inline]
    pub fn hash(&self, event_type: EventType) -> ValueHash {
        self.entries[event_type.0 as usize].hash
    }

    /// The names for a message: the first 50, and the number of the others.
    pub(super) fn listed(&self) -> String {
        let names: Vec<_> = self.iter().map(|(name, _)| name).take(NAMES_LISTED_MAX).collect();
        match self.entries.len() - names.len() {
            0 => names.join(", "),
            more => format!("{} and {more} more", names.join(", ")),
        }
    }

    /// Names and descriptions, in registration order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|entry| (&*entry.name, &*entry.description))
    }
}

impl Default for EventTypes {
    fn default() -> Self {
        Self::builtin()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_found_by_its_name_only() {
        let mut types = EventTypes::builtin();
        assert_eq!(types.iter().count(), 15);
        assert_eq!(types.get("coffee_break"), None);
        types.extend("coffee_break", "Everybody left").expect("a valid name");
        let id = types.get("coffee_break").expect("just registered");
        assert_eq!(&**types.name(id), "coffee_break");
        for bad in ["", "Upper", "1st", "with space", "_x", &"x".repeat(65)] {
            assert!(types.extend(bad, "").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_message_lists_50_types_and_counts_the_others() {
        let mut types = EventTypes::builtin();
        assert!(
            types.listed().starts_with("quiz_started, quiz_completed, ") && types.listed().ends_with("error_occurred")
        );
        (0..100).for_each(|n| types.extend(&format!("of_ours_{n}"), "").expect("a name"));
        assert!(types.listed().ends_with(", of_ours_34 and 65 more"), "{}", types.listed());
    }
}
