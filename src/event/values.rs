//! Sorted lists of values, and what a condition on a field allows.

/// Most values of one condition: more than the sessions of a class. Each costs its own look-up in the index.
pub const VALUES_MAX: usize = 1_000;

/// Sorted, without repeats: so equal lists are equal however they were spelled, and a value is found by binary search.
pub type Sorted<T> = Box<[T]>;

pub fn sorted<T: Ord>(mut values: Vec<T>) -> Sorted<T> {
    values.sort_unstable();
    values.dedup();
    values.into()
}

/// Whether a sorted list has a value.
pub fn holds(values: &[Box<str>], value: &[u8]) -> bool {
    match values {
        // The usual cases, without a search.
        [] => false,
        [one] => one.as_bytes() == value,
        many => many.binary_search_by(|other| other.as_bytes().cmp(value)).is_ok(),
    }
}

pub fn in_both<T: Ord + Clone>(one: &[T], other: &[T]) -> Sorted<T> {
    one.iter().filter(|value| other.binary_search(value).is_ok()).cloned().collect()
}

pub fn in_either<T: Ord + Clone>(one: &[T], other: &[T]) -> Sorted<T> {
    sorted([one, other].concat())
}

/// The values that a condition on a field allows.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub enum Allowed {
    /// Every value; an event without the field passes, too.
    #[default]
    Any,
    /// One of these. With none of them, no event passes.
    OneOf(Sorted<Box<str>>),
}

impl Allowed {
    pub fn list(&self) -> Option<&[Box<str>]> {
        match self {
            Self::Any => None,
            Self::OneOf(values) => Some(values),
        }
    }

    /// Those that both allow.
    pub fn within(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Any, allowed) | (allowed, Self::Any) => allowed.clone(),
            (Self::OneOf(one), Self::OneOf(other)) => Self::OneOf(in_both(one, other)),
        }
    }
}
