use serde_json::{Value, json};

use super::super::config::{RopeConfig, RopeScaling};
use super::super::quantization::{Packed, Packing, QuantMethod, Scaled, ScaledKind};
use super::*;

fn qwen3() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": null,
        "tie_word_embeddings": true, "attention_bias": false, "hidden_act": "silu",
        "use_sliding_window": false, "sliding_window": null, "bos_token_id": 151643,
        "eos_token_id": 151645
    })
}

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5
    })
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

fn parsed(config: &Value) -> FolderConfig {
    parse(config, None).expect("a valid configuration")
}

fn refused(config: &Value) -> String {
    parse(config, None)
        .expect_err("an invalid configuration")
        .to_string()
}

#[test]
fn qwen3_is_read_as_published() {
    let generation = json!({ "eos_token_id": [151645, 151643] });
    let read = parse(&qwen3(), Some(&generation)).expect("valid").model;
    let preset = crate::weights::preset::find("qwen3-0.6b")
        .expect("a preset")
        .config;
    assert_eq!(read, preset);
}

/// `config.json` of Qwen/Qwen3-30B-A3B.
fn qwen3_30b_a3b() -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "bos_token_id": 151643,
        "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
        "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe",
        "moe_intermediate_size": 768, "norm_topk_prob": true, "num_attention_heads": 32,
        "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_key_value_heads": 4, "output_router_logits": false, "rms_norm_eps": 1e-6,
        "rope_scaling": null, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
        "sliding_window": null, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "use_sliding_window": false, "vocab_size": 151936
    })
}

#[test]
fn qwen3_moe_is_read_as_published() {
    let generation = json!({ "eos_token_id": [151645, 151643] });
    let read = parse(&qwen3_30b_a3b(), Some(&generation)).expect("valid");
    let preset = crate::weights::preset::find("qwen3-30b-a3b").expect("a preset");
    assert_eq!(read.model, preset.config);
}

#[test]
fn layers_are_dense_where_either_key_says_so() {
    let dense = |keys: &[(&str, Value)]| {
        let mut config = with(qwen3_30b_a3b(), "num_hidden_layers", json!(6));
        for (key, value) in keys {
            config[*key] = value.clone();
        }
        let model = parsed(&config).model;
        let is_dense = |layer: &usize| model.experts_of(*layer).is_none();
        let dense: Vec<usize> = (0..6).filter(is_dense).collect();
        assert_eq!(model.n_sparse_layers(), 6 - dense.len());
        dense
    };
    assert!(dense(&[]).is_empty());
    assert_eq!(dense(&[("mlp_only_layers", json!([3, 1, 3]))]), [1, 3]);
    assert_eq!(dense(&[("decoder_sparse_step", json!(2))]), [0, 2, 4]);
    let both = [
        ("decoder_sparse_step", json!(3)),
        ("mlp_only_layers", json!([5])),
    ];
    assert_eq!(dense(&both), [0, 1, 3, 4, 5]);
    assert_eq!(dense(&[("decoder_sparse_step", json!(9))]).len(), 6);
}

#[test]
fn defaults_of_experts_are_hugging_faces() {
    let mut config = qwen3_30b_a3b();
    let map = config.as_object_mut().expect("an object");
    for key in ["norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"] {
        map.remove(key);
    }
    let n = map.remove("num_experts").expect("there");
    map.insert("num_local_experts".into(), n);
    let experts = parsed(&config).model.experts.expect("experts");
    assert_eq!((experts.n_experts, experts.n_active), (128, 8));
    assert!(!experts.norm_topk_prob && experts.dense_layers.is_empty());
}

