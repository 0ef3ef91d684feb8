//! The request rows of one run as a Parquet file, for programs that read tables.
//!
//! The columns are those of `requests.jsonl`, and the times that follow from them. Not written with
//! polars: its Parquet support brings five compression libraries and makes the longest build of this
//! workspace longer by minutes. Rows of one run are few, so nothing is compressed and all of them
//! are one row group.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use records::export;
use records::store::StoredRun;
use serde_json::{Map, Value};

use crate::ReportError;

#[derive(Debug, clap::Args)]
pub struct ParquetArgs {
    /// The run: its folder, its id, a part of it that fits one run only, or campaign#arm/round
    pub run: String,
    /// Folders of runs and campaigns [default: data/runs and data/campaigns of the repository]
    #[arg(long, value_name = "DIR")]
    pub runs_dir: Vec<PathBuf>,
    /// Folder that takes the file
    #[arg(long, value_name = "DIR", default_value = export::FOLDER)]
    out: PathBuf,
    /// Only this case
    #[arg(long, value_name = "CASE")]
    case: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Bool,
    Int,
    Float,
    /// A list, never null.
    Floats,
}

const COLUMNS: [(&str, Kind); 23] = [
    ("case", Kind::Text),
    ("phase", Kind::Text),
    ("warmup", Kind::Bool),
    ("model", Kind::Text),
    ("index", Kind::Int),
    ("user", Kind::Int),
    ("n_users", Kind::Int),
    ("rate_per_s", Kind::Float),
    ("prompt_id", Kind::Text),
    ("max_tokens", Kind::Int),
    ("scheduled_s", Kind::Float),
    ("sent_s", Kind::Float),
    ("first_token_s", Kind::Float),
    ("token_s", Kind::Floats),
    ("end_s", Kind::Float),
    ("prompt_tokens", Kind::Int),
    ("output_tokens", Kind::Int),
    ("cached_tokens", Kind::Int),
    ("finish_reason", Kind::Text),
    ("error", Kind::Text),
    ("ttft_ms", Kind::Float),
    ("tpot_ms", Kind::Float),
    ("e2el_ms", Kind::Float),
];

type Row = Map<String, Value>;

/// Writes the file; returns its path.
///
/// # Errors
///
/// If the run's rows cannot be read, it has no such case ([`ReportError::UnknownCase`]), or the
/// file cannot be created ([`ReportError::Io`]) or written ([`ReportError::Parquet`]).
pub fn write(run: &StoredRun, args: &ParquetArgs) -> Result<PathBuf, ReportError> {
    let mut rows = read_rows(run)?;
    if let Some(wanted) = &args.case {
        let case_of = |row: &Row| row.get("case").and_then(Value::as_str).map(str::to_owned);
        let cases: BTreeSet<String> = rows.iter().filter_map(case_of).collect();
        if !cases.contains(wanted) {
            return Err(ReportError::UnknownCase {
                run_id: run.run_id.clone(),
                case: wanted.clone(),
                cases: cases.into_iter().collect::<Vec<_>>().join(", "),
            });
        }
        rows.retain(|row| case_of(row).as_ref() == Some(wanted));
    }
    fs::create_dir_all(&args.out).map_err(|e| ReportError::io(&args.out, e))?;
    let name = export::file_name(&run.run_id, "requests", "parquet");
    let path = args.out.join(name);
    let file = File::create(&path).map_err(|e| ReportError::io(&path, e))?;
    write_rows(file, &rows).map_err(|e| ReportError::Parquet {
        path: path.clone(),
        message: e.to_string(),
    })?;
    Ok(path)
}

fn read_rows(run: &StoredRun) -> Result<Vec<Row>, ReportError> {
    let path = run.place().join(records::REQUESTS);
    let text = run.text(records::REQUESTS)?;
    text.lines()
        .map(|line| {
            let mut row: Row = serde_json::from_str(line).map_err(|e| ReportError::Record {
                path: path.clone(),
                message: e.to_string(),
            })?;
            row.extend(times_of(&row));
            Ok(row)
        })
        .collect()
}

