//! `/ws/subscribe`: filters in, events out.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{goodbye, linger, write_all, write_slices};
use crate::doorbell::Wakes;
use crate::event::Seq;
use crate::feed::{Chunk, Feed};
use crate::outbox::{Outbox, Taken};
use crate::pipeline::{Pipeline, Producer};
use crate::store::Store;
use crate::wire::frame::{self, Decoder, Message, OpCode, Role};
use crate::wire::message::{self, Filters, FromSubscriber, Start, Subscribe};
use crate::wire::refusal::Ending;

/// Bytes of pongs and other small replies that may wait for a subscriber that does not read.
const REPLY_BYTES_MAX: usize = 1 << 20;

/// Serves one subscriber until its socket ends.
pub async fn subscribe(mut stream: TcpStream, received: Bytes, pipeline: Arc<Pipeline>, producer: Producer) {
    let said_goodbye = {
        let (read, mut write) = stream.split();
        let decoder = Decoder::new(Role::Server, pipeline.config.max_ws_message_bytes).with_received(&received);
        drop(received);
        let socket = Socket { pipeline: &pipeline, replies: Outbox::new(REPLY_BYTES_MAX) };
        match socket.serve(Reader { read, decoder }, &mut write, producer).await {
            Ok(ending) => goodbye(&mut write, ending, pipeline.config.write_timeout).await,
            Err(_) => false,
        }
    };
    if said_goodbye {
        linger(stream).await;
    }
}

struct Socket<'p> {
    pipeline: &'p Arc<Pipeline>,
    /// What the reading half wants to be said, for the writing half to say it in its place.
    replies: Outbox<Reply>,
}

enum Reply {
    Frame(Vec<u8>),
    /// Filters to be changed to, after the event that was the last when they were asked for.
    Filters(Filters, Seq),
    End(Ending),
}

/// What a subscriber's socket is read with.
struct Reader<'s> {
    read: ReadHalf<'s>,
    decoder: Decoder,
}

