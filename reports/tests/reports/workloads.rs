//! What load curves, searches, meters, A/A campaigns and several commits put into the reports: the fixed
//! data set with more in its runs.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use reports::lang::Lang;
use reports::load;
use reports::render::assemble::build;
use reports::render::context::ReportContext;
use reports::render::measured_a_a::measured;
use reports::render::trust::TrustContext;
use reports::render::{REPORTS, Report, TRUST};
use reports::stats::verdict::VerdictConfig;
use serde_json::{Value, json};

/// Runs that a test may change.
struct Runs {
    dir: tempfile::TempDir,
}

fn data(part: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    tests.join(part)
}

impl Runs {
    fn new() -> Self {
        let runs = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for run in fs::read_dir(data("runs")).unwrap() {
            let run = run.unwrap().path();
            let to = runs.dir.path().join(run.file_name().unwrap());
            copy(&run, &to);
        }
        runs
    }

    /// Of one configuration in the full campaign, the oldest first.
    fn of(&self, experiment: &str) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|run| {
                let manifest = manifest(run);
                manifest["campaign"] == "fixture-full"
                    && manifest["experiment"] == experiment
                    && run.join("status.json").is_file()
            })
            .collect();
        found.sort();
        found
    }

    /// A copy of a run as one of its own.
    fn add(&self, run: &Path, id: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let to = self.dir.path().join(id);
        copy(run, &to);
        let mut manifest = manifest(&to);
        manifest["run_id"] = id.into();
        change(&mut manifest);
        fs::write(to.join("manifest.json"), manifest.to_string()).unwrap();
        to
    }

    fn context(&self, lang: Lang) -> ReportContext {
        let records = load::load(self.dir.path(), &data("imported"), |_| true).unwrap();
        build(&records, VerdictConfig::default(), lang).unwrap()
    }

    /// Without the simulation, which takes long.
    fn trust(&self, lang: Lang) -> ReportContext {
        let records = load::load(self.dir.path(), &data("imported"), |_| true).unwrap();
        let config = VerdictConfig::default();
        let mut context = build(&records, config, lang).unwrap();
        context.trust = Some(TrustContext {
            groups: Vec::new(),
            without_noise: Vec::new(),
            n_campaigns: 1,
            effect_percent: 3.0,
            allowed_false_percent: 5.0,
            wanted_found_percent: 80.0,
            most_starts: 400,
            measured: measured(&records, config, lang),
        });
        context
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

fn manifest(run: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(run.join("manifest.json")).unwrap()).unwrap()
}

fn append(run: &Path, file: &str, text: &str) {
    let path = run.join(file);
    let before = fs::read_to_string(&path).unwrap_or_default();
    fs::write(path, before + text).unwrap();
}

fn all_texts(context: &ReportContext) -> String {
    let texts = REPORTS.iter().map(|report| report.render(context).unwrap());
    texts.collect()
}

fn report(name: &str, context: &ReportContext) -> String {
    Report::find(name).unwrap().render(context).unwrap()
}

/// Joules of the two cases of a start that are metered; each has 10 or 20 output tokens a user.
fn meter(run: &Path, joules: f64, source: &str) {
    let line = |case: &str| {
        let energy = json!({"seconds": 2.0, "gpu_j": joules, "gpu_source": source});
        json!({"cases": [case], "start_s": 0.0, "end_s": 2.0, "load_average_1m": null,
            "others_share": null, "steal_share": null, "energy": energy})
    };
    let lines = format!("{}\n{}\n", line("latency-10"), line("users-2"));
    append(run, "machine_load.jsonl", &lines);
}

