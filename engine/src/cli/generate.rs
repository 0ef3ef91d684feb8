//! `engine generate`: streams the continuation of one prompt to standard output.

use std::borrow::Cow;
use std::io::{IsTerminal, Read, Write};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use engine::config::{ConfigError, EngineArgs};
use engine::launch::devices::Devices;
use engine::launch::{AskLimits, launch};
use engine::printable::printable;
use engine::request::SamplingParams;
use engine::request::ranges;
use engine::request::ranges::Range;
use engine::served_model::ServedModel;
use engine::server::request::exclusion_fields::BadWords;
use engine::server::request::prompt::fit;
use engine::server::request::sampling_fields::Generation;
use engine::server::response::choice::{Choice, ChoiceSpec};
use engine::text::ChatInput;
use serde_json::json;

use super::progress::ShownProgress;
use super::sampling_args::SamplingArgs;

#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The prompt; `-`, or none, reads it from standard input, without the newline at its end
    prompt: Option<String>,

    #[command(flatten)]
    engine: EngineArgs,

    /// Render the prompt as a user message with the model's chat template
    #[arg(long)]
    chat: bool,

    /// Maximum number of output tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    max_tokens: usize,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// Drop tokens below this share of the highest probability
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,

    /// Above 1 discourages tokens that have occurred
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,

    /// Random seed
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Stop before this string; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,

    /// Continue after the end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
}

impl GenerateArgs {
    fn check(&self) -> Result<(), ConfigError> {
        let range = |flag, value: f32, range: Range| {
            if range.contains(value) {
                return Ok(());
            }
            let limit = format!("must be from {range}");
            Err(ConfigError {
                flag,
                value: value.to_string(),
                limit,
            })
        };
        range(
            "--temperature",
            self.sampling.temperature,
            ranges::TEMPERATURE,
        )?;
        range("--top-p", self.sampling.top_p, ranges::TOP_P)?;
        range("--min-p", self.min_p, ranges::MIN_P)?;
        let penalty = self.repetition_penalty;
        range("--repetition-penalty", penalty, ranges::REPETITION_PENALTY)?;
        if self.max_tokens == 0 {
            let limit = "must be at least 1".to_owned();
            return Err(ConfigError {
                flag: "--max-tokens",
                value: "0".to_owned(),
                limit,
            });
        }
        if self.stop.iter().any(String::is_empty) {
            let limit = "must not be empty".to_owned();
            return Err(ConfigError {
                flag: "--stop",
                value: "\"\"".to_owned(),
                limit,
            });
        }
        Ok(())
    }

    /// The argument, or the contents of a pipe or file.
    fn read_prompt(&self) -> Result<String> {
        if let Some(typed) = self.prompt.as_deref().filter(|prompt| *prompt != "-") {
            return Ok(typed.to_owned());
        }
        let mut input = std::io::stdin();
        if self.prompt.is_none() && input.is_terminal() {
            return Err(ConfigError {
                flag: "PROMPT",
                value: "(missing)".to_owned(),
                limit: "type it, pipe it in, or give - and type it here".to_owned(),
            }
            .into());
        }
        let mut text = String::new();
        input
            .read_to_string(&mut text)
            .context("reading the prompt from standard input")?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        Ok(text.to_owned())
    }

    fn generation(&self) -> Generation {
        Generation {
            params: SamplingParams {
                temperature: self.sampling.temperature,
                top_k: self.sampling.top_k,
                top_p: self.sampling.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
                ..SamplingParams::default()
            },
            n: 1,
            stop: self.stop.clone(),
            stop_token_ids: Vec::new(),
            ignore_eos: self.ignore_eos,
            min_tokens: 0,
            bad_words: BadWords::default(),
            skip_special_tokens: true,
            include_stop_str: false,
            max_tokens: Some(self.max_tokens),
            priority: 0,
            prefix_root: 0,
            streaming: None,
            asked: None,
            received: Instant::now(),
            trace: None,
        }
    }
}

pub fn generate(args: &GenerateArgs) -> Result<()> {
    args.check()?;
    let config = args.engine.resolve()?;
    let prompt = args.read_prompt()?;
    let shown = ShownProgress::new();
    let model = launch(
        &args.engine,
        &config,
        Vec::new(),
        AskLimits {
            max_stop_strings: args.stop.len(),
            ..AskLimits::default()
        },
        json!({"typed": args.engine.typed_flags(), "resolved": {"engine": config}}),
        &Devices::default(),
        &|progress| shown.show(progress),
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    runtime.block_on(stream(args, &prompt, &model))
}

async fn stream(args: &GenerateArgs, prompt: &str, model: &ServedModel) -> Result<()> {
    let ids = if args.chat {
        let messages = [json!({"role": "user", "content": prompt})];
        let input = ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            extra: serde_json::Map::new(),
        };
        model
            .tokenizer
            .encode(&model.chat_template.render(&input)?, false)?
    } else {
        model.tokenizer.encode(prompt, true)?
    };
    let fitted = fit(
        ids,
        Some(args.max_tokens),
        args.max_tokens,
        &model.limits,
        "the prompt",
    )?;
    let spec = ChoiceSpec {
        index: 0,
        sample_index: 0,
        prompt: fitted.prompt,
        max_new_tokens: fitted.max_new_tokens,
        form: None,
    };
    let started = Instant::now();
    let mut first_token = None;
    let mut choice = Choice::start(model, &args.generation(), spec)?;
    let mut stdout = std::io::stdout();
    // A model may output control sequences for terminals; a file or pipe gets every byte unchanged.
    let is_terminal = stdout.is_terminal();
    let mut end = None;
    while let Some(piece) = choice.next(1).await? {
        first_token.get_or_insert_with(Instant::now);
        let shown = if is_terminal {
            Cow::Owned(printable(&piece.text))
        } else {
            Cow::Borrowed(piece.text.as_str())
        };
        stdout
            .write_all(shown.as_bytes())
            .context("writing to standard output")?;
        stdout.flush().context("writing to standard output")?;
        end = piece.end;
    }
    writeln!(stdout).context("writing to standard output")?;
    let end = end.ok_or_else(|| anyhow!("the text ended without a reason"))?;
    let first_token = first_token.unwrap_or(started);
    let n_decoded = end.usage.completion_tokens.saturating_sub(1);
    let decode_s = first_token.elapsed().as_secs_f64();
    tracing::info!(
        prompt_tokens = end.usage.prompt_tokens,
        output_tokens = end.usage.completion_tokens,
        finish_reason = end.finish_reason,
        ttft_ms = (first_token - started).as_millis() as u64,
        decode_tok_per_s = format!("{:.1}", n_decoded as f64 / decode_s.max(1e-9)),
        "done"
    );
    Ok(())
}
