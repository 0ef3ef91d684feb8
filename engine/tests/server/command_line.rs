//! Flags: SGLang's launch lines parse unchanged, and every refusal names flag, value and limit.

use clap::Parser;
use engine::config::inactive::inactive_flags;
use engine::config::resolved::{CudaGraph, HierarchicalCache};
use engine::config::typed::{
    AttentionBackend, Device, Dtype, Quantization, SamplingBackend, SchedulePolicy,
};
use engine::config::{ServeArgs, ServeConfig};
use serde_json::json;

#[derive(Debug, Parser)]
#[command(args_override_self = true)]
pub struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

pub fn parse(line: &str) -> Result<ServeArgs, String> {
    let args = std::iter::once("serve").chain(line.split_whitespace());
    Line::try_parse_from(args)
        .map(|line| line.serve)
        .map_err(|error| error.to_string())
}

pub fn resolve(line: &str) -> Result<ServeConfig, String> {
    parse(line)?.resolve().map_err(|error| error.to_string())
}

const BASELINE: &str = "--attention-backend triton --sampling-backend pytorch \
    --max-total-tokens 3072 --mem-fraction-static 0.85 --disable-cuda-graph \
    --disable-custom-all-reduce --disable-flashinfer --disable-radix-cache";

/// The recommended launch of the optimisation report, without its docker part.
const BALANCED_V2: &str = "--model-path Qwen/Qwen3-32B-AWQ --host 0.0.0.0 --port 8000 \
    --quantization awq --max-total-tokens 3328 --max-prefill-tokens 1664 \
    --chunked-prefill-size 1152 --mem-fraction-static 0.87 --trust-remote-code \
    --attention-backend triton --sampling-backend pytorch --schedule-policy lof \
    --enable-torch-compile --torch-compile-max-bs 6 --num-continuous-decode-steps 2 \
    --triton-attention-reduce-in-fp32 --triton-attention-num-kv-splits 12 --disable-cuda-graph \
    --disable-custom-all-reduce --disable-flashinfer --decode-log-interval 30 --stream-output \
    --allow-auto-truncate";

#[test]
fn the_recommended_launch_line_parses_unchanged() {
    let config = resolve(BALANCED_V2).expect("the line is right");
    let engine = &config.engine;
    assert_eq!(engine.model_path.as_deref(), Some("Qwen/Qwen3-32B-AWQ"));
    assert_eq!(engine.quantization, Some(Quantization::Awq));
    assert_eq!(engine.max_total_tokens, Some(3328));
    assert_eq!(engine.max_prefill_tokens.on(Device::Cpu), 1664);
    assert_eq!(engine.max_prefill_tokens.on(Device::Cuda), 1664);
    assert_eq!(engine.chunked_prefill_size, Some(1152));
    assert!((engine.mem_fraction_static - 0.87).abs() < 1e-12);
    assert_eq!(engine.attention_backend, Some(AttentionBackend::SplitKv));
    assert_eq!(engine.schedule_policy, SchedulePolicy::Lof);
    assert_eq!(engine.torch_compile_max_bs, Some(6));
    assert_eq!(engine.num_continuous_decode_steps, 2);
    assert_eq!(engine.num_kv_splits, 12);
    assert!(engine.reduce_in_fp32 && engine.allow_auto_truncate && engine.radix_cache);
    assert_eq!(engine.cuda_graph, CudaGraph::Off);
    assert_eq!(engine.decode_log_interval, 30);
    assert_eq!(
        (config.http.host.as_str(), config.http.port),
        ("0.0.0.0", 8000)
    );
}

