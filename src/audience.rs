//! Whether anybody follows the commits.

use std::sync::Arc;

use crate::sync::atomic::{AtomicUsize, Ordering};

/// How many follow the commits. While nobody does, none is handed on: an event that nobody waits for
/// costs what storing it costs.
///
/// Who joins and *then* reads the watermark misses nothing. The writer first advances that, then looks
/// for an audience, all of it sequentially consistent: either it sees the newcomer, or the newcomer sees
/// that the commit is stored.
#[derive(Debug, Clone, Default)]
pub struct Audience(Arc<AtomicUsize>);

impl Audience {
    /// One more follows.
    pub fn join(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// One who joined follows no more.
    pub fn leave(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether anybody follows.
    pub fn is_there(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }
}
