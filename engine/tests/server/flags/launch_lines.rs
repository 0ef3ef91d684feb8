//! Launch lines of published reports about serving on an RTX 5090, word for word without their
//! docker part and comments, start this server.

use engine::model::config::Family;
use engine::weights::fixture::{FolderFormat, tiny_config, write_folder};
use serde_json::json;

use crate::client;
use crate::command_line::resolve;
use crate::fixture::write_tokenizer;
use crate::hub::{Hub, hub_environment};
use crate::program::Program;

const LINES: &str = include_str!("../../data/launch_lines.txt");

/// Title and launch line of each. A line that begins with `+` adds to the one that it names.
fn launch_lines() -> Vec<(String, String)> {
    let mut lines: Vec<(String, String)> = Vec::new();
    for part in LINES.split("\n# ").skip(1) {
        let (title, args) = part.split_once('\n').expect("a title, then flags");
        let args = args.replace("\\\n", " ");
        let args: Vec<&str> = args.split_whitespace().collect();
        let line = match args.split_first() {
            Some((&"+baseline", rest)) => {
                let base = lines
                    .iter()
                    .find(|(title, _)| title.starts_with("baseline"));
                let (_, base) = base.expect("the baseline comes first");
                format!("{base} {}", rest.join(" "))
            }
            _ => args.join(" "),
        };
        lines.push((title.to_owned(), line));
    }
    lines
}

#[test]
fn every_launch_line_is_accepted() {
    let lines = launch_lines();
    assert_eq!(lines.len(), 10);
    for (title, line) in lines {
        resolve(&line).unwrap_or_else(|error| panic!("{title}: {error}"));
    }
}

/// A hub on the loopback interface has a tiny AWQ model under the name that the lines ask for.
#[tokio::test(flavor = "multi_thread")]
async fn every_launch_line_starts_a_server_that_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    let format = FolderFormat::Awq { group_size: 32 };
    write_folder(&model, &tiny_config(Family::Qwen3), format, 1, 1).expect("written");
    write_tokenizer(&model);
    let endpoint = Hub::of("Qwen/Qwen3-32B-AWQ", &model).start().await;
    let environment = hub_environment(endpoint, folder.path());
    for (title, line) in launch_lines() {
        let names_model = line.contains("--model-path");
        // Unchanged but for the port, which may be taken, and the processor, which may be few.
        let line = format!("{line} --port 0 --device cpu --n-threads 1");
        let line = if names_model {
            line
        } else {
            format!("{line} --model-path Qwen/Qwen3-32B-AWQ")
        };
        let program = Program::start(&line, &environment).await;
        let body = json!({"prompt": "x", "max_tokens": 3, "ignore_eos": true});
        let answer = client::post(program.address, "/v1/completions", &body).await;
        assert_eq!(answer.status, 200, "{title}: {}", answer.text());
        assert_eq!(answer.json()["usage"]["completion_tokens"], 3, "{title}");
        let info = client::get(program.address, "/server_info").await.json();
        assert_eq!(
            info["loaded_model"]["requested"], "Qwen/Qwen3-32B-AWQ",
            "{title}"
        );
    }
}
