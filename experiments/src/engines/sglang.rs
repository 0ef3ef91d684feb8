//! SGLang, a Python package: `python3 -m sglang.launch_server`.
//!
//! An experiment's flags carry SGLang's names. `documents` gives them as they stand (with those names
//! that newer versions changed); `best` keeps what decides how much work there is and leaves the rest to
//! SGLang's own defaults.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::Rule::{As, LeftOut};
use super::program::{Program, PythonPackage};
use super::{Adapter, Preset, Rule, Rules, refusal_of_no_folder, rule_in};

#[derive(Debug)]
pub struct Sglang;

const PACKAGE: PythonPackage = PythonPackage {
    name: "sglang",
    module: "sglang.launch_server",
    arguments: &[],
};

const DOCUMENTS: &str = "documents";

static PRESETS: [Preset; 2] = [
    Preset {
        name: "best",
        // Its graphs of prompts take minutes to capture and gain nothing at these lengths.
        flags: &["--disable-prefill-cuda-graph"],
    },
    Preset {
        name: DOCUMENTS,
        flags: &[],
    },
];

/// What decides how much work there is, for both presets.
const WORK: Rules = &[
    ("mem-fraction-static", As("mem-fraction-static")),
    ("disable-radix-cache", As("disable-radix-cache")),
    ("disable-custom-all-reduce", As("disable-custom-all-reduce")),
    ("max-running-requests", As("max-running-requests")),
    ("context-length", As("context-length")),
    ("dtype", As("dtype")),
    ("quantization", As("quantization")),
    ("kv-cache-dtype", As("kv-cache-dtype")),
    ("load-format", As("load-format")),
    ("random-seed", As("random-seed")),
    ("stream-interval", As("stream-interval")),
    ("chat-template", As("chat-template")),
    ("allow-auto-truncate", As("allow-auto-truncate")),
    ("decode-log-interval", As("decode-log-interval")),
    (
        "disable-flashinfer",
        LeftOut("removed from SGLang; the backends are named instead"),
    ),
];

/// What the documents tune.
const TUNED: Rules = &[
    ("attention-backend", As("attention-backend")),
    ("sampling-backend", As("sampling-backend")),
    (
        "triton-attention-num-kv-splits",
        As("triton-attention-num-kv-splits"),
    ),
    (
        "triton-attention-reduce-in-fp32",
        As("triton-attention-reduce-in-fp32"),
    ),
    ("disable-cuda-graph", As("disable-cuda-graph")),
    ("cuda-graph-max-bs", As("cuda-graph-max-bs-decode")),
    ("cuda-graph-bs", As("cuda-graph-bs-decode")),
    ("enable-torch-compile", As("enable-torch-compile")),
    ("torch-compile-max-bs", As("torch-compile-max-bs")),
    ("schedule-policy", As("schedule-policy")),
    ("schedule-conservativeness", As("schedule-conservativeness")),
    ("enable-mixed-chunk", As("enable-mixed-chunk")),
    ("enable-two-batch-overlap", As("enable-two-batch-overlap")),
    ("disable-overlap-schedule", As("disable-overlap-schedule")),
    (
        "num-continuous-decode-steps",
        As("num-continuous-decode-steps"),
    ),
    ("max-prefill-tokens", As("max-prefill-tokens")),
    ("chunked-prefill-size", As("chunked-prefill-size")),
    ("max-total-tokens", As("max-total-tokens")),
    ("enable-hierarchical-cache", As("enable-hierarchical-cache")),
    ("hicache-ratio", As("hicache-ratio")),
    (
        "stream-output",
        LeftOut(
            "renamed since, and only the form of SGLang's own endpoint; completions stream new tokens alone",
        ),
    ),
];

impl Adapter for Sglang {
    fn name(&self) -> &'static str {
        "sglang"
    }

    fn presets(&self) -> &'static [Preset] {
        &PRESETS
    }

    fn rule(&self, preset: &Preset, flag: &str) -> Option<Rule> {
        rule_in(WORK, flag).or_else(|| {
            let tuned = rule_in(TUNED, flag)?;
            Some(match preset.name {
                DOCUMENTS => tuned,
                _ => LeftOut("the preset best leaves it to SGLang's default"),
            })
        })
    }

    fn ready_limit(&self) -> Duration {
        // Its first start on a machine compiles kernels with nvcc, for minutes.
        Duration::from_mins(30)
    }

    fn find(&self, place: Option<&Path>) -> Result<Program> {
        let mut program = PACKAGE.find(place)?;
        let offline = ("HF_HUB_OFFLINE".to_owned(), "1".to_owned());
        program.environment.extend([offline]);
        Ok(program)
    }

    fn refusal(&self, model: &Path) -> Option<String> {
        refusal_of_no_folder(model)
    }

    fn arguments(&self, model: &Path, served_name: &str, port: u16) -> Vec<String> {
        let mut arguments = vec![
            "--model-path".into(),
            model.to_string_lossy().into_owned(),
            "--served-model-name".into(),
            served_name.into(),
            "--host".into(),
            "127.0.0.1".into(),
            "--port".into(),
        ];
        arguments.extend([port.to_string(), "--enable-metrics".into()]);
        arguments
    }
}
