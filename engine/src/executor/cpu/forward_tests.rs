//! What routers chose, layer by layer, against recorded choices (`tests/data/make_moe_checkpoints.py`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::options::CpuOptions;
use super::*;
use crate::kv::PageIdx;
use crate::weights::fixture::moe::write_case;
use crate::weights::format::CheckpointFormat;
use crate::weights::safetensors::SafetensorsCheckpoint;
use crate::weights::{Checkpoint, Matrix, MatrixId, VectorId, WeightError};

#[derive(Deserialize)]
struct Record {
    seed: u64,
    prompts: Vec<Vec<u32>>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    /// Of the first prompt's tokens, by layer.
    chosen: BTreeMap<usize, Vec<Vec<u32>>>,
}

/// A checkpoint's first layers: the routing that is left after a pass is that of the last.
struct FirstLayers<'a> {
    of: &'a SafetensorsCheckpoint,
    config: ModelConfig,
}

impl<'a> FirstLayers<'a> {
    fn new(of: &'a SafetensorsCheckpoint, n_layers: usize) -> Self {
        let mut config = of.config().clone();
        config.n_layers = n_layers;
        if let Some(experts) = &mut config.experts {
            experts.dense_layers.retain(|layer| *layer < n_layers);
        }
        Self { of, config }
    }
}

impl Checkpoint for FirstLayers<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError> {
        self.of.matrix(id)
    }

    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError> {
        self.of.vector(id)
    }

    fn format(&self) -> CheckpointFormat {
        self.of.format()
    }
}

fn forward(checkpoint: &dyn Checkpoint, pool: &mut WorkerPool, options: &CpuOptions) -> Forward {
    let settings = options.validate().expect("options");
    let weights = DecoderWeights::load(checkpoint, pool, settings.activations).expect("weights");
    Forward::new(checkpoint.config().clone(), weights, settings, 8).expect("a decoder")
}

#[test]
fn routers_choose_as_recorded() {
    let text = include_str!("../../../tests/data/moe_checkpoints.json");
    let record: Record = serde_json::from_str(text).expect("a record");
    let prompt = &record.prompts[0];
    let pages: Vec<PageIdx> = (0..8).map(PageIdx).collect();
    let mut pool = WorkerPool::new(2).expect("threads");
    let options = CpuOptions {
        n_threads: 2,
        activations: ActivationType::F32,
        ..CpuOptions::default()
    };
    let mut n_compared = 0;
    for (name, case) in &record.cases {
        let dir = tempfile::tempdir().expect("a folder");
        write_case(dir.path(), name, record.seed).expect("written");
        let opened = SafetensorsCheckpoint::open(dir.path()).expect("opened");
        for (layer, expected) in &case.chosen {
            let checkpoint = FirstLayers::new(&opened, layer + 1);
            let mut forward = forward(&checkpoint, &mut pool, &options);
            let row = RowView {
                tokens: prompt,
                start: 0,
                pages: &pages,
            };
            forward.run(&mut pool, &[row], &[]).expect("a pass");
            let routing = &forward.workspace.mlp.routing;
            assert_eq!(
                routing.experts(),
                expected.concat(),
                "{name}, layer {layer}"
            );
            n_compared += expected.len();
        }
    }
    // Two sparse layers of four cases and one of the fifth.
    assert_eq!(n_compared, 9 * 17);
}
