//! `experiments project`: first tokens and decode steps on cards, from steps that were measured on
//! another one, and how far off the same method is between two real cards.
//!
//! `projected.jsonl` has a case of a card in each line; `projection.ko.md` and `projection.en.md` are
//! rendered of it. No figure of them is typed.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{DEFAULT_MODEL, engine_binary};
use crate::spec::repository::Repository;

/// The cases of all cards, and what is rendered of them.
const PROJECTED: &str = "projected.jsonl";
const PAGES: [(&str, Language); 2] = [
    ("projection.ko.md", Language::Korean),
    ("projection.en.md", Language::English),
];
/// The H200 as the H100's record projects it; then a card that never ran the engine.
const CARDS: [&str; 2] = ["h200-from-h100", "rtx-5090"];
/// What the H200 was measured to do, with its own kernels.
const MEASURED: &str = "20261130T1501_h200";
const MEASURED_SET: &str = "6592145";
/// Batch, prompt tokens, output tokens.
const CASES: [[u64; 3]; 7] = [
    [1, 128, 65],
    [8, 128, 65],
    [16, 128, 65],
    [20, 128, 65],
    [32, 128, 65],
    [64, 128, 65],
    [1, 1024, 9],
];

#[derive(Debug, Clone, Args)]
pub struct ProjectArgs {
    /// Folder that takes projected.jsonl and the pages
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Engine binary [default: `engine` beside this program]
    #[arg(long, value_name = "PATH")]
    pub engine_bin: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Projected {
    /// A file of data/cards.
    card: String,
    /// As the engine names it.
    device: String,
    batch: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    /// Of all prompts together.
    prefill_ms: f64,
    /// A step of all rows.
    decode_step_ms: f64,
    /// On the real card.
    measured: Option<Measured>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Measured {
    prefill_ms: f64,
    decode_step_ms: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Korean,
    English,
}

/// Plays every case on every card and renders the English page.
///
/// # Errors
///
/// If the engine or a record cannot be read, or the folder not be written.
pub fn project(args: &ProjectArgs, repository: &Repository) -> Result<String> {
    let engine = engine_binary(args.engine_bin.as_deref())?;
    let measured = measured(&repository.bench_dir())?;
    let mut all = Vec::new();
    for card in CARDS {
        let path = repository.cards_dir().join(format!("{card}.toml"));
        for case in CASES {
            let is_real = card == CARDS[0];
            let found = measured.iter().find(|(of, _)| is_real && *of == case);
            all.push(projected(
                &engine,
                card,
                &path,
                case,
                found.map(|(_, found)| *found),
            )?);
        }
    }
    if let Some(folder) = &args.out {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut lines = String::new();
        for case in &all {
            let _ = writeln!(lines, "{}", serde_json::to_string(case)?);
        }
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())
        };
        write(PROJECTED, &lines)?;
        for (name, language) in PAGES {
            write(name, &render(&all, language))?;
        }
    }
    Ok(render(&all, Language::English))
}

