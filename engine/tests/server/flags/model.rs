//! Flags of the model and of the executor that runs it: formats, kernels and bytes differ.

use std::sync::Arc;

use engine::config::typed::Device;
use engine::errors::Code;
use engine::launch::{LaunchError, load_executor, load_model};
use engine::model::config::Family;
use engine::request::{Request, RequestId, SamplingParams, TokenEvent};
use engine::server::request::prompt::fit;
use engine::structured::{Constraint, Preamble};
use engine::text::ToolCallFormat;
use engine::weights::fixture::packed::PackedKind;
use engine::weights::fixture::scaled::ScaledFormat;
use engine::weights::fixture::{FolderFormat, tiny_config, write_gguf};
use engine::weights::format::CheckpointFormat;
use engine::weights::{ElementFormat, MatrixId};
use serde_json::json;

use super::fixture::{Model, kernel};
use crate::client;
use crate::command_line::resolve;
use crate::program::Program;

#[test]
fn model_path_says_which_model() {
    for family in [Family::Qwen3, Family::Llama] {
        let model = Model::new(family, FolderFormat::F16);
        let loaded = model.load("").expect("a model");
        assert_eq!(loaded.checkpoint.config().family, family);
    }
}

#[test]
fn tool_call_parser_chooses_the_format_and_the_template_by_default() {
    let model = Model::f16();
    let format = |flags: &str| model.served(flags).parsers.tool_calls;
    assert_eq!(format(""), None);
    for (name, expected) in [
        ("qwen", ToolCallFormat::Hermes),
        ("hermes", ToolCallFormat::Hermes),
        ("llama3_json", ToolCallFormat::Llama3Json),
        ("qwen3_coder", ToolCallFormat::Qwen3Coder),
    ] {
        assert_eq!(
            format(&format!("--tool-call-parser {name}")),
            Some(expected)
        );
    }
    let template = "{% if tools %}Answer within <tool_call></tool_call>.{% endif %}";
    let config = json!({"eos_token": "<|im_end|>", "chat_template": template});
    let path = model.folder.path().join("model/tokenizer_config.json");
    std::fs::write(path, config.to_string()).expect("written");
    assert_eq!(format(""), Some(ToolCallFormat::Hermes));
    let other = "--tool-call-parser llama3_json";
    assert_eq!(format(other), Some(ToolCallFormat::Llama3Json));
}

#[test]
fn chat_template_is_used_instead_of_the_checkpoints() {
    let model = Model::f16();
    let file = model.folder.path().join("chat.jinja");
    std::fs::write(&file, "<tool_call>{{ messages[0].content }}</tool_call>").expect("written");
    let served = model.served(&format!("--chat-template {}", file.display()));
    let source = served.chat_template.source().expect("a template");
    assert!(source.starts_with("<tool_call>"), "{source}");
    assert_eq!(served.parsers.tool_calls, Some(ToolCallFormat::Hermes));
    let typed = model.served("--chat-template {{messages[0].content}}");
    assert_eq!(
        typed.chat_template.source(),
        Some("{{messages[0].content}}")
    );
    assert!(resolve("--chat-template no-such-file").is_err());
}

#[test]
fn reasoning_parser_splits_thoughts_off() {
    let model = Model::f16();
    let splits = |flags: &str| model.served(flags).parsers.reasoning;
    assert!(splits("--reasoning-parser qwen3") && !splits(""));
}

#[test]
fn max_schema_bytes_bounds_a_constraint() {
    let model = Model::f16();
    let is_refused = |flags: &str| {
        let constraint = Constraint::Regex("a".repeat(20));
        let grammars = model.served(flags).grammars;
        grammars.compile(&constraint, Preamble::Nothing, 1).is_err()
    };
    assert!(is_refused("--max-schema-bytes 19") && !is_refused("--max-schema-bytes 20"));
    assert!(resolve("--max-schema-bytes 1GiB").is_err());
}

