//! llama.cpp's server, a binary that reads GGUF files.
//!
//! It has as many slots as requests may run, all in one pool of KV (`--kv-unified`), and takes the
//! pool's size for that of its context.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Rule::{As, LeftOut, Words};
use super::program::{self, Program};
use super::{
    Adapter, COMPILER_FLAGS, GRAPH_FLAGS, HOST_TIER_FLAGS, KERNEL_FLAGS, PREFILL_SIZE_FLAGS,
    Preset, Rule, Rules, SCHEDULER_FLAGS, rule_in,
};

#[derive(Debug)]
pub struct LlamaCpp;

const BINARY: &str = "llama-server";

static PRESETS: [Preset; 1] = [Preset {
    name: "best",
    // More slots than the documents' workload has users.
    flags: &["--kv-unified", "--parallel", "32"],
}];

const RULES: Rules = &[
    (
        KERNEL_FLAGS,
        LeftOut("names SGLang's kernels; llama.cpp chooses its own"),
    ),
    (GRAPH_FLAGS, LeftOut("llama.cpp decides on graphs itself")),
    (
        COMPILER_FLAGS,
        LeftOut("llama.cpp compiles nothing when it starts"),
    ),
    (
        SCHEDULER_FLAGS,
        LeftOut("SGLang's scheduler; llama.cpp's is first come, first served"),
    ),
    (
        PREFILL_SIZE_FLAGS,
        LeftOut("llama.cpp's own size of a step stands"),
    ),
    (
        HOST_TIER_FLAGS,
        LeftOut("llama.cpp keeps whole prompts on the host, not pages of a pool"),
    ),
    (
        &["num-continuous-decode-steps"],
        LeftOut("llama.cpp schedules after every step"),
    ),
    (
        &["enable-mixed-chunk"],
        LeftOut("llama.cpp always mixes prefill and decode in a step"),
    ),
    (
        &["mem-fraction-static"],
        LeftOut("llama.cpp's KV pool is as large as --ctx-size says"),
    ),
    (
        &["disable-custom-all-reduce"],
        LeftOut("concerns several GPUs"),
    ),
    (
        &["allow-auto-truncate"],
        LeftOut("the workload's prompts fit the context"),
    ),
    (&["decode-log-interval"], LeftOut("a matter of logs")),
    (
        &["speculative-algorithm"],
        LeftOut("llama.cpp looks tokens up by flags of its own"),
    ),
    (
        &["stream-output"],
        LeftOut("llama.cpp's chunks hold the new tokens alone, always"),
    ),
    (&["dtype"], LeftOut("the file decides")),
    (&["max-total-tokens"], As("ctx-size")),
    (&["max-running-requests"], As("parallel")),
    (&["random-seed"], As("seed")),
    (
        &["disable-radix-cache"],
        Words(&["--no-cache-prompt", "--cache-ram", "0"]),
    ),
];

impl Adapter for LlamaCpp {
    fn name(&self) -> &'static str {
        "llama.cpp"
    }

    fn presets(&self) -> &'static [Preset] {
        &PRESETS
    }

    fn rule(&self, _: &Preset, flag: &str) -> Option<Rule> {
        rule_in(RULES, flag)
    }

    fn ready_limit(&self) -> Duration {
        Duration::from_mins(10)
    }

    fn variable_prefixes(&self) -> &'static [&'static str] {
        &["LLAMA_", "GGML_"]
    }

    fn find(&self, place: Option<&Path>) -> Result<Program> {
        let binary = match place {
            None => program::on_path(BINARY)?,
            Some(file) if file.is_file() => file.to_owned(),
            Some(folder) => {
                let inside = ["", "bin", "build/bin"].map(|part| folder.join(part).join(BINARY));
                let found = inside.into_iter().find(|file| file.is_file());
                let Some(found) = found else {
                    bail!("{} has no {BINARY}", folder.display());
                };
                found
            }
        };
        program::binary(binary, "version:")
    }

    fn refusal(&self, model: &Path) -> Option<String> {
        let is_gguf = model
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        (!is_gguf || !model.is_file()).then(|| "it reads a GGUF file".into())
    }

    fn arguments(&self, model: &Path, served_name: &str, port: u16) -> Vec<String> {
        vec![
            "--model".into(),
            model.to_string_lossy().into_owned(),
            "--alias".into(),
            served_name.into(),
            "--host".into(),
            "127.0.0.1".into(),
            "--port".into(),
            port.to_string(),
            "--metrics".into(),
            "--no-webui".into(),
        ]
    }
}
