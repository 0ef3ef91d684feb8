//! Other servers' names for values of our own flags.

use super::{ValueAlias, ValueMeans};

pub(super) const VALUES: &[ValueAlias] = &[
    ValueAlias {
        flag: "--dtype",
        value: "half",
        means: ValueMeans::Same("float16"),
    },
    ValueAlias {
        flag: "--dtype",
        value: "fp16",
        means: ValueMeans::Same("float16"),
    },
    ValueAlias {
        flag: "--dtype",
        value: "bf16",
        means: ValueMeans::Same("bfloat16"),
    },
    ValueAlias {
        flag: "--dtype",
        value: "float",
        means: ValueMeans::Refused("a GPU computes in 16 bits here; use float16, bfloat16 or auto"),
    },
    ValueAlias {
        flag: "--dtype",
        value: "float32",
        means: ValueMeans::Refused("a GPU computes in 16 bits here; use float16, bfloat16 or auto"),
    },
    ValueAlias {
        flag: "--kv-cache-dtype",
        value: "fp8",
        means: ValueMeans::Same("fp8_e4m3"),
    },
    ValueAlias {
        flag: "--kv-cache-dtype",
        value: "bf16",
        means: ValueMeans::Refused(
            "KV pages have the type of the activations; use auto, with --dtype bfloat16",
        ),
    },
    ValueAlias {
        flag: "--kv-cache-dtype",
        value: "bfloat16",
        means: ValueMeans::Refused(
            "KV pages have the type of the activations; use auto, with --dtype bfloat16",
        ),
    },
    ValueAlias {
        flag: "--kv-cache-dtype",
        value: "fp8_e5m2",
        means: ValueMeans::Refused(
            "e5m2 has two bits of mantissa, which degrades texts; use fp8_e4m3, which is as small",
        ),
    },
    ValueAlias {
        flag: "--tool-call-parser",
        value: "qwen25",
        means: ValueMeans::Same("qwen"),
    },
    ValueAlias {
        flag: "--tool-call-parser",
        value: "qwen3",
        means: ValueMeans::Same("qwen"),
    },
    ValueAlias {
        flag: "--tool-call-parser",
        value: "llama3",
        means: ValueMeans::Same("llama3_json"),
    },
    ValueAlias {
        flag: "--attention-backend",
        value: "fa3",
        means: ValueMeans::Inactive(
            "there is no such kernel here; the default one computes the same",
        ),
    },
    ValueAlias {
        flag: "--attention-backend",
        value: "fa4",
        means: ValueMeans::Inactive(
            "there is no such kernel here; the default one computes the same",
        ),
    },
    ValueAlias {
        flag: "--attention-backend",
        value: "FLASH_ATTN",
        means: ValueMeans::Inactive(
            "there is no such kernel here; the default one computes the same",
        ),
    },
    ValueAlias {
        flag: "--attention-backend",
        value: "FLASHINFER",
        means: ValueMeans::Same("packed-mma"),
    },
    ValueAlias {
        flag: "--attention-backend",
        value: "TRITON_ATTN",
        means: ValueMeans::Same("split-kv"),
    },
    // vLLM's later name of the same checkpoints.
    ValueAlias {
        flag: "--quantization",
        value: "inc",
        means: ValueMeans::Same("auto-round"),
    },
];
