//! The timer with which hyper limits how long a client takes for the head of a request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use parking_lot::Mutex;

/// The timer of one connection. hyper begins a wait before each request and drops it when the head has come, mostly some
/// microseconds later. Waits of their own would each enter the runtime's timers and leave them. Here all of them share
/// one that stays there: when it is over before the current wait is, it is set again. That wakes a busy connection once in
/// each header timeout.
#[derive(Clone)]
pub(super) struct HeadTimer(Arc<Mutex<Pin<Box<tokio::time::Sleep>>>>);

struct Wait {
    deadline: Instant,
    timer: HeadTimer,
}

impl HeadTimer {
    /// A timer whose first wait is this long.
    pub(super) fn new(first: Duration) -> Self {
        Self(Arc::new(Mutex::new(Box::pin(tokio::time::sleep(first)))))
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Wait { deadline, timer: self.clone() })
    }
}

impl Sleep for Wait {}

impl Future for Wait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.timer.0.lock();
        loop {
            if shared.deadline().into_std() > self.deadline {
                shared.as_mut().reset(self.deadline.into());
            }
            ready!(shared.as_mut().poll(cx));
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            shared.as_mut().reset(self.deadline.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_wait_ends_after_its_own_deadline() {
        const HOUR: Duration = Duration::from_secs(3_600);
        let timer = HeadTimer::new(HOUR);
        for millis in [1, 20, 5] {
            drop(timer.sleep(HOUR));
            let deadline = Instant::now() + Duration::from_millis(millis);
            timer.sleep_until(deadline).await;
            assert!(Instant::now() >= deadline);
        }
    }
}
