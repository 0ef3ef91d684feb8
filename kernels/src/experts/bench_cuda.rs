//! Speed of a layer's experts: choice, grouping, projections and sum together, on the shape of Qwen3-30B-A3B.

use gpu::{Buffer, CudaError};
use kernels::cuda::Element;
use kernels::experts::Choice;
use kernels::experts::cuda::{ExpertBuffers, ExpertWeights, Experts, ExpertsShape};
use kernels::stream_linear::{Format, LargeM, StreamLinear, StreamLinearKernels};

use crate::measure::{Bench, Work};
use crate::model::ROWS;

const SHAPE: ExpertsShape = ExpertsShape {
    hidden: 2048,
    intermediate: 768,
    choice: Choice {
        n_experts: 128,
        n_active: 8,
        normalise: true,
    },
};

/// Experts that `n` tokens choose between them, if each is as likely as any other.
fn n_chosen(n: usize) -> f64 {
    let Choice {
        n_experts,
        n_active,
        ..
    } = SHAPE.choice;
    let n_experts = n_experts as f64;
    n_experts * (1.0 - (1.0 - n_active as f64 / n_experts).powi(n as i32))
}

pub fn all(bench: &mut Bench) -> Result<(), CudaError> {
    let (element, format) = (Element::F16, Format::AwqG128);
    let stream = &bench.stream;
    let large_m = LargeM::best(&bench.device, true);
    let kernels = StreamLinearKernels::load_for(stream, element, large_m, None, &[format])?;
    let mut gate_up = StreamLinear::new(&kernels, SHAPE.gate_up(format)?)?;
    let mut down = StreamLinear::new(&kernels, SHAPE.down(format)?)?;
    gate_up.fill_random(stream, 1)?;
    down.fill_random(stream, 2)?;
    let router = bench.normal(SHAPE.choice.n_experts * SHAPE.hidden, 3)?;
    let norm = bench.normal(SHAPE.hidden, 4)?;
    let experts = Experts::new(&bench.device, element, SHAPE, &[format])?;
    let of_expert = (gate_up.n_bytes() + down.n_bytes()) as f64 / SHAPE.choice.n_experts as f64;
    for n_rows in bench.shape.rows(&ROWS) {
        let buffers = ExpertBuffers::new(&bench.stream, element, &SHAPE, n_rows)?;
        let rows: Vec<f32> = (0..n_rows * SHAPE.hidden)
            .map(|i| ((i * 2_654_435_761) % 1009) as f32 / 504.0 - 1.0)
            .collect();
        let h = Buffer::from_slice(&bench.stream, &rows)?;
        let work = Work::bytes((n_chosen(n_rows) * of_expert) as usize);
        let case = bench.shape.case(format!("{n_rows} rows"));
        let weights = ExpertWeights {
            norm: norm.all(),
            router: router.all(),
            gate_up: &gate_up,
            down: &down,
        };
        bench.case("experts", &case, work, |stream| {
            experts.launch(stream, h.all(), &weights, &buffers, n_rows, 1e-6)
        })?;
    }
    Ok(())
}
