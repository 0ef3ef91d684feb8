//! A speed counts only if the answers are right: what every start says of a fixed text, beside what
//! the reference said.
//!
//! The text's tokens are sent as prompts of several lengths, all at once; each is continued by some
//! greedy tokens with the log-probabilities of the likeliest. So the prefill of the first token and the
//! batched decoding of the others are both asked. Answers of two engines are compared token by token,
//! as long as both have said the same.
//!
//! The reference is the first start of a campaign that answers, for each model: one of ours where ours
//! is among the engines, since it comes first. Its later starts are compared with it like any other.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use records::manifest::{AnswerOutcome, Answers};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::load::BaseUrl;

/// Below it, or above the other, a start is wrong. Against llama.cpp's log-probabilities our engine
/// differs by 0.003 on average with 16 bits and by 0.14 with a KV cache of 8 bits, and has the same
/// likeliest token in 98 % of the steps or more (`engine/tests/golden_smollm2.rs`). Other weights differ
/// by more, even random ones with a tied embedding, whose likeliest token is often the last one again.
const LEAST_AGREEMENT: f64 = 0.9;
const MOST_MEAN_DELTA: f64 = 0.2;

/// Any text does that models continue with some certainty.
const TEXT: &str = "The capital of France is Paris. The capital of Italy is Rome. The capital of \
Spain is Madrid. Water boils at 100 degrees and freezes at 0 degrees. One, two, three, four, five, \
six, seven, eight, nine, ten. Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.";

/// Tokens of the prompts.
const PREFIXES: [usize; 8] = [4, 8, 12, 16, 24, 32, 40, 48];
const N_GREEDY: usize = 8;
const N_LIKELIEST: usize = 5;
/// The first answers of an engine that compiles while it serves.
const LIMIT: Duration = Duration::from_mins(5);

/// A start that has answered otherwise than the reference.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongAnswers(String);

/// What the references said, by the model that was asked for.
#[derive(Debug, Default)]
pub struct AnswerBook {
    by_model: Mutex<BTreeMap<String, Reference>>,
}

#[derive(Debug)]
struct Reference {
    engine: String,
    weights: Option<String>,
    prompts: Vec<Vec<u64>>,
    said: Vec<Continuation>,
}

/// What one server said, for a comparison outside a campaign, now or later.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    server: String,
    prompts: Vec<Vec<u64>>,
    said: Vec<Continuation>,
}

/// # Errors
///
/// If the server does not answer, or without log-probabilities.
pub async fn keep(base_url: &BaseUrl, model: &str) -> Result<Kept> {
    let start = outside_campaign(base_url, model);
    let prompts = prompts_of(&start).await;
    Ok(Kept {
        server: start.engine.clone(),
        said: ask(&start, &prompts).await?,
        prompts,
    })
}

/// What a server says to the same prompts, compared with what was kept.
///
/// # Errors
///
/// If the server does not answer, or without log-probabilities.
pub async fn compare_with(kept: &Kept, base_url: &BaseUrl, model: &str) -> Result<Answers> {
    let start = outside_campaign(base_url, model);
    let said = ask(&start, &kept.prompts).await?;
    Ok(judged(
        Some(kept.server.clone()),
        &compare(&kept.said, &said),
    ))
}

fn outside_campaign<'a>(base_url: &'a BaseUrl, model: &'a str) -> Start<'a> {
    Start {
        base_url,
        model,
        engine: base_url.display(),
        requested: model,
        weights: None,
        incomparable: None,
    }
}

/// A server that is asked.
#[derive(Debug)]
pub struct Start<'a> {
    pub base_url: &'a BaseUrl,
    /// As requests name it.
    pub model: &'a str,
    /// `vllm@best`
    pub engine: String,
    pub requested: &'a str,
    /// Digest of its weights.
    pub weights: Option<String>,
    pub incomparable: Option<String>,
}

/// What an engine said after one prompt, token by token.
type Continuation = Vec<Said>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Said {
    token: String,
    /// The likeliest first.
    likeliest: Vec<(String, f64)>,
}

impl AnswerBook {
    /// Asks, and compares with the reference or becomes it.
    ///
    /// # Errors
    ///
    /// If the server does not answer, or without log-probabilities.
    pub async fn check(&self, start: &Start<'_>) -> Result<Answers> {
        let mut by_model = self.by_model.lock().await;
        let Some(reference) = by_model.get(start.requested) else {
            if let Some(why) = &start.incomparable {
                return Ok(not_comparable(None, why));
            }
            let prompts = prompts_of(start).await;
            let reference = Reference {
                engine: start.engine.clone(),
                weights: start.weights.clone(),
                said: ask(start, &prompts).await?,
                prompts,
            };
            by_model.insert(start.requested.to_owned(), reference);
            return Ok(outcome(AnswerOutcome::Reference, None));
        };
        let name = Some(reference.engine.clone());
        if let Some(why) = why_incomparable(start, reference) {
            return Ok(not_comparable(name, &why));
        }
        let said = ask(start, &reference.prompts).await?;
        Ok(judged(name, &compare(&reference.said, &said)))
    }
}