#[test]
fn experts_out_of_range_are_refused_with_value_and_limit() {
    for (key, value, parts) in [
        ("num_experts", json!(0), ["is 0", "1 to 4096"]),
        ("num_experts", json!(5000), ["is 5000", "1 to 4096"]),
        ("num_experts", json!("8"), ["\"8\"", "whole number"]),
        ("num_experts", Value::Null, ["no num_experts", ""]),
        ("num_local_experts", json!(64), ["is 64", "which is 128"]),
        ("num_experts_per_tok", json!(0), ["is 0", "1 to 128"]),
        ("num_experts_per_tok", json!(129), ["is 129", "1 to 128"]),
        (
            "num_experts_per_tok",
            Value::Null,
            ["num_experts_per_tok", ""],
        ),
        ("moe_intermediate_size", json!(0), ["is 0", "1 to 1048576"]),
        ("decoder_sparse_step", json!(0), ["is 0", "1 to 1024"]),
        ("norm_topk_prob", json!(1), ["is 1", "true or false"]),
        (
            "mlp_only_layers",
            json!([48]),
            ["is [48]", "below the number of layers 48"],
        ),
        ("mlp_only_layers", json!(3), ["is 3", "a list of layers"]),
        ("mlp_only_layers", json!([-1]), ["[-1]", "a list of layers"]),
        (
            "shared_expert_intermediate_size",
            json!(768),
            ["is 768", "Qwen3-MoE"],
        ),
        ("routed_scaling_factor", json!(2.5), ["is 2.5", "Qwen3-MoE"]),
        ("scoring_func", json!("sigmoid"), ["sigmoid", "Qwen3-MoE"]),
    ] {
        let message = refused(&with(qwen3_30b_a3b(), key, value));
        for part in parts {
            assert!(message.contains(part), "{key}: {message}");
        }
    }
    let mut huge = with(qwen3_30b_a3b(), "num_experts", json!(4096));
    huge["num_hidden_layers"] = json!(100);
    assert!(refused(&huge).contains("409600"), "{}", refused(&huge));
    let wide = with(qwen3_30b_a3b(), "moe_intermediate_size", json!(1 << 20));
    assert!(refused(&wide).contains("experts x"), "{}", refused(&wide));
}

#[test]
fn a_window_of_a_model_with_experts_is_that_of_every_layer() {
    let windowed = with(qwen3_30b_a3b(), "use_sliding_window", json!(true));
    assert_eq!(parsed(&windowed).model.context_length, 40_960);
    let windowed = with(windowed, "sliding_window", json!(4096));
    assert_eq!(parsed(&windowed).model.context_length, 4096);
}

#[test]
fn llama_defaults_are_hugging_faces() {
    let read = parsed(&llama()).model;
    assert_eq!(read.head_dim, 64);
    assert_eq!(
        read.rope,
        RopeConfig {
            theta: 10_000.0,
            scaling: RopeScaling::None
        }
    );
    assert!(!read.tied_embeddings && !read.qkv_bias && !read.o_bias && !read.qk_norm);
    let read = parsed(&with(llama(), "attention_bias", json!(true))).model;
    assert!(read.qkv_bias && read.o_bias);
}

#[test]
fn mistral_is_llama_whose_window_needs_no_switch() {
    let mistral = with(llama(), "architectures", json!(["MistralForCausalLM"]));
    let context = |config: &Value| parsed(config).model.context_length;
    let long = with(mistral, "max_position_embeddings", json!(32768));
    let full = with(
        with(long.clone(), "sliding_window", Value::Null),
        "head_dim",
        json!(128),
    );
    let read = parsed(&full).model;
    assert_eq!((read.family, read.head_dim), (Family::Llama, 128));
    assert!(!read.qkv_bias && !read.qk_norm);
    assert_eq!(context(&full), 32768);
    assert_eq!(
        context(&with(long.clone(), "sliding_window", json!(1024))),
        1024
    );
    assert_eq!(context(&long), 4096);
    let by_type = with(full, "architectures", Value::Null);
    assert_eq!(
        context(&with(by_type, "model_type", json!("mistral"))),
        32768
    );
}

#[test]
fn qwen2_has_biases_on_q_k_v_alone() {
    let read = parsed(&with(llama(), "architectures", json!(["Qwen2ForCausalLM"]))).model;
    assert!(read.qkv_bias && !read.o_bias && !read.qk_norm);
}

#[test]
fn rope_scaling_is_read_in_both_key_styles() {
    let llama3 = |type_key: &str| {
        let mut scaling = json!({
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        });
        scaling[type_key] = json!("llama3");
        scaling
    };
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq: 1.0,
        high_freq: 4.0,
        original: 8192,
    };
    for (key, type_key) in [
        ("rope_scaling", "type"),
        ("rope_scaling", "rope_type"),
        ("rope_parameters", "rope_type"),
    ] {
        let read = parsed(&with(llama(), key, llama3(type_key))).model;
        assert_eq!(read.rope.scaling, expected, "{key}.{type_key}");
        assert_eq!(read.context_length, 2048);
    }
    let new_style = json!({ "rope_type": "default", "rope_theta": 5e5 });
    let expected = RopeConfig {
        theta: 5e5,
        scaling: RopeScaling::None,
    };
    assert_eq!(
        parsed(&with(llama(), "rope_parameters", new_style))
            .model
            .rope,
        expected
    );
}

