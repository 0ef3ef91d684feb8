//! `engine inspect <model>`: what a checkpoint is and what it takes, without running it.

use std::fmt;

use serde::Serialize;

use crate::model::config::{ModelConfig, RopeScaling};
use crate::printable::printable;
use crate::source::ResolvedModel;
use crate::weights::{self, Checkpoint, LoadFormat, MatrixId, VectorId, WeightError};

/// What one storage format holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct FormatTotal {
    format: String,
    n_tensors: u64,
    n_elements: u64,
    n_bytes: u64,
}

/// What a checkpoint is: a report of several lines, or an object of JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    model: String,
    source: String,
    sha256: String,
    format: String,
    config: ModelConfig,
    n_parameters: u64,
    weight_bytes: u64,
    /// At 16 bits.
    kv_bytes_per_token: u64,
    formats: Vec<FormatTotal>,
}

/// What the model's files hold.
///
/// # Errors
///
/// If the model's files cannot be read, lack a tensor or have one of another shape, or are of a
/// kind that is not supported.
pub fn inspect(model: &ResolvedModel) -> Result<Report, WeightError> {
    let checkpoint = weights::open(&model.files, LoadFormat::Auto, 0)?;
    let config = checkpoint.config().clone();
    let formats = totals(checkpoint.as_ref())?;
    Ok(Report {
        model: model.display_name.clone(),
        source: model.requested.clone(),
        sha256: model.sha256.clone(),
        format: checkpoint.format().to_string(),
        n_parameters: formats.iter().map(|t| t.n_elements).sum(),
        weight_bytes: formats.iter().map(|t| t.n_bytes).sum(),
        kv_bytes_per_token: 2 * config.kv_elements_per_token() as u64,
        config,
        formats,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.config;
        let (n_params, n_bytes) = (self.n_parameters, self.weight_bytes);
        let kv_bytes = self.kv_bytes_per_token;
        let full_context = kv_bytes * c.context_length as u64;
        for (label, value) in [
            ("model", printable(&self.model)),
            ("source", printable(&self.source)),
            ("sha256", self.sha256.clone()),
            ("format", printable(&self.format)),
            ("architecture", architecture(c)),
            ("heads", heads(c)),
            ("rope", rope(c)),
            ("vocabulary", format!("{} tokens{}", c.vocab, tied(c))),
            ("context", format!("{} tokens", c.context_length)),
            ("eos ids", format!("{:?}", c.eos_token_ids)),
            (
                "parameters",
                format!(
                    "{n_params} ({:.2} billion{})",
                    n_params as f64 / 1e9,
                    of_a_token(c, n_params)
                ),
            ),
            (
                "weights",
                format!("{n_bytes} bytes ({})", mebibytes(n_bytes)),
            ),
            (
                "kv per token",
                format!("{kv_bytes} bytes at 16 bits, {} at 8", kv_bytes / 2),
            ),
            (
                "kv full context",
                format!(
                    "{full_context} bytes at 16 bits ({})",
                    mebibytes(full_context)
                ),
            ),
        ] {
            writeln!(out, "{label:<16}{value}")?;
        }
        let (format, tensors) = ("format", "tensors");
        writeln!(
            out,
            "\n{format:<24}{tensors:>8}{:>16}{:>16}",
            "elements", "bytes"
        )?;
        for t in &self.formats {
            let (name, n, elements) = (printable(&t.format), t.n_tensors, t.n_elements);
            writeln!(out, "{name:<24}{n:>8}{elements:>16}{:>16}", t.n_bytes)?;
        }
        Ok(())
    }
}

/// Totals by format, largest first. A tied head counts once, as the embedding.
fn totals(checkpoint: &dyn Checkpoint) -> Result<Vec<FormatTotal>, WeightError> {
    let mut totals: Vec<FormatTotal> = Vec::new();
    let is_gguf = checkpoint.format().is_gguf();
    let mut add = |format: &str, n_tensors: u64, n_elements: u64, n_bytes: u64| {
        let at = totals
            .iter()
            .position(|t| t.format == format)
            .unwrap_or_else(|| {
                let format = format.to_string();
                totals.push(FormatTotal {
                    format,
                    n_tensors: 0,
                    n_elements: 0,
                    n_bytes: 0,
                });
                totals.len() - 1
            });
        totals[at].n_tensors += n_tensors;
        totals[at].n_elements += n_elements;
        totals[at].n_bytes += n_bytes;
    };
    for id in MatrixId::all(checkpoint.config()) {
        let storage = checkpoint.storage(id)?;
        // GGUF has the experts of a layer in one tensor.
        let is_in_firsts = is_gguf && id.expert().is_some_and(|expert| expert > 0);
        add(
            &storage.format.to_string(),
            u64::from(!is_in_firsts),
            storage.n_elements,
            storage.n_bytes,
        );
    }
    for id in VectorId::all(checkpoint.config()) {
        let n = id.n_elements(checkpoint.config()) as u64;
        add("vectors, as f32", 1, n, 4 * n);
    }
    totals.sort_by_key(|t| std::cmp::Reverse(t.n_bytes));
    Ok(totals)
}

fn architecture(c: &ModelConfig) -> String {
    let experts = c.experts.as_ref().map(|experts| {
        format!(
            ", {} experts of {} in {} layers, {} a token",
            experts.n_experts,
            experts.intermediate,
            c.n_sparse_layers(),
            experts.n_active
        )
    });
    format!(
        "{:?}, {} layers, hidden {}, intermediate {}{}",
        c.family,
        c.n_layers,
        c.hidden,
        c.intermediate,
        experts.unwrap_or_default()
    )
}

/// How many of the parameters a token's pass needs, if not all.
fn of_a_token(c: &ModelConfig, n_params: u64) -> String {
    let Some(experts) = &c.experts else {
        return String::new();
    };
    let n_idle = c.n_sparse_layers() * (experts.n_experts - experts.n_active);
    let idle = (n_idle * 3 * experts.intermediate * c.hidden) as u64;
    let n_active = n_params.saturating_sub(idle) as f64 / 1e9;
    format!(", {n_active:.2} of them a token")
}

fn heads(c: &ModelConfig) -> String {
    let mut text = format!(
        "{} query, {} key-value, dimension {}",
        c.n_q_heads, c.n_kv_heads, c.head_dim
    );
    for (present, name) in [
        (c.qk_norm, "q/k norm"),
        (c.qkv_bias, "q/k/v bias"),
        (c.o_bias, "o bias"),
    ] {
        if present {
            text.push_str(", ");
            text.push_str(name);
        }
    }
    text
}

fn rope(c: &ModelConfig) -> String {
    let scaling = match &c.rope.scaling {
        RopeScaling::None => "no scaling".to_string(),
        scaling => format!("{scaling:?}"),
    };
    format!("theta {}, {scaling}", c.rope.theta)
}

fn tied(c: &ModelConfig) -> &'static str {
    if c.tied_embeddings {
        ", embedding and head tied"
    } else {
        ""
    }
}

