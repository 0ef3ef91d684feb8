use serde_json::{Value, json};

use super::*;

fn read(key: &str, value: Value) -> Result<Option<Quantization>, String> {
    let config = json!({ key: value });
    let fields = Fields::of(&config, "").map_err(|error| error.to_string())?;
    of_config(&fields).map_err(|error| error.to_string())
}

fn found(value: Value) -> Quantization {
    read("quantization_config", value)
        .expect("supported")
        .expect("quantised")
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
    let of = |method, packing, group_size, has_zero_points| Quantization {
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
    assert_eq!(read.map(|read| read.method), Some(CompressedTensors));
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
        (json!({ "quant_method": "fp8" }), "quant_method", "fp8"),
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
            "format",
            "float-quantized",
        ),
        (
            with(ct(), "format", json!("int-quantized")),
            "format",
            "pack-quantized",
        ),
        (
            with(
                ct(),
                "config_groups/group_0/format",
                json!("nvfp4-pack-quantized"),
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
