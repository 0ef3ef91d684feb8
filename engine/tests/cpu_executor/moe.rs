//! Qwen3-MoE: checkpoints of several formats against recorded answers of the same tensors, which a plain
//! program computed in f64 (`tests/data/make_moe_checkpoints.py`).

use engine::executor::Executor;
use engine::executor::cpu::ActivationType;
use engine::model::config::{Family, ModelConfig};
use engine::weights::fixture::moe::write_case;
use engine::weights::fixture::{tiny_config, with_experts};
use engine::weights::format::CheckpointFormat;
use engine::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use engine::weights::{Checkpoint, ElementFormat, Matrix, MatrixId, VectorId, WeightError};
use kernels::Isa;

use super::recorded::{Record, check_written};
use super::{executor, options, row, tokens};

#[test]
fn experts_in_every_kind_of_format_answer_as_recorded() {
    let text = include_str!("../data/moe_checkpoints.json");
    let record: Record = serde_json::from_str(text).expect("a record");
    assert_eq!(record.cases.len(), 5);
    check_written(&record, |name, dir| {
        write_case(dir, name, record.seed).expect("written");
    });
}

/// Routers are zero.
struct Undecided(SyntheticCheckpoint);

impl Undecided {
    fn new(config: ModelConfig) -> Self {
        let format = SyntheticFormat::Rows(ElementFormat::F32);
        Self(SyntheticCheckpoint::new(config, format, 4))
    }
}

impl Checkpoint for Undecided {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError> {
        let mut matrix = self.0.matrix(id)?;
        if let (MatrixId::Router(_), Matrix::Rows { bytes, .. }) = (id, &mut matrix) {
            bytes.to_mut().fill(0);
        }
        Ok(matrix)
    }

    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError> {
        self.0.vector(id)
    }

    fn format(&self) -> CheckpointFormat {
        self.0.format()
    }
}

/// A router of zeros cannot decide: every token goes to the experts of the lowest numbers, so a model
/// that has no others answers the same.
#[test]
fn undecided_routers_take_the_lowest_numbers() {
    let answer = |n_experts| {
        let config = with_experts(tiny_config(Family::Qwen3Moe), |experts| {
            experts.n_experts = n_experts;
        });
        let exact = options(ActivationType::F32, Isa::detect());
        let mut executor = executor(&Undecided::new(config), exact);
        let tokens = tokens(20, 3, 320);
        let wanted = [(0, 7), (0, 19)];
        let logits = executor.forward_logits(&[row(&tokens, 0, 0)], &wanted);
        logits.expect("logits")
    };
    let only_two = answer(2);
    assert_eq!(answer(6), only_two);
    assert_eq!(answer(64), only_two);
}

/// The log and `/server_info` say how experts are computed.
#[test]
fn the_executor_names_its_experts() {
    let checkpoint = Undecided::new(tiny_config(Family::Qwen3Moe));
    let executor = executor(&checkpoint, options(ActivationType::Int8, Isa::detect()));
    let kernels = &executor.info().kernels;
    let experts = kernels.iter().find(|(role, _)| role == "experts");
    let (_, name) = experts.expect("experts");
    assert_eq!(name, "2 of 6, sorted by expert, router in f32");
    // All experts count, not those of a token.
    let stored: u64 = MatrixId::all(checkpoint.config())
        .into_iter()
        .map(|id| checkpoint.storage(id).expect("known").n_bytes)
        .sum();
    let lm_head = 320 * 64 * 4;
    // The head alone is rounded to 8 bits.
    let found = executor.info().weight_bytes;
    assert!(
        (stored - lm_head..stored).contains(&found),
        "{found} of {stored}"
    );
}