fn why_incomparable(start: &Start<'_>, reference: &Reference) -> Option<String> {
    if start.incomparable.is_some() {
        return start.incomparable.clone();
    }
    let (own, theirs) = (start.weights.as_ref()?, reference.weights.as_ref()?);
    (own != theirs).then(|| {
        format!(
            "its weights are not the files of {}; one checkpoint for all engines (`cargo xtask model <id> --write FOLDER` writes a synthetic one) makes them comparable",
            reference.engine
        )
    })
}

fn outcome(outcome: AnswerOutcome, reference: Option<String>) -> Answers {
    Answers {
        outcome,
        reference,
        n_positions: 0,
        argmax_agreement: None,
        mean_abs_delta: None,
        max_abs_delta: None,
        least_agreement: None,
        most_mean_delta: None,
        reason: None,
    }
}

fn not_comparable(reference: Option<String>, why: &str) -> Answers {
    Answers {
        reason: Some(why.to_owned()),
        ..outcome(AnswerOutcome::NotComparable, reference)
    }
}

/// One line for the terminal.
pub fn told(answers: &Answers) -> String {
    let reference = answers.reference.as_deref().unwrap_or("no other engine");
    match answers.outcome {
        AnswerOutcome::Reference => "its answers are the reference".into(),
        AnswerOutcome::NotComparable => format!(
            "answers not comparable: {}",
            answers.reason.as_deref().unwrap_or_default()
        ),
        AnswerOutcome::Right | AnswerOutcome::Wrong => format!(
            "answers beside those of {reference}: {}",
            figures_of(answers)
        ),
    }
}

fn figures_of(answers: &Answers) -> String {
    let shown = |value: Option<f64>| value.map_or_else(|| "-".into(), |v| format!("{v:.4}"));
    format!(
        "the likeliest token is the same in a share of {} ({} positions), mean |Δ log-probability| {}",
        shown(answers.argmax_agreement),
        answers.n_positions,
        shown(answers.mean_abs_delta)
    )
}

/// Why the start is not measured.
pub fn wrong(answers: &Answers) -> Option<WrongAnswers> {
    (answers.outcome == AnswerOutcome::Wrong).then(|| {
        let reference = answers.reference.as_deref().unwrap_or_default();
        WrongAnswers(format!(
            "its answers to a fixed text are not those of {reference}: {}; the limits are {LEAST_AGREEMENT} and {MOST_MEAN_DELTA}",
            figures_of(answers)
        ))
    })
}

/// The text's tokens as the server itself cuts it, in prompts of several lengths. A server that cuts no
/// text gets tokens that every vocabulary has.
async fn prompts_of(start: &Start<'_>) -> Vec<Vec<u64>> {
    let tokens = match tokens_of(start).await {
        Some(tokens) => tokens,
        None => (0..64).map(|i| 100 + (i * 37) % 150).collect(),
    };
    let mut prompts: Vec<Vec<u64>> = PREFIXES
        .iter()
        .map(|&n| tokens[..n.min(tokens.len())].to_vec())
        .collect();
    prompts.dedup();
    prompts
}

/// In the shape of vLLM's `/tokenize`, which ours and SGLang's share, or of llama.cpp's.
async fn tokens_of(start: &Start<'_>) -> Option<Vec<u64>> {
    let shapes = [
        json!({ "model": start.model, "prompt": TEXT }),
        json!({ "content": TEXT }),
    ];
    for question in shapes {
        let answer = start.base_url.ask_root("/tokenize", &question, LIMIT).await;
        let answer: Option<Value> = answer
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let tokens = answer
            .as_ref()
            .and_then(|answer| answer["tokens"].as_array());
        let tokens: Option<Vec<u64>> =
            tokens.and_then(|tokens| tokens.iter().map(Value::as_u64).collect());
        if let Some(tokens) = tokens.filter(|tokens| tokens.len() >= PREFIXES[2]) {
            return Some(tokens);
        }
    }
    None
}

