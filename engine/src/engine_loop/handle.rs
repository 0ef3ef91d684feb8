//! The client's side of the engine thread: submit, cancel, shut down, and one request's events.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::EngineLoopConfig;
use crate::executor::ExecutorInfo;
use crate::metrics::Metrics;
use crate::request::{Failure, Request, RequestId, TokenEvent};
use crate::scheduler::AddError;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the engine holds {limit} requests, its limit; try again later")]
    QueueFull { limit: usize },
    #[error(transparent)]
    Rejected(#[from] AddError),
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("the engine has stopped after an internal error")]
    Stopped,
}

/// What handles and streams tell the engine thread.
pub(super) enum Command {
    Submit {
        request: Request,
        events: mpsc::UnboundedSender<TokenEvent>,
        submitted: Instant,
    },
    Cancel(RequestId),
    Shutdown {
        deadline: Instant,
    },
}

/// What handles and engine thread both see.
#[derive(Debug)]
pub(super) struct Shared {
    pub is_healthy: AtomicBool,
    pub is_accepting: AtomicBool,
    /// Submitted and not ended.
    pub n_in_flight: AtomicUsize,
    pub next_id: AtomicU64,
    pub max_in_flight: usize,
    pub config: EngineLoopConfig,
    pub info: ExecutorInfo,
    pub metrics: Arc<Metrics>,
}

/// The way to the engine thread; cheap to clone. When the last handle and the last stream are
/// gone, the thread ends.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    pub(super) commands: Sender<Command>,
    pub(super) shared: Arc<Shared>,
    pub(super) stopped: watch::Receiver<()>,
}

impl EngineHandle {
    /// A name for the next request; never the same twice.
    pub fn next_request_id(&self) -> RequestId {
        RequestId(self.shared.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Queues a request. `request.id` should come from [`Self::next_request_id`].
    pub fn submit(&self, request: Request) -> Result<RequestStream, SubmitError> {
        if self.has_stopped() {
            return Err(SubmitError::Stopped);
        }
        if !self.shared.is_accepting.load(Ordering::Acquire) {
            return Err(SubmitError::ShuttingDown);
        }
        self.shared.config.scheduler.check(&request)?;
        let limit = self.shared.max_in_flight;
        let one_more = |n: usize| (n < limit).then_some(n + 1);
        let n_in_flight = &self.shared.n_in_flight;
        if n_in_flight
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .is_err()
        {
            return Err(SubmitError::QueueFull { limit });
        }
        let id = request.id;
        let (events, inbox) = mpsc::unbounded_channel();
        let submitted = Instant::now();
        if self
            .commands
            .send(Command::Submit {
                request,
                events,
                submitted,
            })
            .is_err()
        {
            n_in_flight.fetch_sub(1, Ordering::AcqRel);
            return Err(SubmitError::Stopped);
        }
        Ok(RequestStream {
            id,
            events: inbox,
            commands: self.commands.clone(),
            has_ended: false,
        })
    }

    /// Ends a request, if it is still there; its stream gets `Finished` with reason `Cancelled`.
    pub fn cancel(&self, id: RequestId) {
        // A stopped engine has no requests left to cancel.
        let _ = self.commands.send(Command::Cancel(id));
    }

    /// Refuses new requests, lets the present ones finish for at most `drain`, fails the rest,
    /// and returns when the engine thread has ended.
    pub async fn shutdown(&self, drain: Duration) {
        self.shared.is_accepting.store(false, Ordering::Release);
        let now = Instant::now();
        let deadline = now.checked_add(drain).unwrap_or(now);
        // An error means that the thread has ended already; so does one from `changed`, and
        // nothing is ever sent on that channel.
        let _ = self.commands.send(Command::Shutdown { deadline });
        let _ = self.stopped.clone().changed().await;
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

    /// Waits until the engine thread has ended, for whatever reason.
    pub async fn ended(&self) {
        // Nothing is ever sent: the error that ends the wait is the thread's end.
        let _ = self.stopped.clone().changed().await;
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.stopped.has_changed().is_err()
    }
}

/// One request's events, the last of which is `Finished` or `Failed`. Dropping it before that
/// cancels the request.
#[derive(Debug)]
pub struct RequestStream {
    id: RequestId,
    events: mpsc::UnboundedReceiver<TokenEvent>,
    commands: Sender<Command>,
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
        let event = event.unwrap_or(TokenEvent::Failed(Failure::Stopped));
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
            let _ = self.commands.send(Command::Cancel(self.id));
        }
    }
}

pub(super) fn is_last(event: &TokenEvent) -> bool {
    matches!(event, TokenEvent::Finished { .. } | TokenEvent::Failed(_))
}
