//! Stores the files of run folders as lines of a campaign's compressed files, and restores them
//! byte by byte.
//!
//! Every line is a JSON object that begins with `run_id` and `file`. A line of a `.jsonl` file
//! follows with its own keys; any other file is one line with its content as `json` (if it differs
//! only in white space), `text`, or `hex` if it is not UTF-8. Incomplete JSON lines (the run was
//! killed while writing) are stored as `raw_text` or `raw_hex`. The times of tokens may be apart
//! from the rows ([`crate::token_times`]).

use std::collections::{BTreeMap, HashMap};

use serde::de::IgnoredAny;

use crate::digests::hex;
use crate::json_text::{indented, minified};
use crate::token_times::{TimesReader, TokenTimes, looks_taken};

/// Files by name, by run id.
pub type FilesOfRuns = HashMap<String, BTreeMap<String, Vec<u8>>>;

/// Appends the lines of a file to `out`, and the times of its tokens to `times`; without these, they
/// stay in the rows.
pub fn encode(
    run_id: &str,
    file: &str,
    bytes: &[u8],
    out: &mut String,
    mut times: Option<&mut TokenTimes>,
) {
    let prefix = format!("{{\"run_id\":{},\"file\":{}", quoted(run_id), quoted(file));
    let mut line = |rest: &str| {
        out.push_str(&prefix);
        out.push(',');
        out.push_str(rest);
        out.push_str("}\n");
    };
    if !has_rows(file) {
        match std::str::from_utf8(bytes) {
            Ok(text) if is_indented_json(file, text) => {
                line(&format!("\"json\":{}", minified(text)));
            }
            Ok(text) => line(&format!("\"text\":{}", quoted(text))),
            Err(_) => line(&format!("\"hex\":\"{}\"", hex(bytes))),
        }
        return;
    }
    if bytes.is_empty() {
        line("\"raw_text\":\"\"");
    }
    for row in bytes.split_inclusive(|byte| *byte == b'\n') {
        match std::str::from_utf8(row) {
            Ok(text) => match inside_of_row(text) {
                Some(inside) => match times.as_deref_mut() {
                    Some(times) => line(&times.take(inside)),
                    None => line(inside),
                },
                None => line(&format!("\"raw_text\":{}", quoted(text))),
            },
            Err(_) => line(&format!("\"raw_hex\":\"{}\"", hex(row))),
        }
    }
}

/// The files that were encoded. `times`: those of the same lines.
///
/// ```
/// use records::sealed_rows::{decode, encode};
/// use records::token_times::TokenTimes;
///
/// let (mut sealed, mut times) = (String::new(), TokenTimes::default());
/// encode("run-1", "requests.jsonl", b"{\"index\":0}\n", &mut sealed, Some(&mut times));
/// let files = decode(&sealed, times.reader())?;
/// assert_eq!(files["run-1"]["requests.jsonl"], b"{\"index\":0}\n");
/// # Ok::<(), String>(())
/// ```
///
/// # Errors
///
/// If the text is not what [`encode`] writes, or the times are not as many as its rows have. The
/// error names the line.
pub fn decode(text: &str, mut times: TimesReader<'_>) -> Result<FilesOfRuns, String> {
    let mut files = FilesOfRuns::new();
    for (index, line) in text.lines().enumerate() {
        let (run_id, file, rest) =
            parsed(line).ok_or_else(|| format!("line {}: no row of a campaign", index + 1))?;
        let bytes = files.entry(run_id).or_default().entry(file).or_default();
        restore(rest, &mut times, bytes).ok_or_else(|| format!("line {}: cut off", index + 1))?;
    }
    if !times.is_done() {
        return Err("more times of tokens than the rows have".to_owned());
    }
    Ok(files)
}

/// Run id, file, and the rest after the comma without the closing brace.
fn parsed(line: &str) -> Option<(String, String, &str)> {
    let (run_id, rest) = string(line.strip_prefix("{\"run_id\":")?)?;
    let (file, rest) = string(rest.strip_prefix(",\"file\":")?)?;
    Some((run_id, file, rest.strip_prefix(',')?.strip_suffix('}')?))
}

fn restore(rest: &str, times: &mut TimesReader<'_>, bytes: &mut Vec<u8>) -> Option<()> {
    if let Some(text) = rest
        .strip_prefix("\"text\":")
        .or_else(|| rest.strip_prefix("\"raw_text\":"))
    {
        let text: String = serde_json::from_str(text).ok()?;
        bytes.extend(text.as_bytes());
    } else if let Some(json) = rest.strip_prefix("\"json\":") {
        bytes.extend(indented(json).as_bytes());
    } else if let Some(digits) = rest
        .strip_prefix("\"hex\":")
        .or_else(|| rest.strip_prefix("\"raw_hex\":"))
    {
        let digits: String = serde_json::from_str(digits).ok()?;
        bytes.extend(unhex(&digits)?);
    } else {
        bytes.push(b'{');
        bytes.extend(times.put_back(rest)?.as_bytes());
        bytes.extend(b"}\n");
    }
    Some(())
}

