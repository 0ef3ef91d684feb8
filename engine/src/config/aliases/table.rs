//! The table: common flags of other servers, and their meaning here.

use super::Program::{Any, LlamaCpp, Sglang, Vllm};
use super::{Alias, Means, Program, Takes};

const ONE_DEVICE: &str = "one device runs each model, so there is nothing to spread it over";
const SEVERAL_DEVICES: &str =
    "a model runs on one device here; run one server a device, or name several models";
const ALWAYS_ON: &str = "this is always on";
const OWN_DRAFTS: &str = "NGRAM makes one chain of guesses from the request's own text";
const NO_LORA: &str = "adapters are not read here; merge them into the checkpoint";
const OWN_LOG: &str = "the environment variable RUST_LOG sets the log level";
const OWN_GRAMMARS: &str = "grammars are compiled by llguidance, which supports all formats";
const OWN_TLS: &str = "terminate TLS in a proxy in front of this server";
const OWN_CONFIG: &str = "config.json of the checkpoint is used; change it there";
const OWN_PAGES: &str = "KV pages have 16 tokens; their size changes no text";

/// A flag equivalent to one of ours.
const fn flag(
    of: Program,
    names: &'static [&'static str],
    value: &'static str,
    ours: &'static str,
) -> Alias {
    Alias {
        of,
        names,
        takes: Takes::Value(value),
        means: Means::Flag(ours),
    }
}

/// A switch equivalent to arguments of ours.
const fn switch(of: Program, names: &'static [&'static str], ours: &'static str) -> Alias {
    Alias {
        of,
        names,
        takes: Takes::Nothing,
        means: Means::Flag(ours),
    }
}

/// A switch without an effect.
const fn idle(of: Program, names: &'static [&'static str], reason: &'static str) -> Alias {
    Alias {
        of,
        names,
        takes: Takes::Nothing,
        means: Means::Inactive(reason),
    }
}

/// A flag whose value has no effect.
const fn idle_value(
    of: Program,
    names: &'static [&'static str],
    value: &'static str,
    reason: &'static str,
) -> Alias {
    Alias {
        of,
        names,
        takes: Takes::Value(value),
        means: Means::Inactive(reason),
    }
}

/// A flag that accepts only values that describe the existing behaviour.
const fn only(
    of: Program,
    names: &'static [&'static str],
    values: &'static [&'static str],
    reason: &'static str,
    refusal: &'static str,
) -> Alias {
    Alias {
        of,
        names,
        takes: Takes::Value(values[0]),
        means: Means::Only {
            values,
            reason,
            refusal,
        },
    }
}

const fn refused(
    of: Program,
    names: &'static [&'static str],
    takes: Takes,
    reason: &'static str,
) -> Alias {
    Alias {
        of,
        names,
        takes,
        means: Means::Refused(reason),
    }
}

/// All aliases.
pub(super) fn aliases() -> impl Iterator<Item = &'static Alias> {
    MODEL.iter().chain(SERVER)
}

