//! How a token is chosen, as `generate` and `bench` take it.

use clap::Args;

#[derive(Debug, Args)]
pub struct SamplingArgs {
    /// 0 is greedy
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f32,

    /// Keep the k most likely tokens; 0 keeps all
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,

    /// Keep the smallest set of tokens with this total probability
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f32,
}
