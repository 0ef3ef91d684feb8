//! Arguments after a recipe's name that are passed to another program.

use clap::Args;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct TrailingArgs {
    /// Arguments of the program that does the work; --help prints its help
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    pub args: Vec<String>,
}

impl TrailingArgs {
    pub fn has(&self, argument: &str) -> bool {
        self.args.iter().any(|own| own == argument)
    }
}
