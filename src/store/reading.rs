//! Reading on a thread that may block, for as long as somebody waits for what is read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rusqlite::ffi;
use tokio::task::{JoinHandle, spawn_blocking};

use super::Store;

/// A reading under way. Dropped, it is cancelled: it never begins, or ends at its next call of
/// `Store::go_on`. So a reading whose client is gone costs little more.
#[derive(Debug)]
pub struct Reading<T> {
    task: JoinHandle<rusqlite::Result<T>>,
    leash: Leash,
}

/// A moment, after which a reading is a search. In tests every reading that scans is one.
const MOMENT: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_millis(50) };

/// How long a reading may go on. It is looked at between two transactions, which are short.
#[derive(Debug, Clone)]
pub(super) struct Leash {
    abandoned: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Leash {
    fn is_over(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed) || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

impl Store {
    /// Reads until the end, or until the reading is dropped.
    pub fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> rusqlite::Result<T> + Send + 'static,
    ) -> Reading<T> {
        self.read_for(None, read)
    }

    /// Reads for `READ_TIMEOUT_SECONDS` at most: then the reading fails, and [`took_too_long`] says so. The time counts
    /// from when a thread begins to read.
    pub fn reading_in_time<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> rusqlite::Result<T> + Send + 'static,
    ) -> Reading<T> {
        self.read_for(Some(self.shared.read_timeout), read)
    }

    /// Reads for about as long as one read of a page: whoever is not done then ([`took_too_long`]) takes a turn and begins
    /// again.
    pub fn reading_for_a_moment<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> rusqlite::Result<T> + Send + 'static,
    ) -> Reading<T> {
        self.read_for(Some(MOMENT), read)
    }

    fn read_for<T: Send + 'static>(
        &self,
        time: Option<Duration>,
        read: impl FnOnce(&Self) -> rusqlite::Result<T> + Send + 'static,
    ) -> Reading<T> {
        let mut store = self.clone();
        let mut leash = Leash { abandoned: Arc::default(), deadline: None };
        let abandoned = leash.clone();
        let task = spawn_blocking(move || {
            leash.deadline = time.map(|time| Instant::now() + time);
            store.leash = Some(leash);
            read(&store)
        });
        Reading { task, leash: abandoned }
    }

    /// Called between two transactions of one reading.
    ///
    /// # Errors
    /// When nobody waits for the reading any more, or its time is over.
    pub(super) fn go_on(&self) -> rusqlite::Result<()> {
        match self.leash.as_ref().is_some_and(Leash::is_over) {
            false => Ok(()),
            true => Err(rusqlite::Error::SqliteFailure(
                ffi::Error::new(ffi::SQLITE_INTERRUPT),
                Some("the reading took longer than READ_TIMEOUT_SECONDS, or nobody waits for it any more".to_owned()),
            )),
        }
    }
}

/// Whether a reading failed because its time was over.
pub fn took_too_long(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted)
}

impl<T> Future for Reading<T> {
    type Output = rusqlite::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let read = ready!(Pin::new(&mut self.task).poll(cx));
        Poll::Ready(read.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic())))
    }
}

impl<T> Drop for Reading<T> {
    fn drop(&mut self) {
        self.leash.abandoned.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::mpsc;

    use super::*;
    use crate::config::Config;
    use crate::event::Event;
    use crate::store::{Query, Receipt};
    use crate::wire::Batch;

    /// A store with more events than are looked at in one transaction.
    fn store(folder: &std::path::Path, read_timeout: Duration) -> Store {
        let config = Config { read_timeout, ..Config::of_test(folder.join("events.db")) };
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        let event_type = config.event_types.get("timer_tick").expect("built in");
        let mut batch = Batch::default();
        for _ in 0..1_000 {
            let event = Event {
                event_type,
                source: "s",
                session_id: None,
                user_id: None,
                payload: "{}",
                idempotency_key: None,
            };
            batch.push(&event, &config.event_types);
        }
        store.try_append(batch, Receipt::new().0).expect("room");
        while parts.write() {}
        store
    }

    #[tokio::test]
    async fn a_reading_that_nobody_waits_for_ends_with_its_transaction() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), Duration::from_secs(600));
        let ((begun, has_begun), (go_on, may_go_on)) = (mpsc::channel(), mpsc::channel());
        let (ended, has_ended) = mpsc::channel();
        let reading = store.reading(move |store| {
            let mut seen = 0;
            let scanned = store.scan(&Query::default(), |_| {
                seen += 1;
                if seen == 1 {
                    begun.send(()).expect("the test waits");
                    may_go_on.recv().expect("the test goes on");
                }
                ControlFlow::Continue(())
            });
            ended.send((seen, scanned.is_err())).expect("the test waits");
            Ok(())
        });
        has_begun.recv().expect("the reading begins");
        drop(reading);
        go_on.send(()).expect("the reading waits");
        let (seen, failed) = has_ended.recv().expect("the reading ends");
        assert!(seen < 1_000 && failed, "{seen} events were read");
    }

    #[tokio::test]
    async fn a_reading_ends_when_its_time_is_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), Duration::ZERO);
        let all = |store: &Store| {
            let mut seen = 0;
            store.scan(&Query::default(), |_| {
                seen += 1;
                ControlFlow::Continue(())
            })?;
            Ok(seen)
        };
        let error = store.reading_in_time(all).await.expect_err("no time at all");
        assert!(took_too_long(&error), "{error}");
        assert_eq!(store.reading(all).await.expect("all the time"), 1_000);
    }
}
