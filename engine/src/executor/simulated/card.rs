//! The data of a GPU: its rates from the data sheet, and steps measured on it or on a similar one.
//! Read from a TOML file; no such figure is in the code.

use std::path::{Path, PathBuf};

use serde::Deserialize;

#[derive(Debug, thiserror::Error)]
pub enum CardError {
    #[error("card {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("card {path}: {message}")]
    Toml { path: PathBuf, message: String },
    #[error("card {path}: {field} is {value}; it must be {limit}")]
    Field {
        path: PathBuf,
        field: &'static str,
        value: String,
        limit: &'static str,
    },
}

/// Rates of the data sheet.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    pub name: String,
    /// The origin of the figures.
    pub source: String,
    pub memory_bytes: u64,
    /// Bandwidth of device memory.
    pub bandwidth_gb_per_s: f64,
    /// Dense fp16 products with fp32 sums on the tensor cores, by the instruction that the steps'
    /// kernels use.
    pub fp16_tflops: f64,
    pub n_sms: u32,
    pub clock_ghz: f64,
    /// Copies between host and device, one way.
    pub host_link_gb_per_s: f64,
}

impl Rates {
    /// Cycles of all multiprocessors together for each second.
    pub fn sm_cycles_per_s(&self) -> f64 {
        f64::from(self.n_sms) * self.clock_ghz * 1e9
    }
}

/// The model that the steps were measured with.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredModel {
    /// Bytes of the layers' matrices, and of lm_head.
    pub layer_bytes: u64,
    pub head_bytes: u64,
    /// Elements of the same.
    pub layer_elements: u64,
    pub head_elements: u64,
    pub kv_bytes_per_token: u64,
    pub n_layers: usize,
    pub n_q_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
}

/// Steps that decode `rows` sequences of `context_tokens` each.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodePoint {
    pub rows: usize,
    pub context_tokens: f64,
    pub ms: f64,
    /// Whether it was replayed from a graph of that many rows.
    #[serde(default)]
    pub graph: bool,
}

/// A prompt of `tokens` alone on an idle server, from sending to the first token; with `prompts`,
/// several of equal length in one pass.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillPoint {
    /// Of all prompts together.
    pub tokens: usize,
    #[serde(default = "one")]
    pub prompts: usize,
    pub ms: f64,
    /// The step alone, without a server.
    #[serde(default)]
    pub step_alone: bool,
}

const fn one() -> usize {
    1
}

/// Attention over packed prompt chunks. A block has some rows, each a token and one of the query
/// heads of a KV head, and processes all keys that they see, tile by tile; blocks share no work.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedAttention {
    pub block_rows: usize,
    pub tile_tokens: usize,
    /// Time of a tile in a block that has its multiprocessor to itself.
    pub tile_us: f64,
    /// Time of a tile when the multiprocessors are full of blocks: total time over tiles.
    pub full_tile_us: f64,
}

/// Measured steps, and parameters that cannot be derived from a single step.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steps {
    /// The runs and the engine that the figures come from.
    pub source: String,
    /// Runs that some figure here was fitted on: their predictions say less than those of others.
    pub fitted_on: Vec<String>,
    pub model: MeasuredModel,
    /// Rows that go through the layers together; longer steps are split.
    pub max_pass_rows: usize,
    pub packed_attention: PackedAttention,
    /// Share of the bandwidth that a plain read of the memory reaches.
    pub read_share: f64,
    /// Share of the bandwidth with which attention in decode steps reads KV.
    pub kv_bandwidth_share: f64,
    /// Rate at which it reads KV that another row of the step has read: from the cache.
    pub shared_kv_gb_per_s: f64,
    /// Time of a step in two halves on two streams, relative to the halves one after the other.
    pub two_halves_share: f64,
    /// Cost of launching a pass without a graph.
    pub launch_ms: f64,
    /// Time from sending a request to its place in the queue, and back: HTTP, JSON, tokenizer.
    pub request_ms: f64,
    /// Interval between the arrivals of requests that are sent at once: they are accepted one by
    /// one.
    pub arrival_spacing_ms: f64,
    /// Time of the tokenizer for each prompt token.
    pub tokenize_us: f64,
    pub decode: Vec<DecodePoint>,
    pub prefill: Vec<PrefillPoint>,
}

/// The steps of a GPU and the rates of the one they were measured on.
#[derive(Debug, Clone)]
pub struct Card {
    pub rates: Rates,
    pub steps: Steps,
    /// Rates of the GPU that the steps were measured on.
    pub measured_on: Rates,
    /// No kernel of this engine has run on this GPU: everything about it is projected.
    pub never_run: bool,
}

/// What every output about a GPU says that never ran this engine.
pub const NEVER_RUN: &str = "projected; no kernel of this engine has run on this card";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CardFile {
    rates: Rates,
    steps: Option<Steps>,
    /// Another file in this folder with the steps, if this one has none.
    steps_of: Option<String>,
    #[serde(default)]
    never_run: bool,
}