#[test]
fn energy_has_its_table_verdict_recommendation_and_price() {
    let runs = Runs::new();
    for (experiment, joules) in [("01-baseline", 100.0), ("03-balanced-v2", 80.0)] {
        for (i, run) in runs.of(experiment).iter().enumerate() {
            meter(run, joules + 0.1 * i as f64, "counter");
        }
    }
    let mut context = runs.context(Lang::En);
    let energy = context.groups[0].energy.as_ref().unwrap();
    assert!(energy.is_gpu && !energy.any_estimate);
    let row = |experiment: &str, case: &str| {
        let is_it =
            |r: &&reports::render::energy::EnergyRow| r.experiment == experiment && r.case == case;
        energy.rows.iter().find(is_it).unwrap()
    };
    // Four measured requests of ten tokens, and the median of five starts.
    let latency = row("01-baseline", "latency-10");
    assert!((latency.joules_per_token - 100.2 / 40.0).abs() < 1e-9);
    assert!((latency.mean_w - 50.1).abs() < 1e-9);
    assert!(latency.verdict.is_none());
    let judged = row("03-balanced-v2", "users-2").verdict.as_ref().unwrap();
    assert_eq!(judged.verdict, "faster", "{judged:?}");
    let answer = context.groups[0]
        .answers
        .recommendations
        .iter()
        .find(|answer| answer.objective == "energy")
        .unwrap();
    assert_eq!(answer.configuration.as_deref(), Some("03-balanced-v2"));
    let text = report("02", &context);
    assert!(
        text.contains("2.505 J") && text.contains("50.1 W"),
        "{text}"
    );
    assert!(text.contains("--price-per-kwh"));
    context.take_price(0.2);
    // 2.505 MJ at 3.6 MJ a kilowatt-hour.
    let text = report("02", &context);
    assert!(text.contains("| 2.505 J | 50.1 W | 0.139 |"), "{text}");
    assert!(text.contains("priced at 0.2000 a kWh"));
}

#[test]
fn power_samples_are_said_and_a_machine_without_a_meter_has_no_figure() {
    let runs = Runs::new();
    for lang in [Lang::Ko, Lang::En] {
        let context = runs.context(lang);
        assert!(context.groups[0].energy.is_none());
        let text = all_texts(&context);
        let said = lang.pick("전력을 측정한 기록이 없습니다", "No record has power");
        assert!(text.contains(said));
        assert!(!text.contains(" J |") && !text.contains(" W |"));
    }
    for run in runs.of("01-baseline") {
        meter(&run, 100.0, "power");
    }
    let text = report("02", &runs.context(Lang::En));
    assert!(text.contains("samples of its power were summed over time"));
}

/// A queue with one server that ends ten requests a second: latency is 1 / (10 − rate).
fn rate_rows(rate: f64, capacity: f64) -> String {
    let n = (40.0 * rate).max(4.0) as u32;
    let mut rows = String::new();
    let mut free_s = 0.0_f64;
    for index in 0..n {
        let sent = 100.0 + f64::from(index) / rate;
        let took = 1.0 / (capacity - rate).max(0.5);
        // Beyond its capacity every request waits for those before it.
        let end = (sent + took).max(free_s + 1.0 / capacity);
        free_s = end;
        let first = sent + (end - sent) / 2.0;
        let row = json!({"case": format!("rate-{rate}"), "phase": "rate", "warmup": false, "index": index,
            "user": null, "n_users": null, "rate_per_s": rate, "prompt_id": index, "max_tokens": 10,
            "scheduled_s": sent, "sent_s": sent, "first_token_s": first, "token_s": [first], "end_s": end,
            "prompt_tokens": 12, "output_tokens": 10, "cached_tokens": 3, "finish_reason": "length",
            "error": null});
        writeln!(rows, "{row}").unwrap();
    }
    rows
}

