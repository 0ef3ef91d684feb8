//! The smaller model of `--speculative-algorithm STANDALONE`, and the head of `EAGLE3`.

use std::path::PathBuf;

use super::LaunchError;
use super::devices::Devices;
use super::model::{cache_dir, load_model, load_text};
use crate::config::EngineConfig;
use crate::config::typed::{Device, LoadFormat, Quantization};
use crate::executor::cpu::CpuExecutor;
use crate::executor::{DraftLimits, DraftModel, DraftingExecutor, Executor};
use crate::model::eagle_json;
use crate::source::hub::Parts;
use crate::source::{self, Accept, ModelSource, Progress};
use crate::speculation::Algorithm;
use crate::text::Tokenizer;
use crate::weights::ModelFiles;
use crate::weights::eagle_head::EagleHead;

/// An EAGLE-3 head that was found.
#[derive(Debug, Clone)]
pub(super) struct DraftHead {
    /// As it was asked for.
    path: String,
    dir: PathBuf,
}

impl DraftHead {
    /// The head that was asked for, if one was.
    pub fn find(
        config: &EngineConfig,
        device: Device,
        progress: &dyn Fn(Progress),
    ) -> Result<Option<Self>, LaunchError> {
        let algorithm = config.speculation.map(|speculation| speculation.algorithm);
        let Some(path) = &config.draft_model_path else {
            return Ok(None);
        };
        if algorithm != Some(Algorithm::Eagle3) {
            return Ok(None);
        }
        if device == Device::Cuda {
            return Err(refused(path, NOT_ON_A_GPU));
        }
        let source = ModelSource::parse(path)?;
        let cache_dir = cache_dir(config.cache_dir.as_ref())?;
        let no_folder = || {
            let problem = "a draft head is a folder of safetensors or a repository of the hub";
            refused(path, problem)
        };
        let accept = Accept {
            files: &|found| match &found.files {
                ModelFiles::Folder(dir) => eagle_json::read_folder(dir)
                    .map(drop)
                    .map_err(|error| refused(path, error)),
                ModelFiles::Gguf(_) | ModelFiles::Synthetic(_) => Err(no_folder()),
            },
            config: &|_| Err(no_folder()),
        };
        let parts = Parts::Whole;
        let found = source::resolve_accepted(&source, parts, &cache_dir, &accept, progress)?;
        let ModelFiles::Folder(dir) = found.files else {
            return Err(no_folder());
        };
        Ok(Some(Self {
            path: path.clone(),
            dir,
        }))
    }

    /// Reads the head and gives it to the executor of its model.
    pub fn add_to(&self, executor: &mut CpuExecutor) -> Result<(), LaunchError> {
        let head = EagleHead::open(&self.dir).map_err(|error| refused(&self.path, error))?;
        let added = executor.add_draft_head(&head);
        added.map_err(|error| refused(&self.path, error))?;
        tracing::info!(head = self.path, "draft head ready");
        Ok(())
    }
}

const NOT_ON_A_GPU: &str =
    "draft models run on the CPU, and this model runs on the GPU; use NGRAM or SUFFIX";

fn refused(path: &str, problem: impl ToString) -> LaunchError {
    LaunchError::DraftModel {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

/// The model that is guessed for.
pub(super) struct Target<'a> {
    pub device: Device,
    pub tokenizer: &'a Tokenizer,
    /// Rows of its lm_head.
    pub vocab: usize,
}

/// `executor` with the draft model beside it, if one was asked for.
pub(super) fn add(
    config: &EngineConfig,
    executor: Box<dyn Executor>,
    target: &Target<'_>,
    devices: &Devices,
    progress: &dyn Fn(Progress),
) -> Result<Box<dyn Executor>, LaunchError> {
    let algorithm = config.speculation.map(|speculation| speculation.algorithm);
    let Some(path) = &config.draft_model_path else {
        return Ok(executor);
    };
    if algorithm != Some(Algorithm::Standalone) {
        return Ok(executor);
    }
    if target.device == Device::Cuda {
        return Err(refused(path, NOT_ON_A_GPU));
    }
    let config = EngineConfig {
        model_path: Some(path.clone()),
        // What was said of the other model's files.
        load_format: LoadFormat::Auto,
        quantization: None::<Quantization>,
        context_length: None,
        chat_template: None,
        hierarchical_cache: None,
        draft_model_path: None,
        max_total_tokens: Some(executor.info().kv_pool_tokens),
        ..config.clone()
    };
    let model = load_model(&config, progress)?;
    let (tokenizer, _) = load_text(&model.resolved)?;
    check_tokens(target.tokenizer, &tokenizer).map_err(|problem| refused(path, problem))?;
    let draft = model.checkpoint.config().clone();
    let drafter = devices.load_on_cpu(&config, &model, None)?;
    model.checkpoint.check_unchanged()?;
    let limits = DraftLimits {
        context_length: draft.context_length,
        vocab: draft.vocab,
        target_vocab: target.vocab,
    };
    tracing::info!(
        model = model.resolved.display_name,
        weight_bytes = drafter.info().weight_bytes,
        "draft model ready"
    );
    let model = DraftModel::new(drafter, limits);
    Ok(Box::new(DraftingExecutor::new(executor, model)))
}

/// Drafts are token ids, so both models must mean the same by each.
fn check_tokens(target: &Tokenizer, draft: &Tokenizer) -> Result<(), String> {
    let (n_target, n_draft) = (target.vocab_size(), draft.vocab_size());
    if n_target != n_draft {
        return Err(format!(
            "its vocabulary has {n_draft} tokens, that of the model has {n_target}; both must be the same"
        ));
    }
    let other = (0..n_target as u32).find(|id| {
        target.token_bytes(*id) != draft.token_bytes(*id)
            || target.is_special(*id) != draft.is_special(*id)
    });
    other.map_or(Ok(()), |id| {
        Err(format!(
            "its vocabulary is another one: token {id} is {:?} there and {:?} in the model",
            String::from_utf8_lossy(&draft.token_bytes(id)),
            String::from_utf8_lossy(&target.token_bytes(id)),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabularies_are_the_same_in_size_and_in_every_token() {
        let of = |special: &[&str]| Tokenizer::of_bytes(special);
        let target = of(&["<s>", "</s>"]);
        assert_eq!(check_tokens(&target, &of(&["<s>", "</s>"])), Ok(()));
        let error = check_tokens(&target, &of(&["<s>"])).unwrap_err();
        assert!(
            error.contains("257 tokens") && error.contains("258"),
            "{error}"
        );
        let error = check_tokens(&target, &of(&["<s>", "<end>"])).unwrap_err();
        assert!(
            error.contains("token 257") && error.contains("<end>"),
            "{error}"
        );
    }
}