#[test]
fn quantization_is_held_against_the_checkpoint() {
    let packed = |kind| Model::packed(kind, false);
    let models = [
        (packed(PackedKind::AwqGemm), "awq"),
        (packed(PackedKind::AwqGemv), "awq"),
        (packed(PackedKind::Gptq), "gptq"),
        (packed(PackedKind::GptqV2), "gptq"),
        (packed(PackedKind::AutoRoundGptq), "auto-round"),
        (packed(PackedKind::AutoRoundAwq), "auto-round"),
        (packed(PackedKind::PackQuantized), "compressed-tensors"),
        (Model::scaled(ScaledFormat::Fp8Blocks), "fp8"),
        (Model::scaled(ScaledFormat::Fp8Matrix), "fp8"),
        (
            Model::scaled(ScaledFormat::CtFp8Rows),
            "compressed-tensors FP8",
        ),
        (
            Model::scaled(ScaledFormat::CtInt8),
            "compressed-tensors INT8",
        ),
        (
            Model::scaled(ScaledFormat::CtNvfp4),
            "compressed-tensors NVFP4",
        ),
        (Model::scaled(ScaledFormat::ModelOptNvfp4), "modelopt NVFP4"),
        (Model::scaled(ScaledFormat::ModelOptFp8), "modelopt FP8"),
        (Model::f16(), "none"),
    ];
    for (asked, meant) in [
        ("awq", "awq"),
        ("awq_marlin", "awq"),
        ("gptq", "gptq"),
        ("gptq_marlin", "gptq"),
        ("auto-round", "auto-round"),
        ("auto_round", "auto-round"),
        ("compressed-tensors", "compressed-tensors"),
        ("compressed_tensors", "compressed-tensors"),
        ("fp8", "fp8"),
        ("w8a8_fp8", "compressed-tensors FP8"),
        ("w8a8_int8", "compressed-tensors INT8"),
        ("modelopt", "modelopt"),
        ("modelopt_fp8", "modelopt FP8"),
        ("modelopt_fp4", "modelopt NVFP4"),
        ("gguf", "gguf"),
    ] {
        for (model, method) in &models {
            let flags = format!("--quantization {asked}");
            // A tool's name means all of its formats.
            let is_meant = *method == meant || method.split(' ').next() == Some(meant);
            match model.load(&flags) {
                Ok(_) => assert!(is_meant, "{flags}: {method}"),
                Err(error) => {
                    assert!(!is_meant, "{flags}: {error}");
                    assert_eq!(error.code(), Code::QuantizationMismatch, "{error}");
                }
            }
        }
    }
    for (model, method) in &models {
        assert!(model.load("").is_ok());
        // Random weights in a folder's shapes are judged by the folder.
        let is_gptq = model
            .load("--load-format dummy --quantization gptq")
            .is_ok();
        assert_eq!(is_gptq, *method == "gptq", "{method}");
    }
}

