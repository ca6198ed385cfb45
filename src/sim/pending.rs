//! Polling the store's promises, without a runtime.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::record::Failure;

/// A request to the store whose answer may still come.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T, Failure>>>>;

/// Looks whether the answer has come. The first call sends the request.
pub fn poll<T>(pending: &mut Pending<T>) -> Poll<Result<T, Failure>> {
    pending.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}
