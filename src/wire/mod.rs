//! What crosses the wire, as bytes: frames, messages, answers, and the one table of refusals. No
//! input or output.

pub mod answer;
pub mod batch;
pub mod cloud_event;
pub mod frame;
pub mod refusal;
pub mod subscription;

pub use batch::{Batch, Committed, StoredEvent};
pub use refusal::Refusal;
