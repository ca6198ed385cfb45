//! An amount of something that is there once for everybody, such as memory: given out in the order in which it is
//! asked for.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So much of it. Who needs more than there is gets all of it, and nobody gets nothing.
#[derive(Debug)]
pub struct Budget {
    free: Arc<Semaphore>,
    /// In units of so much.
    unit: usize,
    units: u32,
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Share {
    _permit: OwnedSemaphorePermit,
}

impl Budget {
    pub fn new(whole: usize) -> Self {
        Self::in_units(whole, 1)
    }

    pub fn of_bytes(whole: usize) -> Self {
        Self::in_units(whole, 1024)
    }

    fn in_units(whole: usize, unit: usize) -> Self {
        // As many as one call can ask a semaphore for.
        let units = u32::try_from(whole.div_ceil(unit)).unwrap_or(u32::MAX).max(1);
        Self { free: Arc::new(Semaphore::new(units as usize)), unit, units }
    }

    /// Waits until there is so much. Cancel-safe: who no longer waits loses the place in the line, and nothing else.
    pub async fn take(&self, amount: usize) -> Share {
        let permit = self.free.clone().acquire_many_owned(self.units(amount)).await;
        Share { _permit: permit.expect("it is never closed") }
    }

    /// So much, if it is there.
    pub fn try_take(&self, amount: usize) -> Option<Share> {
        let permit = self.free.clone().try_acquire_many_owned(self.units(amount));
        permit.ok().map(|_permit| Share { _permit })
    }

    /// How much is given out.
    pub fn taken(&self) -> usize {
        (self.units as usize - self.free.available_permits()) * self.unit
    }

    fn units(&self, amount: usize) -> u32 {
        u32::try_from(amount.div_ceil(self.unit)).unwrap_or(u32::MAX).clamp(1, self.units)
    }
}
