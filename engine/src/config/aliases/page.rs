//! The table in Markdown.

use std::fmt::Write;

use super::table::aliases;
use super::values::VALUES;
use super::{Means, OTHER_TOKENIZER, Program, ValueMeans};

/// The table as it is in `FLAGS.md`.
pub fn markdown() -> String {
    let mut text = String::from("| of | flag | here |\n|---|---|---|\n");
    for alias in aliases() {
        let names = alias.names.join("`, `");
        let of = match alias.of {
            Program::Sglang => "SGLang",
            Program::Vllm => "vLLM",
            Program::LlamaCpp => "llama.cpp",
            Program::Any => "several",
        };
        let here = match alias.means {
            Means::Flag(ours) | Means::Count(ours, []) => format!("`{ours}`"),
            Means::Count(ours, defaults) => {
                format!("`{ours}`; `{}` asks for the default", defaults.join("`, `"))
            }
            Means::Inactive(reason) => format!("no effect: {reason}"),
            Means::Only {
                values, refusal, ..
            } => format!(
                "no effect with `{}`; else refused: {refusal}",
                values.join("`, `")
            ),
            Means::Refused(reason) => format!("refused: {reason}"),
            Means::Revision => "after the model's name: `org/name@revision`".to_owned(),
            Means::SameAsModel => {
                format!("no effect with the model's own path; else refused: {OTHER_TOKENIZER}")
            }
            Means::Layers => {
                "0 is `--device cpu`; else no effect: a model is wholly on its device".to_owned()
            }
        };
        writeln!(text, "| {of} | `{names}` | {here} |").unwrap_or(());
    }
    for alias in VALUES {
        let here = match alias.means {
            ValueMeans::Same(ours) => format!("`{ours}`"),
            ValueMeans::Inactive(reason) => format!("no effect: {reason}"),
            ValueMeans::Refused(reason) => format!("refused: {reason}"),
        };
        writeln!(
            text,
            "| values | `{} {}` | {here} |",
            alias.flag, alias.value
        )
        .unwrap_or(());
    }
    text
}
