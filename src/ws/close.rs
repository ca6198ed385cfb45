//! How a WebSocket ends.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::transport::{Transport, WriteHalf};
use crate::wire::frame;
use crate::wire::refusal::Ending;

/// Ends a WebSocket whose handshake was accepted only to tell its client why it is refused.
pub async fn refuse(mut transport: Transport, ending: Ending) {
    /// The client has just connected, so it takes a frame at once if it takes any.
    const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
    let sent = timeout(CLOSE_TIMEOUT, send_close(&mut transport.split().1, ending)).await;
    if sent == Ok(true) {
        linger(transport).await;
    }
}

/// Sends the Close frame that belongs to an ending. Returns whether one was sent.
pub(super) async fn send_close(write: &mut WriteHalf<'_>, ending: Ending) -> bool {
    let Some(code) = ending.code() else { return false };
    let mut frame = Vec::new();
    frame::close(&mut frame, code, &ending.reason());
    write.write_all(&frame).await.is_ok()
}

/// 64 MiB: what a producer under full load may still have under way when its socket is closed.
const LINGER_BYTES_MAX: usize = 64 << 20;

/// After a Close frame: gives the peer time to read it and to close. A peer that floods the socket meanwhile is not read
/// for the whole time.
pub(super) async fn linger(mut transport: Transport) {
    transport.linger_for_bytes(LINGER_BYTES_MAX);
    // The connection is over whether this fails or not.
    let _ = transport.shutdown().await;
}
