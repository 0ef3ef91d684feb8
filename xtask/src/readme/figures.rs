//! Reads the figures out of the records.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    /// Tokens a second of all sequences together, after prompts of 128 tokens.
    Decode { batch: u64 },
    /// Milliseconds from prompts to the first token of each.
    FirstToken { batch: u64, prompt_tokens: u64 },
}

pub type Figures = BTreeMap<Case, f64>;

/// One program's record.
#[derive(Debug, Clone, Copy)]
pub struct Side {
    pub name: &'static str,
    pub file: &'static str,
    pub form: Form,
}

#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// `engine bench --json`: milliseconds of every repetition.
    EngineBench,
    /// `experiments/peers/*_offline.py`: median seconds of a case with `out` output tokens.
    OfflinePeer,
}

const DECODE_PROMPT_TOKENS: u64 = 128;

impl Side {
    pub fn read(&self, folder: &Path) -> Result<Figures> {
        let path = folder.join(self.file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let figures = match self.form {
            Form::EngineBench => of_engine_bench(&text),
            Form::OfflinePeer => of_offline_peer(&text),
        };
        figures.with_context(|| path.display().to_string())
    }
}

fn rows(text: &str) -> impl Iterator<Item = Result<Value>> {
    let parse =
        |(index, line)| serde_json::from_str(line).with_context(|| format!("line {}", index + 1));
    text.lines().enumerate().map(parse)
}

/// Lines with flags beyond the case are other configurations, and left out.
fn of_engine_bench(text: &str) -> Result<Figures> {
    const OF_THE_CASE: [&str; 3] = ["--batch", "--prompt-tokens", "--output-tokens"];
    let mut figures = Figures::new();
    for row in rows(text) {
        let row = row?;
        let arguments = row["arguments"].as_str().context("arguments")?;
        let mut flags = arguments.split(' ').filter(|part| part.starts_with("--"));
        if !flags.all(|flag| OF_THE_CASE.contains(&flag)) {
            continue;
        }
        let (batch, prompt_tokens) = (count(&row, "batch")?, count(&row, "prompt_tokens")?);
        if prompt_tokens == DECODE_PROMPT_TOKENS {
            let n_decoded = batch * (count(&row, "output_tokens")? - 1);
            let tokens_per_s = n_decoded as f64 * 1e3 / median(&row, "decode_ms")?;
            insert(&mut figures, Case::Decode { batch }, tokens_per_s)?;
        }
        let case = Case::FirstToken {
            batch,
            prompt_tokens,
        };
        insert(&mut figures, case, median(&row, "prefill_ms")?)?;
    }
    Ok(figures)
}

/// Decoding is the difference between an output of many tokens and one of one.
fn of_offline_peer(text: &str) -> Result<Figures> {
    const DECODED: u64 = 129;
    let mut seconds = BTreeMap::new();
    for row in rows(text) {
        let row = row?;
        let key = (
            count(&row, "batch")?,
            count(&row, "prompt")?,
            count(&row, "out")?,
        );
        let median_s = row["s_med"].as_f64().context("s_med")?;
        if seconds.insert(key, median_s).is_some() {
            bail!("a case is there twice: {key:?}");
        }
    }
    let mut figures = Figures::new();
    for (&(batch, prompt_tokens, out), &first_token_s) in &seconds {
        if out != 1 {
            continue;
        }
        let case = Case::FirstToken {
            batch,
            prompt_tokens,
        };
        insert(&mut figures, case, first_token_s * 1e3)?;
        if prompt_tokens != DECODE_PROMPT_TOKENS {
            continue;
        }
        if let Some(all_s) = seconds.get(&(batch, prompt_tokens, DECODED)) {
            let tokens_per_s = (batch * (DECODED - 1)) as f64 / (all_s - first_token_s);
            insert(&mut figures, Case::Decode { batch }, tokens_per_s)?;
        }
    }
    Ok(figures)
}

fn insert(figures: &mut Figures, case: Case, value: f64) -> Result<()> {
    if !(value.is_finite() && value > 0.0) {
        bail!("{case:?}: {value} is no figure");
    }
    if figures.insert(case, value).is_some() {
        bail!("{case:?} is there twice");
    }
    Ok(())
}

fn count(row: &Value, key: &str) -> Result<u64> {
    let found = row[key].as_u64().filter(|count| *count > 0);
    found.with_context(|| format!("{key}: {} is no count", row[key]))
}

fn median(row: &Value, key: &str) -> Result<f64> {
    let samples: Option<Vec<f64>> = row[key]
        .as_array()
        .and_then(|samples| samples.iter().map(Value::as_f64).collect());
    let mut samples = samples.with_context(|| format!("{key}: not a list of numbers"))?;
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    match samples.len() {
        0 => bail!("{key}: no sample"),
        n if n % 2 == 1 => Ok(samples[middle]),
        _ => Ok(f64::midpoint(samples[middle - 1], samples[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_bench_takes_medians_of_the_plain_configuration() {
        let text = r#"{"batch":2,"prompt_tokens":128,"output_tokens":11,"prefill_ms":[9,5,7],"decode_ms":[100,300,200],"arguments":"--batch 2 --prompt-tokens 128 --output-tokens 11"}
{"batch":2,"prompt_tokens":128,"output_tokens":11,"prefill_ms":[1],"decode_ms":[1],"arguments":"--batch 2 --dtype bfloat16"}
{"batch":1,"prompt_tokens":1024,"output_tokens":11,"prefill_ms":[30,20],"decode_ms":[1],"arguments":"--batch 1 --prompt-tokens 1024"}"#;
        let expected = [
            (Case::Decode { batch: 2 }, 100.0),
            (
                Case::FirstToken {
                    batch: 2,
                    prompt_tokens: 128,
                },
                7.0,
            ),
            (
                Case::FirstToken {
                    batch: 1,
                    prompt_tokens: 1024,
                },
                25.0,
            ),
        ];
        assert_eq!(of_engine_bench(text).unwrap(), Figures::from(expected));
    }

    #[test]
    fn a_peer_decodes_in_the_difference_of_two_cases() {
        let text = r#"{"batch":4,"prompt":128,"out":1,"s_med":0.5}
{"batch":4,"prompt":128,"out":129,"s_med":2.5}
{"batch":1,"prompt":1024,"out":1,"s_med":0.1}
{"batch":1,"prompt":1024,"out":129,"s_med":3.0}"#;
        let expected = [
            (Case::Decode { batch: 4 }, 256.0),
            (
                Case::FirstToken {
                    batch: 4,
                    prompt_tokens: 128,
                },
                500.0,
            ),
            (
                Case::FirstToken {
                    batch: 1,
                    prompt_tokens: 1024,
                },
                100.0,
            ),
        ];
        assert_eq!(of_offline_peer(text).unwrap(), Figures::from(expected));
    }

    #[test]
    fn broken_records_are_refused() {
        assert!(of_offline_peer("{").is_err());
        assert!(of_offline_peer(r#"{"batch":1,"prompt":128,"out":1}"#).is_err());
        let twice = r#"{"batch":1,"prompt":128,"out":1,"s_med":1}"#;
        assert!(of_offline_peer(&format!("{twice}\n{twice}")).is_err());
        // The longer output took no longer: there is no speed to show.
        let impossible = format!("{twice}\n{}", twice.replace(r#""out":1"#, r#""out":129"#));
        assert!(of_offline_peer(&impossible).is_err());
        let no_samples = r#"{"batch":1,"prompt_tokens":1,"output_tokens":2,"prefill_ms":[],"decode_ms":[],"arguments":"--batch 1"}"#;
        assert!(of_engine_bench(no_samples).is_err());
    }
}
