//! Plays a load through the real scheduler on a simulated GPU in virtual time, for `engine
//! simulate`. No server, no thread, no sleep; thousands of requests in seconds.

mod arrivals;
pub mod fleet;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::arrivals::Text;
use crate::config::resolved::EngineConfig;
use crate::config::typed::{Device, KvCacheDtype};
use crate::engine_loop::CostMeter;
use crate::executor::cuda::{GraphSizes, graph_sizes};
use crate::executor::simulated::cost::{device_bytes, sizes_of};
use crate::executor::simulated::{Card, CostModel, SimulatedExecutor, SimulatedOptions};
use crate::executor::{Executor, ExecutorError, ExecutorInfo, HostTierOptions};
use crate::kv::PAGE_TOKENS;
use crate::launch::{LaunchError, LoadedModel, engine_loop_config, load_text, sequence_limit};
use crate::request::sampling_defaults::SamplingDefaults;
use crate::request::{Request, RequestId, SamplingParams, TokenEvent};
use crate::scheduler::{HostTierConfig, Scheduler, SchedulerConfig, SchedulerStats};
use crate::served_model::Limits;
use crate::server::request::prompt::fit;
use crate::text::{TextError, Tokenizer};

/// The load to simulate.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedLoad {
    /// The cases run one after the other.
    pub cases: Vec<LoadCase>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadCase {
    pub name: String,
    pub arrivals: Arrivals,
    /// In the order in which they are sent.
    pub requests: Vec<LoadRequest>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// A number of users, each sending when its last response is complete.
    Users(u32),
    /// When each request is sent, in seconds from the beginning of the case.
    TimesS(Vec<f64>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    pub prompt: String,
    pub output_tokens: usize,
}

/// The outcome of one request. Times in seconds from the beginning of the first case.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SimulatedRequest {
    pub case: String,
    pub index: usize,
    /// Index of the user in a closed loop.
    pub user: Option<u32>,
    pub sent_s: f64,
    pub token_s: Vec<f64>,
    pub end_s: f64,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    /// Why the server would have refused it.
    pub error: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Simulation {
    pub executor: ExecutorInfo,
    pub scheduler: SchedulerConfig,
    /// What the borders between a pass's kernels take.
    pub borders_ms: f64,
    pub steps_source: String,
    /// Runs that some figure of the steps was fitted on.
    pub fitted_on: Vec<String>,
    pub n_preemptions: u64,
    pub requests: Vec<SimulatedRequest>,
}

#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Executor(#[from] ExecutorError),
    #[error(
        "{card} has {limit} tokens of KV next to the weights within --mem-fraction-static; \
         --max-total-tokens is {asked}"
    )]
    Pool {
        card: String,
        asked: usize,
        limit: usize,
    },
    #[error("{0}")]
    HostTier(String),
    #[error(
        "speculation is not simulated: the tokens are invented, and so would be which drafts are right"
    )]
    Speculation,
    #[error(
        "the model has {n_experts} experts, and a pass's cost depends on how many of them its tokens choose, which \
         is not simulated"
    )]
    Experts { n_experts: usize },
    #[error("--cpu-offload-gb is not simulated: the card's description has no rate of its bus")]
    Offload,
    #[error("case {case}: {message}")]
    Case { case: String, message: String },
}

/// Plays `load` on `card`.
///
/// # Errors
///
/// [`SimulateError::Launch`] or [`SimulateError::Text`] if the model's tokenizer cannot be read,
/// [`SimulateError::Pool`] or [`SimulateError::HostTier`] if the model or the tier does not fit
/// the card, [`SimulateError::Case`] if a case has not one arrival time for each request or one
/// that is no time, [`SimulateError::Executor`] if a step fails.
pub fn simulate(
    config: &EngineConfig,
    model: &LoadedModel,
    card: Card,
    load: &SimulatedLoad,
) -> Result<Simulation, SimulateError> {
    if config.speculation.is_some() {
        return Err(SimulateError::Speculation);
    }
    let (tokenizer, _) = load_text(&model.resolved)?;
    let executor = executor(config, model, card)?;
    let info = executor.info().clone();
    let scheduler_config = scheduler_of(config, &info);
    let model_config = model.checkpoint.config();
    let (max_sequence_tokens, sequence_limit_name) =
        sequence_limit(config, model_config, scheduler_config.pool_tokens())?;
    let limits = Limits {
        max_sequence_tokens,
        sequence_limit_name,
        allow_auto_truncate: config.allow_auto_truncate,
        max_stop_strings: 0,
        max_prompt_tokens: None,
        max_output_tokens: None,
        vocab: model_config.vocab,
        max_schema_bytes: config.max_schema_bytes,
        sampling_defaults: SamplingDefaults::default(),
    };
    let mut player = Player::new(executor, scheduler_config.clone());
    for case in &load.cases {
        let requests = fitted(case, &tokenizer, &limits)?;
        player.play(case, requests)?;
    }
    Ok(Simulation {
        scheduler: scheduler_config,
        borders_ms: player.executor.cost().borders_s() * 1e3,
        steps_source: player.executor.cost().card().steps.source.clone(),
        fitted_on: player.executor.cost().card().steps.fitted_on.clone(),
        n_preemptions: player.stats().n_preemptions,
        executor: info,
        requests: player.done,
    })
}