#[test]
fn yarn_and_linear_stretch_the_context_and_dynamic_does_not() {
    let yarn = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768
    });
    let read = parsed(&with(qwen3(), "rope_scaling", yarn)).model;
    assert_eq!(read.context_length, 131_072);
    let RopeScaling::Yarn {
        factor,
        original,
        beta_fast,
        beta_slow,
        attention_factor,
    } = read.rope.scaling
    else {
        panic!("{:?}", read.rope.scaling)
    };
    assert_eq!(
        (factor, original, beta_fast, beta_slow),
        (4.0, 32_768, 32.0, 1.0)
    );
    assert!(
        (attention_factor - 1.138_629_4).abs() < 1e-6,
        "0.1 ln 4 + 1"
    );

    let linear = json!({ "type": "linear", "factor": 2.0 });
    let read = parsed(&with(llama(), "rope_scaling", linear)).model;
    assert_eq!(
        (read.rope.scaling, read.context_length),
        (RopeScaling::Linear { factor: 2.0 }, 4096)
    );

    let dynamic = json!({ "type": "dynamic", "factor": 2.0 });
    let read = parsed(&with(llama(), "rope_scaling", dynamic)).model;
    let expected = RopeScaling::Dynamic {
        factor: 2.0,
        original: 2048,
    };
    assert_eq!((read.rope.scaling, read.context_length), (expected, 2048));
}

#[test]
fn end_of_sequence_ids_come_from_both_files() {
    let generation = json!({ "eos_token_id": [7, 9] });
    let config = with(llama(), "eos_token_id", json!([9, 2]));
    let read = parse(&config, Some(&generation)).expect("valid").model;
    assert_eq!(read.eos_token_ids, [7, 9, 2]);
}

#[test]
fn a_sliding_window_limits_the_context() {
    let windowed = with(
        with(qwen3(), "use_sliding_window", json!(true)),
        "sliding_window",
        json!(4096),
    );
    let windowed = with(windowed, "max_window_layers", json!(0));
    assert_eq!(parsed(&windowed).model.context_length, 4096);
}

/// Each invalid value is reported together with its limit.
#[test]
fn bad_values_are_refused_with_value_and_limit() {
    for (key, value, expected) in [
        (
            "hidden_size",
            json!(1u64 << 40),
            "hidden size is 1099511627776; it must be 1 to 131072",
        ),
        (
            "num_hidden_layers",
            json!(0),
            "number of layers is 0; it must be 1 to 1024",
        ),
        (
            "num_hidden_layers",
            json!(1_000_000),
            "1000000; it must be 1 to 1024",
        ),
        ("num_hidden_layers", json!(-3), "num_hidden_layers is -3"),
        (
            "num_hidden_layers",
            json!("28"),
            "num_hidden_layers is \"28\"",
        ),
        (
            "num_key_value_heads",
            json!(5),
            "a multiple of the 5 key-value heads",
        ),
        (
            "num_key_value_heads",
            json!(0),
            "number of key-value heads is 0",
        ),
        (
            "num_attention_heads",
            json!(0),
            "number of attention heads is 0",
        ),
        (
            "head_dim",
            json!(127),
            "head dimension is 127; it must be even",
        ),
        (
            "vocab_size",
            json!(u64::MAX),
            "vocabulary size is 18446744073709551615",
        ),
        (
            "intermediate_size",
            json!(1 << 21),
            "intermediate size is 2097152",
        ),
        ("max_position_embeddings", json!(0), "context length is 0"),
        ("rms_norm_eps", json!(-1.0), "rms_norm_eps is -1"),
        ("rope_theta", json!(0), "rope theta is 0"),
        (
            "hidden_act",
            json!("gelu"),
            "hidden_act is gelu, which is not supported",
        ),
        (
            "architectures",
            json!(["MambaForCausalLM"]),
            "MambaForCausalLM, which is not supported",
        ),
        (
            "eos_token_id",
            json!(151_936),
            "below the vocabulary size 151936",
        ),
        ("eos_token_id", json!("</s>"), "a token id or a list"),
        ("mlp_bias", json!(true), "mlp_bias"),
        (
            "rope_scaling",
            json!({ "type": "longrope" }),
            "rope_scaling.rope_type is longrope",
        ),
        (
            "rope_scaling",
            json!({ "type": "linear" }),
            "no rope_scaling.factor",
        ),
        (
            "rope_scaling",
            json!({ "type": "linear", "factor": 0 }),
            "factor is 0",
        ),
        (
            "rope_scaling",
            json!([1]),
            "rope_scaling is [1]; it must be an object",
        ),
        (
            "rope_scaling",
            json!({ "type": "llama3", "factor": 8 }),
            "original_max_position",
        ),
    ] {
        let error = refused(&with(qwen3(), key, value));
        assert!(
            error.contains(expected),
            "{key}: {error:?} lacks {expected:?}"
        );
    }
    assert!(refused(&json!([])).contains("a JSON object"));
    let mut incomplete = qwen3();
    incomplete
        .as_object_mut()
        .expect("an object")
        .remove("hidden_size");
    assert_eq!(
        refused(&incomplete),
        "the model configuration has no hidden_size"
    );
}

