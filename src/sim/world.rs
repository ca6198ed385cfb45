//! The server, the model beside it, and all clients.

use std::collections::BTreeMap;
use std::pin::Pin;

use tempfile::TempDir;

use super::durable::Durables;
use super::filter::ModelFilter;
use super::group::Group;
use super::model::Model;
use super::random::Random;
use super::server::Server;
use super::subscriber::Subscriber;
use super::unanswered::Unanswered;
use crate::config::{Config, Durability};
use crate::event::{Seq, Timestamp};

pub struct World {
    pub random: Random,
    pub folder: TempDir,
    /// How many crashes there have been: each goes on with a copy of the files.
    pub crashes: usize,
    /// Pages of the write-ahead log that are synced: a power cut may tear those behind them.
    pub synced_pages: usize,
    pub config: Config,
    pub server: Server,
    /// A producer that waits for space in the queue, and its batch.
    pub blocked: Option<(Waiting, Unanswered)>,
    pub model: Model,
    pub subscribers: Vec<Subscriber>,
    /// A deletion by filter, which goes on slice by slice.
    pub filtered_deletion: Option<FilteredDeletion>,
    pub durables: Durables,
    /// The groups that have members.
    pub groups: BTreeMap<&'static str, Group>,
}

/// A folder for the files of one world, in memory if that is possible.
pub fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// An append that waits for space in the queue.
pub type Waiting = Pin<Box<dyn Future<Output = ()>>>;

/// What is left of a deletion by filter.
pub struct FilteredDeletion {
    pub filter: ModelFilter,
    pub before: Option<Timestamp>,
    pub after: Seq,
    pub last: Seq,
}

impl World {
    pub fn new(mut random: Random) -> Self {
        let folder = folder();
        let config = Config {
            database_path: folder.path().join("events.db"),
            durability: random.pick(&[Durability::Full, Durability::Full, Durability::Normal, Durability::Off]),
            free_space_min_bytes: 0,
            max_queue_size: 3 + random.below(40) as usize,
            max_queue_bytes: (4 + random.below(40) as usize) * 1024,
            max_subscriber_bytes: 300 + random.below(2_500) as usize,
            ..Config::default()
        };
        Self {
            random,
            folder,
            crashes: 0,
            synced_pages: 0,
            server: Server::open(&config),
            config,
            blocked: None,
            model: Model::default(),
            subscribers: Vec::new(),
            filtered_deletion: None,
            durables: Durables::default(),
            groups: BTreeMap::new(),
        }
    }

    pub fn then<T>(mut self, act: impl FnOnce(&mut Self) -> T) -> Self {
        act(&mut self);
        self
    }
}