#[test]
fn a_load_curve_has_its_knee_its_end_and_its_load_in_words() {
    let runs = Runs::new();
    let rates = [1.0, 2.0, 5.0, 8.0, 16.0];
    for experiment in ["01-baseline", "03-balanced-v2"] {
        for run in runs.of(experiment) {
            let rows: String = rates.iter().map(|rate| rate_rows(*rate, 10.0)).collect();
            append(&run, "requests.jsonl", &rows);
        }
    }
    let context = runs.context(Lang::En);
    let curves = context.groups[0].load_curves.as_ref().unwrap();
    assert_eq!(curves.curves.len(), 2);
    for curve in &curves.curves {
        assert_eq!((curve.knee_per_s, curve.is_at_end), (Some(5.0), false));
        assert_eq!(curve.saturated_per_s, Some(16.0));
        assert!(
            (curve.most_per_s - 10.0).abs() < 0.1,
            "{}",
            curve.most_per_s
        );
    }
    for kind in ["load-latency", "load-ttft"] {
        assert!(context.groups[0].charts.contains_key(kind), "{kind}");
    }
    let text = report("00", &context);
    assert!(text.contains("knee at **5.00 req/s**"), "{text}");
    assert!(text.contains("16.00 req/s 🔴"), "{text}");
    // 40 s at each rate, 1,600 and 3,200 requests of five starts: p95 at most.
    assert!(text.contains(
        "rate-8: open loop (Poisson arrivals, 8/s), prompts of 12 tokens, 10 output tokens, 40.4 s a start, 25 % cached"
    ), "{text}");
    // The short cases of the data set are marked where they stand.
    assert!(
        text.contains("latency-10: closed loop (1 user), prompts of 12 tokens, 10 output tokens")
    );
    assert!(text.contains("⚠️ short (it takes 10 s)"), "{text}");
    let korean = report("00", &runs.context(Lang::Ko));
    assert!(korean.contains("변곡점 **5.00 req/s**") && korean.contains("캐시 적중 25 %"));
    let tails = |case: &str| {
        let rows = &context.groups[0].rate;
        let row = rows.iter().find(|row| row.case == case).unwrap();
        let stats = row.stats.as_ref().unwrap();
        (stats.p95_ms.is_some(), stats.p99_ms.is_some())
    };
    assert_eq!(
        tails("rate-16"),
        (true, true),
        "3,200 requests in more than 30 s"
    );
    assert_eq!(tails("rate-5"), (true, false), "1,000 requests");
    assert_eq!(tails("rate-1"), (false, false), "200 requests");
}

const SLO_WORKLOAD: &str = r#"
[workload]
endpoint = "completions"
prompts = ["p"]
temperature = 0.0
ignore_eos = true
request_timeout_s = 60.0
[workload.warmup]
n_requests = 0
output_tokens = 1
[workload.slo]
load = "open"
start = 1.0
limit = 64.0
measured_s = 30.0
output_tokens = 50
ttft_ms = 200.0
share = 0.95
"#;

#[test]
fn a_search_is_a_figure_a_start_judged_by_rounds() {
    let runs = Runs::new();
    for (experiment, highest) in [("01-baseline", 4.0), ("03-balanced-v2", 6.0)] {
        let run = &runs.of(experiment)[0];
        for round in 0..6 {
            let id = format!("20260116T09000{round}Z_{experiment}_slo_0000000{round}");
            let added = runs.add(run, &id, |manifest| {
                manifest["campaign"] = "slo".into();
                manifest["replicate"] = round.into();
                manifest["derived"] = json!({"by": "slo", "parent": experiment});
            });
            append(&added, "config.resolved.toml", SLO_WORKLOAD);
            let found = highest + 0.1 * f64::from(round);
            let trial = json!({"case": "slo-rate-4", "load": 4.0, "n_requests": 120, "n_within": 119, "kept": true});
            let outcome = json!({"highest": found, "too_much": found * 1.1, "trials": [trial]});
            fs::write(added.join("slo.json"), outcome.to_string()).unwrap();
        }
    }
    let context = runs.context(Lang::En);
    let group = &context.groups[0];
    assert_eq!(group.slo.len(), 1);
    let rows = &group.slo[0].rows;
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (rows[0].arm.as_str(), rows[0].median),
        ("01-baseline", Some(4.25))
    );
    assert_eq!((rows[1].n_runs, rows[1].verdict), (6, "faster"));
    // Searches are no starts of the experiment itself.
    let arm = group
        .arms
        .iter()
        .find(|arm| arm.experiment == "01-baseline");
    assert_eq!(arm.unwrap().n_runs, 5);
    let text = report("02", &context);
    assert!(
        text.contains("TTFT ≤ 200.0 ms for 95.0 % of the requests"),
        "{text}"
    );
    assert!(
        text.contains("**6.25 req/s**") && text.contains("119/120 kept"),
        "{text}"
    );
    let korean = report("02", &runs.context(Lang::Ko));
    assert!(
        korean.contains("TTFT ≤ 200.0 ms, 요청의 95.0 % 이상"),
        "{korean}"
    );
}

/// Copies of one configuration's runs as an A/A campaign; times of side b by a factor.
fn a_a(runs: &Runs, factor: f64) {
    let all = runs.of("01-baseline");
    for round in 0..8_u32 {
        for side in ["a", "b"] {
            // Neighbours: alike, but not the same.
            let run = &all[(round as usize + usize::from(side == "b")) % all.len()];
            let id = format!("2026011{round}T100000Z_01-baseline-{side}_fixture_{round:08}");
            let added = runs.add(run, &id, |manifest| {
                manifest["campaign"] = "a-a".into();
                manifest["replicate"] = round.into();
                manifest["experiment"] = format!("01-baseline-{side}").into();
                manifest["derived"] = json!({"by": "a_a", "parent": "01-baseline", "side": side});
            });
            if side == "b" {
                slow_down(&added, factor);
            }
        }
    }
}

