//! vLLM, a Python package: `python3 -m vllm.entrypoints.cli.main serve`.
//!
//! `best` is vLLM's own default (graphs, compiled); `enforce-eager` runs it without both. What the
//! documents' flags tune in SGLang has no counterpart here or would only slow vLLM down, and is left out
//! with the reason. What decides how much work there is (prefix cache, lengths, running requests) is
//! mapped.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::Rule::{As, LeftOut, Same, Words};
use super::program::{Program, PythonPackage};
use super::{
    Adapter, COMPILER_FLAGS, GRAPH_FLAGS, HOST_TIER_FLAGS, KERNEL_FLAGS, PREFILL_SIZE_FLAGS,
    Preset, Rule, Rules, SCHEDULER_FLAGS, refusal_of_no_folder, rule_in,
};

#[derive(Debug)]
pub struct Vllm;

const PACKAGE: PythonPackage = PythonPackage {
    name: "vllm",
    module: "vllm.entrypoints.cli.main",
    arguments: &["serve"],
};

static PRESETS: [Preset; 2] = [
    Preset {
        name: "best",
        flags: &[],
    },
    Preset {
        name: "enforce-eager",
        flags: &["--enforce-eager"],
    },
];

const RULES: Rules = &[
    (
        KERNEL_FLAGS,
        LeftOut("names SGLang's kernels; vLLM chooses its own"),
    ),
    (
        GRAPH_FLAGS,
        LeftOut("the preset decides: best has graphs, enforce-eager has none"),
    ),
    (
        COMPILER_FLAGS,
        LeftOut("vLLM compiles by default; enforce-eager does not"),
    ),
    (
        SCHEDULER_FLAGS,
        LeftOut("SGLang's scheduler; vLLM's is first come, first served"),
    ),
    (
        PREFILL_SIZE_FLAGS,
        LeftOut("vLLM bounds a step, not its prefill; its default stands"),
    ),
    (HOST_TIER_FLAGS, LeftOut("vLLM has no such tier built in")),
    (
        &["enable-mixed-chunk"],
        LeftOut("vLLM always mixes prefill and decode in a step"),
    ),
    (
        &["num-continuous-decode-steps"],
        LeftOut("vLLM schedules after every step"),
    ),
    (
        &["max-total-tokens"],
        LeftOut("vLLM sizes its KV pool from --gpu-memory-utilization"),
    ),
    (
        &["allow-auto-truncate"],
        LeftOut("the workload's prompts fit the context"),
    ),
    (&["decode-log-interval"], LeftOut("a matter of logs")),
    (
        &["speculative-algorithm"],
        LeftOut("vLLM speculates as a JSON of its own says"),
    ),
    (
        &["stream-output"],
        LeftOut("vLLM's chunks hold the new tokens alone, always"),
    ),
    (&["mem-fraction-static"], As("gpu-memory-utilization")),
    (
        &["disable-radix-cache"],
        Words(&["--no-enable-prefix-caching"]),
    ),
    (&["max-running-requests"], As("max-num-seqs")),
    (&["context-length"], As("max-model-len")),
    (&["random-seed"], As("seed")),
    (
        &[
            "disable-custom-all-reduce",
            "dtype",
            "quantization",
            "kv-cache-dtype",
            "load-format",
            "stream-interval",
            "chat-template",
        ],
        Same,
    ),
];

impl Adapter for Vllm {
    fn name(&self) -> &'static str {
        "vllm"
    }

    fn presets(&self) -> &'static [Preset] {
        &PRESETS
    }

    fn rule(&self, _: &Preset, flag: &str) -> Option<Rule> {
        rule_in(RULES, flag)
    }

    fn ready_limit(&self) -> Duration {
        // Its first start compiles and captures graphs.
        Duration::from_mins(20)
    }

    fn variable_prefixes(&self) -> &'static [&'static str] {
        &["VLLM_"]
    }

    fn find(&self, place: Option<&Path>) -> Result<Program> {
        let mut program = PACKAGE.find(place)?;
        for (key, value) in [
            ("VLLM_NO_USAGE_STATS", "1"),
            // The model's files are here; nothing is to be fetched or looked up in a measurement.
            ("HF_HUB_OFFLINE", "1"),
        ] {
            program.environment.insert(key.into(), value.into());
        }
        Ok(program)
    }

    fn refusal(&self, model: &Path) -> Option<String> {
        refusal_of_no_folder(model)
    }

    fn arguments(&self, model: &Path, served_name: &str, port: u16) -> Vec<String> {
        vec![
            model.to_string_lossy().into_owned(),
            "--served-model-name".into(),
            served_name.into(),
            "--host".into(),
            "127.0.0.1".into(),
            "--port".into(),
            port.to_string(),
        ]
    }
}