fn mebibytes(n_bytes: u64) -> String {
    format!("{:.1} MiB", n_bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Family;
    use crate::weights::fixture::{FolderFormat, tiny_config, write_folder, write_gguf};
    use crate::weights::{ElementFormat, ModelFiles};

    fn report(files: ModelFiles) -> String {
        let model = ResolvedModel {
            requested: "x".into(),
            display_name: "x".into(),
            files,
            tokenizer_dir: None,
            sha256: String::new(),
        };
        inspect(&model).expect("a report").to_string()
    }

    /// Two layers of 6 experts, each of 3 matrices, beside 4 matrices of attention and a router; GGUF
    /// has the experts of a layer in 3 tensors.
    #[test]
    fn experts_are_counted_as_parameters_and_as_tensors() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = tiny_config(Family::Qwen3Moe);
        let file = dir.path().join("x.gguf");
        write_gguf(&file, &config, ElementFormat::F32, 1, &[]).expect("written");
        let folder = dir.path().join("folder");
        write_folder(&folder, &config, FolderFormat::F32, 1, 1).expect("written");
        for (files, n_tensors) in [
            (ModelFiles::Gguf(file), 2 + 2 * (4 + 1 + 3)),
            (ModelFiles::Folder(folder), 2 + 2 * (4 + 1 + 18)),
        ] {
            let text = report(files);
            let architecture = "intermediate 128, 6 experts of 64 in 2 layers, 2 a token";
            assert!(text.contains(architecture), "{text}");
            assert!(text.contains("of them a token"), "{text}");
            let line = text.lines().find(|line| line.starts_with("F32"));
            let words: Vec<&str> = line.expect("a format").split_whitespace().collect();
            assert_eq!(words[1], n_tensors.to_string(), "{text}");
        }
    }
}
