//! Words behind a recipe's name that another program reads and explains.

use clap::Args;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct TrailingArgs {
    /// Arguments of the program that does the work; --help is its help
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    pub words: Vec<String>,
}

impl TrailingArgs {
    pub fn has(&self, word: &str) -> bool {
        self.words.iter().any(|own| own == word)
    }
}
