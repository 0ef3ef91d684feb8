use serde_json::{Value, json};

use super::*;

fn read(key: &str, value: Value) -> Result<Option<Quantization>, String> {
    let config = json!({ key: value });
    let fields = Fields::of(&config, "").map_err(|error| error.to_string())?;
    of_config(&fields).map_err(|error| error.to_string())
}

fn read_whole(value: Value) -> Quantization {
    read("quantization_config", value)
        .expect("supported")
        .expect("quantised")
}

fn found(value: Value) -> Packed {
    match read_whole(value) {
        Quantization::Packed(packed) => packed,
        Quantization::Scaled(other) => panic!("{other:?} is not packed"),
    }
}

fn scaled(value: Value) -> Scaled {
    match read_whole(value) {
        Quantization::Scaled(scaled) => scaled,
        Quantization::Packed(other) => panic!("{other:?} is not scaled"),
    }
}

fn refused(value: &Value) -> String {
    read("quantization_config", value.clone()).expect_err("refused")
}

fn with(mut value: Value, path: &str, new: Value) -> Value {
    let pointed = match path.rsplit_once('/') {
        Some((parent, last)) => value
            .pointer_mut(&format!("/{parent}"))
            .map(|parent| &mut parent[last]),
        None => Some(&mut value[path]),
    };
    *pointed.expect("a path of the value") = new;
    value
}

fn awq() -> Value {
    json!({ "quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": true })
}

fn gptq() -> Value {
    json!({
        "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true,
        "checkpoint_format": "gptq", "lm_head": false, "damp_percent": 0.01, "static_groups": false
    })
}

fn auto_round() -> Value {
    json!({
        "quant_method": "auto-round", "bits": 4, "group_size": 64, "sym": true, "data_type": "int",
        "packing_format": "auto_round:auto_gptq", "autoround_version": "0.5.1"
    })
}

fn compressed_tensors() -> Value {
    json!({
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "kv_cache_scheme": null, "quantization_status": "compressed",
        "config_groups": { "group_0": {
            "input_activations": null, "output_activations": null, "targets": ["Linear"],
            "weights": {
                "actorder": null, "dynamic": false, "group_size": 32, "num_bits": 4,
                "strategy": "group", "symmetric": false, "type": "int"
            }
        } }
    })
}

const CT_WEIGHTS: &str = "config_groups/group_0/weights";

#[test]
fn a_checkpoint_without_quantisation_has_none() {
    assert_eq!(read("quantization_config", Value::Null), Ok(None));
    assert_eq!(read("quantization_config", json!({})), Ok(None));
    let error = refused(&json!({ "bits": 4 }));
    assert!(
        error.contains("no quantization_config.quant_method"),
        "{error}"
    );
}

#[test]
fn every_method_is_read_as_its_tool_writes_it() {
    let of = |method, packing, group_size, has_zero_points| Packed {
        method,
        packing,
        group_size,
        has_zero_points,
        act_order: false,
    };
    let v1 = Packing::Gptq {
        zeros_minus_one: true,
    };
    let v2 = Packing::Gptq {
        zeros_minus_one: false,
    };
    use Packing::{AwqGemm, AwqGemv, PackQuantized};
    use QuantMethod::{AutoRound, Awq, CompressedTensors, Gptq};
    for (value, expected) in [
        (awq(), of(Awq, AwqGemm, Some(128), true)),
        (
            with(awq(), "quant_method", json!("AWQ")),
            of(Awq, AwqGemm, Some(128), true),
        ),
        (
            with(awq(), "version", json!("GEMV")),
            of(Awq, AwqGemv, Some(128), true),
        ),
        (
            with(awq(), "zero_point", json!(false)),
            of(Awq, AwqGemm, Some(128), false),
        ),
        (
            with(awq(), "group_size", json!(-1)),
            of(Awq, AwqGemm, None, true),
        ),
        (gptq(), of(Gptq, v1, Some(128), true)),
        (
            with(gptq(), "checkpoint_format", json!("gptq_v2")),
            of(Gptq, v2, Some(128), true),
        ),
        (
            json!({ "quant_method": "gptq", "bits": 4, "group_size": 32, "format": "gptq_v2" }),
            of(Gptq, v2, Some(32), true),
        ),
        // Very old files do not say which version they are.
        (
            json!({ "quant_method": "gptq", "bits": 4, "group_size": 32 }),
            of(Gptq, v1, Some(32), true),
        ),
        (auto_round(), of(AutoRound, v1, Some(64), true)),
        (
            with(auto_round(), "packing_format", json!("auto_round:auto_awq")),
            of(AutoRound, AwqGemm, Some(64), true),
        ),
        (
            json!({
                "quant_method": "intel/auto-round", "bits": 4, "group_size": 128,
                "backend": "autoround:gptq:exllamav2"
            }),
            of(AutoRound, v1, Some(128), true),
        ),
        (
            compressed_tensors(),
            of(CompressedTensors, PackQuantized, Some(32), true),
        ),
        (
            with(
                with(
                    with(
                        compressed_tensors(),
                        &format!("{CT_WEIGHTS}/strategy"),
                        json!("channel"),
                    ),
                    &format!("{CT_WEIGHTS}/group_size"),
                    Value::Null,
                ),
                &format!("{CT_WEIGHTS}/symmetric"),
                json!(true),
            ),
            of(CompressedTensors, PackQuantized, None, false),
        ),
    ] {
        assert_eq!(found(value.clone()), expected, "{value}");
    }
    let mut older = compressed_tensors();
    let fields = older.as_object_mut().expect("an object");
    fields.remove("quant_method");
    assert!(refused(&older).contains("quant_method"));
    let read = read("compression_config", older).expect("supported");
    assert_eq!(read.map(Quantization::method), Some(CompressedTensors));
}

