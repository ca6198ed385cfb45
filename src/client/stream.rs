//! A connection to a server as a stream of bytes, plain or TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, Error};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::Address;
use super::trust::Trust;

/// What is agreed on with a server before the first request.
#[derive(Clone, Default)]
pub struct Security(Option<(Arc<ClientConfig>, ServerName<'static>)>);

impl Security {
    /// # Errors
    /// The server speaks TLS, and what is trusted cannot be found out.
    pub fn new(address: &Address, trust: &Trust) -> anyhow::Result<Self> {
        if !address.is_tls {
            return Ok(Self(None));
        }
        let name = ServerName::try_from(address.host.clone());
        let name = name.with_context(|| format!("no certificate can be for {:?}", address.host))?;
        Ok(Self(Some((trust.config()?, name))))
    }

    /// Agrees with a server that was just connected to.
    ///
    /// # Errors
    /// Also if the server is not trusted.
    pub async fn over(&self, tcp: TcpStream) -> io::Result<Stream> {
        // Messages are collected before they are written, so what is written should leave at once.
        tcp.set_nodelay(true)?;
        let Some((config, name)) = &self.0 else { return Ok(Stream::Plain(tcp)) };
        match TlsConnector::from(config.clone()).connect(name.clone(), tcp).await {
            Ok(tls) => Ok(Stream::Tls(Box::new(tls))),
            Err(error) => Err(match error.get_ref().and_then(|error| error.downcast_ref()) {
                Some(Error::InvalidCertificate(why)) => io::Error::other(format!(
                    "its certificate is not trusted ({why:?}): --ca names those that vouch for it"
                )),
                _ => error,
            }),
        }
    }
}

/// A connection to a server.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// What is under TLS.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Tls(tls) => match Pin::new(tls).poll_read(cx, buffer) {
                // An end without a word within TLS is an end: HTTP and WebSockets say themselves where a message ends.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
                read => read,
            },
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, bytes),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
