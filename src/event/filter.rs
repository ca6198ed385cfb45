//! Which events somebody wants.

/// Selects events by their fields; what is not named does not matter. The same filter serves
/// subscriptions and queries.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Any of these types, sorted and without repeats; empty means every type. A name need not be
    /// registered: history may hold types that a past configuration knew.
    event_types: Vec<Box<str>>,
    pub source: Option<Box<str>>,
    pub session_id: Option<Box<str>>,
    pub user_id: Option<Box<str>>,
}

impl Filter {
    /// The same filter for these types only; none at all means every type.
    pub fn with_types<S: Into<Box<str>>>(mut self, types: impl IntoIterator<Item = S>) -> Self {
        self.event_types = types.into_iter().map(Into::into).collect();
        self.event_types.sort_unstable();
        self.event_types.dedup();
        self
    }

    /// The types asked for, sorted; empty means every type.
    pub fn event_types(&self) -> &[Box<str>] {
        &self.event_types
    }

    /// Whether every event passes.
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }

    /// Whether an event with these fields passes.
    pub fn matches(&self, event_type: &str, source: &str, session_id: Option<&str>, user_id: Option<&str>) -> bool {
        let wanted =
            |want: &Option<Box<str>>, have: Option<&str>| want.as_deref().is_none_or(|want| have == Some(want));
        (self.event_types.is_empty() || self.event_types.iter().any(|t| **t == *event_type))
            && wanted(&self.source, Some(source))
            && wanted(&self.session_id, session_id)
            && wanted(&self.user_id, user_id)
    }
}
