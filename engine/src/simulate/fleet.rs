//! Replicas of the simulated engine with a picker before them, in virtual time, for `engine simulate
//! --fleet`. The caller says how many replicas there should be, and advances the clock.
//!
//! The picker sends a request to the ready replica with the fewest requests, holds it while none is
//! ready, and gives up after a time. A replica that is removed takes no more requests, and has a grace
//! for those that it has, as a pod does. Replicas that have not started are removed first, then the
//! youngest.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::arrivals::{Arrivals, Text};
use super::{Accepted, Player, SimulateError, SimulatedRequest, executor, scheduler_of};
use crate::config::resolved::EngineConfig;
use crate::executor::simulated::{Card, SimulatedExecutor};
use crate::executor::{Executor, ExecutorError};
use crate::launch::LoadedModel;
use crate::metrics::Metrics;
use crate::request::TokenEvent;
use crate::scheduler::{Scheduler, SchedulerConfig};

/// The load and what the cluster takes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetLoad {
    /// From a replica's creation to its readiness.
    pub start_s: f64,
    /// How long the picker holds a request while no replica is ready.
    pub hold_s: f64,
    /// From a replica's removal to the end of the requests that it still has.
    pub grace_s: f64,
    /// By time.
    pub requests: Vec<FleetRequest>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetRequest {
    pub at_s: f64,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
}

/// Go on until this time, with this number of replicas from now on.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advance {
    pub until_s: f64,
    pub n_replicas: usize,
}

/// The fleet at the end of an [`Advance`].
#[derive(Debug, Serialize)]
pub struct FleetState {
    pub n_ready: usize,
    /// Requests that the picker holds.
    pub n_held: usize,
    pub pages: Vec<ReplicaPage>,
}

/// What a ready replica answers to a scrape.
#[derive(Debug, Serialize)]
pub struct ReplicaPage {
    pub name: String,
    pub page: String,
}

/// The whole of it, at the end.
#[derive(Debug, Serialize)]
pub struct FleetOutcome {
    /// Seconds that cards were taken, those of starting and ending replicas included.
    pub card_s: f64,
    pub requests: Vec<FleetServed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FleetServed {
    pub sent_s: f64,
    /// From sending to the first token; `None` if the request was lost.
    pub ttft_s: Option<f64>,
    /// Mean seconds between its tokens; `None` also if there was one token.
    pub tpot_s: Option<f64>,
}

const LOST: Option<f64> = None;

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Starting { ready_s: f64 },
    Ready,
    Ending { until_s: f64 },
}

struct Replica {
    name: String,
    created_s: f64,
    state: State,
    player: Player,
    metrics: Metrics,
    /// When each request came here, by its index.
    came_s: HashMap<usize, f64>,
}

impl Replica {
    fn n_requests(&self) -> usize {
        self.player.open.len() + self.player.on_the_way.len()
    }

    fn send(&mut self, index: usize, request: FleetRequest, at_s: f64) {
        let prompt: Arc<[u32]> = (0..request.prompt_tokens)
            // No prefix is shared.
            .map(|i| if i == 0 { index as u32 } else { i })
            .collect();
        let n_tokens = prompt.len();
        let accepted = Accepted {
            text: Text {
                n_bytes: 4 * n_tokens,
                n_tokens,
            },
            prompt,
            max_new_tokens: request.output_tokens as usize,
        };
        let simulated = SimulatedRequest {
            index,
            sent_s: request.at_s,
            prompt_tokens: n_tokens,
            ..SimulatedRequest::default()
        };
        let (number, at) = (self.player.n_sent, Duration::from_secs_f64(at_s));
        self.player.arrivals.send(number, accepted.text, at);
        self.player.on_the_way.insert(number, (simulated, accepted));
        self.player.n_sent += 1;
        self.came_s.insert(index, at_s);
    }

    /// Steps that begin before `until_s`.
    fn run_until(&mut self, until_s: f64) -> Result<(), ExecutorError> {
        let until = Duration::from_secs_f64(until_s);
        loop {
            self.player.take_in_arrivals();
            if self.player.scheduler.is_idle() {
                let next = self.player.arrivals.next_at();
                let at = next.filter(|at| *at <= until);
                self.player.now = self.player.now.max(at.unwrap_or(until));
                if at.is_none() {
                    return Ok(());
                }
                continue;
            }
            if self.player.now >= until {
                return Ok(());
            }
            for (id, event) in self.player.step()? {
                if let (TokenEvent::Token(_), Some(request)) = (&event, self.player.open.get(&id))
                    && request.token_s.is_empty()
                {
                    let came_s = self.came_s.get(&request.index);
                    let now_s = self.player.now.as_secs_f64();
                    self.metrics
                        .ttft_s
                        .observe(now_s - came_s.unwrap_or(&now_s));
                }
                self.player.take_in_event(id, event);
            }
        }
    }
}

