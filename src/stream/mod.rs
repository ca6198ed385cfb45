//! A stream: a feed with the other things that its subscriber asked for. These are a start in the past, a snapshot,
//! paced replay, conflation and signals.

mod conflation;
mod paced_replay;
mod start;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use conflation::Conflator;
use paced_replay::PacedReplay;

use crate::event::{Filter, Seq};
use crate::feed::{Chunk, Feed, Standing};
use crate::hub::Hub;
use crate::store::{self, Store};
use crate::wire::committed::Run;
use crate::wire::note::{Note, Opening};
use crate::wire::refusal::Ending;
use crate::wire::request::{Start, Subscribe};

/// The stream of one subscriber, on a WebSocket or as an HTTP event stream.
#[derive(Debug)]
pub struct Stream {
    feed: Feed,
    paced_replay: Option<PacedReplay>,
    conflator: Option<Conflator>,
    signals: bool,
    /// Items that are ready to be sent, before anything else.
    ready: VecDeque<StreamItem>,
}

/// What a subscriber is sent next.
#[derive(Debug)]
pub enum StreamItem {
    /// Whole WebSocket frames of events, in order.
    Events(Vec<Bytes>),
    Note(Note),
    /// All events for the former filter were sent. The next ones pass the new filter.
    FilterChanged,
    /// The stream is over, for this reason.
    Ended(Ending),
}

impl Stream {
    /// Finds where a subscription starts, and what its answer says about that. The inner error says in words for the
    /// client why there is no such start.
    ///
    /// A search for the start that does not end in a moment is stopped. It waits for a permit of `searches`, with which it
    /// begins again, as its result has to be of one point in time. That costs little more than the whole search. While it
    /// waits it holds nothing else.
    pub async fn open(
        store: &Store,
        hub: &Arc<Hub>,
        request: &Subscribe,
        waiting_bytes_max: usize,
        searches: &Semaphore,
    ) -> store::Result<Result<(Self, Opening), String>> {
        let copy = request.clone();
        let found = match store.brief_reading(move |reader| start::find(reader, &copy)).await {
            Err(error) if error.took_too_long() => {
                let (_permit, copy) = (searches.acquire().await.expect("it is never closed"), request.clone());
                store.reading_in_time(move |reader| start::find(reader, &copy)).await
            }
            found => found,
        };
        let found = match found? {
            Ok(found) => found,
            Err(why) => return Ok(Err(why)),
        };
        hub.losses.gaps.fetch_add(found.opening.gap.is_some().into(), Ordering::Relaxed);
        let filter = request.filters.filter.clone();
        let mut feed = Feed::new(store.clone(), hub.clone(), filter, found.after).on_lag(request.on_lag);
        if request.start != Start::Now || request.snapshot.is_some() {
            feed = feed.from_history();
        }
        if let Some(last) = found.last {
            feed = feed.up_to(last);
        }
        let stream = Self {
            feed: feed.after_snapshot(found.snapshot),
            paced_replay: request.speed.map(PacedReplay::new),
            conflator: request.conflate.map(|rule| Conflator::new(rule, waiting_bytes_max)),
            signals: request.signals,
            ready: VecDeque::new(),
        };
        Ok(Ok((stream, found.opening)))
    }

    /// The same stream, which shows there where its subscriber stands.
    pub fn shown_in(self, standing: Arc<Standing>) -> Self {
        let is_paced = self.paced_replay.is_some();
        Self { feed: self.feed.shown_in(standing, is_paced), ..self }
    }

    /// As [`Feed::position`].
    pub fn position(&self) -> Seq {
        self.feed.position()
    }

    /// As [`Feed::change_filter`].
    pub fn change_filter(&mut self, filter: Filter, last: Seq) {
        self.feed.change_filter(filter, last);
    }

