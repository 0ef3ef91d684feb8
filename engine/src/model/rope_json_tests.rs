use serde_json::{Value, json};

use super::super::config::RopeScaling;
use super::super::config_json::parse;
use super::*;

fn model(keys: &Value) -> Value {
    let mut config = json!({
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 320,
        "max_position_embeddings": 80
    });
    for (key, value) in keys.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

/// theta, scaling, context length
fn read(keys: &Value) -> Result<(f32, RopeScaling, usize), String> {
    let read = parse(&model(keys), None).map_err(|error| error.to_string())?;
    let rope = read.model.rope;
    Ok((rope.theta, rope.scaling, read.model.context_length))
}

fn yarn() -> RopeScaling {
    RopeScaling::Yarn {
        factor: 4.0,
        original: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: yarn_attention_factor(4.0),
    }
}

fn yarn_keys() -> Value {
    json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 })
}

/// `rope_scaling` from a model card, added to a file that has `rope_parameters`.
#[test]
fn both_objects_count() {
    let expected = Ok((1e6, yarn(), 256));
    let default = json!({ "rope_type": "default", "rope_theta": 1e6 });
    let keys = json!({ "rope_parameters": default, "rope_scaling": yarn_keys() });
    assert_eq!(read(&keys), expected);
    // The other way round, and the same in both.
    let mut with_theta = yarn_keys();
    with_theta["rope_theta"] = json!(1e6);
    let keys = json!({ "rope_parameters": with_theta, "rope_scaling": { "type": "default" } });
    assert_eq!(read(&keys), expected);
    let keys = json!({ "rope_parameters": with_theta, "rope_scaling": yarn_keys() });
    assert_eq!(read(&keys), expected);
    let keys = json!({ "rope_parameters": with_theta, "rope_scaling": {} });
    assert_eq!(read(&keys), expected);
    let keys = json!({ "rope_theta": 1e6, "rope_parameters": {}, "rope_scaling": yarn_keys() });
    assert_eq!(read(&keys), expected);
}

#[test]
fn objects_that_disagree_are_refused_with_both_names() {
    let linear = json!({ "rope_type": "linear", "factor": 4.0 });
    let keys = json!({ "rope_parameters": linear, "rope_scaling": yarn_keys() });
    let error = read(&keys).expect_err("they disagree");
    assert!(
        error.contains("rope_scaling.rope_type is yarn")
            && error.contains("rope_parameters.rope_type, which is linear"),
        "{error}"
    );
    let mut other = yarn_keys();
    other["factor"] = json!(2.0);
    let keys = json!({ "rope_parameters": other, "rope_scaling": yarn_keys() });
    let error = read(&keys).expect_err("they disagree");
    assert!(
        error.contains("rope_scaling.factor is 4") && error.contains("rope_parameters.factor"),
        "{error}"
    );
    let keys = json!({ "rope_theta": 1e6, "rope_parameters": { "rope_theta": 1e4 } });
    let error = read(&keys).expect_err("they disagree");
    assert!(
        error.contains("rope_theta is 1000000")
            && error.contains("10000, as in rope_parameters.rope_theta"),
        "{error}"
    );
}

/// transformers 5 writes one set for each type of layer.
#[test]
fn a_set_for_layers_of_full_attention_is_taken() {
    let default = json!({ "rope_type": "default", "rope_theta": 1e6 });
    let keys = json!({ "rope_parameters": { "full_attention": default } });
    assert_eq!(read(&keys), Ok((1e6, RopeScaling::None, 80)));
    let mut with_theta = yarn_keys();
    with_theta["rope_theta"] = json!(1e6);
    let nested = json!({ "full_attention": with_theta, "sliding_attention": default });
    assert_eq!(
        read(&json!({ "rope_parameters": nested })),
        Ok((1e6, yarn(), 256))
    );
    // It would be wrong for a model with windowed layers.
    let windowed = json!({
        "rope_parameters": nested, "use_sliding_window": true, "sliding_window": 16,
        "max_window_layers": 2
    });
    let error = read(&windowed).expect_err("two sets are needed");
    assert!(
        error.contains("rope_parameters.sliding_attention"),
        "{error}"
    );
    for nested in [
        json!({ "sliding_attention": default }),
        json!({ "full_attention": default, "chunked_attention": default }),
        json!({ "full_attention": default, "rope_theta": 1e6 }),
    ] {
        let error = read(&json!({ "rope_parameters": nested })).expect_err("refused");
        assert!(error.contains("rope_parameters."), "{error}");
    }
}

#[test]
fn keys_that_nothing_here_knows_are_refused() {
    let keys = json!({ "rope_scaling": { "rope_type": "default", "mrope_section": [16, 24, 24] } });
    let error = read(&keys).expect_err("refused");
    assert!(error.contains("rope_scaling.mrope_section"), "{error}");
    let harmless = json!({ "type": "yarn", "factor": 4.0, "finetuned": true,
        "original_max_position_embeddings": 64, "mscale": null });
    assert_eq!(
        read(&json!({ "rope_scaling": harmless })).map(|(_, scaling, _)| scaling),
        Ok(yarn())
    );
}

/// The base of dynamic NTK grows with the sequence; up to the original length nothing is scaled,
/// and longer requests are refused.
#[test]
fn dynamic_scaling_is_served_up_to_where_it_begins() {
    let scaling = RopeScaling::Dynamic {
        factor: 4.0,
        original: 80,
    };
    let keys = json!({ "rope_scaling": { "type": "dynamic", "factor": 4.0 } });
    assert_eq!(read(&keys), Ok((10_000.0, scaling, 80)));
}

#[test]
fn a_window_counts_where_a_layer_has_one() {
    let context = |keys: Value| read(&keys).map(|(_, _, context)| context);
    let windowed = |more: Value| {
        let mut keys = json!({ "use_sliding_window": true, "sliding_window": 16 });
        for (key, value) in more.as_object().expect("an object") {
            keys[key] = value.clone();
        }
        keys
    };
    assert_eq!(context(windowed(json!({ "max_window_layers": 2 }))), Ok(16));
    assert_eq!(context(windowed(json!({ "max_window_layers": 4 }))), Ok(80));
    assert_eq!(context(windowed(json!({ "max_window_layers": 0 }))), Ok(16));
    // Absent, it is 28, and the model has 4 layers.
    assert_eq!(context(windowed(json!({}))), Ok(80));
    let full = json!([
        "full_attention",
        "full_attention",
        "full_attention",
        "full_attention"
    ]);
    let some = json!([
        "full_attention",
        "sliding_attention",
        "full_attention",
        "full_attention"
    ]);
    let with = |kinds: &Value| windowed(json!({ "layer_types": kinds, "max_window_layers": 0 }));
    assert_eq!(context(with(&full)), Ok(80));
    assert_eq!(context(with(&some)), Ok(16));
    assert_eq!(
        context(json!({ "layer_types": some })),
        Ok(80),
        "no window is used"
    );
    for (kinds, expected) in [
        (
            json!([
                "linear_attention",
                "full_attention",
                "full_attention",
                "full_attention"
            ]),
            "layer_types is \"linear_attention\"",
        ),
        (json!(["full_attention"]), "the length of layer_types is 1"),
    ] {
        let error = context(with(&kinds)).expect_err("refused");
        assert!(error.contains(expected), "{error}");
    }
}