fn slow_down(run: &Path, factor: f64) {
    let path = run.join("requests.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let mut slow = String::new();
    for line in text.lines() {
        let mut row: Value = serde_json::from_str(line).unwrap();
        let sent = row["sent_s"].as_f64().unwrap();
        for key in ["first_token_s", "end_s"] {
            if let Some(at) = row[key].as_f64() {
                row[key] = (sent + factor * (at - sent)).into();
            }
        }
        writeln!(slow, "{row}").unwrap();
    }
    fs::write(path, slow).unwrap();
}

#[test]
fn measured_false_verdicts_are_counted() {
    let runs = Runs::new();
    a_a(&runs, 1.0);
    let context = runs.trust(Lang::En);
    let measured = &context.trust.as_ref().unwrap().measured;
    assert_eq!(
        (measured.campaigns.len(), measured.campaigns[0].n_rounds),
        (1, 8)
    );
    // Three of one user, two of the ladder, three of each number of users.
    assert_eq!((measured.n_compared, measured.n_tested), (11, 11));
    assert_eq!(measured.n_false, 0, "{measured:?}");
    let text = TRUST.render(&context).unwrap();
    assert!(
        text.contains("**False verdicts: 0 of 11 comparisons**"),
        "{text}"
    );
    let korean = TRUST.render(&runs.trust(Lang::Ko)).unwrap();
    assert!(
        korean.contains("**거짓 판정: 비교 11개 중 0개**"),
        "{korean}"
    );
    // Its starts are no configuration of the reports.
    assert!(
        context.groups[0]
            .arms
            .iter()
            .all(|arm| !arm.experiment.ends_with("-a"))
    );
}

/// The count can be other than zero: a machine that is slower for one side is found out.
#[test]
fn a_biased_a_a_campaign_is_found_out() {
    let runs = Runs::new();
    a_a(&runs, 1.2);
    let context = runs.trust(Lang::En);
    let measured = &context.trust.as_ref().unwrap().measured;
    assert!(measured.n_false >= 4, "{measured:?}");
    let text = TRUST.render(&context).unwrap();
    assert!(
        text.contains("- False: 01-baseline, latency (p50) (latency-10)"),
        "{text}"
    );
}

#[test]
fn figures_are_followed_over_commits_in_their_order() {
    let runs = Runs::new();
    // The newer commit's campaign was measured earlier.
    for (i, run) in runs.of("01-baseline").iter().enumerate() {
        let id = format!("20260101T09000{i}Z_01-baseline_fixture_1000000{i}");
        let added = runs.add(run, &id, |manifest| {
            manifest["campaign"] = "newer".into();
            manifest["started_utc"] = format!("2026-01-01T09:00:0{i}Z").into();
            manifest["git"] = json!({"commit": "f".repeat(40), "dirty": false, "committed_utc": "2026-02-01T00:00:00Z"});
        });
        slow_down(&added, 0.8);
    }
    let context = runs.context(Lang::En);
    let group = &context.groups[0];
    let latency = group.history.iter().find(|h| h.key == "latency").unwrap();
    assert_eq!(latency.experiment, "01-baseline");
    let commits: Vec<&str> = latency.points.iter().map(|p| p.commit.as_str()).collect();
    assert_eq!(commits, ["0123456789", "ffffffffff"]);
    let newer = &latency.points[1];
    assert_eq!(
        (newer.n_campaigns, newer.n_starts, newer.is_step),
        (1, 5, Some(true))
    );
    assert!((newer.improvement_percent.unwrap() - 20.0).abs() < 1.0);
    assert!(group.charts.contains_key("history-latency"));
    let text = report("index", &context);
    assert!(
        text.contains("(**outside the spread**)") && text.contains("2026-02-01"),
        "{text}"
    );
    let before = Runs::new().context(Lang::En);
    assert!(before.groups[0].history.is_empty());
    assert!(
        report("index", &before).contains("No configuration has been measured at two commits yet.")
    );
}