fn scheduler_of(config: &EngineConfig, info: &ExecutorInfo) -> SchedulerConfig {
    let mut scheduler = engine_loop_config(config, Device::Cuda, info.kv_pool_tokens).scheduler;
    scheduler.run_ahead = config.overlap_schedule;
    scheduler.host_tier = info.host_tier.map(HostTierConfig::from);
    scheduler
}

/// The simulated executor of `card`, with the KV pool that fits its memory.
///
/// # Errors
///
/// If the checkpoint cannot be read, or the pool does not fit.
pub fn executor(
    config: &EngineConfig,
    model: &LoadedModel,
    card: Card,
) -> Result<SimulatedExecutor, SimulateError> {
    let kv_element_bytes = match config.kv_cache_dtype {
        KvCacheDtype::Auto => 2,
        KvCacheDtype::Fp8E4m3 => 1,
    };
    let checkpoint = model.checkpoint.as_ref();
    if config.cpu_offload_bytes > 0 {
        return Err(SimulateError::Offload);
    }
    if let Some(experts) = &checkpoint.config().experts {
        return Err(SimulateError::Experts {
            n_experts: experts.n_experts,
        });
    }
    let sizes = sizes_of(checkpoint, kv_element_bytes).map_err(LaunchError::from)?;
    let weight_bytes = device_bytes(&sizes, checkpoint.config());
    let memory = config
        .device_memory_limit_bytes
        .unwrap_or(card.rates.memory_bytes)
        .min(card.rates.memory_bytes);
    let budget = (memory as f64 * config.mem_fraction_static) as u64;
    let fits = (budget.saturating_sub(weight_bytes) / sizes.kv_bytes_per_token) as usize;
    let asked = config.max_total_tokens.unwrap_or(fits);
    if asked > fits || fits == 0 {
        return Err(SimulateError::Pool {
            card: card.rates.name,
            asked,
            limit: fits,
        });
    }
    let host_tier_pages = config
        .hierarchical_cache
        .map(|size| {
            // For a host with as much memory as needed.
            let tier = HostTierOptions {
                size: size.into(),
                free_bytes: u64::MAX,
            };
            let page_bytes = PAGE_TOKENS as u64 * sizes.kv_bytes_per_token;
            tier.n_pages(asked / PAGE_TOKENS, page_bytes)
        })
        .transpose()
        .map_err(SimulateError::HostTier)?;
    let options = SimulatedOptions {
        kv_pool_tokens: asked,
        weight_bytes,
        kv_bytes_per_token: sizes.kv_bytes_per_token,
        graph_sizes: graph_sizes(&GraphSizes::from(&config.cuda_graph)),
        two_batch_overlap: config.two_batch_overlap,
        host_tier_pages,
    };
    Ok(SimulatedExecutor::new(CostModel::new(card, sizes), options))
}

/// A request as the server accepts it.
struct Accepted {
    text: Text,
    prompt: Arc<[u32]>,
    max_new_tokens: usize,
}

/// A request, or why the server refuses it.
type Fitted = Result<Accepted, String>;

fn fitted(
    case: &LoadCase,
    tokenizer: &Tokenizer,
    limits: &Limits,
) -> Result<VecDeque<Fitted>, SimulateError> {
    if let Arrivals::TimesS(times) = &case.arrivals
        && times.len() != case.requests.len()
    {
        return Err(SimulateError::Case {
            case: case.name.clone(),
            message: format!(
                "{} times for {} requests; there must be one each",
                times.len(),
                case.requests.len()
            ),
        });
    }
    let one = |request: &LoadRequest| {
        let ids = tokenizer.encode(&request.prompt, true)?;
        let text = Text {
            n_bytes: request.prompt.len(),
            n_tokens: ids.len(),
        };
        let wanted = Some(request.output_tokens);
        Ok(fit(ids, wanted, request.output_tokens, limits, "prompt")
            .map(|fitted| Accepted {
                text,
                prompt: fitted.prompt,
                max_new_tokens: fitted.max_new_tokens,
            })
            .map_err(|error| error.message))
    };
    case.requests.iter().map(one).collect()
}

/// Scheduler, executor and clock.
struct Player {
    scheduler: Scheduler,
    executor: SimulatedExecutor,
    costs: CostMeter,
    now: Duration,
    arrivals: arrivals::Arrivals,
    /// Requests sent so far.
    n_sent: u64,
    /// Sent but not arrived, by index of sending.
    on_the_way: HashMap<u64, (SimulatedRequest, Accepted)>,
    next_id: u64,
    /// Arrived but not ended.
    open: HashMap<RequestId, SimulatedRequest>,
    done: Vec<SimulatedRequest>,
}

