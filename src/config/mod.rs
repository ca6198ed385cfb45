//! Every default, limit and unit, with its reason. What an operator typed becomes a checked [`Config`] before anything is
//! opened or bound.
//!
//! * `fields` — the settings as values, with their defaults
//! * `table` — each setting's name, range and help, and whether a running server could take a new value
//! * `load` — flags, environment, file and defaults, in this order, and which of them has set each value
//! * `words`, `value` — the types of the settings, and how they are read and shown as text

mod fields;
mod load;
mod table;
mod value;
mod words;

pub use fields::Config;
pub use load::{ConfigError, Effective, LoadedConfig, args, fault_in_toml};
pub use table::{SETTINGS, SetBy, Setting, reloadable};
pub use words::{CorsOrigins, Durability, Hosts, LogFormat, Networks, Rate};
