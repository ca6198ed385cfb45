//! What waits to leave one socket: bounded in bytes, filled by many, emptied by one.

use std::task::{Poll, Waker};

use crate::doorbell::{Home, Wakes};
use crate::sync::Mutex;

/// A queue with one consumer that takes everything waiting at once. It never blocks who fills it: an
/// item that would take it over its bound empties it for good, and the consumer is told. Only the first item is
/// taken whatever its size: a consumer for whom nothing waits is not slow.
#[derive(Debug)]
pub struct Outbox<T> {
    waiting: Mutex<Waiting<T>>,
    bytes_max: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    items: Vec<T>,
    bytes: usize,
    state: State,
    consumer: Option<(Home, Waker)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Overflowed,
    Closed,
}

/// What the consumer found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// At least one item.
    Items,
    /// More came than the bound allows; everything that waited is gone and nothing more will come.
    Overflowed,
    /// Whoever filled it is gone and everything was taken.
    Closed,
}

impl<T> Waiting<T> {
    /// Apart from [`Outbox::push`], which is small enough without it to be a part of the fan-out's loop.
    #[cold]
    fn overflow(&mut self) {
        self.state = State::Overflowed;
        self.items = Vec::new();
    }
}

impl<T> Outbox<T> {
    /// An empty outbox for at most `bytes_max` bytes, as its fillers count them, or one item.
    pub fn new(bytes_max: usize) -> Self {
        let waiting = Waiting { items: Vec::new(), bytes: 0, state: State::Open, consumer: None };
        Self { waiting: Mutex::new(waiting), bytes_max }
    }

    /// Adds an item; a waiting consumer is added to `wakes`. After an overflow or a close it is dropped.
    #[inline]
    pub fn push(&self, item: T, bytes: usize, wakes: &mut Wakes) {
        let mut waiting = self.waiting.lock();
        if waiting.state != State::Open {
            return;
        }
        waiting.bytes = waiting.bytes.saturating_add(bytes);
        if waiting.bytes <= self.bytes_max || waiting.items.is_empty() {
            waiting.items.push(item);
        } else {
            waiting.overflow();
        }
        if let Some((home, waker)) = waiting.consumer.take() {
            wakes.wake(home, waker);
        }
    }

    /// Nothing more will come; what waits can still be taken.
    pub fn close(&self) {
        let mut waiting = self.waiting.lock();
        if waiting.state == State::Open {
            waiting.state = State::Closed;
        }
        let consumer = waiting.consumer.take();
        drop(waiting);
        if let Some((_, waker)) = consumer {
            waker.wake();
        }
    }

    /// Waits for something and moves all of it behind what `into` holds. Cancel-safe: what is not
    /// taken stays. Only one task may wait.
    pub async fn take(&self, into: &mut Vec<T>) -> Taken {
        std::future::poll_fn(|context| match self.try_take(into) {
            Some(taken) => Poll::Ready(taken),
            None => {
                let mut waiting = self.waiting.lock();
                // Something may have come between the two looks.
                if !waiting.items.is_empty() || waiting.state != State::Open {
                    context.waker().wake_by_ref();
                } else if !waiting.consumer.as_ref().is_some_and(|(_, known)| known.will_wake(context.waker())) {
                    waiting.consumer = Some((Home::here(), context.waker().clone()));
                }
                Poll::Pending
            }
        })
        .await
    }

    /// Like [`Outbox::take`], or `None` at once when nothing waits.
    pub fn try_take(&self, into: &mut Vec<T>) -> Option<Taken> {
        let mut waiting = self.waiting.lock();
        if waiting.items.is_empty() {
            return match waiting.state {
                State::Open => None,
                State::Overflowed => Some(Taken::Overflowed),
                State::Closed => Some(Taken::Closed),
            };
        }
        waiting.bytes = 0;
        if into.is_empty() {
            // The two vectors change places for as long as the socket lives: no allocation per turn.
            std::mem::swap(&mut waiting.items, into);
        } else {
            into.append(&mut waiting.items);
        }
        Some(Taken::Items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_taken_in_order() {
        let (outbox, mut wakes, mut taken) = (Outbox::new(10), Wakes::default(), Vec::new());
        assert_eq!(outbox.try_take(&mut taken), None);
        outbox.push('a', 5, &mut wakes);
        outbox.push('b', 5, &mut wakes);
        assert_eq!((outbox.try_take(&mut taken), &taken[..]), (Some(Taken::Items), &['a', 'b'][..]));
        outbox.push('c', 10, &mut wakes);
        outbox.close();
        outbox.push('d', 0, &mut wakes);
        assert_eq!((outbox.try_take(&mut taken), &taken[..]), (Some(Taken::Items), &['a', 'b', 'c'][..]));
        assert_eq!(outbox.try_take(&mut taken), Some(Taken::Closed));
    }

    #[test]
    fn one_byte_too_many_empties_it_for_good() {
        let (outbox, mut wakes, mut taken) = (Outbox::new(10), Wakes::default(), Vec::new());
        outbox.push('a', 10, &mut wakes);
        outbox.push('b', 1, &mut wakes);
        outbox.push('c', 1, &mut wakes);
        outbox.close();
        assert_eq!((outbox.try_take(&mut taken), taken.len()), (Some(Taken::Overflowed), 0));
    }

    #[test]
    fn the_first_item_is_never_too_much() {
        let (outbox, mut wakes, mut taken) = (Outbox::new(10), Wakes::default(), Vec::new());
        for item in ['a', 'b'] {
            outbox.push(item, 11, &mut wakes);
            assert_eq!(outbox.try_take(&mut taken), Some(Taken::Items));
        }
        assert_eq!(taken, ['a', 'b']);
        outbox.push('c', 11, &mut wakes);
        outbox.push('d', 0, &mut wakes);
        assert_eq!(outbox.try_take(&mut taken), Some(Taken::Overflowed));
    }

    #[test]
    fn a_waiting_consumer_is_woken_once_a_batch() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let outbox = std::sync::Arc::new(Outbox::new(100));
            let consumer = tokio::spawn({
                let outbox = outbox.clone();
                async move {
                    let mut taken = Vec::new();
                    while outbox.take(&mut taken).await == Taken::Items {}
                    taken
                }
            });
            tokio::task::yield_now().await;
            let mut wakes = Wakes::default();
            (1..=3).for_each(|i| outbox.push(i, 1, &mut wakes));
            assert_eq!(format!("{wakes:?}"), "Wakes { news: 1 }");
            wakes.wake_all();
            tokio::task::yield_now().await;
            outbox.close();
            assert_eq!(consumer.await.expect("no panic"), [1, 2, 3]);
        });
    }
}
