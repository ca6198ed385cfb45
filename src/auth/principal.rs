//! What a client may see and do.

use std::net::IpAddr;

use crate::event::Filter;
use crate::wire::Refusal;

/// What the key of a request gives a right to. `Key::authorize` alone decides it, and whatever
/// acts for a client gets it from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Principal {
    /// No key was asked for, because the request sees no event.
    Anonymous,
    /// Every event, and every request: there is one key today, and it opens everything.
    Everything,
}

impl Principal {
    /// What remains of a filter for this principal. Every filter of a client goes through here before it selects events.
    ///
    /// # Errors
    /// `Unauthorized` where nothing remains.
    pub fn narrow(self, filter: Filter) -> Result<Filter, Refusal> {
        match self {
            Self::Anonymous => Err(Refusal::Unauthorized),
            Self::Everything => Ok(filter),
        }
    }
}

/// The client of one request or one WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Counts in the rates.
    pub ip: IpAddr,
    pub principal: Principal,
}
