//! Stored events as lines, one JSON object each, however many there are.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::answer::BrokenOff;
use super::socket::Watched;
use crate::event::TimestampText;
use crate::store::{self, Query, Reader, Reading, Store};
use bytes::Bytes;
use hyper::body::{Body, Frame};

/// A body that reads the record page by page, as fast as the client takes it and one page ahead. When reading
/// fails the body breaks off without its proper end, so that nobody takes a part for the whole.
pub(super) struct Export {
    store: Store,
    /// What was read and not taken yet.
    lines: Vec<u8>,
    page: Option<Reading<Page>>,
    _watched: Watched,
}

/// What is left to be read.
struct Rest {
    query: Query,
    events_max: usize,
}

pub(super) struct Page {
    lines: Vec<u8>,
    rest: Option<Rest>,
}

/// Bytes of a page. Large enough that its transaction and its place in the blocking threads' queue do not
/// count; three of them are what one client costs: the end of one, the next, and one that is read ahead.
const PAGE_BYTES: usize = 256 << 10;

/// Room for the last event of a page. Only where payloads may be larger than by default a page can grow, to twice its size.
const LAST_EVENT_BYTES: usize = 66 << 10;

impl Export {
    /// What follows the first page, and that.
    pub(super) fn new(store: Store, first: Page, watched: Watched) -> Self {
        let page = first.rest.map(|rest| start(&store, rest));
        Self { store, lines: first.lines, page, _watched: watched }
    }
}

/// The beginning of the events of `query`, at most `events_max`. What is committed later is not among them. Read before
/// anything is answered, so that whoever cannot be served at all is told so. Blocks.
pub(super) fn first_page(reader: &Reader, mut query: Query, events_max: usize) -> store::Result<Page> {
    let end = reader.committed().next();
    query.before = Some(query.before.map_or(end, |before| before.min(end)));
    read(reader, Rest { query, events_max })
}

fn start(store: &Store, rest: Rest) -> Reading<Page> {
    store.reading(move |reader| read(reader, rest))
}

fn read(reader: &Reader, Rest { mut query, mut events_max }: Rest) -> store::Result<Page> {
    let (mut lines, mut time) = (Vec::with_capacity(PAGE_BYTES), TimestampText::default());
    let last = reader.scan_some(&query, |event| {
        event.write_json(&mut lines, &mut time);
        lines.push(b'\n');
        events_max -= 1;
        if lines.len() >= PAGE_BYTES - LAST_EVENT_BYTES || events_max == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    let rest = last.filter(|_| events_max > 0).map(|last| {
        query.after = last;
        Rest { query, events_max }
    });
    Ok(Page { lines, rest })
}

impl Body for Export {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        // A page can be empty: when few events pass, and when the one before it took the last.
        loop {
            let lines = std::mem::take(&mut self.lines);
            if !lines.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(lines.into()))));
            }
            let Some(page) = &mut self.page else { return Poll::Ready(None) };
            let read = ready!(Pin::new(page).poll(cx));
            self.page = None;
            let Page { lines, rest } = match read {
                Ok(page) => page,
                Err(error) => {
                    tracing::error!(%error, "read events for an export");
                    return Poll::Ready(Some(Err(BrokenOff)));
                }
            };
            self.page = rest.map(|rest| start(&self.store, rest));
            self.lines = lines;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::event::Event;
    use crate::store::fixture::{hand_in, tick};

    #[test]
    fn a_page_of_events_as_large_as_they_may_be_by_default_does_not_grow() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config::of_test(folder.path().join("events.db"));
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        let payload = format!("{{\"x\":\"{}\"}}", "x".repeat(config.limits.payload_bytes_max - 8));
        hand_in(&store, (0..16).map(|n| Event { payload: if n < 8 { "{}" } else { &payload }, ..tick() }));
        while parts.write() {}
        let page = first_page(&store.reader(), Query::default(), usize::MAX).expect("a page");
        assert!(page.rest.is_some());
        assert_eq!(page.lines.capacity(), PAGE_BYTES);
    }
}
