//! The two halves of a connection that is read and written at the same time, in one task.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::tcp;
use tokio_rustls::server::TlsStream;

use super::patience::Patience;
use super::socket::Socket;

/// TLS over a socket.
pub(super) type Tls = TlsStream<Socket>;

/// Many clients end TCP without a word within TLS. That ends the connection like any other: HTTP and WebSockets say themselves
/// where a message ends.
#[inline]
pub(super) fn or_end(read: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
    match read {
        Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
        read => read,
    }
}

/// Slices of one vectored write, a quarter of what the system takes (`IOV_MAX`, 1,024): 4 KiB on the stack.
const SLICES_MAX: usize = 256;

#[derive(Debug)]
pub struct ReadHalf<'t>(pub(super) Reading<'t>);

#[derive(Debug)]
pub(super) enum Reading<'t> {
    Plain(tcp::ReadHalf<'t>),
    Tls(&'t Mutex<Tls>),
}

impl AsyncRead for Reading<'_> {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(tls) => or_end(Pin::new(&mut *tls.lock()).poll_read(cx, buffer)),
        }
    }
}

impl ReadHalf<'_> {
    /// Reads what has come, up to the space in `buffer`. False when the peer has ended its side or is gone. Cancel-safe.
    #[inline]
    pub async fn read(&mut self, buffer: &mut impl BufMut) -> bool {
        matches!(self.0.read_buf(buffer).await, Ok(1..))
    }
}

/// Each write fails when the peer takes no byte of it for the write timeout.
#[derive(Debug)]
pub struct WriteHalf<'t>(pub(super) Writing<'t>);

#[derive(Debug)]
pub(super) enum Writing<'t> {
    Plain(tcp::WriteHalf<'t>, &'t mut Patience),
    /// The socket under it has the patience.
    Tls(&'t Mutex<Tls>),
}

impl WriteHalf<'_> {
    /// Writes everything.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write(&[IoSlice::new(bytes)]).await?;
            bytes = &bytes[written..];
        }
        self.flush().await
    }

    /// Writes all slices, in as few system calls as they fit into.
    pub async fn write_slices(&mut self, slices: &mut [Bytes]) -> io::Result<()> {
        let mut rest = slices;
        loop {
            let finished = rest.iter().take_while(|slice| slice.is_empty()).count();
            rest = &mut rest[finished..];
            match rest {
                [] => return self.flush().await,
                [one] => return self.write_all(one).await,
                _ => {}
            }
            let mut views = [IoSlice::new(&[]); SLICES_MAX];
            for (view, slice) in views.iter_mut().zip(rest.iter()) {
                *view = IoSlice::new(slice);
            }
            let mut written = self.write(&views[..rest.len().min(SLICES_MAX)]).await?;
            for slice in rest.iter_mut() {
                let of_this = written.min(slice.len());
                slice.advance(of_this);
                written -= of_this;
                if written == 0 {
                    break;
                }
            }
        }
    }

    /// Writes a part, at least one byte. One slice is a plain write to the system.
    #[inline]
    async fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = poll_fn(|cx| match &mut self.0 {
            Writing::Plain(tcp, patience) => {
                let tcp = Pin::new(tcp);
                let written = match slices {
                    [one] => tcp.poll_write(cx, one),
                    many => tcp.poll_write_vectored(cx, many),
                };
                patience.limit(cx, written)
            }
            Writing::Tls(tls) => match slices {
                [one] => Pin::new(&mut *tls.lock()).poll_write(cx, one),
                many => Pin::new(&mut *tls.lock()).poll_write_vectored(cx, many),
            },
        });
        match written.await? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }

    /// TCP has nothing to flush, and this costs nothing. TLS may have records to send that the peer has not taken yet.
    #[inline]
    async fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Writing::Plain(..) => Ok(()),
            Writing::Tls(tls) => poll_fn(|cx| Pin::new(&mut *tls.lock()).poll_flush(cx)).await,
        }
    }
}
