//! Runs CPU-bound request work on the blocking pool with bounded concurrency.

use tokio::sync::Semaphore;

use crate::server::error::ApiError;

/// Runs `work` when a permit is free. A disconnecting client only drops the wait: work that has
/// started keeps its permit until it ends, since it keeps its core too. `what` names the work in
/// errors.
pub async fn run_blocking_limited<T: Send + 'static>(
    permits: &'static Semaphore,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let permit = permits
        .acquire()
        .await
        .map_err(|error| ApiError::internal(format!("{what} did not start: {error}")))?;
    let working = tokio::task::spawn_blocking(move || {
        let _until_the_end = permit;
        work()
    });
    working
        .await
        .map_err(|error| ApiError::internal(format!("{what} did not finish: {error}")))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn abandoned_work_keeps_its_permit() {
        static TURNS: Semaphore = Semaphore::const_new(1);
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let client = tokio::spawn(run_blocking_limited(&TURNS, "it", move || {
            begun.send(()).expect("awaited");
            // An error means that the sender was dropped, which ends the work too.
            let _ = may_end.recv();
        }));
        has_begun.await.expect("it begins");
        client.abort();
        assert!(client.await.is_err(), "the client is gone");
        assert_eq!(TURNS.available_permits(), 0, "the work is not");
        drop(end);
        let next = run_blocking_limited(&TURNS, "the next", || 7);
        let next = tokio::time::timeout(Duration::from_secs(20), next).await;
        assert_eq!(next.expect("its turn comes"), Ok(7));
    }
}
