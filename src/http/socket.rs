//! The TCP stream below one HTTP/1.1 connection, with the patience that hyper leaves to us.
//!
//! Some clients end their side of the connection after the request and still want the answer (`printf … | nc`). A
//! client that has gone looks the same until something is written to it. So hyper is set to allow half-closed
//! connections, and does not read while an answer is being made. The socket itself then finds out that the client has
//! ended its side, and the kind of answer decides when it is given up ([`Watch`]).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
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

/// How long an answer is worked on after its client has ended its side, from the last byte that the client took. Longer
/// than a page takes (`PAGE_TIME_MAX`), so that a client which still waits for a page gets it.
const HALF_CLOSED_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of pipelined requests that are read ahead to find that end. Behind as many it is found only once the
/// answer is written, and an answer without an end is given up.
const AHEAD_BYTES_MAX: usize = 4 << 10;

/// What becomes of the answer of a connection whose client has ended its side. Not used over HTTP/2, where that end is
/// the end of the connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch(Arc<AtomicU8>);

/// Held by an answer from its request to the last byte of its body: for so long the socket watches for that end.
#[derive(Debug)]
pub(super) struct Watched(Watch);

/// The answer is finished whatever the client does.
const NOT_WATCHED: u8 = 0;
/// The answer is given up after [`HALF_CLOSED_PATIENCE`]: the client may still want it.
const READ: u8 = 1;
/// The answer is given up at once: it waits for events, and a client that wants these keeps its side open.
const LIVE: u8 = 2;
/// Given up at once, like [`LIVE`], and also when as many bytes as [`AHEAD_BYTES_MAX`] are sent behind it, because they
/// hide that the client leaves: it has no end, so they are never answered.
const ENDLESS: u8 = 3;

impl Watch {
    /// For an answer that is read from storage.
    pub(super) fn of_reading(&self) -> Watched {
        self.0.store(READ, Relaxed);
        Watched(self.clone())
    }
}

impl Watched {
    /// From now on the answer waits for events.
    pub(super) fn set_live(&self) {
        self.0.0.store(LIVE, Relaxed);
    }

    /// From now on it waits for events for as long as its client listens.
    pub(super) fn set_endless(&self) {
        self.0.0.store(ENDLESS, Relaxed);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.0.store(NOT_WATCHED, Relaxed);
    }
}

/// Fails when the peer takes no byte for too long, and closes so that the last answer arrives.
pub(super) struct Socket {
    io: TokioIo<TcpStream>,
    write_timeout: Duration,
    /// Runs while the peer takes nothing: there is no timer as long as all goes well.
    overdue: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
    watch: Watch,
    /// Bytes that were read before hyper asked for them, at most [`AHEAD_BYTES_MAX`].
    ahead: Vec<u8>,
    /// The client has ended its side.
    half_closed: bool,
    /// Runs while a client that has ended its side takes nothing.
    leaving: Option<Pin<Box<Sleep>>>,
    first_line: FirstLine,
}

/// How much of a request's head was read. hyper answers every head that does not fit into its buffer with 431; where not
/// even the first line has an end, it is the URL that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FirstLine {
    /// The connection is HTTP/2: nothing is looked for.
    None,
    /// No end of a line, since something was last written.
    Open,
    Ended,
}

/// A first line is looked at on its way to hyper, in pieces as large as hyper's first.
const PIECE_BYTES: usize = 8 << 10;

/// What hyper writes, and what is written instead. Both have the same length, so that after a short write the rest of
/// hyper's answer fits behind it.
const HEAD_TOO_LARGE: &[u8; 46] = b"HTTP/1.1 431 Request Header Fields Too Large\r\n";
const URL_TOO_LONG: &[u8; 46] = b"HTTP/1.1 414 URI Too Long                   \r\n";

impl Socket {
    pub(super) fn new(stream: TcpStream, write_timeout: Duration, watch: Watch) -> Self {
        Self {
            io: TokioIo::new(stream),
            write_timeout,
            overdue: None,
            lingering: None,
            watch,
            ahead: Vec::new(),
            half_closed: false,
            leaving: None,
            first_line: FirstLine::None,
        }
    }

    /// The same for HTTP/1.1: a URL that is too long is answered with 414 instead of hyper's 431.
    pub(super) fn with_first_lines(self) -> Self {
        Self { first_line: FirstLine::Open, ..self }
    }

    /// Whether this is hyper's answer to a URL that is too long.
    fn is_about_url(&self, answer: &[u8]) -> bool {
        self.first_line == FirstLine::Open && answer.starts_with(HEAD_TOO_LARGE)
    }

    fn look_for_end_of_line(&mut self, read: &[u8]) {
        if self.first_line == FirstLine::Open && read.contains(&b'\n') {
            self.first_line = FirstLine::Ended;
        }
    }

    /// The stream, and what was read of it that hyper has not had.
    pub(super) fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.io.into_inner(), self.ahead)
    }

    /// Looks whether the client of a watched answer has ended its side. An error gives the answer up.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let watched = self.watch.0.load(Relaxed);
        if watched == NOT_WATCHED {
            self.leaving = None;
            return Ok(());
        }
        while !self.half_closed && self.ahead.len() < AHEAD_BYTES_MAX {
            let mut piece = [0; AHEAD_BYTES_MAX];
            let mut piece = ReadBuf::new(&mut piece[self.ahead.len()..]);
            match Pin::new(self.io.inner_mut()).poll_read(cx, &mut piece) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => read?,
            }
            self.half_closed = piece.filled().is_empty();
            self.ahead.extend_from_slice(piece.filled());
        }
        if !self.half_closed {
            return if watched == ENDLESS { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) };
        }
        let leaving = self.leaving.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSED_PATIENCE)));
        match matches!(watched, LIVE | ENDLESS) || leaving.as_mut().poll(cx).is_ready() {
            true => Err(io::ErrorKind::ConnectionAborted.into()),
            false => Ok(()),
        }
    }

    fn unless_overdue<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            (self.overdue, self.leaving) = (None, None);
            if self.first_line == FirstLine::Ended {
                self.first_line = FirstLine::Open;
            }
            return written;
        }
        let overdue = self.overdue.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        overdue.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let len = self.ahead.len().min(buf.remaining());
            let ahead: Vec<_> = self.ahead.drain(..len).collect();
            self.look_for_end_of_line(&ahead);
            buf.put_slice(&ahead);
            return Poll::Ready(Ok(()));
        }
        if self.half_closed {
            return Poll::Ready(Ok(()));
        }
        if self.first_line == FirstLine::Open {
            let mut piece = [const { MaybeUninit::uninit() }; PIECE_BYTES];
            let mut piece = ReadBuf::uninit(&mut piece[..buf.remaining().min(PIECE_BYTES)]);
            ready!(Pin::new(self.io.inner_mut()).poll_read(cx, &mut piece))?;
            self.look_for_end_of_line(piece.filled());
            buf.put_slice(piece.filled());
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = match self.is_about_url(buf) {
            true => {
                let answer = [URL_TOO_LONG, &buf[HEAD_TOO_LARGE.len()..]].concat();
                Pin::new(&mut self.io).poll_write(cx, &answer)
            }
            false => Pin::new(&mut self.io).poll_write(cx, buf),
        };
        self.unless_overdue(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.first().filter(|first| self.is_about_url(first)) {
            return self.poll_write(cx, first);
        }
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.unless_overdue(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// A TCP stream has nothing to flush. hyper calls this whenever its task was woken and has nothing to write, so
    /// this is where the client is looked for.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.look(cx))
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
