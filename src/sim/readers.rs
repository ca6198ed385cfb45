//! What subscribers and the members of groups do, and the tasks that serve them.

use super::filter::ModelFilter;
use super::group::Group;
use super::subscriber::{Over, Request, Subscriber};
use super::world::World;
use crate::event::Seq;
use crate::wire::request::OnLag;

const SUBSCRIBERS_MAX: usize = 6;
/// Names of durable subscriptions that are no groups.
const NAMES: [&str; 3] = ["dashboard", "consumer", "caf\u{e9}"];
pub const GROUPS: [&str; 2] = ["group:marks", "group:mail"];
/// The world comes to rest within this many rounds.
const ROUNDS_MAX: usize = 10_000;

impl World {
    /// Asks the store to store a position, soon or at once, or to forget a name.
    pub fn store_position(&mut self) {
        let name = self.random.pick(&NAMES);
        let position = Seq(self.random.below(self.model.last().0 + 1));
        match self.random.below(8) {
            0 => self.durables.remove(&self.server.store, name),
            choice => self.durables.store(&self.server.store, name, &ModelFilter::default(), position, choice == 1),
        }
    }

    /// Creates a group with its first member, or deletes one.
    pub fn create_group(&mut self) {
        let name = self.random.pick(&GROUPS);
        match self.durables.last_of(name) {
            None => {
                let (filter, position) =
                    (ModelFilter::random(&mut self.random), Seq(self.random.below(self.model.last().0 + 1)));
                self.durables.store(&self.server.store, name, &filter, position, true);
                self.join_group(name);
            }
            Some(_) if self.random.one_in(4) => {
                self.groups.remove(name);
                self.durables.remove(&self.server.store, name);
            }
            Some(_) => {}
        }
    }

    pub fn join(&mut self) {
        let name = self.random.pick(&GROUPS);
        self.join_group(name);
    }

    /// Adds a member. With the first one the group resumes after its confirmed position.
    pub fn join_group(&mut self, name: &'static str) {
        let Some((position, filter)) = self.durables.last_of(name) else { return };
        match self.groups.get_mut(name) {
            Some(group) => group.join(),
            None => drop(self.groups.insert(name, Group::new(&self.server, filter, position))),
        }
        self.deal(name);
    }

    pub fn leave(&mut self) {
        let name = self.random.pick(&GROUPS);
        let Some(group) = self.groups.get_mut(name) else { return };
        match group.leave(&mut self.random) {
            true => self.deal(name),
            false => drop(self.groups.remove(name)),
        }
    }

    /// Applies something to one of the groups, which may be interrupted first.
    pub fn with_group(&mut self, apply: impl FnOnce(&mut Group, &mut Self)) {
        let name = self.random.pick(&GROUPS);
        let Some(mut group) = self.groups.remove(name) else { return };
        if self.random.one_in(16) {
            group.task.interrupt();
        }
        apply(&mut group, self);
        self.groups.insert(name, group);
        self.deal(name);
    }

    /// Deals out what is due, and has the store store a new confirmed position.
    pub fn deal(&mut self, name: &'static str) {
        let group = self.groups.get_mut(name).expect("it has members");
        if let Some(position) = group.deal(&self.model) {
            let (_, filter) = self.durables.last_of(name).expect("it was created");
            let filter = filter.clone();
            self.durables.store(&self.server.store, name, &filter, position, false);
        }
    }

    pub fn any_subscriber(&mut self) -> Option<usize> {
        self.random.index(self.subscribers.len())
    }