/// See the module.
pub struct Fleet {
    executor: Box<dyn Fn() -> Result<SimulatedExecutor, SimulateError>>,
    scheduler: SchedulerConfig,
    max_queued_requests: usize,
    load: FleetLoad,
    now_s: f64,
    /// Of the load's requests.
    n_sent: usize,
    held: VecDeque<usize>,
    replicas: Vec<Replica>,
    n_created: usize,
    card_s: f64,
    served: Vec<FleetServed>,
}

impl Fleet {
    /// # Errors
    ///
    /// [`SimulateError`] if the model does not fit the card, or the load's times are not ascending.
    pub fn new(
        config: EngineConfig,
        model: LoadedModel,
        card: Card,
        load: FleetLoad,
    ) -> Result<Self, SimulateError> {
        let times = [load.start_s, load.hold_s, load.grace_s];
        let times_are_right = times.iter().all(|s| s.is_finite() && *s >= 0.0);
        let sorted = load.requests.is_sorted_by(|a, b| a.at_s <= b.at_s);
        let first_is_right = load.requests.first().is_none_or(|first| first.at_s >= 0.0);
        if !(times_are_right && sorted && first_is_right) {
            return Err(SimulateError::Case {
                case: "fleet".to_owned(),
                message: "times must be 0 or more, and those of requests ascending".to_owned(),
            });
        }
        let info = executor(&config, &model, card.clone())?.info().clone();
        let served = load.requests.iter().map(|request| FleetServed {
            sent_s: request.at_s,
            ttft_s: LOST,
            tpot_s: LOST,
        });
        Ok(Self {
            scheduler: scheduler_of(&config, &info),
            max_queued_requests: config.max_queued_requests,
            served: served.collect(),
            executor: Box::new(move || executor(&config, &model, card.clone())),
            load,
            now_s: 0.0,
            n_sent: 0,
            held: VecDeque::new(),
            replicas: Vec::new(),
            n_created: 0,
            card_s: 0.0,
        })
    }

    /// Replicas that are ready at once, before anything is sent.
    ///
    /// # Errors
    ///
    /// [`SimulateError`] if the model does not fit the card.
    pub fn begin_with(&mut self, n_replicas: usize) -> Result<(), SimulateError> {
        self.scale(n_replicas)?;
        for replica in &mut self.replicas {
            replica.state = State::Ready;
        }
        Ok(())
    }

    /// # Errors
    ///
    /// [`SimulateError::Case`] if the time has passed, [`SimulateError::Executor`] if a step fails.
    pub fn advance(&mut self, advance: Advance) -> Result<FleetState, SimulateError> {
        if !(advance.until_s.is_finite() && advance.until_s >= self.now_s) {
            return Err(SimulateError::Case {
                case: "fleet".to_owned(),
                message: format!("{} s is not after {} s", advance.until_s, self.now_s),
            });
        }
        self.scale(advance.n_replicas)?;
        while let Some(at_s) = self.next_event_s().filter(|at_s| *at_s <= advance.until_s) {
            self.move_to(at_s)?;
            self.dispatch();
        }
        self.move_to(advance.until_s)?;
        self.dispatch();
        Ok(self.state())
    }

    /// What became of all requests; those that have not ended are lost.
    #[must_use]
    pub fn outcome(mut self) -> FleetOutcome {
        for replica in &self.replicas {
            self.card_s += self.now_s - replica.created_s;
        }
        FleetOutcome {
            card_s: self.card_s,
            requests: self.served,
        }
    }

