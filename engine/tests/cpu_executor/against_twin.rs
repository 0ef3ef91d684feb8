//! Each quantised format against the same weights dequantised to f32.

use std::borrow::Cow;

use engine::executor::cpu::ActivationType;
use engine::model::config::{Family, ModelConfig};
use engine::weights::fixture::{FolderFormat, wide_config, write_folder, write_gguf};
use engine::weights::format::CheckpointFormat;
use engine::weights::gguf::GgufCheckpoint;
use engine::weights::safetensors::SafetensorsCheckpoint;
use engine::weights::{Checkpoint, ElementFormat, Matrix, MatrixId, VectorId, WeightError};
use kernels::Isa;

use super::{executor, options, relative_difference, row, tokens};

/// The same model with every matrix in f32.
struct Twin<'a>(&'a dyn Checkpoint);

impl Checkpoint for Twin<'_> {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError> {
        let matrix = self.0.matrix(id)?;
        let (n_out, n_in) = matrix.shape();
        let bytes: Vec<u8> = matrix
            .to_f32()?
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect();
        Ok(Matrix::Rows {
            format: ElementFormat::F32,
            n_out,
            n_in,
            bytes: Cow::Owned(bytes),
        })
    }

    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError> {
        self.0.vector(id)
    }

    fn format(&self) -> CheckpointFormat {
        self.0.format()
    }
}

/// Differences from the twin with activations in f32, and with those in 8 bits.
fn differences(checkpoint: &dyn Checkpoint, isa: Isa, what: &str) -> (f32, f32) {
    let tokens = tokens(40, 2, checkpoint.config().vocab);
    let wanted = [(0, 0), (0, 20), (0, 39)];
    let logits = |checkpoint: &dyn Checkpoint, activations| {
        executor(checkpoint, options(activations, isa))
            .forward_logits(&[row(&tokens, 0, 3)], &wanted)
            .expect("logits")
    };
    let expected = logits(&Twin(checkpoint), ActivationType::F32);
    let exact = relative_difference(&logits(checkpoint, ActivationType::F32), &expected);
    let rounded = relative_difference(&logits(checkpoint, ActivationType::Int8), &expected);
    println!(
        "{what}, {}: f32 {exact:.2e}, int8 {rounded:.2e}",
        isa.name()
    );
    (exact, rounded)
}

fn compare(checkpoint: &dyn Checkpoint, limit: f32, what: &str) {
    for isa in Isa::available() {
        let (exact, rounded) = differences(checkpoint, isa, what);
        assert!(
            exact <= limit,
            "{what}, {}, f32 activations: {exact}",
            isa.name()
        );
        assert!(
            rounded <= 0.03,
            "{what}, {}, int8 activations: {rounded}",
            isa.name()
        );
    }
}

#[test]
fn awq() {
    for family in [Family::Qwen3, Family::Qwen2] {
        for group_size in [32, 64, 128] {
            let dir = tempfile::tempdir().expect("folder");
            let format = FolderFormat::Awq { group_size };
            write_folder(dir.path(), &wide_config(family), format, 7, 1).expect("checkpoint");
            let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("checkpoint");
            compare(
                &checkpoint,
                1e-3,
                &format!("{family:?} awq group {group_size}"),
            );
        }
    }
}

#[test]
fn half_precision() {
    for format in [FolderFormat::F16, FolderFormat::BF16] {
        let dir = tempfile::tempdir().expect("folder");
        write_folder(dir.path(), &wide_config(Family::Llama), format, 7, 1).expect("checkpoint");
        compare(
            &SafetensorsCheckpoint::open(dir.path()).expect("checkpoint"),
            1e-3,
            &format!("{format:?}"),
        );
    }
}

#[test]
fn gguf() {
    let dir = tempfile::tempdir().expect("folder");
    for format in [
        ElementFormat::Q4_0,
        ElementFormat::Q4_1,
        ElementFormat::Q5_0,
        ElementFormat::Q5_1,
        ElementFormat::Q8_0,
        ElementFormat::Q2K,
        ElementFormat::Q3K,
        ElementFormat::Q4K,
        ElementFormat::Q5K,
        ElementFormat::Q6K,
    ] {
        let file = dir.path().join(format!("{format:?}.gguf"));
        write_gguf(&file, &wide_config(Family::Llama), format, 5, &[]).expect("file");
        let checkpoint = GgufCheckpoint::open(&file).expect("checkpoint");
        // The K formats' group scales are products of two numbers, which packing rounds to f16.
        let is_k = matches!(
            format,
            ElementFormat::Q2K
                | ElementFormat::Q3K
                | ElementFormat::Q4K
                | ElementFormat::Q5K
                | ElementFormat::Q6K
        );
        let limit = if is_k { 3e-3 } else { 1e-3 };
        compare(&checkpoint, limit, &format!("gguf {format:?}"));
    }
}

/// The experts of a layer are one tensor, and the router is in f32. With activations in 8 bits a router
/// may choose others, so that there is no limit.
#[test]
fn gguf_with_experts() {
    let dir = tempfile::tempdir().expect("folder");
    for format in [ElementFormat::Q4_0, ElementFormat::Q8_0, ElementFormat::Q6K] {
        let file = dir.path().join(format!("{format:?}.gguf"));
        write_gguf(&file, &wide_config(Family::Qwen3Moe), format, 5, &[]).expect("file");
        let checkpoint = GgufCheckpoint::open(&file).expect("checkpoint");
        for isa in Isa::available() {
            let what = format!("gguf experts {format:?}");
            let (exact, _) = differences(&checkpoint, isa, &what);
            assert!(exact <= 3e-3, "{what}, {}: {exact}", isa.name());
        }
    }
}
