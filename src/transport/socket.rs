//! The TCP stream at the bottom of a connection.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::patience::Patience;

/// Bytes of one read under TLS, as many as a WebSocket reads at a time.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    /// What each read under TLS goes through.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A write fails when the peer takes no byte of it for the write timeout. This is under TLS, so that each byte that the peer
/// takes counts, also where a whole record is waited for.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) tcp: TcpStream,
    pub(super) patience: Patience,
    /// What TLS has not asked for yet, of the last read.
    pub(super) received: Bytes,
}

/// For TLS, which asks for 4 KiB at a time: here one system call reads what has come.
impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.received.is_empty() {
            let len = self.received.len().min(buffer.remaining());
            buffer.put_slice(&self.received[..len]);
            self.received.advance(len);
            return Poll::Ready(Ok(()));
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut read))?;
            let (now, later) = read.filled().split_at(read.filled().len().min(buffer.remaining()));
            buffer.put_slice(now);
            self.received = Bytes::copy_from_slice(later);
            Poll::Ready(Ok(()))
        })
    }
}

impl AsyncWrite for Socket {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.patience.limit(cx, written)
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write_vectored(cx, slices);
        self.patience.limit(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