    fn scale(&mut self, n_replicas: usize) -> Result<(), SimulateError> {
        let is_kept = |replica: &Replica| !matches!(replica.state, State::Ending { .. });
        let mut n_kept = self.replicas.iter().filter(|r| is_kept(r)).count();
        while n_kept < n_replicas {
            let executor = (self.executor)()?;
            self.n_created += 1;
            n_kept += 1;
            let name = format!("engine-{}", self.n_created);
            self.replicas.push(Replica {
                metrics: Metrics::new("engine"),
                name,
                created_s: self.now_s,
                state: State::Starting {
                    ready_s: self.now_s + self.load.start_s,
                },
                player: player(executor, &self.scheduler, self.now_s),
                came_s: HashMap::new(),
            });
        }
        while n_kept > n_replicas {
            n_kept -= 1;
            let is_starting = |r: &Replica| matches!(r.state, State::Starting { .. });
            let found = self.replicas.iter().rposition(is_starting);
            if let Some(starting) = found {
                self.card_s += self.now_s - self.replicas.remove(starting).created_s;
            } else if let Some(youngest) = self.replicas.iter_mut().rfind(|r| is_kept(r)) {
                youngest.state = State::Ending {
                    until_s: self.now_s + self.load.grace_s,
                };
            }
        }
        Ok(())
    }

    /// The next arrival, start or end of a grace, if there is one.
    fn next_event_s(&self) -> Option<f64> {
        let arrival = self.load.requests.get(self.n_sent).map(|r| r.at_s);
        let changes = self.replicas.iter().filter_map(|r| match r.state {
            State::Starting { ready_s } => Some(ready_s),
            State::Ending { until_s } => Some(until_s),
            State::Ready => None,
        });
        changes.chain(arrival).reduce(f64::min)
    }

    /// Lets all replicas work until this time, and takes in what has ended.
    fn move_to(&mut self, at_s: f64) -> Result<(), SimulateError> {
        for replica in &mut self.replicas {
            replica.run_until(at_s)?;
            for done in replica.player.done.drain(..) {
                replica.came_s.remove(&done.index);
                if done.error.is_none() {
                    self.served[done.index] = served(&done);
                }
            }
            if let State::Starting { ready_s } = replica.state
                && ready_s <= at_s
            {
                replica.state = State::Ready;
            }
        }
        self.now_s = at_s;
        let card_s = &mut self.card_s;
        self.replicas.retain(|replica| match replica.state {
            // What it still has then is cut off, and lost.
            State::Ending { until_s } if replica.n_requests() == 0 || until_s <= at_s => {
                *card_s += at_s - replica.created_s;
                false
            }
            _ => true,
        });
        Ok(())
    }

    /// Sends what has come and what is held to the replicas that have the fewest requests.
    fn dispatch(&mut self) {
        while let Some(request) = self.load.requests.get(self.n_sent)
            && request.at_s <= self.now_s
        {
            self.held.push_back(self.n_sent);
            self.n_sent += 1;
        }
        while let Some(&index) = self.held.front() {
            let request = self.load.requests[index];
            if self.now_s - request.at_s > self.load.hold_s {
                self.held.pop_front();
                continue;
            }
            let ready = self.replicas.iter_mut().filter(|r| r.state == State::Ready);
            let Some(least) = ready.min_by_key(|replica| replica.n_requests()) else {
                return;
            };
            self.held.pop_front();
            // A full queue refuses; the request is lost.
            if least.player.stats().n_waiting < self.max_queued_requests {
                least.send(index, request, self.now_s);
            }
        }
    }

    fn state(&self) -> FleetState {
        let is_up = |r: &&Replica| !matches!(r.state, State::Starting { .. });
        let pages = self.replicas.iter().filter(is_up).map(|replica| {
            replica.metrics.record_stats(&replica.player.stats());
            ReplicaPage {
                name: replica.name.clone(),
                page: replica.metrics.render(),
            }
        });
        FleetState {
            n_ready: self
                .replicas
                .iter()
                .filter(|r| r.state == State::Ready)
                .count(),
            n_held: self.held.len(),
            pages: pages.collect(),
        }
    }
}

fn player(executor: SimulatedExecutor, scheduler: &SchedulerConfig, now_s: f64) -> Player {
    Player {
        scheduler: Scheduler::new(scheduler.clone()),
        arrivals: Arrivals::new(&executor.cost().card().steps),
        now: Duration::from_secs_f64(now_s),
        ..Player::new(executor, scheduler.clone())
    }
}

