//! Invalid options and plans return an error that names the value; the executor stays usable.

use engine::executor::Executor;
use engine::executor::cpu::{ActivationType, CpuExecutor, CpuOptions};
use engine::kv::PageIdx;
use engine::model::config::Family;
use engine::step::{PlanRow, RowOutput, StepPlan};
use engine::weights::ElementFormat;
use engine::weights::fixture::wide_config;
use engine::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use kernels::Isa;

use super::{executor, options, row};

#[test]
fn plans() {
    let format = SyntheticFormat::Rows(ElementFormat::Q4_0);
    let checkpoint = SyntheticCheckpoint::new(wide_config(Family::Llama), format, 1);
    let mut executor = executor(&checkpoint, options(ActivationType::Int8, Isa::detect()));
    let good = row(&[1, 2, 3], 0, 0);
    let cases = [
        (
            PlanRow {
                tokens: vec![1, 5000],
                ..good.clone()
            },
            1,
            "5000",
        ),
        (
            PlanRow {
                tokens: Vec::new(),
                ..good.clone()
            },
            1,
            "no token",
        ),
        (
            PlanRow {
                pages: Vec::new(),
                ..good.clone()
            },
            1,
            "number of pages",
        ),
        (
            PlanRow {
                pages: vec![PageIdx(4096)],
                ..good.clone()
            },
            1,
            "4096",
        ),
        (good.clone(), 2, "no decode row"),
        (good.clone(), 0, "0 steps"),
    ];
    for (row, n_steps, wanted) in cases {
        let error = executor
            .execute(&StepPlan {
                rows: vec![row],
                n_steps,
                ..StepPlan::default()
            })
            .expect_err(wanted);
        assert!(
            error.to_string().contains(wanted),
            "{error} does not name {wanted}"
        );
    }
    let output = executor.execute(&StepPlan {
        rows: vec![good.clone()],
        n_steps: 1,
        ..StepPlan::default()
    });
    assert_eq!(
        output.expect("the executor lives on").rows,
        vec![RowOutput::default()]
    );
    assert!(
        executor
            .forward_logits(std::slice::from_ref(&good), &[(0, 3)])
            .is_err()
    );
    assert!(executor.forward_logits(&[good], &[(0, 1), (0, 1)]).is_err());
    let nothing = executor
        .execute(&StepPlan {
            rows: Vec::new(),
            n_steps: 1,
            ..StepPlan::default()
        })
        .expect("empty plan");
    assert!(nothing.rows.is_empty());
}

#[test]
fn options_out_of_range() {
    let format = SyntheticFormat::Rows(ElementFormat::Q4_0);
    let checkpoint = SyntheticCheckpoint::new(wide_config(Family::Llama), format, 1);
    for bad in [
        CpuOptions {
            kv_pool_tokens: 0,
            ..CpuOptions::default()
        },
        CpuOptions {
            max_pass_tokens: 0,
            ..CpuOptions::default()
        },
        CpuOptions {
            n_threads: 100_000,
            ..CpuOptions::default()
        },
    ] {
        assert!(CpuExecutor::load(&checkpoint, bad).is_err());
    }
    assert!("sse9".parse::<Isa>().is_err());
}
