//! One connection as a stream of bytes.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;

use super::halves::{ReadHalf, Reading, Tls, WriteHalf, Writing, or_end};
use super::patience::Patience;
use super::socket::Socket;

/// How long a connection that the server ends is still read. A client may be in the middle of a body that was refused,
/// or of messages: closing with unread bytes would reset the connection, and could take the last answer from the client.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that are read before they are asked for, to see whether the peer has ended its side behind them.
const AHEAD_BYTES_MAX: usize = 4 << 10;

/// The bytes of one connection. A write fails when the peer takes no byte of it for the write timeout; `shutdown` says
/// that nothing more follows, and then reads and drops what the peer still sends for [`LINGER`].
#[derive(Debug)]
pub struct Transport {
    stream: Stream,
    peer: SocketAddr,
    lingering: Option<Pin<Box<Sleep>>>,
    /// How many more bytes are read while lingering.
    linger_bytes_left: usize,
    /// Bytes that were read before they were asked for, at most [`AHEAD_BYTES_MAX`].
    ahead: Vec<u8>,
    /// The peer has ended its side, and this was found behind `ahead`.
    peer_ended: bool,
}

/// An enum, so that no read and no write goes through a table of functions.
#[derive(Debug)]
enum Stream {
    Plain(Socket),
    /// Boxed, so that plain connections do not carry its memory. The lock is for the two halves. They are in one task, so nobody
    /// waits for it.
    Tls(Box<Mutex<Tls>>),
}

/// Why no TLS was agreed on.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// What the client sends is no TLS. It can be answered.
    #[error("the client does not speak TLS")]
    NotTls(Box<Transport>),
    #[error("the client has left")]
    Gone,
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// The first byte of every TLS connection: a record with a handshake (RFC 8446, 5.1).
const HANDSHAKE_RECORD: u8 = 22;

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
        let socket = Socket { tcp, patience, received: Bytes::new() };
        let (stream, lingering, linger_bytes_left) = (Stream::Plain(socket), None, usize::MAX);
        Ok(Self { stream, peer, lingering, linger_bytes_left, ahead: Vec::new(), peer_ended: false })
    }

    /// Agrees with the client on TLS. Nothing was read yet.
    ///
    /// # Errors
    /// The client speaks something else, leaves, or accepts nothing that the server does.
    pub async fn secured(self, config: Arc<ServerConfig>) -> Result<Self, HandshakeError> {
        let mut first = [0];
        match self.peek(&mut first).await? {
            0 => return Err(HandshakeError::Gone),
            _ if first[0] != HANDSHAKE_RECORD => return Err(HandshakeError::NotTls(Box::new(self))),
            _ => {}
        }
        let Stream::Plain(socket) = self.stream else { unreachable!("it is secured once") };
        let tls = TlsAcceptor::from(config).accept(socket).await?;
        Ok(Self { stream: Stream::Tls(Box::new(Mutex::new(tls))), ..self })
    }

    /// Whether client and server have agreed on HTTP/2 by TLS. A plain connection agrees on nothing.
    pub fn agreed_on_http2(&mut self) -> bool {
        match &mut self.stream {
            Stream::Plain(_) => false,
            Stream::Tls(tls) => tls.get_mut().get_ref().1.alpn_protocol() == Some(b"h2"),
        }
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The first bytes of a plain connection, which stay to be read; none when the peer has ended its side. Cancel-safe.
    pub async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::Plain(socket) => socket.tcp.peek(bytes).await,
            Stream::Tls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn poll_read_stream(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(&mut socket.tcp).poll_read(cx, buffer),
            Stream::Tls(tls) => or_end(Pin::new(tls.get_mut()).poll_read(cx, buffer)),
        }
    }

    /// What is under TLS: for bytes that are dropped.
    fn tcp(&mut self) -> &mut TcpStream {
        match &mut self.stream {
            Stream::Plain(socket) => &mut socket.tcp,
            Stream::Tls(tls) => &mut tls.get_mut().get_mut().0.tcp,
        }
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
            ready!(self.poll_read_stream(cx, &mut piece))?;
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
        match &mut self.stream {
            Stream::Plain(Socket { tcp, patience, .. }) => {
                let (read, write) = tcp.split();
                (ReadHalf(Reading::Plain(read)), WriteHalf(Writing::Plain(write, patience)))
            }
            Stream::Tls(tls) => (ReadHalf(Reading::Tls(tls)), WriteHalf(Writing::Tls(tls))),
        }
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
        self.poll_read_stream(cx, buffer)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Stream::Tls(tls) => Pin::new(tls.get_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Stream::Tls(tls) => Pin::new(tls.get_mut()).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls.get_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let over = match &mut this.lingering {
            Some(over) => over,
            None => {
                ready!(match &mut this.stream {
                    Stream::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
                    // Says so within TLS first (`close_notify`).
                    Stream::Tls(tls) => Pin::new(tls.get_mut()).poll_shutdown(cx),
                })?;
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
            match ready!(Pin::new(this.tcp()).poll_read(cx, &mut waste)) {
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
