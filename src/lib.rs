pub mod config;
pub mod event;
pub mod hub;
pub mod outbox;
pub mod store;
pub mod wire;
