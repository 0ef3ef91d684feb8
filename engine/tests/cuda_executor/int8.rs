//! Activations in 8 bits: what the rounding changes.

use super::*;

const N_TOKENS: usize = 300;

/// Logits of every token of a prompt, `[N_TOKENS, VOCAB]`.
fn logits(checkpoint: &dyn Checkpoint, int8_activations: bool, kv_format: KvFormat) -> Vec<f32> {
    let options = CudaOptions {
        int8_activations,
        kv_format,
        ..options()
    };
    let mut executor = load(checkpoint, &options);
    let prompt = row(0, &tokens(N_TOKENS, 5), 0, N_TOKENS);
    let wanted: Vec<(usize, usize)> = (0..N_TOKENS).map(|i| (0, i)).collect();
    executor
        .forward_logits(&[prompt], &wanted)
        .expect("the prompt's logits")
}

/// Natural logarithms of the probabilities of one token.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = logits.iter().map(|l| f64::from(l - most));
    let sum: f64 = shifted.clone().map(f64::exp).sum();
    shifted.map(|l| l - sum.ln()).collect()
}

/// Mean KL divergence in nats, and the share of tokens whose most likely successor is the same.
fn divergence(exact: &[f32], other: &[f32]) -> (f64, f64) {
    let (mut kl, mut n_equal) = (0.0, 0);
    let rows = exact
        .chunks(VOCAB as usize)
        .zip(other.chunks(VOCAB as usize));
    for (exact, other) in rows {
        let (p, q) = (log_softmax(exact), log_softmax(other));
        kl += p
            .iter()
            .zip(&q)
            .map(|(p, q)| p.exp() * (p - q))
            .sum::<f64>();
        let best = |l: &[f64]| (0..l.len()).max_by(|a, b| l[*a].total_cmp(&l[*b]));
        n_equal += usize::from(best(&p) == best(&q));
    }
    let n = exact.len() as f64 / f64::from(VOCAB);
    (kl / n, n_equal as f64 / n)
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn rounding_to_8_bits_changes_the_distribution_little() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let exact = logits(checkpoint.as_ref(), false, KvFormat::F16);
    let int8 = logits(checkpoint.as_ref(), true, KvFormat::F16);
    let fp8_kv = logits(checkpoint.as_ref(), false, KvFormat::Fp8E4m3);
    let (kl, equal) = divergence(&exact, &int8);
    let (kl_fp8_kv, equal_fp8_kv) = divergence(&exact, &fp8_kv);
    println!(
        "int8 activations: KL {kl:.2e}, most likely token equal {:.1} %; FP8 KV: {kl_fp8_kv:.2e}, {:.1} %",
        100.0 * equal,
        100.0 * equal_fp8_kv
    );
    // The results differ, but no more than with FP8 KV. Random weights leave the
    // logits nearly flat, so that both change a most likely token now and then.
    assert!(kl > 0.0 && kl <= kl_fp8_kv / 2.0, "{kl} {kl_fp8_kv}");
    assert!(
        equal >= equal_fp8_kv && equal >= 0.9,
        "{equal} {equal_fp8_kv}"
    );
}

/// Up to 16 rows nothing is rounded.
#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn few_rows_are_not_rounded() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let tokens_of = |int8_activations| {
        let options = CudaOptions {
            int8_activations,
            ..options()
        };
        let mut executor = load(checkpoint.as_ref(), &options);
        let prompt = row(0, &tokens(16, 5), 0, 16);
        let wanted: Vec<(usize, usize)> = (0..16).map(|i| (0, i)).collect();
        executor.forward_logits(&[prompt], &wanted).expect("logits")
    };
    assert_eq!(tokens_of(false), tokens_of(true));
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_model_without_such_weights_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = folder(dir.path(), Family::Llama, FolderFormat::F16);
    let options = CudaOptions {
        int8_activations: true,
        ..options()
    };
    let refused = CudaExecutor::load(checkpoint.as_ref(), &options).err();
    let message = refused.expect("refused").to_string();
    assert!(
        message.contains("--activation-quantization is int8"),
        "{message}"
    );
}
