//! The engine thread: takes requests from a queue, runs plan → execute → commit, and sends each
//! request its tokens.
//!
//! One thread owns scheduler and executor, so neither needs a lock. Clients talk to it through an
//! [`EngineHandle`]; each request's events come from its [`RequestStream`], and dropping that
//! cancels the request. An idle engine blocks on its queue. A failed row ends its own request; a
//! failed step ends the requests of its rows. After a panic the executor's state is unknown, and a
//! lost device cannot compute: both end all requests and the thread, and with it the process.
//! Several consecutive failed steps make the engine unhealthy; it then runs steps of its own
//! ([`probe`]) until one succeeds. A stream reports when its engine has ended.
//! Deliberately absent: text, HTTP, and any choice of what to run next.

mod client;
mod costs;
mod deadlines;
mod decode_log;
pub mod device_arbiter;
mod guides;
mod handle;
mod probe;
mod sleep;
mod step;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::client::RequestTracker;
pub(crate) use self::costs::CostMeter;
use self::deadlines::Deadlines;
pub use self::deadlines::TimeLimits;
use self::decode_log::DecodeLog;
use self::device_arbiter::{DeviceArbiter, DeviceLease, Tenant};
use self::handle::{Acceptance, AtomicAcceptance};
use self::handle::{EngineCommand, Shared, is_last};
pub use self::handle::{EngineHandle, FlushError, RequestStream, SubmitError};
use self::sleep::{ExecutorState, SuspendRequest};
use self::step::{StepClock, StepFailure, execute};
use crate::executor::{Executor, ExecutorCounts, StopFlag};
use crate::kv_events::KvEventPublisher;
use crate::metrics::Metrics;
use crate::request::{Failure, RequestId, TokenEvent};
use crate::scheduler::{Scheduler, SchedulerConfig, StepKind};
use crate::speculation::TimesMeter;
use crate::step::{StepOutput, StepPlan};

/// This many consecutive failed steps make the engine unhealthy, until one succeeds. A failed row
/// does not count as a failed step.
pub const MAX_FAILURES_IN_A_ROW: u32 = 3;

#[derive(Debug, Clone, serde::Serialize)]
pub struct EngineLoopConfig {
    pub scheduler: SchedulerConfig,
    /// Requests that may wait in addition to the `max_running_requests` that run.
    pub max_queued_requests: usize,
    /// Decode steps between log lines; 0 disables them.
    pub decode_log_interval: u64,
    pub time_limits: TimeLimits,
}

