//! `--cpu-offload-gb`: layers whose weights stay in the host's memory.

use engine::executor::Executor;
use engine::executor::cuda::{CudaOptions, GraphSizes};
use engine::model::config::Family;

use super::{awq, generate, load, options};

fn kernel_of(executor: &dyn Executor, role: &str) -> Option<String> {
    let kernels = &executor.info().kernels;
    let found = kernels.iter().find(|(name, _)| name == role);
    found.map(|(_, what)| what.clone())
}

/// One byte asked for takes the last layer, more than there is takes all; tokens are the same, by steps and by graphs,
/// and after a sleep.
#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn weights_in_host_memory_make_the_same_tokens() {
    let dir = tempfile::tempdir().expect("a folder");
    let checkpoint = awq(dir.path(), Family::Qwen3, 128);
    let with = |cpu_offload_bytes, graphs| CudaOptions {
        cpu_offload_bytes,
        graphs,
        ..options()
    };
    let n_layers = checkpoint.config().n_layers;
    let mut whole = load(checkpoint.as_ref(), &with(0, GraphSizes::Off));
    assert_eq!(kernel_of(&whole, "cpu_offload"), None);
    let all_bytes = whole.info().weight_bytes;
    for n in [1, 8, 20] {
        let expected = generate(&mut whole, n, 12, 3);
        for (cpu_offload_bytes, n_offloaded) in [(1, 1), (1 << 40, n_layers)] {
            for graphs in [GraphSizes::Off, GraphSizes::UpTo(64)] {
                let options = with(cpu_offload_bytes, graphs);
                let mut executor = load(checkpoint.as_ref(), &options);
                assert_eq!(generate(&mut executor, n, 12, 3), expected, "{n} rows");
                let what = kernel_of(&executor, "cpu_offload").expect("said");
                let begin = format!("{n_offloaded} of {n_layers} layers");
                assert!(what.starts_with(&begin), "{what}");
                assert!(executor.info().weight_bytes < all_bytes);
                let executor: Box<dyn Executor> = Box::new(executor);
                let asleep = executor.sleep().map_err(|(_, error)| error);
                let awake = asleep.expect("asleep").wake().expect("awake");
                assert_eq!(kernel_of(awake.as_ref(), "cpu_offload"), Some(what));
            }
        }
    }
}
