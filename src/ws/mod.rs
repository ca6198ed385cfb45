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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::{Arc, mpsc};

    use serde_json::Value;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::runtime::Builder;

    use super::*;
    use crate::budget::BYTES_FOR_A_BYTE;
    use crate::config::Config;
    use crate::hub::Hub;
    use crate::store::Store;
    use crate::subscriptions::Subscriptions;
    use crate::wire::answer::Ack;
    use crate::wire::frame::{Decoder, Message, OpCode, Role};

    struct Client {
        stream: TcpStream,
        decoder: Decoder,
    }

    impl Client {
        /// A client, and the other end of its connection.
        async fn new() -> (Self, TcpStream, SocketAddr) {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let stream = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("listened to");
            let (served, peer) = listener.accept().await.expect("connected");
            (Self { stream, decoder: Decoder::new(Role::Client, 1 << 20) }, served, peer)
        }

        async fn publishing(pipeline: &Arc<Pipeline>) -> Self {
            let (client, served, peer) = Self::new().await;
            tokio::spawn(publish(served, Bytes::new(), peer, pipeline.clone(), None, Ack::default()));
            client
        }

        async fn subscribing(pipeline: &Arc<Pipeline>, filter: &str) -> Self {
            let (mut client, served, peer) = Self::new().await;
            tokio::spawn(subscribe(served, Bytes::new(), peer, pipeline.clone()));
            client.say(&[filter]).await;
            assert_eq!(client.hear().await["status"], "subscribed");
            client
        }

        async fn say(&mut self, messages: &[&str]) {
            let mut frames = Vec::new();
            for message in messages {
                frame::masked(&mut frames, OpCode::Text, message.as_bytes(), [1, 2, 3, 4]);
            }
            self.stream.write_all(&frames).await.expect("a server");
        }

        async fn hear(&mut self) -> Value {
            loop {
                if let Some(message) = self.decoder.next().expect("well-formed frames") {
                    let Message::Text(text) = message else { panic!("{message:?} instead of a text") };
                    return serde_json::from_str(text).expect("JSON");
                }
                assert_ne!(self.stream.read_buf(self.decoder.space()).await.expect("a server"), 0, "it hung up");
            }
        }
    }

    #[test]
    fn while_a_large_message_is_parsed_others_are_served_and_what_is_behind_it_waits_for_its_turn() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Config { check_at_start: false, ..Config::of_test(folder.path().join("db")) };
        let (store, running) = Store::open(&config).expect("a new database");
        let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
        let fan_out = std::thread::spawn({
            let (hub, commits) = (hub.clone(), running.commits);
            move || hub.run(&commits)
        });
        let loaded = Subscriptions::load(&store, &hub, config.max_subscriptions, config.max_subscriber_bytes);
        let (subscriptions, _) = loaded.expect("readable");
        // The one thread that parses is held up until the gate opens.
        let parsing = Builder::new_current_thread().max_blocking_threads(1).build().expect("a runtime");
        let (gate, held_up) = mpsc::channel::<()>();
        parsing.spawn_blocking(move || held_up.recv());
        let pipeline = Arc::new(Pipeline::new(config, store.clone(), hub, subscriptions, parsing.handle().clone()));

        let network = Builder::new_current_thread().enable_all().build().expect("a runtime");
        network.block_on(async {
            let zeros = format!("[0{}]", ",0".repeat(50_000));
            let ignored = format!(r#"{{"x":{zeros}}}"#);
            let tick = r#"{"event_type":"timer_tick","source":"s"}"#;
            let mut other = Client::publishing(&pipeline).await;
            let mut publisher = Client::publishing(&pipeline).await;
            let mut subscriber = Client::subscribing(&pipeline, r#"{"source":"nobody"}"#).await;
            publisher.say(&[&zeros, tick]).await;
            subscriber.say(&[&ignored, r#"{"type":"ping"}"#]).await;
            // Both are in hand while they have their memory.
            let in_hand = (zeros.len() + ignored.len()) * BYTES_FOR_A_BYTE;
            for _ in 0..3 {
                other.say(&[tick]).await;
                assert_eq!(other.hear().await["status"], "ok");
            }
            let both = async {
                while pipeline.bodies.taken() < in_hand {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(10), both).await.expect("both wait to be parsed");
            other.say(&[tick]).await;
            assert_eq!(other.hear().await["status"], "ok");
            assert!(pipeline.bodies.taken() >= in_hand, "both still wait");

            drop(gate);
            assert_eq!(publisher.hear().await["status"], "error");
            assert_eq!(publisher.hear().await["event_id"], "evt_000000000005");
            assert_eq!(subscriber.hear().await["type"], "pong");
        });
        drop((network, pipeline));
        store.close();
        running.threads.into_iter().chain([fan_out]).for_each(|thread| thread.join().expect("no panic"));
    }
}
