//! Flags of the GPU's memory and graphs, on a simulated GPU, which sizes its pool and times its
//! steps as the real one does.

use std::path::Path;

use engine::executor::simulated::Card;
use engine::launch::load_model;
use engine::model::config::Family;
use engine::simulate::{
    Arrivals, LoadCase, LoadRequest, SimulateError, SimulatedLoad, Simulation, simulate,
};
use engine::weights::fixture::FolderFormat;

use super::fixture::Model;
use crate::command_line::resolve;

/// A few users on the GPU of a launch line.
fn simulated(flags: &str) -> Simulation {
    try_simulated(&Model::f16(), flags).expect(flags)
}

fn try_simulated(model: &Model, flags: &str) -> Result<Simulation, SimulateError> {
    // Without a cap on the pool: memory decides.
    let line = model.line(flags).replace("--max-total-tokens 512", "");
    let config = resolve(&line).expect(flags).engine;
    let loaded = load_model(&config, &|_| ()).expect("a model");
    let card = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/cards/h100.toml");
    let load = SimulatedLoad {
        cases: vec![LoadCase {
            name: "three users".to_owned(),
            arrivals: Arrivals::Users(3),
            requests: (0..3)
                .map(|_| LoadRequest {
                    prompt: "What is it?".to_owned(),
                    output_tokens: 50,
                })
                .collect(),
        }],
    };
    let card = Card::read(&card).expect("a GPU");
    simulate(&config, &loaded, card, &load)
}

const MEMORY: &str = "--device-memory-limit 64MiB";

fn pool_tokens(flags: &str) -> usize {
    simulated(&format!("{MEMORY} {flags}"))
        .executor
        .kv_pool_tokens
}

/// Time at which the last request ends.
fn end_s(flags: &str) -> f64 {
    let simulation = simulated(&format!("{MEMORY} {flags}"));
    let ends = simulation.requests.iter().map(|request| request.end_s);
    ends.fold(0.0, f64::max)
}

#[test]
fn mem_fraction_static_sizes_the_pool() {
    let half = pool_tokens("--mem-fraction-static 0.4");
    let whole = pool_tokens("--mem-fraction-static 0.8");
    assert!(half < whole && half * 3 > whole, "{half} and {whole}");
    assert_eq!(pool_tokens(""), pool_tokens("--mem-fraction-static 0.88"));
}

/// What has no costs is not given invented ones.
#[test]
fn experts_and_offloaded_weights_are_not_simulated() {
    let refused = |model: &Model, flags: &str| {
        let refused = try_simulated(model, flags).err();
        refused.expect("refused").to_string()
    };
    let message = refused(&Model::f16(), "--cpu-offload-gb 1");
    assert!(message.contains("--cpu-offload-gb"), "{message}");
    let experts = Model::new(Family::Qwen3Moe, FolderFormat::F16);
    let message = refused(&experts, "");
    assert!(message.contains("6 experts"), "{message}");
}

#[test]
fn device_memory_limit_sizes_the_pool() {
    let small = pool_tokens("");
    let large = pool_tokens("--device-memory-limit 128MiB");
    assert!(2 * small <= large, "{small} and {large}");
}

#[test]
fn kv_cache_dtype_doubles_the_pool_of_a_card() {
    assert_eq!(
        2 * pool_tokens(""),
        pool_tokens("--kv-cache-dtype fp8_e4m3")
    );
}

#[test]
fn disable_cuda_graph_launches_every_kernel() {
    assert!(end_s("") < end_s("--disable-cuda-graph"));
}

#[test]
fn cuda_graph_max_bs_is_the_largest_batch_with_a_graph() {
    assert!(end_s("--cuda-graph-max-bs 4") < end_s("--cuda-graph-max-bs 2"));
}

#[test]
fn cuda_graph_bs_names_the_batches_with_a_graph() {
    assert!(end_s("--cuda-graph-bs 1 2 4") < end_s("--cuda-graph-bs 1 2"));
}
