//! Figures that others measured: one CSV a document under `data/imported/<source>/`.
//!
//! They are shown beside our own figures, never averaged or tested with them: there are no raw
//! samples for them. Columns and closed lists are checked here, so a slip in a CSV is an error
//! with file and row, not a strange table.

use std::path::{Path, PathBuf};

pub use records::imported::Figure;
use records::imported::parse;

use crate::ReportError;

/// All figures, in the order of folders, files and rows.
///
/// # Errors
///
/// If a folder or file cannot be read ([`ReportError::Io`]), or a row is not one of imported
/// figures ([`ReportError::Imported`], with the row).
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
    let text = std::fs::read(path).map_err(|e| ReportError::io(path, e))?;
    parse(source, &text).map_err(|error| ReportError::Imported {
        path: path.to_owned(),
        row: error.row,
        message: error.message,
    })
}

/// Names of the sub-folders of `dir`, sorted; none if `dir` does not exist.
fn sorted_folders(dir: &Path) -> Result<Vec<PathBuf>, ReportError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ReportError::io(dir, e)),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| ReportError::io(dir, e))?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
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
            ("d.md,s,ttft,B,,inf,ms,measured,", "no number"),
            ("d.md,s,ttft,B,,1,ms,guessed,", "not one of"),
            ("d.md,s,ttft,B,,1,ms", "7 fields"),
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

    /// The CSV files that the repository ships. Result files that `import` took are other people's.
    #[test]
    fn the_shipped_figures_hold_together() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/imported");
        let mut figures = read_all(&dir).unwrap();
        figures.retain(|f| !["vllm", "sglang"].contains(&f.source.as_str()));
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
