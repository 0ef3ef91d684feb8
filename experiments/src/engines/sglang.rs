//! SGLang, a Python package: `python3 -m sglang.launch_server`.
//!
//! An experiment's flags carry SGLang's names. `documents` gives them as they stand (with those names
//! that newer versions changed); `best` keeps what decides how much work there is and leaves the rest to
//! SGLang's own defaults; `triton` is `best` without FlashAttention 3, whose library not every
//! installation has.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::Rule::{As, LeftOut, Same};
use super::program::{Program, PythonPackage};
use super::{
    Adapter, COMPILER_FLAGS, HOST_TIER_FLAGS, KERNEL_FLAGS, PREFILL_SIZE_FLAGS, Preset, Rule,
    Rules, SCHEDULER_FLAGS, refusal_of_no_folder, rule_in,
};

#[derive(Debug)]
pub struct Sglang;

const PACKAGE: PythonPackage = PythonPackage {
    name: "sglang",
    module: "sglang.launch_server",
    arguments: &[],
};

const DOCUMENTS: &str = "documents";

static PRESETS: [Preset; 3] = [
    Preset {
        name: "best",
        // Its graphs of prompts take minutes to capture and gain nothing at these lengths.
        flags: &["--disable-prefill-cuda-graph"],
    },
    Preset {
        name: "triton",
        flags: &[
            "--disable-prefill-cuda-graph",
            "--attention-backend",
            "triton",
            "--sampling-backend",
            "pytorch",
            // More rows than any experiment has users; the default captures up to 512.
            "--cuda-graph-max-bs-decode",
            "64",
        ],
    },
    Preset {
        name: DOCUMENTS,
        flags: &[],
    },
];

/// What decides how much work there is, for both presets.
const WORK: Rules = &[
    (
        &[
            "mem-fraction-static",
            "disable-radix-cache",
            "disable-custom-all-reduce",
            "max-running-requests",
            "context-length",
            "dtype",
            "quantization",
            "kv-cache-dtype",
            "load-format",
            "random-seed",
            "stream-interval",
            "chat-template",
            "allow-auto-truncate",
            "decode-log-interval",
        ],
        Same,
    ),
    (
        &["disable-flashinfer"],
        LeftOut("removed from SGLang; the backends are named instead"),
    ),
    (
        &["speculative-algorithm"],
        LeftOut("SGLang's NGRAM drafts from other requests too, and it has no SUFFIX"),
    ),
];

/// What the documents tune.
const TUNED: Rules = &[
    (KERNEL_FLAGS, Same),
    (&["cuda-graph-max-bs"], As("cuda-graph-max-bs-decode")),
    (&["cuda-graph-bs"], As("cuda-graph-bs-decode")),
    (&["disable-cuda-graph"], Same),
    (COMPILER_FLAGS, Same),
    (SCHEDULER_FLAGS, Same),
    (PREFILL_SIZE_FLAGS, Same),
    (HOST_TIER_FLAGS, Same),
    (
        &[
            "enable-mixed-chunk",
            "num-continuous-decode-steps",
            "max-total-tokens",
        ],
        Same,
    ),
    (
        &["stream-output"],
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
                _ => LeftOut("the preset decides, or SGLang's default"),
            })
        })
    }

    fn ready_limit(&self) -> Duration {
        // Its first start on a machine compiles kernels with nvcc, for minutes.
        Duration::from_mins(30)
    }

    fn variable_prefixes(&self) -> &'static [&'static str] {
        &["SGLANG_", "SGL_"]
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