/// All prompts at once; the continuations in the prompts' order.
async fn ask(start: &Start<'_>, prompts: &[Vec<u64>]) -> Result<Vec<Continuation>> {
    let mut asked = JoinSet::new();
    for (index, prompt) in prompts.iter().enumerate() {
        let body = json!({
            "model": start.model,
            "prompt": prompt,
            "max_tokens": N_GREEDY,
            "temperature": 0,
            "ignore_eos": true,
            "logprobs": N_LIKELIEST,
        });
        let base_url = start.base_url.clone();
        asked.spawn(async move {
            let bytes = base_url.ask_api("/completions", &body, LIMIT).await?;
            let answer: Value = serde_json::from_slice(&bytes).context("no JSON")?;
            anyhow::Ok((index, continuation_in(&answer)?))
        });
    }
    let mut said = vec![Vec::new(); prompts.len()];
    while let Some(answer) = asked.join_next().await {
        let (index, continuation) = answer.context("a question")??;
        said[index] = continuation;
    }
    Ok(said)
}

/// `logprobs` in OpenAI's shape of completions (`tokens`, `top_logprobs` by name), or in llama.cpp's,
/// which is that of chats (`content`, with bytes).
fn continuation_in(answer: &Value) -> Result<Continuation> {
    let logprobs = &answer["choices"][0]["logprobs"];
    let said: Option<Continuation> = match logprobs["content"].as_array() {
        Some(content) => content.iter().map(said_in_chat).collect(),
        None => said_in_completion(logprobs),
    };
    match said {
        Some(said) if !said.is_empty() => Ok(said),
        _ => bail!("the answer has no log-probabilities of the likeliest tokens"),
    }
}

fn said_in_chat(entry: &Value) -> Option<Said> {
    let likeliest = entry["top_logprobs"].as_array()?.iter();
    let likeliest = likeliest.map(|top| Some((name_of(top)?, top["logprob"].as_f64()?)));
    Some(Said {
        token: name_of(entry)?,
        likeliest: sorted(likeliest.collect::<Option<_>>()?)?,
    })
}

/// From the bytes, where they are given: a part of a character has no text.
fn name_of(token: &Value) -> Option<String> {
    let bytes = token["bytes"].as_array();
    let bytes: Option<Vec<u8>> = bytes.and_then(|bytes| {
        let byte = |byte: &Value| u8::try_from(byte.as_u64()?).ok();
        bytes.iter().map(byte).collect()
    });
    match bytes {
        Some(bytes) => Some(String::from_utf8(bytes).unwrap_or_else(|_| '\u{fffd}'.to_string())),
        None => Some(token["token"].as_str()?.to_owned()),
    }
}

fn said_in_completion(logprobs: &Value) -> Option<Continuation> {
    let tokens = logprobs["tokens"].as_array()?;
    let tops = logprobs["top_logprobs"].as_array()?;
    let pairs = tokens.iter().zip(tops);
    pairs
        .map(|(token, top)| {
            let likeliest = top.as_object()?.iter();
            let likeliest = likeliest.map(|(name, value)| Some((name.clone(), value.as_f64()?)));
            Some(Said {
                token: token.as_str()?.to_owned(),
                likeliest: sorted(likeliest.collect::<Option<_>>()?)?,
            })
        })
        .collect()
}

/// None of no token.
fn sorted(mut likeliest: Vec<(String, f64)>) -> Option<Vec<(String, f64)>> {
    likeliest.sort_by(|a, b| b.1.total_cmp(&a.1));
    likeliest.truncate(N_LIKELIEST);
    (!likeliest.is_empty()).then_some(likeliest)
}

/// What a comparison found.
#[derive(Debug, Default, PartialEq)]
struct Found {
    n_positions: u32,
    n_equal: u32,
    deltas: Vec<f64>,
}

fn compare(reference: &[Continuation], other: &[Continuation]) -> Found {
    let mut found = Found::default();
    for (theirs, own) in reference.iter().zip(other) {
        for (theirs, own) in theirs.iter().zip(own) {
            let delta = (theirs.likeliest[0].1 - own.likeliest[0].1).abs();
            let is_equal = is_same(&theirs.likeliest[0].0, &own.likeliest[0].0, delta);
            found.n_positions += 1;
            found.n_equal += u32::from(is_equal);
            found.deltas.extend(deltas(theirs, own));
            // From here on they continue different texts.
            if !is_same(&theirs.token, &own.token, delta) {
                break;
            }
        }
    }
    found
}

/// Engines name the parts of a character differently or not at all; such a token counts as the same
/// where it is as likely.
fn is_same(one: &str, other: &str, delta: f64) -> bool {
    let is_part = |name: &str| name.contains('\u{fffd}') || name.starts_with("bytes:");
    one == other || ((is_part(one) || is_part(other)) && delta <= MOST_MEAN_DELTA)
}

/// Of the reference's likeliest tokens. One that the other does not list is at most as likely there as
/// the last that it lists.
fn deltas(reference: &Said, other: &Said) -> Vec<f64> {
    let last = other.likeliest.last().map_or(0.0, |(_, value)| *value);
    let of_one = |(name, value): &(String, f64)| {
        let own = other.likeliest.iter().find(|(own, _)| own == name);
        match own {
            Some((_, own)) => (value - own).abs(),
            None => (value - last).max(0.0),
        }
    };
    reference.likeliest.iter().map(of_one).collect()
}

