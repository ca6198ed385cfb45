//! The scenarios: each is a workload with its options, and what it verifies.

pub mod capacity;
pub mod classroom;
pub mod connections;
pub mod dashboard;
pub mod fanout;
pub mod mixed;
pub mod overload;
pub mod publish;
pub mod query;
pub mod slow_consumer;
pub mod soak;
pub mod spike;
mod traffic;
