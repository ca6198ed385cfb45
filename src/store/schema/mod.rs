//! The format of the file: its tables, connections to it, and what a statement needs. `migrate` brings a file of an
//! earlier format to this one.

mod connection;
pub mod meta;
mod sql;
mod tables;
mod verify;

pub use connection::{BUSY_TIMEOUT, SECURE_DELETE, open_reader, open_unread, open_untouched, open_writer, prepare};
pub use sql::{Text, each};
pub use tables::{
    APPLICATION_ID, LEGACY_INDEX, PAGE_BYTES, TABLES, VERSION, is_empty, is_foreign, is_of, is_ours, version,
};
pub use verify::{DELETED_THROUGH_SINCE, HOLES_CHECKED_SINCE, ROLLUPS_SINCE, VERIFIED, redefine, verify};