fn served(done: &SimulatedRequest) -> FleetServed {
    let n_gaps = done.token_s.len().saturating_sub(1);
    let span_s = match (done.token_s.first(), done.token_s.last()) {
        (Some(first), Some(last)) => last - first,
        _ => 0.0,
    };
    FleetServed {
        sent_s: done.sent_s,
        ttft_s: done.token_s.first().map(|first| first - done.sent_s),
        tpot_s: (n_gaps > 0).then(|| span_s / n_gaps as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        serve: crate::config::ServeArgs,
    }

    const START_S: f64 = 60.0;

    /// `requests`: when each is sent; 500 tokens in, 20 out.
    fn fleet(times_s: &[f64]) -> Fleet {
        let line = "serve --model-path synthetic:qwen3-32b-awq --max-total-tokens 8192";
        let line = Line::try_parse_from(line.split(' ')).expect("accepted");
        let config = line.serve.engine.resolve().expect("resolved");
        let model = crate::launch::load_model(&config, &|_| ()).expect("a model");
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let card = Card::read(&root.join("../data/cards/h100.toml")).expect("a card");
        let requests = times_s.iter().map(|&at_s| FleetRequest {
            at_s,
            prompt_tokens: 500,
            output_tokens: 20,
        });
        let load = FleetLoad {
            start_s: START_S,
            hold_s: 300.0,
            grace_s: 10.0,
            requests: requests.collect(),
        };
        Fleet::new(config, model, card, load).expect("a fleet")
    }

    fn advance(fleet: &mut Fleet, until_s: f64, n_replicas: usize) -> FleetState {
        let advance = Advance {
            until_s,
            n_replicas,
        };
        fleet.advance(advance).expect("it goes on")
    }

    #[test]
    fn a_request_to_no_replica_waits_for_the_first_one_and_counts_its_wait() {
        let mut fleet = fleet(&[5.0, 200.0]);
        let state = advance(&mut fleet, 15.0, 0);
        assert_eq!((state.n_ready, state.n_held, state.pages.len()), (0, 1, 0));
        let state = advance(&mut fleet, 100.0, 1);
        assert_eq!((state.n_ready, state.n_held), (1, 0));
        let page = &state.pages[0].page;
        let count = "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"engine\"} 1";
        assert!(page.contains(count), "{page}");
        advance(&mut fleet, 300.0, 0);
        let outcome = fleet.outcome();
        // The card was taken from 15 s until 200 s, where an idle one is looked at next.
        assert!(
            (85.0..186.0).contains(&outcome.card_s),
            "{}",
            outcome.card_s
        );
        let waited_s = outcome.requests[0].ttft_s.expect("served");
        assert!((70.0..71.0).contains(&waited_s), "{waited_s}");
        // Sent when there was none any more, and held until the end.
        assert_eq!(outcome.requests[1].ttft_s, LOST);
    }

    #[test]
    fn requests_are_spread_and_a_replica_that_ends_finishes_its_own() {
        let mut fleet = fleet(&[1.0, 1.0, 1.0, 1.0]);
        fleet.begin_with(2).expect("ready");
        let state = advance(&mut fleet, 1.005, 2);
        let on: Vec<usize> = fleet.replicas.iter().map(Replica::n_requests).collect();
        assert_eq!((state.n_ready, on), (2, vec![2, 2]));
        let state = advance(&mut fleet, 1.01, 1);
        assert_eq!((state.n_ready, state.pages.len()), (1, 2));
        let state = advance(&mut fleet, 5.0, 1);
        assert_eq!((state.n_ready, state.pages.len()), (1, 1));
        let outcome = fleet.outcome();
        assert!(
            outcome.requests.iter().all(|r| r.ttft_s.is_some()),
            "{outcome:?}"
        );
        assert!(outcome.card_s < 10.001, "{}", outcome.card_s);
    }

    #[test]
    fn what_is_not_ended_within_the_grace_and_what_is_held_too_long_is_lost() {
        let mut fleet = fleet(&[1.0, 2.0]);
        fleet.load.grace_s = 0.0;
        fleet.load.hold_s = 50.0;
        fleet.begin_with(1).expect("ready");
        advance(&mut fleet, 1.02, 1);
        advance(&mut fleet, 1.03, 0);
        advance(&mut fleet, 60.0, 0);
        advance(&mut fleet, 130.0, 1);
        let outcome = fleet.outcome();
        assert!(
            outcome.requests.iter().all(|r| r.ttft_s == LOST),
            "{outcome:?}"
        );
    }

    #[test]
    fn times_that_run_backwards_are_refused() {
        let mut fleet = fleet(&[]);
        advance(&mut fleet, 10.0, 1);
        let back = Advance {
            until_s: 9.0,
            n_replicas: 1,
        };
        let error = fleet.advance(back).expect_err("refused").to_string();
        assert!(error.contains("9 s is not after 10 s"), "{error}");
    }
}
