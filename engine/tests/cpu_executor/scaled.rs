//! Checkpoints of FP8, INT8 and NVFP4 against recorded answers of the same tensors, which a plain program
//! computed in f64 (`tests/data/make_scaled_checkpoints.py`).

use engine::executor::Executor;
use engine::executor::cpu::ActivationType;
use engine::model::config::Family;
use engine::weights::fixture::scaled::{ScaledFormat, scaled_config, write_scaled_folder};
use engine::weights::safetensors::SafetensorsCheckpoint;
use engine::weights::{Checkpoint, MatrixId};
use kernels::Isa;

use super::recorded::{Record, check_written, recorded};
use super::{executor, options};

fn record() -> Record {
    recorded(include_bytes!("../data/scaled_checkpoints.json.gz"))
}

fn case_named(name: &str) -> (Family, ScaledFormat) {
    match name {
        "fp8-blocks" => (Family::Qwen3, ScaledFormat::Fp8Blocks),
        "fp8-matrix" => (Family::Llama, ScaledFormat::Fp8Matrix),
        "ct-fp8-matrix" => (Family::Qwen2, ScaledFormat::CtFp8Matrix),
        "ct-fp8-rows" => (Family::Qwen3, ScaledFormat::CtFp8Rows),
        "ct-fp8-blocks" => (Family::Llama, ScaledFormat::CtFp8Blocks),
        "ct-int8" => (Family::Qwen2, ScaledFormat::CtInt8),
        "ct-nvfp4" => (Family::Qwen3, ScaledFormat::CtNvfp4),
        "modelopt-nvfp4" => (Family::Llama, ScaledFormat::ModelOptNvfp4),
        "modelopt-fp8" => (Family::Qwen2, ScaledFormat::ModelOptFp8),
        other => panic!("the record has the case {other}, which is unknown here"),
    }
}

#[test]
fn every_format_answers_as_recorded() {
    let record = record();
    assert_eq!(record.cases.len(), ScaledFormat::ALL.len());
    check_written(&record, |name, dir| {
        let (family, format) = case_named(name);
        write_scaled_folder(dir, &scaled_config(family), format, record.seed).expect("written");
    });
}

/// Weights take a byte each and their scales beside them; only rows that are no whole groups of
/// integers are widened.
#[test]
fn weights_stay_in_their_own_bits() {
    for format in [ScaledFormat::CtFp8Rows, ScaledFormat::CtInt8] {
        let dir = tempfile::tempdir().expect("a folder");
        let config = scaled_config(Family::Qwen2);
        write_scaled_folder(dir.path(), &config, format, 1).expect("written");
        let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("opened");
        let exact = options(ActivationType::F32, Isa::detect());
        let found = executor(&checkpoint, exact).info().weight_bytes;
        let expected: u64 = MatrixId::all(&config)
            .into_iter()
            .map(|id| {
                let storage = checkpoint.storage(id).expect("there");
                let is_widened = format == ScaledFormat::CtInt8 && matches!(id, MatrixId::Down(_));
                if is_widened {
                    4 * storage.n_elements
                } else {
                    storage.n_bytes
                }
            })
            .sum();
        // Tiles of integers end at whole cache lines and have scales of their own.
        let most = expected + expected / 20;
        assert!(
            (expected..=most).contains(&found),
            "{format:?}: {found} bytes for {expected}"
        );
    }
}
