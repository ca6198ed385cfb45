//! The ordered, durable record of events: append, read, committed. The only SQL is in here.
//!
//! One thread writes. It takes the batches that wait in a bounded queue, stores them in one transaction, and then
//! resolves their receipts and hands the commit to the fan-out. Readers use connections of their own.
//!
//! * [`handle`] — `Store`, through which everything outside uses it; [`queue`] and [`receipt`] are what an append needs
//! * [`write`](mod@write) — the writer: order, apply, housekeeping
//! * [`reader`] — reading the record, on the connections of [`read`](mod@read); [`lag`] counts, [`reading`] can be cancelled
//! * [`segments`], [`holes`], [`keys`], [`rollups`], [`subscription`] — what the tables beside `events` hold; [`counts`] counts by
//!   posting lists
//! * [`schema`], [`migrate`], [`checksum`] — the format of the file, and the way to it from earlier ones
//! * [`open`], [`threads`], [`shared`] — an open store: its start, its threads, what they share; [`syncs`] times its disk
//! * [`sidecar`], [`wal`], [`files`] — the files beside the database; [`remains`] — what deleted rows left in the database
//! * [`check`](mod@check), [`checker`], [`integrity`], [`damage`] — the integrity check, and damage that a read meets
//! * [`backup`] — copying the whole file, checked, and back
//! * [`repair`](mod@repair), [`salvage`], [`rebuild`] — saving what is undamaged into a new file

mod backup;
mod check;
mod checker;
mod checksum;
mod counts;
mod damage;
mod error;
mod files;
#[cfg(test)]
pub(crate) mod fixture;
mod handle;
mod holes;
mod integrity;
mod keys;
mod lag;
mod migrate;
mod open;
mod queue;
mod read;
mod reader;
mod reading;
mod rebuild;
mod receipt;
mod remains;
mod repair;
mod rollups;
mod salvage;
mod schema;
pub mod segments;
mod series;
mod shared;
mod sidecar;
mod subscription;
mod syncs;
mod threads;
mod wal;
mod write;

pub use backup::{CopyError, copy, restore};
pub use check::{CheckError, check};
pub use error::{Error, Result};
pub use handle::Store;
pub use integrity::Integrity;
pub use integrity::{IntegrityState, Progress};
pub use lag::Lag;
pub use open::OpenError;
pub use read::{Order, Query, Stats, TypeStats};
pub use reader::Reader;
pub use reading::Reading;
pub use receipt::{Receipt, Stored};
pub use repair::{RepairError, Repaired, repair};
pub use series::{Intervals, Series};
pub use shared::{Counts, Timings};
pub use subscription::StoredSubscription;
pub use syncs::{SyncOf, Syncs};
pub use threads::Running;
pub use write::Wal;
#[cfg(test)]
pub(crate) use {files::beside, sidecar::Sidecar, threads::Parts, write::ordered};
