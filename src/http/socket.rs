//! The TCP stream below one HTTP connection, with the patience that hyper leaves to us.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// How long a connection that we end is still read. A client may be in the middle of a body that was refused;
/// closing on unread bytes would reset the connection and could take the answer from it.
const LINGER: Duration = Duration::from_secs(1);

/// Fails when the peer takes no byte for too long, and closes so that the last answer arrives.
pub(super) struct Socket {
    io: TokioIo<TcpStream>,
    write_timeout: Duration,
    /// Runs while the peer takes nothing: there is no timer as long as all goes well.
    overdue: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, write_timeout: Duration) -> Self {
        Self { io: TokioIo::new(stream), write_timeout, overdue: None, lingering: None }
    }

    pub(super) fn into_inner(self) -> TcpStream {
        self.io.into_inner()
    }

    fn unless_overdue<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.overdue = None;
            return written;
        }
        let overdue = self.overdue.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        overdue.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.unless_overdue(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.unless_overdue(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Says that nothing more follows, then reads on for a moment.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let over = match &mut this.lingering {
            Some(over) => over,
            None => {
                ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
                this.lingering.insert(Box::pin(sleep(LINGER)))
            }
        };
        // The clock first: somebody who keeps on sending must not keep us from looking at it.
        if over.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut waste = [0; 8 << 10];
            let mut waste = ReadBuf::new(&mut waste);
            match ready!(Pin::new(this.io.inner_mut()).poll_read(cx, &mut waste)) {
                Ok(()) if !waste.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