    /// The next item. Cancel-safe: an item that was not returned comes again.
    pub async fn next(&mut self) -> store::Result<StreamItem> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(item);
            }
            let due = self.conflator.as_ref().and_then(Conflator::due);
            let chunk = tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some(item) = self.flush() {
                        return Ok(item);
                    }
                    continue;
                }
                chunk = next_in_rhythm(&mut self.feed, &mut self.paced_replay) => chunk?,
            };
            let item = match chunk {
                Chunk::Events(runs) => match &mut self.conflator {
                    Some(conflator) => {
                        conflator.push(&runs);
                        continue;
                    }
                    None => StreamItem::Events(runs.iter().map(Run::frames).collect()),
                },
                Chunk::FilterChanged => StreamItem::FilterChanged,
                Chunk::FellBehind if self.signals => StreamItem::Note(Note::FellBehind(self.feed.position())),
                Chunk::CaughtUp if self.signals => StreamItem::Note(Note::CaughtUp),
                Chunk::FellBehind | Chunk::CaughtUp => continue,
                Chunk::Lagged { missed, last } => StreamItem::Note(Note::Lagged { missed, last }),
                Chunk::TooSlow => StreamItem::Ended(Ending::TooSlow),
                Chunk::Complete => StreamItem::Ended(Ending::Complete),
                Chunk::End => StreamItem::Ended(Ending::GoingAway),
            };
            // The events that the conflator holds back come before this item.
            match self.flush() {
                Some(held_back) => {
                    self.ready.push_back(item);
                    return Ok(held_back);
                }
                None => return Ok(item),
            }
        }
    }

    /// The events that the conflator holds back.
    fn flush(&mut self) -> Option<StreamItem> {
        let conflator = self.conflator.as_mut().filter(|conflator| conflator.due().is_some())?;
        let (frames, skipped) = conflator.flush();
        self.ready.extend(skipped.map(|count| StreamItem::Note(Note::Skipped(count))));
        Some(StreamItem::Events(vec![frames]))
    }
}

/// The feed's next chunk, with no event before it is due. Cancel-safe.
async fn next_in_rhythm(feed: &mut Feed, replay: &mut Option<PacedReplay>) -> store::Result<Chunk> {
    let Some(replay) = replay else { return feed.next().await };
    loop {
        if let Some(due) = replay.due() {
            // A shutdown does not wait for the end of a paced replay.
            tokio::select! {
                () = sleep_until(due) => return Ok(Chunk::Events(replay.take_due(Instant::now()))),
                () = feed.ended() => return Ok(Chunk::End),
            }
        }
        match feed.next().await? {
            Chunk::Events(runs) => replay.push(runs),
            other => return Ok(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::Poll;

    use tokio::task::spawn_blocking;

    use super::*;
    use crate::config::Config;

    /// One thread reads, so that reads happen in the order in which they are asked for.
    #[test]
    fn a_search_for_the_start_takes_a_permit_and_returns_it_when_its_client_leaves() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, _parts) = Store::open_parts(&Config::of_test(folder.path().join("events.db"))).expect("open");
        let (hub, searches) = (Hub::new(store.audience(), 1 << 20), Semaphore::new(1));
        let open = async |first: &str| {
            let request = Subscribe::parse(first.as_bytes()).expect("a first message");
            Stream::open(&store, &hub, &request, 1 << 20, &searches).await.expect("read").expect("a start").1
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let permit = searches.acquire().await.expect("never closed");
            let mut searching = pin!(open(r#"{"last":1}"#));
            // Each of these reads behind whatever the search reads, which would have ended before the last one has.
            let others = async { [open("{}").await, open("{}").await, open("{}").await] };
            tokio::select! {
                biased;
                _ = searching.as_mut() => panic!("the search has no permit"),
                _ = others => {}
            }
            drop(permit);
            searching.await;

            let block = || {
                let (end, ended) = mpsc::channel::<()>();
                spawn_blocking(move || ended.recv());
                end
            };
            let before = block();
            let behind = {
                let mut searching = pin!(open(r#"{"last":1}"#));
                let first = poll_fn(|context| Poll::Ready(searching.as_mut().poll(context).is_pending())).await;
                assert!(first, "the thread that reads is blocked");
                // Behind the first, short reading of the search, and before the one for which it takes a permit.
                let behind = block();
                drop(before);
                poll_fn(|context| {
                    assert!(searching.as_mut().poll(context).is_pending(), "the thread that reads is blocked");
                    if searches.available_permits() == 0 { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                behind
            };
            assert_eq!(searches.available_permits(), 1);
            drop(behind);
            open(r#"{"last":1}"#).await;
        });
    }
}
