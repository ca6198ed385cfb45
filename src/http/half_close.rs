//! What becomes of an answer in the making when its client ends its side of an HTTP/1.1 connection.
//!
//! Some clients end their side after the request and still want the answer (`printf … | nc`). A client that has gone looks
//! the same until something is written to it. So the kind of the answer decides. HTTP/2 has no such state: where a
//! client ends its side, the connection ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// The rule for the answer that a connection is making now, shared with its stream.
#[derive(Debug, Clone, Default)]
pub(super) struct HalfClose(Arc<AtomicU8>);

/// Held by an answer from its request to the last byte of its body. Dropped, it puts [`Rule::Finish`] back.
#[derive(Debug)]
pub(super) struct HalfCloseGuard(HalfClose);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// The answer is finished whatever the client does.
    Finish = 0,
    /// The answer is given up some seconds later, as the client may still want it.
    GiveUpLater = 1,
    /// The answer is given up at once: it waits for events, and a client that wants these keeps its side open.
    GiveUp = 2,
    /// The same for an answer without an end. It is also given up when the client sends more behind its request than is read
    /// ahead: that would hide the end of the client's side, and would never be answered.
    GiveUpEndless = 3,
}

impl HalfClose {
    pub(super) fn rule(&self) -> Rule {
        match self.0.load(Relaxed) {
            0 => Rule::Finish,
            1 => Rule::GiveUpLater,
            2 => Rule::GiveUp,
            _ => Rule::GiveUpEndless,
        }
    }

    /// For an answer that is read from storage: [`Rule::GiveUpLater`].
    pub(super) fn guard(&self) -> HalfCloseGuard {
        let guard = HalfCloseGuard(self.clone());
        guard.set(Rule::GiveUpLater);
        guard
    }
}

impl HalfCloseGuard {
    pub(super) fn set(&self, rule: Rule) {
        self.0.0.store(rule as u8, Relaxed);
    }
}

impl Drop for HalfCloseGuard {
    fn drop(&mut self) {
        self.set(Rule::Finish);
    }
}
