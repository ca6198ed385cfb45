//! What crosses the wire, as bytes: frames, messages, answers, and the one table of refusals. No
//! input or output.

pub mod batch;
pub mod frame;
pub mod message;
pub mod refusal;

pub use batch::{Batch, Committed, StoredEvent};
pub use refusal::{Failure, Refusal};
