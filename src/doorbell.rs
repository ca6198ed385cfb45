//! A doorbell: one signal with which a thread wakes many tasks of another thread.
//!
//! Each wake of a task from outside its runtime costs a system call, some 1 µs, and a commit wakes every connection that
//! has an event in it. So the waking thread leaves all notices for the other thread in a list and rings its doorbell once.
//! The other thread then wakes its tasks itself, where a wake is a push to a local queue.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use tokio::sync::Notify;

use crate::sync::{Mutex, thread_local};

/// The doorbell of one thread.
#[derive(Default)]
pub struct Doorbell {
    notices: Mutex<Vec<Notice>>,
    rung: Notify,
}

impl Doorbell {
    /// Gives this thread a doorbell and answers it, for ever. The tasks of a thread without a doorbell are woken directly.
    pub async fn answer() {
        let bell = Arc::new(Doorbell::default());
        CURRENT.with(|current| current.replace(TaskThread(Some(bell.clone()))));
        let mut notices = Vec::new();
        loop {
            bell.rung.notified().await;
            std::mem::swap(&mut *bell.notices.lock(), &mut notices);
            notices.drain(..).for_each(Notice::give);
        }
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doorbell")
    }
}

thread_local! {
    static CURRENT: RefCell<TaskThread> = const { RefCell::new(TaskThread(None)) };
}

/// The thread that a task runs on.
#[derive(Debug, Clone)]
pub struct TaskThread(Option<Arc<Doorbell>>);

impl TaskThread {
    /// The calling thread.
    pub fn current() -> Self {
        CURRENT.with(|current| current.borrow().clone())
    }

    fn is(&self, other: &Self) -> bool {
        self.0.as_ref().map(Arc::as_ptr) == other.0.as_ref().map(Arc::as_ptr)
    }
}

/// Something that a task has to learn.
enum Notice {
    Wake(Waker),
    Call(Box<dyn FnOnce() + Send>),
}

impl Notice {
    fn give(self) {
        match self {
            Notice::Wake(waker) => waker.wake(),
            Notice::Call(call) => call(),
        }
    }
}

/// Notices for tasks, collected until all are known. A thread that fills many outboxes for one commit wakes no task before
/// the last outbox is filled, so a socket finds the whole commit at its first look and writes it at once.
#[derive(Default)]
pub struct Wakes {
    notices: Vec<(TaskThread, Notice)>,
    to_ring: Vec<Arc<Doorbell>>,
}

impl Wakes {
    /// Adds a task to be woken.
    pub fn wake(&mut self, thread: TaskThread, waker: Waker) {
        self.notices.push((thread, Notice::Wake(waker)));
    }

    /// Adds a function to be called on a task's thread, which will wake the task.
    pub fn call(&mut self, thread: TaskThread, call: impl FnOnce() + Send + 'static) {
        self.notices.push((thread, Notice::Call(Box::new(call))));
    }

    /// Gives all notices, with one ring of each doorbell.
    pub fn wake_all(&mut self) {
        let current = TaskThread::current();
        for (thread, notice) in self.notices.drain(..) {
            match thread.0 {
                Some(ref bell) if !thread.is(&current) => {
                    let mut notices = bell.notices.lock();
                    // Whether it is this thread that has to ring: an earlier notice has a ring on its way.
                    if notices.is_empty() {
                        self.to_ring.push(bell.clone());
                    }
                    notices.push(notice);
                }
                _ => notice.give(),
            }
        }
        self.to_ring.drain(..).for_each(|bell| bell.rung.notify_one());
    }
}

impl fmt::Debug for Wakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wakes").field("notices", &self.notices.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn notices_are_given_on_the_threads_of_their_tasks() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (ready, thread) = std::sync::mpsc::channel();
        let (done, finished) = oneshot::channel();
        let over_there = std::thread::spawn(move || {
            runtime.block_on(async {
                let answering = tokio::spawn(Doorbell::answer());
                tokio::task::yield_now().await;
                ready.send(TaskThread::current()).expect("the test waits");
                let given_on = finished.await.expect("a notice");
                assert_eq!(given_on, std::thread::current().id());
                answering.abort();
            });
        });
        let thread = thread.recv().expect("a thread");
        let mut wakes = Wakes::default();
        wakes.call(thread, move || done.send(std::thread::current().id()).expect("somebody waits"));
        wakes.wake_all();
        over_there.join().expect("given over there");
    }

    #[test]
    fn without_a_doorbell_notices_are_given_at_once() {
        let (sender, mut receiver) = oneshot::channel();
        let mut wakes = Wakes::default();
        wakes.call(TaskThread::current(), move || sender.send(7).expect("somebody waits"));
        assert!(receiver.try_recv().is_err());
        wakes.wake_all();
        assert_eq!(receiver.try_recv(), Ok(7));
    }
}
