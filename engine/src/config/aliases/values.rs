//! Other servers' names for values of our own flags.

use super::{ValueAlias, ValueMeans};

const BITSANDBYTES: &str =
    "bitsandbytes is not read; use the same model in AWQ, GPTQ, FP8 or NVFP4, or as GGUF";
const PICKLED: &str = "PyTorch's pickled files are not read; use the same model in safetensors";

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
    ValueAlias {
        flag: "--quantization",
        value: "petit_nvfp4",
        means: ValueMeans::Same("modelopt_fp4"),
    },
    ValueAlias {
        flag: "--quantization",
        value: "bitsandbytes",
        means: ValueMeans::Refused(BITSANDBYTES),
    },
    ValueAlias {
        flag: "--quantization",
        value: "mxfp4",
        means: ValueMeans::Refused(
            "MXFP4 is read from GGUF files; use --quantization gguf, or leave it out",
        ),
    },
    ValueAlias {
        flag: "--load-format",
        value: "hf",
        means: ValueMeans::Same("auto"),
    },
    ValueAlias {
        flag: "--load-format",
        value: "fastsafetensors",
        means: ValueMeans::Same("safetensors"),
    },
    ValueAlias {
        flag: "--load-format",
        value: "runai_streamer",
        means: ValueMeans::Same("safetensors"),
    },
    ValueAlias {
        flag: "--load-format",
        value: "layered",
        means: ValueMeans::Same("safetensors"),
    },
    ValueAlias {
        flag: "--load-format",
        value: "pt",
        means: ValueMeans::Refused(PICKLED),
    },
    ValueAlias {
        flag: "--load-format",
        value: "npcache",
        means: ValueMeans::Refused(PICKLED),
    },
    ValueAlias {
        flag: "--load-format",
        value: "mistral",
        means: ValueMeans::Refused(
            "consolidated.safetensors is not read; use the same model in Hugging Face's layout",
        ),
    },
    ValueAlias {
        flag: "--load-format",
        value: "bitsandbytes",
        means: ValueMeans::Refused(BITSANDBYTES),
    },
    ValueAlias {
        flag: "--load-format",
        value: "sharded_state",
        means: ValueMeans::Refused(
            "ranks' own files are not read; use the checkpoint that they were made from",
        ),
    },
];
