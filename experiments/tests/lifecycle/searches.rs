//! Workloads that find their own size: searches for the highest load, cases of a length of time, and
//! the same configuration as two arms.

use std::collections::BTreeMap;
use std::fs;

use records::manifest::{Derived, Manifest, Side};
use records::run_folder::read_json;
use records::slo::SloOutcome;
use serde_json::Value;

use super::notebook::{Notebook, rows};

#[test]
fn a_search_takes_the_place_of_the_cases() {
    let notebook = Notebook::new();
    let limits = "e2el_ms=60000,share=1,load=closed,start=1,limit=2,measured_s=1,output_tokens=2";
    let (status, stdout, stderr) = notebook.run("good", &["--slo", limits]);
    assert!(status.success(), "{stderr}");
    assert!(stdout.contains("SLO: 2 users keep the limits, and the search goes no higher"));
    let run = notebook.only_run();
    let found: SloOutcome = read_json(&run.join("slo.json")).expect("an outcome");
    assert_eq!((found.highest, found.too_much), (Some(2.0), None));
    let cases: Vec<&str> = found.trials.iter().map(|t| t.case.as_str()).collect();
    assert_eq!(cases, ["slo-users-1", "slo-users-2"]);
    let mut sent: BTreeMap<String, u32> = BTreeMap::new();
    for row in rows(&run).iter().filter(|row| row["warmup"] == false) {
        let case = row["case"].as_str().expect("a case").to_owned();
        *sent.entry(case).or_default() += 1;
    }
    let tried = found.trials.iter().map(|t| (t.case.clone(), t.n_requests));
    assert_eq!(sent, tried.collect());
    let manifest: Manifest = read_json(&run.join("manifest.json")).expect("a manifest");
    let parent = "01-tiny".to_owned();
    assert_eq!(manifest.derived, Some(Derived::Slo { parent }));
    let summary: Value = read_json(&run.join("summary.json")).expect("a summary");
    assert_eq!(summary["cases"].as_array().map(Vec::len), Some(2));
    assert!(!notebook.list().contains("broken"), "{}", notebook.list());
}

#[test]
fn a_search_that_finds_nothing_says_so() {
    let notebook = Notebook::new();
    let limits = "ttft_ms=0.001,load=closed,measured_s=1,output_tokens=2";
    let (status, stdout, stderr) = notebook.run("good", &["--slo", limits]);
    assert!(status.success(), "{stderr}");
    assert!(
        stdout.contains("SLO: not even 1 users keep the limits (1 trials)"),
        "{stdout}"
    );
    let reason = notebook.status().reason.expect("a remark");
    assert!(
        reason.contains("no load that was tried keeps the limits"),
        "{reason}"
    );
}