/// Refused from the configuration alone: nothing was downloaded or hashed, and no GPU is needed to
/// know.
#[test]
fn act_order_is_refused_on_a_gpu_and_served_on_the_cpu() {
    for kind in [PackedKind::Gptq, PackedKind::PackQuantized] {
        let model = Model::packed(kind, true);
        assert!(model.load("").is_ok());
        let mut config = model.config("");
        config.device = Device::Cuda;
        std::fs::write(model.path().join("model.safetensors"), "no weights").expect("written");
        let error = load_model(&config, &|_| ()).err().expect("refused");
        assert_eq!(error.code(), Code::UnsupportedQuantization);
        let message = error.to_string();
        for part in ["config.json", "desc_act", "--device cpu"] {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn load_format_dummy_reads_no_weights() {
    let model = Model::f16();
    let folder = model.folder.path().join("model");
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            std::fs::write(path, b"not weights").expect("written");
        }
    }
    assert!(model.load("").is_err());
    assert!(model.load("--load-format safetensors").is_err());
    let loaded = model
        .load("--load-format dummy")
        .expect("no weights needed");
    assert!(matches!(
        loaded.checkpoint.format(),
        CheckpointFormat::Dummy { .. }
    ));
    assert!(Model::f16().load("--load-format gguf").is_err());
}

#[test]
fn device_chooses_the_executor() {
    let model = Model::f16();
    assert_eq!(model.executor_info("--device cpu").name, "cpu");
    let config = model.config("--device cuda");
    assert_eq!(config.device, Device::Cuda);
    let loaded = model.load("").expect("a model");
    match load_executor(&config, loaded.checkpoint.as_ref()) {
        Ok(executor) => assert_eq!(executor.info().name, "cuda"),
        // The fixture is too narrow for some cards' kernels.
        Err(error) => assert!(
            matches!(error, LaunchError::NoCuda { .. } | LaunchError::Cuda(_)),
            "{error}"
        ),
    }
}

#[test]
fn n_threads_is_the_number_of_threads() {
    let model = Model::f16();
    assert_eq!(
        kernel(&model.executor_info("--n-threads 1"), "threads"),
        "1"
    );
    assert_eq!(
        kernel(&model.executor_info("--n-threads 3"), "threads"),
        "3"
    );
}

#[test]
fn cpu_isa_chooses_the_kernels() {
    let model = Model::f16();
    for isa in kernels::Isa::available() {
        let info = model.executor_info(&format!("--cpu-isa {}", isa.name()));
        assert!(kernel(&info, "dense_linear").starts_with(isa.name()));
    }
    let config = model.config("--cpu-isa sse9");
    let loaded = model.load("").expect("a model");
    let refused = load_executor(&config, loaded.checkpoint.as_ref()).map(|_| ());
    assert!(matches!(refused, Err(LaunchError::Isa { .. })));
}

#[test]
fn cpu_activations_choose_the_products() {
    let model = Model::f16();
    let int8 = model.executor_info("--cpu-activations int8");
    let float = model.executor_info("--cpu-activations f32");
    assert!(kernel(&int8, "quant_linear").ends_with("int8"));
    assert!(kernel(&float, "quant_linear").ends_with("f32"));
    assert_eq!(kernel(&int8, "qkv_input"), "int8_in_two_terms");
    assert_eq!(kernel(&float, "qkv_input"), "f32");
    assert_eq!(kernel(&int8, "lm_head"), "int8_rounded_from_f16");
    assert_eq!(kernel(&float, "lm_head"), "f16");
}

#[test]
fn attention_backend_chooses_the_kernel() {
    let model = Model::f16();
    let attention = |flags: &str| kernel(&model.executor_info(flags), "attention").to_owned();
    let plain = attention("--attention-backend torch_native");
    assert_eq!(plain, "reference_f64_paged_f16");
    for flags in [
        "",
        "--attention-backend triton",
        "--attention-backend flashinfer",
    ] {
        let vectorised = attention(flags);
        assert!(vectorised.ends_with("_paged_f16"), "{flags}: {vectorised}");
        assert_ne!(vectorised, plain, "{flags}");
    }
}

#[test]
fn sampling_backend_chooses_the_sampler() {
    let model = Model::f16();
    let sampling = |flags: &str| kernel(&model.executor_info(flags), "sampling").to_owned();
    let plain = sampling("--sampling-backend pytorch");
    assert!(plain.starts_with("plain"), "{plain}");
    assert_eq!(sampling("--disable-flashinfer"), plain);
    let selecting = sampling("--sampling-backend flashinfer");
    assert!(selecting.starts_with("selecting"), "{selecting}");
    assert_eq!(sampling(""), selecting);
}

#[test]
fn disable_flashinfer_leaves_the_other_sampler() {
    let model = Model::f16();
    let sampling = |flags: &str| kernel(&model.executor_info(flags), "sampling").to_owned();
    assert_ne!(sampling("--disable-flashinfer"), sampling(""));
}

#[test]
fn hicache_flags_size_the_host_tier() {
    let model = Model::f16();
    let tier = |flags: &str| model.executor_info(flags).host_tier;
    assert_eq!(tier(""), None);
    let n_pages = |flags: &str| {
        let flags = format!("--enable-hierarchical-cache {flags}");
        tier(&flags).expect("a host tier").n_pages
    };
    // The pool has 512 tokens, which are 32 pages.
    assert_eq!(n_pages(""), 64);
    assert_eq!(n_pages("--hicache-ratio 0.5"), 16);
    let page_bytes = model.executor_info("").kv_pool_bytes / 32;
    let sized = n_pages("--hicache-size 1") as u64;
    assert_eq!(sized, 1_000_000_000 / page_bytes);
    let config = model.config("--enable-hierarchical-cache --hicache-size 60000");
    let loaded = model.load("").expect("a model");
    let refused = load_executor(&config, loaded.checkpoint.as_ref()).map(|_| ());
    let message = refused.expect_err("60 TB").to_string();
    assert!(message.contains("--hicache-size"), "{message}");
}

/// Cached tokens of a prompt whose pages another one has taken meanwhile.
fn cached_after_another(flags: &str) -> usize {
    let model = Model::f16().served(&format!("--max-total-tokens 256 {flags}"));
    let cached = |id: u64, prompt: Vec<u32>| {
        let request = Request {
            id: RequestId(id),
            prompt: prompt.into(),
            sampling: Arc::new(SamplingParams::default()),
            max_new_tokens: 4,
            stop_token_ids: Arc::from([]),
            priority: 0,
            prefix_root: 0,
        };
        let mut stream = model.engine.submit(request).expect("room for one");
        let mut last = None;
        while let Some(event) = stream.blocking_next() {
            last = Some(event);
        }
        match last {
            Some(TokenEvent::Finished { usage, .. }) => usage.cached_tokens,
            other => panic!("{other:?} is not the end of a request"),
        }
    };
    let first: Vec<u32> = (0..100).collect();
    assert_eq!(cached(1, first.clone()), 0);
    assert_eq!(cached(2, (0..240).map(|i| 250 - i).collect()), 0);
    cached(3, first)
}

#[test]
fn enable_hierarchical_cache_brings_back_what_the_pool_gave_up() {
    assert_eq!(cached_after_another(""), 0);
    assert_eq!(cached_after_another("--enable-hierarchical-cache"), 96);
}

#[test]
fn kv_cache_dtype_halves_the_pool() {
    let model = Model::f16();
    let (f16, fp8) = (
        model.executor_info(""),
        model.executor_info("--kv-cache-dtype fp8_e4m3"),
    );
    assert_eq!(f16.kv_pool_tokens, fp8.kv_pool_tokens);
    // 32 elements of a head: 64 bytes, or 32 and a scale of 2.
    assert_eq!(fp8.kv_pool_bytes * 64, f16.kv_pool_bytes * 34);
    assert!(kernel(&f16, "attention").ends_with("paged_f16"));
    assert!(kernel(&fp8, "attention").ends_with("paged_fp8_e4m3"));
}

#[test]
fn max_total_tokens_sizes_the_pool() {
    let model = Model::f16();
    let small = model.executor_info("--max-total-tokens 128");
    let large = model.executor_info("--max-total-tokens 256");
    assert_eq!((small.kv_pool_tokens, large.kv_pool_tokens), (128, 256));
    assert_eq!(small.kv_pool_bytes * 2, large.kv_pool_bytes);
}

#[test]
fn context_length_bounds_a_sequence() {
    let model = Model::f16();
    assert_eq!(model.served("").limits.max_sequence_tokens, 512);
    let limits = model.served("--context-length 100").limits;
    assert_eq!(limits.max_sequence_tokens, 100);
    let refused = fit(vec![1; 100], Some(1), 1, &limits, "prompt");
    assert!(refused.expect_err("too long").message.contains("100"));
    fit(vec![1; 99], Some(1), 1, &limits, "prompt").expect("it fits");
}

#[test]
fn allow_auto_truncate_cuts_an_over_long_prompt() {
    let model = Model::f16();
    let fitted = |flags: &str| {
        fit(
            vec![1; 600],
            Some(1),
            1,
            &model.served(flags).limits,
            "prompt",
        )
    };
    assert!(fitted("").is_err());
    let fitted = fitted("--allow-auto-truncate").expect("it is cut");
    assert_eq!(fitted.prompt.len(), 511);
}

#[test]
fn random_seed_seeds_dummy_weights_and_requests() {
    let model = Model::f16();
    let bytes = |flags: &str| {
        let loaded = model.load(flags).expect("a model");
        format!("{:?}", loaded.checkpoint.matrix(MatrixId::Q(0)).expect("q"))
    };
    let dummy = |seed: u32| bytes(&format!("--load-format dummy --random-seed {seed}"));
    assert_eq!(dummy(1), dummy(1));
    assert_ne!(dummy(1), dummy(2));
    let drawn = |flags: &str| model.served(flags).seeds.draw();
    assert_eq!(drawn("--random-seed 1"), drawn("--random-seed 1"));
    assert_ne!(drawn("--random-seed 1"), drawn("--random-seed 2"));
}

/// Five requests that say nothing: with the model's own `top_k` of 1 they are greedy.
#[tokio::test(flavor = "multi_thread")]
async fn sampling_defaults_are_the_models_or_openais() {
    let model = Model::f16();
    let recommended = json!({"do_sample": true, "top_k": 1, "temperature": 0.6, "eos_token_id": 2});
    let file = model.path().join("generation_config.json");
    std::fs::write(file, recommended.to_string()).expect("written");
    for (flags, n_texts, shown) in [
        ("", 1, json!(1)),
        ("--sampling-defaults model", 1, json!(1)),
        ("--sampling-defaults openai", 5, json!(null)),
    ] {
        let program = Program::start(&model.line(&format!("--port 0 {flags}")), &[]).await;
        let mut texts = std::collections::HashSet::new();
        let ask = async |body: serde_json::Value| {
            let answer = client::post(program.address, "/v1/completions", &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.json()["choices"][0]["text"].to_string()
        };
        for _ in 0..5 {
            let body = json!({"prompt": "a", "max_tokens": 16, "ignore_eos": true});
            texts.insert(ask(body).await);
        }
        assert_eq!(texts.len(), n_texts, "{flags}: {texts:?}");
        let mut asked = std::collections::HashSet::new();
        for _ in 0..5 {
            let body = json!({"prompt": "a", "max_tokens": 16, "ignore_eos": true, "top_k": -1,
                "temperature": 1.0});
            asked.insert(ask(body).await);
        }
        assert_eq!(asked.len(), 5, "{flags}: what a request says counts");
        let info = client::get(program.address, "/server_info").await.json();
        assert_eq!(info["sampling_defaults"]["top_k"], shown, "{flags}");
    }
}

/// What a request may ask for, the file may recommend; the rest is dropped, and the server says so.
#[tokio::test(flavor = "multi_thread")]
async fn recommendations_that_no_request_may_ask_for_are_dropped() {
    let model = Model::f16();
    let file = model.path().join("generation_config.json");
    let recommended = json!({"temperature": 2.5, "top_p": 0.0005, "min_p": 1.5, "eos_token_id": 2});
    std::fs::write(file, recommended.to_string()).expect("written");
    let program = Program::start(&model.line("--port 0"), &[]).await;
    let info = client::get(program.address, "/server_info").await.json();
    assert_eq!(info["sampling_defaults"]["temperature"], 2.5);
    assert_eq!(info["sampling_defaults"]["min_p"], json!(null));
    let dropped = "generation_config.json: min_p is 1.5, but may be 0 to 1";
    assert_eq!(info["sampling_defaults_dropped"], json!([dropped]));
    assert!(program.log().contains(dropped), "{}", program.log());
    let body = json!({"prompt": "a", "max_tokens": 2});
    let answer = client::post(program.address, "/v1/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_pool_beyond_the_hosts_memory_is_refused_before_it_is_allocated() {
    let model = Model::f16();
    let config = model.config("--max-total-tokens 1000000000");
    let loaded = model.load("").expect("a model");
    let refusal = load_executor(&config, loaded.checkpoint.as_ref()).err();
    let refusal = refusal
        .expect("a pool of hundreds of gigabytes")
        .to_string();
    assert!(
        refusal.contains("1000000000 tokens") && refusal.contains("--max-total-tokens"),
        "{refusal}"
    );
}

#[test]
fn cache_dir_is_where_fetched_models_are() {
    let model = Model::f16();
    let kept = model.folder.path().join("elsewhere");
    let file = kept.join("pypi/fixture-never-published-1.0/x.gguf");
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
    let config = tiny_config(Family::Qwen3);
    write_gguf(&file, &config, ElementFormat::F16, 1, &[]).expect("written");
    // As if it had been fetched: found there, or nowhere.
    let source = "pypi:fixture-never-published==1.0/x.gguf";
    let flags = format!("--model-path {source} --cache-dir {}", kept.display());
    let loaded = model.load(&flags).expect("it is in the cache");
    assert_eq!(loaded.requested, source);
}

#[test]
fn device_memory_limit_and_its_fraction_bound_a_model_on_the_cpu() {
    let model = Model::f16();
    let pool_bytes = |flags: &str| model.executor_info_by_memory(flags).kv_pool_bytes;
    let limit = "--device-memory-limit 4MiB";
    let half = pool_bytes(&format!("{limit} --mem-fraction-static 0.45"));
    let whole = pool_bytes(&format!("{limit} --mem-fraction-static 0.9"));
    assert!(half < whole && whole < 4 << 20, "{half} {whole}");
    assert_ne!(pool_bytes(""), whole);
    let config = model.config("--device-memory-limit 64KiB");
    let loaded = model.load("").expect("a model");
    let refusal = load_executor(&config, loaded.checkpoint.as_ref()).err();
    let message = refusal.expect("too large").to_string();
    for part in ["--device-memory-limit 0.062 MiB", "0.88", "512 asked"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}
