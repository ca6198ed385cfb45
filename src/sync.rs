//! What threads share state with: locks and atomics, and what each thread has of its own. The tests in `model` have
//! others in their place, which let a model checker decide after each step which thread goes on.

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
