//! `/ws/subscribe`: the first message, and what it asks for.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::close::{linger, send_close};
use super::reader::Reader;
use super::subscriber::{Served, Source, SubscriberSocket, parsed, pong, text};
use crate::auth::Caller;
use crate::feed::Doing;
use crate::pipeline::{Pipeline, Subscriber, SubscriberSlot};
use crate::store;
use crate::stream::Stream;
use crate::subscriptions::OpenError;
use crate::transport::{Transport, WriteHalf};
use crate::wire::Refusal;
use crate::wire::answer::error;
use crate::wire::decoder::{Decoder, Message};
use crate::wire::filters::Filters;
use crate::wire::frame::Role;
use crate::wire::note::{self, Opening};
use crate::wire::refusal::Ending;
use crate::wire::request::{Start, Subscribe};

/// Serves one subscriber until its socket ends.
pub async fn subscribe(mut transport: Transport, received: Bytes, caller: Caller, pipeline: Arc<Pipeline>) {
    let sent_close = {
        let (read, mut write) = transport.split();
        let decoder = Decoder::new(Role::Server, pipeline.config.max_ws_message_bytes).with_received(&received);
        drop(received);
        let reader = Reader::new(read, decoder, &pipeline.bodies);
        let ending = match serve(&pipeline, &caller, reader, &mut write).await {
            Ok(ending) | Err(Declined::Ended(ending)) => ending,
            Err(Declined::Refused(why, ending)) => {
                let refusal = match ending {
                    Ending::Capacity => Refusal::TooManySubscribers,
                    _ => Refusal::Invalid(Vec::new()),
                };
                pipeline.refusals.note(refusal.slug());
                match write.write_all(&text(&error(&why, None))).await {
                    Ok(()) => ending,
                    Err(_) => Ending::Gone,
                }
            }
        };
        send_close(&mut write, ending).await
    };
    if sent_close {
        linger(transport).await;
    }
}

/// Everything between the handshake and the Close frame. Returns how the socket ends.
async fn serve(
    pipeline: &Arc<Pipeline>,
    caller: &Caller,
    mut reader: Reader<'_>,
    write: &mut WriteHalf<'_>,
) -> Result<Ending, Declined> {
    let request = first_message(pipeline, caller, &mut reader, write).await?;
    // A subscriber takes its slot with its first message.
    let slot = pipeline.subscriber_slot();
    let slot = slot.ok_or_else(|| Declined::Refused(Refusal::TooManySubscribers.to_string(), Ending::Capacity))?;
    let Opened { served, opening, filters } = loop {
        if let Some(opened) = open(pipeline, caller, &slot, request.clone(), &mut reader).await? {
            break opened;
        }
    };
    write.write_all(&text(&note::subscribed(slot.id(), &filters, &opening))).await?;
    let socket = SubscriberSocket::new(pipeline, caller, &slot);
    Ok(socket.serve(reader, request.strict, write, served).await?)
}

/// Waits for the first message, for `SUBSCRIBE_TIMEOUT_SECONDS` at most.
async fn first_message(
    pipeline: &Pipeline,
    caller: &Caller,
    reader: &mut Reader<'_>,
    write: &mut WriteHalf<'_>,
) -> Result<Subscribe, Declined> {
    let deadline = Instant::now() + pipeline.config.subscribe_timeout;
    let shutdown = pipeline.shutdown();
    let mut shutting_down = std::pin::pin!(shutdown.begun());
    let mut over = std::pin::pin!(caller.principal.over());
    loop {
        while let Some(message) = reader.next().map_err(Ending::Violated)? {
            let text = match message {
                Message::Text(text) => text.as_bytes(),
                Message::Binary(bytes) => bytes,
                Message::TooLarge => return Err(Declined::not_understood(reader.why_unread())),
                Message::Close(close) => return Err(Ending::Asked(close.map(|(code, _)| code)).into()),
                Message::Ping(payload) => {
                    write.write_all(&pong(payload)).await?;
                    continue;
                }
                Message::Pong(_) => continue,
            };
            let request = parsed(pipeline, text, Subscribe::parse).await;
            reader.done();
            return request.map_err(Declined::not_understood);
        }
        tokio::select! {
            biased;
            is_there = timeout_at(deadline, reader.more()) => match is_there {
                Ok(true) => {}
                Ok(false) => return Err(Ending::Gone.into()),
                Err(_) => return Err(Ending::NoFirstMessage.into()),
            },
            () = &mut shutting_down => return Err(Ending::GoingAway.into()),
            () = &mut over => return Err(Ending::Unauthorized.into()),
        }
    }
}

