//! One connection as a stream of bytes.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use super::halves::{ReadHalf, WriteHalf};
use super::patience::Patience;

/// How long a connection that the server ends is still read. A client may be in the middle of a body that was refused,
/// or of messages: closing with unread bytes would reset the connection, and could take the last answer from the client.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that are read before they are asked for, to see whether the peer has ended its side behind them.
const AHEAD_BYTES_MAX: usize = 4 << 10;

/// The bytes of one connection. A write fails when the peer takes no byte of it for the write timeout; `shutdown` says
/// that nothing more follows, and then reads and drops what the peer still sends for [`LINGER`].
#[derive(Debug)]
pub struct Transport {
    tcp: TcpStream,
    peer: SocketAddr,
    patience: Patience,
    lingering: Option<Pin<Box<Sleep>>>,
    /// How many more bytes are read while lingering.
    linger_bytes_left: usize,
    /// Bytes that were read before they were asked for, at most [`AHEAD_BYTES_MAX`].
    ahead: Vec<u8>,
    /// The peer has ended its side, and this was found behind `ahead`.
    peer_ended: bool,
}

/// What reading ahead has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// The peer has ended its side.
    Ended,
    /// As many bytes have come as are read ahead: an end behind them cannot be seen.
    Full,
}

impl Transport {
    /// Belongs to the runtime of the thread that calls this.
    pub(super) fn new(stream: StdStream, peer: SocketAddr, write_timeout: Duration) -> io::Result<Self> {
        let (tcp, patience) = (TcpStream::from_std(stream)?, Patience::new(write_timeout));
        let (lingering, linger_bytes_left) = (None, usize::MAX);
        Ok(Self { tcp, peer, patience, lingering, linger_bytes_left, ahead: Vec::new(), peer_ended: false })
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The first bytes, which stay to be read; none when the peer has ended its side. Cancel-safe.
    pub async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.tcp.peek(bytes).await
    }

    /// Reads ahead until the peer is found to have ended its side, or until it cannot be found. Pending while nothing
    /// more has come. [`AsyncRead`] gives these bytes first.
    pub fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Ahead>> {
        while !self.peer_ended {
            if self.ahead.len() >= AHEAD_BYTES_MAX {
                return Poll::Ready(Ok(Ahead::Full));
            }
            let mut piece = [0; AHEAD_BYTES_MAX];
            let mut piece = ReadBuf::new(&mut piece[self.ahead.len()..]);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut piece))?;
            self.peer_ended = piece.filled().is_empty();
            self.ahead.extend_from_slice(piece.filled());
        }
        Poll::Ready(Ok(Ahead::Ended))
    }

    /// Ends the lingering of `shutdown` after this many bytes, too. Without this call its time alone ends it.
    pub fn linger_for_bytes(&mut self, bytes_max: usize) {
        self.linger_bytes_left = bytes_max;
    }

    /// What was read ahead and not asked for. To be called before [`Self::split`], whose halves do not know of it.
    pub fn take_ahead(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ahead)
    }

    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        let (read, write) = self.tcp.split();
        (ReadHalf { tcp: read }, WriteHalf { tcp: write, patience: &mut self.patience })
    }
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let len = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead[..len]);
            self.ahead.drain(..len);
            return Poll::Ready(Ok(()));
        }
        if self.peer_ended {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.tcp).poll_write(cx, bytes);
        self.patience.limit(cx, written)
    }

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
        let this = &mut *self;
        let over = match &mut this.lingering {
            Some(over) => over,
            None => {
                ready!(Pin::new(&mut this.tcp).poll_shutdown(cx))?;
                this.lingering.insert(Box::pin(sleep(LINGER)))
            }
        };
        // The clock first: a peer that keeps on sending must not keep the server from looking at it.
        if over.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        while this.linger_bytes_left > 0 {
            let mut waste = [0; 8 << 10];
            let mut waste = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut this.tcp).poll_read(cx, &mut waste)) {
                Ok(()) if !waste.filled().is_empty() => {
                    this.linger_bytes_left = this.linger_bytes_left.saturating_sub(waste.filled().len());
                }
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn connected() -> (Transport, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connected");
        let (stream, address) = listener.accept().await.expect("accepted");
        let stream = stream.into_std().expect("a socket");
        (Transport::new(stream, address, Duration::from_secs(60)).expect("registered"), peer)
    }

    /// Begins to linger, and returns whether that is over at once.
    async fn lingers_no_longer(mut transport: Transport) -> bool {
        let mut shutdown = pin!(transport.shutdown());
        poll_fn(|cx| Poll::Ready(shutdown.as_mut().poll(cx))).await.is_ready()
    }

    #[tokio::test]
    async fn lingering_ends_after_as_many_bytes_as_are_allowed() {
        const SENT: usize = 64 << 10;
        for (bytes_max, is_over) in [(SENT / 2, true), (usize::MAX, false)] {
            let (mut transport, mut peer) = connected().await;
            peer.write_all(&[0; SENT]).await.expect("sent");
            let mut all = vec![0; SENT];
            while transport.peek(&mut all).await.expect("readable") < SENT {}
            transport.linger_for_bytes(bytes_max);
            assert_eq!(lingers_no_longer(transport).await, is_over, "{bytes_max}");
        }
    }

    #[tokio::test]
    async fn lingering_ends_when_the_peer_ends_its_side() {
        let (transport, mut peer) = connected().await;
        peer.shutdown().await.expect("ended");
        assert_eq!(transport.peek(&mut [0]).await.expect("an end"), 0);
        assert!(lingers_no_longer(transport).await);
    }
}
