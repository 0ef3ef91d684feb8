//! The prompts of a workload: `data/prompts/<language>.jsonl`, one `{id, text}` a line; long
//! ones lie compressed (`.jsonl.gz`).
//!
//! Which request gets which prompt is drawn from the seed and the case's name, so that
//! every arm of a campaign sends the same texts in the same order.
//!
//! Prompts can be made instead, of token ids that the seed draws: as long as one likes, and never the
//! same twice ([`PromptSource::Tokens`]), growing from turn to turn ([`PromptSource::Turns`]), or as long
//! as those of a trace ([`PromptSource::Trace`]).

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use records::workload::{Conversation, PromptSource};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::load::trace::{self, TraceRequest};

#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error("prompt file {path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("prompt file {path}, line {line}: {message}")]
    Line {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("prompt file {path} holds no prompt")]
    Empty { path: PathBuf },
    #[error("workload.prompts = {name}: must be {limit}")]
    Source { name: String, limit: String },
}

/// What a request sends.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    pub id: String,
    pub content: Content,
    /// Where a trace says when it comes and what it asks for.
    pub of_trace: Option<OfTrace>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OfTrace {
    /// After the first request, at the trace's own speed.
    pub at_s: f64,
    pub output_tokens: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Text(String),
    /// Token ids, which every completions endpoint takes in place of a text.
    Tokens(Vec<u32>),
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Content {
    /// As `prompt` of a request has it.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Tokens(ids) => ids.as_slice().into(),
        }
    }
}

/// A line of a prompt file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    text: String,
}

/// All prompts of a workload; never empty.
#[derive(Debug, Clone)]
pub struct PromptSet {
    kind: Kind,
    /// Of the files' bytes, in the order named; of what is made, of its name.
    pub sha256: String,
}

#[derive(Debug, Clone)]
enum Kind {
    Lines(Vec<Line>),
    Tokens { n_tokens: u32 },
    Turns(Conversation),
    Trace(Arc<[TraceRequest]>),
}

/// Token ids that are drawn: above the special tokens that vocabularies begin with, and within the
/// smallest vocabulary in use.
pub const TOKEN_IDS: std::ops::Range<u32> = 1_000..32_000;

impl PromptSet {
    /// Reads the files `names` of `dir`, or a trace of the folder `traces` beside it.
    ///
    /// # Errors
    ///
    /// [`PromptError::Read`] if a file cannot be read, [`PromptError::Line`] if a line is no
    /// prompt, has no text or repeats an id, [`PromptError::Empty`] if a file has no prompts,
    /// [`PromptError::Source`] if a name is neither a file's nor that of prompts that are made.
    pub fn load(dir: &Path, names: &[String]) -> Result<Self, PromptError> {
        let mut hash = Sha256::new();
        let mut prompts: Vec<Line> = Vec::new();
        let mut ids = HashSet::new();
        for name in names {
            let source = name.parse().map_err(|limit| PromptError::Source {
                name: name.clone(),
                limit,
            })?;
            let kind = match source {
                PromptSource::File(_) => None,
                PromptSource::Tokens { n_tokens } => Some(Kind::Tokens { n_tokens }),
                PromptSource::Turns(turns) => Some(Kind::Turns(turns)),
                PromptSource::Trace(trace) => {
                    let path = dir.with_file_name("traces").join(format!("{trace}.jsonl"));
                    Some(Kind::Trace(load_trace(&path, &mut hash)?))
                }
            };
            if let Some(kind) = kind {
                hash.update(format!("{GENERATOR} {name} {TOKEN_IDS:?}"));
                let sha256 = records::digests::hex(&hash.finalize());
                return Ok(Self { kind, sha256 });
            }
            let path = dir.join(format!("{name}.jsonl"));
            let text = records::text_file::read(&path).map_err(|source| PromptError::Read {
                path: path.clone(),
                source,
            })?;
            hash.update(text.as_bytes());
            let n_before = prompts.len();
            for (index, line) in text
                .lines()
                .enumerate()
                .filter(|(_, line)| !line.trim().is_empty())
            {
                let malformed = |message: String| PromptError::Line {
                    path: path.clone(),
                    line: index + 1,
                    message,
                };
                let prompt: Line =
                    serde_json::from_str(line).map_err(|error| malformed(error.to_string()))?;
                if prompt.text.trim().is_empty() {
                    return Err(malformed(format!("prompt `{}` has no text", prompt.id)));
                }
                if !ids.insert(prompt.id.clone()) {
                    return Err(malformed(format!("the id `{}` is taken", prompt.id)));
                }
                prompts.push(prompt);
            }
            if prompts.len() == n_before {
                return Err(PromptError::Empty { path });
            }
        }
        Ok(Self {
            kind: Kind::Lines(prompts),
            sha256: records::digests::hex(&hash.finalize()),
        })
    }

