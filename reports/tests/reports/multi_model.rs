//! The report on several models, from one invented run of two models in one server.

use std::fs;
use std::path::Path;

use reports::lang::Lang;
use reports::load;
use reports::render::REPORTS;
use reports::render::assemble::build;
use reports::render::context::ReportContext;
use reports::render::trust;
use reports::stats::verdict::VerdictConfig;
use serde_json::{Value, json};

const RUN: &str = "20260115T090000Z_13-multi-model_fixture_0000000a";

fn model_info(name: &str, fraction: f64) -> Value {
    // As this version calls it, and as earlier ones did.
    let model = if name == "steady" {
        "loaded_model"
    } else {
        "model"
    };
    json!({
        "served_model_names": [name], model: {"used": format!("synthetic:{name}")},
        "max_sequence_tokens": 1024,
        "executor": {"name": "cpu", "weight_bytes": 3 << 20, "kv_pool_bytes": 2 << 20, "kv_pool_tokens": 4096},
        "flags": {"typed": {"--mem-fraction-static": fraction, "--device-memory-limit": 1_u64 << 30}},
    })
}

/// Ten tokens in `ms` milliseconds.
fn row(case: &str, model: &str, index: u32, ms: f64, warmup: bool, error: Option<&str>) -> String {
    let sent_s = f64::from(index);
    json!({
        "case": case, "phase": "models", "warmup": warmup, "model": model, "index": index, "user": 0, "n_users": 1,
        "rate_per_s": null, "prompt_id": "p", "max_tokens": 10, "scheduled_s": sent_s, "sent_s": sent_s,
        "first_token_s": sent_s + ms / 2e3, "token_s": [sent_s + ms / 2e3], "end_s": sent_s + ms / 1e3, "prompt_tokens": 4,
        "output_tokens": 10, "cached_tokens": 0, "finish_reason": "length", "error": error,
    })
    .to_string()
        + "\n"
}

fn write(dir: &Path) {
    let run = dir.join(RUN);
    fs::create_dir(&run).unwrap();
    let write = |file: &str, value: Value| fs::write(run.join(file), value.to_string()).unwrap();
    write(
        "manifest.json",
        json!({
            "schema_version": 1, "run_id": RUN, "campaign": "c", "experiment": "13-multi-model", "replicate": 0,
            "quick": false, "git": {"commit": "0123456789abcdef", "dirty": false}, "sha256": {},
            "model": {"requested": "a + b", "used": "a + b", "fallback_reason": null, "format": null},
            "seed": 7, "command": ["engine"], "extra_flags": [], "base_url": null,
            "started_utc": "2026-01-15T09:00:00Z",
        }),
    );
    write(
        "environment.json",
        json!({
            "host": "h", "os": "Linux", "kernel": "6", "cpu": {"model": "Fixture CPU", "n_cores": 2, "flags": []},
            "memory_bytes": 8_u64 << 30, "gpu": null, "rustc": null,
        }),
    );
    let mut info = model_info("quick", 0.25);
    info["models"] = json!([model_info("quick", 0.25), model_info("steady", 0.5)]);
    write("server_info.json", info);
    write(
        "status.json",
        json!({"status": "complete", "reason": null, "finished_utc": "2026-01-15T09:01:00Z"}),
    );
    fs::write(
        run.join("config.resolved.toml"),
        "replicates = 1\nflags = []\n[[models]]\nname = \"quick\"\n[[models]]\nname = \"steady\"\n",
    )
    .unwrap();
    fs::write(run.join("server_metrics.jsonl"), "").unwrap();
    let mut rows = String::new();
    for (model, alone_ms, together_ms) in [("quick", 100.0, 250.0), ("steady", 200.0, 400.0)] {
        for index in 0..4 {
            let slower = 10.0 * f64::from(index);
            rows += &row(
                &format!("alone-{model}-10"),
                model,
                index,
                alone_ms + slower,
                false,
                None,
            );
            let case = format!("together-{model}-10");
            let error = (model == "steady" && index == 3).then_some("no");
            rows += &row(&case, model, index, together_ms + slower, false, error);
        }
        // Sent to keep the others company.
        rows += &row(
            &format!("together-{model}-10"),
            model,
            9,
            9000.0,
            true,
            None,
        );
    }
    fs::write(run.join("requests.jsonl"), rows).unwrap();
}