    pub fn subscribe(&mut self) {
        if self.subscribers.len() == SUBSCRIBERS_MAX {
            return;
        }
        let (store, filter, last) =
            (self.server.store.clone(), ModelFilter::random(&mut self.random), self.model.last());
        let mut request = Request {
            start: last,
            on_lag: self.random.pick(&[OnLag::CatchUp, OnLag::CatchUp, OnLag::Skip, OnLag::Disconnect]),
            from_history: true,
            end: None,
            snapshot: Vec::new(),
            filter,
        };
        match self.random.below(5) {
            0 => {
                assert_eq!(store.committed(), last);
                request.from_history = self.random.one_in(2);
            }
            1 => {
                let seq = Seq(self.random.below(last.0 + 3));
                request.start = store.reader().seq_of(&seq.id().to_string()).expect("read").expect("an id").min(last);
                assert_eq!(request.start, seq.min(last));
            }
            2 => {
                // A subscriber counts back from the event that it knows as the last, whatever was stored since.
                let (count, known) =
                    (self.random.below(40) as usize, Seq(last.0 - self.random.below(last.0.min(20) + 1)));
                let earliest = self.model.stored_between(&request.filter, Seq::ZERO, known).rev().take(count).last();
                request.start = store.reader().before_last(&request.filter.real, count, known).expect("read");
                assert_eq!(request.start, earliest.map_or(known, |(seq, _)| seq.prev()));
            }
            3 => {
                let (time, any) = (self.model.time(&mut self.random), ModelFilter::default());
                request.start = store.reader().before_time(time).expect("read");
                // Any position between the same two stored events is as good.
                let next = self.model.stored_between(&any, request.start, last).next().map(|(seq, _)| seq);
                let later = self.model.stored(&any).find(|(_, event)| event.time > time).map(|(seq, _)| seq);
                assert!(next == later && request.start <= last);
            }
            _ => request.snapshot = self.latest(&request.filter, last),
        }
        if request.snapshot.is_empty() && self.random.one_in(3) {
            request.end = Some(Seq(self.random.below(last.0 + 1)));
        }
        self.connect(request);
    }

    pub fn connect(&mut self, request: Request) {
        self.subscribers.push(Subscriber::new(&self.server, request, self.config.max_subscriber_bytes));
    }

    pub fn change_filter(&mut self) {
        let Some(i) = self.any_subscriber() else { return };
        for _ in 0..=self.random.below(3) {
            let (filter, later) = (ModelFilter::random(&mut self.random), self.random.below(self.model.last().0 + 1));
            self.subscribers[i].change_filter(filter, later, &self.model);
        }
    }

    /// Takes a step of a subscriber's task, unless the task sleeps. Returns whether it did.
    pub fn step(&mut self, i: usize) -> bool {
        let subscriber = &mut self.subscribers[i];
        let is_awake = subscriber.is_awake();
        if is_awake {
            if self.random.one_in(16) {
                subscriber.interrupt();
            }
            match subscriber.step(&self.server.store, &self.model) {
                None => {}
                Some(Over::Served) => panic!("the stream ended before the server did"),
                Some(Over::Complete) => drop(self.subscribers.swap_remove(i)),
                Some(Over::TooSlow) => {
                    let request = self.subscribers.swap_remove(i).disconnect();
                    self.connect(request);
                }
            }
        }
        is_awake
    }

    /// Steps everything until nothing is left to do, and checks that everything was stored and delivered.
    pub fn rest(&mut self) {
        let mut rounds = 0;
        let mut is_busy = true;
        while is_busy {
            rounds += 1;
            assert!(rounds < ROUNDS_MAX, "the world never comes to rest");
            is_busy = self.blocked.is_some() && self.append();
            is_busy |= self.write() | self.server.parts.seal() | self.checkpoint() | self.fan_out();
            is_busy |= self.continue_filtered_deletion();
            (0..self.subscribers.len()).rev().for_each(|i| is_busy |= self.step(i));
            for name in GROUPS {
                let Some(group) = self.groups.get_mut(name) else { continue };
                is_busy |= group.step(&self.server.store) | group.confirm_all();
                self.deal(name);
            }
        }
        assert!(self.blocked.is_none() && self.model.unanswered.is_empty() && self.model.deletions.is_empty());
        assert_eq!(self.server.store.queue_len(), 0);
        self.subscribers.iter_mut().for_each(|subscriber| subscriber.must_have_everything(&self.model));
        self.groups.values().for_each(|group| group.must_have_everything(&self.model));
        if !self.model.disk_was_full {
            self.durables.must_be_stored(&self.server.store);
        }
        self.check_all();
        (0..3).for_each(|_| self.query());
    }
}
