//! How long the server waits for a peer that takes nothing.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// The time in which a peer has to take at least one byte of what is written to it.
#[derive(Debug)]
pub(super) struct Patience {
    write_timeout: Duration,
    /// Runs while a write waits for the peer: a write that succeeds at once sets no timer.
    overdue: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub(super) fn new(write_timeout: Duration) -> Self {
        Self { write_timeout, overdue: None }
    }

    /// Passes on the result of a write; an error when the peer has taken nothing for the whole time.
    #[inline]
    pub(super) fn limit<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.overdue = None;
            return written;
        }
        let overdue = self.overdue.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        overdue.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}
