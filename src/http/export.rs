//! Stored events as lines, one JSON object each, however many there are.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame};

use super::half_close::HalfCloseGuard;
use super::response::BrokenOff;
use crate::auth::Principal;
use crate::event::TimestampText;
use crate::store::{self, Query, Reader, Reading, Store};

/// A body that reads the record piece by piece, as fast as the client takes it and one piece ahead. When reading fails the
/// body breaks off without its proper end, so that no client takes a part for the whole.
pub(super) struct Export {
    store: Store,
    /// Lines that hyper has not taken yet.
    lines: Vec<u8>,
    next: Option<Reading<Lines>>,
    /// An export may last for hours, and ends with its key.
    principal: Principal,
    _guard: HalfCloseGuard,
}

/// The events that are still to be read.
struct Rest {
    query: Query,
    events_max: usize,
}

/// The lines of one read.
pub(super) struct Lines {
    lines: Vec<u8>,
    rest: Option<Rest>,
}

/// Bytes that one read aims at: enough that its transaction and its wait for a blocking thread cost little in comparison. One
/// client has up to three in memory: the rest of one, the next, and one that is read ahead.
const LINES_BYTES: usize = 256 << 10;

/// Space for the last event of a read. Only with a `MAX_PAYLOAD_BYTES` above its default the lines can grow beyond
/// [`LINES_BYTES`], to twice the size.
const LAST_EVENT_BYTES: usize = 66 << 10;

impl Export {
    /// An export that begins with these lines.
    pub(super) fn new(store: Store, first: Lines, principal: Principal, guard: HalfCloseGuard) -> Self {
        let next = first.rest.map(|rest| start(&store, rest));
        Self { store, lines: first.lines, next, principal, _guard: guard }
    }
}

/// The beginning of the events of `query`, at most `events_max` in all. Events that are committed later are not among them.
/// It is read before the answer begins, so that a read that fails at once is answered with an error. Blocks.
pub(super) fn first_lines(reader: &Reader, mut query: Query, events_max: usize) -> store::Result<Lines> {
    let end = reader.committed().next();
    query.before = Some(query.before.map_or(end, |before| before.min(end)));
    read(reader, Rest { query, events_max })
}

fn start(store: &Store, rest: Rest) -> Reading<Lines> {
    store.reading(move |reader| read(reader, rest))
}

fn read(reader: &Reader, Rest { mut query, mut events_max }: Rest) -> store::Result<Lines> {
    let (mut lines, mut time) = (Vec::with_capacity(LINES_BYTES), TimestampText::default());
    let last = reader.scan_some(&query, |event| {
        event.write_json(&mut lines, &mut time);
        lines.push(b'\n');
        events_max -= 1;
        if lines.len() >= LINES_BYTES - LAST_EVENT_BYTES || events_max == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    let rest = last.filter(|_| events_max > 0).map(|last| {
        query.after = last;
        Rest { query, events_max }
    });
    Ok(Lines { lines, rest })
}

impl Body for Export {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        // A read may bring no lines: when few events pass, and when the one before it had the last event.
        loop {
            let lines = std::mem::take(&mut self.lines);
            if !lines.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(lines.into()))));
            }
            let Some(next) = &mut self.next else { return Poll::Ready(None) };
            let read = ready!(Pin::new(next).poll(cx));
            self.next = None;
            let Lines { lines, rest } = match read {
                Ok(_) if self.principal.is_over() => return Poll::Ready(Some(Err(BrokenOff))),
                Ok(lines) => lines,
                Err(error) => {
                    tracing::error!(%error, "read events for an export");
                    return Poll::Ready(Some(Err(BrokenOff)));
                }
            };
            self.next = rest.map(|rest| start(&self.store, rest));
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
    fn lines_of_the_largest_default_events_do_not_grow() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config::of_test(folder.path().join("events.db"));
        let (store, mut parts) = Store::open_parts(&config).expect("open");
        let payload = format!("{{\"x\":\"{}\"}}", "x".repeat(config.limits.payload_bytes_max - 8));
        hand_in(&store, (0..16).map(|n| Event { payload: if n < 8 { "{}" } else { &payload }, ..tick() }));
        while parts.write() {}
        let first = first_lines(&store.reader(), Query::default(), usize::MAX).expect("lines");
        assert!(first.rest.is_some());
        assert_eq!(first.lines.capacity(), LINES_BYTES);
    }
}
