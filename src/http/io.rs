//! A transport as hyper reads and writes it, with two things that hyper does not do: it finds clients that have gone while
//! an answer is being made, and it answers a URL that is too long with 414.
//!
//! hyper is set to allow half-closed connections, and does not read while an answer is being made. So this looks for the
//! end of the client's side itself, and [`HalfClose`] says when the answer is given up.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::half_close::{HalfClose, Rule};
use crate::transport::{Ahead, Transport};

/// How long an answer with [`Rule::GiveUpLater`] is worked on after its client has ended its side, counted from the last
/// byte that the client took. Longer than a page takes (`PAGE_TIME_MAX`, 2 s), so that a client which waits for a page
/// gets it.
const HALF_CLOSED_PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct HttpIo {
    io: TokioIo<Transport>,
    half_close: HalfClose,
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
    /// No line has ended since something was last written.
    Open,
    Ended,
}

/// Bytes of one read while the end of a first line is looked for: as many as hyper reads first.
const PIECE_BYTES: usize = 8 << 10;

/// What hyper writes, and what is written instead. Both have the same length, so that after a short write the rest of
/// hyper's answer fits behind it.
const HEAD_TOO_LARGE: &[u8; 46] = b"HTTP/1.1 431 Request Header Fields Too Large\r\n";
const URL_TOO_LONG: &[u8; 46] = b"HTTP/1.1 414 URI Too Long                   \r\n";

impl HttpIo {
    pub(super) fn http1(transport: Transport, half_close: HalfClose) -> Self {
        Self { io: TokioIo::new(transport), half_close, leaving: None, first_line: FirstLine::Open }
    }

    pub(super) fn http2(transport: Transport) -> Self {
        let half_close = HalfClose::default();
        Self { io: TokioIo::new(transport), half_close, leaving: None, first_line: FirstLine::None }
    }

    pub(super) fn into_transport(self) -> Transport {
        self.io.into_inner()
    }

    /// Whether this is hyper's answer to a URL that is too long.
    fn is_about_url(&self, answer: &[u8]) -> bool {
        self.first_line == FirstLine::Open && answer.starts_with(HEAD_TOO_LARGE)
    }

    /// Looks whether the client has ended its side. An error gives the answer up.
    fn look(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let rule = self.half_close.rule();
        if rule == Rule::Finish {
            self.leaving = None;
            return Ok(());
        }
        let Poll::Ready(ahead) = self.io.inner_mut().poll_ahead(cx)? else { return Ok(()) };
        let gives_up = match (ahead, rule) {
            (Ahead::Full, _) => rule == Rule::GiveUpEndless,
            (Ahead::Ended, Rule::GiveUpLater) => {
                let leaving = self.leaving.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSED_PATIENCE)));
                leaving.as_mut().poll(cx).is_ready()
            }
            (Ahead::Ended, _) => true,
        };
        if gives_up { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// Takes note of a write that has succeeded.
    fn note<T>(&mut self, written: Poll<T>) -> Poll<T> {
        if written.is_ready() {
            self.leaving = None;
            if self.first_line == FirstLine::Ended {
                self.first_line = FirstLine::Open;
            }
        }
        written
    }
}

impl Read for HttpIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.first_line != FirstLine::Open {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let mut piece = [const { MaybeUninit::uninit() }; PIECE_BYTES];
        let mut piece = ReadBuf::uninit(&mut piece[..buf.remaining().min(PIECE_BYTES)]);
        ready!(Pin::new(self.io.inner_mut()).poll_read(cx, &mut piece))?;
        if piece.filled().contains(&b'\n') {
            self.first_line = FirstLine::Ended;
        }
        buf.put_slice(piece.filled());
        Poll::Ready(Ok(()))
    }
}

impl Write for HttpIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = match self.is_about_url(buf) {
            true => {
                let answer = [URL_TOO_LONG, &buf[HEAD_TOO_LARGE.len()..]].concat();
                Pin::new(&mut self.io).poll_write(cx, &answer)
            }
            false => Pin::new(&mut self.io).poll_write(cx, buf),
        };
        self.note(written)
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
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper calls this whenever its task was woken and has nothing to write, so this is where the client is looked for.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        Poll::Ready(self.look(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
