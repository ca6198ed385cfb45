//! What a subscriber is told besides events.

use std::time::Duration;

use serde_json::Value;

use super::filters::Filters;
use crate::event::Seq;
use crate::record::{Gap, Retained};

impl Gap {
    /// The JSON that tells a client of it.
    pub fn json(&self) -> Value {
        match self {
            Self::MissingThrough(last) => serde_json::json!({ "missing_through": last.id().to_string() }),
            Self::Unknown(id) => serde_json::json!({ "unknown_cursor": id }),
        }
    }
}

/// Where a stream begins, for the first answer to its subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    pub retained: Retained,
    pub gap: Option<Gap>,
}

/// The first answer to a subscriber.
pub fn subscribed(subscriber: u32, filters: &Filters, opening: &Opening) -> String {
    let Retained { oldest, newest, epoch } = opening.retained;
    let id = |seq: Seq, is_there: bool| if is_there { seq.id().to_string().into() } else { Value::Null };
    let mut answer = serde_json::json!({
        "status": "subscribed",
        "subscriber_id": subscriber_id(subscriber),
        "filters": filters.asked(),
        "last_event_id": id(newest, newest > Seq::ZERO),
        "oldest_id": id(oldest, oldest <= newest),
        "epoch": epoch.to_string(),
    });
    if let Some(gap) = &opening.gap {
        answer["gap"] = gap.json();
    }
    answer.to_string()
}

/// The id of a subscriber.
pub fn subscriber_id(subscriber: u32) -> String {
    format!("sub_{subscriber:08x}")
}

/// A message about how a subscriber is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// It was too slow for the live stream: the events after this one come from storage.
    FellBehind(Seq),
    /// The events from here on are live.
    CaughtUp,
    /// It was too slow: this number of passing events, the last of them with this id, are left out.
    Lagged {
        missed: u64,
        last: Seq,
    },
    /// This number of events was replaced by later ones since the last such note.
    Skipped(u64),
    Gap(Gap),
}

impl Note {
    /// The `type` of the message.
    pub fn name(&self) -> &'static str {
        match self {
            Self::FellBehind(_) => "fell_behind",
            Self::CaughtUp => "caught_up",
            Self::Lagged { .. } => "lagged",
            Self::Skipped(_) => "skipped",
            Self::Gap(_) => "gap",
        }
    }

    /// The message.
    pub fn json(&self) -> String {
        let name = self.name();
        match self {
            Self::FellBehind(after) => format!(r#"{{"type":"{name}","after":"{}"}}"#, after.id()),
            Self::CaughtUp => format!(r#"{{"type":"{name}"}}"#),
            Self::Lagged { missed, last } => {
                format!(r#"{{"type":"{name}","missed":{missed},"last_event_id":"{}"}}"#, last.id())
            }
            Self::Skipped(count) => format!(r#"{{"type":"{name}","count":{count}}}"#),
            Self::Gap(gap) => format!(r#"{{"type":"{name}","gap":{}}}"#, gap.json()),
        }
    }
}

/// The answer to `update_filters`: the events after it pass the new filters.
pub fn filters_updated(filters: &Filters) -> String {
    serde_json::json!({ "status": "filters_updated", "filters": filters.asked() }).to_string()
}

/// The client's key or token ends after this time, and its socket with it.
pub fn auth_expires(after: Duration) -> String {
    format!(r#"{{"type":"auth_expires","in_ms":{}}}"#, after.as_millis())
}

/// The answer to `auth`: the client's token ends after this time now.
pub fn auth_renewed(after: Duration) -> String {
    format!(r#"{{"type":"auth_renewed","in_ms":{}}}"#, after.as_millis())
}

pub const PONG: &str = r#"{"type":"pong"}"#;
pub const KEEPALIVE: &str = r#"{"type":"keepalive"}"#;
