//! One WebSocket, once its handshake is done: a reading half and a writing half in one task, with an outbox between them.

mod close;
mod keepalive;
mod publish;
mod reader;
mod subscribe;
mod subscriber;

pub use close::refuse;
pub use publish::publish;
pub use subscribe::subscribe;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    use bytes::Bytes;
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::runtime::{Builder, Handle};
    use tokio::time::timeout;

    use super::{publish, subscribe};
    use crate::auth::{Caller, Counted, Principal};
    use crate::budget::MEMORY_PER_BYTE;
    use crate::config::Config;
    use crate::hub::Hub;
    use crate::pipeline::Pipeline;
    use crate::store::Store;
    use crate::transport::{Listener, Transport};
    use crate::wire::answer::Ack;
    use crate::wire::decoder::{Decoder, Message};
    use crate::wire::frame::{self, OpCode, Role};
    use crate::wire::refusal::Ending;

    const CALLER: Caller =
        Caller { counted: Counted::ApiKey, from: IpAddr::V4(Ipv4Addr::LOCALHOST), principal: Principal::Everything };

    struct Client {
        stream: TcpStream,
        decoder: Decoder,
    }

    impl Client {
        /// A client, and the other end of its connection.
        async fn new() -> (Self, Transport) {
            let address = (Ipv4Addr::LOCALHOST, 0).into();
            let listener = Listener::bind(address, Duration::from_secs(30)).expect("a port");
            let stream = TcpStream::connect(listener.address().expect("bound")).await.expect("listened to");
            let transport = listener.accept().await.into_transport().expect("a runtime");
            (Self { stream, decoder: Decoder::new(Role::Client, 1 << 20) }, transport)
        }

        async fn publishing(pipeline: &Arc<Pipeline>) -> Self {
            let (client, transport) = Self::new().await;
            tokio::spawn(publish(transport, Bytes::new(), CALLER, pipeline.clone(), None, Ack::default()));
            client
        }

        async fn subscribing(pipeline: &Arc<Pipeline>, filter: &str) -> Self {
            let (mut client, transport) = Self::new().await;
            tokio::spawn(subscribe(transport, Bytes::new(), CALLER, pipeline.clone()));
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

    #[tokio::test]
    async fn a_subscriber_can_be_ended_from_outside_with_a_reason() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Config::of_test(folder.path().join("db"));
        let (store, _parts) = Store::open_parts(&config).expect("a new database");
        let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
        let pipeline = Pipeline::of_test(config, store, hub, Handle::current());
        let mut subscriber = Client::subscribing(&pipeline, "{}").await;
        let (id, _) = pipeline.subscriber_list()[0];
        assert!(pipeline.end_subscriber(id, Ending::Deleted));
        assert!(!pipeline.end_subscriber(id, Ending::Failed), "it is ending already");
        let code = loop {
            if let Some(Message::Close(close)) = subscriber.decoder.next().expect("well-formed frames") {
                break close.map(|(code, _)| code);
            }
            let read = subscriber.stream.read_buf(subscriber.decoder.space()).await;
            assert_ne!(read.expect("a server"), 0, "it hung up");
        };
        assert_eq!(code, Ending::Deleted.code());
    }

    #[test]
    fn other_sockets_are_served_while_a_large_message_is_parsed_and_its_own_socket_keeps_its_order() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Config { check_at_start: false, ..Config::of_test(folder.path().join("db")) };
        let (store, running) = Store::open(&config).expect("a new database");
        let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
        let fan_out = std::thread::spawn({
            let (hub, commits) = (hub.clone(), running.commits);
            move || hub.run(&commits)
        });
        // The one thread that parses is held up until the gate opens.
        let parsing = Builder::new_current_thread().max_blocking_threads(1).build().expect("a runtime");
        let (gate, held_up) = mpsc::channel::<()>();
        parsing.spawn_blocking(move || held_up.recv());
        let pipeline = Pipeline::of_test(config, store.clone(), hub, parsing.handle().clone());

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
            let in_hand = (zeros.len() + ignored.len()) * MEMORY_PER_BYTE;
            for _ in 0..3 {
                other.say(&[tick]).await;
                assert_eq!(other.hear().await["status"], "ok");
            }
            let both = async {
                while pipeline.bodies.reserved() < in_hand {
                    tokio::task::yield_now().await;
                }
            };
            timeout(Duration::from_secs(10), both).await.expect("both wait to be parsed");
            other.say(&[tick]).await;
            assert_eq!(other.hear().await["status"], "ok");
            assert!(pipeline.bodies.reserved() >= in_hand, "both still wait");

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
