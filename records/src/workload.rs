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
    /// Files of `data/prompts`, without `.jsonl`; or one that is made: `tokens:8192`, `turns:1000+400x8`.
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
    pub trace: Option<Trace>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<SloSearch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Models>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Limits>,
}

/// Where prompts come from, as `workload.prompts` names it.
///
/// ```
/// use records::workload::{Conversation, PromptSource};
///
/// assert_eq!("korean".parse(), Ok(PromptSource::File("korean".into())));
/// assert_eq!("tokens:8192".parse(), Ok(PromptSource::Tokens { n_tokens: 8192 }));
/// let turns = Conversation { first_tokens: 1000, further_tokens: 400, n_turns: 8 };
/// assert_eq!("turns:1000+400x8".parse(), Ok(PromptSource::Turns(turns)));
/// assert!("tokens:0".parse::<PromptSource>().is_err_and(|e| e.contains("1 to 1000000")));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptSource {
    /// `data/prompts/NAME.jsonl`.
    File(String),
    /// `tokens:N`: N token ids, drawn anew for each request.
    Tokens {
        n_tokens: u32,
    },
    Turns(Conversation),
    /// `trace:NAME`: the requests of `data/traces/NAME.jsonl`, with their times and lengths.
    Trace(String),
}

/// `turns:FIRST+FURTHERxN`: conversations of N requests, as an agent has them. The first one has FIRST
/// token ids; each further one repeats the last and adds FURTHER: an answer and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversation {
    pub first_tokens: u32,
    pub further_tokens: u32,
    pub n_turns: u32,
}

/// Token ids of a prompt that is made.
const MOST_TOKENS: u64 = 1_000_000;
const MOST_TURNS: u32 = 1_000;

impl std::str::FromStr for PromptSource {
    /// What the text must be.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |what: &str, text: &str, most: u64| match text.parse::<u32>() {
            Ok(n) if n > 0 && u64::from(n) <= most => Ok(n),
            _ => Err(format!("{what} from 1 to {most}")),
        };
        if let Some(n) = text.strip_prefix("tokens:") {
            let n_tokens = number("tokens:N with N", n, MOST_TOKENS)?;
            return Ok(Self::Tokens { n_tokens });
        }
        if let Some(shape) = text.strip_prefix("turns:") {
            let parts = shape.split_once('+').and_then(|(first, rest)| {
                let (further, n) = rest.split_once('x')?;
                Some((first, further, n))
            });
            let Some((first, further, n)) = parts else {
                return Err("of the form turns:FIRST+FURTHERxN".to_owned());
            };
            let turns = Conversation {
                first_tokens: number("turns:FIRST+FURTHERxN with FIRST", first, MOST_TOKENS)?,
                further_tokens: number("turns:FIRST+FURTHERxN with FURTHER", further, MOST_TOKENS)?,
                n_turns: number("turns:FIRST+FURTHERxN with N", n, u64::from(MOST_TURNS))?,
            };
            if turns.last_tokens() > MOST_TOKENS {
                let last = turns.last_tokens();
                return Err(format!(
                    "turns of at most {MOST_TOKENS} tokens, and the last one has {last}"
                ));
            }
            return Ok(Self::Turns(turns));
        }
        let (name, is_trace) = match text.strip_prefix("trace:") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let is_file_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_file_name) {
            return Err(
                "the name of a file in data/prompts, without .jsonl (letters, digits, `-`, `_`, `.`), \
                 or tokens:N, turns:FIRST+FURTHERxN, trace:NAME"
                    .to_owned(),
            );
        }
        Ok(if is_trace {
            Self::Trace(name.to_owned())
        } else {
            Self::File(name.to_owned())
        })
    }
}

impl Conversation {
    /// Token ids of the last prompt.
    pub fn last_tokens(self) -> u64 {
        u64::from(self.first_tokens)
            + u64::from(self.further_tokens) * u64::from(self.n_turns.saturating_sub(1))
    }
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

/// Requests that arrive as they did elsewhere. What they are is in the trace that `prompts` names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Trace {
    /// How many times as fast as they arrived then: one case each.
    pub speeds: Vec<f64>,
    /// The first N of the trace.
    pub n_requests: u32,
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
    Trace,
    Models,
    Slo,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrival {
    /// Each of `n_users` sends its next request when the last one has ended.
    ClosedLoop { n_users: u32 },
    /// Requests are sent at Poisson times, independently of earlier ones.
    OpenLoop { rate_per_s: f64 },
    /// Requests are sent at a trace's times, `speed` times as fast.
    Trace { speed: f64 },
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
        if let Some(trace) = &self.trace {
            cases.extend(trace.speeds.iter().map(|&speed| Case {
                name: format!("trace-{speed}x"),
                phase: Phase::Trace,
                warmup: false,
                arrival: Arrival::Trace { speed },
                n_requests: trace.n_requests,
                least_s: None,
                // Each request has its own.
                output_tokens: 0,
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