    /// Whether each user has prompts of its own, which follow one another.
    pub fn are_turns(&self) -> bool {
        matches!(self.kind, Kind::Turns(_))
    }

    /// Whether they are texts of files.
    pub fn are_texts(&self) -> bool {
        matches!(self.kind, Kind::Lines(_))
    }

    /// The prompts of one case, or of one user in it, in the order in which they are sent. A text comes
    /// again only after every other has been sent; what is made never does. A longer draw begins with
    /// the shorter one.
    pub fn draw(&self, seed: u64, case: &str, n_requests: usize) -> Vec<Prompt> {
        let mut rng = case_rng(seed, case);
        match &self.kind {
            Kind::Lines(lines) => draw_lines(lines, &mut rng, n_requests),
            Kind::Tokens { n_tokens } => (0..n_requests)
                .map(|i| Prompt {
                    id: format!("tokens-{i}"),
                    content: Content::Tokens(draw_ids(&mut rng, *n_tokens).collect()),
                    of_trace: None,
                })
                .collect(),
            Kind::Turns(turns) => draw_turns(*turns, &mut rng, n_requests),
            Kind::Trace(requests) => draw_trace(requests, seed, case, n_requests),
        }
    }
}

fn load_trace(path: &Path, hash: &mut Sha256) -> Result<Arc<[TraceRequest]>, PromptError> {
    let text = records::text_file::read(path).map_err(|source| PromptError::Read {
        path: path.to_owned(),
        source,
    })?;
    hash.update(text.as_bytes());
    let requests = trace::parse(&text).map_err(|(line, message)| PromptError::Line {
        path: path.to_owned(),
        line,
        message,
    })?;
    if requests.is_empty() {
        let path = path.to_owned();
        return Err(PromptError::Empty { path });
    }
    Ok(requests.into())
}

fn draw_trace(requests: &[TraceRequest], seed: u64, case: &str, n: usize) -> Vec<Prompt> {
    let first_s = requests.first().map_or(0.0, TraceRequest::at_s);
    let all_ids = trace::draw_ids(requests, seed, case, n);
    requests
        .iter()
        .zip(all_ids)
        .enumerate()
        .map(|(i, (request, ids))| Prompt {
            id: format!("trace-{i}"),
            content: Content::Tokens(ids),
            of_trace: Some(OfTrace {
                at_s: request.at_s() - first_s,
                output_tokens: request.output_length,
            }),
        })
        .collect()
}

fn draw_lines(lines: &[Line], rng: &mut ChaCha12Rng, n_requests: usize) -> Vec<Prompt> {
    let mut drawn: Vec<Prompt> = Vec::with_capacity(n_requests);
    while drawn.len() < n_requests && !lines.is_empty() {
        let mut round = lines.to_vec();
        round.shuffle(rng);
        let wanted = round.into_iter().take(n_requests - drawn.len());
        drawn.extend(wanted.map(|line| Prompt {
            id: line.id,
            content: Content::Text(line.text),
            of_trace: None,
        }));
    }
    drawn
}

fn draw_ids(rng: &mut ChaCha12Rng, n: u32) -> impl Iterator<Item = u32> + use<'_> {
    (0..n).map(|_| rng.random_range(TOKEN_IDS))
}

/// One conversation after another, each turn with all that was said before it.
fn draw_turns(turns: Conversation, rng: &mut ChaCha12Rng, n_requests: usize) -> Vec<Prompt> {
    let mut drawn = Vec::with_capacity(n_requests);
    let mut ids: Vec<u32> = Vec::new();
    for i in 0..n_requests {
        let (conversation, turn) = (i / turns.n_turns as usize, i % turns.n_turns as usize);
        let n_new = if turn == 0 {
            ids.clear();
            turns.first_tokens
        } else {
            turns.further_tokens
        };
        ids.extend(draw_ids(rng, n_new));
        drawn.push(Prompt {
            id: format!("turns-{conversation}-{turn}"),
            content: Content::Tokens(ids.clone()),
            of_trace: None,
        });
    }
    drawn
}

/// What prompts and arrivals are drawn with, for the record: its stream never changes, and the tests
/// below hold what is made of it.
pub const GENERATOR: &str = "chacha12";

