//! Weights that stay in few bits on the GPU: GGUF's blocks, alone and mixed, FP8, INT8 and NVFP4, against the CPU
//! executor, which multiplies the same codes and scales.

use engine::executor::Executor;
use engine::executor::cuda::{Element, GraphSizes, KvFormat};
use engine::model::config::{Family, ModelConfig};
use engine::weights::fixture::blocks::write_mixed_gguf;
use engine::weights::fixture::packed::packed_config;
use engine::weights::fixture::scaled::{ScaledFormat, write_scaled_folder};
use engine::weights::{Checkpoint, ElementFormat, MatrixId, ModelFiles};

use super::{VOCAB, compare_in, cuda, generate, open};

/// Every row is whole blocks and groups of all formats; heads that the GPU's attention takes.
fn config_of(family: Family) -> ModelConfig {
    ModelConfig {
        hidden: 256,
        intermediate: 768,
        head_dim: 64,
        vocab: VOCAB as usize,
        ..packed_config(family)
    }
}

fn blocks(
    dir: &std::path::Path,
    format: impl Fn(MatrixId) -> ElementFormat,
) -> Box<dyn Checkpoint> {
    let path = dir.join("model.gguf");
    write_mixed_gguf(&path, &config_of(Family::Qwen3), format, 7).expect("written");
    open(ModelFiles::Gguf(path))
}

fn scaled(dir: &std::path::Path, format: ScaledFormat) -> Box<dyn Checkpoint> {
    write_scaled_folder(dir, &config_of(Family::Qwen2), format, 7).expect("written");
    open(ModelFiles::Folder(dir.to_owned()))
}

/// As llama.cpp's Q4_K_M: v and down of the first layer in Q6_K.
fn q4_k_m(id: MatrixId) -> ElementFormat {
    match id {
        MatrixId::V(0) | MatrixId::Down(0) => ElementFormat::Q6K,
        _ => ElementFormat::Q4K,
    }
}

/// Gate and up, and q, k and v, in formats that have no width in common but a wider one.
fn all_different(id: MatrixId) -> ElementFormat {
    match id {
        MatrixId::Q(_) | MatrixId::Gate(_) => ElementFormat::Q4_0,
        MatrixId::K(_) => ElementFormat::Q5K,
        MatrixId::V(_) => ElementFormat::Q6K,
        MatrixId::Up(_) => ElementFormat::Q4_1,
        _ => ElementFormat::Q8_0,
    }
}

/// Beside floats, which widens q, k and v.
fn with_floats(id: MatrixId) -> ElementFormat {
    match id {
        MatrixId::K(_) => ElementFormat::F16,
        _ => ElementFormat::Q4K,
    }
}

/// Random minima make activations larger than a model's, so the limits are those of rounded activations with room; a
/// wrong code or scale is an error of about 1.
fn compare(checkpoint: &dyn Checkpoint, what: &str) {
    // In bf16 they are widened.
    for (element, kv_format, limit) in [
        (Element::F16, KvFormat::F16, 2e-2),
        (Element::Bf16, KvFormat::Bf16, 1.6e-1),
    ] {
        let what = format!("{what}, {element:?}");
        compare_in(element, checkpoint, kv_format, limit, &what);
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn blocks_in_their_own_bits_are_the_cpu_executors() {
    for format in ElementFormat::ALL {
        let is_float = matches!(
            format,
            ElementFormat::F32 | ElementFormat::F16 | ElementFormat::BF16
        );
        if is_float {
            continue;
        }
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = blocks(dir.path(), |_| format);
        compare(checkpoint.as_ref(), &format!("GGUF {format}"));
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn mixed_files_are_the_cpu_executors() {
    type Mix = fn(MatrixId) -> ElementFormat;
    let mixes: [(&str, Mix); 3] = [
        ("Q4_K_M", q4_k_m),
        ("all different", all_different),
        ("with floats", with_floats),
    ];
    for (what, mix) in mixes {
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = blocks(dir.path(), mix);
        compare(checkpoint.as_ref(), what);
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn fp8_int8_and_nvfp4_are_the_cpu_executors() {
    for format in ScaledFormat::ALL {
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = scaled(dir.path(), format);
        compare(checkpoint.as_ref(), &format!("{format:?}"));
    }
}

/// Graphs, batches of every kernel's rows and bursts choose the same tokens as steps one by one.
#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn a_mixed_file_makes_the_same_tokens_with_graphs() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = blocks(dir.path(), q4_k_m);
    for n in [1, 8, 9, 20, 33] {
        let tokens = |graphs| {
            let mut executor = cuda(Element::F16, checkpoint.as_ref(), KvFormat::F16, graphs);
            generate(&mut executor, n, 12, 3)
        };
        let expected = tokens(GraphSizes::Off);
        assert!(expected.iter().all(|row| !row.is_empty()));
        assert_eq!(tokens(GraphSizes::UpTo(64)), expected, "{n} rows");
    }
}

/// What the loader announced is what it took, and 5 to 10 bits a weight instead of 16.
#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn weights_take_their_own_bits() {
    for (format, bits) in [
        (ElementFormat::Q4_0, 4.625),
        (ElementFormat::Q4K, 5.0),
        (ElementFormat::Q8_0, 8.5),
        (ElementFormat::Q6K, 9.0),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let checkpoint = blocks(dir.path(), |_| format);
        let config = checkpoint.config();
        let in_layers: usize = MatrixId::all(config)
            .into_iter()
            .filter(|id| id.is_quantised())
            .map(|id| {
                let (n_out, n_in) = id.shape(config);
                n_out * n_in
            })
            .sum();
        let executor = cuda(
            Element::F16,
            checkpoint.as_ref(),
            KvFormat::F16,
            GraphSizes::Off,
        );
        let outside = 2.0 * 2.0 * (config.vocab * config.hidden) as f64;
        let expected = outside + in_layers as f64 * bits / 8.0;
        let found = executor.info().weight_bytes as f64;
        assert!(
            (found / expected - 1.0).abs() < 0.02,
            "{format}: {found} bytes for {expected}"
        );
    }
}
