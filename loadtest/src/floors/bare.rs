//! A server that only answers, or only sends. It keeps as much of the contract as the load needs: ids that ascend, and
//! every event to each subscriber of its session. It checks and stores nothing, so what it costs is the floor under ours.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::Write as _;
use std::mem;
use std::net::TcpStream as StdStream;
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Instant;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use event_pipeline::hub::{REST_MAX, REST_PER_DELIVERY};
use event_pipeline::wire::decoder::{Decoder, Message};
use event_pipeline::wire::frame::{self, Role};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use memchr::memmem;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local};

/// Is a bare server, until it is ended
#[derive(Args, Debug, Clone, Copy)]
pub struct Bare {
    #[arg(value_enum)]
    pub what: What,
}

/// What a bare server does.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum What {
    /// Answers `POST /events`, with as little around hyper as it can be used with.
    Http,
    /// Sends what is published to subscribers.
    Send,
}

/// What its one line says, before its address.
pub const LISTENING: &str = "listening on ";

/// What the thread that sends is told.
enum Order {
    /// A subscriber of one session, or of everything.
    Join(Option<String>, StdStream),
    Send(Vec<Delivery>),
}

/// The session of an event, and its frame.
struct Delivery(String, Vec<u8>);

struct Server {
    /// The last sequence number.
    last: Cell<u64>,
    orders: Sender<Order>,
}

impl Bare {
    pub fn serve(self) -> anyhow::Result<()> {
        let (orders, received) = mpsc::channel();
        thread::Builder::new().name("send".to_owned()).spawn(move || send(&received))?;
        // It has the name of our thread that does the same.
        let network = thread::Builder::new().name("network".to_owned()).spawn(move || {
            let runtime = Builder::new_current_thread().enable_io().build()?;
            LocalSet::new().block_on(&runtime, self.accept(Rc::new(Server { last: Cell::new(0), orders })))
        })?;
        network.join().map_err(|_| anyhow!("the network thread panicked"))?
    }

    async fn accept(self, server: Rc<Server>) -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{LISTENING}{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let server = server.clone();
            let service = service_fn(move |request| server.clone().answer(request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // Clients come and go: how a connection ended tells nothing.
            match self.what {
                What::Http => drop(spawn_local(connection)),
                What::Send => drop(spawn_local(connection.with_upgrades())),
            }
        }
    }
}

impl Server {
    fn next(&self) -> u64 {
        self.last.set(self.last.get() + 1);
        self.last.get()
    }

    async fn answer(self: Rc<Self>, mut request: Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
        let path = request.uri().path();
        let (status, body) = match path {
            "/events" if *request.method() == Method::POST => {
                request.into_body().collect().await?;
                (StatusCode::CREATED, format!(r#"{{"id":"evt_{:012x}"}}"#, self.next()))
            }
            "/stats" => (StatusCode::OK, format!(r#"{{"total_events":{}}}"#, self.last.get())),
            "/ws/publish" | "/ws/subscribe" => {
                let (publishes, upgrade) = (path == "/ws/publish", hyper::upgrade::on(&mut request));
                spawn_local(async move {
                    let parts = upgrade.await?.downcast::<TokioIo<TcpStream>>().expect("each is served on one");
                    let decoder = Decoder::new(Role::Server, frame::MESSAGE_BYTES_MAX).with_received(&parts.read_buf);
                    let socket = (parts.io.into_inner(), decoder);
                    if publishes { self.publish(socket).await } else { self.subscribe(socket).await }
                });
                (StatusCode::SWITCHING_PROTOCOLS, String::new())
            }
            _ => (StatusCode::NOT_FOUND, String::new()),
        };
        let mut response = Response::new(Full::new(body.into()));
        *response.status_mut() = status;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        }
        Ok(response)
    }

    /// Acknowledges what was read, and has it sent.
    async fn publish(&self, (mut stream, mut decoder): (TcpStream, Decoder)) -> anyhow::Result<()> {
        let mut answers = Vec::new();
        while stream.read_buf(&mut decoder.space()).await? > 0 {
            let mut deliveries = Vec::new();
            while let Some(Message::Text(event)) = decoder.next().map_err(|error| anyhow!("{error:?}"))? {
                let id = self.next();
                frame::text(&mut answers, format!(r#"{{"status":"ok","event_id":"evt_{id:012x}"}}"#).as_bytes());
                deliveries.push(Delivery::of(event, id).context("an event with a session")?);
            }
            self.orders.send(Order::Send(deliveries))?;
            stream.write_all(&mem::take(&mut answers)).await?;
        }
        Ok(())
    }

    async fn subscribe(&self, (mut stream, mut decoder): (TcpStream, Decoder)) -> anyhow::Result<()> {
        while stream.read_buf(&mut decoder.space()).await? > 0 {
            let Some(Message::Text(filter)) = decoder.next().map_err(|error| anyhow!("{error:?}"))? else { continue };
            let session = serde_json::from_str::<Value>(filter)?["session_id"].as_str().map(str::to_owned);
            let (mut stream, mut answer) = (stream.into_std()?, Vec::new());
            stream.set_nonblocking(false)?;
            frame::text(&mut answer, br#"{"status":"subscribed"}"#);
            stream.write_all(&answer)?;
            self.orders.send(Order::Join(session, stream))?;
            break;
        }
        Ok(())
    }
}

impl Delivery {
    /// An event as our server would deliver it.
    fn of(event: &str, id: u64) -> Option<Self> {
        const SESSION: &[u8] = br#""session_id":""#;
        let (_, session) = event.split_at(memmem::find(event.as_bytes(), SESSION)? + SESSION.len());
        let (session, _) = session.split_once('"')?;
        let fields = event.strip_prefix('{')?.strip_suffix('}')?;
        let text = format!(r#"{{"id":"evt_{id:012x}",{fields},"timestamp":"1970-01-01T00:00:00.000000Z"}}"#);
        let mut frame = Vec::new();
        frame::text(&mut frame, text.as_bytes());
        Some(Self(session.to_owned(), frame))
    }
}

/// The thread that sends, in rounds as our fan-out: after each it rests as long, so that events share a send.
fn send(orders: &Receiver<Order>) {
    let (mut of_all, mut of_sessions) = (Vec::<StdStream>::new(), HashMap::<String, Vec<StdStream>>::new());
    while let Ok(first) = orders.recv() {
        let (began, mut all, mut by_session) = (Instant::now(), Vec::new(), HashMap::<String, Vec<u8>>::new());
        for order in [first].into_iter().chain(orders.try_iter()) {
            match order {
                Order::Join(None, stream) => of_all.push(stream),
                Order::Join(Some(session), stream) => of_sessions.entry(session).or_default().push(stream),
                Order::Send(deliveries) => {
                    for Delivery(session, frame) in deliveries {
                        all.extend_from_slice(&frame);
                        if of_sessions.contains_key(&session) {
                            by_session.entry(session).or_default().extend_from_slice(&frame);
                        }
                    }
                }
            }
        }
        let due = by_session.iter().flat_map(|(session, bytes)| of_sessions[session].iter().map(move |to| (to, bytes)));
        let mut sends = 0;
        for (mut to, bytes) in of_all.iter().map(|to| (to, &all)).chain(due).filter(|(_, bytes)| !bytes.is_empty()) {
            // A subscriber that is gone misses events, and the load finds that.
            let _ = to.write_all(bytes);
            sends += 1;
        }
        thread::sleep((REST_PER_DELIVERY * sends).min(REST_MAX).saturating_sub(began.elapsed()));
    }
}
