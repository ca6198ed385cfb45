//! Deletions, which are written down in the audit.

use std::future::Future;

use tokio::sync::oneshot;

use crate::auth::Action;
use crate::pipeline::Pipeline;
use crate::record::Failure;

/// Carries out a deletion and writes down what became of it, also if its client leaves meanwhile.
pub(super) async fn audited<T: Send + 'static>(
    pipeline: &Pipeline,
    action: Action,
    delete: impl Future<Output = Result<T, Failure>> + Send + 'static,
    count: impl FnOnce(&T) -> u64 + Send + 'static,
) -> Result<T, Failure> {
    let (answer, deleted) = oneshot::channel();
    pipeline.go_on(async move {
        let deleted = delete.await;
        match &deleted {
            Ok(done) => action.done(count(done)),
            Err(failure) => action.failed(failure),
        }
        let _ = answer.send(deleted);
    });
    deleted.await.unwrap_or(Err(Failure::Unavailable))
}
