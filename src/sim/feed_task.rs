//! The task that serves a feed, step by step.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use crate::event::Seq;
use crate::feed::{Chunk, Feed, Page, PageRequest, Step};
use crate::store::Store;

pub struct FeedTask {
    pub feed: Feed,
    reading: Option<Reading>,
    awake: Arc<Awake>,
}

/// A read of a page is a step of its own, so that anything may happen before it and after it.
enum Reading {
    Requested(PageRequest),
    Done(Page),
}

impl FeedTask {
    pub fn new(feed: Feed) -> Self {
        Self { feed, reading: None, awake: Arc::new(Awake(AtomicBool::new(true))) }
    }

    pub fn is_awake(&self) -> bool {
        self.awake.0.load(Ordering::SeqCst)
    }

    /// If the next step counts events: after which event, and up to which.
    pub fn counts_next(&self) -> Option<(Seq, Seq)> {
        match &self.reading {
            Some(Reading::Requested(PageRequest::Count(_, after, through))) => Some((*after, *through)),
            _ => None,
        }
    }

    pub fn step(&mut self, store: &Store) -> Option<Chunk> {
        match self.reading.take() {
            Some(Reading::Requested(request)) => {
                self.reading = Some(Reading::Done(request.read(&store.reader()).expect("read")));
                None
            }
            Some(Reading::Done(page)) => self.feed.page_read(page),
            None => match self.feed.step() {
                Step::Give(chunk) => Some(chunk),
                Step::Again => None,
                Step::Read(request) => {
                    self.reading = Some(Reading::Requested(request));
                    None
                }
                Step::Wait => {
                    self.sleep();
                    None
                }
            },
        }
    }

    /// Sleeps unless there is news.
    fn sleep(&mut self) {
        self.awake.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(self.awake.clone());
        let has_news = pin!(self.feed.wait()).poll(&mut Context::from_waker(&waker)).is_ready();
        self.awake.0.fetch_or(has_news, Ordering::SeqCst);
    }

    /// Something else is to be done first, so the task drops what it waits for and begins again.
    pub fn interrupt(&mut self) {
        self.reading = None;
        self.awake.0.store(true, Ordering::SeqCst);
    }
}

struct Awake(AtomicBool);

impl Wake for Awake {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}
