//! Pages of `GET /events`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::half_close::{HalfCloseGuard, Rule};
use super::large_page::{SMALL_BYTES_MAX, memory_for, within_memory};
use super::listing::{LIMIT_DEFAULT, LIMIT_MAX, Listing, add_gap, next_page};
use super::media::Shape;
use super::parameters::Parameters;
use super::reading::{reading_some, unreadable};
use super::request::Request;
use super::response;
use crate::auth::KEY_OVER;
use crate::budget::Reservation;
use crate::event::{Seq, TimestampText};
use crate::feed::{Chunk, Feed};
use crate::pipeline::Pipeline;
use crate::record::Gap;
use crate::store::{self, Query, Reader};
use crate::wire::Refusal;

/// Answers with a page, once there is an event for it if the client waits for one.
pub(super) async fn page(
    request: &Request<'_>,
    parameters: &Parameters<'_>,
    guard: &HalfCloseGuard,
) -> response::Result {
    let pipeline = request.pipeline;
    let shape = Shape::accepted(request.headers());
    let listing = Listing::of(parameters, &request.caller.principal, LIMIT_MAX)?;
    let order = listing.order();
    let deadline = Instant::now() + listing.wait.unwrap_or_default();
    let (page, memory) = loop {
        let (page, memory) = read_page(pipeline, &listing, shape, Instant::now() + PAGE_TIME_MAX).await?;
        let is_final = listing.wait.is_none_or(|wait| wait.is_zero()) || page.shown > 0 || page.rest_after.is_some();
        if is_final || !comes_in_time(request, &listing, page.reached, deadline, guard).await? {
            break (page, memory);
        }
    };
    let response = response::new(StatusCode::OK, shape.media_type(true), page.json);
    let mut response = within_memory(response, memory, pipeline, request.deadlines).await?;
    if let Some(last) = page.rest_after {
        let link = next_page(request.parts.uri.path(), parameters, order, last);
        let link = HeaderValue::try_from(link).expect("percent-encoded text is ASCII");
        response.headers_mut().insert(header::LINK, link);
    }
    pipeline.hub.losses.gaps.fetch_add(page.gap.is_some().into(), Relaxed);
    add_gap(response.headers_mut(), page.gap);
    Ok(response)
}

/// The bytes of the largest page, unless its first event alone has more. A thousand usual events have 250 KB.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// The memory that a page takes first, for a thousand usual events and more. Only a page that needs more takes as much as
/// the largest may have, because a search keeps its memory while it waits for its permit.
const MEDIUM_PAGE_BYTES_MAX: usize = 512 << 10;

/// How long a page goes on reading because too few of the events that it looked at pass, the wait for a permit included. Then
/// it ends short, and its `Link` leads on. Its first read, of 65,536 events, needs no permit, so each page comes further.
const PAGE_TIME_MAX: Duration = Duration::from_secs(2);

/// A page in the making.
struct Page {
    query: Query,
    shape: Shape,
    limit: usize,
    /// An array, not closed while the page is read.
    json: Vec<u8>,
    /// The events in it, and the last of them.
    shown: usize,
    last: Seq,
    /// The last event that the last read looked at.
    looked_at: Seq,
    /// The high-water mark when the page began: up to here it misses no event that passes.
    reached: Seq,
    gap: Option<Gap>,
    /// The event after which the next page goes on, if there may be more.
    rest_after: Option<Seq>,
}

/// Why a read of a page has ended.
enum Stop {
    /// No more events pass.
    End,
    /// More events pass, and do not fit.
    Full,
    /// The next event needs more memory.
    Memory,
    /// It has looked at as many events as one read may. Other requests are served before the next read.
    Looked,
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
            rest_after: None,
        }))
    }

    /// Adds the events of one read ([`Reader::scan_some`]), up to this size. Blocks.
    fn read_on(&mut self, reader: &Reader, bytes_max: usize) -> store::Result<Stop> {
        let Self { query, shape, limit, json, shown, last, looked_at, .. } = self;
        let (mut event_json, mut time) = (Vec::new(), TimestampText::default());
        let mut stopped = None;
        let reached = reader.scan_some(query, |event| {
            // One more than is shown tells whether more remain.
            if shown == limit {
                stopped = Some(Stop::Full);
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
                stopped = Some(if bytes_max < PAGE_BYTES_MAX { Stop::Memory } else { Stop::Full });
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
                Stop::Looked
            }
            (None, None) => Stop::End,
        })
    }
}

