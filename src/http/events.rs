//! `/events`: list, export, look up, delete.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::Uri;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::answer::{Answer, JSON, NDJSON, answer, json, media_type, streamed};
use super::export::{Export, first_page};
use super::large_page::{Deadlines, SMALL_BYTES_MAX, memory_for, within_memory};
use super::query::{CONFLICT, LIMIT_DEFAULT, LIMIT_MAX, Listing, PAYLOAD_PREFIX, Parameters, is_of_filter, next_page};
use super::socket::Watched;
use super::{reading, unreadable};
use crate::budget::Share;
use crate::event::{Filter, Seq, Timestamp, TimestampText};
use crate::feed::{Chunk, Feed};
use crate::pipeline::Pipeline;
use crate::record::Gap;
use crate::store::{self, Order, Query, Reader, Store};
use crate::wire::{Refusal, cloud_event};

/// `GET /events`: a page, or all of them as lines.
pub(super) async fn list(
    pipeline: &Arc<Pipeline>,
    headers: &HeaderMap,
    uri: &Uri,
    watched: Watched,
    deadlines: &Deadlines,
) -> Answer {
    let parameters = Parameters::of(uri);
    let mut response = match accepts(headers, NDJSON.as_bytes()) {
        true => export(&pipeline.store, &parameters, watched).await?,
        false => page(pipeline, uri.path(), &parameters, Shape::accepted(headers), &watched, deadlines).await?,
    };
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// Whether a client accepts a media type, by its own name.
fn accepts(headers: &HeaderMap, media: &[u8]) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    accepted.into_iter().any(|range| media_type(range).eq_ignore_ascii_case(media))
}

/// How events look in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Own,
    CloudEvent,
}

impl Shape {
    fn accepted(headers: &HeaderMap) -> Self {
        let cloud = [cloud_event::MEDIA_TYPE, cloud_event::BATCH_MEDIA_TYPE];
        let wanted = cloud.into_iter().any(|media| accepts(headers, media.as_bytes()));
        if wanted { Self::CloudEvent } else { Self::Own }
    }

    /// The media type of one event, or of a list.
    fn media_type(self, is_list: bool) -> HeaderValue {
        match (self, is_list) {
            (Self::Own, _) => JSON,
            (Self::CloudEvent, false) => HeaderValue::from_static(cloud_event::MEDIA_TYPE),
            (Self::CloudEvent, true) => HeaderValue::from_static(cloud_event::BATCH_MEDIA_TYPE),
        }
    }

    /// Appends a delivered event.
    fn write(self, event: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Own => out.extend_from_slice(event),
            Self::CloudEvent => cloud_event::of_event(event, out),
        }
    }
}

async fn export(store: &Store, parameters: &Parameters<'_>, watched: Watched) -> Answer {
    let listing = Listing::of(parameters, usize::MAX)?;
    let events_max = listing.limit.unwrap_or(usize::MAX);
    let begin = move |reader: &Reader| match listing.query(reader, Order::OldestFirst)? {
        Ok((query, gap)) => Ok(Ok((first_page(reader, query, events_max)?, gap))),
        Err(refusal) => Ok(Err(refusal)),
    };
    let (first, gap) = reading_some(store, begin).await??;
    let mut response = streamed(NDJSON, Export::new(store.clone(), first, watched));
    tell_gap(response.headers_mut(), gap);
    Ok(response)
}

/// One read of a page or an export, which looks at a bounded number of events ([`Reader::scan_some`]). So no deadline
/// bounds it: a page has a number of reads, and an export goes on for as long as its client takes it.
async fn reading_some<T: Send + 'static>(
    store: &Store,
    read: impl FnOnce(&Reader) -> store::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    store.reading(read).await.map_err(|error| unreadable(&error))
}

/// What a cursor cannot get any more, as JSON.
const EVENT_GAP: HeaderName = HeaderName::from_static("event-gap");

fn tell_gap(headers: &mut HeaderMap, gap: Option<Gap>) {
    // An id that does not fit into a header is none that we gave out.
    headers.extend(gap.and_then(|gap| HeaderValue::try_from(gap.json().to_string()).ok()).map(|gap| (EVENT_GAP, gap)));
}

