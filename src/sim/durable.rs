//! What is kept under names: positions are told to the store, which may write them later.

use std::collections::BTreeMap;
use std::task::Poll;

use super::model::{Pending, poll};
use super::wish::Wish;
use crate::event::Seq;
use crate::record::Failure;
use crate::store::{Kept, Store};

/// Everything that the store was told of since it was opened, by name.
#[derive(Default)]
pub struct Durables {
    by_name: BTreeMap<&'static str, Told>,
    /// Makes each word of them another one.
    words: u64,
}

#[derive(Default)]
struct Told {
    /// The states in the order in which they were told; first what was there. Nothing: it was forgotten.
    states: Vec<Option<(Kept, Wish)>>,
    /// The last of which the store said that it is stored.
    settled: usize,
    replies: Vec<(usize, Pending<()>)>,
}

impl Durables {
    pub fn keep(&mut self, store: &Store, name: &'static str, wish: &Wish, position: Seq, now: bool) {
        self.words += 1;
        let (filters, last_seen) = (format!("{:?}", wish.filter), self.words.to_string());
        let kept = Kept { name: name.into(), filters: filters.into(), position, last_seen };
        let told = self.tell(name, Some((kept.clone(), wish.clone())));
        match now {
            false => store.keep(kept),
            true => {
                let store = store.clone();
                told.wait(Box::pin(async move { store.keep_now(kept).await }));
            }
        }
    }

    pub fn forget(&mut self, store: &Store, name: &'static str) {
        let store = store.clone();
        self.tell(name, None).wait(Box::pin(async move { store.forget(name.into()).await }));
    }

    fn tell(&mut self, name: &'static str, state: Option<(Kept, Wish)>) -> &mut Told {
        let told = self.by_name.entry(name).or_insert_with(|| Told { states: vec![None], ..Told::default() });
        told.states.push(state);
        told
    }

    /// Takes note of the store's replies; what it says is stored can be read.
    pub fn settle(&mut self, store: &Store, is_excused: impl Fn(Failure) -> bool) {
        let mut has_news = false;
        for told in self.by_name.values_mut() {
            let settled = &mut told.settled;
            told.replies.retain_mut(|(index, reply)| match poll(reply) {
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

    /// Which state of each is stored: one that was told, and none older than what the store has answered for.
    fn find(&self, store: &Store) -> BTreeMap<&'static str, usize> {
        let stored = store.reader().durable_subscriptions().expect("read");
        assert!(stored.iter().all(|kept| self.by_name.contains_key(&*kept.name)), "kept of itself");
        let find = |(name, told): (&&'static str, &Told)| {
            let stored = stored.iter().find(|kept| *kept.name == **name);
            let is_it = |state: &Option<(Kept, Wish)>| state.as_ref().map(|(kept, _)| kept) == stored;
            let place = told.states.iter().rposition(is_it).expect("a state that was told");
            assert!(place >= told.settled, "{name} is older than what was stored");
            (*name, place)
        };
        self.by_name.iter().map(find).collect()
    }

    /// The last state of each is stored.
    pub fn must_be_stored(&self, store: &Store) {
        for (name, place) in self.find(store) {
            assert_eq!(place + 1, self.by_name[name].states.len(), "{name} was told something else later");
        }
    }

    /// The power was cut: what the store said is stored may be gone, unless it is synced.
    pub fn lost_their_end(&mut self, is_synced: bool) {
        if !is_synced {
            self.by_name.values_mut().for_each(|told| told.settled = 0);
        }
    }

    /// The server is gone, and another one has read the files.
    pub fn reopened(&mut self, store: &Store) {
        self.settle(store, |failure| matches!(failure, Failure::Unavailable | Failure::StorageFull));
        assert!(self.by_name.values().all(|told| told.replies.is_empty()), "left without an answer");
        for (name, place) in self.find(store) {
            let told = self.by_name.get_mut(name).expect("just found");
            *told = Told { states: vec![told.states.swap_remove(place)], ..Told::default() };
        }
    }

    /// What the last word of one was.
    pub fn last_of(&self, name: &str) -> Option<(Seq, &Wish)> {
        let (kept, wish) = self.by_name.get(name)?.states.last()?.as_ref()?;
        Some((kept.position, wish))
    }
}

impl Told {
    fn wait(&mut self, mut reply: Pending<()>) {
        assert!(poll(&mut reply).is_pending());
        self.replies.push((self.states.len() - 1, reply));
    }
}
