//! Work of the processor that requests bring: off the async threads, and so much of it at a time.

use tokio::sync::Semaphore;

use crate::server::error::ApiError;

/// Does `work` when it is its turn. A client that goes away drops the wait for it, but what has begun
/// keeps its turn to the end: it keeps its processor, too. `what` is for errors.
pub async fn in_turn<T: Send + 'static>(
    turns: &'static Semaphore,
    what: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let turn = turns
        .acquire()
        .await
        .map_err(|error| ApiError::internal(format!("{what} did not start: {error}")))?;
    let working = tokio::task::spawn_blocking(move || {
        let _until_the_end = turn;
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
    async fn work_that_nobody_waits_for_keeps_its_turn() {
        static TURNS: Semaphore = Semaphore::const_new(1);
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (end, may_end) = mpsc::channel::<()>();
        let client = tokio::spawn(in_turn(&TURNS, "it", move || {
            begun.send(()).expect("awaited");
            // An error is the sender's end, which is an end, too.
            let _ = may_end.recv();
        }));
        has_begun.await.expect("it begins");
        client.abort();
        assert!(client.await.is_err(), "the client is gone");
        assert_eq!(TURNS.available_permits(), 0, "the work is not");
        drop(end);
        let next = in_turn(&TURNS, "the next", || 7);
        let next = tokio::time::timeout(Duration::from_secs(20), next).await;
        assert_eq!(next.expect("its turn comes"), Ok(7));
    }
}