/// Most bytes of a page, unless its first event alone has more. A thousand usual events have 250 KB.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// Memory that a page takes first, for a thousand usual events and more. Only one that needs even more takes all that a
/// page may have: a search keeps its memory while it waits for its turn.
const MEDIUM_PAGE_BYTES_MAX: usize = 512 << 10;

/// How long a page goes on because too few of the events it looked at pass, its waiting for a turn included. Then it ends
/// short, and its `Link` leads on. Its first read, of 65,536 events, waits for no turn, so each page comes further.
const PAGE_TIME_MAX: Duration = Duration::from_secs(2);

/// A page in the making.
struct Page {
    query: Query,
    shape: Shape,
    limit: usize,
    /// An array that is not closed yet.
    json: Vec<u8>,
    shown: usize,
    last: Seq,
    /// The last event that was looked at in the last step.
    looked_at: Seq,
    /// Nothing that passes was committed up to here but what is shown.
    reached: Seq,
    gap: Option<Gap>,
}

/// What became of a page in one step.
enum Step {
    /// Nothing more passes.
    End,
    /// More events pass, and do not fit.
    Full,
    /// The next event needs more memory.
    Grows,
    /// As many events were looked at as one read may: other requests have their turn before the next read.
    Goes,
}

impl Page {
    /// Blocks: ids are looked up.
    fn begin(reader: &Reader, listing: Listing, shape: Shape) -> store::Result<Result<Self, Refusal>> {
        let (limit, order) = (listing.limit.unwrap_or(LIMIT_DEFAULT), listing.order());
        let reached = reader.committed();
        Ok(listing.query(reader, order)?.map(|(query, gap)| Self {
            query,
            shape,
            limit,
            json: vec![b'['],
            shown: 0,
            last: Seq::ZERO,
            looked_at: Seq::ZERO,
            reached,
            gap,
        }))
    }

    /// Adds the events of one read ([`Reader::scan_some`]), up to this size. Blocks.
    fn read_on(&mut self, reader: &Reader, bytes_max: usize) -> store::Result<Step> {
        let Self { query, shape, limit, json, shown, last, looked_at, .. } = self;
        let (mut event_json, mut time) = (Vec::new(), TimestampText::default());
        let mut stopped = None;
        let reached = reader.scan_some(query, |event| {
            // One more than is shown tells whether more remain.
            if shown == limit {
                stopped = Some(Step::Full);
                return ControlFlow::Break(());
            }
            let before = json.len();
            if *shown > 0 {
                json.push(b',');
            }
            event_json.clear();
            event.write_json(&mut event_json, &mut time);
            shape.write(&event_json, json);
            if json.len() > bytes_max && *shown > 0 {
                json.truncate(before);
                stopped = Some(if bytes_max < PAGE_BYTES_MAX { Step::Grows } else { Step::Full });
                return ControlFlow::Break(());
            }
            (*shown, *last) = (*shown + 1, event.seq);
            ControlFlow::Continue(())
        })?;
        Ok(match (stopped, reached) {
            (Some(stopped), _) => {
                query.go_on_after(*last);
                stopped
            }
            (None, Some(reached)) => {
                *looked_at = reached;
                query.go_on_after(reached);
                Step::Goes
            }
            (None, None) => Step::End,
        })
    }
}

