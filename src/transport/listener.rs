//! The port that clients connect to.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream as StdStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::stream::Transport;

/// Connections that the system holds until the server accepts them.
const BACKLOG: i32 = 4_096;

/// How long nothing is accepted after a failed accept. It usually fails for want of file descriptors: connected clients
/// are served meanwhile, and give theirs back when they leave.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    write_timeout: Duration,
}

/// A connection that was accepted and belongs to no runtime yet.
#[derive(Debug)]
pub struct Accepted {
    tcp: StdStream,
    peer: SocketAddr,
    write_timeout: Duration,
}

impl Listener {
    /// Binds the address and listens. To be called within a runtime.
    pub fn bind(address: SocketAddr, write_timeout: Duration) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A restart does not wait until the system has forgotten the connections of the run before.
        socket.set_reuse_address(true)?;
        // For bytes that the system has taken and cannot deliver: without this it would try for a quarter of an hour to
        // reach a peer that has vanished. Accepted connections inherit it.
        socket.set_tcp_user_timeout(Some(write_timeout))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(Self { tcp: TcpListener::from_std(socket.into())?, write_timeout })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next connection. Cancel-safe but for a connection just accepted, which is dropped.
    pub async fn accept(&self) -> Accepted {
        loop {
            match self.tcp.accept().await {
                Ok((tcp, peer)) => {
                    // Answers are written whole, so waiting for more bytes to send would only delay them. An error here
                    // means that the peer is gone.
                    if let Ok(tcp) = tcp.set_nodelay(true).and_then(|()| tcp.into_std()) {
                        return Accepted { tcp, peer, write_timeout: self.write_timeout };
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Accepted {
    /// Sends an answer and closes the connection. Does not wait: a client that cannot even take this gets nothing.
    pub fn refuse(mut self, answer: &[u8]) {
        let _ = self.tcp.write(answer);
    }

    /// Gives the connection to the runtime of the thread that calls this.
    pub fn into_transport(self) -> io::Result<Transport> {
        Transport::new(self.tcp, self.peer, self.write_timeout)
    }
}