/// As `data/SCHEMA.md` defines them; null where a request failed.
fn times_of(row: &Row) -> [(String, Value); 3] {
    let number = |key: &str| row.get(key).and_then(Value::as_f64);
    let since_sent = |key: &str| {
        let failed = row.get("error").is_some_and(|error| !error.is_null());
        let (sent_s, later_s) = (number("sent_s")?, number(key)?);
        (!failed).then_some((later_s - sent_s) * 1e3)
    };
    let ttft_ms = since_sent("first_token_s");
    let e2el_ms = since_sent("end_s");
    let tpot_ms = ttft_ms.zip(e2el_ms).and_then(|(ttft_ms, e2el_ms)| {
        let n_further = number("output_tokens")? - 1.0;
        (n_further > 0.0).then(|| (e2el_ms - ttft_ms) / n_further)
    });
    [
        ("ttft_ms".into(), Value::from(ttft_ms)),
        ("tpot_ms".into(), Value::from(tpot_ms)),
        ("e2el_ms".into(), Value::from(e2el_ms)),
    ]
}

fn write_rows(file: File, rows: &[Row]) -> Result<(), ParquetError> {
    let schema = Arc::new(parse_message_type(&schema())?);
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(file, schema, properties)?;
    let mut group = writer.next_row_group()?;
    for (name, kind) in COLUMNS {
        if let Some(column) = group.next_column()? {
            let values: Vec<&Value> = rows
                .iter()
                .map(|row| row.get(name).unwrap_or(&Value::Null))
                .collect();
            write_column(column, kind, &values)?;
        }
    }
    group.close()?;
    writer.close()?;
    Ok(())
}

fn schema() -> String {
    let column = |(name, kind): &(&str, Kind)| match kind {
        Kind::Text => format!("OPTIONAL BYTE_ARRAY {name} (UTF8);"),
        Kind::Bool => format!("OPTIONAL BOOLEAN {name};"),
        Kind::Int => format!("OPTIONAL INT64 {name};"),
        Kind::Float => format!("OPTIONAL DOUBLE {name};"),
        Kind::Floats => format!(
            "REQUIRED GROUP {name} (LIST) {{ REPEATED GROUP list {{ REQUIRED DOUBLE element; }} }}"
        ),
    };
    let columns: Vec<String> = COLUMNS.iter().map(column).collect();
    format!("message requests {{ {} }}", columns.join(" "))
}