/// A generator of its own for each case, so that leaving one out changes no other.
pub fn case_rng(seed: u64, case: &str) -> ChaCha12Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(case.as_bytes());
    ChaCha12Rng::from_seed(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Result<PromptSet, PromptError> {
        let dir = tempfile::tempdir().expect("temporary folder");
        std::fs::write(dir.path().join("x.jsonl"), text).expect("written");
        PromptSet::load(dir.path(), &["x".into()])
    }

    #[test]
    fn draws_are_seeded_and_use_every_prompt_before_repeating_one() {
        let lines: Vec<String> = (0..5)
            .map(|i| format!("{{\"id\":\"p{i}\",\"text\":\"text {i}\"}}"))
            .collect();
        let prompts = set(&lines.join("\n")).expect("five prompts");
        let drawn = prompts.draw(7, "users-5", 12);
        assert_eq!(drawn, prompts.draw(7, "users-5", 12));
        assert_ne!(drawn, prompts.draw(8, "users-5", 12));
        assert_ne!(drawn, prompts.draw(7, "users-2", 12));
        assert_eq!(drawn.len(), 12);
        for round in drawn.chunks(5).take(2) {
            assert_eq!(
                round
                    .iter()
                    .map(|prompt| &prompt.id)
                    .collect::<HashSet<_>>()
                    .len(),
                5
            );
        }
    }

    /// A seed in a record has to mean the same in every version: other draws are another workload.
    #[test]
    fn a_seed_draws_what_it_always_drew() {
        let lines: Vec<String> = (0..8)
            .map(|i| format!("{{\"id\":\"p{i}\",\"text\":\"text {i}\"}}"))
            .collect();
        let drawn = set(&lines.join("\n"))
            .expect("prompts")
            .draw(42, "users-5", 10);
        let ids: Vec<&str> = drawn.iter().map(|prompt| prompt.id.as_str()).collect();
        assert_eq!(ids.join(" "), "p1 p2 p3 p6 p5 p0 p4 p7 p4 p6");
    }

    fn made(name: &str) -> PromptSet {
        PromptSet::load(Path::new("nowhere"), &[name.into()]).expect("made")
    }

    fn ids(prompt: &Prompt) -> &[u32] {
        match &prompt.content {
            Content::Tokens(ids) => ids,
            Content::Text(text) => panic!("a text: {text}"),
        }
    }

    #[test]
    fn prompts_that_are_made_are_seeded_and_never_come_again() {
        let prompts = made("tokens:300");
        let drawn = prompts.draw(7, "users-5", 9);
        assert_eq!(drawn[..4], prompts.draw(7, "users-5", 4));
        assert_ne!(drawn[0], prompts.draw(8, "users-5", 1)[0]);
        let distinct: HashSet<&[u32]> = drawn.iter().map(ids).collect();
        assert_eq!(distinct.len(), 9);
        assert!(distinct.iter().all(|ids| ids.len() == 300));
        assert!(
            distinct
                .iter()
                .all(|ids| ids.iter().all(|id| TOKEN_IDS.contains(id)))
        );
        assert_ne!(prompts.sha256, made("tokens:301").sha256);
        assert_eq!(
            ids(&drawn[0])[..3],
            [10_253, 5_096, 16_088],
            "what the seed always drew"
        );
    }

    #[test]
    fn a_turn_begins_with_the_one_before_it() {
        let drawn = made("turns:50+20x3").draw(7, "users-1 user 0", 7);
        let lengths: Vec<usize> = drawn.iter().map(|prompt| ids(prompt).len()).collect();
        assert_eq!(lengths, [50, 70, 90, 50, 70, 90, 50]);
        for (i, pair) in drawn.windows(2).enumerate() {
            let follows = ids(&pair[1]).starts_with(ids(&pair[0]));
            assert_eq!(follows, i % 3 != 2, "prompt {}", i + 1);
        }
        assert_eq!(drawn[4].id, "turns-1-1");
    }

    #[test]
    fn errors_name_file_line_and_id() {
        let message = |text: &str| set(text).map(|_| ()).map_err(|error| error.to_string());
        assert!(message("").is_err_and(|e| e.contains("holds no prompt")));
        assert!(
            message("{\"id\":\"a\",\"text\":\" \"}")
                .is_err_and(|e| e.contains("line 1: prompt `a` has no text"))
        );
        let twice = "{\"id\":\"a\",\"text\":\"t\"}\n\n{\"id\":\"a\",\"text\":\"u\"}";
        assert!(message(twice).is_err_and(|e| e.contains("line 3: the id `a` is taken")));
        assert!(message("{\"id\":\"a\"}").is_err_and(|e| e.contains("text")));
    }

    #[test]
    fn the_shipped_prompts_load() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/prompts");
        let prompts =
            PromptSet::load(&dir, &["korean".into(), "english".into()]).expect("shipped prompts");
        let drawn = prompts.draw(1, "all", 40);
        let distinct: HashSet<&str> = drawn.iter().map(|prompt| prompt.id.as_str()).collect();
        assert_eq!(distinct.len(), 40);
        let trace = PromptSet::load(&dir, &["trace:bursts".into()]).expect("shipped trace");
        let drawn = trace.draw(1, "trace-1x", 160);
        assert_eq!(drawn.len(), 160);
        let last = drawn[159].of_trace.expect("its time");
        assert!(last.at_s > 60.0, "{last:?}");
    }
}