impl Socket<'_> {
    /// Everything between the handshake and the Close frame. An error: the peer can no longer be written to.
    async fn serve(&self, mut reader: Reader<'_>, write: &mut WriteHalf<'_>, producer: Producer) -> io::Result<Ending> {
        let patience = self.pipeline.config.write_timeout;
        let refuse = async |write: &mut WriteHalf<'_>, why: &str, ending| {
            write_all(write, &text(&message::error(why, None)), patience).await?;
            Ok(ending)
        };
        let Some(place) = self.pipeline.subscriber() else {
            return refuse(write, &Ending::Capacity.reason(), Ending::Capacity).await;
        };
        let request = match self.first_message(&mut reader, write, producer).await? {
            Ok(request) => request,
            Err(Declined::Refused(why)) => return refuse(write, &why, Ending::NotUnderstood).await,
            Err(Declined::Ended(ending)) => return Ok(ending),
        };
        let (position, last) = match start(&self.pipeline.store, &request).await {
            Ok(Ok(start)) => start,
            Ok(Err(why)) => return refuse(write, &why, Ending::NotUnderstood).await,
            Err(error) => {
                tracing::error!(%error, "find where a subscription starts");
                return Ok(Ending::Failed);
            }
        };
        write_all(write, &text(&message::subscribed(place.id, &request.filters, last)), patience).await?;
        let feed = Feed::new(self.pipeline.store.clone(), self.pipeline.hub.clone(), request.filters.filter, position);
        let reading = async {
            let ending = self.read(reader).await;
            self.reply(Reply::End(ending));
            std::future::pending().await
        };
        tokio::select! {
            biased;
            ending = self.write(write, feed) => ending,
            ending = reading => ending,
        }
    }

    /// The filters, in time. From then on the subscriber holds up no shutdown: it is served to its end.
    async fn first_message(
        &self,
        reader: &mut Reader<'_>,
        write: &mut WriteHalf<'_>,
        mut producer: Producer,
    ) -> io::Result<Result<Subscribe, Declined>> {
        let deadline = Instant::now() + self.pipeline.config.subscribe_timeout;
        let mut shutting_down = std::pin::pin!(producer.shutting_down());
        loop {
            while let Some(message) = reader.decoder.next().transpose() {
                let text = match message {
                    Err(violation) => return Ok(Err(Declined::Ended(Ending::Violated(violation)))),
                    Ok(Message::Text(text)) => text.as_bytes(),
                    Ok(Message::Binary(bytes)) => bytes,
                    Ok(Message::TooLarge) => return Ok(Err(Declined::Refused("Message too large".to_owned()))),
                    Ok(Message::Close(close)) => {
                        return Ok(Err(Declined::Ended(Ending::Asked(close.map(|(code, _)| code)))));
                    }
                    Ok(Message::Ping(payload)) => {
                        write_all(write, &pong(payload), self.pipeline.config.write_timeout).await?;
                        continue;
                    }
                    Ok(Message::Pong(_)) => continue,
                };
                return Ok(Subscribe::parse(text).map_err(Declined::Refused));
            }
            let ending = tokio::select! {
                biased;
                bytes = timeout_at(deadline, reader.read.read_buf(reader.decoder.space())) => match bytes {
                    Ok(Ok(1..)) => continue,
                    Ok(Ok(0) | Err(_)) => Ending::Gone,
                    Err(_) => Ending::NoFirstMessage,
                },
                () = &mut shutting_down => Ending::GoingAway,
            };
            return Ok(Err(Declined::Ended(ending)));
        }
    }

    /// Reads what the subscriber says later, until the socket ends, and says how.
    async fn read(&self, mut reader: Reader<'_>) -> Ending {
        loop {
            loop {
                let said = match reader.decoder.next() {
                    Ok(None) => break,
                    Ok(Some(Message::Text(text))) => FromSubscriber::parse(text.as_bytes()),
                    Ok(Some(Message::Binary(bytes))) => FromSubscriber::parse(bytes),
                    Ok(Some(Message::Ping(payload))) => {
                        self.reply(Reply::Frame(pong(payload)));
                        continue;
                    }
                    Ok(Some(Message::TooLarge | Message::Pong(_))) => continue,
                    Ok(Some(Message::Close(close))) => return Ending::Asked(close.map(|(code, _)| code)),
                    Err(violation) => return Ending::Violated(violation),
                };
                match said {
                    Ok(FromSubscriber::Ping) => self.reply(Reply::Frame(text(message::PONG))),
                    Ok(FromSubscriber::UpdateFilters(filters)) => {
                        self.reply(Reply::Filters(filters, self.pipeline.store.committed()));
                    }
                    Ok(FromSubscriber::Other) => {}
                    // The former filters stay.
                    Err(why) => self.reply(Reply::Frame(text(&message::error(&why, None)))),
                }
            }
            match reader.read.read_buf(reader.decoder.space()).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Ending::Gone,
            }
        }
    }

    /// Writes events, replies and keep-alives until the socket ends, and says how.
    async fn write(&self, write: &mut WriteHalf<'_>, mut feed: Feed) -> io::Result<Ending> {
        let patience = self.pipeline.config.write_timeout;
        let silence = self.pipeline.config.keepalive_interval;
        let mut replies = Vec::new();
        let mut changing = std::collections::VecDeque::new();
        let mut keepalive = std::pin::pin!(sleep_until(Instant::now() + silence));
        loop {
            tokio::select! {
                biased;
                taken = self.replies.take(&mut replies) => {
                    if taken == Taken::Overflowed {
                        return Err(io::ErrorKind::QuotaExceeded.into());
                    }
                    for reply in replies.drain(..) {
                        match reply {
                            Reply::Frame(frame) => write_all(write, &frame, patience).await?,
                            Reply::Filters(filters, last) => {
                                feed.change_filter(filters.filter.clone(), last);
                                changing.push_back(filters);
                            }
                            Reply::End(ending) => return Ok(ending),
                        }
                    }
                }
                chunk = feed.next() => match chunk {
                    Ok(Chunk::Frames(mut frames)) => write_slices(write, &mut frames, patience).await?,
                    Ok(Chunk::FilterChanged) => {
                        let filters = changing.pop_front().expect("one change is announced for each asked for");
                        write_all(write, &text(&message::filters_updated(&filters)), patience).await?;
                    }
                    Ok(Chunk::End) => return Ok(Ending::GoingAway),
                    Err(error) => {
                        tracing::error!(%error, "read events for a subscriber");
                        return Ok(Ending::Failed);
                    }
                },
                () = &mut keepalive => write_all(write, &text(message::KEEPALIVE), patience).await?,
            }
            keepalive.as_mut().reset(Instant::now() + silence);
        }
    }

    fn reply(&self, reply: Reply) {
        let bytes = match &reply {
            Reply::Frame(frame) => frame.len(),
            Reply::Filters(..) => size_of::<Filters>(),
            Reply::End(_) => 0,
        };
        let mut wakes = Wakes::default();
        self.replies.push(reply, bytes, &mut wakes);
        wakes.wake_all();
    }
}

/// Why there is no subscription.
enum Declined {
    Refused(String),
    Ended(Ending),
}

/// Where the subscription starts, and the last event stored then; or a sentence for the client.
async fn start(store: &Store, request: &Subscribe) -> rusqlite::Result<Result<(Seq, Seq), String>> {
    let last = store.committed();
    if request.start == Start::Now {
        return Ok(Ok((last, last)));
    }
    let (store, start, filter) = (store.clone(), request.start.clone(), request.filters.filter.clone());
    let found = tokio::task::spawn_blocking(move || match start {
        Start::Now => Ok(Some(last)),
        Start::After(id) => store.position(&id),
        Start::Since(time) => store.before_time(time).map(Some),
        Start::Last(count) => store.before_last(&filter, count).map(Some),
    });
    let position = found.await.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))?;
    // An id that was not given out yet is no reason to leave out the events before it.
    Ok(position.map(|seq| (seq.min(last), last)).ok_or_else(|| "'after' is not an event id".to_owned()))
}

fn text(message: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    frame::text(&mut frame, message.as_bytes());
    frame
}

fn pong(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame::unmasked(&mut frame, OpCode::Pong, payload);
    frame
}