/// As llm-compressor writes it: `weights` replaces some of the settings of the weights.
fn ct_scaled(format: &str, weights: Value) -> Value {
    let mut value = with(compressed_tensors(), "format", json!(format));
    let activations = json!({ "num_bits": 8, "strategy": "token", "dynamic": true });
    value["config_groups"]["group_0"]["input_activations"] = activations;
    let of_group = &mut value["config_groups"]["group_0"]["weights"];
    *of_group = json!({ "dynamic": false, "num_bits": 8, "symmetric": true, "group_size": null });
    for (key, new) in weights.as_object().expect("an object") {
        of_group[key] = new.clone();
    }
    value
}

fn fp8() -> Value {
    json!({
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [128, 128]
    })
}

/// The settings of weights in NVFP4.
fn nvfp4() -> Value {
    json!({ "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16 })
}

#[test]
fn numbers_with_scales_are_read_as_their_tools_write_them() {
    use QuantMethod::{CompressedTensors, Fp8, ModelOpt};
    let of = |method, kind| Scaled { method, kind };
    let blocks = |rows, columns| ScaledKind::Fp8 {
        block: Some([rows, columns]),
    };
    let whole = ScaledKind::Fp8 { block: None };
    let float = |weights: Value| {
        let mut weights = weights;
        weights["type"] = json!("float");
        ct_scaled("float-quantized", weights)
    };
    let int = |strategy: &str| {
        ct_scaled(
            "int-quantized",
            json!({ "type": "int", "strategy": strategy }),
        )
    };
    for (value, expected) in [
        (fp8(), of(Fp8, blocks(128, 128))),
        (
            with(fp8(), "weight_block_size", json!([1, 64])),
            of(Fp8, blocks(1, 64)),
        ),
        (
            json!({ "quant_method": "fp8", "activation_scheme": "static", "ignored_layers": [] }),
            of(Fp8, whole),
        ),
        (
            float(json!({ "strategy": "tensor" })),
            of(CompressedTensors, whole),
        ),
        (
            float(json!({ "strategy": "channel" })),
            of(CompressedTensors, whole),
        ),
        (
            float(json!({ "strategy": "block", "block_structure": [128, 128] })),
            of(CompressedTensors, blocks(128, 128)),
        ),
        (
            with(
                float(json!({ "strategy": "channel" })),
                "format",
                json!("naive-quantized"),
            ),
            of(CompressedTensors, whole),
        ),
        (int("channel"), of(CompressedTensors, ScaledKind::Int8)),
        (int("tensor"), of(CompressedTensors, ScaledKind::Int8)),
        (
            with(int("channel"), "format", json!("naive-quantized")),
            of(CompressedTensors, ScaledKind::Int8),
        ),
        (
            ct_scaled("nvfp4-pack-quantized", nvfp4()),
            of(CompressedTensors, ScaledKind::Nvfp4 { divides: true }),
        ),
        (
            json!({ "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16 }),
            of(ModelOpt, ScaledKind::Nvfp4 { divides: false }),
        ),
        (
            json!({ "quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"] }),
            of(ModelOpt, whole),
        ),
    ] {
        assert_eq!(scaled(value.clone()), expected, "{value}");
        assert!(!read_whole(value).act_order());
    }
}

#[test]
fn other_numbers_with_scales_are_refused_by_name() {
    let float = |weights: Value| ct_scaled("float-quantized", weights);
    let int = |weights: Value| ct_scaled("int-quantized", weights);
    for (value, key, said) in [
        (with(fp8(), "fmt", json!("e5m2")), "fmt", "e4m3"),
        (
            with(fp8(), "activation_scheme", json!("block")),
            "activation_scheme",
            "dynamic, static",
        ),
        (
            with(fp8(), "weight_block_size", json!([128])),
            "weight_block_size",
            "[rows, columns]",
        ),
        (
            with(fp8(), "weight_block_size", json!([128, 8])),
            "weight_block_size",
            "a multiple of 16",
        ),
        (
            with(fp8(), "weight_block_size", json!([0, 128])),
            "weight_block_size",
            "1 to 1048576",
        ),
        (
            float(json!({ "type": "float", "strategy": "block" })),
            "block_structure",
            "no ",
        ),
        (
            float(json!({ "type": "float", "strategy": "group" })),
            "strategy",
            "tensor, channel, block",
        ),
        (float(json!({ "type": "int" })), "type", "float"),
        (
            float(json!({ "type": "float", "num_bits": 4 })),
            "num_bits",
            "8",
        ),
        (
            int(json!({ "type": "int", "strategy": "group" })),
            "strategy",
            "tensor, channel",
        ),
        (
            int(json!({ "type": "int", "symmetric": false })),
            "symmetric",
            "true",
        ),
        (
            ct_scaled(
                "nvfp4-pack-quantized",
                with(nvfp4(), "group_size", json!(32)),
            ),
            "group_size",
            "16",
        ),
        (
            ct_scaled(
                "nvfp4-pack-quantized",
                with(nvfp4(), "strategy", json!("group")),
            ),
            "strategy",
            "tensor_group",
        ),
        (
            ct_scaled("nvfp4-pack-quantized", with(nvfp4(), "type", json!("int"))),
            "type",
            "float",
        ),
        (
            json!({ "quant_method": "modelopt", "quant_algo": "W4A8_AWQ" }),
            "quant_algo is W4A8_AWQ",
            "NVFP4, FP8",
        ),
        (json!({ "quant_method": "modelopt" }), "quant_algo", "no "),
        (
            json!({ "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32 }),
            "group_size",
            "16",
        ),
        (
            ct_scaled("mxfp8-quantized", json!({ "type": "float" })),
            "format",
            "float-quantized (FP8)",
        ),
    ] {
        let error = refused(&value);
        assert!(error.contains("quantization_config."), "{error}");
        assert!(
            error.contains(key) && error.contains(said),
            "{key}: {error}"
        );
    }
    // One format for all groups.
    let mut mixed = ct_scaled(
        "float-quantized",
        json!({ "type": "float", "strategy": "tensor" }),
    );
    let group = &compressed_tensors()["config_groups"]["group_0"];
    mixed["config_groups"]["group_1"] = group.clone();
    mixed["config_groups"]["group_1"]["format"] = json!("pack-quantized");
    let error = refused(&mixed);
    assert!(
        error.contains("group_1.weights is in another format"),
        "{error}"
    );
}

#[test]
fn act_order_is_what_moves_columns() {
    let is_moved = |value: Value| found(value).act_order;
    let desc_act = with(gptq(), "desc_act", json!(true));
    assert!(is_moved(desc_act.clone()));
    assert!(!is_moved(with(
        desc_act.clone(),
        "static_groups",
        json!(true)
    )));
    assert!(!is_moved(with(desc_act, "group_size", json!(-1))));
    for (order, expected) in [
        (json!("group"), true),
        (json!("static"), false),
        (json!("weight"), false),
        (json!(true), true),
    ] {
        let value = with(
            compressed_tensors(),
            &format!("{CT_WEIGHTS}/actorder"),
            order,
        );
        assert_eq!(is_moved(value.clone()), expected, "{value}");
    }
}

#[test]
fn modules_left_in_16_bits_are_no_obstacle_and_other_settings_are() {
    let dynamic = |settings: Value| with(gptq(), "dynamic", settings);
    found(dynamic(
        json!({ "-:.*lm_head.*": {}, "+:.*down.*": { "bits": 4, "group_size": 128 } }),
    ));
    let error = refused(&dynamic(json!({ "+:.*down.*": { "bits": 8 } })));
    assert!(error.contains("dynamic.+:.*down.*.bits is 8"), "{error}");
    let error = refused(&dynamic(json!({ ".*up.*": { "group_size": 32 } })));
    assert!(
        error.contains("dynamic..*up.*.group_size is 32; it must be 128 as everywhere else"),
        "{error}"
    );
    let extra = |settings: Value| {
        let module = json!({ "model.layers.1.mlp.down_proj": settings });
        with(auto_round(), "extra_config", module)
    };
    found(extra(json!({ "bits": 16, "data_type": "fp" })));
    found(extra(
        json!({ "bits": 4, "group_size": 64, "data_type": "int" }),
    ));
    for (settings, key) in [
        (json!({ "bits": 8 }), "down_proj.bits is 8"),
        (json!({ "group_size": 32 }), "down_proj.group_size is 32"),
        (
            json!({ "bits": 4, "act_bits": 8 }),
            "down_proj.act_bits is 8",
        ),
    ] {
        let error = refused(&extra(settings));
        assert!(error.contains(key), "{error}");
    }
    let two = with(
        compressed_tensors(),
        "config_groups/group_1",
        compressed_tensors()["config_groups"]["group_0"].clone(),
    );
    found(two.clone());
    let differing = with(two, "config_groups/group_1/weights/group_size", json!(64));
    let error = refused(&differing);
    assert!(
        error.contains("group_1.weights.group_size is 64"),
        "{error}"
    );
}

/// The message has the key, the value, and what is supported.
#[test]
fn other_formats_are_refused_by_name() {
    let ct = compressed_tensors;
    for (value, key, said) in [
        (json!({ "quant_method": "quark" }), "quant_method", "quark"),
        (
            json!({ "quant_method": "bitsandbytes" }),
            "quant_method",
            "bitsandbytes",
        ),
        (with(awq(), "bits", json!(8)), "bits", "8"),
        (
            with(awq(), "version", json!("gemv_fast")),
            "version",
            "gemv_fast",
        ),
        (with(awq(), "group_size", json!(0)), "group_size", "0"),
        (
            with(awq(), "group_size", json!(16)),
            "group_size",
            "a multiple of 32",
        ),
        (with(gptq(), "bits", json!(3)), "bits", "3"),
        (
            with(gptq(), "checkpoint_format", json!("marlin")),
            "checkpoint_format",
            "marlin",
        ),
        (
            with(gptq(), "is_marlin_format", json!(true)),
            "is_marlin_format",
            "true",
        ),
        (
            with(gptq(), "pack_dtype", json!("int16")),
            "pack_dtype",
            "int16",
        ),
        (with(auto_round(), "bits", json!(2)), "bits", "2"),
        (
            with(
                auto_round(),
                "packing_format",
                json!("auto_round:exllamav2"),
            ),
            "packing_format",
            "auto_round:auto_gptq, auto_round:auto_awq",
        ),
        (
            with(auto_round(), "data_type", json!("mx_fp")),
            "data_type",
            "mx_fp",
        ),
        (with(auto_round(), "act_bits", json!(8)), "act_bits", "8"),
        (
            with(ct(), "format", json!("float-quantized")),
            "num_bits",
            "8",
        ),
        (
            with(ct(), "format", json!("marlin-24")),
            "format",
            "pack-quantized",
        ),
        (
            with(
                ct(),
                "config_groups/group_0/format",
                json!("mxfp4-pack-quantized"),
            ),
            "group_0.format",
            "nvfp4-pack-quantized",
        ),
        (
            with(
                ct(),
                "config_groups/group_0/input_activations",
                json!({ "num_bits": 8 }),
            ),
            "input_activations",
            "null",
        ),
        (
            with(ct(), &format!("{CT_WEIGHTS}/num_bits"), json!(8)),
            "num_bits",
            "8",
        ),
        (
            with(ct(), &format!("{CT_WEIGHTS}/type"), json!("float")),
            "type",
            "float",
        ),
        (
            with(ct(), &format!("{CT_WEIGHTS}/strategy"), json!("tensor")),
            "strategy",
            "tensor",
        ),
        (
            with(
                ct(),
                "sparsity_config",
                json!({ "format": "sparse-24-bitmask" }),
            ),
            "sparsity_config",
            "null",
        ),
        (
            with(ct(), "config_groups", json!({})),
            "config_groups",
            "no ",
        ),
    ] {
        let error = refused(&value);
        assert!(error.contains("quantization_config."), "{error}");
        assert!(
            error.contains(key) && error.contains(said),
            "{key}: {error}"
        );
    }
}