fn context(lang: Lang) -> ReportContext {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let imported = tempfile::tempdir().unwrap();
    let records = load::load(dir.path(), imported.path(), |_| true).unwrap();
    build(&records, VerdictConfig::default(), lang).unwrap()
}

#[test]
fn models_are_compared_with_themselves_alone() {
    let context = context(Lang::En);
    assert!(context.groups.is_empty(), "no server of one model");
    let server = &context.multi_models[0].servers[0];
    let [quick, steady] = server.models.as_slice() else {
        panic!("two models")
    };
    assert_eq!(
        (quick.mem_fraction, steady.mem_fraction),
        (Some(0.25), Some(0.5))
    );
    let sources = [quick, steady].map(|model| model.source.as_deref());
    assert_eq!(sources, [Some("synthetic:quick"), Some("synthetic:steady")]);
    assert_eq!((quick.n_alone, quick.n_together), ((4, 4), (4, 4)));
    assert!(quick.runs_alone && quick.runs_together);
    assert_eq!((steady.n_together, steady.runs_together), ((3, 4), false));
    let row = &server.cases[0];
    assert_eq!((row.model.as_str(), row.max_tokens), ("quick", Some(10)));
    let (alone, together) = (row.alone.as_ref().unwrap(), row.together.as_ref().unwrap());
    assert_eq!((alone.n_requests, together.n_requests), (4, 4));
    // 100, 110, 120 and 130 ms; ten tokens in 100 ms are 100 a second.
    assert!((alone.mean_ms - 115.0).abs() < 1e-6 && (alone.p50_ms - 115.0).abs() < 1e-6);
    assert!((alone.max_tok_per_s - 100.0).abs() < 1e-6);
    assert!((row.slowdown.unwrap() - 265.0 / 115.0).abs() < 1e-9);
    // One length and all of them, two models each.
    assert_eq!(server.cases.len(), 4);
    assert_eq!(server.cases[3].max_tokens, None);
}

/// A server of several models that never answered is none of one model.
#[test]
fn what_was_asked_for_says_that_there_are_several() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    fs::remove_file(dir.path().join(RUN).join("server_info.json")).unwrap();
    let records = load::load(dir.path(), &dir.path().join("imported"), |_| true).unwrap();
    let context = build(&records, VerdictConfig::default(), Lang::En).unwrap();
    assert!(context.groups.is_empty());
    assert_eq!(context.multi_models.len(), 1);
}

/// A group of several models, the newest here, must not push the others' titles aside.
#[test]
fn trust_has_the_groups_of_one_model_under_their_own_titles() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let single = dir
        .path()
        .join("20260114T090000Z_01-single_fixture_0000000b");
    fs::create_dir(&single).unwrap();
    for entry in fs::read_dir(dir.path().join(RUN)).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path)
            .unwrap()
            .replace(RUN, "20260114T090000Z_01-single_fixture_0000000b")
            .replace("13-multi-model", "01-single")
            .replace("a + b", "one-model")
            .replace("2026-01-15", "2026-01-14");
        let models = text.find("[[models]]").unwrap_or(text.len());
        fs::write(single.join(path.file_name().unwrap()), &text[..models]).unwrap();
    }
    let info = model_info("one-model", 0.5).to_string();
    fs::write(single.join("server_info.json"), info).unwrap();
    let records = load::load(dir.path(), &dir.path().join("imported"), |_| true).unwrap();
    let config = VerdictConfig::default();
    let context = build(&records, config, Lang::En).unwrap();
    assert_eq!((context.groups.len(), context.multi_models.len()), (1, 1));
    let titles: Vec<&str> = context.groups.iter().map(|g| g.title.as_str()).collect();
    let trust = trust::build(&records, &titles, config, Lang::En);
    let [none] = trust.without_noise.as_slice() else {
        panic!("one group with one start")
    };
    assert_eq!(none.title, "Fixture CPU · one-model");
    assert_eq!(none.command, "cargo xtask exp 01-single --model one-model");
}

#[test]
fn both_languages_show_what_runs_and_how_fast() {
    for lang in [Lang::Ko, Lang::En] {
        let context = context(lang);
        for report in REPORTS {
            let text = report.render(&context).unwrap();
            if report.name != "04-multi-model" {
                continue;
            }
            for part in ["0.25", "✅ 4/4", "❌ 3/4", "13-multi-model", "2.30", RUN] {
                assert!(text.contains(part), "{part} is not in {text}");
            }
        }
    }
}
