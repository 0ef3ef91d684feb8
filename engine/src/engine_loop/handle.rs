//! The client's side of the engine thread: submit, cancel, shut down, and one request's events.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::EngineLoopConfig;
use super::sleep::{SleepError, SuspendRequest};
use crate::executor::{ExecutorInfo, StopFlag};
use crate::metrics::Metrics;
use crate::request::{Failure, Observer, Request, RequestId, TokenEvent};
use crate::scheduler::{AddError, RequestView};

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    #[error("the engine holds {limit} requests, its limit; try again later")]
    QueueFull { limit: usize },
    #[error(transparent)]
    Rejected(#[from] AddError),
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the model is suspended")]
    Suspended,
    #[error("the engine has stopped after an internal error")]
    Stopped,
}

/// Why the cached KV was not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FlushError {
    #[error("{n_running} requests run and {n_waiting} wait")]
    Busy { n_running: usize, n_waiting: usize },
    #[error("the engine has stopped")]
    Stopped,
}

/// Commands from handles and streams to the engine thread.
pub(super) enum EngineCommand {
    Submit {
        request: Request,
        events: mpsc::UnboundedSender<TokenEvent>,
        /// When the client's request was received.
        received: Instant,
        submitted: Instant,
        observer: Option<Arc<dyn Observer>>,
    },
    Cancel(RequestId),
    /// Drops the cached KV.
    Flush {
        done: oneshot::Sender<Result<(), FlushError>>,
    },
    /// Describes the requests, at most this many.
    Describe {
        limit: usize,
        done: oneshot::Sender<Vec<RequestView>>,
    },
    Sleep(SuspendRequest),
    Wake {
        done: oneshot::Sender<Result<(), SleepError>>,
    },
    Shutdown {
        deadline: Instant,
    },
}

/// Whether new requests are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Acceptance {
    Open,
    Suspended,
    Closed,
}

#[derive(Debug)]
pub(super) struct AtomicAcceptance(AtomicU8);

impl AtomicAcceptance {
    pub fn new(value: Acceptance) -> Self {
        Self(AtomicU8::new(value as u8))
    }

    pub fn get(&self) -> Acceptance {
        match self.0.load(Ordering::Acquire) {
            0 => Acceptance::Open,
            1 => Acceptance::Suspended,
            _ => Acceptance::Closed,
        }
    }

    pub fn close(&self) {
        self.0.store(Acceptance::Closed as u8, Ordering::Release);
    }

    /// Changes the state if it still is `from`.
    pub fn change(&self, from: Acceptance, to: Acceptance) -> bool {
        self.0
            .compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }
}

/// State shared by handles and the engine thread.
#[derive(Debug)]
pub(super) struct Shared {
    pub is_healthy: AtomicBool,
    pub acceptance: AtomicAcceptance,
    /// Number of requests that were submitted and have not ended.
    pub n_in_flight: AtomicUsize,
    pub next_id: AtomicU64,
    /// Raised when requests have no time left: the step in progress is aborted.
    pub stop: StopFlag,
    pub max_in_flight: usize,
    pub config: EngineLoopConfig,
    pub info: ExecutorInfo,
    pub metrics: Arc<Metrics>,
}

impl Shared {
    /// Why a thread that has ended takes no requests: it was shut down, or it died.
    fn gone(&self) -> SubmitError {
        match self.acceptance.get() {
            Acceptance::Closed => SubmitError::ShuttingDown,
            Acceptance::Open | Acceptance::Suspended => SubmitError::Stopped,
        }
    }
}

/// Access to the engine thread; cheap to clone. When the last handle and the last stream are
/// dropped, the thread ends.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    pub(super) commands: Sender<EngineCommand>,
    pub(super) shared: Arc<Shared>,
    pub(super) stopped: watch::Receiver<()>,
}

