//! The states of durable subscriptions that the store was asked to store. It may write them later.

use std::collections::BTreeMap;
use std::task::Poll;

use super::filter::ModelFilter;
use super::pending::{Pending, poll};
use crate::event::Seq;
use crate::record::Failure;
use crate::store::{Store, StoredSubscription};

/// All states that were handed to the store since it was opened, by name.
#[derive(Default)]
pub struct Durables {
    by_name: BTreeMap<&'static str, History>,
    /// How many states were handed over: makes each a different one.
    count: u64,
}

#[derive(Default)]
struct History {
    /// The states in the order in which they were handed over, beginning with what was there. `None`: the name was
    /// deleted.
    states: Vec<Option<(StoredSubscription, ModelFilter)>>,
    /// The last state that the store has answered as stored.
    settled: usize,
    replies: Vec<(usize, Pending<()>)>,
}

impl Durables {
    pub fn store(&mut self, store: &Store, name: &'static str, filter: &ModelFilter, position: Seq, now: bool) {
        self.count += 1;
        let (filters, last_seen) = (format!("{:?}", filter.real), self.count.to_string());
        let state = StoredSubscription { name: name.into(), filters: filters.into(), position, last_seen };
        let history = self.hand_over(name, Some((state.clone(), filter.clone())));
        match now {
            false => store.save_soon(state),
            true => {
                let store = store.clone();
                history.wait(Box::pin(async move { store.save(state).await }));
            }
        }
    }

    pub fn remove(&mut self, store: &Store, name: &'static str) {
        let store = store.clone();
        self.hand_over(name, None).wait(Box::pin(async move { store.remove(name.into()).await }));
    }

    fn hand_over(&mut self, name: &'static str, state: Option<(StoredSubscription, ModelFilter)>) -> &mut History {
        let history = self.by_name.entry(name).or_insert_with(|| History { states: vec![None], ..History::default() });
        history.states.push(state);
        history
    }

    /// Takes in the store's answers, and checks that the states that it answers as stored can be read.
    pub fn settle(&mut self, store: &Store, is_excused: impl Fn(Failure) -> bool) {
        let mut has_news = false;
        for history in self.by_name.values_mut() {
            let settled = &mut history.settled;
            history.replies.retain_mut(|(index, reply)| match poll(reply) {
                Poll::Pending => true,
                Poll::Ready(Ok(())) => {
                    (*settled, has_news) = ((*settled).max(*index), true);
                    false
                }
                Poll::Ready(Err(failure)) => {
                    assert!(is_excused(failure), "{failure}");
                    false
                }
            });
        }
        if has_news {
            self.find(store);
        }
    }

    /// The index of the stored state of each name: a state that was handed over, and none older than one answered as
    /// stored.
    fn find(&self, store: &Store) -> BTreeMap<&'static str, usize> {
        let stored = store.reader().durable_subscriptions().expect("read");
        assert!(
            stored.iter().all(|stored| self.by_name.contains_key(&*stored.name)),
            "a name is stored that was never handed over"
        );
        let find = |(name, history): (&&'static str, &History)| {
            let stored = stored.iter().find(|stored| *stored.name == **name);
            let is_it =
                |state: &Option<(StoredSubscription, ModelFilter)>| state.as_ref().map(|(state, _)| state) == stored;
            let index = history.states.iter().rposition(is_it).expect("a state that was handed over");
            assert!(index >= history.settled, "{name} is older than what was stored");
            (*name, index)
        };
        self.by_name.iter().map(find).collect()
    }

    /// Checks that the last state of each name is stored.
    pub fn must_be_stored(&self, store: &Store) {
        for (name, index) in self.find(store) {
            assert_eq!(index + 1, self.by_name[name].states.len(), "a later state of {name} was handed over");
        }
    }

    /// After a power cut: states answered as stored may be gone, unless they were synced.
    pub fn lost_their_end(&mut self, is_synced: bool) {
        if !is_synced {
            self.by_name.values_mut().for_each(|history| history.settled = 0);
        }
    }

    /// After a start: takes what is stored as the state of each name.
    pub fn reopened(&mut self, store: &Store) {
        self.settle(store, |failure| matches!(failure, Failure::Unavailable | Failure::StorageFull));
        assert!(self.by_name.values().all(|history| history.replies.is_empty()), "left without an answer");
        for (name, index) in self.find(store) {
            let history = self.by_name.get_mut(name).expect("just found");
            *history = History { states: vec![history.states.swap_remove(index)], ..History::default() };
        }
    }

    /// The last state of a name.
    pub fn last_of(&self, name: &str) -> Option<(Seq, &ModelFilter)> {
        let (state, filter) = self.by_name.get(name)?.states.last()?.as_ref()?;
        Some((state.position, filter))
    }
}

impl History {
    fn wait(&mut self, mut reply: Pending<()>) {
        assert!(poll(&mut reply).is_pending());
        self.replies.push((self.states.len() - 1, reply));
    }
}