#[test]
fn all_five_experiments_parse() {
    let ultra = format!(
        "{BASELINE} --enable-torch-compile --torch-compile-max-bs 8 --schedule-policy lpm \
         --num-continuous-decode-steps 3 --triton-attention-reduce-in-fp32 \
         --triton-attention-num-kv-splits 16"
    );
    // Baseline first, its values overridden later, as the experiment is described.
    let balanced = format!("{BASELINE} {BALANCED_V2}");
    let experimental = "--attention-backend triton --sampling-backend pytorch \
        --max-total-tokens 3072 --mem-fraction-static 0.85 --cuda-graph-max-bs 4 \
        --cuda-graph-bs 1 2 4 --enable-hierarchical-cache --enable-mixed-chunk \
        --enable-two-batch-overlap --schedule-policy dfs-weight";
    let performance = "--attention-backend triton";
    for line in [BASELINE, &ultra, &balanced, experimental, performance] {
        resolve(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    let balanced = resolve(&balanced).expect("parsed above").engine;
    assert_eq!(
        balanced.max_total_tokens,
        Some(3328),
        "the later value counts"
    );
    assert!(!balanced.radix_cache);
    let experimental = resolve(experimental).expect("parsed above").engine;
    assert_eq!(experimental.cuda_graph, CudaGraph::Sizes(vec![1, 2, 4]));
    assert_eq!(
        experimental.hierarchical_cache,
        Some(HierarchicalCache::Ratio(2.0))
    );
    assert!(experimental.enable_mixed_chunk && experimental.two_batch_overlap);
}

#[test]
fn the_sampler_follows_its_flag_and_else_whether_flashinfer_is_there() {
    for (line, expected) in [
        ("", SamplingBackend::Device),
        ("--disable-flashinfer", SamplingBackend::Host),
        ("--sampling-backend pytorch", SamplingBackend::Host),
        ("--sampling-backend flashinfer", SamplingBackend::Device),
    ] {
        let engine = resolve(line).expect("the values agree").engine;
        assert_eq!(engine.sampling_backend, expected, "{line}");
        assert!(engine.overlap_schedule, "{line}");
    }
    let off = resolve("--disable-overlap-schedule").expect("a switch");
    assert!(!off.engine.overlap_schedule);
}

#[test]
fn card_profiles_are_refused_by_name() {
    let engine = resolve("--card-profile sm_120:170").expect("known").engine;
    let profile = engine.card_profile.map(|profile| profile.to_string());
    assert_eq!(profile.as_deref(), Some("sm_120:170"));
    assert_eq!(
        resolve("").expect("nothing is fine").engine.card_profile,
        None
    );
    let typed = parse("--card-profile sm_120").expect("known");
    assert_eq!(typed.typed_flags()["--card-profile"], "sm_120");
    let on_cpu = inactive_flags(&typed.engine, Device::Cpu);
    assert_eq!(on_cpu.len(), 1);
    assert_eq!(on_cpu[0].0, "--card-profile");
    assert!(inactive_flags(&typed.engine, Device::Cuda).is_empty());
    for wrong in ["sm_90", "rtx-5090", "sm_120:0", "sm_120:many"] {
        let text = parse(&format!("--card-profile {wrong}")).expect_err("refused");
        assert!(
            text.contains(&format!("`{wrong}`")) && text.contains("sm_120:N"),
            "{text}"
        );
    }
}

#[test]
fn what_was_typed_is_recorded_and_nothing_else() {
    let args = parse(
        "--port 0 --api-key s3cret --cuda-graph-bs 1 2 4 --chunked-prefill-size -1 \
         --device-memory-limit 31.4GiB --stream-output",
    )
    .expect("the line is right");
    assert_eq!(
        args.typed_flags(),
        json!({
            "--chunked-prefill-size": -1,
            "--device-memory-limit": 33_715_493_274_u64,
            "--cuda-graph-bs": [1, 2, 4],
            "--port": 0,
            "--api-key": "(withheld)",
            "--stream-output": true,
        })
    );
    let config = args.resolve().expect("the values agree");
    assert_eq!(config.engine.chunked_prefill_size, None);
    assert_eq!(
        config.engine.device_memory_limit_bytes,
        Some(33_715_493_274)
    );
    assert_eq!(parse("").expect("nothing is fine").typed_flags(), json!({}));
}

#[test]
fn every_refusal_names_flag_value_and_limit() {
    for (line, parts) in [
        (
            "--speculative-algo EAGLE",
            ["--speculative-algo", "unexpected", ""],
        ),
        ("--port 70000", ["--port", "70000", "65535"]),
        (
            "--schedule-policy best",
            ["--schedule-policy", "best", "lof"],
        ),
        (
            "--attention-backend fa3",
            ["--attention-backend", "fa3", "split-kv"],
        ),
        ("--max-total-tokens 0", ["--max-total-tokens", "0", "1.."]),
        (
            "--max-total-tokens 15",
            ["--max-total-tokens", "15", "16 tokens"],
        ),
        (
            "--max-total-tokens lots",
            ["--max-total-tokens", "lots", "invalid"],
        ),
        (
            "--cpu-offload-gb -1",
            ["--cpu-offload-gb", "-1", "from 0 to 65536"],
        ),
        (
            "--cpu-offload-gb nan",
            ["--cpu-offload-gb", "NaN", "from 0 to 65536"],
        ),
        (
            "--mem-fraction-static 1.5",
            ["--mem-fraction-static", "1.5", "below 1"],
        ),
        (
            "--mem-fraction-static -1",
            ["--mem-fraction-static", "-1", "above 0"],
        ),
        (
            "--mem-fraction-static nan",
            ["--mem-fraction-static", "NaN", "above 0"],
        ),
        (
            "--device-memory-limit 31",
            ["--device-memory-limit", "31 bytes", "31GiB"],
        ),
        (
            "--device-memory-limit 31.4",
            ["--device-memory-limit", "no unit", "31.4GiB"],
        ),
        (
            "--served-model-name a\u{1b}b",
            ["--served-model-name", "control character", "1b"],
        ),
        (
            "--model-path a\u{7}b",
            ["--model-path", "control character", "7"],
        ),
        (
            "--chunked-prefill-size 0",
            ["--chunked-prefill-size", "0", "at least 1"],
        ),
        (
            "--chunked-prefill-size -2",
            ["--chunked-prefill-size", "-2", "-1 (off)"],
        ),
        (
            "--chunked-prefill-size 2000 --max-prefill-tokens 1000",
            ["--chunked-prefill-size", "2000", "which is 1000"],
        ),
        (
            "--enable-mixed-chunk --chunked-prefill-size -1",
            ["--enable-mixed-chunk", "on", "chunked prefill"],
        ),
        (
            "--attention-backend flashinfer --disable-flashinfer",
            ["--attention-backend", "flashinfer", "--disable-flashinfer"],
        ),
        (
            "--cuda-graph-bs 1 2 --disable-cuda-graph",
            ["--cuda-graph-bs", "[1, 2]", "--disable-cuda-graph"],
        ),
        (
            "--cuda-graph-bs 1 8 --cuda-graph-max-bs 4",
            ["--cuda-graph-bs", "8", "which is 4"],
        ),
        (
            "--enable-hierarchical-cache --disable-radix-cache",
            ["--enable-hierarchical-cache", "on", "--disable-radix-cache"],
        ),
        ("--hicache-ratio 0", ["--hicache-ratio", "0", "above 0"]),
        (
            "--kv-events-config {\"hwn\":1}",
            ["--kv-events-config", "`hwn`", "`hwm`"],
        ),
        (
            "--otlp-traces-endpoint ftp://collector:4318",
            ["--otlp-traces-endpoint", "ftp://collector", "http://"],
        ),
        (
            "--device-memory-limit 5XB",
            ["--device-memory-limit", "5XB", "GiB"],
        ),
        ("--max-body-bytes 3", ["--max-body-bytes", "3", "1KiB"]),
        ("--stream-interval 0", ["--stream-interval", "0", "1.."]),
        (
            "--num-continuous-decode-steps 65",
            ["--num-continuous-decode-steps", "65", "64"],
        ),
        ("--dtype float32", ["--dtype", "float32", "bfloat16"]),
        (
            "--activation-quantization fp8",
            ["--activation-quantization", "fp8", "int8"],
        ),
        (
            "--cpu-activations fp8",
            ["--cpu-activations", "fp8", "int8"],
        ),
    ] {
        let message = resolve(line).expect_err(line);
        for part in parts {
            assert!(
                message.contains(part),
                "{line}: {part:?} is not in {message:?}"
            );
        }
    }
}

#[test]
fn flags_without_an_effect_are_listed_with_the_reason() {
    let typed = parse(BALANCED_V2).expect("the line is right").engine;
    let on_cpu = inactive_flags(&typed, Device::Cpu);
    let names: Vec<&str> = on_cpu.iter().map(|(flag, _)| flag.as_str()).collect();
    for flag in [
        "--trust-remote-code",
        "--disable-custom-all-reduce",
        "--mem-fraction-static",
        "--enable-torch-compile",
        "--torch-compile-max-bs",
        "--disable-cuda-graph",
        "--disable-flashinfer",
        "--triton-attention-num-kv-splits",
        "--triton-attention-reduce-in-fp32",
    ] {
        assert!(names.contains(&flag), "{flag} does nothing on the CPU");
    }
    for flag in [
        "--max-total-tokens",
        "--schedule-policy",
        "--num-continuous-decode-steps",
        "--disable-radix-cache",
        "--attention-backend",
        "--sampling-backend",
    ] {
        assert!(!names.contains(&flag), "{flag} does something");
    }
    assert!(on_cpu.iter().all(|(_, reason)| !reason.is_empty()));
    let on_cuda = inactive_flags(&typed, Device::Cuda);
    let is_inactive = |flag: &str| on_cuda.iter().any(|(inactive, _)| inactive == flag);
    assert!(!is_inactive("--sampling-backend"), "it chooses the sampler");
    let overlap = parse("--disable-overlap-schedule")
        .expect("a switch")
        .engine;
    assert_eq!(inactive_flags(&overlap, Device::Cpu).len(), 1);
    assert!(inactive_flags(&overlap, Device::Cuda).is_empty());
    for flag in ["--enable-torch-compile", "--torch-compile-max-bs"] {
        let is_listed = on_cuda.iter().any(|(name, _)| name == flag);
        assert!(!is_listed, "{flag} does something on the GPU");
    }
    let many = parse("--enable-torch-compile --torch-compile-max-bs 65").expect("in range");
    let on_cuda = inactive_flags(&many.engine, Device::Cuda);
    assert_eq!(on_cuda.len(), 1, "{on_cuda:?}");
    assert!(on_cuda[0].1.contains("held to 64"), "{on_cuda:?}");
    let nothing = parse("").expect("nothing is fine").engine;
    let names: Vec<String> = inactive_flags(&nothing, Device::Cpu)
        .into_iter()
        .map(|(flag, _)| flag)
        .collect();
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn dtype_is_auto_unless_typed_and_concerns_the_card_alone() {
    for (line, dtype) in [
        ("", Dtype::Auto),
        ("--dtype auto", Dtype::Auto),
        ("--dtype float16", Dtype::Float16),
        ("--dtype bfloat16", Dtype::Bfloat16),
    ] {
        assert_eq!(resolve(line).expect(line).engine.dtype, dtype);
    }
    let typed = parse("--dtype bfloat16").expect("the line is right");
    assert_eq!(typed.typed_flags(), json!({ "--dtype": "bfloat16" }));
    assert!(inactive_flags(&typed.engine, Device::Cuda).is_empty());
    let on_cpu = inactive_flags(&typed.engine, Device::Cpu);
    assert!(
        on_cpu[0].0 == "--dtype" && on_cpu[0].1.contains("fp32"),
        "{on_cpu:?}"
    );
}

#[test]
fn the_program_ends_with_2_where_the_line_is_wrong() {
    for (arguments, part) in [
        (vec!["serve", "--no-such-flag"], "--no-such-flag"),
        (
            vec!["serve", "--mem-fraction-static", "2"],
            "--mem-fraction-static 2",
        ),
        (
            vec!["generate", "--temperature", "-1", "hello"],
            "--temperature -1",
        ),
        (vec!["inspect", "./no/such/model"], "no such file"),
        (vec![], "Usage"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_engine"))
            .env_remove("RUST_LOG")
            .args(&arguments)
            .output()
            .expect("the program runs");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
}
