//! The shipped experiments resolve to the flags they are known for, and every mistake in a
//! spec is named with its field, value and limit.

use std::fs;
use std::path::{Path, PathBuf};

use experiments::spec::workload::Case;
use experiments::spec::{Experiment, Overrides, full_name};

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn flags_of(name: &str) -> String {
    let experiment =
        Experiment::load(&shipped(), name, &Overrides::default()).expect("a valid experiment");
    experiment.flags.to_args().join(" ")
}

/// Flags in any order, `--flag value value` kept together.
fn sorted(line: &str) -> Vec<String> {
    let mut flags: Vec<String> = line
        .split("--")
        .map(|flag| flag.trim().to_string())
        .filter(|flag| !flag.is_empty())
        .collect();
    flags.sort();
    flags
}

#[test]
fn the_five_experiments_have_their_flags() {
    let baseline = "--attention-backend triton --sampling-backend pytorch --max-total-tokens 3072 --mem-fraction-static 0.85 \
                    --disable-cuda-graph --disable-custom-all-reduce --disable-flashinfer --disable-radix-cache";
    let kept_by_experimental = "--attention-backend triton --sampling-backend pytorch --max-total-tokens 3072 --mem-fraction-static 0.85";
    let balanced_base = "--attention-backend triton --sampling-backend pytorch --disable-cuda-graph \
                         --disable-custom-all-reduce --disable-flashinfer --disable-radix-cache";
    let expected = [
        ("baseline", baseline.to_string()),
        (
            "ultra",
            format!(
                "{baseline} --enable-torch-compile --torch-compile-max-bs 8 --schedule-policy lpm \
                 --num-continuous-decode-steps 3 --triton-attention-reduce-in-fp32 --triton-attention-num-kv-splits 16"
            ),
        ),
        (
            "balanced-v2",
            format!(
                "{balanced_base} --enable-torch-compile --torch-compile-max-bs 6 --schedule-policy lof \
                 --num-continuous-decode-steps 2 --triton-attention-num-kv-splits 12 --allow-auto-truncate \
                 --mem-fraction-static 0.87 --max-total-tokens 3328 --max-prefill-tokens 1664 \
                 --chunked-prefill-size 1152 --triton-attention-reduce-in-fp32 --decode-log-interval 30 --stream-output"
            ),
        ),
        (
            "experimental",
            format!(
                "{kept_by_experimental} --cuda-graph-max-bs 4 --cuda-graph-bs 1 2 4 --enable-hierarchical-cache \
                 --enable-mixed-chunk --enable-two-batch-overlap --schedule-policy dfs-weight"
            ),
        ),
        ("performance-v1", "--attention-backend triton".to_string()),
    ];
    for (name, line) in expected {
        assert_eq!(sorted(&flags_of(name)), sorted(&line), "{name}");
    }
}

#[test]
fn arms_of_one_question_differ_by_the_flags_in_their_names() {
    for (arm, other, added) in [
        (
            "07-shared-prefix",
            "09-shared-prefix-no-radix",
            "--disable-radix-cache",
        ),
        (
            "10-shared-prefix-small-pool",
            "11-shared-prefix-host-tier",
            "--enable-hierarchical-cache --hicache-ratio 4",
        ),
        (
            "08-mixed-lengths",
            "12-mixed-lengths-mixed-chunk",
            "--enable-mixed-chunk",
        ),
    ] {
        let line = format!("{} {added}", flags_of(arm));
        assert_eq!(sorted(&flags_of(other)), sorted(&line), "{other}");
        let workload = |name: &str| {
            let overrides = Overrides::default();
            Experiment::load(&shipped(), name, &overrides)
                .expect("valid")
                .workload
        };
        assert_eq!(workload(other), workload(arm), "{other}");
    }
}

#[test]
fn the_resolved_configuration_holds_everything() {
    let experiment = Experiment::load(&shipped(), "03", &Overrides::default()).expect("valid");
    let resolved = toml::to_string_pretty(&experiment).expect("serialised");
    insta::assert_snapshot!(resolved);
}

#[test]
fn quick_shrinks_the_workload_and_nothing_else() {
    let overrides = Overrides {
        quick: true,
        ..Overrides::default()
    };
    let full = Experiment::load(&shipped(), "balanced-v2", &Overrides::default()).expect("valid");
    let quick = Experiment::load(&shipped(), "balanced-v2", &overrides).expect("valid");
    assert_eq!(quick.flags, full.flags);
    assert!(quick.quick && !full.quick);
    let n_requests = |experiment: &Experiment| {
        experiment
            .workload
            .cases()
            .iter()
            .map(|case| case.n_requests)
            .sum::<u32>()
    };
    assert!(n_requests(&quick) <= 20 && n_requests(&full) >= 120);
    let names: Vec<String> = quick
        .workload
        .cases()
        .into_iter()
        .map(|case| case.name)
        .collect();
    assert_eq!(
        names,
        [
            "warmup",
            "latency-10",
            "ladder-10",
            "ladder-50",
            "users-1",
            "users-2",
            "users-5"
        ]
    );
}

