use std::path::Path;

use super::*;
use crate::spec::{Overrides, experiment_names};

fn program() -> Program {
    Program {
        command: vec!["server".into()],
        environment: BTreeMap::new(),
        version: "1".into(),
        sha256: String::new(),
        digest_of: String::new(),
    }
}

fn choice(typed: &str) -> Choice {
    let (adapter, preset) = named(typed).expect("an engine");
    Choice {
        adapter,
        preset,
        program: program(),
        model: None,
    }
}

fn shipped(name: &str) -> Experiment {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    Experiment::load(dir, name, &Overrides::default()).expect("shipped")
}

fn mapped(typed: &str) -> String {
    let (experiment, _) = choice(typed).take(&shipped("balanced-v2")).expect("mapped");
    experiment.flags.to_args().join(" ")
}

#[test]
fn balanced_v2_as_every_engine_gets_it() {
    assert_eq!(
        mapped("vllm"),
        "--disable-custom-all-reduce --gpu-memory-utilization 0.87 --no-enable-prefix-caching"
    );
    assert!(mapped("vllm@enforce-eager").contains("--enforce-eager"));
    assert_eq!(
        mapped("llama.cpp"),
        "--cache-ram 0 --ctx-size 3328 --kv-unified --no-cache-prompt --parallel 32"
    );
    let best = mapped("sglang");
    assert!(
        best.contains("--disable-radix-cache") && !best.contains("torch"),
        "{best}"
    );
    // The documents' own list, but for what newer versions have no more.
    let mut documents = shipped("balanced-v2").flags;
    for gone in ["disable-flashinfer", "stream-output"] {
        documents.set(gone, None);
    }
    assert_eq!(mapped("sglang@documents"), documents.to_args().join(" "));
}

/// Every experiment with one model is one for every engine: a flag that an adapter does not know would
/// be noticed by the first who tries.
#[test]
fn every_flag_of_the_shipped_experiments_has_a_rule() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut n_mapped = 0;
    for name in experiment_names(dir).expect("readable") {
        let experiment = shipped(&name);
        for typed in [
            "vllm",
            "vllm@enforce-eager",
            "sglang",
            "sglang@triton",
            "sglang@documents",
            "llama.cpp",
        ] {
            let taken = choice(typed).take(&experiment);
            if experiment.models.is_empty() {
                let (_, other) = taken.unwrap_or_else(|e| panic!("{name} for {typed}: {e:#}"));
                assert!(other.flags_left_out.values().all(|why| !why.is_empty()));
                n_mapped += 1;
            } else {
                assert!(taken.is_err(), "{name} has several models");
            }
        }
    }
    assert!(n_mapped > 40, "{n_mapped}");
}

#[test]
fn every_engine_has_a_default_preset_of_flags_that_parse() {
    for adapter in OTHERS {
        let presets = adapter.presets();
        assert!(presets.iter().any(|preset| preset.name == DEFAULT_PRESET));
        for preset in presets {
            assert!(adapter.rule(preset, "no-such-flag").is_none());
            let own: Vec<String> = preset.flags.iter().map(ToString::to_string).collect();
            Flags::parse(&own).expect("flags");
        }
    }
}

#[test]
fn variables_that_change_an_engine_are_recorded_and_secrets_are_not() {
    let inherited = [
        ("VLLM_USE_FLASHINFER_SAMPLER", "0"),
        ("VLLM_API_KEY", "abc"),
        ("SGLANG_X", "1"),
        ("PATH", "/bin"),
        ("HF_HUB_OFFLINE", "0"),
    ];
    let inherited = inherited.map(|(name, value)| (name.into(), value.into()));
    let mut program = program();
    program.environment = BTreeMap::from([("HF_HUB_OFFLINE".to_owned(), "1".to_owned())]);
    let (adapter, _) = named("vllm").expect("an engine");
    let found = recorded_variables(adapter, &program, inherited.into_iter());
    let expected = [
        ("HF_HUB_OFFLINE", "1"),
        ("VLLM_API_KEY", "(not recorded)"),
        ("VLLM_USE_FLASHINFER_SAMPLER", "0"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(found, BTreeMap::from(expected));
}
