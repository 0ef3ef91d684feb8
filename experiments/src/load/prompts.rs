//! The prompts of a workload: `data/prompts/<language>.jsonl`, one `{id, text}` a line; long
//! ones lie compressed (`.jsonl.gz`).
//!
//! Which request gets which prompt is drawn from the seed and the case's name, so that
//! every arm of a campaign sends the same texts in the same order.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;
use serde::Deserialize;
use sha2::{Digest, Sha256};

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
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    pub id: String,
    pub text: String,
}

/// All prompts of a workload; never empty.
#[derive(Debug, Clone)]
pub struct PromptSet {
    prompts: Vec<Prompt>,
    /// Of the files' bytes, in the order named.
    pub sha256: String,
}

impl PromptSet {
    /// Reads the files `names` of `dir`.
    ///
    /// # Errors
    ///
    /// [`PromptError::Read`] if a file cannot be read, [`PromptError::Line`] if a line is no
    /// prompt, has no text or repeats an id, [`PromptError::Empty`] if a file has no prompts.
    pub fn load(dir: &Path, names: &[String]) -> Result<Self, PromptError> {
        let mut hash = Sha256::new();
        let mut prompts: Vec<Prompt> = Vec::new();
        let mut ids = HashSet::new();
        for name in names {
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
                let prompt: Prompt =
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
            prompts,
            sha256: records::digests::hex(&hash.finalize()),
        })
    }

    /// The prompts of one case in the order in which they are sent; a text comes again
    /// only after every other has been sent.
    pub fn draw(&self, seed: u64, case: &str, n_requests: usize) -> Vec<Prompt> {
        let mut rng = case_rng(seed, case);
        let mut drawn = Vec::with_capacity(n_requests);
        while drawn.len() < n_requests && !self.prompts.is_empty() {
            let mut round = self.prompts.clone();
            round.shuffle(&mut rng);
            drawn.extend(round.into_iter().take(n_requests - drawn.len()));
        }
        drawn
    }
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
        assert!(
            prompts.prompts.len() >= 40,
            "{} prompts",
            prompts.prompts.len()
        );
    }
}
