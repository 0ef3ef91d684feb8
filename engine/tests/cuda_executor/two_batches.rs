//! Two halves of a decode batch on two streams.

use engine::executor::Executor;
use engine::executor::cuda::{CudaExecutor, CudaOptions, GraphSizes};
use engine::model::config::Family;
use engine::weights::Checkpoint;

use super::{awq, cpu, generate, load, options, relative_error, row, tokens};

fn overlapping(checkpoint: &dyn Checkpoint, graphs: GraphSizes) -> CudaExecutor {
    let options = CudaOptions {
        two_batch_overlap: true,
        graphs,
        ..options()
    };
    load(checkpoint, &options)
}

/// The last size is too large to be split.
#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn two_halves_make_what_the_whole_batch_makes() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let mut on_cpu = cpu(checkpoint.as_ref());
    let mut executor = overlapping(checkpoint.as_ref(), GraphSizes::Off);
    let kernels = executor.info().kernels.clone();
    let described = kernels.iter().find(|(role, _)| role == "two_batch_overlap");
    let described = &described.expect("it is logged").1;
    assert!(described.contains("2 to 16 rows"), "{described}");
    for n in [1, 2, 3, 5, 8, 16, 17, 31, 32, 40] {
        // Contexts of different lengths; pages of up to 8 tokens' sequences do not overlap.
        let prompts: Vec<_> = (0..n)
            .map(|i| on_own_pages(i, &tokens(1 + 7 * i as usize % 40, i), 0))
            .collect();
        let next: Vec<_> = (0..n)
            .map(|i| on_own_pages(i, &tokens(1, 90 + i), 1 + 7 * i as usize % 40))
            .collect();
        let wanted: Vec<(usize, usize)> = (0..n as usize).map(|i| (i, 0)).collect();
        on_cpu.forward_logits(&prompts, &[]).expect("prompts");
        executor.forward_logits(&prompts, &[]).expect("prompts");
        let expected = on_cpu.forward_logits(&next, &wanted).expect("cpu");
        let found = executor.forward_logits(&next, &wanted).expect("cuda");
        let error = relative_error(&found, &expected);
        println!("{n} rows: relative error {error:.2e}");
        assert!(error < 5e-3, "{n} rows: {error}");
    }
}

/// Three pages for each sequence, one after the other.
fn on_own_pages(sequence: u32, tokens: &[u32], start: usize) -> engine::step::PlanRow {
    engine::step::PlanRow {
        pages: (0..3)
            .map(|i| engine::kv::PageIdx(3 * sequence + i))
            .collect(),
        ..row(sequence, tokens, start, 48)
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn halves_captured_in_a_graph_make_the_same_tokens() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Llama, 64);
    let mut plain = overlapping(checkpoint.as_ref(), GraphSizes::Off);
    let expected = generate(&mut plain, 8, 60, 1);
    assert_eq!(generate(&mut plain, 8, 60, 1), expected, "a second run");
    let mut graphed = overlapping(checkpoint.as_ref(), GraphSizes::Exactly(vec![8]));
    assert_eq!(generate(&mut graphed, 8, 60, 1), expected, "graphs");
    assert_eq!(
        generate(&mut graphed, 8, 60, 16),
        expected,
        "graphs in bursts"
    );
}
