//! How a connection is made.

use std::io;
use std::net::IpAddr;

use tokio::net::{TcpSocket, TcpStream, lookup_host};

/// Options of a connection where the system's choice does not suit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dial {
    /// The address it comes from.
    pub source: Option<IpAddr>,
    /// Roughly how many unread bytes the system buffers.
    pub receive_buffer_bytes: Option<u32>,
}

impl Dial {
    /// Connects to `host:port`.
    pub async fn connect(self, authority: &str) -> io::Result<TcpStream> {
        let Self { source, receive_buffer_bytes } = self;
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "it has no address");
        for address in lookup_host(authority).await? {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            receive_buffer_bytes.map_or(Ok(()), |bytes| socket.set_recv_buffer_size(bytes))?;
            if let Some(source) = source {
                // Otherwise the system does not reuse a recently used port, not even for another peer.
                socket.set_reuseaddr(true)?;
                socket.bind((source, 0).into())?;
            }
            match socket.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}