fn write_column(
    mut column: SerializedColumnWriter<'_>,
    kind: Kind,
    values: &[&Value],
) -> Result<(), ParquetError> {
    // 1: a value; 0: null, which has none.
    let levels = |is_there: fn(&Value) -> bool| -> Vec<i16> {
        values.iter().map(|v| i16::from(is_there(v))).collect()
    };
    match kind {
        Kind::Text => {
            let there: Vec<ByteArray> = values
                .iter()
                .filter_map(|v| v.as_str())
                .map(ByteArray::from)
                .collect();
            let levels = levels(Value::is_string);
            column
                .typed::<ByteArrayType>()
                .write_batch(&there, Some(&levels), None)?;
        }
        Kind::Bool => {
            let there: Vec<bool> = values.iter().filter_map(|v| v.as_bool()).collect();
            let levels = levels(Value::is_boolean);
            column
                .typed::<BoolType>()
                .write_batch(&there, Some(&levels), None)?;
        }
        Kind::Int => {
            let there: Vec<i64> = values.iter().filter_map(|v| v.as_i64()).collect();
            let levels = levels(Value::is_i64);
            column
                .typed::<Int64Type>()
                .write_batch(&there, Some(&levels), None)?;
        }
        Kind::Float => {
            let there: Vec<f64> = values.iter().filter_map(|v| v.as_f64()).collect();
            let levels = levels(Value::is_number);
            column
                .typed::<DoubleType>()
                .write_batch(&there, Some(&levels), None)?;
        }
        Kind::Floats => {
            let (mut there, mut levels, mut repeats) = (Vec::new(), Vec::new(), Vec::new());
            for value in values {
                let list: Vec<f64> = value
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_f64)
                    .collect();
                // An empty list has a level and no value; later elements repeat.
                levels.extend(if list.is_empty() {
                    vec![0]
                } else {
                    vec![1; list.len()]
                });
                repeats.extend((0..list.len().max(1)).map(|i| i16::from(i > 0)));
                there.extend(list);
            }
            column
                .typed::<DoubleType>()
                .write_batch(&there, Some(&levels), Some(&repeats))?;
        }
    }
    column.close()
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;

    const ROWS: &str = r#"{"case":"users-2","phase":"users","warmup":false,"index":0,"user":1,"n_users":2,"rate_per_s":null,"prompt_id":"한-1","max_tokens":3,"scheduled_s":1.0,"sent_s":1.0,"first_token_s":1.25,"token_s":[1.25,1.5,2.25],"end_s":2.25,"prompt_tokens":5,"output_tokens":3,"cached_tokens":0,"finish_reason":"length","error":null}
{"case":"users-2","phase":"users","warmup":false,"index":1,"user":0,"n_users":2,"rate_per_s":null,"prompt_id":"p","max_tokens":3,"scheduled_s":2.0,"sent_s":null,"first_token_s":null,"token_s":[],"end_s":2.5,"prompt_tokens":null,"output_tokens":null,"cached_tokens":null,"finish_reason":null,"error":"refused"}
{"case":"other","phase":"users","warmup":true,"index":0,"user":0,"n_users":1,"rate_per_s":2.5,"prompt_id":"p","max_tokens":1,"scheduled_s":0.0,"sent_s":0.0,"first_token_s":0.5,"token_s":[0.5],"end_s":0.5,"prompt_tokens":5,"output_tokens":1,"cached_tokens":0,"finish_reason":"length","error":null}
"#;

    fn written(case: Option<&str>) -> Result<Vec<Value>, ReportError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("requests.jsonl"), ROWS).unwrap();
        let args = ParquetArgs {
            run: dir.path().to_string_lossy().into_owned(),
            runs_dir: Vec::new(),
            out: dir.path().join("new/folder"),
            case: case.map(String::from),
        };
        let path = write(&StoredRun::in_folder(dir.path()), &args)?;
        assert!(path.starts_with(&args.out));
        assert!(path.to_string_lossy().ends_with(".requests.parquet"));
        let reader = SerializedFileReader::new(File::open(&path).unwrap()).unwrap();
        Ok(reader
            .get_row_iter(None)
            .unwrap()
            .map(|row| serde_json::from_str(&format!("{{{}}}", fields(&row.unwrap()))).unwrap())
            .collect())
    }

    /// `"name": value` of each column, as JSON.
    fn fields(row: &parquet::record::Row) -> String {
        use parquet::record::Field;
        let value = |field: &Field| match field {
            Field::Null => "null".to_owned(),
            Field::Str(text) => format!("{text:?}"),
            other => other.to_string(),
        };
        row.get_column_iter()
            .map(|(name, field)| format!("\"{name}\": {}", value(field)))
            .collect::<Vec<_>>()
            .join(", ")
    }

    #[test]
    fn what_is_read_back_is_what_was_recorded() {
        let rows = written(None).unwrap();
        let recorded = ROWS
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        assert_eq!(rows.len(), ROWS.lines().count());
        for (row, recorded) in rows.iter().zip(recorded) {
            for (key, value) in recorded.as_object().unwrap() {
                assert_eq!(row[key], *value, "{key}");
            }
        }
        assert_eq!(
            (
                &rows[0]["ttft_ms"],
                &rows[0]["tpot_ms"],
                &rows[0]["e2el_ms"]
            ),
            (
                &Value::from(250.0),
                &Value::from(500.0),
                &Value::from(1250.0)
            )
        );
        assert!(rows[1]["ttft_ms"].is_null() && rows[1]["e2el_ms"].is_null());
        // A single token has no time per further token.
        assert!(rows[2]["tpot_ms"].is_null());
    }

    #[test]
    fn one_case_alone() {
        assert_eq!(written(Some("other")).unwrap().len(), 1);
        let refused = written(Some("none")).unwrap_err().to_string();
        assert!(
            refused.contains("has no case none; there are: other, users-2"),
            "{refused}"
        );
    }
}