impl Default for EngineLoopConfig {
    fn default() -> Self {
        Self {
            scheduler: SchedulerConfig::default(),
            max_queued_requests: 4096,
            decode_log_interval: 40,
            time_limits: TimeLimits::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("max_total_tokens is {asked}, the {executor} executor's KV pool holds {limit}")]
    PoolTooSmall {
        asked: usize,
        limit: usize,
        executor: String,
    },
    #[error("cannot start the engine thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Starts the engine thread of a model that has its device to itself.
///
/// # Errors
///
/// If the executor's pool is smaller than the scheduler's, or the thread cannot be started.
pub fn start(
    executor: Box<dyn Executor>,
    config: EngineLoopConfig,
    metrics: Arc<Metrics>,
) -> Result<EngineHandle, StartError> {
    start_sharing(executor, config, metrics, &Arc::default())
}

/// Starts the engine thread of a model whose steps alternate with those of others.
///
/// # Errors
///
/// [`StartError::PoolTooSmall`] if the executor's pool is smaller than the scheduler's,
/// [`StartError::Thread`] if the thread cannot be started.
pub fn start_sharing(
    executor: Box<dyn Executor>,
    config: EngineLoopConfig,
    metrics: Arc<Metrics>,
    arbiter: &Arc<DeviceArbiter>,
) -> Result<EngineHandle, StartError> {
    start_publishing(executor, config, metrics, arbiter, None)
}

/// As [`start_sharing`]; `kv_events` is told what the prefix cache holds.
///
/// # Errors
///
/// As [`start_sharing`].
pub fn start_publishing(
    mut executor: Box<dyn Executor>,
    config: EngineLoopConfig,
    metrics: Arc<Metrics>,
    arbiter: &Arc<DeviceArbiter>,
    kv_events: Option<KvEventPublisher>,
) -> Result<EngineHandle, StartError> {
    let info = executor.info().clone();
    let asked = config.scheduler.pool_tokens();
    if asked > info.kv_pool_tokens {
        let limit = info.kv_pool_tokens;
        return Err(StartError::PoolTooSmall {
            asked,
            limit,
            executor: info.name,
        });
    }
    let stop = StopFlag::default();
    executor.watch(&stop);
    let (commands, inbox) = channel();
    let (stopped_sender, stopped) = watch::channel(());
    let limit = config
        .scheduler
        .max_running_requests
        .max(1)
        .saturating_add(config.max_queued_requests);
    let shared = Arc::new(Shared {
        is_healthy: AtomicBool::new(true),
        acceptance: AtomicAcceptance::new(Acceptance::Open),
        n_in_flight: AtomicUsize::new(0),
        next_id: AtomicU64::new(0),
        stop,
        max_in_flight: limit,
        config: config.clone(),
        info,
        metrics: Arc::clone(&metrics),
    });
    let mut scheduler = Scheduler::new(config.scheduler);
    if kv_events.is_some() {
        scheduler.record_kv_events();
    }
    let engine = EngineLoop {
        scheduler,
        kv_events,
        executor: ExecutorState::Active(executor),
        counts_before: ExecutorCounts::default(),
        tenant: arbiter.join(),
        lease: None,
        suspend_request: None,
        inbox,
        clients: HashMap::new(),
        shared: Arc::clone(&shared),
        metrics,
        started: Instant::now(),
        drain_until: None,
        n_failures_in_a_row: 0,
        broken: None,
        decode_log: DecodeLog::new(config.decode_log_interval),
        costs: CostMeter::default(),
        row_times: TimesMeter::default(),
        deadlines: Deadlines::new(config.time_limits),
    };
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || {
            engine.run();
            // Dropped last, also when unwinding: `is_healthy` and `shutdown` rely on it.
            drop(stopped_sender);
        })?;
    Ok(EngineHandle {
        commands,
        shared,
        stopped,
    })
}

struct EngineLoop {
    scheduler: Scheduler,
    kv_events: Option<KvEventPublisher>,
    executor: ExecutorState,
    /// The executors' counters before the model was last suspended: a new executor starts at 0.
    counts_before: ExecutorCounts,
    tenant: Tenant,
    /// Acquired when there is work, released after the step.
    lease: Option<DeviceLease>,
    /// Set while the model is to be suspended once its requests have ended.
    suspend_request: Option<SuspendRequest>,
    inbox: Receiver<EngineCommand>,
    clients: HashMap<RequestId, RequestTracker>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    /// Zero of the scheduler's clock.
    started: Instant,
    drain_until: Option<Instant>,
    n_failures_in_a_row: u32,
    /// No further step is tried: the executor panicked, or its device is lost.
    broken: Option<Failure>,
    decode_log: DecodeLog,
    costs: CostMeter,
    row_times: TimesMeter,
    deadlines: Deadlines,
}

impl EngineLoop {
    fn run(mut self) {
        while self.receive() {
            if let Some(lease) = &mut self.lease {
                lease.returns_immediately = true;
                // Lookahead work would run during another model's lease.
                self.scheduler.set_lookahead(!lease.has_waiters());
            }
            let mut clock = StepClock::start();
            self.await_masks();
            self.ask_draft_model();
            let mut plan = self.scheduler.plan(self.started.elapsed());
            plan.check_drafts();
            if plan.rows.is_empty() && plan.copies.is_empty() && !self.scheduler.is_idle() {
                // All rows are held back: other models may use the device meanwhile.
                self.lease = None;
                self.scheduler.reuse(plan);
                continue;
            }
            let ExecutorState::Active(executor) = &mut self.executor else {
                // Requests do not reach the scheduler of a suspended model.
                self.fail_all(&Failure::Suspended);
                continue;
            };
            clock.end_plan();
            let outcome = execute(executor.as_mut(), &plan);
            let elapsed = clock.end_execution();
            if self.shared.stop.is_raised() && outcome.as_ref().is_err_and(|e| !e.is_panic()) {
                // Aborted because the grace period is over: not a failure of the step.
                self.lease = None;
                self.fail_all(&Failure::ShuttingDown);
                continue;
            }
            let counts = self.counts_before.plus(executor.counts());
            self.lease = None;
            self.record_outcome(&plan, &outcome);
            if let Ok(output) = &outcome {
                log_row_errors(&plan, output);
            }
            self.metrics.record_executor(&counts);
            if outcome.is_ok() {
                self.measure_rows(&plan, clock.elapsed());
            }
            if outcome.is_ok() && self.scheduler.config().host_tier.is_some() {
                let costs = self.costs.observe(&plan, elapsed, &counts);
                self.scheduler.set_restore_costs(costs);
            }
            let events = match outcome {
                Ok(mut output) => {
                    self.guide(&plan, &mut output);
                    self.scheduler.commit(&plan, output)
                }
                Err(failure) => self.scheduler.fail(&plan, &failure.of_step()),
            };
            self.deliver(events);
            self.scheduler.reuse(plan);
            clock.record(&self.metrics);
        }
    }