#[test]
fn names_work_with_and_without_their_number() {
    for typed in ["03-balanced-v2", "balanced-v2", "03"] {
        assert_eq!(
            full_name(&shipped(), typed).expect("known"),
            "03-balanced-v2"
        );
    }
    let error = full_name(&shipped(), "balanced-v3")
        .expect_err("unknown")
        .to_string();
    assert!(
        error.contains("`balanced-v3`") && error.contains("03-balanced-v2"),
        "{error}"
    );
}

/// Loads an experiment that extends a valid one and says `own` on top.
fn mistake(own: &str) -> String {
    mistake_with(own, &Overrides::default())
}

fn mistake_with(own: &str, overrides: &Overrides) -> String {
    let dir = tempfile::tempdir().expect("temporary folder");
    let write = |name: &str, text: &str| {
        fs::create_dir_all(dir.path().join(name)).expect("made");
        fs::write(dir.path().join(name).join("experiment.toml"), text).expect("written");
    };
    write(
        "01-baseline",
        &fs::read_to_string(shipped().join("01-baseline/experiment.toml")).expect("shipped"),
    );
    write(
        "09-mistake",
        &format!("name = \"09-mistake\"\ntitle = \"t\"\nextends = \"01-baseline\"\n{own}"),
    );
    match Experiment::load(dir.path(), "mistake", overrides) {
        Ok(_) => panic!("accepted: {own}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn mistakes_are_named_with_field_value_and_limit() {
    for (own, part) in [
        (
            "replicates = 0",
            "09-mistake: replicates = 0: must be 1 to 400",
        ),
        (
            "[workload.latency]\nn_requests = 0",
            "workload.latency.n_requests = 0: must be 1 to 100000",
        ),
        (
            "[workload.users]\nn_users = [1, 5000]",
            "workload.users.n_users = 5000: must be 1 to 4096",
        ),
        (
            "[workload.ladder]\noutput_tokens = [10, 10]",
            "workload.ladder.output_tokens = [10, 10]: must be a list of one or more distinct",
        ),
        (
            "[workload]\ntemperature = -1.0",
            "workload.temperature = -1: must be 0 to 2",
        ),
        (
            "[workload]\nprompts = []",
            "workload.prompts = []: must be at least one file",
        ),
        (
            "[workload]\nprompts = [\"../x\"]",
            "workload.prompts = ../x: must be the name of a file in data/prompts",
        ),
        (
            "[workload]\nprompts = [\"/abs\"]",
            "workload.prompts = /abs: must be the name of a file",
        ),
        (
            "[workload]\nprompts = [\"tokens:0\"]",
            "workload.prompts = tokens:0: must be tokens:N with N from 1 to 1000000",
        ),
        (
            "[workload]\nprompts = [\"turns:8x2\"]",
            "workload.prompts = turns:8x2: must be of the form turns:FIRST+FURTHERxN",
        ),
        (
            "[workload]\nprompts = [\"turns:2000+1000x1000\"]",
            "must be turns of at most 1000000 tokens, and the last one has ",
        ),
        ("[workload]\nprompt = []", "unknown field `prompt`"),
        (
            "[workload]\nendpoint = \"embeddings\"",
            "unknown variant `embeddings`",
        ),
        ("model = \"\"", "model = \"\": must be a path"),
        (
            "[flags]\ndisable-radix-cache = false",
            "flag `disable-radix-cache`: `false` is no value",
        ),
        ("[flags]\nport = 80", "flag `--port` is set by"),
        (
            "remove_flags = [\"enable-mixed-chunk\"]",
            "remove_flags: `enable-mixed-chunk` is not among the inherited flags: attention-backend",
        ),
        (
            "[workload.rate]\nrates_per_s = [0.0]\noutput_tokens = 1\nn_requests = 1",
            "workload.rate.rates_per_s = 0: must be 0.001 to 10000",
        ),
        ("flags = 3", "flags"),
    ] {
        let error = mistake(own);
        assert!(error.contains(part), "{own:?} gave: {error}");
    }
    let typed = Overrides {
        replicates: Some(401),
        ..Overrides::default()
    };
    assert!(mistake_with("", &typed).contains("replicates = 401: must be 1 to 400"));
}

#[test]
fn a_circle_of_ancestors_is_refused() {
    let dir = tempfile::tempdir().expect("temporary folder");
    for (name, parent) in [("01-a", "02-b"), ("02-b", "01-a")] {
        fs::create_dir_all(dir.path().join(name)).expect("made");
        let text = format!("name = \"{name}\"\nextends = \"{parent}\"");
        fs::write(dir.path().join(name).join("experiment.toml"), text).expect("written");
    }
    let error = Experiment::load(dir.path(), "01-a", &Overrides::default())
        .expect_err("a circle")
        .to_string();
    assert!(error.contains("runs in a circle"), "{error}");
}

#[test]
fn the_models_of_an_experiment_have_names_shares_and_cases_of_their_own() {
    let load = |name: &str, overrides: &Overrides| Experiment::load(&shipped(), name, overrides);
    let on_card = load("14-multi-model-card", &Overrides::default()).expect("valid");
    let shares: Vec<String> = on_card
        .models
        .iter()
        .map(|m| format!("{} {}", m.model, m.flags.shown("mem-fraction-static")))
        .collect();
    assert_eq!(
        shares,
        [
            "synthetic:tinyllama-1.1b --mem-fraction-static 0.15",
            "synthetic:qwen2.5-3b --mem-fraction-static 0.25",
            "synthetic:yi-6b --mem-fraction-static 0.45",
        ]
    );
    assert_eq!(
        on_card.flags.shown("device-memory-limit"),
        "--device-memory-limit 31.4GiB"
    );
    assert_eq!(on_card.sources().len(), 3);

    let on_cpu = load("multi-model", &Overrides::default()).expect("valid");
    let rounds = on_cpu.workload.rounds();
    // Three warm-ups, then at each of four lengths three models alone and all together.
    assert_eq!(rounds.len(), 3 + 4 * (3 + 1));
    let names = |round: &[Case]| {
        let names: Vec<String> = round.iter().map(|case| case.name.clone()).collect();
        names.join(" ")
    };
    assert_eq!(names(&rounds[3]), "alone-small-10");
    assert_eq!(
        names(&rounds[6]),
        "together-small-10 together-medium-10 together-large-10"
    );
    let drawn: Vec<String> = rounds[3..7].iter().flatten().map(Case::draw_name).collect();
    assert!(drawn.iter().all(|name| name == "models-10"), "{drawn:?}");
    let n_measured: u32 = on_cpu
        .workload
        .cases()
        .iter()
        .filter(|c| !c.warmup)
        .map(|c| c.n_requests)
        .sum();
    assert_eq!(n_measured, 2 * 3 * 40 * 4);

    let resolved = toml::to_string_pretty(&on_card).expect("serialised");
    assert!(resolved.contains("[[models]]"), "{resolved}");

    let overrides = Overrides {
        model: Some("other".into()),
        ..Overrides::default()
    };
    let message = load("multi-model", &overrides)
        .expect_err("refused")
        .to_string();
    assert!(message.contains("--model = other"), "{message}");
}

#[test]
fn a_workload_asks_no_model_that_is_not_there() {
    let dir = tempfile::tempdir().expect("temporary folder");
    std::fs::create_dir(dir.path().join("01-x")).expect("made");
    let message = |models: &str, names: &str| {
        let text = format!(
            "name = \"01-x\"\ntitle = \"t\"\nseed = 1\nreplicates = 1\n{models}\n[workload]\n\
             endpoint = \"chat\"\nprompts = [\"p\"]\ntemperature = 0.0\nignore_eos = true\n\
             request_timeout_s = 1.0\nwarmup = {{ n_requests = 0, output_tokens = 1 }}\n\
             models = {{ names = [{names}], output_tokens = [4], n_requests = 1 }}"
        );
        std::fs::write(dir.path().join("01-x/experiment.toml"), text).expect("written");
        let loaded = Experiment::load(dir.path(), "x", &Overrides::default());
        loaded.map(|_| ()).map_err(|error| error.to_string())
    };
    let (a, b) = (
        "[[models]]\nname = \"a\"\nmodel = \"m\"",
        "[[models]]\nname = \"b\"\nmodel = \"m\"",
    );
    assert_eq!(message(&format!("{a}\n{b}"), "\"a\", \"b\""), Ok(()));
    for (models, names, expected) in [
        (
            format!("{a}\n{b}"),
            "\"a\", \"c\"",
            "workload.models.names = c",
        ),
        (
            format!("{a}\n{a}"),
            "\"a\"",
            "a name that no other model has",
        ),
        (format!("{a}\n{b}"), "\"a\", \"a\"", "distinct"),
        (
            format!("{a}\nflags = {{ port = 1 }}"),
            "\"a\"",
            "flag `--port`",
        ),
    ] {
        let found = message(&models, names).expect_err(expected);
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

/// What an experiment is to the reports is said in its own file, and its heirs are that no more.
#[test]
fn one_experiment_is_the_baseline_and_one_the_focus() {
    let roles = |name: &str| {
        let experiment =
            Experiment::load(&shipped(), name, &Overrides::default()).expect("a valid experiment");
        (experiment.baseline, experiment.focus)
    };
    assert_eq!(roles("baseline"), (true, false));
    // They extend the baseline.
    assert_eq!(roles("balanced-v2"), (false, true));
    assert_eq!(roles("experimental"), (false, false));
    let names = experiments::spec::experiment_names(&shipped()).expect("readable");
    let with = |of: fn((bool, bool)) -> bool| names.iter().filter(|name| of(roles(name))).count();
    assert_eq!((with(|r| r.0), with(|r| r.1)), (1, 1));
}
