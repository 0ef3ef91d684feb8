//! The smaller model of `--speculative-algorithm STANDALONE`.

use super::LaunchError;
use super::devices::Devices;
use super::model::{load_model, load_text};
use crate::config::EngineConfig;
use crate::config::typed::{Device, LoadFormat, Quantization};
use crate::executor::{DraftLimits, DraftModel, DraftingExecutor, Executor};
use crate::source::Progress;
use crate::text::Tokenizer;

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
    let Some(path) = &config.draft_model_path else {
        return Ok(executor);
    };
    let refused = |problem: String| LaunchError::DraftModel {
        path: path.clone(),
        problem,
    };
    if target.device == Device::Cuda {
        let problem =
            "draft models run on the CPU, and this model runs on the GPU; use NGRAM or SUFFIX";
        return Err(refused(problem.to_owned()));
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
    check_tokens(target.tokenizer, &tokenizer).map_err(refused)?;
    let draft = model.checkpoint.config().clone();
    let drafter = devices.load_on_cpu(&config, &model)?;
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
