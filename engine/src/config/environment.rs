//! Flags from the environment: `ENGINE_ARG_PORT=8000` is `--port 8000`, `ENGINE_ARG_ENABLE_MIXED_CHUNK=1`
//! is `--enable-mixed-chunk`. They go before everything else, so that a file and the command line
//! override them.
//!
//! The prefix is longer than the program's name because Kubernetes sets `ENGINE_PORT` and similar
//! variables for a service called engine. Deliberately absent: several models, for which there is a
//! file (`ENGINE_ARG_CONFIG`).

use clap::{Arg, ArgAction, Command};

pub const PREFIX: &str = "ENGINE_ARG_";

/// Converts `variables` to arguments of the parser `command`. A variable without a flag in this
/// command is refused by name, unless another command has the flag.
///
/// # Errors
///
/// If a variable names no flag of any command, or sets a switch to something other than on or
/// off.
pub fn args(
    variables: impl Iterator<Item = (String, String)>,
    command: &Command,
    others: &[&Command],
) -> Result<Vec<String>, String> {
    let mut args = Vec::new();
    let mut variables: Vec<(String, String)> = variables
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    variables.sort_unstable();
    for (name, value) in variables {
        let flag = name[PREFIX.len()..].to_lowercase().replace('_', "-");
        let Some(argument) = argument(command, &flag) else {
            if others.iter().any(|other| argument_of(other, &flag)) {
                continue;
            }
            return Err(format!(
                "{name}: there is no flag --{flag}; --help lists all"
            ));
        };
        match argument.get_action() {
            ArgAction::SetTrue => match value.to_ascii_lowercase().as_str() {
                "1" | "true" | "on" | "yes" => args.push(format!("--{flag}")),
                "0" | "false" | "off" | "no" | "" => {}
                _ => {
                    return Err(format!(
                        "{name}={value}: --{flag} is a switch; it is 1, true, 0 or false"
                    ));
                }
            },
            ArgAction::Append => {
                args.push(format!("--{flag}"));
                let several = value.split([' ', ',']).filter(|part| !part.is_empty());
                args.extend(several.map(str::to_owned));
            }
            _ => args.push(format!("--{flag}={value}")),
        }
    }
    Ok(args)
}

/// The variables of this process. A variable that is not text is refused by name.
///
/// # Errors
///
/// The first variable whose value is not UTF-8.
pub fn variables() -> Result<Vec<(String, String)>, String> {
    let of_ours = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        name.starts_with(PREFIX).then_some((name, value))
    });
    of_ours
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(_) => Err(format!("{name}: its value is not UTF-8")),
        })
        .collect()
}

fn argument<'a>(command: &'a Command, flag: &str) -> Option<&'a Arg> {
    let is_it = |argument: &&Arg| {
        let names = argument.get_long_and_visible_aliases().unwrap_or_default();
        names.contains(&flag)
    };
    command.get_arguments().find(is_it)
}

fn argument_of(command: &Command, flag: &str) -> bool {
    argument(command, flag).is_some()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use crate::config::typed::{EngineArgs, ServeArgs};

    #[derive(Debug, clap::Parser)]
    struct Serve {
        #[command(flatten)]
        serve: ServeArgs,
    }

    #[derive(Debug, clap::Parser)]
    struct Bench {
        #[command(flatten)]
        engine: EngineArgs,
    }

    fn args_of(variables: &[(&str, &str)]) -> Result<String, String> {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        super::args(variables, &Serve::command(), &[]).map(|args| args.join(" "))
    }

    #[test]
    fn variables_are_flags() {
        for (variables, expected) in [
            (vec![("ENGINE_ARG_PORT", "8000")], "--port=8000"),
            (vec![("ENGINE_ARG_MODEL_PATH", "a b")], "--model-path=a b"),
            (
                vec![("ENGINE_ARG_ENABLE_MIXED_CHUNK", "1")],
                "--enable-mixed-chunk",
            ),
            (vec![("ENGINE_ARG_ENABLE_MIXED_CHUNK", "False")], ""),
            (
                vec![("ENGINE_ARG_CUDA_GRAPH_BS", "1, 2 4")],
                "--cuda-graph-bs 1 2 4",
            ),
            (
                vec![("ENGINE_PORT", "tcp://10.0.0.1:80"), ("PATH", "/bin")],
                "",
            ),
            (
                vec![("ENGINE_ARG_PORT", "1"), ("ENGINE_ARG_HOST", "::1")],
                "--host=::1 --port=1",
            ),
        ] {
            assert_eq!(
                args_of(&variables).as_deref(),
                Ok(expected),
                "{variables:?}"
            );
        }
    }

    #[test]
    fn what_is_no_flag_is_named() {
        let refused = args_of(&[("ENGINE_ARG_PROT", "1")]).expect_err("no flag");
        assert!(
            refused.contains("ENGINE_ARG_PROT: there is no flag --prot"),
            "{refused}"
        );
        let refused =
            args_of(&[("ENGINE_ARG_ENABLE_MIXED_CHUNK", "maybe")]).expect_err("no switch");
        assert!(
            refused.contains("ENGINE_ARG_ENABLE_MIXED_CHUNK=maybe"),
            "{refused}"
        );
    }

    /// One environment is used for all commands.
    #[test]
    fn another_commands_flags_are_passed_over() {
        let port = [("ENGINE_ARG_PORT".to_owned(), "1".to_owned())];
        let (bench, serve) = (Bench::command(), Serve::command());
        assert_eq!(
            super::args(port.into_iter(), &bench, &[&serve]),
            Ok(Vec::new())
        );
    }
}