impl EngineHandle {
    /// An id for the next request; never the same twice.
    pub fn next_request_id(&self) -> RequestId {
        RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Queues a request that has just come. `request.id` should come from
    /// [`Self::next_request_id`].
    ///
    /// # Errors
    ///
    /// If too many requests wait, or the engine is stopping, suspended or has died.
    pub fn submit(&self, request: Request) -> Result<RequestStream, SubmitError> {
        self.submit_received(request, Instant::now(), None)
    }

    /// As [`Self::submit`], for a request that was received at `received`, from when its time
    /// limits count. `observer` is told of its end, also if its stream was dropped.
    pub(crate) fn submit_received(
        &self,
        request: Request,
        received: Instant,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<RequestStream, SubmitError> {
        if self.has_stopped() {
            return Err(self.shared.gone());
        }
        match self.shared.acceptance.get() {
            Acceptance::Open => {}
            Acceptance::Suspended => return Err(SubmitError::Suspended),
            Acceptance::Closed => return Err(SubmitError::ShuttingDown),
        }
        self.shared.config.scheduler.check(&request)?;
        let limit = self.shared.max_in_flight;
        let one_more = |n: usize| (n < limit).then_some(n + 1);
        let n_in_flight = &self.shared.n_in_flight;
        if n_in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .is_err()
        {
            self.shared.metrics.rejections.add(1);
            return Err(SubmitError::QueueFull { limit });
        }
        let id = request.id;
        let (events, inbox) = mpsc::unbounded_channel();
        let submitted = Instant::now();
        if self
            .commands
            .send(EngineCommand::Submit {
                request,
                events,
                received,
                submitted,
                observer,
            })
            .is_err()
        {
            n_in_flight.fetch_sub(1, Ordering::AcqRel);
            return Err(self.shared.gone());
        }
        Ok(RequestStream {
            id,
            events: inbox,
            commands: self.commands.clone(),
            shared: Arc::clone(&self.shared),
            has_ended: false,
        })
    }

    /// Cancels a request if it has not ended; its stream gets `Finished` with reason `Cancelled`.
    pub fn cancel(&self, id: RequestId) {
        // A stopped engine has no requests left to cancel.
        let _ = self.commands.send(EngineCommand::Cancel(id));
    }

    /// Drops all cached KV, on the device and in the host tier. Refuses while there are requests; a
    /// suspended model has none cached.
    ///
    /// # Errors
    ///
    /// [`FlushError::Busy`] while requests run or wait, [`FlushError::Stopped`] if the engine
    /// has stopped.
    pub async fn flush_cache(&self) -> Result<(), FlushError> {
        let (done, outcome) = oneshot::channel();
        if self.commands.send(EngineCommand::Flush { done }).is_err() {
            return Err(FlushError::Stopped);
        }
        outcome.await.unwrap_or(Err(FlushError::Stopped))
    }

    /// The requests one by one, between two steps; `None` if the engine has stopped.
    pub async fn requests(&self, limit: usize) -> Option<Vec<RequestView>> {
        let (done, views) = oneshot::channel();
        let command = EngineCommand::Describe { limit, done };
        self.commands.send(command).ok()?;
        views.await.ok()
    }

    /// Whether both are handles of one engine.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Refuses new requests, lets running ones finish for at most `drain`, then aborts the step in
    /// progress, fails the rest, and returns when the engine thread has ended.
    pub async fn shutdown(&self, drain: Duration) {
        self.shared.acceptance.close();
        let deadline = deadline_in(drain);
        // An error means that the thread has ended already; so does one from `changed`, and
        // nothing is ever sent on that channel.
        let _ = self.commands.send(EngineCommand::Shutdown { deadline });
        let mut stopped = self.stopped.clone();
        if tokio::time::timeout(drain, stopped.changed())
            .await
            .is_err()
        {
            self.shared.stop.raise();
            let _ = stopped.changed().await;
        }
    }

    /// Refuses new requests, lets running ones finish for at most `drain`, fails the rest, and
    /// returns when the executor has freed its memory. KV is lost; weights are restored by
    /// [`Self::wake`]. On failure the model continues, without its requests.
    ///
    /// # Errors
    ///
    /// If the model is not active, the engine has stopped, or the executor cannot free its
    /// memory.
    pub async fn sleep(&self, drain: Duration) -> Result<(), SleepError> {
        let acceptance = &self.shared.acceptance;
        if !acceptance.change(Acceptance::Open, Acceptance::Suspended) {
            return Err(SleepError("the model is not active".to_owned()));
        }
        let (done, outcome) = oneshot::channel();
        let request = SuspendRequest {
            deadline: deadline_in(drain),
            done,
        };
        if self.commands.send(EngineCommand::Sleep(request)).is_err() {
            return Err(SleepError::stopped());
        }
        outcome.await.unwrap_or_else(|_| Err(SleepError::stopped()))
    }

    /// Restores the executor's memory; requests are accepted again. On failure the model stays
    /// suspended.
    ///
    /// # Errors
    ///
    /// If the model is not suspended, the engine has stopped, or the executor cannot get its
    /// memory back.
    pub async fn wake(&self) -> Result<(), SleepError> {
        let (done, outcome) = oneshot::channel();
        if self.commands.send(EngineCommand::Wake { done }).is_err() {
            return Err(SleepError::stopped());
        }
        outcome.await.unwrap_or_else(|_| Err(SleepError::stopped()))
    }

    /// False after repeated failures or when the engine thread has ended.
    pub fn is_healthy(&self) -> bool {
        self.shared.is_healthy.load(Ordering::Acquire) && !self.has_stopped()
    }

    /// Requests submitted and not ended.
    pub fn n_in_flight(&self) -> usize {
        self.shared.n_in_flight.load(Ordering::Acquire)
    }

    pub fn config(&self) -> &EngineLoopConfig {
        &self.shared.config
    }

    pub fn executor_info(&self) -> &ExecutorInfo {
        &self.shared.info
    }

    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Whether the engine thread has ended without a call of [`Self::shutdown`].
    pub fn has_died(&self) -> bool {
        self.has_stopped() && self.shared.acceptance.get() != Acceptance::Closed
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.stopped.has_changed().is_err()
    }
}

fn deadline_in(drain: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(drain).unwrap_or(now)
}

/// One request's events, the last of which is `Finished` or `Failed`. Dropping it before that
/// cancels the request.
#[derive(Debug)]
pub struct RequestStream {
    id: RequestId,
    events: mpsc::UnboundedReceiver<TokenEvent>,
    commands: Sender<EngineCommand>,
    shared: Arc<Shared>,
    has_ended: bool,
}

impl RequestStream {
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        std::future::poll_fn(|context| self.poll_event(context)).await
    }

    /// The next event, for callers without a runtime; `None` after the last.
    pub fn blocking_next(&mut self) -> Option<TokenEvent> {
        if self.has_ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.received(event))
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.events.poll_recv(context));
        Poll::Ready(Some(self.received(event)))
    }

    fn received(&mut self, event: Option<TokenEvent>) -> TokenEvent {
        let event = event.unwrap_or_else(|| {
            TokenEvent::Failed(match self.shared.gone() {
                SubmitError::ShuttingDown => Failure::ShuttingDown,
                _ => Failure::Stopped,
            })
        });
        self.has_ended = is_last(&event);
        event
    }
}

impl tokio_stream::Stream for RequestStream {
    type Item = TokenEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        self.poll_event(context)
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if !self.has_ended {
            // A stopped engine has no requests left to cancel.
            let _ = self.commands.send(EngineCommand::Cancel(self.id));
        }
    }
}

pub(super) fn is_last(event: &TokenEvent) -> bool {
    matches!(event, TokenEvent::Finished { .. } | TokenEvent::Failed(_))
}
