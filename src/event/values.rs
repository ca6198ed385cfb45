//! Sorted lists of the values that a condition of a filter names.

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
