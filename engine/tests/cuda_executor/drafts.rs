//! A row with drafts gets the tokens that it gets one step at a time. The number of rows differs,
//! and with it the order of sums, so tokens are compared up to the first near tie.

use std::sync::Arc;

use engine::executor::Executor;
use engine::executor::cuda::{CudaExecutor, CudaOptions, GraphSizes};
use engine::model::config::Family;
use engine::request::{SampledToken, SamplingParams};
use engine::sampler::SampleSpec;
use engine::step::{PlanRow, StepPlan};

use super::{VOCAB, awq, load, options, row, tokens};

const N_DRAFTS: usize = 7;
/// Log-probabilities of the first two that are closer than this may change places.
const NEAR: f32 = 0.05;

fn spec(params: &Arc<SamplingParams>, n_prompt: usize, output_index: usize) -> SampleSpec {
    SampleSpec {
        params: Arc::clone(params),
        output_index,
        history: Vec::new(),
        n_prompt,
    }
}

fn execute(executor: &mut CudaExecutor, row: PlanRow) -> Vec<SampledToken> {
    let plan = StepPlan {
        rows: vec![row],
        n_steps: 1,
        ..StepPlan::default()
    };
    let mut output = executor.execute(&plan).expect("a step");
    assert_eq!(output.rows[0].error, None);
    std::mem::take(&mut output.rows[0].tokens)
}

fn check(executor: &mut CudaExecutor, params: &Arc<SamplingParams>, n_prompt: usize, what: &str) {
    let prompt = tokens(n_prompt, 5);
    let total = n_prompt + 3 * N_DRAFTS;
    let first = PlanRow {
        sample: Some(spec(params, n_prompt, 0)),
        ..row(1, &prompt, 0, total)
    };
    let mut output = execute(executor, first);
    let text = |output: &[SampledToken]| output.iter().map(|t| t.token).collect::<Vec<u32>>();
    for _ in 0..N_DRAFTS {
        let known = text(&output);
        let start = n_prompt + known.len() - 1;
        let next = PlanRow {
            sample: Some(spec(params, n_prompt, known.len())),
            ..row(1, &known[known.len() - 1..], start, total)
        };
        output.extend(execute(executor, next));
    }
    let known = text(&output);
    let is_clear = |token: &SampledToken| match token.top_logprobs[..] {
        [(_, first), (_, second), ..] => first - second > NEAR,
        _ => false,
    };
    let n_clear = output.iter().skip(1).take_while(|t| is_clear(t)).count();
    for n_right in 0..=N_DRAFTS {
        let mut drafted = known.clone();
        for wrong in &mut drafted[1 + n_right..] {
            *wrong = (*wrong + 1) % VOCAB;
        }
        let step = PlanRow {
            n_drafts: N_DRAFTS,
            sample: Some(spec(params, n_prompt, 1)),
            ..row(1, &drafted, n_prompt, total)
        };
        let found = text(&execute(executor, step));
        assert!(
            (1..=n_right + 1).contains(&found.len()),
            "{what}: {found:?}"
        );
        let n_compared = n_clear.min(n_right + 1).min(N_DRAFTS);
        assert_eq!(
            found.iter().take(n_compared).collect::<Vec<_>>(),
            known[1..].iter().take(n_compared).collect::<Vec<_>>(),
            "{what}, {n_right} right"
        );
    }
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn drafts_are_verified_as_if_they_had_come_one_by_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let params = Arc::new(SamplingParams {
        n_logprobs: Some(2),
        ..SamplingParams::default()
    });
    for graphs in [GraphSizes::Off, GraphSizes::UpTo(64)] {
        let options = CudaOptions {
            graphs: graphs.clone(),
            n_draft_tokens: N_DRAFTS,
            ..options()
        };
        let mut executor = load(checkpoint.as_ref(), &options);
        // Drafts in one page, over its end, and after many.
        for n_prompt in [3, 9, 15, 16, 90] {
            let what = format!("{graphs:?}, {n_prompt} tokens");
            check(&mut executor, &params, n_prompt, &what);
        }
    }
}
