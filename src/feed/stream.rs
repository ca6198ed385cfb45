//! A feed, and what its subscriber asked for besides.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use super::conflate::Conflator;
use super::film::Film;
use super::{Chunk, Feed};
use crate::event::{Filter, Seq, Timestamp};
use crate::hub::Hub;
use crate::record::Gap;
use crate::store::{self, Order, Query, Reader, Store};
use crate::wire::committed::Run;
use crate::wire::note::{Note, Opening};
use crate::wire::refusal::Ending;
use crate::wire::request::{Start, Subscribe};

/// What one subscriber gets, whatever it is sent through.
#[derive(Debug)]
pub struct Stream {
    feed: Feed,
    film: Option<Film>,
    conflator: Option<Conflator>,
    signals: bool,
    /// To be said before anything else.
    next: VecDeque<Said>,
}

/// What is to be sent.
#[derive(Debug)]
pub enum Said {
    /// WebSocket frames of events, whole ones in order.
    Events(Vec<Bytes>),
    Note(Note),
    /// Everything for the former filter was said; what follows passes the new one.
    FilterChanged,
    /// That was all, because of this.
    Ended(Ending),
}

/// Most events of a snapshot: they are looked for before the first is sent, and their numbers kept.
const SNAPSHOT_EVENTS_MAX: usize = 100_000;

impl Stream {
    /// Finds where a subscription begins, and what its subscriber has to know about that. A sentence when it
    /// asked for a place that is none.
    ///
    /// A start that is not found in a moment is searched for in a turn, from the beginning again: its answer is of one
    /// moment, and a search costs little more. While it waits for a turn it holds nothing else.
    ///
    /// # Errors
    /// What SQLite reports.
    pub async fn open(
        store: &Store,
        hub: &Arc<Hub>,
        request: &Subscribe,
        waiting_bytes_max: usize,
        turns: &Semaphore,
    ) -> store::Result<Result<(Self, Opening), String>> {
        let asked = request.clone();
        let found = match store.brief_reading(move |reader| place(reader, &asked)).await {
            Err(error) if error.took_too_long() => {
                let (_turn, asked) = (turns.acquire().await.expect("never closed"), request.clone());
                store.reading_in_time(move |reader| place(reader, &asked)).await
            }
            found => found,
        };
        let place = match found? {
            Ok(place) => place,
            Err(why) => return Ok(Err(why)),
        };
        let filter = request.filters.filter.clone();
        let mut feed = Feed::new(store.clone(), hub.clone(), filter, place.after).on_lag(request.on_lag);
        if request.start != Start::Now || request.snapshot.is_some() {
            feed = feed.from_history();
        }
        if let Some(last) = place.last {
            feed = feed.up_to(last);
        }
        let stream = Self {
            feed: feed.after_snapshot(place.snapshot),
            film: request.speed.map(Film::new),
            conflator: request.conflate.map(|rule| Conflator::new(rule, waiting_bytes_max)),
            signals: request.signals,
            next: VecDeque::new(),
        };
        Ok(Ok((stream, place.opening)))
    }

    /// As [`Feed::position`].
    pub fn position(&self) -> Seq {
        self.feed.position()
    }

    /// As [`Feed::change_filter`].
    pub fn change_filter(&mut self, filter: Filter, last: Seq) {
        self.feed.change_filter(filter, last);
    }

    /// What is to be sent next. Cancel-safe: what was not said comes again.
    ///
    /// # Errors
    /// What SQLite reports.
    pub async fn next(&mut self) -> store::Result<Said> {
        loop {
            if let Some(said) = self.next.pop_front() {
                return Ok(said);
            }
            let due = self.conflator.as_ref().and_then(Conflator::due);
            let chunk = tokio::select! {
                biased;
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some(said) = self.flush() {
                        return Ok(said);
                    }
                    continue;
                }
                chunk = in_rhythm(&mut self.feed, &mut self.film) => chunk?,
            };
            let said = match chunk {
                Chunk::Events(runs) => match &mut self.conflator {
                    Some(conflator) => {
                        conflator.push(&runs);
                        continue;
                    }
                    None => Said::Events(runs.iter().map(Run::frames).collect()),
                },
                Chunk::FilterChanged => Said::FilterChanged,
                Chunk::FellBehind if self.signals => Said::Note(Note::FellBehind(self.feed.position())),
                Chunk::CaughtUp if self.signals => Said::Note(Note::CaughtUp),
                Chunk::FellBehind | Chunk::CaughtUp => continue,
                Chunk::Lagged { missed, last } => Said::Note(Note::Lagged { missed, last }),
                Chunk::TooSlow => Said::Ended(Ending::TooSlow),
                Chunk::Complete => Said::Ended(Ending::Complete),
                Chunk::End => Said::Ended(Ending::GoingAway),
            };
            // What is held back comes before it.
            match self.flush() {
                Some(held_back) => {
                    self.next.push_back(said);
                    return Ok(held_back);
                }
                None => return Ok(said),
            }
        }
    }

    /// What the conflator holds back.
    fn flush(&mut self) -> Option<Said> {
        let conflator = self.conflator.as_mut().filter(|conflator| conflator.due().is_some())?;
        let (frames, skipped) = conflator.flush();
        self.next.extend(skipped.map(|count| Said::Note(Note::Skipped(count))));
        Some(Said::Events(vec![frames]))
    }
}