const MODEL: &[Alias] = &[
    // One device.
    only(
        Any,
        &["--tensor-parallel-size", "--tp-size", "--tp", "-tp"],
        &["1"],
        ONE_DEVICE,
        SEVERAL_DEVICES,
    ),
    only(
        Any,
        &["--pipeline-parallel-size", "--pp-size", "--pp", "-pp"],
        &["1"],
        ONE_DEVICE,
        SEVERAL_DEVICES,
    ),
    only(
        Any,
        &["--data-parallel-size", "--dp-size", "--dp", "-dp"],
        &["1"],
        ONE_DEVICE,
        SEVERAL_DEVICES,
    ),
    only(
        Sglang,
        &["--expert-parallel-size", "--ep-size", "--ep"],
        &["1"],
        ONE_DEVICE,
        SEVERAL_DEVICES,
    ),
    only(Sglang, &["--nnodes"], &["1"], ONE_DEVICE, SEVERAL_DEVICES),
    only(
        Sglang,
        &["--node-rank"],
        &["0"],
        ONE_DEVICE,
        SEVERAL_DEVICES,
    ),
    idle_value(Vllm, &["--distributed-executor-backend"], "mp", ONE_DEVICE),
    // The model and its files.
    Alias {
        of: Any,
        names: &["--revision"],
        takes: Takes::Value("main"),
        means: Means::Revision,
    },
    flag(Any, &["--download-dir"], "models", "--cache-dir"),
    Alias {
        of: Any,
        names: &["--tokenizer-path", "--tokenizer"],
        takes: Takes::Value("Qwen/Qwen3-8B"),
        means: Means::SameAsModel,
    },
    only(
        Any,
        &["--tokenizer-mode"],
        &["auto", "slow", "hf"],
        "the tokenizer of the checkpoint is used",
        "the tokenizer of the checkpoint is used, which is auto",
    ),
    only(
        Sglang,
        &["--json-model-override-args"],
        &["{}"],
        OWN_CONFIG,
        OWN_CONFIG,
    ),
    only(Vllm, &["--hf-overrides"], &["{}"], OWN_CONFIG, OWN_CONFIG),
    flag(LlamaCpp, &["-m"], "model.gguf", "--model-path"),
    flag(
        LlamaCpp,
        &["-hf", "-hfr", "--hf-repo"],
        "Qwen/Qwen3-4B",
        "--model-path",
    ),
    flag(LlamaCpp, &["-a", "--alias"], "qwen", "--served-model-name"),
    flag(Any, &["--seed", "-s"], "7", "--random-seed"),
    refused(
        Any,
        &["--lora-paths", "--lora-modules", "--lora"],
        Takes::Value("adapter"),
        NO_LORA,
    ),
    refused(Any, &["--enable-lora"], Takes::Nothing, NO_LORA),
    // Lengths, memory, batches.
    Alias {
        of: Vllm,
        names: &["--max-model-len"],
        takes: Takes::Value("4k"),
        means: Means::Count("--context-length", &["-1", "auto"]),
    },
    Alias {
        of: LlamaCpp,
        names: &["-c", "--ctx-size"],
        takes: Takes::Value("4096"),
        means: Means::Count("--context-length", &["0"]),
    },
    flag(
        Vllm,
        &["--gpu-memory-utilization"],
        "0.9",
        "--mem-fraction-static",
    ),
    Alias {
        of: Vllm,
        names: &["--max-num-seqs"],
        takes: Takes::Value("64"),
        means: Means::Count("--max-running-requests", &[]),
    },
    Alias {
        of: LlamaCpp,
        names: &["-np", "--parallel"],
        takes: Takes::Value("4"),
        means: Means::Count("--max-running-requests", &["-1"]),
    },
    Alias {
        of: Vllm,
        names: &["--max-num-batched-tokens"],
        takes: Takes::Value("8192"),
        means: Means::Count("--max-prefill-tokens", &[]),
    },
    Alias {
        of: LlamaCpp,
        names: &["-b", "--batch-size"],
        takes: Takes::Value("2048"),
        means: Means::Count("--max-prefill-tokens", &[]),
    },
    idle_value(
        LlamaCpp,
        &["-ub", "--ubatch-size"],
        "512",
        "the device says how many tokens go through a layer together",
    ),
    Alias {
        of: LlamaCpp,
        names: &["-n", "--predict", "--n-predict"],
        takes: Takes::Value("512"),
        means: Means::Count("--max-output-tokens", &["-1"]),
    },
    Alias {
        of: LlamaCpp,
        names: &["-t", "--threads"],
        takes: Takes::Value("2"),
        means: Means::Count("--n-threads", &["-1"]),
    },
    idle_value(
        LlamaCpp,
        &["-tb", "--threads-batch"],
        "8",
        "prompts and output are computed by the same threads (--n-threads)",
    ),
    idle_value(
        LlamaCpp,
        &["--threads-http"],
        "4",
        "HTTP has two threads of its own",
    ),
    Alias {
        of: LlamaCpp,
        names: &["-ngl", "--n-gpu-layers", "--gpu-layers"],
        takes: Takes::Value("99"),
        means: Means::Layers,
    },
    idle_value(
        Vllm,
        &["--swap-space"],
        "4",
        "what is preempted is computed again; --enable-hierarchical-cache keeps prefixes in the host's memory",
    ),
    idle_value(Sglang, &["--page-size"], "16", OWN_PAGES),
    idle_value(Vllm, &["--block-size"], "16", OWN_PAGES),
    idle_value(
        Sglang,
        &["--schedule-conservativeness"],
        "1.0",
        "pages are reserved for known tokens only; preemption handles the rest",
    ),
    idle(
        Vllm,
        &["--enable-prefix-caching"],
        "prefixes are reused unless --disable-radix-cache is given",
    ),
    switch(
        Vllm,
        &["--no-enable-prefix-caching"],
        "--disable-radix-cache",
    ),
    idle(
        Vllm,
        &["--enable-chunked-prefill"],
        "prompts are computed in chunks unless --chunked-prefill-size is -1",
    ),
    switch(
        Vllm,
        &["--no-enable-chunked-prefill"],
        "--chunked-prefill-size=-1",
    ),
    switch(Vllm, &["--enforce-eager"], "--disable-cuda-graph"),
    Alias {
        of: Vllm,
        names: &["--scheduling-policy"],
        takes: Takes::Value("fcfs"),
        means: Means::Flag("--schedule-policy"),
    },
    only(
        LlamaCpp,
        &["-ctk", "--cache-type-k"],
        &["f16"],
        "KV pages are in 16 bits",
        "KV pages are in 16 bits, or in FP8 with --kv-cache-dtype fp8_e4m3",
    ),
    only(
        LlamaCpp,
        &["-ctv", "--cache-type-v"],
        &["f16"],
        "KV pages are in 16 bits",
        "KV pages are in 16 bits, or in FP8 with --kv-cache-dtype fp8_e4m3",
    ),
    Alias {
        of: LlamaCpp,
        names: &["-fa", "--flash-attn"],
        takes: Takes::Optional("on"),
        means: Means::Inactive(
            "attention never stores its scores; --attention-backend chooses the kernel",
        ),
    },
    idle(LlamaCpp, &["-cb", "--cont-batching"], ALWAYS_ON),
    idle(
        LlamaCpp,
        &["--mlock"],
        "weights are in this process's own memory",
    ),
    idle(
        LlamaCpp,
        &["--no-mmap"],
        "weights are in this process's own memory",
    ),
    flag(
        Any,
        &["--speculative-algo"],
        "NGRAM",
        "--speculative-algorithm",
    ),
    flag(
        Sglang,
        &["--speculative-ngram-max-trie-depth"],
        "18",
        "--speculative-ngram-max-match-window-size",
    ),
    idle_value(
        Sglang,
        &[
            "--speculative-ngram-min-bfs-breadth",
            "--speculative-ngram-max-bfs-breadth",
            "--speculative-ngram-match-type",
            "--speculative-ngram-branch-length",
            "--speculative-ngram-capacity",
        ],
        "10",
        OWN_DRAFTS,
    ),
    flag(
        Any,
        &[
            "--speculative-draft-model",
            "--speculative-model",
            "-md",
            "--model-draft",
        ],
        "org/draft",
        "--speculative-draft-model-path",
    ),
];

