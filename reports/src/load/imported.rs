//! Figures that others measured: one CSV a document under `data/imported/<source>/`.
//!
//! They are shown beside our own figures, never averaged or tested with them: no raw samples
//! stand behind them. Columns and closed lists are checked here, so a slip in a CSV is an error
//! with file and row, not a strange table.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use polars::prelude::*;

use super::sorted_folders;
use crate::ReportError;

/// One printed figure.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Figure {
    /// Folder name under `data/imported/`.
    pub source: String,
    pub document: String,
    pub section: String,
    pub metric: String,
    /// Configuration, engine or model.
    pub subject: String,
    /// Tokens, users; empty where none was stated.
    pub condition: String,
    /// As printed, without thousands separators and units.
    pub value: String,
    /// The value as a number; none for dates.
    pub number: Option<f64>,
    pub unit: String,
    pub kind: String,
    pub note: String,
}

pub const COLUMNS: [&str; 9] = [
    "document",
    "section",
    "metric",
    "subject",
    "condition",
    "value",
    "unit",
    "kind",
    "note",
];
pub const UNITS: [&str; 14] = [
    "ms", "s", "tok/s", "req/s", "percent", "ratio", "GB", "count", "fraction", "date", "version",
    "B", "tokens", "datetime",
];
/// `measured`: printed as a measurement. `derived`: computed by the author from others. `stated`:
/// a condition or setting (dates, sample counts, memory fractions).
pub const KINDS: [&str; 3] = ["measured", "derived", "stated"];

/// All figures, in the order of folders, files and rows.
pub fn read_all(dir: &Path) -> Result<Vec<Figure>, ReportError> {
    let mut figures = Vec::new();
    for folder in sorted_folders(dir)? {
        let source = folder
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        for path in csv_files(&folder)? {
            figures.extend(read_file(&source, &path)?);
        }
    }
    Ok(figures)
}

fn csv_files(folder: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| ReportError::io(folder, e))? {
        let path = entry.map_err(|e| ReportError::io(folder, e))?.path();
        if path.extension().is_some_and(|e| e == "csv") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(source: &str, path: &Path) -> Result<Vec<Figure>, ReportError> {
    let text_path = path
        .to_str()
        .ok_or_else(|| imported_error(path, 0, "path is not UTF-8"))?;
    let as_text: Schema = COLUMNS
        .iter()
        .map(|c| Field::new((*c).into(), DataType::String))
        .collect();
    let table = LazyCsvReader::new(PlRefPath::new(text_path))
        .with_has_header(true)
        .with_dtype_overwrite(Some(Arc::new(as_text)))
        .finish()
        .and_then(|rows| rows.select(COLUMNS.map(col)).collect())
        .map_err(|e| ReportError::Table {
            what: path.display().to_string(),
            source: e,
        })?;
    (0..table.height())
        .map(|i| figure(source, path, &table, i))
        .collect()
}

fn figure(source: &str, path: &Path, table: &DataFrame, i: usize) -> Result<Figure, ReportError> {
    let row = i + 2; // as an editor counts, with the header
    let cell = |name: &str| -> Result<String, ReportError> {
        let column = table.column(name).and_then(|c| c.str());
        let column = column.map_err(|e| ReportError::Table {
            what: path.display().to_string(),
            source: e,
        })?;
        Ok(column.get(i).unwrap_or_default().trim().to_owned())
    };
    let needed = |name: &str| match cell(name)? {
        text if text.is_empty() => Err(imported_error(
            path,
            row,
            &format!("column `{name}` is empty"),
        )),
        text => Ok(text),
    };
    let listed = |name: &str, list: &[&str]| {
        let text = needed(name)?;
        if list.contains(&text.as_str()) {
            Ok(text)
        } else {
            Err(imported_error(
                path,
                row,
                &format!("`{name}` is `{text}`, not one of {}", list.join(", ")),
            ))
        }
    };
    let (value, unit) = (needed("value")?, listed("unit", &UNITS)?);
    let number = if matches!(unit.as_str(), "date" | "datetime" | "version") {
        None
    } else {
        let parsed = value
            .parse::<f64>()
            .map_err(|_| imported_error(path, row, &format!("value `{value}` is no number")))?;
        Some(parsed)
    };
    Ok(Figure {
        source: source.to_owned(),
        document: needed("document")?,
        section: needed("section")?,
        metric: needed("metric")?,
        subject: needed("subject")?,
        condition: cell("condition")?,
        kind: listed("kind", &KINDS)?,
        note: cell("note")?,
        value,
        number,
        unit,
    })
}

fn imported_error(path: &Path, row: usize, message: &str) -> ReportError {
    ReportError::Imported {
        path: path.to_owned(),
        row,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(csv: &str) -> Result<Vec<Figure>, ReportError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("s")).unwrap();
        std::fs::write(dir.path().join("s/f.csv"), csv).unwrap();
        read_all(dir.path())
    }

    const HEADER: &str = "document,section,metric,subject,condition,value,unit,kind,note\n";

    #[test]
    fn rows_are_read_and_slips_name_file_and_row() {
        let good = read_text(&format!(
            "{HEADER}d.md,결과,ttft,Baseline,10 tokens,269.0,ms,measured,\"a, b\"\n"
        ))
        .unwrap();
        assert_eq!(
            (
                good[0].number,
                good[0].value.as_str(),
                good[0].note.as_str()
            ),
            (Some(269.0), "269.0", "a, b")
        );
        for (row, word) in [
            ("d.md,,ttft,B,,1,ms,measured,", "`section` is empty"),
            ("d.md,s,ttft,B,,1,furlong,measured,", "not one of"),
            ("d.md,s,ttft,B,,about 8,ms,measured,", "no number"),
            ("d.md,s,ttft,B,,1,ms,guessed,", "not one of"),
        ] {
            let message = read_text(&format!("{HEADER}{row}\n"))
                .unwrap_err()
                .to_string();
            assert!(
                message.contains(word) && message.contains("row 2"),
                "{message}"
            );
        }
        assert!(read_text("document,section\nd,s\n").is_err());
    }

    /// The CSV files that the repository ships.
    #[test]
    fn the_shipped_figures_hold_together() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/imported");
        let figures = read_all(&dir).unwrap();
        let mut sources: Vec<&str> = figures.iter().map(|f| f.source.as_str()).collect();
        sources.dedup();
        assert_eq!(sources.len(), 5);
        for source in &sources {
            assert!(dir.join(source).join("PROVENANCE.md").is_file(), "{source}");
            let of_source = figures.iter().filter(|f| f.source == *source);
            assert!(
                of_source
                    .clone()
                    .all(|f| f.document == format!("{source}.md"))
            );
            assert!(
                of_source.filter(|f| f.kind == "measured").count() > 0,
                "{source}"
            );
        }
        let mut rows: Vec<String> = figures.iter().map(|f| format!("{f:?}")).collect();
        let n = rows.len();
        rows.sort();
        rows.dedup();
        assert_eq!(rows.len(), n, "a figure is listed twice");
    }
}
