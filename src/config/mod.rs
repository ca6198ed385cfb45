//! Every default, limit and unit, with its reason. What an operator typed becomes a checked [`Config`] before anything is
//! opened or bound.
//!
//! * `fields` — the settings as values, with their defaults
//! * `table` — each setting's name, range and help, and whether a running server could take a new value
//! * `load` — flags, environment, file and defaults, in this order
//! * `words`, `value` — the types of the settings, and how they are read and shown as text

mod fields;
mod load;
mod table;
mod value;
mod words;

pub use fields::Config;
pub use load::{ConfigError, args};
pub use table::reloadable;
pub use words::{CorsOrigins, Durability, LogFormat, Rate};
