//! Speed of the CPU executor on a model: `offline_bench <model> <threads> <batch> <prompt>
//! <output>` prints one JSON line.

use anyhow::Context;
use engine::bench::{OfflineConfig, offline};
use engine::executor::Executor;
use engine::executor::cpu::{CpuExecutor, CpuOptions};
use engine::source::{ModelSource, resolve};
use engine::weights::{LoadFormat, open};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments
        .next()
        .context("usage: <model> <threads> <batch> <prompt> <output>")?;
    let mut number = |name: &str| -> anyhow::Result<usize> {
        let text = arguments
            .next()
            .with_context(|| format!("{name} is missing"))?;
        text.parse()
            .with_context(|| format!("{name} is {text}; it must be a number"))
    };
    let n_threads = number("threads")?;
    let batch = number("batch")?;
    let prompt_tokens = number("prompt")?;
    let output_tokens = number("output")?;
    let cache = engine::source::default_cache_dir()?;
    let model = resolve(&ModelSource::parse(&model)?, &cache, &|_| ())?;
    let checkpoint = open(&model, LoadFormat::Auto, 0)?;
    let kv_pool_tokens = batch * (prompt_tokens + output_tokens + 16);
    let options = CpuOptions {
        n_threads,
        kv_pool_tokens,
        ..CpuOptions::default()
    };
    let started = std::time::Instant::now();
    let mut executor = CpuExecutor::load(&*checkpoint, options)?;
    eprintln!(
        "loaded in {:.2} s: {:?}",
        started.elapsed().as_secs_f64(),
        executor.info().kernels
    );
    let config = OfflineConfig {
        batch,
        prompt_tokens,
        output_tokens,
        ..OfflineConfig::default()
    };
    let result = offline(&mut executor, checkpoint.config().vocab, config)?;
    println!("{}", serde_json::to_string(&result)?);
    Ok(())
}
