//! Export and import.

use serde_json::Value;

use crate::notebook::{Notebook, stand_in};

fn measured() -> (Notebook, String) {
    let notebook = Notebook::new();
    let engine = stand_in("fake_engine.py");
    let outcome = notebook.run(&["run", "full", "--engine-bin", &engine], &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let run_id = notebook.manifests()[0].run_id.clone();
    (notebook, run_id)
}

#[test]
fn json_has_vllms_keys_and_the_figures_of_the_summary() {
    let (notebook, run_id) = measured();
    let outcome = notebook.run(&["export", &run_id, "--format", "json"], &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let path = format!("target/export/{run_id}.users-2.json");
    assert_eq!(outcome.stdout, format!("{path}\n"));
    let result: Value = serde_json::from_str(&notebook.read(&path)).expect("JSON");
    let summary = notebook.read(&format!("data/runs/{run_id}/summary.json"));
    let summary: Value = serde_json::from_str(&summary).expect("JSON");
    for (key, value) in summary["cases"][0].as_object().expect("figures") {
        assert_eq!(&result[key], value, "{key}");
    }
    assert_eq!(result["model_id"], "fake-7b");
    assert_eq!(result["request_rate"], "inf");
    assert_eq!(
        result["date"].as_str().map(str::len),
        Some("20251124-143535".len())
    );
    assert_eq!(result["output_lens"], serde_json::json!([3, 3]));
    assert_eq!(result["errors"], serde_json::json!(["", ""]));
    let ttfts = result["ttfts"].as_array().expect("a list");
    let itls = result["itls"].as_array().expect("a list");
    assert!(
        ttfts
            .iter()
            .all(|s| s.as_f64().is_some_and(|s| s > 0.0 && s < 10.0))
    );
    assert!(
        itls.iter()
            .all(|gaps| gaps.as_array().is_some_and(|gaps| gaps.len() == 2))
    );
    assert_eq!((ttfts.len(), itls.len()), (2, 2));
}

#[test]
fn csv_has_a_row_a_request_with_its_times() {
    let (notebook, run_id) = measured();
    let words = ["export", &run_id, "--format", "csv", "--out", "elsewhere"];
    let outcome = notebook.run(&words, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let table = notebook.read(&format!("elsewhere/{run_id}.requests.csv"));
    let rows: Vec<Vec<&str>> = table
        .split_terminator("\r\n")
        .map(|line| line.split(',').collect())
        .collect();
    // The warm-up is there, flagged.
    assert_eq!(rows.len(), 1 + 1 + 2);
    let column = |name: &str| {
        rows[0]
            .iter()
            .position(|cell| *cell == name)
            .expect("a column")
    };
    assert!(rows.iter().all(|row| row.len() == rows[0].len()));
    assert_eq!(rows[1][column("warmup")], "true");
    let number = |name: &str| rows[2][column(name)].parse::<f64>().expect("a number");
    let ttft_ms = (number("first_token_s") - number("sent_s")) * 1e3;
    assert!((number("ttft_ms") - ttft_ms).abs() < 1e-6);
    assert_eq!(rows[2][column("token_s")].split(' ').count(), 3);

    let outcome = notebook.run(
        &["export", &run_id, "--format", "csv", "--case", "users-3"],
        &[],
    );
    assert!(
        outcome
            .stderr
            .contains("has no case users-3; there are: users-2"),
        "{}",
        outcome.stderr
    );
}

/// As `sglang.bench_serving` writes it; Python's `Infinity` is no JSON.
const SGLANG: &str = r#"{"tag": null, "backend": "sglang", "dataset_name": "random", "request_rate": Infinity, "max_concurrency": 16, "sharegpt_output_len": null, "random_input_len": 256, "random_output_len": 128, "random_range_ratio": 0.0, "server_info": {"model_path": "Qwen/Qwen3-32B-AWQ"}, "duration": 12.5, "completed": 64, "total_input_tokens": 16384, "total_output_tokens": 8192, "total_output_tokens_retokenized": 8190, "request_throughput": 5.12, "input_throughput": 1310.72, "output_throughput": 655.36, "mean_e2e_latency_ms": 2800.5, "median_e2e_latency_ms": 2790.0, "std_e2e_latency_ms": 40.0, "p99_e2e_latency_ms": 3000.0, "mean_ttft_ms": 120.0, "median_ttft_ms": 110.0, "std_ttft_ms": 10.0, "p99_ttft_ms": 180.0, "mean_tpot_ms": 21.0, "median_tpot_ms": 20.5, "std_tpot_ms": 1.0, "p99_tpot_ms": 25.0, "mean_itl_ms": 21.0, "median_itl_ms": 20.0, "std_itl_ms": 2.0, "p95_itl_ms": 24.0, "p99_itl_ms": 30.0, "concurrency": 15.9, "accept_length": null}
{"backend": "sglang", "request_rate": 2.0, "max_concurrency": null, "duration": 32.0, "completed": 64, "total_output_tokens": 8192, "request_throughput": 2.0, "output_throughput": 256.0, "mean_e2e_latency_ms": 1500.0}
"#;

#[test]
fn sglangs_lines_become_figures_with_provenance() {
    let notebook = Notebook::new();
    notebook.write("in/qwen.jsonl", SGLANG);
    let words = [
        "import",
        "in/qwen.jsonl",
        "--source",
        "sglang",
        "--note",
        "one RTX 5090",
    ];
    let outcome = notebook.run(&words, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(
        outcome.stdout,
        "data/imported/sglang/qwen.jsonl\ndata/imported/sglang/qwen.csv\ndata/imported/sglang/PROVENANCE.md\n"
    );
    assert_eq!(notebook.read("data/imported/sglang/qwen.jsonl"), SGLANG);
    let table = notebook.read("data/imported/sglang/qwen.csv");
    for line in [
        "document,section,metric,subject,condition,value,unit,kind,note",
        "qwen.jsonl,result 1,output_throughput,sglang Qwen/Qwen3-32B-AWQ,\"rate inf, concurrency 16\",655.36,tok/s,measured,",
        "qwen.jsonl,result 1,latency_p50,sglang Qwen/Qwen3-32B-AWQ,\"rate inf, concurrency 16\",2790,ms,measured,",
        "qwen.jsonl,result 1,itl_p95,sglang Qwen/Qwen3-32B-AWQ,\"rate inf, concurrency 16\",24,ms,measured,",
        "qwen.jsonl,result 2,latency_mean,sglang,rate 2.0,1500,ms,measured,",
    ] {
        assert!(table.lines().any(|row| row == line), "{line}\n{table}");
    }
    let provenance = notebook.read("data/imported/sglang/PROVENANCE.md");
    for part in [
        "never pooled with measured runs",
        "## qwen.jsonl",
        "- Results: 2; imported ",
        "- Model: Qwen/Qwen3-32B-AWQ.",
        "- Test bed: one RTX 5090.",
    ] {
        assert!(provenance.contains(part), "{provenance}");
    }
    let again = notebook.run(&words, &[]);
    assert_eq!(again.code, Some(1));
    assert!(
        again.stderr.contains("qwen.jsonl is there already"),
        "{}",
        again.stderr
    );
}

#[test]
fn a_file_named_like_what_stands_beside_it_is_refused() {
    let notebook = Notebook::new();
    for name in ["qwen.csv", "PROVENANCE.md"] {
        let path = format!("in/{name}");
        notebook.write(&path, SGLANG);
        let outcome = notebook.run(&["import", &path, "--source", "sglang"], &[]);
        assert_eq!(outcome.code, Some(1), "{}", outcome.stdout);
        assert!(
            outcome.stderr.contains("give it another"),
            "{}",
            outcome.stderr
        );
        assert!(!notebook.path("data/imported").exists());
    }
}

#[test]
fn an_export_can_be_imported_as_a_result_of_vllm_and_of_nothing_else() {
    let (notebook, run_id) = measured();
    let outcome = notebook.run(
        &["export", &run_id, "--format", "json", "--out", "out"],
        &[],
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let file = format!("out/{run_id}.users-2.json");
    let outcome = notebook.run(&["import", &file, "--source", "sglang"], &[]);
    assert!(
        outcome
            .stderr
            .contains("it is no result of `sglang.bench_serving`"),
        "{}",
        outcome.stderr
    );
    assert!(!notebook.path("data/imported").exists());
    let outcome = notebook.run(&["import", &file, "--source", "vllm"], &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let table = notebook.read(&format!("data/imported/vllm/{run_id}.users-2.csv"));
    let row = |metric: &str| {
        table
            .lines()
            .any(|line| line.contains(&format!(",{metric},openai fake-7b,")))
    };
    assert!(
        row("ttft_p50") && row("latency_p50") && row("request_goodput"),
        "{table}"
    );
    assert!(!row("latency_p99"), "of two requests: {table}");
}