const SERVER: &[Alias] = &[
    idle_value(
        Any,
        &["--log-level", "--uvicorn-log-level", "--log-level-http"],
        "warning",
        OWN_LOG,
    ),
    idle(
        Any,
        &["--log-requests"],
        "requests' contents are never logged",
    ),
    idle(
        Vllm,
        &["--disable-log-requests", "--no-enable-log-requests"],
        "requests' contents are never logged",
    ),
    idle(
        Vllm,
        &["--disable-log-stats"],
        "--decode-log-interval says how often the log has figures",
    ),
    idle(LlamaCpp, &["--log-disable"], OWN_LOG),
    idle(Sglang, &["--enable-metrics"], "/metrics is always on"),
    idle(LlamaCpp, &["--metrics"], "/metrics is always on"),
    idle(
        Sglang,
        &["--enable-cache-report"],
        "usage always says how many prompt tokens were cached",
    ),
    idle(
        Vllm,
        &["--enable-prompt-tokens-details"],
        "usage always says how many prompt tokens were cached",
    ),
    idle_value(
        Sglang,
        &["--watchdog-timeout"],
        "300",
        "a thread that dies ends the server; --max-request-s bounds a request",
    ),
    idle(
        Sglang,
        &["--skip-server-warmup"],
        "the server is ready when the model is loaded",
    ),
    idle(
        LlamaCpp,
        &["--no-warmup"],
        "the server is ready when the model is loaded",
    ),
    idle_value(Sglang, &["--grammar-backend"], "xgrammar", OWN_GRAMMARS),
    idle_value(
        Vllm,
        &["--guided-decoding-backend"],
        "xgrammar",
        OWN_GRAMMARS,
    ),
    idle(
        Vllm,
        &["--enable-auto-tool-choice"],
        "tool calls are parsed if the chat template describes them, or --tool-call-parser is given",
    ),
    idle(LlamaCpp, &["--jinja"], "chat templates are always Jinja's"),
    switch(LlamaCpp, &["--no-webui"], "--disable-web-ui"),
    idle(
        LlamaCpp,
        &["--slots"],
        "/metrics says how many requests run and wait",
    ),
    flag(LlamaCpp, &["-to", "--timeout"], "600", "--client-timeout-s"),
    refused(
        Any,
        &[
            "--ssl-keyfile",
            "--ssl-certfile",
            "--ssl-key-file",
            "--ssl-cert-file",
        ],
        Takes::Value("key.pem"),
        OWN_TLS,
    ),
];