#[test]
fn a_folder_that_has_no_readable_configuration_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = read_folder(dir.path())
        .expect_err("nothing there")
        .to_string();
    assert!(error.contains("config.json"), "{error}");
    std::fs::write(dir.path().join("config.json"), "{").expect("written");
    let error = read_folder(dir.path())
        .expect_err("half a file")
        .to_string();
    assert!(error.contains("is not valid JSON"), "{error}");
}

/// Forms that other tools write and transformers accepts.
#[test]
fn odd_values_that_are_right_are_taken() {
    let read = parsed(&with(llama(), "max_position_embeddings", json!(512.0))).model;
    assert_eq!(read.context_length, 512);
    assert!(refused(&with(llama(), "max_position_embeddings", json!(512.5))).contains("is 512.5"));
    parsed(&with(llama(), "hidden_act", json!("swish")));
    // For a pruned vocabulary: no token of that id can be read or generated.
    let pruned = with(llama(), "bos_token_id", json!(128_000));
    assert_eq!(parsed(&pruned).model.bos_token_id, None);
    let error = refused(&with(llama(), "eos_token_id", json!(128_001)));
    assert!(error.contains("eos_token_id is 128001"), "{error}");
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let text = format!("\u{feff}{}", llama());
    std::fs::write(dir.path().join("config.json"), text).expect("written");
    let read = read_folder(dir.path()).expect("read");
    assert_eq!(read.model.n_layers, 22);
}

/// AutoAWQ's and AutoGPTQ's first versions wrote separate files.
#[test]
fn older_quantisation_files_are_read_where_the_configuration_has_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let write = |name: &str, value: &Value| {
        std::fs::write(dir.path().join(name), value.to_string()).expect("written");
    };
    let found = || read_folder(dir.path()).expect("read").quantization;
    write("config.json", &llama());
    assert_eq!(found(), None);
    write(
        "quantize_config.json",
        &json!({ "bits": 4, "group_size": 64, "desc_act": true, "sym": false }),
    );
    let packed = || match found() {
        Some(Quantization::Packed(packed)) => packed,
        other => panic!("{other:?} is not packed"),
    };
    let gptq: Packed = packed();
    assert_eq!(
        (gptq.method, gptq.group_size, gptq.act_order),
        (QuantMethod::Gptq, Some(64), true)
    );
    write(
        "quant_config.json",
        &json!({ "zero_point": true, "q_group_size": 128, "w_bit": 4, "version": "GEMM" }),
    );
    let awq = packed();
    assert_eq!(
        (awq.method, awq.packing, awq.group_size),
        (QuantMethod::Awq, Packing::AwqGemm, Some(128))
    );
    write(
        "quant_config.json",
        &json!({ "q_group_size": 128, "w_bit": 8 }),
    );
    let error = read_folder(dir.path()).expect_err("8 bits").to_string();
    assert!(error.contains("quant_config.json: w_bit is 8"), "{error}");
}

#[test]
fn modelopts_own_file_is_read_and_may_be_about_the_cache_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    let read = |quantization: Value| {
        let value = json!({ "producer": { "name": "modelopt" }, "quantization": quantization });
        std::fs::write(dir.path().join("hf_quant_config.json"), value.to_string())
            .expect("written");
        read_folder(dir.path()).map(|read| read.quantization)
    };
    std::fs::write(dir.path().join("config.json"), llama().to_string()).expect("written");
    let fp4 = json!({ "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16 });
    let expected = Quantization::Scaled(Scaled {
        method: QuantMethod::ModelOpt,
        kind: ScaledKind::Nvfp4 { divides: false },
    });
    assert_eq!(read(fp4).expect("read"), Some(expected));
    let cache = json!({ "quant_algo": null, "kv_cache_quant_algo": "FP8" });
    assert_eq!(read(cache).expect("read"), None);
    let error = read(json!({ "quant_algo": "MIXED_PRECISION" })).expect_err("refused");
    let message = error.to_string();
    for part in [
        "hf_quant_config.json: quantization.quant_algo",
        "NVFP4, FP8",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(error.code(), crate::errors::Code::UnsupportedQuantization);
}
