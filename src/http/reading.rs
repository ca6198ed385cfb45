//! Reading the record for an answer.

use crate::record::Failure;
use crate::store::{self, Reader, Store};
use crate::wire::Refusal;

/// Reads the record on a thread that may block.
///
/// # Errors
/// `TooMuchToRead` when it takes too long; `Damaged` or `Unreadable` when SQLite reports an error, which is logged here.
pub(super) async fn reading<T: Send + 'static>(
    store: &Store,
    read: impl FnOnce(&Reader) -> store::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    store.reading_in_time(read).await.map_err(|error| unreadable(&error))
}

/// One read of a page or an export. No deadline bounds it, because it looks at a bounded number of events
/// ([`Reader::scan_some`]): a page has a bounded number of reads, and an export goes on for as long as its client takes it.
pub(super) async fn reading_some<T: Send + 'static>(
    store: &Store,
    read: impl FnOnce(&Reader) -> store::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    store.reading(read).await.map_err(|error| unreadable(&error))
}

/// The client is told that reading failed. What SQLite says is for the operator.
pub(super) fn unreadable(error: &store::Error) -> Refusal {
    if error.took_too_long() {
        return Refusal::TooMuchToRead;
    }
    tracing::error!(%error, "read stored events");
    if error.is_damage() { Refusal::Failed(Failure::Damaged) } else { Refusal::Unreadable }
}