/// Finds the source of the events, and where it begins. `None` when another connection has opened or deleted the durable
/// subscription meanwhile: then it is tried again.
async fn open(
    pipeline: &Arc<Pipeline>,
    caller: &Caller,
    slot: &SubscriberSlot,
    mut request: Subscribe,
    reader: &mut Reader<'_>,
) -> Result<Option<Opened>, Declined> {
    let failed = |error: store::Error| {
        if error.took_too_long() {
            return Refusal::TooMuchToRead.into();
        }
        tracing::error!(%error, "find where a subscription starts");
        Declined::Ended(Ending::Failed)
    };
    let Pipeline { store, hub, subscriptions, config, searches, .. } = &**pipeline;
    let space = caller.principal.space();
    let known = request.durable.as_ref().and_then(|durable| subscriptions.find(space, durable));
    if let Some(known) = &known {
        request.start = Start::Position(known.position());
        if request.filters.asked().is_empty() {
            request.filters = known.filters();
        }
    }
    if caller.principal.pins().is_some() && request.durable.as_ref().is_some_and(|durable| durable.is_group) {
        let why = "A group shares one stream, so a key for some events only cannot join it";
        return Err(Declined::not_understood(why));
    }
    request.filters.filter = caller.principal.narrow(request.filters.filter)?;
    let shutdown = pipeline.shutdown();
    let found = tokio::select! {
        biased;
        found = Stream::open(store, hub, &request, config.max_subscriber_bytes, searches) => found.map_err(failed)?,
        // A search may go on for seconds, and ends with its client. A known subscription searches for nothing, and what
        // its client has confirmed before it left still counts.
        ending = reader.ended(), if known.is_none() => return Err(ending.into()),
        () = shutdown.begun() => return Err(Ending::GoingAway.into()),
    };
    let (stream, opening) = found.map_err(Declined::not_understood)?;
    let position = stream.position();
    let stream = stream.shown_in(slot.standing().clone());
    let (mut source, mut subscription, mut taken_over) = (Source::Stream(Box::new(stream)), None, None);
    if let Some(durable) = &request.durable {
        let opened = subscriptions.open((space, durable), &request.filters, position, known.as_ref()).await?;
        let Some(opened) = opened else { return Ok(None) };
        if durable.is_group {
            source = Source::Member(Arc::new(subscriptions.join(&opened, &request, slot.id())?));
            slot.standing().set(Doing::Member, position);
        } else {
            taken_over = Some(opened.take_over(&request.filters));
        }
        subscription = Some(opened);
    }
    let filters = request.filters;
    let name = subscription.as_ref().map(|subscription| subscription.name().name.to_owned());
    let ended = slot.register(Subscriber { filter: filters.filter.clone(), name, space: space.into() });
    Ok(Some(Opened { served: Served { source, subscription, taken_over, ended }, opening, filters }))
}

/// A subscription that was opened for a subscriber.
struct Opened {
    served: Served,
    /// For the answer to the first message.
    opening: Opening,
    filters: Filters,
}

/// Why there is no subscription.
enum Declined {
    /// A sentence for the client, and how its connection ends.
    Refused(String, Ending),
    Ended(Ending),
}

impl Declined {
    fn not_understood(why: impl Into<String>) -> Self {
        Self::Refused(why.into(), Ending::NotUnderstood)
    }
}

impl From<Ending> for Declined {
    fn from(ending: Ending) -> Self {
        Self::Ended(ending)
    }
}

/// The peer can no longer be written to.
impl From<io::Error> for Declined {
    fn from(_: io::Error) -> Self {
        Self::Ended(Ending::Gone)
    }
}

impl From<Refusal> for Declined {
    fn from(refusal: Refusal) -> Self {
        Self::not_understood(refusal.to_string())
    }
}

impl From<OpenError> for Declined {
    fn from(denied: OpenError) -> Self {
        Self::Refused(denied.to_string(), denied.ending())
    }
}