fn judged(reference: Option<String>, found: &Found) -> Answers {
    let agreement = f64::from(found.n_equal) / f64::from(found.n_positions.max(1));
    let mean = found.deltas.iter().sum::<f64>() / found.deltas.len().max(1) as f64;
    let max = found.deltas.iter().copied().fold(0.0, f64::max);
    let is_right = found.n_positions > 0 && agreement >= LEAST_AGREEMENT && mean <= MOST_MEAN_DELTA;
    Answers {
        outcome: if is_right {
            AnswerOutcome::Right
        } else {
            AnswerOutcome::Wrong
        },
        reference,
        n_positions: found.n_positions,
        argmax_agreement: Some(agreement),
        mean_abs_delta: Some(mean),
        max_abs_delta: Some(max),
        least_agreement: Some(LEAST_AGREEMENT),
        most_mean_delta: Some(MOST_MEAN_DELTA),
        reason: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(tokens: &[&str], tops: &[&[(&str, f64)]]) -> Value {
        let tops: Vec<Value> = tops
            .iter()
            .map(|top| {
                top.iter()
                    .map(|(k, v)| ((*k).to_owned(), json!(v)))
                    .collect()
            })
            .collect();
        json!({ "choices": [{ "logprobs": { "tokens": tokens, "top_logprobs": tops } }] })
    }

    #[test]
    fn both_shapes_of_log_probabilities_say_the_same() {
        let one = completion(&[" a"], &[&[(" b", -2.0), (" a", -0.5)]]);
        let entry = |token: &str, logprob: f64| json!({ "id": 1, "token": token, "bytes": token.as_bytes(), "logprob": logprob });
        let mut content = entry(" a", -0.5);
        content["top_logprobs"] = json!([entry(" a", -0.5), entry(" b", -2.0)]);
        let other = json!({ "choices": [{ "logprobs": { "content": [content] } }] });
        let said = continuation_in(&one).expect("read");
        assert_eq!(said, continuation_in(&other).expect("read"));
        assert_eq!(said[0].likeliest[0], (" a".to_owned(), -0.5));
        for nothing in [
            json!({}),
            json!({ "choices": [{ "logprobs": null }] }),
            completion(&[], &[]),
        ] {
            assert!(continuation_in(&nothing).is_err(), "{nothing}");
        }
        let half = json!({ "token": "", "bytes": [0xe2, 0x80] });
        assert_eq!(name_of(&half).as_deref(), Some("\u{fffd}"));
    }

    /// Worked by hand: equal, near, then another token, after which nothing counts.
    #[test]
    fn positions_count_until_the_texts_differ() {
        let said = |tokens: &[&str], tops: &[&[(&str, f64)]]| {
            vec![continuation_in(&completion(tokens, tops)).expect("read")]
        };
        let reference = said(
            &["a", "b", "c", "d"],
            &[
                &[("a", -1.0), ("x", -2.0)],
                &[("b", -1.0)],
                &[("c", -1.0)],
                &[("d", -1.0)],
            ],
        );
        let other = said(
            &["a", "b", "z", "d"],
            &[
                &[("a", -1.1), ("y", -2.5)],
                &[("b", -1.3)],
                &[("z", -1.5)],
                &[("d", -9.0)],
            ],
        );
        let found = compare(&reference, &other);
        assert_eq!((found.n_positions, found.n_equal), (3, 2));
        let wanted = [0.1, 0.5, 0.3, 0.5];
        assert_eq!(found.deltas.len(), wanted.len());
        let close = |(a, b): (&f64, f64)| (a - b).abs() < 1e-9;
        assert!(found.deltas.iter().zip(wanted).all(close), "{found:?}");
        let answers = judged(Some("ours".into()), &found);
        assert_eq!(answers.outcome, AnswerOutcome::Wrong);
        let wrong = wrong(&answers).expect("wrong").to_string();
        assert!(
            wrong.contains("not those of ours: the likeliest token"),
            "{wrong}"
        );
        let same = judged(None, &compare(&reference, &reference));
        assert_eq!(
            (same.outcome, same.mean_abs_delta),
            (AnswerOutcome::Right, Some(0.0))
        );
        assert_eq!(
            judged(None, &Found::default()).outcome,
            AnswerOutcome::Wrong
        );
    }

    #[test]
    fn a_part_of_a_character_is_told_by_its_likelihood() {
        assert!(is_same("bytes:\\xe2", "\u{fffd}", 0.01));
        assert!(!is_same("bytes:\\xe2", "\u{fffd}", 1.0));
        assert!(!is_same("a", "b", 0.0));
    }
}