impl Player {
    fn new(executor: SimulatedExecutor, config: SchedulerConfig) -> Self {
        Self {
            scheduler: Scheduler::new(config),
            arrivals: arrivals::Arrivals::new(&executor.cost().card().steps),
            executor,
            costs: CostMeter::default(),
            now: Duration::ZERO,
            n_sent: 0,
            on_the_way: HashMap::new(),
            next_id: 0,
            open: HashMap::new(),
            done: Vec::new(),
        }
    }

    fn stats(&self) -> SchedulerStats {
        self.scheduler.stats()
    }

    fn play(&mut self, case: &LoadCase, mut unsent: VecDeque<Fitted>) -> Result<(), SimulateError> {
        let began = self.now;
        let mut n_sent = 0;
        match &case.arrivals {
            Arrivals::Users(n_users) => {
                for user in 0..*n_users {
                    self.send_next(case, &mut unsent, &mut n_sent, Some(user), began);
                }
            }
            Arrivals::TimesS(times) => {
                for time_s in times {
                    let at = began + seconds(case, *time_s)?;
                    self.send_next(case, &mut unsent, &mut n_sent, None, at);
                }
            }
        }
        while !(self.open.is_empty() && self.on_the_way.is_empty()) {
            self.take_in_arrivals();
            if self.scheduler.is_idle() {
                match self.arrivals.next_at() {
                    Some(at) => self.now = self.now.max(at),
                    None => break,
                }
                continue;
            }
            for (id, event) in self.step()? {
                if let Some(user) = self.take_in_event(id, event) {
                    self.send_next(case, &mut unsent, &mut n_sent, Some(user), self.now);
                }
            }
        }
        Ok(())
    }

    /// Plans, executes and commits a step; the clock moves to its end.
    fn step(&mut self) -> Result<Vec<(RequestId, TokenEvent)>, ExecutorError> {
        let plan = self.scheduler.plan(self.now);
        let output = self.executor.execute(&plan)?;
        let elapsed = self.executor.take_elapsed();
        self.now += elapsed;
        let costs = self.costs.observe(&plan, elapsed, &self.executor.counts());
        self.scheduler.set_restore_costs(costs);
        let events = self.scheduler.commit(&plan, output);
        self.scheduler.reuse(plan);
        Ok(events)
    }

    /// Sends the next request of the case that the server does not refuse, if there is one.
    fn send_next(
        &mut self,
        case: &LoadCase,
        unsent: &mut VecDeque<Fitted>,
        n_sent: &mut usize,
        user: Option<u32>,
        at: Duration,
    ) {
        while let Some(fitted) = unsent.pop_front() {
            let mut simulated = SimulatedRequest {
                case: case.name.clone(),
                index: *n_sent,
                user,
                sent_s: at.as_secs_f64(),
                end_s: at.as_secs_f64(),
                ..SimulatedRequest::default()
            };
            *n_sent += 1;
            match fitted {
                Ok(accepted) => {
                    simulated.prompt_tokens = accepted.prompt.len();
                    self.arrivals.send(self.n_sent, accepted.text, at);
                    self.on_the_way.insert(self.n_sent, (simulated, accepted));
                    self.n_sent += 1;
                    return;
                }
                Err(message) => {
                    simulated.error = Some(message);
                    self.done.push(simulated);
                    if user.is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn take_in_arrivals(&mut self) {
        while let Some((at, number)) = self.arrivals.take(self.now) {
            let Some((mut simulated, accepted)) = self.on_the_way.remove(&number) else {
                continue;
            };
            let id = RequestId(self.next_id);
            self.next_id += 1;
            let request = Request {
                id,
                prompt: accepted.prompt,
                sampling: Arc::new(SamplingParams::default()),
                max_new_tokens: accepted.max_new_tokens,
                stop_token_ids: Arc::from([]),
                priority: 0,
                prefix_root: 0,
            };
            // Requests that do not fit were refused when sent; this would be a duplicate.
            if let Err(error) = self.scheduler.add(request, at) {
                simulated.error = Some(error.to_string());
                self.done.push(simulated);
            } else {
                self.open.insert(id, simulated);
            }
        }
    }

    /// The user whose request has ended with this event. An open loop has none: it sends at its
    /// times, whatever has ended.
    fn take_in_event(&mut self, id: RequestId, event: TokenEvent) -> Option<u32> {
        let now_s = self.now.as_secs_f64();
        let simulated = self.open.get_mut(&id)?;
        match event {
            TokenEvent::PromptLogprobs(_) => return None,
            TokenEvent::Token(_) => {
                simulated.token_s.push(now_s);
                return None;
            }
            TokenEvent::Finished { usage, .. } => simulated.cached_tokens = usage.cached_tokens,
            TokenEvent::Failed(failure) => simulated.error = Some(failure.to_string()),
        }
        simulated.end_s = now_s;
        let simulated = self.open.remove(&id)?;
        let user = simulated.user;
        self.done.push(simulated);
        user
    }
}

fn seconds(case: &LoadCase, s: f64) -> Result<Duration, SimulateError> {
    Duration::try_from_secs_f64(s).map_err(|error| SimulateError::Case {
        case: case.name.clone(),
        message: format!("a request is sent at {s} s: {error}"),
    })
}
