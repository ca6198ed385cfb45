//! What an event is: its fields and their rules, its sequence number, id and time, the parser that reads it and the filter
//! that selects it. An error that is a `String` is a sentence for the client. No input or output; no clock but
//! [`Timestamp::now`].

mod decimal;
mod fields;
mod filter;
mod json;
mod object;
mod parse;
mod payload;
mod rejection;
mod rules;
mod seq;
mod tape;
mod time;
mod types;
mod value_hash;
mod values;

pub use fields::{
    Columns, Event, Field, KEY_CHARS_MAX, Limits, PAYLOAD_DEPTH_MAX, REFERENCE_CHARS_MAX, SOURCE_CHARS_MAX,
};
pub use filter::{Filter, Mismatch, means_any};
pub use object::{Object, only_known};
pub use parse::{Parsed, Parser};
pub use rejection::{Fault, REJECTIONS_MAX, Rejection};
pub use rules::is_key;
pub use seq::{EventId, NotAnId, Seq};
pub use time::{Timestamp, TimestampText};
pub use types::{EventType, EventTypes};
pub use value_hash::ValueHash;
