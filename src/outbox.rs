//! An outbox: a queue of what waits to leave one socket, bounded in bytes, with many producers and one consumer.

// Not those of the model checker: they are written under the lock, and nothing waits for them.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use crate::doorbell::{TaskThread, Wakes};
use crate::sync::Mutex;

/// A queue whose one consumer takes all waiting items at once. It never blocks a producer: an item beyond the bound empties
/// the queue for good, and the consumer finds that out. An empty queue accepts an item of any size, as a consumer with
/// nothing to take is not slow.
#[derive(Debug)]
pub struct Outbox<T> {
    waiting: Mutex<Waiting<T>>,
    /// Bytes of the waiting items, or [`OVERFLOWED`]. Written under the lock, and read without it.
    bytes: AtomicUsize,
    bytes_max: usize,
}

/// In place of bytes, after an overflow.
const OVERFLOWED: usize = usize::MAX;

#[derive(Debug)]
struct Waiting<T> {
    items: Vec<T>,
    state: State,
    consumer: Option<(TaskThread, Waker)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Overflowed,
    Closed,
}

/// What the consumer finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// At least one item.
    Items,
    /// The items exceeded the bound. All of them are gone, and no more will come.
    Overflowed,
    /// No more items will come, and all were taken.
    Closed,
}

impl<T> Waiting<T> {
    /// Apart from [`Outbox::push`], so that the compiler can inline that into the fan-out's loop.
    #[cold]
    fn overflow(&mut self) {
        self.state = State::Overflowed;
        self.items = Vec::new();
    }
}

impl<T> Outbox<T> {
    /// An empty outbox for at most `bytes_max` bytes, as its producers count them, or one item.
    pub fn new(bytes_max: usize) -> Self {
        let waiting = Waiting { items: Vec::new(), state: State::Open, consumer: None };
        Self { waiting: Mutex::new(waiting), bytes: AtomicUsize::new(0), bytes_max }
    }

    /// Adds an item, and the waiting consumer to `wakes`. After an overflow or a close, the item is dropped.
    #[inline]
    pub fn push(&self, item: T, bytes: usize, wakes: &mut Wakes) {
        let mut waiting = self.waiting.lock();
        if waiting.state != State::Open {
            return;
        }
        let bytes = self.bytes.load(Ordering::Relaxed).saturating_add(bytes);
        if bytes <= self.bytes_max || waiting.items.is_empty() {
            waiting.items.push(item);
            self.bytes.store(bytes, Ordering::Relaxed);
        } else {
            waiting.overflow();
            self.bytes.store(OVERFLOWED, Ordering::Relaxed);
        }
        if let Some((thread, waker)) = waiting.consumer.take() {
            wakes.wake(thread, waker);
        }
    }

    /// Bytes of the waiting items, as their producers count them; `None` after an overflow. It takes no lock, so its producers
    /// do not notice.
    pub fn bytes(&self) -> Option<usize> {
        Some(self.bytes.load(Ordering::Relaxed)).filter(|bytes| *bytes != OVERFLOWED)
    }

    /// Ends the queue. The consumer can still take the waiting items.
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

    /// Waits for items and moves all of them to the end of `into`. Cancel-safe: items that were not taken stay. Only one task
    /// may wait.
    pub async fn take(&self, into: &mut Vec<T>) -> Taken {
        std::future::poll_fn(|context| match self.try_take(into) {
            Some(taken) => Poll::Ready(taken),
            None => {
                let mut waiting = self.waiting.lock();
                // An item may have come since `try_take` released the lock.
                if !waiting.items.is_empty() || waiting.state != State::Open {
                    context.waker().wake_by_ref();
                } else if !waiting.consumer.as_ref().is_some_and(|(_, known)| known.will_wake(context.waker())) {
                    waiting.consumer = Some((TaskThread::current(), context.waker().clone()));
                }
                Poll::Pending
            }
        })
        .await
    }

    /// As [`Outbox::take`], but `None` at once when nothing waits.
    pub fn try_take(&self, into: &mut Vec<T>) -> Option<Taken> {
        let mut waiting = self.waiting.lock();
        if waiting.items.is_empty() {
            return match waiting.state {
                State::Open => None,
                State::Overflowed => Some(Taken::Overflowed),
                State::Closed => Some(Taken::Closed),
            };
        }
        self.bytes.store(0, Ordering::Relaxed);
        if into.is_empty() {
            // The two vectors are swapped for as long as the socket lives, so no call allocates.
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
    fn items_are_taken_in_the_order_in_which_they_were_pushed() {
        let (outbox, mut wakes, mut taken) = (Outbox::new(10), Wakes::default(), Vec::new());
        assert_eq!(outbox.try_take(&mut taken), None);
        outbox.push('a', 5, &mut wakes);
        outbox.push('b', 5, &mut wakes);
        assert_eq!(outbox.bytes(), Some(10));
        assert_eq!((outbox.try_take(&mut taken), &taken[..]), (Some(Taken::Items), &['a', 'b'][..]));
        outbox.push('c', 10, &mut wakes);
        outbox.close();
        outbox.push('d', 0, &mut wakes);
        assert_eq!((outbox.try_take(&mut taken), &taken[..]), (Some(Taken::Items), &['a', 'b', 'c'][..]));
        assert_eq!(outbox.try_take(&mut taken), Some(Taken::Closed));
    }

    #[test]
    fn one_byte_beyond_the_bound_empties_the_outbox_for_good() {
        let (outbox, mut wakes, mut taken) = (Outbox::new(10), Wakes::default(), Vec::new());
        outbox.push('a', 10, &mut wakes);
        outbox.push('b', 1, &mut wakes);
        outbox.push('c', 1, &mut wakes);
        outbox.close();
        assert_eq!(outbox.bytes(), None);
        assert_eq!((outbox.try_take(&mut taken), taken.len()), (Some(Taken::Overflowed), 0));
    }

    #[test]
    fn an_empty_outbox_takes_an_item_of_any_size() {
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
    fn a_waiting_consumer_is_woken_once_for_many_items() {
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
            assert_eq!(format!("{wakes:?}"), "Wakes { notices: 1 }");
            wakes.wake_all();
            tokio::task::yield_now().await;
            outbox.close();
            assert_eq!(consumer.await.expect("no panic"), [1, 2, 3]);
        });
    }
}
