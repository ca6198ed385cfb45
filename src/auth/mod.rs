//! Who may do what, how often, and over how many connections.

mod access;
mod key;
mod network;
mod origin;
mod principal;
mod rate;
mod slots;

pub use access::Access;
pub use principal::{Caller, Principal};
pub use rate::Class;
pub use slots::Slot;
