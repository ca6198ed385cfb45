//! The connections that only read, and the gate at which reads wait while a checkpoint needs the write-ahead log to
//! itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use rusqlite::{Connection, Transaction};

use crate::store::error::Error;
use crate::store::integrity::Integrity;
use crate::store::schema;
use crate::sync::Mutex;

/// The connections that only read. A read opens one when all are in use; up to [`IDLE_MAX`] stay open for later reads.
#[derive(Debug)]
pub struct Pool {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    /// Every read locks it shared. A checkpoint that needs the write-ahead log to itself locks it exclusively, and
    /// reads wait.
    gate: RwLock<()>,
    integrity: Arc<Mutex<Integrity>>,
}

/// Idle connections that stay open. Reads run on the threads for blocking work. If more than 8 run at one time, opening
/// a connection for each of the others (about 100 µs) costs less than more idle connections.
const IDLE_MAX: usize = 8;

/// How long a read waits at the gate. A checkpoint usually takes about 10 ms. If one takes longer than 1 s on a slow
/// disk, reads go on beside it, and the write-ahead log grows.
const GATE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a checkpoint waits for the reads under way. 100 ms: several times as long as one transaction of a read
/// takes.
const READS_END_WITHIN: Duration = Duration::from_millis(100);

impl Pool {
    pub fn new(path: PathBuf, integrity: Arc<Mutex<Integrity>>) -> Self {
        Self { path, idle: Mutex::new(Vec::new()), gate: RwLock::new(()), integrity }
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the gate: new reads wait until the guard is dropped. Returns once the reads under way have ended, or
    /// `None` if one of them takes longer than [`READS_END_WITHIN`]. Never call it within a read: it would wait for
    /// itself.
    pub fn close_gate(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        self.gate.try_write_for(READS_END_WITHIN)
    }

    /// Passes the gate, which does not close until the guard is dropped. `None` if it stayed closed for
    /// [`GATE_PATIENCE`]: then the read goes on beside the checkpoint. Never call it within a read.
    pub fn pass_gate(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.gate.try_read_for(GATE_PATIENCE)
    }

    /// Whether a checkpoint has closed the gate, or waits for the reads under way to end.
    pub fn is_gate_closing(&self) -> bool {
        // The lock lets no reader in while a writer waits for it.
        self.gate.try_read().is_none()
    }

    /// Reads in one transaction, which must be short. Notes damage that it meets. Never call it within another.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn with<T>(&self, read: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T, Error> {
        let _passed = self.pass_gate();
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => schema::open_reader(&self.path)?,
        };
        let result = connection.unchecked_transaction().and_then(|transaction| read(&transaction));
        if let Err(error) = &result {
            self.integrity.lock().note_error(error);
        }
        let mut idle = self.idle.lock();
        // A connection that failed may be broken; the next read gets a new one.
        if result.is_ok() && idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        Ok(result?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_under_way_sees_that_a_checkpoint_waits_for_it() {
        let pool = Pool::new(PathBuf::new(), Arc::default());
        let passed = pool.pass_gate();
        assert!(passed.is_some() && !pool.is_gate_closing());
        std::thread::scope(|scope| {
            scope.spawn(|| drop(pool.gate.write()));
            while !pool.is_gate_closing() {
                std::thread::yield_now();
            }
            drop(passed);
        });
        assert!(!pool.is_gate_closing());
    }
}
