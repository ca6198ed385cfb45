//! Waiting for the next command.
//!
//! A thread that sleeps is woken by a system call of another one, on a processor that has halted meanwhile. That takes
//! longer than storing an event. So while producers send events one by one, each after the answer to the one before, the
//! writer does not sleep between them: it looks for the next command all the time (it spins). The price is a processor
//! that does nothing else meanwhile, so it does this only for a moment, and only as long as the commands do come that
//! soon.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

/// How the commands came of late, and so whether it pays to spin for the next one.
pub struct Arrivals {
    /// How long it spins for a command at most; zero for never.
    spin_max: Duration,
    /// How many commands in a row came within that time.
    soon: u32,
    /// Whether the last commit had one batch. With more, the next ones wait in the queue already or are on their way from
    /// several producers, which need the processor.
    was_single: bool,
}

/// It spins once so many commands in a row came soon. With 4, commands that come soon only now and then cost at most one
/// vain spin in five of them.
const SOON_MIN: u32 = 4;

/// Pauses of the processor between two looks at the queue: some 0.2 µs, so that a producer that puts something into the
/// queue is not slowed by the looks.
const PAUSES: usize = 8;

impl Arrivals {
    pub fn new(spin_max: Duration) -> Self {
        Self { spin_max, soon: 0, was_single: false }
    }

    /// Takes note of how many batches a commit is to have.
    pub fn note(&mut self, batches: usize) {
        // Housekeeping between two events does not count.
        if batches > 0 {
            self.was_single = batches == 1;
        }
    }

    fn spins(&self) -> bool {
        self.was_single && self.soon >= SOON_MIN
    }

    /// Waits for a command, until a deadline if there is one.
    ///
    /// # Errors
    /// `Timeout` at the deadline, `Disconnected` when none can come any more.
    pub fn next<T>(&mut self, queue: &Receiver<T>, until: Option<Instant>) -> Result<T, RecvTimeoutError> {
        match queue.try_recv() {
            Ok(command) => return Ok(command),
            Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) => {}
        }
        let soon = Instant::now() + self.spin_max;
        let received = (self.spins() && until.is_none_or(|until| until > soon)).then(|| spin(queue, soon)).flatten();
        let received = match (received, until) {
            (Some(command), _) => Ok(command),
            (None, Some(until)) => queue.recv_deadline(until),
            (None, None) => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        self.soon = if received.is_ok() && Instant::now() < soon { self.soon.saturating_add(1) } else { 0 };
        received
    }
}

/// Looks for a command until a moment.
fn spin<T>(queue: &Receiver<T>, until: Instant) -> Option<T> {
    while Instant::now() < until {
        (0..PAUSES).for_each(|_| spin_loop());
        match queue.try_recv() {
            Ok(command) => return Some(command),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    const LONG: Duration = Duration::from_secs(3_600);

    /// Lets this many commands come one by one, each while the writer waits for it. They come soon if `spin_max` is long.
    fn let_come(arrivals: &mut Arrivals, commands: u32) {
        let (sender, queue) = bounded(0);
        std::thread::scope(|scope| {
            scope.spawn(move || (0..commands).for_each(|command| sender.send(command).expect("the writer waits")));
            for command in 0..commands {
                assert_eq!(arrivals.next(&queue, None), Ok(command));
                arrivals.note(1);
            }
            assert_eq!(arrivals.next(&queue, None), Err(RecvTimeoutError::Disconnected));
        });
    }

    #[test]
    fn the_writer_spins_after_single_batches_that_came_soon_and_only_then() {
        let mut arrivals = Arrivals::new(LONG);
        // Which of them the writer finds in the queue, and which it waits for, is the system's choice.
        arrivals.soon = SOON_MIN;
        assert!(!arrivals.spins(), "nothing has come yet");
        arrivals.note(1);
        assert!(arrivals.spins());
        arrivals.note(0);
        assert!(arrivals.spins(), "housekeeping does not count");
        arrivals.note(2);
        assert!(!arrivals.spins());
        arrivals.note(1);
        let (_sender, queue) = bounded::<()>(1);
        assert_eq!(arrivals.next(&queue, Some(Instant::now())), Err(RecvTimeoutError::Timeout));
        assert!(!arrivals.spins(), "nothing came");

        let mut never = Arrivals::new(Duration::ZERO);
        let_come(&mut never, 100);
        assert_eq!(never.soon, 0);
    }

    #[test]
    fn a_spin_ends_with_a_command_and_with_the_last_sender() {
        let mut arrivals = Arrivals::new(LONG);
        (arrivals.soon, arrivals.was_single) = (SOON_MIN, true);
        let_come(&mut arrivals, 100);
    }
}
