//! A request that may be answered, as handlers get it.

use std::sync::Arc;

use hyper::HeaderMap;
use hyper::http::request::Parts;

use super::half_close::{HalfClose, HalfCloseGuard};
use super::large_page::Deadlines;
use super::parameters::Parameters;
use super::route::Route;
use crate::auth::Caller;
use crate::pipeline::Pipeline;

/// A request that has shown its key and has a route.
pub(super) struct Request<'c> {
    pub(super) pipeline: &'c Arc<Pipeline>,
    pub(super) parts: &'c Parts,
    pub(super) route: &'static Route,
    /// The value of the variable in its path, decoded; empty where the path has none.
    pub(super) variable: String,
    pub(super) caller: Caller,
    pub(super) half_close: &'c HalfClose,
    /// Ends large answers that the client takes too slowly.
    pub(super) deadlines: &'c Deadlines,
}

impl Request<'_> {
    pub(super) fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    pub(super) fn parameters(&self) -> Parameters<'_> {
        Parameters::of(&self.parts.uri)
    }

    /// To be held while the answer is read from storage.
    pub(super) fn guard_half_close(&self) -> HalfCloseGuard {
        self.half_close.guard()
    }
}
