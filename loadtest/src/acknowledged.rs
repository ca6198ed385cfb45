//! The events that every query must show: an event is visible to all queries as soon as it is acknowledged.

use std::cell::{Cell, RefCell};

use crate::events::Keys;

/// The events acknowledged so far in a run, as far as the checks of queries need them.
pub struct AcknowledgedEvents {
    all: Cell<Acknowledged>,
    sessions: RefCell<Vec<Acknowledged>>,
}

/// How many events were acknowledged, and the newest of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    pub count: u64,
    pub newest: u64,
}

impl AcknowledgedEvents {
    /// None yet, on a server whose newest event is `newest`.
    pub fn new(newest: u64, sessions: u32) -> Self {
        let none = Acknowledged { count: 0, newest: 0 };
        Self { all: Cell::new(Acknowledged { newest, ..none }), sessions: RefCell::new(vec![none; sessions as usize]) }
    }

    #[inline]
    pub fn add(&self, keys: Keys, sequence: u64) {
        self.all.set(self.all.get().and(sequence));
        let session = &mut self.sessions.borrow_mut()[keys.session as usize];
        *session = session.and(sequence);
    }

    /// Of everything.
    pub fn all(&self) -> Acknowledged {
        self.all.get()
    }

    /// Of one session.
    pub fn of_session(&self, session: u32) -> Acknowledged {
        self.sessions.borrow()[session as usize]
    }
}

impl Acknowledged {
    fn and(self, sequence: u64) -> Self {
        Self { count: self.count + 1, newest: self.newest.max(sequence) }
    }
}
