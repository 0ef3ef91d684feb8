//! Layers with experts on the GPU, against the CPU executor and against themselves.

use engine::executor::Executor;
use engine::executor::cuda::{CudaOptions, Element, GraphSizes, KvFormat};
use engine::model::config::{Family, ModelConfig};
use engine::weights::fixture::packed::packed_config;
use engine::weights::fixture::scaled::{ScaledFormat, write_scaled_folder};
use engine::weights::fixture::{FolderFormat, experts, with_experts, write_folder, write_gguf};
use engine::weights::{Checkpoint, ElementFormat, ModelFiles};

use super::{VOCAB, cpu, cuda, generate, load, logits_of, open, options, relative_error};

/// Every row is whole groups of all formats; heads that the GPU's attention takes.
fn config_of(dense_layers: &[usize], n_active: usize) -> ModelConfig {
    let config = ModelConfig {
        hidden: 256,
        intermediate: 512,
        head_dim: 64,
        vocab: VOCAB as usize,
        experts: experts(Family::Qwen3Moe, 256),
        ..packed_config(Family::Qwen3Moe)
    };
    with_experts(config, |experts| {
        experts.dense_layers = dense_layers.to_vec();
        experts.n_active = n_active;
        experts.norm_topk_prob = n_active > 1;
    })
}

fn folder(
    dir: &std::path::Path,
    config: &ModelConfig,
    format: FolderFormat,
) -> Box<dyn Checkpoint> {
    write_folder(dir, config, format, 7, 1).expect("written");
    open(ModelFiles::Folder(dir.to_owned()))
}

/// Share of positions whose logits may be further off than the limit.
const OTHER_CHOICES: f64 = 0.25;

/// Each position's logits against the CPU executor's, which has the same weights and chooses in f32. A token whose two
/// candidates are nearly equal may go to the other expert here, and the tokens after it in its sequence see that; so
/// the median counts, and a share may be off. (`kernels/src/experts/tests_cuda.rs` compares the choices themselves.)
fn compare(checkpoint: &dyn Checkpoint, what: &str) {
    let mut on_cpu = cpu(checkpoint);
    let expected = logits_of(&mut |rows, wanted| on_cpu.forward_logits(rows, wanted).expect("cpu"));
    for (element, kv_format, limit) in [
        (Element::F16, KvFormat::F16, 2e-2),
        (Element::Bf16, KvFormat::Bf16, 1.6e-1),
    ] {
        let mut on_gpu = cuda(element, checkpoint, kv_format, GraphSizes::Off);
        let found =
            logits_of(&mut |rows, wanted| on_gpu.forward_logits(rows, wanted).expect("cuda"));
        let positions = found
            .chunks(VOCAB as usize)
            .zip(expected.chunks(VOCAB as usize));
        let mut errors: Vec<f64> = positions.map(|(f, e)| relative_error(f, e)).collect();
        errors.sort_by(f64::total_cmp);
        let n_allowed = (errors.len() as f64 * OTHER_CHOICES) as usize;
        let n_off = errors.iter().filter(|error| **error >= limit).count();
        let (median, most) = (errors[errors.len() / 2], errors[errors.len() - 1]);
        println!(
            "{what}, {element:?}: median {median:.1e}, most {most:.1e}, {n_off} of {} off",
            errors.len()
        );
        assert!(
            n_off <= n_allowed && median < limit / 4.0,
            "{what}, {element:?}: {median}, {n_off} off"
        );
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn experts_in_every_kind_of_format_are_the_cpu_executors() {
    let plain = config_of(&[], 2);
    for format in [
        FolderFormat::Awq { group_size: 128 },
        FolderFormat::Awq { group_size: 32 },
        FolderFormat::F16,
        FolderFormat::BF16,
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = folder(dir.path(), &plain, format);
        compare(checkpoint.as_ref(), &format!("experts, {format:?}"));
    }
    for format in [ElementFormat::Q4_0, ElementFormat::Q8_0] {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.gguf");
        write_gguf(&path, &plain, format, 7, &[]).expect("written");
        let checkpoint = open(ModelFiles::Gguf(path));
        compare(checkpoint.as_ref(), &format!("experts, GGUF {format}"));
    }
    for format in ScaledFormat::ALL {
        let dir = tempfile::tempdir().expect("a folder");
        write_scaled_folder(dir.path(), &plain, format, 7).expect("written");
        let checkpoint = open(ModelFiles::Folder(dir.path().to_owned()));
        compare(checkpoint.as_ref(), &format!("experts, {format:?}"));
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn dense_layers_between_and_other_choices_are_the_cpu_executors() {
    for (dense_layers, n_active) in [(vec![0], 3), (vec![1], 6), (vec![], 1)] {
        let config = config_of(&dense_layers, n_active);
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = folder(dir.path(), &config, FolderFormat::Awq { group_size: 128 });
        let what = format!("{n_active} experts a token, dense layers {dense_layers:?}");
        compare(checkpoint.as_ref(), &what);
    }
}

/// Graphs, bursts and batches of every kernel's rows choose the same tokens as steps one by one; so do two halves, and
/// a model that has slept.
#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_model_with_experts_makes_the_same_tokens_however_it_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let format = FolderFormat::Awq { group_size: 128 };
    let checkpoint = folder(dir.path(), &config_of(&[], 2), format);
    for n in [1, 8, 9, 20, 33] {
        let tokens = |options: &CudaOptions| {
            let mut executor = load(checkpoint.as_ref(), options);
            generate(&mut executor, n, 12, 3)
        };
        let expected = tokens(&options());
        assert!(expected.iter().all(|row| !row.is_empty()));
        for changed in [
            CudaOptions {
                graphs: GraphSizes::UpTo(64),
                ..options()
            },
            CudaOptions {
                two_batch_overlap: true,
                ..options()
            },
        ] {
            assert_eq!(tokens(&changed), expected, "{n} rows, {changed:?}");
        }
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn weights_of_experts_count() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = config_of(&[], 2);
    let checkpoint = folder(dir.path(), &config, FolderFormat::F16);
    let element = Element::F16;
    let executor = cuda(element, checkpoint.as_ref(), KvFormat::F16, GraphSizes::Off);
    let of_experts = config.n_layers * 6 * 3 * 256 * 256 * 2;
    let found = executor.info().weight_bytes as usize;
    assert!(
        found > of_experts && found < 2 * of_experts,
        "{found} for {of_experts}"
    );
    let kernels = &executor.info().kernels;
    let experts = kernels.iter().find(|(role, _)| role == "experts");
    assert_eq!(
        experts.expect("experts").1,
        "2 of 6, sorted by expert, router in f32"
    );
}
