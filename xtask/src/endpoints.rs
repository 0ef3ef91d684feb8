//! `endpoints [--write]`: every operation of `/openapi.json`, asked for with curl of an engine with a tiny
//! model. An operation without a request here, or another status than the expected one, is a failure.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use duct::cmd;
use serde_json::Value;

use crate::cargo;
use crate::served::Served;

const KEY: &str = "key-of-the-tests";
const MODEL: &str = "synthetic:tiny-qwen3";
const CONVERSATION: &str = "a-conversation";
const DOCUMENT: &str = "docs/endpoints.md";
const LIMIT_S: &str = "60";
const N_SHOWN_CHARS: usize = 80;

/// Method, path (below `/v1`, too, if the document has it there), expected status, body; in this order.
const REQUESTS: &str = r#"
GET /health 200
GET /ping 200
POST /ping 200
GET /readiness 200
GET /liveness 200
GET /health_generate 200
GET /metrics 200
GET /version 200
GET /openapi.json 200
GET /models 200
GET /models/{name} 200
GET /model_info 200
GET /get_model_info 200
GET /server_info 200
GET /get_server_info 200
GET /loads 200
GET /get_load 200
GET /load 200
POST /chat/completions 200 {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
POST /completions 200 {"prompt": "Hi", "max_tokens": 4}
POST /messages 200 {"model": "synthetic:tiny-qwen3", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
POST /messages/count_tokens 200 {"model": "synthetic:tiny-qwen3", "messages": [{"role": "user", "content": "Hi"}]}
POST /responses 200 {"input": "Hi", "max_output_tokens": 4}
POST /responses/input_tokens 200 {"input": "Hi"}
GET /responses/{id} 200
GET /responses/{id}/input_items 200
POST /responses/{id}/cancel 200
DELETE /responses/{id} 200
GET /stream/{id} 200
DELETE /stream/{id} 200
POST /generate 200 {"text": "Hi", "sampling_params": {"max_new_tokens": 4}}
POST /embeddings 400 {"input": "Hi"}
POST /tokenize 200 {"prompt": "Hi"}
POST /detokenize 200 {"tokens": [13048]}
GET /tokenizer_info 200
GET /flush_cache 200
POST /flush_cache 200
POST /reset_prefix_cache 200
POST /abort_request 200 {"abort_all": true}
GET /admin/requests 200
GET /admin/models 200
POST /admin/models/sleep 200 {"model": "synthetic:tiny-qwen3"}
POST /admin/models/wake 200 {"model": "synthetic:tiny-qwen3"}
POST /admin/models/unload 200 {"model": "synthetic:tiny-qwen3"}
POST /admin/models/load 200 {"model": "synthetic:tiny-qwen3"}
"#;

#[derive(Args)]
pub struct EndpointsArgs {
    /// An engine that has been built [default: build it in the release profile]
    #[arg(long, value_name = "FILE")]
    engine_bin: Option<PathBuf>,
    /// Write the table into docs/endpoints.md
    #[arg(long)]
    write: bool,
}

struct Answer {
    status: u16,
    body: String,
}

pub fn run(args: &EndpointsArgs) -> Result<ExitCode> {
    let engine = cargo::given_or_release_engine(args.engine_bin.as_deref())?;
    let mut flags = vec!["--device", "cpu", "--model-path", MODEL];
    flags.extend(["--api-key", KEY, "--admin-api-key", KEY]);
    let log = cargo::target_dir()?.join("endpoints-engine.log");
    let served = Served::start(&engine, &flags, &log)?;
    let (table, faults) = ask_all(&served.address)?;
    served.stop()?;
    print!("{table}");
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    if args.write {
        let text = format!(
            "# Every endpoint\n\nWritten by `cargo xtask endpoints --write`, which asks for every operation \
             of `/openapi.json` with `curl -H 'Authorization: Bearer KEY' URL`, prints method, path, status \
             and the first {N_SHOWN_CHARS} characters of the answer, and fails if a status is not the \
             expected one. Long numbers and ids are cut, and `[/v1]` may be left out.\n\n{table}"
        );
        fs::write(cargo::root()?.join(DOCUMENT), text).context(DOCUMENT)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The table, and what was not as expected.
fn ask_all(address: &str) -> Result<(String, Vec<String>)> {
    let document: Value = serde_json::from_str(&curl(address, "GET", "/openapi.json", "")?.body)?;
    let mut left = documented(&document);
    let mut faults = Vec::new();
    let mut table = "| request | status | answer |\n|---|---|---|\n".to_owned();
    for line in REQUESTS.lines().filter(|line| !line.is_empty()) {
        let mut parts = line.splitn(4, ' ');
        let (Some(method), Some(path), Some(status)) = (parts.next(), parts.next(), parts.next())
        else {
            bail!("{line:?} is no request");
        };
        let body = parts.next().unwrap_or_default();
        let both = [format!("/v1{path}"), path.to_owned()];
        let paths: Vec<_> = both
            .into_iter()
            .filter(|path| left.remove(&(method.to_owned(), path.clone())))
            .collect();
        let shown = match &paths[..] {
            [] => {
                faults.push(format!("{method} {path} is not in the document"));
                continue;
            }
            [one] => one.clone(),
            _ => format!("[/v1]{path}"),
        };
        let mut first = None;
        for path in &paths {
            let place = prepared(address, path)?;
            let answer = curl(address, method, &place, body)?;
            if answer.status.to_string() != status {
                let (status, body) = (answer.status, &answer.body);
                faults.push(format!("{method} {path}: {status} {body}"));
            }
            first.get_or_insert(answer);
        }
        let first = first.context("an answer")?;
        let (status, answer) = (first.status, shown_of(&first.body));
        // Writing to a String cannot fail.
        let _ = writeln!(table, "| `{method} {shown}` | {status} | `{answer}` |");
    }
    let left = left.into_iter();
    faults.extend(
        left.map(|(method, path)| format!("{method} {path}: no request is written for it")),
    );
    Ok((table, faults))
}

/// Methods and paths.
fn documented(document: &Value) -> BTreeSet<(String, String)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    let operations = paths.flat_map(|(path, item)| {
        let methods = item.as_object().into_iter().flatten();
        methods.map(move |(method, _)| (method.to_uppercase(), path.clone()))
    });
    operations.collect()
}

/// The path with a name or an id, for which what it names is made first.
fn prepared(address: &str, path: &str) -> Result<String> {
    if !path.contains("{id}") {
        return Ok(path.replace("{name}", MODEL));
    }
    if path.contains("/stream/") {
        let body = r#"{"prompt": "Hi", "max_tokens": 4, "stream": true}"#;
        curl(address, "POST", "/v1/completions", body)?;
        return Ok(path.replace("{id}", CONVERSATION));
    }
    // A stream in the background goes on without its reader.
    let (body, limit_s) = if path.ends_with("/cancel") {
        let body =
            r#"{"input": "Hi", "background": true, "stream": true, "max_output_tokens": 4000}"#;
        (body, "0.2")
    } else {
        (r#"{"input": "Hi", "max_output_tokens": 4}"#, LIMIT_S)
    };
    let made = curl_within(limit_s, address, "POST", "/v1/responses", body)?.body;
    let id = made.split('"').find(|part| part.starts_with("resp_"));
    Ok(path.replace("{id}", id.with_context(|| format!("{made} has no id"))?))
}

fn curl(address: &str, method: &str, path: &str, body: &str) -> Result<Answer> {
    curl_within(LIMIT_S, address, method, path, body)
}

/// What arrives within the limit.
fn curl_within(
    limit_s: &str,
    address: &str,
    method: &str,
    path: &str,
    body: &str,
) -> Result<Answer> {
    let url = format!("http://{address}{path}");
    let key = format!("Authorization: Bearer {KEY}");
    let mut args = vec!["-sS", "--max-time", limit_s, "-X", method, "-H", &key];
    args.extend(["-w", "\n%{http_code}"]);
    let conversation = format!("X-Conversation-Id: {CONVERSATION}");
    if path.ends_with("/completions") && body.contains("\"stream\"") {
        args.extend(["-H", &conversation]);
    }
    if !body.is_empty() {
        args.extend(["-H", "Content-Type: application/json", "-d", body]);
    }
    args.push(&url);
    let output = cmd("curl", args)
        .stderr_null()
        .unchecked()
        .read()
        .context("curl (Debian: curl)")?;
    let (body, status) = output.rsplit_once('\n').context("no status")?;
    Ok(Answer {
        status: status.parse()?,
        body: body.to_owned(),
    })
}

/// The first characters, in one line of a table; long numbers and ids are cut.
fn shown_of(body: &str) -> String {
    let mut shown = String::new();
    let mut n_in_number = 0;
    for c in body
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
    {
        n_in_number = if c.is_ascii_hexdigit() {
            n_in_number + 1
        } else {
            0
        };
        match n_in_number {
            9.. => {}
            8 => shown.push('…'),
            _ => shown.push(if ['|', '`'].contains(&c) { ' ' } else { c }),
        }
    }
    shown.chars().take(N_SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_cut_and_the_document_is_read() {
        let body = format!(
            "{{\"id\": \"0123456789abcdef\",\n \"a\": \"|{}",
            "z".repeat(99)
        );
        let shown = shown_of(&body);
        assert!(
            shown.starts_with("{\"id\": \"0123456…\", \"a\": \" zz"),
            "{shown}"
        );
        assert_eq!(shown.chars().count(), N_SHOWN_CHARS);
        let document = serde_json::json!({"paths": {"/a": {"get": {}, "post": {}}}});
        let found: Vec<_> = documented(&document).into_iter().map(|one| one.0).collect();
        assert_eq!(found, ["GET", "POST"]);
    }
}
