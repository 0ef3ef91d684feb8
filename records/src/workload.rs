//! The load on a server: the cases of an experiment and their prompts.
//!
//! The workload is that of the reports that this notebook continues: short latency samples, a
//! ladder of output lengths, a ladder of concurrent users, and (off by default) open-loop arrivals
//! at several rates, and a search for the highest load within limits. Deliberately absent: properties of the server, and limits of the values (the
//! experiments validate them before anything runs).

use serde::{Deserialize, Serialize};

/// `[workload]` of an `experiment.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Workload {
    pub endpoint: ApiEndpoint,
    /// Files of `data/prompts`, without `.jsonl`.
    pub prompts: Vec<String>,
    pub temperature: f64,
    /// Generate exactly the requested number of tokens, so that every server does equal work.
    pub ignore_eos: bool,
    pub request_timeout_s: f64,
    /// A closed loop goes on beyond its number of requests until it has lasted this long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_s: Option<f64>,
    pub warmup: Batch,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Batch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ladder: Option<Ladder>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Users>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<SloSearch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Models>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Limits>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ApiEndpoint {
    /// `/v1/completions`: the prompt as it is.
    Completions,
    /// `/v1/chat/completions`: the prompt as one user message.
    Chat,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Batch {
    pub n_requests: u32,
    pub output_tokens: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Ladder {
    pub output_tokens: Vec<u32>,
    pub n_requests: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Users {
    pub n_users: Vec<u32>,
    pub output_tokens: u32,
    pub n_requests_per_user: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rate {
    pub rates_per_s: Vec<f64>,
    pub output_tokens: u32,
    /// Of each rate; null where `measured_s` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_requests: Option<u32>,
    /// So long requests arrive at each rate: the curve's points last alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_s: Option<f64>,
}

impl Rate {
    /// At one of its rates.
    pub fn n_requests_at(&self, rate_per_s: f64) -> u32 {
        let by_time = self.measured_s.map(|s| (rate_per_s * s).ceil() as u32);
        self.n_requests.or(by_time).unwrap_or_default().max(1)
    }
}

/// A search for the highest load at which a share of the requests meets limits: the load is doubled
/// until it is too much, then bisected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SloSearch {
    pub load: LoadKind,
    /// Tried first: requests a second, or users.
    pub start: f64,
    /// Tried last.
    pub limit: f64,
    /// So long requests arrive in each trial.
    pub measured_s: f64,
    pub output_tokens: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2el_ms: Option<f64>,
    /// Of all requests of a trial, failed ones included, that must meet every limit.
    pub share: f64,
}

/// What an SLO search varies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum LoadKind {
    /// The rate of Poisson arrivals.
    Open,
    /// The number of users.
    Closed,
}

impl SloSearch {
    pub fn limits(&self) -> Limits {
        Limits {
            ttft_ms: self.ttft_ms,
            tpot_ms: self.tpot_ms,
            e2el_ms: self.e2el_ms,
        }
    }

    /// One trial. `load`: requests a second, or whole users.
    pub fn case_at(&self, load: f64) -> Case {
        let (name, arrival, n_requests) = match self.load {
            LoadKind::Open => (
                format!("slo-rate-{load}"),
                Arrival::OpenLoop { rate_per_s: load },
                (load * self.measured_s).ceil() as u32,
            ),
            LoadKind::Closed => {
                let n_users = load.round() as u32;
                (
                    format!("slo-users-{n_users}"),
                    Arrival::ClosedLoop { n_users },
                    n_users,
                )
            }
        };
        Case {
            name,
            phase: Phase::Slo,
            warmup: false,
            arrival,
            n_requests: n_requests.max(1),
            least_s: matches!(self.load, LoadKind::Closed).then_some(self.measured_s),
            output_tokens: self.output_tokens,
            model: None,
            round: None,
        }
    }
}

/// Several models of one server, one user each: every model while the others are idle, then all at
/// once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Models {
    /// The names in requests.
    pub names: Vec<String>,
    pub output_tokens: Vec<u32>,
    /// For each model and length.
    pub n_requests: u32,
}

/// Limits that a request must meet to count towards goodput; unset ones are ignored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Limits {
    pub ttft_ms: Option<f64>,
    pub tpot_ms: Option<f64>,
    pub e2el_ms: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Phase {
    Latency,
    Ladder,
    Users,
    Rate,
    Models,
    Slo,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrival {
    /// Each of `n_users` sends its next request when the last one has ended.
    ClosedLoop { n_users: u32 },
    /// Requests are sent at Poisson times, independently of earlier ones.
    OpenLoop { rate_per_s: f64 },
}

/// One row of the summary: requests that are measured together.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    pub name: String,
    pub phase: Phase,
    pub warmup: bool,
    pub arrival: Arrival,
    /// For all users together; at least, where the case has to last for some time.
    pub n_requests: u32,
    /// A closed loop goes on until it has lasted this long.
    pub least_s: Option<f64>,
    pub output_tokens: u32,
    /// The requested model; `None`: the server's first.
    pub model: Option<String>,
    /// Cases of one round run at the same time.
    pub round: Option<String>,
}

impl Case {
    /// The name that prompts are drawn with: cases to be compared use the same prompts.
    pub fn draw_name(&self) -> String {
        match self.model {
            Some(_) => format!("models-{}", self.output_tokens),
            None => self.name.clone(),
        }
    }
}

impl Workload {
    /// Warm-up first, then the cases in the order in which they run. The trials of an SLO search depend on
    /// one another and are not among them.
    pub fn cases(&self) -> Vec<Case> {
        let one_user = Arrival::ClosedLoop { n_users: 1 };
        let sequential = |name: String, phase, warmup, n_requests, output_tokens| Case {
            name,
            phase,
            warmup,
            arrival: one_user,
            n_requests,
            least_s: self.measured_s.filter(|_| !warmup),
            output_tokens,
            model: None,
            round: None,
        };
        let mut cases = Vec::new();
        let Batch {
            n_requests,
            output_tokens,
        } = self.warmup;
        // Several models have one each.
        if n_requests > 0 && self.models.is_none() {
            cases.push(sequential(
                "warmup".into(),
                Phase::Latency,
                true,
                n_requests,
                output_tokens,
            ));
        }
        if let Some(Batch {
            n_requests,
            output_tokens,
        }) = self.latency
        {
            let name = format!("latency-{output_tokens}");
            cases.push(sequential(
                name,
                Phase::Latency,
                false,
                n_requests,
                output_tokens,
            ));
        }
        if let Some(ladder) = &self.ladder {
            for &n in &ladder.output_tokens {
                cases.push(sequential(
                    format!("ladder-{n}"),
                    Phase::Ladder,
                    false,
                    ladder.n_requests,
                    n,
                ));
            }
        }
        if let Some(users) = &self.users {
            cases.extend(users.n_users.iter().map(|&n_users| Case {
                name: format!("users-{n_users}"),
                phase: Phase::Users,
                warmup: false,
                arrival: Arrival::ClosedLoop { n_users },
                n_requests: n_users * users.n_requests_per_user,
                least_s: self.measured_s,
                output_tokens: users.output_tokens,
                model: None,
                round: None,
            }));
        }
        if let Some(rate) = &self.rate {
            cases.extend(rate.rates_per_s.iter().map(|&rate_per_s| Case {
                name: format!("rate-{rate_per_s}"),
                phase: Phase::Rate,
                warmup: false,
                arrival: Arrival::OpenLoop { rate_per_s },
                n_requests: rate.n_requests_at(rate_per_s),
                least_s: None,
                output_tokens: rate.output_tokens,
                model: None,
                round: None,
            }));
        }
        if let Some(models) = &self.models {
            models.add_cases(&self.warmup, &mut cases);
        }
        cases
    }

    /// [`Self::cases`], grouped by those that run at the same time.
    pub fn rounds(&self) -> Vec<Vec<Case>> {
        let mut rounds: Vec<Vec<Case>> = Vec::new();
        for case in self.cases() {
            match rounds.last_mut() {
                Some(round) if case.round.is_some() && round[0].round == case.round => {
                    round.push(case);
                }
                _ => rounds.push(vec![case]),
            }
        }
        rounds
    }
}

impl Models {
    /// Each model's own warm-up, then by output length: every model alone, and all together.
    fn add_cases(&self, warmup: &Batch, cases: &mut Vec<Case>) {
        let case = |name: String, model: &String, n_requests, output_tokens| Case {
            name,
            phase: Phase::Models,
            warmup: false,
            arrival: Arrival::ClosedLoop { n_users: 1 },
            n_requests,
            least_s: None,
            output_tokens,
            model: Some(model.clone()),
            round: None,
        };
        if warmup.n_requests > 0 {
            cases.extend(self.names.iter().map(|model| Case {
                warmup: true,
                ..case(
                    format!("warmup-{model}"),
                    model,
                    warmup.n_requests,
                    warmup.output_tokens,
                )
            }));
        }
        for &n in &self.output_tokens {
            let of = |kind: &str, model: &String| {
                case(format!("{kind}-{model}-{n}"), model, self.n_requests, n)
            };
            cases.extend(self.names.iter().map(|model| of("alone", model)));
            cases.extend(self.names.iter().map(|model| Case {
                round: Some(format!("together-{n}")),
                ..of("together", model)
            }));
        }
    }
}
