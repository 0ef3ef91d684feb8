//! The parser of the command line, with its flags in groups for `--help`.

use clap::{Arg, Command, CommandFactory};

use super::Cli;

/// The subcommands whose flags can also come from the environment and from other servers' names.
pub const WITH_FLAGS: [&str; 4] = ["serve", "generate", "bench", "simulate"];

/// Heading → flags, in the order of `--help`. A flag without a group is listed under "Options".
const GROUPS: [(&str, &[&str]); 12] = [
    (
        "Model",
        &[
            "model-path",
            "config",
            "start-unloaded",
            "served-model-name",
            "quantization",
            "load-format",
            "dtype",
            "context-length",
            "cache-dir",
            "trust-remote-code",
            "random-seed",
        ],
    ),
    (
        "Device and kernels",
        &[
            "device",
            "n-threads",
            "cpu-isa",
            "cpu-activations",
            "activation-quantization",
            "attention-backend",
            "sampling-backend",
            "disable-flashinfer",
            "triton-attention-num-kv-splits",
            "triton-attention-reduce-in-fp32",
            "autotune",
            "autotune-max-bs",
            "disable-cuda-graph",
            "cuda-graph-max-bs",
            "cuda-graph-bs",
            "enable-two-batch-overlap",
            "card-profile",
            "disable-overlap-schedule",
            "disable-custom-all-reduce",
        ],
    ),
    (
        "Memory",
        &[
            "max-total-tokens",
            "mem-fraction-static",
            "device-memory-limit",
            "cpu-offload-gb",
            "kv-cache-dtype",
            "disable-radix-cache",
            "enable-hierarchical-cache",
            "hicache-ratio",
            "hicache-size",
            "kv-events-config",
        ],
    ),
    (
        "Scheduling",
        &[
            "max-prefill-tokens",
            "chunked-prefill-size",
            "enable-mixed-chunk",
            "schedule-policy",
            "num-continuous-decode-steps",
            "max-running-requests",
            "max-queued-requests",
            "max-queue-s",
            "max-request-s",
        ],
    ),
    (
        "Speculation",
        &[
            "speculative-algorithm",
            "speculative-num-draft-tokens",
            "speculative-draft-model-path",
            "speculative-ngram-min-match-window-size",
            "speculative-ngram-max-match-window-size",
            "speculative-suffix-max-tree-depth",
            "speculative-suffix-max-cached-requests",
            "speculative-suffix-max-spec-factor",
            "speculative-suffix-min-token-prob",
            "speculative-config",
        ],
    ),
    (
        "Text",
        &[
            "allow-auto-truncate",
            "tool-call-parser",
            "reasoning-parser",
            "stream-output",
            "chat-template",
            "sampling-defaults",
        ],
    ),
    (
        "HTTP",
        &[
            "host",
            "port",
            "allowed-origins",
            "disable-web-ui",
            "strict-model-name",
            "stream-interval",
            "shutdown-grace-s",
            "decode-log-interval",
        ],
    ),
    (
        "Keys",
        &[
            "api-key",
            "api-key-file",
            "admin-api-key",
            "admin-api-key-file",
        ],
    ),
    (
        "Limits of requests",
        &[
            "max-body-bytes",
            "max-stop-strings",
            "max-prompt-tokens",
            "max-output-tokens",
            "max-schema-bytes",
            "max-connections",
            "client-timeout-s",
        ],
    ),
    (
        "Resumable streams",
        &["max-kept-streams", "max-kept-stream-bytes", "kept-stream-s"],
    ),
    (
        "Result cache",
        &[
            "result-cache",
            "result-cache-ttl-s",
            "result-cache-max-bytes",
        ],
    ),
    ("Traces", &["otlp-traces-endpoint", "otlp-traces-protocol"]),
];

/// The parser of the whole program.
pub fn command() -> Command {
    let mut command = Cli::command();
    for name in WITH_FLAGS {
        command = command.mut_subcommand(name, |subcommand| subcommand.mut_args(grouped));
    }
    command
}

/// As [`command`], without hidden flags.
pub fn shown() -> Command {
    let command = command();
    let subcommands = command.get_subcommands().map(|subcommand| {
        let name = WITH_FLAGS
            .iter()
            .find(|name| **name == subcommand.get_name());
        let Some(name) = name else {
            return subcommand.clone();
        };
        let arguments = subcommand.get_arguments();
        let shown = Command::new(*name).args(arguments.filter(|argument| !argument.is_hide_set()));
        match subcommand.get_about() {
            Some(about) => shown.about(about.clone()),
            None => shown,
        }
    });
    Command::new("engine").subcommands(subcommands.collect::<Vec<_>>())
}

fn grouped(argument: Arg) -> Arg {
    let place = argument.get_long().and_then(|long| {
        let group = GROUPS.iter().find(|(_, flags)| flags.contains(&long))?;
        Some(group.0)
    });
    match place {
        Some(heading) => argument.help_heading(heading),
        None => argument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_serve_is_in_one_group_and_every_group_has_flags_of_serve() {
        let cli = Cli::command();
        let serve = cli.find_subcommand("serve").expect("serve");
        let shown = serve.get_arguments().filter(|flag| !flag.is_hide_set());
        let mut flags: Vec<&str> = shown.filter_map(Arg::get_long).collect();
        flags.retain(|flag| !["help", "version"].contains(flag));
        let mut grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, flags)| *flags)
            .copied()
            .collect();
        flags.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(flags, grouped);
    }
}