/// Reads a page. Returns also the event after which the next page goes on, if there may be more, and the page's memory.
/// Each read is a task of its own on the blocking threads, so others have theirs between two of them, and a page ends
/// with its client.
///
/// A page that its first read has not filled is a search. It waits for its turn ([`Pipeline::searches`]) and keeps it
/// until it is read: if each turn were one read, of many searches none would end before nearly all reads were done. At
/// the deadline and at the end of the server it ends with what it has, whether it has its turn or waits for it.
async fn read_page(
    pipeline: &Arc<Pipeline>,
    listing: &Listing,
    shape: Shape,
    deadline: Instant,
) -> Result<(Page, Option<Seq>, Option<Share>), Refusal> {
    let begun = listing.clone();
    let first = move |reader: &Reader| {
        let mut page = match Page::begin(reader, begun, shape)? {
            Ok(page) => page,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let step = page.read_on(reader, SMALL_BYTES_MAX)?;
        Ok(Ok((page, step)))
    };
    let (mut page, mut step) = reading_some(&pipeline.store, first).await??;
    let shutdown = pipeline.shutdown();
    let (mut share, mut bytes_max, mut turn) = (None, SMALL_BYTES_MAX, None);
    let rest = loop {
        match step {
            Step::End => break None,
            Step::Full => break Some(page.last),
            Step::Goes if Instant::now() >= deadline || shutdown.has_begun() => break Some(page.looked_at),
            Step::Goes if turn.is_some() => {}
            Step::Goes => tokio::select! {
                permit = pipeline.searches.acquire() => turn = permit.ok(),
                () = sleep_until(deadline) => break Some(page.looked_at),
                () = shutdown.begun() => break Some(page.looked_at),
            },
            Step::Grows => match &mut share {
                None => {
                    // Another page may have the memory, and wait for this turn.
                    turn = None;
                    bytes_max = MEDIUM_PAGE_BYTES_MAX;
                    share = memory_for(bytes_max, pipeline).await?;
                }
                // Nobody who has memory waits for more: all of them might wait for each other.
                Some(share) => match pipeline.pages.try_take(PAGE_BYTES_MAX - bytes_max) {
                    Some(more) => {
                        bytes_max = PAGE_BYTES_MAX;
                        share.add(more);
                    }
                    None => break Some(page.last),
                },
            },
        }
        let next = move |reader: &Reader| {
            let step = page.read_on(reader, bytes_max)?;
            Ok((page, step))
        };
        (page, step) = reading_some(&pipeline.store, next).await?;
    };
    drop(turn);
    page.json.push(b']');
    page.json.shrink_to_fit();
    Ok((page, rest, share))
}

async fn page(
    pipeline: &Arc<Pipeline>,
    path: &str,
    parameters: &Parameters<'_>,
    shape: Shape,
    watched: &Watched,
    deadlines: &Deadlines,
) -> Answer {
    let listing = Listing::of(parameters, LIMIT_MAX)?;
    let order = listing.order();
    let deadline = Instant::now() + listing.wait.unwrap_or_default();
    let (page, rest, memory) = loop {
        let (page, rest, memory) = read_page(pipeline, &listing, shape, Instant::now() + PAGE_TIME_MAX).await?;
        let is_final = listing.wait.is_none_or(|wait| wait.is_zero()) || page.shown > 0 || rest.is_some();
        if is_final || !comes_in_time(pipeline, &listing, page.reached, deadline, watched).await? {
            break (page, rest, memory);
        }
    };
    let response = answer(StatusCode::OK, shape.media_type(true), page.json);
    let mut response = within_memory(response, memory, pipeline, deadlines).await?;
    if let Some(last) = rest {
        let link = next_page(path, parameters, order, last);
        let link = HeaderValue::try_from(link).expect("percent-encoded text is ASCII");
        response.headers_mut().insert(header::LINK, link);
    }
    tell_gap(response.headers_mut(), page.gap);
    Ok(response)
}

/// Whether an event that passes is committed after `reached`, before the deadline and the end of the server. A request
/// that waits counts as a subscriber until then.
async fn comes_in_time(
    pipeline: &Arc<Pipeline>,
    listing: &Listing,
    reached: Seq,
    deadline: Instant,
    watched: &Watched,
) -> Result<bool, Refusal> {
    watched.set_live();
    let _place = pipeline.place().ok_or(Refusal::TooManySubscribers)?;
    let mut feed = Feed::new(pipeline.store.clone(), pipeline.hub.clone(), listing.filter().clone(), reached);
    let shutdown = pipeline.shutdown();
    let chunk = tokio::select! {
        chunk = timeout_at(deadline, feed.next()) => chunk,
        () = shutdown.begun() => return Ok(false),
    };
    match chunk {
        Err(_) => Ok(false),
        // A feed that fell behind lost events to storage, where the next read finds them.
        Ok(Ok(chunk)) => Ok(!matches!(chunk, Chunk::End)),
        Ok(Err(error)) => Err(unreadable(&error)),
    }
}

/// `GET /events/{id}`.
pub(super) async fn one(store: &Store, headers: &HeaderMap, id: &str) -> Answer {
    let id = percent_encoding::percent_decode_str(id).decode_utf8_lossy().into_owned();
    let event = reading(store, move |reader| reader.event(&id)).await?.ok_or(Refusal::NotFound("Event not found"))?;
    let (shape, mut shown) = (Shape::accepted(headers), Vec::new());
    shape.write(&event, &mut shown);
    let mut response = answer(StatusCode::OK, shape.media_type(false), shown);
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// `DELETE /events`. It never guesses: a parameter that is unknown, empty or given twice is refused, for the client may
/// have meant to spare events by it.
pub(super) async fn delete(store: &Store, uri: &Uri) -> Answer {
    let refused = |why: String| Err(Refusal::BadRequest(why));
    let parameters = Parameters::of(uri);
    // The value of a payload's key may be empty, but has to be there.
    let mut pairs = uri.query().unwrap_or_default().split('&');
    if let Some(bare) = pairs.find(|pair| !pair.is_empty() && !pair.contains('=')) {
        return refused(format!("'{bare}' has no value: say which events are meant"));
    }
    for (name, value) in parameters.iter() {
        if name != "before" && !is_of_filter(name) {
            let known = "only 'before' and what selects events can be given";
            return refused(format!("Unknown parameter '{name}': {known}"));
        }
        if value.is_empty() && !name.starts_with(PAYLOAD_PREFIX) {
            return refused(format!("'{name}' is empty: say which events are meant"));
        }
    }
    if let Some(name) = parameters.repeated() {
        return refused(format!("'{name}' is there twice: say which events are meant"));
    }
    let before = parameters.time("before", Timestamp::parse_ceil)?;
    let asked = parameters.asked().map_err(|refusal| match refusal {
        Refusal::Invalid(problems) if problems.iter().any(|problem| problem.kind == CONFLICT) => {
            let what: Vec<_> = problems.into_iter().map(|problem| problem.msg).collect();
            Refusal::BadRequest(format!("{}: say which events are meant", what.join(", ")))
        }
        refusal => refusal,
    })?;
    if let Some(key) = Filter::empty_condition(&asked) {
        return refused(format!("'{key}' is empty: say which events are meant"));
    }
    let filter = parameters.filter()?;
    if filter.is_any() && parameters.iter().any(|(name, _)| name != "before") {
        return refused("'filter' lets every event through: say which events are meant".to_owned());
    }
    let deleted = store.delete(before, filter).await?;
    Ok(json(format!(r#"{{"deleted":{deleted}}}"#)))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;
    use std::time::Duration;

    use tokio::runtime::Handle;

    use super::*;
    use crate::config::Config;
    use crate::event::Event;
    use crate::hub::Hub;
    use crate::store::fixture::{hand_in, tick};
    use crate::subscriptions::Subscriptions;

    /// With one turn, and with more events than are looked at in one read.
    fn pipeline(folder: &tempfile::TempDir) -> Arc<Pipeline> {
        pipeline_of(folder, &["{}"; 200], Config::default().max_pages_bytes)
    }

    fn pipeline_of(folder: &tempfile::TempDir, payloads: &[&str], max_pages_bytes: usize) -> Arc<Pipeline> {
        let config = Config { network_threads: 1, max_pages_bytes, ..Config::of_test(folder.path().join("events.db")) };
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        hand_in(&store, payloads.iter().map(|payload| Event { payload, ..tick() }));
        while parts.write() {}
        let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
        let (subscriptions, _) = Subscriptions::load(&store, &hub, 1, config.max_subscriber_bytes).expect("load");
        Arc::new(Pipeline::new(config, store, hub, subscriptions, Handle::current()))
    }

    fn listing(query: &str) -> Listing {
        let uri: Uri = format!("/events?{query}").parse().expect("a URI");
        Listing::of(&Parameters::of(&uri), LIMIT_MAX).expect("a listing")
    }

    /// A deadline that no test comes to.
    fn in_time() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[tokio::test]
    async fn a_search_keeps_its_turn_until_it_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipeline = pipeline(&folder);
        let listing = listing("payload.n=nothing");
        let mut search = pin!(read_page(&pipeline, &listing, Shape::Own, in_time()));
        let has_turn = poll_fn(|context| {
            assert!(search.as_mut().poll(context).is_pending(), "it has ended without a turn");
            if pipeline.searches.available_permits() == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        has_turn.await;
        let (page, rest, _) = tokio::select! {
            biased;
            _ = pipeline.searches.acquire() => panic!("another has its turn between two reads"),
            read = search.as_mut() => read.expect("read"),
        };
        assert_eq!((page.shown, rest), (0, None));
        assert_eq!(pipeline.searches.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_page_waits_for_its_turn_until_its_deadline_or_the_end_of_the_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipeline = pipeline(&folder);
        let _turn = pipeline.searches.acquire().await;
        let read = async |query: &str, deadline| {
            let listing = listing(query);
            let read =
                tokio::time::timeout(Duration::from_secs(60), read_page(&pipeline, &listing, Shape::Own, deadline))
                    .await;
            let (page, rest, _) = read.expect("it waits for a turn").expect("read");
            (page.shown, rest.is_some())
        };
        assert_eq!(read("limit=1", in_time()).await, (1, true), "a short reading is no search");
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(read("payload.n=nothing", soon).await, (0, true), "it ends short");
        pipeline.begin_shutdown();
        assert_eq!(read("payload.n=nothing", in_time()).await, (0, true), "it ends short");
    }

    #[tokio::test]
    async fn a_search_that_waits_for_nobody_ends_at_its_deadline_and_with_the_server() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipeline = pipeline(&folder);
        let read = async |deadline| {
            let (page, rest, _) =
                read_page(&pipeline, &listing("payload.n=nothing"), Shape::Own, deadline).await.expect("read");
            (page.shown, rest)
        };
        assert_eq!(read(in_time()).await, (0, None));
        assert_eq!(read(Instant::now()).await, (0, Some(Seq(161))), "after its first read");
        pipeline.begin_shutdown();
        assert_eq!(read(in_time()).await, (0, Some(Seq(161))), "after its first read");
    }

    #[tokio::test]
    async fn a_search_holds_little_more_memory_in_line_than_it_needs() {
        let folder = tempfile::tempdir().expect("a folder");
        let filled = format!(r#"{{"n":"1","filler":"{}"}}"#, "x".repeat(2_000));
        let payloads = [["{}"; 150].as_slice(), &[&*filled; 50]].concat();
        let pipeline = pipeline_of(&folder, &payloads, Config::default().max_pages_bytes);
        let _turn = pipeline.searches.acquire().await;
        let listing = listing("payload.n=1&limit=1000");
        let mut search = pin!(read_page(&pipeline, &listing, Shape::Own, in_time()));
        let has_memory = poll_fn(|context| {
            assert!(search.as_mut().poll(context).is_pending(), "it has ended without a turn");
            if pipeline.pages.taken() > 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        has_memory.await;
        assert_eq!(pipeline.pages.taken(), MEDIUM_PAGE_BYTES_MAX, "for 100 KB");
    }

    #[tokio::test]
    async fn a_page_waits_for_no_more_memory_while_it_holds_some() {
        let folder = tempfile::tempdir().expect("a folder");
        let filled = format!(r#"{{"filler":"{}"}}"#, "x".repeat(20_000));
        let pipeline = pipeline_of(&folder, &[&*filled; 100], PAGE_BYTES_MAX);
        let read = async || {
            let read = read_page(&pipeline, &listing("limit=1000"), Shape::Own, in_time()).await;
            read.expect("not refused")
        };
        let (page, rest, mut share) = read().await;
        assert_eq!((page.shown, rest), (100, None));
        // An answer keeps what it needs.
        share.as_mut().expect("it is large").keep(page.json.len());
        let (page, rest, _) = read().await;
        assert!(page.json.len() <= MEDIUM_PAGE_BYTES_MAX && rest == Some(page.last), "it ends short");
        drop(share);
        assert_eq!(read().await.0.shown, 100);
    }
}
