//! `engine bench`: the speed of an executor by itself, without server, scheduler and text.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use engine::bench::{BenchSampling, OfflineConfig, SyntheticDrafts, offline, offline_simulated};
use engine::config::EngineArgs;
use engine::executor::simulated::Card;
use engine::kv::PAGE_TOKENS;
use engine::launch::{load_executor, load_model};
use engine::printable::printable;
use engine::simulate::executor;

use super::progress::ShownProgress;
use super::sampling_args::SamplingArgs;

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(flatten)]
    engine: EngineArgs,

    /// Sequences at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,

    /// Prompt tokens of each
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    prompt_tokens: usize,

    /// Output tokens of each, the first of which comes from the prefill
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    output_tokens: usize,

    /// Measurements; figures are medians
    #[arg(long, value_name = "N", default_value_t = 3)]
    repetitions: usize,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// Count each draft as right with this probability, from 0 to 1; the text then means nothing.
    /// Needs --speculative-algorithm
    #[arg(long, value_name = "PROBABILITY")]
    speculative_synthetic_acceptance: Option<f64>,

    /// A simulated GPU in place of this machine: a TOML file such as data/cards/h100.toml
    #[arg(long, value_name = "FILE")]
    card: Option<PathBuf>,

    /// Print the result as one line of JSON, with every sample
    #[arg(long)]
    json: bool,
}

pub fn bench(args: &BenchArgs) -> Result<()> {
    let mut config = args.engine.resolve()?;
    let synthetic = match (config.speculation, args.speculative_synthetic_acceptance) {
        (Some(speculation), Some(acceptance)) => Some(SyntheticDrafts {
            n_draft_tokens: speculation.n_draft_tokens,
            acceptance,
        }),
        (None, None) => None,
        (Some(_), None) => bail!(
            "the prompts of this benchmark are made up, so nothing can be looked up in them; \
             --speculative-synthetic-acceptance says how many drafts count as right"
        ),
        (None, Some(_)) => {
            bail!(
                "--speculative-synthetic-acceptance needs --speculative-algorithm NGRAM or SUFFIX"
            )
        }
    };
    if synthetic.is_some() && args.card.is_some() {
        bail!("drafts are not simulated; leave out --card or --speculative-algorithm");
    }
    let offline_config = OfflineConfig {
        synthetic,
        batch: args.batch,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        n_steps: config.num_continuous_decode_steps,
        sampling: BenchSampling {
            temperature: args.sampling.temperature,
            top_k: args.sampling.top_k,
            top_p: args.sampling.top_p,
        },
        repetitions: args.repetitions,
    };
    // Without a limit set by the user, the pool is as large as the benchmark needs.
    if config.max_total_tokens.is_none() {
        let n_tokens = args.prompt_tokens.saturating_add(args.output_tokens);
        let n_pages = n_tokens
            .div_ceil(PAGE_TOKENS)
            .saturating_mul(args.batch)
            .max(1);
        config.max_total_tokens = Some(n_pages.saturating_mul(PAGE_TOKENS));
    }
    let shown = ShownProgress::new();
    let model = load_model(&config, &|progress| shown.show(progress))?;
    let vocab = model.checkpoint.config().vocab;
    let result = match &args.card {
        None => {
            let mut executor = load_executor(&config, model.checkpoint.as_ref())?;
            offline(executor.as_mut(), vocab, offline_config)?
        }
        Some(path) => {
            let mut executor = executor(&config, &model, Card::read(path)?)?;
            offline_simulated(&mut executor, vocab, offline_config)?
        }
    };
    if args.json {
        println!("{}", serde_json::to_string(&result)?);
        return Ok(());
    }
    println!(
        "model    {} ({})",
        printable(&model.resolved.display_name),
        model.checkpoint.format()
    );
    println!("device   {}", result.device);
    println!(
        "batch    {} × ({} prompt + {} output tokens), median of {}",
        args.batch, args.prompt_tokens, args.output_tokens, args.repetitions
    );
    println!("prefill  {:.1} tok/s", result.prefill_tok_per_s);
    println!("decode   {:.1} tok/s", result.decode_tok_per_s);
    if let Some(drafts) = result.config.synthetic {
        println!(
            "drafts   {} a step, right with probability {} by chance: {:.2} tokens a step",
            drafts.n_draft_tokens, drafts.acceptance, result.tokens_per_step
        );
    }
    Ok(())
}