pub fn has_rows(file: &str) -> bool {
    file.rsplit_once('.')
        .is_some_and(|(_, ending)| ending == "jsonl")
}

fn is_indented_json(file: &str, text: &str) -> bool {
    file.rsplit_once('.')
        .is_some_and(|(_, ending)| ending == "json")
        && serde_json::from_str::<IgnoredAny>(text).is_ok()
        && indented(&minified(text)) == text
}

/// The inside of a complete row; none of its keys may be one of this format's own.
fn inside_of_row(row: &str) -> Option<&str> {
    let inside = row
        .strip_prefix('{')?
        .strip_suffix("}\n")
        .filter(|inside| inside.starts_with('"'))?;
    let own = [
        "\"text\":",
        "\"raw_text\":",
        "\"json\":",
        "\"hex\":",
        "\"raw_hex\":",
    ];
    let is_plain = !own.iter().any(|key| inside.starts_with(key))
        && !row.contains('\r')
        && !looks_taken(inside)
        && serde_json::from_str::<IgnoredAny>(row).is_ok();
    is_plain.then_some(inside)
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The JSON string at the beginning of `text`, and what follows it.
fn string(text: &str) -> Option<(String, &str)> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => {
                let (string, rest) = text.split_at(at + 1);
                return Some((serde_json::from_str(string).ok()?, rest));
            }
            _ => {}
        }
    }
    None
}

fn unhex(digits: &str) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_comes_back_byte_by_byte() {
        let files: [(&str, &[u8]); 12] = [
            (
                "requests.jsonl",
                b"{\"case\":\"a\",\"t\":0.10}\n{\"token_s\":[0.25,0.5]}\n{\"token_s\":7}\n",
            ),
            ("empty.jsonl", b""),
            ("torn.jsonl", b"{\"case\":\"a\"}\n{\"case\":\"b"),
            (
                "odd.jsonl",
                b"{}\n\n[1]\n{\"text\":1}\n{ \"a\":1}\nnull\n{\"a\":1}\r\n",
            ),
            ("bytes.jsonl", b"{\"a\":\"\xff\"}\n{\"a\":1}\n"),
            (
                "status.json",
                b"{\n  \"status\": \"complete\",\n  \"t\": 1.50\n}\n",
            ),
            ("compact.json", b"{\"a\":1}"),
            ("broken.json", b"{\"a\":"),
            ("server.log", "\u{1b}[1m시작 \"x\"\n\n".as_bytes()),
            ("bytes.log", b"\xff\x00\n"),
            ("empty.log", b""),
            ("config.resolved.toml", b"a = 1\n"),
        ];
        let (mut text, mut times) = (String::new(), TokenTimes::default());
        for run_id in ["r1", "r\"2\\"] {
            for (file, bytes) in files {
                encode(run_id, file, bytes, &mut text, Some(&mut times));
            }
        }
        for line in text.lines() {
            assert!(serde_json::from_str::<IgnoredAny>(line).is_ok(), "{line}");
        }
        let found = decode(&text, times.reader()).expect("decoded");
        assert_eq!(found.len(), 2);
        for of_run in found.values() {
            assert_eq!(of_run.len(), files.len());
            for (file, bytes) in files {
                assert_eq!(of_run[file], bytes, "{file}");
            }
        }
    }

    #[test]
    fn a_line_that_is_cut_off_is_named() {
        let mut text = String::new();
        let mut times = TokenTimes::default();
        encode(
            "r",
            "a.jsonl",
            b"{\"k\":1}\n{\"k\":2}\n",
            &mut text,
            Some(&mut times),
        );
        let cut = &text[..text.len() - 4];
        let problem = decode(cut, times.reader()).expect_err("refused");
        assert!(problem.starts_with("line 2: "), "{problem}");
    }

    #[test]
    fn times_must_be_as_many_as_the_rows_have() {
        let (mut text, mut times) = (String::new(), TokenTimes::default());
        let rows = b"{\"token_s\":[0.1]}\n{\"token_s\":[0.2]}\n";
        encode("r", "requests.jsonl", rows, &mut text, Some(&mut times));
        let problem = decode(&text, TokenTimes::default().reader()).expect_err("refused");
        assert_eq!(problem, "line 1: cut off");
        let (first, _) = text.split_once('\n').expect("two lines");
        assert!(decode(first, times.reader()).is_err_and(|problem| problem.starts_with("more")));
    }
}
