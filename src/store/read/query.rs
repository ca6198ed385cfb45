//! What a client may ask of the record.

use crate::event::{Filter, Seq, Timestamp};

/// Which events are read, from where to where, and in which order.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pub filter: Filter,
    /// Only events after this one.
    pub after: Seq,
    /// Only events before this one.
    pub before: Option<Seq>,
    /// Only events with a later time.
    pub since: Option<Timestamp>,
    /// Only events with an earlier time.
    pub until: Option<Timestamp>,
    pub order: Order,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    #[default]
    OldestFirst,
    NewestFirst,
}

impl Query {
    /// The rest of this query, once it was read up to `reached`.
    pub fn go_on_after(&mut self, reached: Seq) {
        match self.order {
            Order::OldestFirst => self.after = reached,
            Order::NewestFirst => self.before = Some(reached),
        }
    }
}
