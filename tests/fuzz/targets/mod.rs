//! What cargo-fuzz feeds with noise, and the tests with what it found: one function a target, each with an oracle
//! beside it, a second and plainer way to the same result. Nobody may panic, and both must agree.

#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]

mod body;
mod config;
mod event;
mod filter;
mod frame;
mod json;
mod postings;
mod subscribe;
mod time;
mod url;

pub use body::body;
pub use config::config;
pub use event::event;
pub use filter::filter;
pub use frame::frame;
pub use postings::postings;
pub use subscribe::subscribe;
pub use time::time;
pub use url::url;

/// A name that cargo-fuzz and a folder of seeds have, and what it stands for.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 9] = [
    ("body", body),
    ("config", config),
    ("event", event),
    ("filter", filter),
    ("frame", frame),
    ("postings", postings),
    ("subscribe", subscribe),
    ("time", time),
    ("url", url),
];
