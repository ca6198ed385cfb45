//! Reading the record within one transaction. `reader` puts the transactions of a read together.

mod latest;
mod newest;
mod pool;
mod query;
mod record;
mod row;
mod scan;
mod stats;
mod walk;

pub use latest::{Latest, Values};
pub use newest::{Newest, last_seen, newest};
pub use pool::Pool;
pub use query::{Order, Query};
pub use record::{Record, first_row, is_any_of, last_row, of_legacy_id};
pub(super) use row::select_events;
pub use row::{name_of_damaged, number, out_of_order, stored};
pub use scan::{
    EVENTS_PER_LOOK_AT_CLOCK, Scan, TRANSACTION_TIME, damaged_list, in_memory, newest_of_type, posting_list, whole_list,
};
pub use stats::{Stats, TypeStats};
