//! Reports of campaign folders are those of the run folders, and runs of unknown sources are shown and
//! never judged.

use std::fs;
use std::path::{Path, PathBuf};

use records::seal::{seal, unsealed_campaigns};
use records::source::Source;
use reports::lang::Lang;
use reports::load;
use reports::render::assemble::build;
use reports::render::{REPORTS, last_verdicts};
use reports::stats::verdict::VerdictConfig;
use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

/// A copy of the fixed data set's run folders.
fn copied() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for run in fs::read_dir(data("runs")).unwrap() {
        let from = run.unwrap().path();
        let to = dir.path().join("runs").join(from.file_name().unwrap());
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(&from).unwrap() {
            let file = file.unwrap().path();
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
    dir
}

/// All reports of the runs in `dir`, and the verdicts.
fn rendered(dir: &Path, lang: Lang) -> Vec<String> {
    let records = load::load(dir, &data("imported"), |_| true).unwrap();
    let context = build(&records, VerdictConfig::default(), lang).unwrap();
    let mut texts: Vec<String> = REPORTS
        .iter()
        .map(|report| report.render(&context).unwrap())
        .collect();
    texts.push(last_verdicts::render(&context).unwrap());
    texts
}

#[test]
fn a_sealed_campaign_gives_the_same_reports() {
    let dir = copied();
    let (runs, campaigns) = (dir.path().join("runs"), dir.path().join("campaigns"));
    let before = [Lang::Ko, Lang::En].map(|lang| rendered(&runs, lang));
    let waiting = unsealed_campaigns(&runs).unwrap();
    assert_eq!(waiting.len(), 3);
    for (campaign, _) in &waiting {
        seal(&runs, &campaigns, campaign, &Source::of).unwrap();
    }
    assert_eq!(fs::read_dir(&runs).unwrap().count(), 0);
    let after = [Lang::Ko, Lang::En].map(|lang| rendered(&campaigns, lang));
    assert_eq!(before, after);
}

#[test]
fn a_run_of_unknown_sources_is_shown_and_not_judged() {
    let dir = copied();
    let runs = dir.path().join("runs");
    for run in fs::read_dir(&runs).unwrap() {
        let path = run.unwrap().path().join("manifest.json");
        let mut manifest: Value =
            serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        if manifest["experiment"] == "03-balanced-v2" {
            manifest["git"]["dirty"] = json!(true);
            fs::write(&path, manifest.to_string()).unwrap();
        }
    }
    let known = rendered(&data("runs"), Lang::En);
    let unknown = rendered(&runs, Lang::En);
    let of = |texts: &[String]| -> Vec<Value> {
        let verdicts: Value = serde_json::from_str(texts.last().unwrap()).unwrap();
        let judged = verdicts["experiments"].as_array().unwrap().iter();
        let of_it = judged.filter(|judged| judged["experiment"] == "03-balanced-v2");
        of_it
            .flat_map(|judged| judged["verdicts"].as_array().unwrap().clone())
            .collect()
    };
    assert!(of(&known).iter().any(|v| v["verdict"] == "faster"));
    let now = of(&unknown);
    assert!(!now.is_empty());
    for verdict in now {
        assert_eq!(verdict["verdict"], "undecided");
        assert_eq!(verdict["improvement_percent"], Value::Null);
    }
    for text in &unknown[..unknown.len() - 1] {
        let shown = text.contains("03-balanced-v2_fixture");
        assert!(!shown || text.contains("source unknown"), "{text}");
    }
    assert!(unknown[0].contains("not judged"), "{}", unknown[0]);
}
