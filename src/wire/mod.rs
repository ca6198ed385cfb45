//! What crosses the network, as bytes: frames, messages, answers, and the one table of refusals. An error that is a
//! `String` is a sentence for the client. No input or output.
//!
//! * [`frame`], [`decoder`] — WebSocket frames, and the messages in them
//! * [`request`], [`filters`] — what a subscriber asks for
//! * [`note`] — what a subscriber is told besides events
//! * [`answer`] — what a publisher is answered
//! * [`batch`], [`committed`] — events encoded once: while they are collected, and when they are stored
//! * [`event_json`] — the JSON of one event
//! * [`cloud_event`] — events from and to CloudEvents
//! * [`refusal`] — every reason that a client can be given

pub mod answer;
pub mod batch;
pub mod cloud_event;
pub mod committed;
pub mod decoder;
pub mod event_json;
pub mod filters;
pub mod frame;
pub mod note;
pub mod refusal;
pub mod request;
mod row;

pub use batch::Batch;
pub use committed::Committed;
pub use event_json::StoredEvent;
pub use refusal::Refusal;
