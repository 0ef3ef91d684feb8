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
    /// The value of `--name value` or `--name=value`, if it stands before a `--`.
    pub fn value_of(&self, name: &str) -> Option<&str> {
        let own = self.args.split(|arg| arg == "--").next()?;
        let mut own = own.iter().map(String::as_str);
        while let Some(arg) = own.next() {
            if arg == name {
                return own.next();
            }
            let value = arg
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('='));
            if value.is_some() {
                return value;
            }
        }
        None
    }

    pub fn has(&self, argument: &str) -> bool {
        self.args.iter().any(|own| own == argument)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_in_both_spellings_and_not_among_the_engines_flags() {
        let value = |args: &[&str]| {
            let args = args.iter().map(ToString::to_string).collect();
            TrailingArgs { args }
                .value_of("--runs-dir")
                .map(String::from)
        };
        assert_eq!(value(&["full", "--runs-dir", "a"]), Some("a".into()));
        assert_eq!(value(&["--runs-dir=a", "full"]), Some("a".into()));
        assert_eq!(value(&["full", "--", "--runs-dir", "a"]), None);
        assert_eq!(value(&["--runs-directory=a"]), None);
    }
}
