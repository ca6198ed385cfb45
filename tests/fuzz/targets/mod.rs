//! The fuzz targets, one function each. The fuzzer feeds them with noise, and the tests with its findings. Each has an
//! oracle: a second, simpler way to the same result. Neither may panic, and both must agree.

#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]

mod body;
mod config;
mod event;
mod filter;
mod frame;
mod json;
mod keys;
mod postings;
mod subscribe;
mod time;
mod token;
mod url;

pub use body::body;
pub use config::config;
pub use event::event;
pub use filter::filter;
pub use frame::frame;
pub use keys::keys;
pub use postings::postings;
pub use subscribe::subscribe;
pub use time::time;
pub use token::token;
pub use url::url;

/// The name of a target, which its folder of seeds has too, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const ALL: [Target; 11] = [
    ("body", body),
    ("config", config),
    ("event", event),
    ("filter", filter),
    ("frame", frame),
    ("keys", keys),
    ("postings", postings),
    ("subscribe", subscribe),
    ("time", time),
    ("token", token),
    ("url", url),
];
