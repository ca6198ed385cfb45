//! What the writer is asked to do.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use crate::event::{Seq, Timestamp};
use crate::record::{AckLevel, Failure, Outcome};
use crate::store::queue::Reservation;
use crate::store::receipt::Receipt;
use crate::store::remains::Found;
use crate::store::segments::IndexRow;
use crate::wire::batch::Batch;

/// Answers a client, or the part of the server, that waits for the writer.
pub type Reply<T> = oneshot::Sender<Result<T, Failure>>;

pub enum Command {
    Append(Append),
    /// Delete the events before a time, or all.
    DeleteOldest {
        before: Option<Timestamp>,
        reply: Reply<u64>,
    },
    /// Delete these events, ascending.
    DeleteChosen {
        chosen: Vec<Seq>,
        reply: Reply<u64>,
    },
    /// Durable subscriptions are to be stored: at once if a client waits for the reply, else with others within a
    /// moment.
    SubscriptionsChanged {
        reply: Option<Reply<()>>,
    },
    /// Say whether an event would be stored now.
    Probe {
        reservation: Reservation,
        reply: Reply<()>,
    },
    /// Chosen events were deleted: answer once their bytes are gone from the database and the write-ahead log, or cannot
    /// go because another program reads.
    Erase {
        reply: Reply<()>,
    },
    /// The posting lists of a full segment, ready to be stored.
    Encoded {
        segment: u64,
        rows: Vec<IndexRow>,
    },
    /// Where the holes of a segment of a file from before format 4 are.
    HolesFound {
        segment: u64,
        offsets: Vec<u16>,
    },
    /// The checkpointer has moved into the database what was in the write-ahead log when it began; or a sync failed.
    Checkpointed {
        result: rusqlite::Result<()>,
        /// Dropped when the writer has done its part, if reads wait at the gate until then.
        gate: Option<Sender<()>>,
    },
    /// The sweeper has searched a part of the database for what deleted rows left.
    Searched {
        /// How it synced what was overwritten before.
        synced: rusqlite::Result<()>,
        found: std::io::Result<Found>,
    },
    /// Nothing will follow: finish and end.
    Close,
}

/// Events to be stored.
pub struct Append {
    pub batch: Batch,
    pub receipt: Receipt,
    /// What the batch takes of the queue, returned once the writer has answered.
    pub reservation: Reservation,
    /// When it was handed in.
    pub received: Instant,
    /// When it was ordered: its events get this time, or later ones.
    pub time: Timestamp,
    /// The outcome of each event, if some have idempotency keys and not all are new.
    pub outcomes: Option<Arc<[Outcome]>>,
}

impl Append {
    pub fn new(batch: Batch, receipt: Receipt, reservation: Reservation) -> Self {
        let (received, time) = (Instant::now(), Timestamp::default());
        Self { batch, receipt, reservation, received, time, outcomes: None }
    }

    /// How many new events its producer hears of now, because it waits for the commit.
    pub fn awaited(&self) -> usize {
        if self.receipt.level() == AckLevel::Queued { 0 } else { self.batch.len() }
    }

    pub fn has_keys(&self) -> bool {
        !self.batch.keyed().is_empty()
    }
}