fn projected(
    engine: &Path,
    card: &str,
    path: &Path,
    [batch, prompt_tokens, output_tokens]: [u64; 3],
    measured: Option<Measured>,
) -> Result<Projected> {
    let output = Command::new(engine)
        .args([
            "bench",
            "--json",
            "--repetitions",
            "1",
            "--model-path",
            DEFAULT_MODEL,
        ])
        .arg("--card")
        .arg(path)
        .args(["--batch", &batch.to_string()])
        .args(["--prompt-tokens", &prompt_tokens.to_string()])
        .args(["--output-tokens", &output_tokens.to_string()])
        .output()
        .with_context(|| format!("{} cannot be started", engine.display()))?;
    if !output.status.success() {
        bail!("{card}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let answer: Value = serde_json::from_slice(&output.stdout).context("the engine's answer")?;
    let [prefill_ms, decode_ms] = ["prefill_ms", "decode_ms"].map(|key| answer[key][0].as_f64());
    Ok(Projected {
        card: card.to_owned(),
        device: answer["device"]
            .as_str()
            .context("the engine names no device")?
            .to_owned(),
        batch,
        prompt_tokens,
        output_tokens,
        prefill_ms: prefill_ms.context("no prefill_ms in the engine's answer")?,
        decode_step_ms: decode_ms.context("no decode_ms in the engine's answer")?
            / (output_tokens - 1) as f64,
        measured,
    })
}

/// Medians of the record's cases by the H200's own kernels.
fn measured(bench: &Path) -> Result<Vec<([u64; 3], Measured)>> {
    let path = bench.join(MEASURED).join("engine_bench.jsonl");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut cases = Vec::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
        let is_int8 = line["arguments"]
            .as_str()
            .is_some_and(|a| a.contains("int8"));
        if line["set"] != MEASURED_SET || !line["card_profile_asked"].is_null() || is_int8 {
            continue;
        }
        let count = |key: &str| line[key].as_u64().with_context(|| format!("no {key}"));
        let case = [
            count("batch")?,
            count("prompt_tokens")?,
            count("output_tokens")?,
        ];
        let median = |key: &str| -> Result<f64> {
            let samples = line[key].as_array().with_context(|| format!("no {key}"))?;
            let mut samples: Vec<f64> = samples.iter().filter_map(Value::as_f64).collect();
            samples.sort_by(f64::total_cmp);
            samples
                .get(samples.len() / 2)
                .copied()
                .with_context(|| format!("no {key}"))
        };
        let measured = Measured {
            prefill_ms: median("prefill_ms")?,
            decode_step_ms: median("decode_ms")? / (case[2] - 1) as f64,
        };
        cases.push((case, measured));
    }
    Ok(cases)
}

/// (simulated − measured) / measured.
fn deviation(projected: f64, measured: f64) -> f64 {
    projected / measured - 1.0
}

/// The same cases give the same text.
fn render(cases: &[Projected], language: Language) -> String {
    let pick = |korean: &'static str, english: &'static str| match language {
        Language::Korean => korean,
        Language::English => english,
    };
    let never_run = pick(
        "추정치입니다. 이 엔진의 커널은 이 카드에서 실행된 적이 없습니다.",
        "projected; no kernel of this engine has run on this card.",
    );
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "# {}\n\n{}\n",
        pick("다른 카드로의 추정", "Projected onto other cards"),
        pick(
            "`cargo xtask project`가 `data/cards`와 `data/bench`의 기록에서 만든 문서입니다. 수작업으로 입력한 수치는 없습니다. Qwen3-32B-AWQ와 같은 크기의 무작위 가중치, 서버 없이 잰 값입니다.",
            "Rendered by `cargo xtask project` from `data/cards` and records in `data/bench`; no figure was typed. Random weights of Qwen3-32B-AWQ's shapes, without a server.",
        )
    );
    let of = |card: &str| {
        cases
            .iter()
            .filter(|case| case.card == card)
            .collect::<Vec<_>>()
    };
    let real = of(CARDS[0]);
    let largest = |value: fn(&Projected, &Measured) -> f64| {
        let deviations = real
            .iter()
            .filter_map(|case| Some(value(case, case.measured.as_ref()?)));
        deviations.map(f64::abs).reduce(f64::max)
    };
    let of_prefill = largest(|case, found| deviation(case.prefill_ms, found.prefill_ms));
    let of_decode = largest(|case, found| deviation(case.decode_step_ms, found.decode_step_ms));
    let percent = |share: Option<f64>| {
        share.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", 100.0 * share))
    };
    for card in &CARDS[1..] {
        let projected = of(card);
        let Some(first) = projected.first() else {
            continue;
        };
        let _ = writeln!(
            text,
            "## {}\n\n**{never_run}** {}\n",
            first.device.split(" (").next().unwrap_or(card),
            match language {
                Language::Korean => format!(
                    "같은 방법으로 H100의 기록에서 H200을 추정하면 실측과 첫 토큰은 최대 {}, 디코드 스텝은 최대 {} 차이가 납니다.",
                    percent(of_prefill),
                    percent(of_decode)
                ),
                Language::English => format!(
                    "The same method, from the H100's record to the H200, is off by up to {} in first tokens and up to {} in decode steps.",
                    percent(of_prefill),
                    percent(of_decode)
                ),
            }
        );
        text.push_str(pick(
            "| 경우 | 첫 토큰까지 ms | 디코드 스텝 ms | 디코드 tok/s |\n|---|---|---|---|\n",
            "| case | first token ms | decode step ms | decode tok/s |\n|---|---|---|---|\n",
        ));
        for case in projected {
            let _ = writeln!(
                text,
                "| {} | {:.1} | {:.2} | {:.0} |",
                name(case),
                case.prefill_ms,
                case.decode_step_ms,
                case.batch as f64 / case.decode_step_ms * 1e3
            );
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "## {}\n",
        pick(
            "H100의 기록에서 H200으로: 추정과 실측",
            "From the H100's record to the H200: projected and measured"
        )
    );
    text.push_str(pick(
        "| 경우 | 첫 토큰 추정 ms | 실측 | 차이 | 디코드 스텝 추정 ms | 실측 | 차이 |\n|---|---|---|---|---|---|---|\n",
        "| case | first token projected ms | measured | off by | decode step projected ms | measured | off by |\n|---|---|---|---|---|---|---|\n",
    ));
    for case in real {
        let Some(found) = case.measured else { continue };
        let signed = |share: f64| format!("{:+.1} %", 100.0 * share);
        let _ = writeln!(
            text,
            "| {} | {:.1} | {:.1} | {} | {:.2} | {:.2} | {} |",
            name(case),
            case.prefill_ms,
            found.prefill_ms,
            signed(deviation(case.prefill_ms, found.prefill_ms)),
            case.decode_step_ms,
            found.decode_step_ms,
            signed(deviation(case.decode_step_ms, found.decode_step_ms)),
        );
    }
    let _ = writeln!(
        text,
        "\n{}",
        pick(
            "H100의 기록(20261126T0215_h100)은 H200의 기록보다 나흘 먼저의 커널이므로, 차이에는 그 사이의 변경도 들어 있습니다.",
            "The H100's record (20261126T0215_h100) is of kernels four days older than the H200's, so the differences include what changed in between.",
        )
    );
    text
}

/// `8 × 128`
fn name(case: &Projected) -> String {
    format!("{} × {}", case.batch, case.prompt_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench_dir() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/bench")
    }

    fn recorded() -> Vec<Projected> {
        let text = fs::read_to_string(bench_dir().join("20261130_projection").join(PROJECTED));
        text.expect("the record")
            .lines()
            .map(|line| serde_json::from_str(line).expect("a case"))
            .collect()
    }

    #[test]
    fn the_pages_are_rendered_of_the_record_and_say_what_they_are() {
        let cases = recorded();
        for (file, language) in PAGES {
            let page = fs::read_to_string(bench_dir().join("20261130_projection").join(file));
            assert_eq!(page.expect("a page"), render(&cases, language), "{file}");
        }
        let english = render(&cases, Language::English);
        assert!(english.contains("**projected; no kernel of this engine has run on this card.**"));
        let korean = render(&cases, Language::Korean);
        assert!(korean.contains("이 엔진의 커널은 이 카드에서 실행된 적이 없습니다"));
    }

    /// The measured side is what the record of the runs says today.
    #[test]
    fn measured_figures_are_those_of_the_runs() {
        let measured = measured(&bench_dir()).expect("the record");
        assert!(measured.len() >= 5, "{measured:?}");
        let mut n_compared = 0;
        for case in recorded() {
            let key = [case.batch, case.prompt_tokens, case.output_tokens];
            let found = measured
                .iter()
                .find(|(of, _)| *of == key)
                .map(|(_, found)| *found);
            if case.card == CARDS[0] {
                assert_eq!(case.measured.is_some(), found.is_some(), "{key:?}");
                // A figure that is written and read again may be off by its last bit.
                let same = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-12;
                if let (Some(kept), Some(found)) = (case.measured, found) {
                    assert!(same(kept.prefill_ms, found.prefill_ms), "{key:?}");
                    assert!(same(kept.decode_step_ms, found.decode_step_ms), "{key:?}");
                    n_compared += 1;
                }
            } else {
                assert_eq!(case.measured, None, "{}: never measured", case.card);
            }
        }
        assert!(n_compared >= 5, "{n_compared}");
    }
}
