//! What a bench has measured, beside committed records and another commit's figures.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// One case of `ENGINE_BENCH_JSON`.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    pub device: String,
    pub kernel: String,
    pub case: String,
    pub median_us: f64,
    gb_per_s: f64,
    tflops: f64,
    /// `memory` or `products`: what the roofline of this case is made of.
    bound: String,
    share_of_roofline: f64,
}

/// A committed figure and the folder that it is from.
pub type Committed = (Figure, String);

pub fn read(path: &Path) -> Result<Vec<Figure>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut figures = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = figure(line).with_context(|| format!("{} line {}", path.display(), i + 1))?;
        figures.push(line);
    }
    Ok(figures)
}

fn figure(line: &str) -> Result<Figure> {
    let value: Value = serde_json::from_str(line)?;
    let text = |key: &str| {
        let text = value.get(key).and_then(Value::as_str).map(str::to_owned);
        text.with_context(|| format!("no {key}"))
    };
    let number = |key: &str| {
        let number = value.get(key).and_then(Value::as_f64);
        number.with_context(|| format!("no {key}"))
    };
    Ok(Figure {
        device: text("device")?,
        kernel: text("kernel")?,
        case: text("case")?,
        median_us: number("median_us")?,
        gb_per_s: number("gb_per_s")?,
        tflops: number("tflops")?,
        bound: text("bound")?,
        share_of_roofline: number("share_of_roofline")?,
    })
}

/// All of `data/bench/*/kernels.jsonl.gz` that a GPU bench has written, the newest folder first; of
/// a folder that is not committed yet, `kernels.jsonl`.
pub fn committed(root: &Path) -> Result<Vec<Committed>> {
    let folder = root.join("data").join("bench");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    let mut all = Vec::new();
    for name in names.into_iter().rev() {
        let plain = folder.join(&name).join("kernels.jsonl");
        let packed = folder.join(&name).join("kernels.jsonl.gz");
        let text = if packed.is_file() {
            duct::cmd!("gzip", "--decompress", "--stdout", &packed)
                .read()
                .with_context(|| packed.display().to_string())?
        } else if let Ok(text) = fs::read_to_string(&plain) {
            text
        } else {
            continue;
        };
        // Records of CPU kernels have other fields.
        let figures = text.lines().filter_map(|line| figure(line).ok());
        all.extend(figures.map(|figure| (figure, name.clone())));
    }
    Ok(all)
}

fn same<'a>(all: impl Iterator<Item = &'a Figure>, figure: &Figure) -> Option<&'a Figure> {
    let is_same = |other: &&Figure| {
        (&other.device, &other.kernel, &other.case)
            == (&figure.device, &figure.kernel, &figure.case)
    };
    all.into_iter().find(is_same)
}

/// One line a case. `other`: a commit's name and its figures.
pub fn table(new: &[Figure], committed: &[Committed], other: Option<(&str, &[Figure])>) -> String {
    let mut text = format!(
        "{:<18} {:<32} {:>10} {:>9} {:>9} {:>12} {:>13} {:>9}",
        "kernel", "case", "median us", "GB/s", "TFLOP/s", "of roofline", "committed us", "speed-up"
    );
    if let Some((name, _)) = other {
        let _ = write!(text, " {:>13} {:>9}", format!("{name} us"), "speed-up");
    }
    let beside = |before: Option<&Figure>, now: &Figure| match before {
        Some(before) => format!(
            " {:>13.2} {:>8.3}x",
            before.median_us,
            before.median_us / now.median_us
        ),
        None => format!(" {:>13} {:>9}", "-", "-"),
    };
    for now in new {
        let _ = write!(
            text,
            "\n{:<18} {:<32} {:>10.2} {:>9.0} {:>9.1} {:>7.1} % {:2}",
            now.kernel,
            now.case,
            now.median_us,
            now.gb_per_s,
            now.tflops,
            100.0 * now.share_of_roofline,
            now.bound.get(..1).unwrap_or_default(),
        );
        let committed = same(committed.iter().map(|(figure, _)| figure), now);
        text.push_str(&beside(committed, now));
        if let Some((_, figures)) = other {
            text.push_str(&beside(same(figures.iter(), now), now));
        }
    }
    text.push_str(
        "\n\nof roofline: m by memory's rate, p by that of the products, both measured just before",
    );
    let mut sources: Vec<&str> = Vec::new();
    for (figure, source) in committed {
        if same(new.iter(), figure).is_some() && !sources.contains(&source.as_str()) {
            sources.push(source);
        }
    }
    if sources.is_empty() {
        text.push_str("\ncommitted: no record of these cases on this GPU");
    } else {
        let _ = write!(
            text,
            "\ncommitted: the newest of data/bench/{{{}}}",
            sources.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(case: &str, median_us: f64) -> String {
        format!(
            r#"{{"device":"H100","kernel":"stream_linear","case":"{case}","median_us":{median_us},"gb_per_s":2000.0,"tflops":1.5,"bound":"memory","share_of_roofline":0.75,"n_launches":9}}"#
        )
    }

    #[test]
    fn figures_stand_beside_those_of_the_same_case_and_device() {
        let new = vec![figure(&line("qkv 8 rows", 20.0)).expect("a figure")];
        let before = figure(&line("qkv 8 rows", 25.0)).expect("a figure");
        let elsewhere = Figure {
            device: "H200".into(),
            median_us: 1.0,
            ..before.clone()
        };
        let committed = [
            (elsewhere, "20261130_h200".to_owned()),
            (before, "20261126_h100".to_owned()),
        ];
        let other = vec![figure(&line("qkv 8 rows", 10.0)).expect("a figure")];
        let text = table(&new, &committed, Some(("HEAD", &other)));
        let row = text.lines().nth(1).expect("one case");
        let words: Vec<_> = row.split_whitespace().collect();
        let expected = [
            "stream_linear",
            "qkv",
            "8",
            "rows",
            "20.00",
            "2000",
            "1.5",
            "75.0",
            "%",
            "m",
            "25.00",
            "1.250x",
            "10.00",
            "0.500x",
        ];
        assert_eq!(words, expected);
        assert!(
            text.ends_with("the newest of data/bench/{20261126_h100}"),
            "{text}"
        );
    }

    #[test]
    fn a_case_without_a_record_says_so() {
        let new = vec![figure(&line("5120 x 64", 20.0)).expect("a figure")];
        let text = table(&new, &[], None);
        assert!(text.contains(" - ") && text.ends_with("no record of these cases on this GPU"));
        assert!(figure(r#"{"kernel":"a"}"#).is_err());
    }

    #[test]
    fn the_repositorys_records_are_found() {
        let root = crate::cargo::root().expect("the working tree");
        let all = committed(&root).expect("data/bench");
        assert!(
            all.iter()
                .any(|(figure, _)| figure.kernel == "stream_linear")
        );
        assert!(
            all.windows(2).all(|pair| pair[0].1 >= pair[1].1),
            "newest first"
        );
    }
}
