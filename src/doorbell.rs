//! How a thread that has news for many tasks of another thread wakes them all with one signal.
//!
//! Waking a task from outside its runtime costs a system call each time, some 1 µs; a commit has news
//! for every connection with an event in it. So the news are left at the other thread's door, the bell
//! is rung once, and the wakes happen over there, where each costs a push to a local queue.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use tokio::sync::Notify;

use crate::sync::{Mutex, thread_local};

/// The bell of one thread.
#[derive(Default)]
pub struct Doorbell {
    left: Mutex<Vec<News>>,
    rung: Notify,
}

impl Doorbell {
    /// Gives this thread a bell and answers it, for ever. The tasks of a thread without one are woken
    /// directly.
    pub async fn answer() {
        let bell = Arc::new(Doorbell::default());
        OURS.with(|ours| ours.replace(Home(Some(bell.clone()))));
        let mut news = Vec::new();
        loop {
            bell.rung.notified().await;
            std::mem::swap(&mut *bell.left.lock(), &mut news);
            news.drain(..).for_each(News::tell);
        }
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doorbell")
    }
}

thread_local! {
    static OURS: RefCell<Home> = const { RefCell::new(Home(None)) };
}

/// Where a task lives: the thread it runs on.
#[derive(Debug, Clone)]
pub struct Home(Option<Arc<Doorbell>>);

impl Home {
    /// The thread that asks.
    pub fn here() -> Self {
        OURS.with(|ours| ours.borrow().clone())
    }

    fn is(&self, other: &Self) -> bool {
        self.0.as_ref().map(Arc::as_ptr) == other.0.as_ref().map(Arc::as_ptr)
    }
}

enum News {
    Wake(Waker),
    Call(Box<dyn FnOnce() + Send>),
}

impl News {
    fn tell(self) {
        match self {
            News::Wake(waker) => waker.wake(),
            News::Call(call) => call(),
        }
    }
}

/// News for tasks, collected until all of it is known: whoever fills many outboxes for one commit tells
/// nobody before the last is filled, so a socket finds all of the commit at its first look and answers
/// it in one write.
#[derive(Default)]
pub struct Wakes {
    news: Vec<(Home, News)>,
    to_ring: Vec<Arc<Doorbell>>,
}

impl Wakes {
    /// A task to be woken.
    pub fn wake(&mut self, home: Home, waker: Waker) {
        self.news.push((home, News::Wake(waker)));
    }

    /// Something to be done where a task lives, which will wake it.
    pub fn call(&mut self, home: Home, call: impl FnOnce() + Send + 'static) {
        self.news.push((home, News::Call(Box::new(call))));
    }

    /// Tells everyone.
    pub fn wake_all(&mut self) {
        let here = Home::here();
        for (home, news) in self.news.drain(..) {
            match home.0 {
                Some(ref bell) if !home.is(&here) => {
                    let mut left = bell.left.lock();
                    // Who leaves the first news rings, once all of it is there.
                    if left.is_empty() {
                        self.to_ring.push(bell.clone());
                    }
                    left.push(news);
                }
                _ => news.tell(),
            }
        }
        self.to_ring.drain(..).for_each(|bell| bell.rung.notify_one());
    }
}

impl fmt::Debug for Wakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wakes").field("news", &self.news.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn news_is_told_where_its_tasks_live() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (ready, home) = std::sync::mpsc::channel();
        let (done, finished) = oneshot::channel();
        let over_there = std::thread::spawn(move || {
            runtime.block_on(async {
                let answering = tokio::spawn(Doorbell::answer());
                tokio::task::yield_now().await;
                ready.send(Home::here()).expect("the test waits");
                let told_on = finished.await.expect("news");
                assert_eq!(told_on, std::thread::current().id());
                answering.abort();
            });
        });
        let home = home.recv().expect("a home");
        let mut wakes = Wakes::default();
        wakes.call(home, move || done.send(std::thread::current().id()).expect("somebody waits"));
        wakes.wake_all();
        over_there.join().expect("told over there");
    }

    #[test]
    fn without_a_bell_news_is_told_at_once() {
        let (sender, mut receiver) = oneshot::channel();
        let mut wakes = Wakes::default();
        wakes.call(Home::here(), move || sender.send(7).expect("somebody waits"));
        assert!(receiver.try_recv().is_err());
        wakes.wake_all();
        assert_eq!(receiver.try_recv(), Ok(7));
    }
}
