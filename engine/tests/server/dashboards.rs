//! The series that public dashboards select are on `/metrics`, or `docs/production.md` says why not.
//!
//! `tests/data/dashboards.txt` has what they select. A row of the document's table names metrics
//! (`*` stands for any ending) and begins its last cell with `yes` or with a reason.

use std::collections::BTreeMap;
use std::path::Path;

use engine::speculation::{Algorithm, NgramConfig, SpeculationConfig};
use serde_json::json;

use crate::fixture::{TestConfig, TestServer};

const SELECTORS: &str = include_str!("../data/dashboards.txt");
/// The heading of the document's table.
const HEADING: &str = "| metrics | asked by | here |";

/// A metric of several series is called without their endings.
fn family(series: &str) -> &str {
    let endings = ["_bucket", "_sum", "_count"];
    let stripped = endings.iter().find_map(|end| series.strip_suffix(end));
    stripped.unwrap_or(series)
}

/// A series' name, and the labels that its samples must have: a name, or a name and a value.
fn selectors() -> Vec<(&'static str, Vec<&'static str>)> {
    let lines = SELECTORS.lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split(' ');
            (words.next().expect("a series"), words.collect())
        })
        .collect()
}

/// A row's names and what it says of them.
fn rows(document: &str) -> Vec<(Vec<&str>, &str)> {
    let from = document.find(HEADING).expect("the table");
    let lines = document[from..].lines().skip(2);
    lines
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [names, _, here] = cells[..] else {
                panic!("three cells: {line}")
            };
            (names.split('`').skip(1).step_by(2).collect(), here)
        })
        .collect()
}

fn is_named(name: &str, family: &str) -> bool {
    match name.strip_suffix('*') {
        Some(start) => family.starts_with(start),
        None => name == family,
    }
}

/// The labels of a metric's samples by its series' names.
fn series_of(page: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut series: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, _) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
        series.entry(name).or_default().push(labels);
    }
    series
}

fn has(labels: &str, wanted: &str) -> bool {
    let start = match wanted.split_once('=') {
        Some((label, value)) => format!("{label}=\"{value}\""),
        None => format!("{wanted}=\""),
    };
    let labels = labels.trim_end_matches('}');
    labels.split(',').any(|label| label.starts_with(&start))
}

#[tokio::test]
async fn what_public_dashboards_select_is_there_or_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    let path = root.expect("a folder").join("docs/production.md");
    let document = std::fs::read_to_string(path).expect("the document");
    let rows = rows(&document);
    let server = TestServer::start(TestConfig {
        speculation: Some(SpeculationConfig {
            algorithm: Algorithm::Ngram(NgramConfig::default()),
            n_draft_tokens: 5,
        }),
        ..TestConfig::saying("abcabc")
    })
    .await;
    let body = json!({"prompt": "abcabcabc", "max_tokens": 30});
    server.ok("/v1/completions", body).await;
    let page = server.get("/metrics").await;
    let series = series_of(page.text());
    let selectors = selectors();
    let mut n_served = 0;
    for (name, labels) in &selectors {
        let rows = rows.iter();
        let mut found = rows.filter(|(names, _)| names.iter().any(|n| is_named(n, family(name))));
        let (_, here) = found
            .next()
            .unwrap_or_else(|| panic!("{name}: no row of docs/production.md has it"));
        assert!(found.next().is_none(), "{name}: two rows have it");
        if *here != "yes" {
            assert!(!series.contains_key(name), "{name} is there, not {here:?}");
            continue;
        }
        n_served += 1;
        let samples = series.get(name);
        let samples = samples.unwrap_or_else(|| panic!("{name} is not on the page"));
        for label in labels {
            assert!(
                samples.iter().any(|sample| has(sample, label)),
                "{name}: no sample with {label} in {samples:?}"
            );
        }
    }
    for name in rows.iter().flat_map(|(names, _)| names) {
        assert!(
            selectors.iter().any(|(s, _)| is_named(name, family(s))),
            "{name} is in the table, but no dashboard selects it"
        );
    }
    assert_eq!((n_served, selectors.len()), (80, 135));
}