impl Card {
    /// Reads a GPU's file and, if it has no measured steps, those of the GPU it names.
    ///
    /// # Errors
    ///
    /// [`CardError::Read`] if a file cannot be read; [`CardError::Toml`] if it is no TOML of
    /// this form, has both or neither of `[steps]` and `steps_of`, or names a GPU without steps;
    /// [`CardError::Field`] if a rate or a step is not above 0.
    pub fn read(path: &Path) -> Result<Self, CardError> {
        let own = read_file(path)?;
        let toml = |message: &str| CardError::Toml {
            path: path.into(),
            message: message.to_owned(),
        };
        let (steps, measured_on, from) = match (own.steps, own.steps_of) {
            (Some(steps), None) => (steps, own.rates.clone(), path.to_path_buf()),
            (None, Some(name)) => {
                let other_path = path.with_file_name(name);
                let other = read_file(&other_path)?;
                let steps = other
                    .steps
                    .ok_or_else(|| toml("steps_of names a GPU without steps"))?;
                (steps, other.rates, other_path)
            }
            _ => return Err(toml("either [steps] or steps_of is needed, and not both")),
        };
        check(path, &own.rates)?;
        check(&from, &measured_on)?;
        check_steps(&from, &steps)?;
        Ok(Self {
            rates: own.rates,
            steps,
            measured_on,
            never_run: own.never_run,
        })
    }
}

fn read_file(path: &Path) -> Result<CardFile, CardError> {
    let text = std::fs::read_to_string(path).map_err(|source| CardError::Read {
        path: path.into(),
        source,
    })?;
    toml::from_str(&text).map_err(|error| CardError::Toml {
        path: path.into(),
        message: error.to_string(),
    })
}

fn check(path: &Path, rates: &Rates) -> Result<(), CardError> {
    let positive = [
        ("bandwidth_gb_per_s", rates.bandwidth_gb_per_s),
        ("fp16_tflops", rates.fp16_tflops),
        ("n_sms", f64::from(rates.n_sms)),
        ("clock_ghz", rates.clock_ghz),
        ("host_link_gb_per_s", rates.host_link_gb_per_s),
    ];
    for (field, value) in positive {
        above_0(path, field, value)?;
    }
    Ok(())
}

fn above_0(path: &Path, field: &'static str, value: f64) -> Result<(), CardError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(CardError::Field {
        path: path.into(),
        field,
        value: value.to_string(),
        limit: "a number above 0",
    })
}

fn check_steps(path: &Path, steps: &Steps) -> Result<(), CardError> {
    above_0(path, "kv_bandwidth_share", steps.kv_bandwidth_share)?;
    above_0(path, "read_share", steps.read_share)?;
    above_0(path, "max_pass_rows", steps.max_pass_rows as f64)?;
    above_0(path, "shared_kv_gb_per_s", steps.shared_kv_gb_per_s)?;
    above_0(path, "two_halves_share", steps.two_halves_share)?;
    let PackedAttention {
        block_rows,
        tile_tokens,
        tile_us,
        full_tile_us,
    } = steps.packed_attention;
    above_0(path, "block_rows", block_rows as f64)?;
    above_0(path, "tile_tokens", tile_tokens as f64)?;
    above_0(path, "tile_us", tile_us)?;
    above_0(path, "full_tile_us", full_tile_us)?;
    let model = &steps.model;
    above_0(path, "layer_bytes", model.layer_bytes as f64)?;
    above_0(path, "layer_elements", model.layer_elements as f64)?;
    above_0(path, "n_layers", model.n_layers as f64)?;
    above_0(path, "n_q_heads", model.n_q_heads as f64)?;
    above_0(path, "n_kv_heads", model.n_kv_heads as f64)?;
    above_0(path, "head_dim", model.head_dim as f64)?;
    for point in &steps.decode {
        above_0(path, "decode.rows", point.rows as f64)?;
        above_0(path, "decode.ms", point.ms)?;
    }
    for point in &steps.prefill {
        above_0(path, "prefill.tokens", point.tokens as f64)?;
        above_0(path, "prefill.prompts", point.prompts as f64)?;
        above_0(path, "prefill.ms", point.ms)?;
    }
    let not_negative = [
        ("launch_ms", steps.launch_ms),
        ("request_ms", steps.request_ms),
        ("arrival_spacing_ms", steps.arrival_spacing_ms),
        ("tokenize_us", steps.tokenize_us),
    ];
    for (field, value) in not_negative {
        if !(value.is_finite() && value >= 0.0) {
            return Err(CardError::Field {
                path: path.into(),
                field,
                value: value.to_string(),
                limit: "a number of at least 0",
            });
        }
    }
    if steps.decode.iter().any(|point| point.rows == 1) {
        return Ok(());
    }
    Err(CardError::Field {
        path: path.into(),
        field: "decode",
        value: format!("{} points", steps.decode.len()),
        limit: "a list with a point of 1 row",
    })
}