    /// Handles the commands received; blocks while there is nothing to do. Returns false to end the
    /// thread.
    fn receive(&mut self) -> bool {
        loop {
            let is_abandoned = loop {
                match self.inbox.try_recv() {
                    Ok(command) => self.handle(command),
                    Err(TryRecvError::Empty) => break false,
                    Err(TryRecvError::Disconnected) => break true,
                }
            };
            self.expire();
            if let Some(failure) = self.broken.take() {
                self.fail_all(&failure);
                return false;
            }
            if let Some(deadline) = self.drain_until
                && (self.scheduler.is_idle() || Instant::now() >= deadline)
            {
                self.fail_all(&Failure::ShuttingDown);
                return false;
            }
            if is_abandoned {
                return false;
            }
            self.suspend_if_due();
            if self.broken.is_some() {
                continue;
            }
            if !self.scheduler.is_idle() {
                if self.lease.is_some() {
                    self.record_scheduler();
                    return true;
                }
                // Other models may have run meanwhile, so check for new commands again.
                self.lease = Some(self.tenant.take());
                continue;
            }
            self.lease = None;
            self.tenant.set_idle();
            self.record_scheduler();
            self.decode_log.pause(&self.metrics);
            let command = match self.next_probe() {
                None => self.inbox.recv().map_err(RecvTimeoutError::from),
                Some(wait) => self.inbox.recv_timeout(wait),
            };
            match command {
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => self.probe(),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// With speculation, the time of a decode step says what its rows cost; that of making drafts
    /// is part of it.
    fn measure_rows(&mut self, plan: &StepPlan, elapsed: Duration) {
        let is_alone = plan.n_steps == 1 && plan.copies.is_empty();
        let speculates = self.scheduler.config().speculation.is_some();
        if speculates && is_alone && StepKind::of(plan) == StepKind::Decode {
            let n_rows = plan.rows.iter().map(|row| row.tokens.len()).sum();
            let times = self.row_times.observe(n_rows, elapsed.as_secs_f64());
            self.scheduler.set_step_times(times);
        }
    }

    fn record_scheduler(&mut self) {
        if let Some(kv_events) = &mut self.kv_events {
            if kv_events.wants_everything() {
                self.scheduler.restate_kv_events();
            }
            kv_events.publish(self.scheduler.take_kv_events());
        }
        if let Some(counts) = self.scheduler.speculation_counts() {
            self.metrics.record_speculation(counts);
        }
        self.metrics.record_stats(&self.scheduler.stats());
        self.metrics
            .record_host_tier(&self.scheduler.host_tier_stats());
    }

    fn handle(&mut self, command: EngineCommand) {
        match command {
            EngineCommand::Submit {
                request,
                events,
                received,
                submitted,
                observer,
            } => {
                let id = request.id;
                let (n_prompt, max_new_tokens) = (request.prompt.len(), request.max_new_tokens);
                let arrival = submitted.saturating_duration_since(self.started);
                let added = if self.executor.is_active() {
                    let added = self.scheduler.add(request, arrival);
                    added.map_err(|error| Failure::Rejected {
                        message: error.to_string(),
                    })
                } else {
                    // It was in the queue when the model was suspended.
                    Err(Failure::Suspended)
                };
                if let Err(failure) = added {
                    self.shared.n_in_flight.fetch_sub(1, Ordering::AcqRel);
                    self.metrics.record_failure(&failure);
                    // A disconnected client needs no response.
                    let _ = events.send(TokenEvent::Failed(failure));
                    return;
                }
                self.clients.insert(
                    id,
                    RequestTracker {
                        events,
                        n_prompt,
                        max_new_tokens,
                        n_tokens: 0,
                        received,
                        n_preemptions: 0,
                        submitted,
                        admitted: None,
                        first_token: submitted,
                        last_token: submitted,
                        observer,
                    },
                );
            }
            EngineCommand::Cancel(id) => {
                if let Some(event) = self.scheduler.cancel(id) {
                    self.deliver(vec![(id, event)]);
                }
            }
            EngineCommand::Flush { done } => {
                // The client may be gone; the cache is flushed all the same.
                let _ = done.send(self.flush());
            }
            EngineCommand::Describe { limit, done } => {
                // The client may be gone.
                let _ = done.send(self.scheduler.requests(self.started.elapsed(), limit));
            }
            EngineCommand::Sleep(request) => self.suspend_request = Some(request),
            EngineCommand::Wake { done } => self.wake(done),
            EngineCommand::Shutdown { deadline } => {
                self.drain_until = Some(self.drain_until.map_or(deadline, |d| d.min(deadline)));
            }
        }
    }

    fn flush(&mut self) -> Result<(), FlushError> {
        if !self.scheduler.is_idle() {
            let stats = self.scheduler.stats();
            return Err(FlushError::Busy {
                n_running: stats.n_running,
                n_waiting: stats.n_waiting,
            });
        }
        self.scheduler.forget();
        self.record_scheduler();
        Ok(())
    }

    /// Lets the draft model guess, if there is one. Without its guesses requests go on as they would.
    fn ask_draft_model(&mut self) {
        let asks = self.scheduler.draft_asks();
        let ExecutorState::Active(executor) = &mut self.executor else {
            return;
        };
        if asks.is_empty() {
            return;
        }
        match executor.draft(&asks) {
            Ok(drafts) => {
                let ids: Vec<RequestId> = asks.iter().map(|ask| ask.request).collect();
                self.scheduler.set_drafted(ids.into_iter().zip(drafts));
            }
            Err(error) => tracing::error!("the draft model failed: {error}"),
        }
    }

    fn record_outcome(&mut self, plan: &StepPlan, outcome: &Result<StepOutput, StepFailure>) {
        for (id, wait) in self.scheduler.take_queue_waits() {
            self.metrics.queue_s.observe(wait.as_secs_f64());
            if let Some(client) = self.clients.get_mut(&id) {
                client.admitted = Some(client.submitted + wait);
            }
        }
        for id in self.scheduler.take_preempted() {
            if let Some(client) = self.clients.get_mut(&id) {
                client.n_preemptions += 1;
            }
        }
        let failure = match outcome {
            Ok(output) => {
                self.record_step(plan, output);
                return;
            }
            Err(failure) => failure,
        };
        self.metrics.failed_steps.add(1);
        self.n_failures_in_a_row += 1;
        self.broken = failure.of_engine();
        tracing::error!(
            n_rows = plan.rows.len(),
            n_failures_in_a_row = self.n_failures_in_a_row,
            ends_the_engine = self.broken.is_some(),
            "{failure}"
        );
        if self.broken.is_some() || self.n_failures_in_a_row >= MAX_FAILURES_IN_A_ROW {
            self.shared.is_healthy.store(false, Ordering::Release);
        }
    }

    fn record_step(&mut self, plan: &StepPlan, output: &StepOutput) {
        self.n_failures_in_a_row = 0;
        self.shared.is_healthy.store(true, Ordering::Release);
        // A step without rows only copies pages.
        if plan.rows.is_empty() {
            return;
        }
        let kind = StepKind::of(plan);
        self.metrics.record_step(kind, n_tokens_of(plan, output));
        if kind != StepKind::Prefill {
            self.decode_log
                .step(plan.n_steps as u64, &self.scheduler, &self.metrics);
        }
    }

    /// Sends events to their clients. For a disconnected client a `Cancel` is already queued.
    fn deliver(&mut self, events: Vec<(RequestId, TokenEvent)>) {
        let now = Instant::now();
        for (id, event) in events {
            let Some(client) = self.clients.get_mut(&id) else {
                continue;
            };
            client.record(&event, now, &self.metrics);
            let ends = is_last(&event);
            // The receiver may be gone; then the event is not needed.
            let _ = client.events.send(event);
            if ends {
                self.clients.remove(&id);
                self.shared.n_in_flight.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Ends the requests that exceeded a time limit.
    fn expire(&mut self) {
        let now = Instant::now();
        if !self.deadlines.is_due(now) {
            return;
        }
        let overdue: Vec<(RequestId, TokenEvent)> = self
            .clients
            .iter()
            .filter_map(|(id, client)| {
                let failure = self.deadlines.check(client, now)?;
                Some((*id, TokenEvent::Failed(failure)))
            })
            .collect();
        for (id, _) in &overdue {
            // A request that is no longer in the scheduler has already been sent its last event.
            self.scheduler.cancel(*id);
        }
        self.deliver(overdue);
    }

    fn fail_all(&mut self, failure: &Failure) {
        let events = self
            .scheduler
            .request_ids()
            .into_iter()
            .filter(|id| self.scheduler.cancel(*id).is_some())
            .map(|id| (id, TokenEvent::Failed(failure.clone())))
            .collect();
        self.deliver(events);
        self.metrics.record_stats(&self.scheduler.stats());
    }
}

/// Failed rows concern only their requests: the step and the engine's health are unaffected.
fn log_row_errors(plan: &StepPlan, output: &StepOutput) {
    for (row, made) in plan.rows.iter().zip(&output.rows) {
        if let Some(error) = &made.error {
            tracing::warn!(request = %row.request, "no token for this request: {error}");
        }
    }
}

/// Number of prompt tokens that a step computed and output tokens that it generated. The input of a
/// decode row is a token that was counted when it was generated.
fn n_tokens_of(plan: &StepPlan, output: &StepOutput) -> usize {
    let rows = plan.rows.iter().map(|row| {
        let makes_first = row.sample.as_ref().map(|spec| spec.output_index == 0);
        let is_decode = row.is_decode() && makes_first == Some(false);
        if is_decode { 0 } else { row.tokens.len() }
    });
    let made = output.rows.iter().map(|made| made.tokens.len());
    rows.sum::<usize>() + made.sum::<usize>()
}
