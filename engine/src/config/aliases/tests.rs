//! Checks every row of the table.

use std::collections::HashSet;

use clap::CommandFactory;

use super::*;
use crate::config::ServePlan;
use crate::config::inactive::inactive_flags;
use crate::config::typed::{Device, EngineArgs, ServeArgs};

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

fn args(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn translated(line: &str) -> Result<String, String> {
    translate(&args(line), &Line::command()).map(|args| args.join(" "))
}

/// The arguments of one model's engine.
fn typed(line: &str) -> EngineArgs {
    let plan = ServePlan::read(&args(line)).unwrap_or_else(|error| panic!("{line}: {error}"));
    plan.models[0].typed.clone()
}

/// Checks that both devices give the same reason, which is not empty.
fn assert_inactive(line: &str, flag: &str, expected: &str) {
    let typed = typed(line);
    for device in [Device::Cpu, Device::Cuda] {
        let inactive = inactive_flags(&typed, device);
        let found = inactive.iter().find(|(name, _)| name.starts_with(flag));
        let (_, reason) = found.unwrap_or_else(|| panic!("{line}: {inactive:?}"));
        assert!(
            !reason.is_empty() && reason.contains(expected),
            "{line}: {reason}"
        );
    }
}

fn refusal(line: &str) -> String {
    let error = ServePlan::read(&args(line)).expect_err(line);
    error.to_string()
}

#[test]
fn every_row_does_what_it_says() {
    for alias in aliases() {
        let value = match alias.takes {
            Takes::Nothing => "",
            Takes::Value(example) | Takes::Optional(example) => example,
        };
        for name in alias.names {
            // A model's flags come after it.
            let line = format!("--model-path Qwen/Qwen3-8B {name} {value}");
            match alias.means {
                Means::Flag(ours) => {
                    let value = if value.is_empty() {
                        String::new()
                    } else {
                        format!("={value}")
                    };
                    let found = translated(&line).expect(&line);
                    assert!(
                        found.ends_with(&format!("{ours}{value}")),
                        "{line}: {found}"
                    );
                    ServePlan::read(&args(&line)).unwrap_or_else(|e| panic!("{line}: {e}"));
                }
                Means::Count(ours, defaults) => {
                    let expected = format!("{ours}={}", counted(value));
                    assert!(
                        translated(&line).expect(&line).ends_with(&expected),
                        "{line}"
                    );
                    typed(&line);
                    for default in defaults {
                        let line = format!("--model-path Qwen/Qwen3-8B {name} {default}");
                        assert_inactive(&line, name, "the default");
                    }
                }
                Means::Inactive(reason) => {
                    assert_inactive(&line, name, reason);
                    if matches!(alias.takes, Takes::Optional(_)) {
                        assert_inactive(&format!("--model-path a {name}"), name, reason);
                    }
                }
                Means::Only {
                    values,
                    reason,
                    refusal: said,
                } => {
                    for value in values {
                        let line = format!("--model-path a {name} {value}");
                        assert_inactive(&line, name, reason);
                        assert_inactive(&format!("{name}={value}"), name, reason);
                    }
                    let found = refusal(&format!("{name} 77"));
                    assert!(
                        found.contains(said) && found.contains(&format!("{name} 77")),
                        "{found}"
                    );
                }
                Means::Refused(reason) => {
                    let found = refusal(&line);
                    assert!(found.contains(reason) && found.contains(name), "{found}");
                }
                Means::Revision => {
                    let found = translated(&line).expect(&line);
                    assert_eq!(found, "--model-path Qwen/Qwen3-8B@main");
                    for model in ["./folder", "/abs/folder", "org/name@abc", "file.gguf"] {
                        let found = refusal(&format!("--model-path {model} {name} main"));
                        assert!(found.contains("org/name@revision"), "{found}");
                    }
                    assert!(refusal(&format!("{name} main")).contains("--model-path"));
                }
                Means::SameAsModel => {
                    assert_inactive(&line, name, "next to the weights");
                    let found = refusal(&format!("--model-path a {name} b"));
                    assert!(found.contains("tokenizer.json"), "{found}");
                }
                Means::Layers => {
                    assert_inactive(&line, name, "wholly on its device");
                    let found = typed(&format!("--model-path a {name} 0"));
                    assert_eq!(found.device, Some(Device::Cpu));
                }
            }
        }
    }
}

#[test]
fn every_value_does_what_it_says() {
    for ValueAlias { flag, value, means } in VALUES {
        let line = format!("{flag} {value}");
        match means {
            ValueMeans::Same(ours) => {
                assert_eq!(translated(&line).expect(&line), format!("{flag}={ours}"));
                typed(&line);
            }
            ValueMeans::Inactive(reason) => assert_inactive(&line, flag, reason),
            ValueMeans::Refused(reason) => {
                let found = refusal(&line);
                assert!(found.contains(reason) && found.contains(&line), "{found}");
            }
        }
    }
}

#[test]
fn no_name_has_two_meanings() {
    let known = known_flags(&Line::command());
    let mut seen = HashSet::new();
    for name in aliases().flat_map(|alias| alias.names) {
        assert!(seen.insert(name), "{name} is in two rows");
        assert!(!known.contains_key(*name), "{name} is a flag of ours");
    }
}

#[test]
fn our_own_words_stay_as_they_are() {
    for line in [
        "--port 0 --enable-mixed-chunk --cuda-graph-bs 1 2 4",
        "--chunked-prefill-size -1",
        "--hicache-ratio -2",
        "stray args -x",
        "--help",
        "-h",
    ] {
        assert_eq!(translated(line).as_deref(), Ok(line));
    }
    // A value is not looked up in the table.
    let found = translate(&args("--served-model-name=-m"), &Line::command());
    assert_eq!(found, Ok(args("--served-model-name=-m")));
    assert_eq!(
        translated("--max_total_tokens 64").as_deref(),
        Ok("--max-total-tokens 64")
    );
    assert_eq!(
        translated("--max_model_len=64").as_deref(),
        Ok("--context-length=64")
    );
    assert_eq!(
        translated("--max-model-len 32K").as_deref(),
        Ok("--context-length=32768")
    );
    let twice = translate(&args("--tp 1 --dtype half"), &Line::command()).expect("translated");
    assert_eq!(translate(&twice, &Line::command()), Ok(twice));
}

#[test]
fn everything_unknown_is_named_at_once_with_fair_tips() {
    let found = refusal("--tpx 1 --max-runing-requests 4 --prot 3 --enable-frobs --port 1 --tp 2");
    for part in [
        "--tpx,",
        "--max-runing-requests (did you mean --max-running-requests?)",
        "--prot (did you mean --port?)",
        "--enable-frobs are not known",
        "--tp 2: a model runs on one device here",
    ] {
        assert!(found.contains(part), "{part} is not in: {found}");
    }
    assert_eq!(found.matches("did you mean").count(), 2, "{found}");
}

/// A launch line of each of the three programs, as their users paste them.
#[test]
fn everyday_launch_lines_are_accepted() {
    for line in [
        "--model-path Qwen/Qwen3-8B-AWQ --tp 1 --dp-size 1 --log-level info --enable-metrics \
         --tokenizer-mode auto --revision main --download-dir /models --page-size 16 \
         --watchdog-timeout 300 --skip-server-warmup --enable-cache-report \
         --json-model-override-args {} --dtype half --tool-call-parser qwen25 \
         --attention-backend fa3 --mem-fraction-static 0.85",
        "--model Qwen/Qwen3-8B-AWQ --max-model-len 8192 --gpu-memory-utilization 0.9 \
         --max-num-seqs 64 --enforce-eager --enable-prefix-caching --served-model-name qwen \
         --quantization awq_marlin --tensor-parallel-size 1 --disable-log-requests \
         --enable-auto-tool-choice --tool-call-parser hermes --dtype auto",
        "-m model.gguf -c 4096 -ngl 99 -np 4 --host 0.0.0.0 --port 8080 -fa on -t 8 --jinja",
    ] {
        ServePlan::read(&args(line)).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn the_table_is_in_flags_md() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("FLAGS.md");
    let page = std::fs::read_to_string(path).expect("FLAGS.md");
    assert!(
        page.contains(&markdown()),
        "FLAGS.md lacks this:\n{}",
        markdown()
    );
}
