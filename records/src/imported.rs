//! A table of figures that others measured, `data/imported/<source>/<document>.csv`: its columns, and
//! what may stand in them.

use serde::Serialize;

/// One printed figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
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
const MAY_BE_EMPTY: [&str; 2] = ["condition", "note"];
pub const UNITS: [&str; 14] = [
    "ms", "s", "tok/s", "req/s", "percent", "ratio", "GB", "count", "fraction", "date", "version",
    "B", "tokens", "datetime",
];
/// `measured`: printed as a measurement. `derived`: computed by the author from others. `stated`:
/// a condition or setting (dates, sample counts, memory fractions).
pub const KINDS: [&str; 3] = ["measured", "derived", "stated"];

/// What is wrong with a table, and in which row, as an editor counts.
#[derive(Debug)]
pub struct TableError {
    pub row: usize,
    pub message: String,
}

/// The figures of one file's bytes.
///
/// # Errors
///
/// If a column is missing, a row is no CSV, or one of its cells is not what its column holds.
/// The error names the row; the header is row 1.
pub fn parse(source: &str, bytes: &[u8]) -> Result<Vec<Figure>, TableError> {
    let unreadable = |row: usize, error: csv::Error| error_in(row, &error.to_string());
    let mut rows = csv::Reader::from_reader(bytes);
    let header = rows.headers().map_err(|e| unreadable(1, e))?;
    let mut places = [0; COLUMNS.len()];
    for (place, name) in places.iter_mut().zip(COLUMNS) {
        *place = header
            .iter()
            .position(|column| column == name)
            .ok_or_else(|| error_in(1, &format!("there is no column `{name}`")))?;
    }
    let mut figures = Vec::new();
    // As an editor counts, with the header.
    for (row, record) in (2..).zip(rows.records()) {
        let record = record.map_err(|e| unreadable(row, e))?;
        let cells = places.map(|place| record.get(place).unwrap_or_default().trim());
        figures.push(figure(source, row, cells)?);
    }
    Ok(figures)
}

/// `cells` are in the order of [`COLUMNS`].
fn figure(source: &str, row: usize, cells: [&str; COLUMNS.len()]) -> Result<Figure, TableError> {
    let [
        document,
        section,
        metric,
        subject,
        condition,
        value,
        unit,
        kind,
        note,
    ] = cells;
    for (name, cell) in COLUMNS.iter().zip(cells) {
        if cell.is_empty() && !MAY_BE_EMPTY.contains(name) {
            let message = format!("column `{name}` is empty");
            return Err(error_in(row, &message));
        }
    }
    for (name, cell, list) in [("unit", unit, &UNITS[..]), ("kind", kind, &KINDS[..])] {
        if !list.contains(&cell) {
            let message = format!("`{name}` is `{cell}`, not one of {}", list.join(", "));
            return Err(error_in(row, &message));
        }
    }
    let number = if matches!(unit, "date" | "datetime" | "version") {
        None
    } else {
        let parsed = value
            .parse::<f64>()
            .ok()
            .filter(|number| number.is_finite());
        let no_number = || error_in(row, &format!("value `{value}` is no number"));
        Some(parsed.ok_or_else(no_number)?)
    };
    Ok(Figure {
        source: source.to_owned(),
        document: document.to_owned(),
        section: section.to_owned(),
        metric: metric.to_owned(),
        subject: subject.to_owned(),
        condition: condition.to_owned(),
        value: value.to_owned(),
        number,
        unit: unit.to_owned(),
        kind: kind.to_owned(),
        note: note.to_owned(),
    })
}

fn error_in(row: usize, message: &str) -> TableError {
    TableError {
        row,
        message: message.to_owned(),
    }
}
