//! A read on a thread that may block. It is cancelled when no task waits for it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_blocking};

use super::error::Result;
use super::reader::{Limit, Reader};

/// A reading under way. When it is dropped it is cancelled: it does not begin, or ends between two of its transactions.
/// So a reading costs little more once its client has disconnected.
#[derive(Debug)]
pub struct Reading<T> {
    task: JoinHandle<Result<T>>,
    abandoned: Arc<AtomicBool>,
}

impl<T: Send + 'static> Reading<T> {
    /// Begins as soon as a thread is free. Its time counts from then on.
    pub(super) fn begin(
        mut reader: Reader,
        time: Option<Duration>,
        read: impl FnOnce(&Reader) -> Result<T> + Send + 'static,
    ) -> Self {
        let abandoned = Arc::<AtomicBool>::default();
        let mut limit = Limit { abandoned: abandoned.clone(), deadline: None };
        let task = spawn_blocking(move || {
            limit.deadline = time.map(|time| Instant::now() + time);
            reader.limit = Some(limit);
            let begun = Instant::now();
            let result = read(&reader);
            reader.shared.timings.query.note(begun.elapsed());
            result
        });
        Self { task, abandoned }
    }
}

impl<T> Future for Reading<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let read = ready!(Pin::new(&mut self.task).poll(cx));
        Poll::Ready(read.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic())))
    }
}

impl<T> Drop for Reading<T> {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::mpsc;

    use super::*;
    use crate::config::Config;
    use crate::store::fixture::{hand_in, tick};
    use crate::store::{Query, Store};

    /// A store with more events than are looked at in one transaction.
    fn store(folder: &std::path::Path, read_timeout: Duration) -> Store {
        let config = Config { read_timeout, ..Config::of_test(folder.join("events.db")) };
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        hand_in(&store, (0..1_000).map(|_| tick()));
        while parts.write() {}
        store
    }

    #[tokio::test]
    async fn a_dropped_reading_ends_with_its_transaction() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = store(folder.path(), Duration::from_secs(600));
        let ((begun, has_begun), (go_on, may_go_on)) = (mpsc::channel(), mpsc::channel());
        let (ended, has_ended) = mpsc::channel();
        let reading = store.reading(move |reader| {
            let mut seen = 0;
            let scanned = reader.scan(&Query::default(), |_| {
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
        let all = |reader: &Reader| {
            let mut seen = 0;
            reader.scan(&Query::default(), |_| {
                seen += 1;
                ControlFlow::Continue(())
            })?;
            Ok(seen)
        };
        let error = store.reading_in_time(all).await.expect_err("no time at all");
        assert!(error.took_too_long(), "{error}");
        assert_eq!(store.reading(all).await.expect("all the time"), 1_000);
    }
}
