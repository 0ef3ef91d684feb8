//! Which flags apply to which model, on a command line and in a file.

use super::*;

fn args(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn plan(line: &str) -> ServePlan {
    ServePlan::read(&args(line)).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn refusal(line: &str) -> String {
    ServePlan::read(&args(line)).expect_err(line).to_string()
}

fn in_file(text: &str, typed: &str) -> Result<ServePlan, PlanError> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("serve.toml");
    std::fs::write(&path, text).expect("written");
    ServePlan::read(&args(&format!("--config {} {typed}", path.display())))
}

#[test]
fn one_model_is_read_as_ever_wherever_its_flags_stand() {
    for line in [
        "--model-path a --served-model-name n --port 1 --max-total-tokens 64",
        "--served-model-name n --port 1 --max-total-tokens 64 --model=a",
    ] {
        let plan = plan(line);
        assert_eq!((plan.models.len(), plan.http.port), (1, 1), "{line}");
        let model = &plan.models[0];
        assert_eq!(model.engine.model_path.as_deref(), Some("a"));
        assert_eq!(model.name.as_deref(), Some("n"));
        assert_eq!(model.engine.max_total_tokens, Some(64));
        assert!((model.engine.mem_fraction_static - 0.88).abs() < 1e-9);
    }
    assert_eq!(plan("--port 2").models[0].names(), ["default"]);
}

#[test]
fn every_model_has_its_own_flags_over_the_common_ones() {
    let plan = plan(
        "--context-length 512 --model-path a --served-model-name x --mem-fraction-static 0.15 \
         --schedule-policy lpm --model-path b --context-length 128 --port 7",
    );
    assert_eq!(plan.http.port, 7);
    let [a, b] = plan.models.as_slice() else {
        panic!("two models")
    };
    assert_eq!(
        (a.names(), b.names()),
        (vec!["x".to_owned()], vec!["b".to_owned()])
    );
    assert_eq!(a.engine.context_length, Some(512));
    assert_eq!(b.engine.context_length, Some(128));
    assert_eq!(a.engine.schedule_policy.to_string(), "lpm");
    assert_eq!(b.engine.schedule_policy.to_string(), "fcfs");
    // The rest of the default.
    assert!((b.engine.mem_fraction_static - 0.73).abs() < 1e-9);
    assert_eq!(a.flags["--mem-fraction-static"], 0.15);
}

#[test]
fn a_file_says_the_same_as_the_command_line() {
    let text = "context-length = 512\nport = 9\nenable-mixed-chunk = true\n\
        disable-radix-cache = false\n\
        [[model]]\nmodel-path = \"a\"\nserved-model-name = \"x\"\n\
        mem-fraction-static = 0.15\ncuda-graph-bs = [1, 4]\n\
        [[model]]\nmodel-path = \"b\"\ncontext-length = 128\nstart-unloaded = true\n";
    let plan = in_file(text, "--port 10 --max-total-tokens 64").expect("a plan");
    assert_eq!(plan.http.port, 10, "what is typed goes first");
    let [a, b] = plan.models.as_slice() else {
        panic!("two models")
    };
    assert_eq!(a.engine.context_length, Some(512));
    assert_eq!(b.engine.context_length, Some(128));
    for model in [a, b] {
        assert!(model.engine.enable_mixed_chunk && model.engine.radix_cache);
        assert_eq!(model.engine.max_total_tokens, Some(64));
    }
    assert_eq!(a.flags["--cuda-graph-bs"], serde_json::json!([1, 4]));
    assert!(b.start_unloaded && !a.start_unloaded);
}

#[test]
fn a_models_table_takes_back_a_switch_that_is_common() {
    let text = "enable-mixed-chunk = true\nstart-unloaded = true\n\
        [[model]]\nmodel-path = \"a\"\nenable-mixed-chunk = false\n\
        disable-radix-cache = false\nstart-unloaded = false\n\
        [[model]]\nmodel-path = \"b\"\n";
    let plan = in_file(text, "--disable-radix-cache").expect("a plan");
    let shown = plan.models.iter().map(|model| {
        let engine = &model.engine;
        (
            engine.enable_mixed_chunk,
            engine.radix_cache,
            model.start_unloaded,
        )
    });
    let shown: Vec<_> = shown.collect();
    assert_eq!(shown, [(false, true, false), (true, false, true)]);
    let flags = &plan.models[0].flags;
    assert!(flags.get("--enable-mixed-chunk").is_none(), "{flags}");
}

#[test]
fn both_spellings_of_a_switch_are_one_switch() {
    for (common, own) in [
        ("autotune", "enable-torch-compile"),
        ("enable-torch-compile", "autotune"),
    ] {
        let text = format!(
            "{common} = true\n[[model]]\nmodel-path = \"a\"\n{own} = false\n\
             [[model]]\nmodel-path = \"b\"\n"
        );
        let plan = in_file(&text, "").expect("a plan");
        let tuned: Vec<bool> = plan
            .models
            .iter()
            .map(|m| m.typed.enable_torch_compile)
            .collect();
        assert_eq!(tuned, [false, true], "{common}, {own}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let file = |text: &str| in_file(text, "").expect_err(text).to_string();
    for (found, expected) in [
        (
            refusal("--config no.toml --model-path a"),
            "models are in the file",
        ),
        (refusal("--config no/such.toml"), "no/such.toml"),
        (
            refusal(
                "--model-path a --mem-fraction-static 0.6 --model-path b --mem-fraction-static 0.5",
            ),
            "--mem-fraction-static 0.6 + 0.5",
        ),
        (
            refusal("--model-path a --mem-fraction-static 0.9 --model-path b"),
            "leaves nothing of 0.88",
        ),
        (
            refusal("--served-model-name x --model-path a --model-path b"),
            "--served-model-name x: with several models",
        ),
        (
            refusal("--model-path a --model-path b --served-model-name a"),
            "--served-model-name a: two models",
        ),
        (file("port = 1\n"), "[[model]]"),
        (
            file("model-path = \"a\"\n[[model]]\n"),
            "model-path must not come before",
        ),
        (
            file("[[model]]\nport = 1\n"),
            "--port is a flag of the server",
        ),
        (file("[[model]]\nno-such-flag = 1\n"), "--no-such-flag"),
        (
            file("[[model]]\n\"--port\" = 1\n"),
            "without the leading --",
        ),
        (file("[[model]]\ncontext-length = 0\n"), "context-length"),
        (
            file("[[model]]\ncontext-length = {}\n"),
            "context-length = {}",
        ),
        (file("no-such-flag = false\n[[model]]\n"), "--no-such-flag"),
        (file("[[model]]\nno-such-flag = false\n"), "--no-such-flag"),
        (
            file("[[model]]\ncontext-length = false\n"),
            "--context-length",
        ),
        (file("model = 3"), "[[model]]"),
        (file("["), "--config"),
        (
            file("port = 1\n\nprot = 3\n[[model]]\n"),
            "line 3, prot = 3: flag --prot (did you mean --port?) is not known",
        ),
        (
            file("[[model]]\nmodel-path = \"a\"\n[[model]]\n# b\ncontext-length = 0\n"),
            "model 1: line 5, context-length = 0: invalid value '0'",
        ),
        (
            file("[[model]]\ntp = 2\n"),
            "line 2, tp = 2: --tp 2: a model runs on one",
        ),
        (
            file("[[model]]\ncuda-graph-bs = [1, \"--port\"]\n"),
            "line 2, cuda-graph-bs has \"--port\"",
        ),
    ] {
        assert!(found.contains(expected), "{expected} is not in: {found}");
    }
}

/// The admin API has the same rules as a command line.
#[test]
fn flags_of_an_added_model_are_checked() {
    let refusal = |flags: Value| {
        let Value::Object(map) = &flags else {
            panic!("an object")
        };
        let error = ModelPlan::of_flags(map).expect_err(&flags.to_string());
        error.to_string()
    };
    let json = |text: &str| serde_json::from_str(text).expect("JSON");
    for (flags, expected) in [
        (
            serde_json::json!({"model-path": "a", "served-model-name": "x".repeat(100_000)}),
            "has 100000 characters, the limit is 256",
        ),
        (
            serde_json::json!({"model-path": "a", "served-model-name": "x\r\ny"}),
            "has the control character \\u{d}",
        ),
        (
            serde_json::json!({"model-path": "x".repeat(5000)}),
            "is the limit of bytes, this one has 5000",
        ),
        (
            json(r#"{"model-path": ["a", "--model-path", "/etc/passwd"]}"#),
            "model-path has \"--model-path\", which is not a value",
        ),
        (
            json(r#"{"model-path": "a", "port": 1}"#),
            "--port is a flag of the server",
        ),
        (json(r#"{"model-path": "a", "tp": 2}"#), "--tp 2"),
    ] {
        let found = refusal(flags);
        assert!(found.contains(expected), "{expected} is not in: {found}");
        assert!(found.len() < 1000, "{} characters", found.len());
    }
}
