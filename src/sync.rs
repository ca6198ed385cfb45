//! Locks, atomics and thread-local variables. The tests in `model` replace them with those of a model checker, which decides
//! after each step which thread runs next.

#[cfg(not(all(test, feature = "shuttle")))]
pub(crate) use {
    parking_lot::{Mutex, RwLock},
    std::{sync::atomic, thread_local},
};
#[cfg(all(test, feature = "shuttle"))]
pub(crate) use {
    shuttle::{sync::atomic, thread_local},
    shuttle_parking_lot::{Mutex, RwLock},
};
