//! Attention backends: other kernels for the same result.

use engine::executor::Executor;
use engine::executor::cuda::{AttentionBackend, CudaOptions, Element, GraphSizes, KvFormat};
use engine::model::config::Family;

use super::{awq, cpu, generate, load, logits_of, options, relative_error, row, tokens};

const BACKENDS: [AttentionBackend; 3] = [
    AttentionBackend::Split,
    AttentionBackend::Packed,
    AttentionBackend::Plain,
];

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn every_attention_backend_agrees_on_the_card() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let mut on_cpu = cpu(checkpoint.as_ref());
    let expected = logits_of(&mut |rows, wanted| on_cpu.forward_logits(rows, wanted).expect("cpu"));
    // The next tokens of five sequences with contexts of different lengths.
    let prompts: Vec<_> = (0..5)
        .map(|i| row(i, &tokens(3 + 29 * i as usize, i), 0, 200))
        .collect();
    let next: Vec<_> = (0..5)
        .map(|i| row(i, &tokens(1, 50 + i), 3 + 29 * i as usize, 200))
        .collect();
    let wanted: Vec<(usize, usize)> = (0..5).map(|i| (i, 0)).collect();
    on_cpu.forward_logits(&prompts, &[]).expect("prompts");
    let next_expected = on_cpu.forward_logits(&next, &wanted).expect("decode rows");
    for (kv_format, limit) in [(KvFormat::F16, 5e-3), (KvFormat::Fp8E4m3, 1e-1)] {
        let mut names = Vec::new();
        for backend in BACKENDS {
            let options = CudaOptions {
                attention_backend: backend,
                kv_format,
                ..options()
            };
            let mut executor = load(checkpoint.as_ref(), &options);
            let kernels = &executor.info().kernels;
            let attention = kernels.iter().find(|(role, _)| role == "attention");
            names.push(attention.expect("attention").1.clone());
            let found =
                logits_of(&mut |rows, wanted| executor.forward_logits(rows, wanted).expect("cuda"));
            let error = relative_error(&found, &expected);
            println!("{backend:?} {kv_format:?}: relative error {error:.2e}");
            assert!(error < limit, "{backend:?} {kv_format:?}: {error}");
            executor.forward_logits(&prompts, &[]).expect("prompts");
            let found = executor
                .forward_logits(&next, &wanted)
                .expect("decode rows");
            let error = relative_error(&found, &next_expected);
            assert!(error < limit, "decode, {backend:?} {kv_format:?}: {error}");
        }
        names.dedup();
        assert_eq!(names.len(), 3, "{names:?}");
    }
}

/// Captured, padded and in bursts: a backend's output does not depend on it.
#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn every_attention_backend_makes_the_same_tokens_with_and_without_graphs() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Llama, 64);
    for backend in BACKENDS {
        for (element, kv_format) in [
            (Element::F16, KvFormat::F16),
            (Element::Bf16, KvFormat::Fp8E4m3),
        ] {
            let with = |graphs| CudaOptions {
                attention_backend: backend,
                element,
                kv_format,
                graphs,
                ..options()
            };
            let mut plain = load(checkpoint.as_ref(), &with(GraphSizes::Off));
            let expected = generate(&mut plain, 3, 40, 1);
            let mut graphed = load(checkpoint.as_ref(), &with(GraphSizes::Exactly(vec![4])));
            assert_eq!(generate(&mut graphed, 3, 40, 1), expected, "{backend:?}");
            assert_eq!(generate(&mut graphed, 3, 40, 5), expected, "{backend:?}");
        }
    }
}
