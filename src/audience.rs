//! The audience: how many live followers the commits have.

use std::sync::Arc;

use crate::sync::atomic::{AtomicUsize, Ordering};

/// Counts those who follow the commits. While there are none, the writer hands on no commit, so an event that nobody
/// waits for costs no more than storing it.
///
/// A follower that joins and *then* reads the high-water mark misses nothing. The writer first advances the mark and then
/// looks for an audience, both with sequential consistency: either the writer sees the new follower, or the follower sees
/// that the commit is stored.
#[derive(Debug, Clone, Default)]
pub struct Audience(Arc<AtomicUsize>);

impl Audience {
    /// Adds a follower.
    pub fn join(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Removes a follower that has joined.
    pub fn leave(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether there is a follower.
    pub fn is_present(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}
