//! One WebSocket, once its handshake is done: a reading half and a writing half in one task, with an
//! outbox between them.

mod publish;
mod reader;
mod subscribe;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::WriteHalf;
use tokio::time::timeout;

pub use publish::publish;
pub use subscribe::subscribe;

use crate::pipeline::Pipeline;
use crate::wire::frame;
use crate::wire::refusal::Ending;

/// How long a socket that was told goodbye is listened to. Closing it with unread bytes in it would
/// reset the connection and could take the goodbye away from the peer.
const LINGER: Duration = Duration::from_secs(1);

/// Most bytes read while lingering: what a producer under full load may still have under way.
const LINGER_BYTES_MAX: usize = 64 << 20;

/// Slices of one vectored write; the system takes 1,024.
const SLICES_MAX: usize = 256;

/// Whether a peer that has nothing to say is still there. It may have vanished without a word, or hang; pings find out.
///
/// It is felt once an interval, by a timer that is there anyway: what arrives costs a store, and no look at a clock.
struct Pulse {
    /// How often it was felt since something arrived.
    felt: AtomicU32,
    /// Pings in a row that may go unanswered.
    pings_max: u32,
}

/// What was heard in an interval.
enum Beat {
    Something,
    /// Nothing: a ping is due.
    Nothing,
    /// Nothing but silence to pings.
    Gone,
}

impl Pulse {
    fn new(pipeline: &Pipeline) -> Self {
        let config = &pipeline.config;
        let pings_max = config.ping_timeout.div_duration_f64(config.keepalive_interval).ceil();
        Self { felt: AtomicU32::new(0), pings_max: pings_max as u32 }
    }

    /// Something arrived.
    fn heard(&self) {
        self.felt.store(0, Ordering::Relaxed);
    }

    /// An interval is over.
    fn feel(&self) -> Beat {
        match self.felt.fetch_add(1, Ordering::Relaxed) {
            0 => Beat::Something,
            pings if pings <= self.pings_max => Beat::Nothing,
            _ => Beat::Gone,
        }
    }
}

/// Ends a socket whose handshake was accepted only so that its client can see why it is refused.
pub async fn refuse(mut stream: TcpStream, ending: Ending) {
    let said = goodbye(&mut stream.split().1, ending, LINGER).await;
    if said {
        linger(stream).await;
    }
}

/// Says how the conversation ends, with a Close frame. Returns whether one was sent.
async fn goodbye(write: &mut WriteHalf<'_>, ending: Ending, patience: Duration) -> bool {
    let Some(code) = ending.code() else { return false };
    let mut frame = Vec::new();
    frame::close(&mut frame, code, &ending.reason());
    write_all(write, &frame, patience).await.is_ok()
}

/// Writes everything; an error when the peer takes no byte for `patience`.
async fn write_all(write: &mut WriteHalf<'_>, mut bytes: &[u8], patience: Duration) -> io::Result<()> {
    while !bytes.is_empty() {
        match timeout(patience, write.write(bytes)).await?? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written..],
        }
    }
    Ok(())
}

/// Writes slices in as few calls as they fit.
async fn write_slices(write: &mut WriteHalf<'_>, slices: &mut [Bytes], patience: Duration) -> io::Result<()> {
    let mut rest = slices;
    loop {
        let finished = rest.iter().take_while(|slice| slice.is_empty()).count();
        rest = &mut rest[finished..];
        if rest.is_empty() {
            return Ok(());
        }
        if let [one] = rest {
            return write_all(write, one, patience).await;
        }
        let mut views = [io::IoSlice::new(&[]); SLICES_MAX];
        for (view, slice) in views.iter_mut().zip(rest.iter()) {
            *view = io::IoSlice::new(slice);
        }
        let views = &views[..rest.len().min(SLICES_MAX)];
        let mut written = timeout(patience, write.write_vectored(views)).await??;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
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

/// Waits for the peer to close, for a moment.
async fn linger(mut stream: TcpStream) {
    let closed = async {
        stream.shutdown().await?;
        let (mut buffer, mut read) = ([0; 4096], 0);
        while read < LINGER_BYTES_MAX {
            match stream.read(&mut buffer).await? {
                0 => break,
                n => read += n,
            }
        }
        io::Result::Ok(())
    };
    // Whatever happens now, the connection is over.
    let _ = timeout(LINGER, closed).await;
}
