//! Words behind a recipe's name that another program reads and explains.

use clap::Args;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct PassedOn {
    /// Arguments of the program that does the work; --help is its help
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    pub words: Vec<String>,
}

impl PassedOn {
    /// The value of `--name value` or `--name=value`, if it stands before a `--`.
    pub fn value_of(&self, name: &str) -> Option<&str> {
        let own = self.words.split(|word| word == "--").next()?;
        let mut own = own.iter().map(String::as_str);
        while let Some(word) = own.next() {
            if word == name {
                return own.next();
            }
            let value = word
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('='));
            if value.is_some() {
                return value;
            }
        }
        None
    }

    pub fn has(&self, word: &str) -> bool {
        self.words.iter().any(|own| own == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_in_both_spellings_and_not_among_the_engines_flags() {
        let value = |words: &[&str]| {
            let words = words.iter().map(ToString::to_string).collect();
            PassedOn { words }.value_of("--runs-dir").map(String::from)
        };
        assert_eq!(value(&["full", "--runs-dir", "a"]), Some("a".into()));
        assert_eq!(value(&["--runs-dir=a", "full"]), Some("a".into()));
        assert_eq!(value(&["full", "--", "--runs-dir", "a"]), None);
        assert_eq!(value(&["--runs-directory=a"]), None);
    }
}