/// The feed's next chunk, its events not before their time. Cancel-safe.
async fn in_rhythm(feed: &mut Feed, film: &mut Option<Film>) -> store::Result<Chunk> {
    let Some(film) = film else { return feed.next().await };
    loop {
        if let Some(due) = film.due() {
            // The server does not wait for the end of a film.
            tokio::select! {
                () = sleep_until(due) => return Ok(Chunk::Events(film.take_due(Instant::now()))),
                () = feed.ended() => return Ok(Chunk::End),
            }
        }
        match feed.next().await? {
            Chunk::Events(runs) => film.push(runs),
            other => return Ok(other),
        }
    }
}

/// Where a subscription begins and ends.
struct Place {
    after: Seq,
    last: Option<Seq>,
    snapshot: Vec<Seq>,
    opening: Opening,
}

/// Blocks.
fn place(reader: &Reader, request: &Subscribe) -> store::Result<Result<Place, String>> {
    let extent = reader.extent()?;
    let (newest, filter) = (extent.newest, &request.filters.filter);
    let mut gap = None;
    let after = match &request.start {
        Start::Now => newest,
        Start::Since(time) => reader.before_time(*time)?,
        Start::Last(count) => reader.before_last(filter, *count, newest)?,
        Start::Position(confirmed) => {
            gap = Gap::deleted_after(*confirmed, &extent);
            *confirmed
        }
        Start::After(id) => {
            let Some(asked) = reader.seq_of(id)? else { return Ok(Err("'after' is not an event id".to_owned())) };
            gap = Gap::after(id, asked, request.epoch.as_deref(), &extent);
            match gap {
                // Its events are not ours: what it has not seen cannot be told.
                Some(Gap::Unknown(_)) => newest,
                _ => asked,
            }
        }
    };
    let last = match request.until {
        None => None,
        Some(until) => Some(last_before(reader, until, newest)?),
    };
    let snapshot = match request.snapshot {
        None => Vec::new(),
        Some(field) => reader.latest_by(field, filter, newest, SNAPSHOT_EVENTS_MAX)?,
    };
    let opening = Opening { retained: extent, gap };
    Ok(Ok(Place { after, last, snapshot, opening }))
}

/// The last stored event before a time.
fn last_before(reader: &Reader, until: Timestamp, newest: Seq) -> store::Result<Seq> {
    let query =
        Query { until: Some(until), before: Some(newest.next()), order: Order::NewestFirst, ..Query::default() };
    let mut last = Seq::ZERO;
    reader.scan(&query, |event| {
        last = event.seq;
        ControlFlow::Break(())
    })?;
    Ok(last)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;
    use crate::config::Config;

    #[tokio::test]
    async fn a_search_for_the_start_takes_a_turn_and_gives_it_up_with_its_client() {
        let folder = tempfile::tempdir().expect("a folder");
        let (store, _parts) = Store::open_parts(&Config::of_test(folder.path().join("events.db"))).expect("open");
        let (hub, turns) = (Hub::new(store.audience(), 1 << 20), Semaphore::new(1));
        let open = async |first: &str| {
            let request = Subscribe::parse(first.as_bytes()).expect("a first message");
            Stream::open(&store, &hub, &request, 1 << 20, &turns).await.expect("read").expect("a place").1
        };
        {
            let mut searching = pin!(open(r#"{"last":1}"#));
            let has_turn = poll_fn(|context| {
                assert!(searching.as_mut().poll(context).is_pending(), "it has ended without a turn");
                if turns.available_permits() == 0 { Poll::Ready(()) } else { Poll::Pending }
            });
            has_turn.await;
            open("{}").await;
            let mut waiting = pin!(open(r#"{"last":1}"#));
            tokio::select! {
                biased;
                _ = waiting.as_mut() => panic!("another has the turn"),
                _ = searching.as_mut() => {}
            }
        }
        assert_eq!(turns.available_permits(), 1);
        open(r#"{"last":1}"#).await;
    }
}