#[test]
fn nonsense_limits_are_refused_before_anything_runs() {
    let notebook = Notebook::new();
    for (limits, part) in [
        ("share=0.9", "no limit: must be given at least one limit"),
        ("ttft_ms=200,share=95", "slo.share = 95: must be 0.01 to 1"),
        ("ttft_ms=soon", "--slo ttft_ms = soon: must be a number"),
        ("ttft_ms=inf", "must be a number"),
        ("ttft_ms=-1", "slo.ttft_ms = -1: must be"),
        ("ttft_ms=1,ttft_ms=2", "must be the only ttft_ms"),
        ("ttfb_ms=1", "must be one of ttft_ms, tpot_ms"),
        ("200", "must be KEY=VALUE"),
        ("ttft_ms=1,load=both", "must be open or closed"),
        (
            "ttft_ms=1,start=9,limit=3",
            "slo.start = 9: must be at most slo.limit, 3",
        ),
        (
            "ttft_ms=1,load=closed,start=1.5,limit=4",
            "must be a whole number of users",
        ),
        (
            "ttft_ms=1,limit=9999,measured_s=60",
            "at most 100000 requests",
        ),
        (
            "ttft_ms=1,output_tokens=0",
            "slo.output_tokens = 0: must be 1 to",
        ),
    ] {
        let (code, said) = notebook.call(&["run", "tiny", "--slo", limits]);
        assert_eq!(code, Some(1), "{limits}: {said}");
        assert!(said.contains(part), "{limits}: {said}");
    }
    let (code, said) = notebook.call(&["run", "tiny", "--slo", "ttft_ms=1", "--a-a"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(notebook.runs().is_empty());
}

#[test]
fn the_same_configuration_runs_as_two_arms_in_rounds() {
    let notebook = Notebook::new();
    let (status, _, stderr) = notebook.run("good", &["--a-a", "--replicates", "2"]);
    assert!(status.success(), "{stderr}");
    let mut starts = Vec::new();
    for run in notebook.runs() {
        let manifest: Manifest = read_json(&run.join("manifest.json")).expect("a manifest");
        let Some(Derived::AA { parent, side }) = manifest.derived.clone() else {
            panic!("{:?}", manifest.derived);
        };
        assert_eq!(parent, "01-tiny");
        let prompts: Vec<Value> = rows(&run).iter().map(|r| r["prompt_id"].clone()).collect();
        starts.push((manifest, side, prompts));
    }
    starts.sort_by_key(|(manifest, side, _)| (manifest.replicate, *side));
    let order: Vec<(u32, Side)> = starts
        .iter()
        .map(|(m, side, _)| (m.replicate, *side))
        .collect();
    assert_eq!(
        order,
        [(0, Side::A), (0, Side::B), (1, Side::A), (1, Side::B)]
    );
    for round in starts.chunks(2) {
        let [(a, _, sent_a), (b, _, sent_b)] = round else {
            panic!("two starts a round");
        };
        assert_eq!(
            (a.experiment.as_str(), b.experiment.as_str()),
            ("01-tiny-a", "01-tiny-b")
        );
        assert_eq!((a.seed, &a.campaign), (b.seed, &b.campaign));
        let flags = |manifest: &Manifest| {
            let mut command = manifest.command.clone();
            command.retain(|word| word.parse::<u16>().is_err());
            command
        };
        assert_eq!(flags(a), flags(b));
        let (mut sent_a, mut sent_b) = (sent_a.clone(), sent_b.clone());
        // Two users' answers come back in any order.
        for sent in [&mut sent_a, &mut sent_b] {
            sent.sort_by_key(ToString::to_string);
        }
        assert_eq!(sent_a, sent_b);
    }
}

#[test]
fn a_case_of_a_length_of_time_goes_on_beyond_its_requests() {
    let notebook = Notebook::new();
    let path = notebook
        .dir
        .path()
        .join("experiments/01-tiny/experiment.toml");
    let text = fs::read_to_string(&path).expect("readable");
    let longer = text.replace("ignore_eos = true", "ignore_eos = true\nmeasured_s = 1.0");
    fs::write(&path, longer).expect("written");
    let (status, _, stderr) = notebook.run("good", &[]);
    assert!(status.success(), "{stderr}");
    let run = notebook.only_run();
    let all = rows(&run);
    for (case, asked) in [("latency-4", 3), ("users-1", 2), ("users-2", 4)] {
        let of_case: Vec<&Value> = all
            .iter()
            .filter(|row| row["case"] == case && row["warmup"] == false)
            .collect();
        let times = |key: &str| -> Vec<f64> {
            of_case.iter().filter_map(|row| row[key].as_f64()).collect()
        };
        let began_s = times("scheduled_s")
            .into_iter()
            .fold(f64::INFINITY, f64::min);
        let ended_s = times("end_s").into_iter().fold(0.0, f64::max);
        assert!(ended_s - began_s >= 1.0, "{case}: {}", ended_s - began_s);
        assert!(of_case.len() >= asked, "{case}: {}", of_case.len());
        let mut indices: Vec<u64> = of_case.iter().filter_map(|r| r["index"].as_u64()).collect();
        indices.sort_unstable();
        assert_eq!(
            indices,
            (0..of_case.len() as u64).collect::<Vec<_>>(),
            "{case}"
        );
    }
    assert_eq!(all.iter().filter(|row| row["warmup"] == true).count(), 1);
    assert!(!notebook.list().contains("broken"), "{}", notebook.list());
    // Fewer than asked for are still a broken record, even in one without digests.
    let requests = run.join("requests.jsonl");
    let text = fs::read_to_string(&requests).expect("readable");
    let mut kept: Vec<&str> = text.lines().collect();
    kept.retain(|line| !line.contains("users-1"));
    fs::write(&requests, kept.join("\n") + "\n").expect("written");
    let mut status: Value = read_json(&run.join("status.json")).expect("a status");
    let removed = status.as_object_mut().and_then(|s| s.remove("sha256"));
    assert!(removed.is_some());
    fs::write(run.join("status.json"), status.to_string()).expect("written");
    let list = notebook.list();
    assert!(list.contains("has 0 rows of case users-1"), "{list}");
}