/// Reads a page, and returns it with its memory. Each read is a task of its own on the blocking threads: other requests are
/// read between two of them, and no further read begins when the client is gone.
///
/// A page that its first read has not filled is a search. It waits for a permit ([`Pipeline::searches`]) and keeps it until it
/// is read: if a permit were for one read, of many searches none would end before nearly all reads were done. At the
/// deadline and at a shutdown it ends with the events that it has, whether it has its permit or waits for it.
async fn read_page(
    pipeline: &Arc<Pipeline>,
    listing: &Listing,
    shape: Shape,
    deadline: Instant,
) -> Result<(Page, Option<Reservation>), Refusal> {
    let begun = listing.clone();
    let first = move |reader: &Reader| {
        let mut page = match Page::begin(reader, begun, shape)? {
            Ok(page) => page,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let stop = page.read_on(reader, SMALL_BYTES_MAX)?;
        Ok(Ok((page, stop)))
    };
    let (mut page, mut stop) = reading_some(&pipeline.store, first).await??;
    let shutdown = pipeline.shutdown();
    let (mut memory, mut bytes_max, mut permit) = (None, SMALL_BYTES_MAX, None);
    let rest_after = loop {
        match stop {
            Stop::End => break None,
            Stop::Full => break Some(page.last),
            Stop::Looked if Instant::now() >= deadline || shutdown.has_begun() => break Some(page.looked_at),
            Stop::Looked if permit.is_some() => {}
            Stop::Looked => tokio::select! {
                acquired = pipeline.searches.acquire() => permit = acquired.ok(),
                () = sleep_until(deadline) => break Some(page.looked_at),
                () = shutdown.begun() => break Some(page.looked_at),
            },
            Stop::Memory => match &mut memory {
                None => {
                    // The pages that have the memory may wait for this permit.
                    permit = None;
                    bytes_max = MEDIUM_PAGE_BYTES_MAX;
                    memory = memory_for(bytes_max, pipeline).await?;
                }
                // A page that has memory does not wait for more: all such pages might wait for each other.
                Some(memory) => match pipeline.pages.try_reserve(PAGE_BYTES_MAX - bytes_max) {
                    Some(more) => {
                        bytes_max = PAGE_BYTES_MAX;
                        memory.merge(more);
                    }
                    None => break Some(page.last),
                },
            },
        }
        let next = move |reader: &Reader| {
            let stop = page.read_on(reader, bytes_max)?;
            Ok((page, stop))
        };
        (page, stop) = reading_some(&pipeline.store, next).await?;
    };
    drop(permit);
    page.json.push(b']');
    page.json.shrink_to_fit();
    page.rest_after = rest_after;
    Ok((page, memory))
}

/// Whether an event that passes is committed after `reached`, before the deadline and before the server shuts down. A request
/// that waits counts as a subscriber until then.
async fn comes_in_time(
    request: &Request<'_>,
    listing: &Listing,
    reached: Seq,
    deadline: Instant,
    guard: &HalfCloseGuard,
) -> Result<bool, Refusal> {
    let (pipeline, principal) = (request.pipeline, &request.caller.principal);
    guard.set(Rule::GiveUp);
    let _slot = pipeline.subscriber_slot().ok_or(Refusal::TooManySubscribers)?;
    let mut feed = Feed::new(pipeline.store.clone(), pipeline.hub.clone(), listing.filter().clone(), reached);
    let shutdown = pipeline.shutdown();
    let chunk = tokio::select! {
        chunk = timeout_at(deadline, feed.next()) => chunk,
        () = shutdown.begun() => return Ok(false),
        () = principal.over() => return Err(Refusal::Unauthorized(KEY_OVER)),
    };
    match chunk {
        Err(_) => Ok(false),
        // Where the feed fell behind, the next read finds the events in storage.
        Ok(Ok(chunk)) => Ok(!matches!(chunk, Chunk::End)),
        Ok(Err(error)) => Err(unreadable(&error)),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;
    use std::time::Duration;

    use hyper::http::Uri;
    use tokio::runtime::Handle;

    use super::*;
    use crate::auth::Principal;
    use crate::config::Config;
    use crate::event::Event;
    use crate::hub::Hub;
    use crate::store::Store;
    use crate::store::fixture::{hand_in, tick};

    /// With one permit for searches, and with more events than are looked at in one read.
    fn pipeline(folder: &tempfile::TempDir) -> Arc<Pipeline> {
        pipeline_of(folder, &["{}"; 200], Config::default().max_pages_bytes)
    }

    fn pipeline_of(folder: &tempfile::TempDir, payloads: &[&str], max_pages_bytes: usize) -> Arc<Pipeline> {
        let config = Config { network_threads: 1, max_pages_bytes, ..Config::of_test(folder.path().join("events.db")) };
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        hand_in(&store, payloads.iter().map(|payload| Event { payload, ..tick() }));
        while parts.write() {}
        let hub = Hub::new(store.audience(), config.max_subscriber_bytes);
        Pipeline::of_test(config, store, hub, Handle::current())
    }

    fn listing(query: &str) -> Listing {
        let uri: Uri = format!("/events?{query}").parse().expect("a URI");
        Listing::of(&Parameters::of(&uri), &Principal::Everything, LIMIT_MAX).expect("a listing")
    }

    /// A deadline that no test reaches.
    fn in_time() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[tokio::test]
    async fn a_search_keeps_its_permit_until_it_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipeline = pipeline(&folder);
        let listing = listing("payload.n=nothing");
        let mut search = pin!(read_page(&pipeline, &listing, Shape::Own, in_time()));
        let has_permit = poll_fn(|context| {
            assert!(search.as_mut().poll(context).is_pending(), "it has ended without a permit");
            if pipeline.searches.available_permits() == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        has_permit.await;
        let (page, _) = tokio::select! {
            biased;
            _ = pipeline.searches.acquire() => panic!("another search gets the permit between two reads"),
            read = search.as_mut() => read.expect("read"),
        };
        assert_eq!((page.shown, page.rest_after), (0, None));
        assert_eq!(pipeline.searches.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_search_waits_for_its_permit_until_its_deadline_or_a_shutdown() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipeline = pipeline(&folder);
        let _permit = pipeline.searches.acquire().await;
        let read = async |query: &str, deadline| {
            let listing = listing(query);
            let read =
                tokio::time::timeout(Duration::from_secs(60), read_page(&pipeline, &listing, Shape::Own, deadline))
                    .await;
            let (page, _) = read.expect("it ends while it waits for a permit").expect("read");
            (page.shown, page.rest_after.is_some())
        };
        assert_eq!(read("limit=1", in_time()).await, (1, true), "a short reading is no search");
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(read("payload.n=nothing", soon).await, (0, true), "it ends short");
        pipeline.begin_shutdown();
        assert_eq!(read("payload.n=nothing", in_time()).await, (0, true), "it ends short");
    }

    #[tokio::test]
    async fn a_search_with_its_permit_ends_at_its_deadline_and_at_a_shutdown() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipeline = pipeline(&folder);
        let read = async |deadline| {
            let (page, _) =
                read_page(&pipeline, &listing("payload.n=nothing"), Shape::Own, deadline).await.expect("read");
            (page.shown, page.rest_after)
        };
        assert_eq!(read(in_time()).await, (0, None));
        assert_eq!(read(Instant::now()).await, (0, Some(Seq(161))), "after its first read");
        pipeline.begin_shutdown();
        assert_eq!(read(in_time()).await, (0, Some(Seq(161))), "after its first read");
    }

    #[tokio::test]
    async fn a_search_that_waits_for_its_permit_holds_little_more_memory_than_it_needs() {
        let folder = tempfile::tempdir().expect("a folder");
        let filled = format!(r#"{{"n":"1","filler":"{}"}}"#, "x".repeat(2_000));
        let payloads = [["{}"; 150].as_slice(), &[&*filled; 50]].concat();
        let pipeline = pipeline_of(&folder, &payloads, Config::default().max_pages_bytes);
        let _permit = pipeline.searches.acquire().await;
        let listing = listing("payload.n=1&limit=1000");
        let mut search = pin!(read_page(&pipeline, &listing, Shape::Own, in_time()));
        let has_memory = poll_fn(|context| {
            assert!(search.as_mut().poll(context).is_pending(), "it has ended without a permit");
            if pipeline.pages.reserved() > 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        has_memory.await;
        assert_eq!(pipeline.pages.reserved(), MEDIUM_PAGE_BYTES_MAX, "for 100 KB");
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
        let (page, mut memory) = read().await;
        assert_eq!((page.shown, page.rest_after), (100, None));
        // An answer keeps what it needs.
        memory.as_mut().expect("it is large").shrink_to(page.json.len());
        let (page, _) = read().await;
        assert!(page.json.len() <= MEDIUM_PAGE_BYTES_MAX && page.rest_after == Some(page.last), "it ends short");
        drop(memory);
        assert_eq!(read().await.0.shown, 100);
    }
}
