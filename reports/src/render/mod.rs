//! Templates and how they are filled: strict, deterministic, Korean.
//!
//! Templates come with the program, so a report always matches the code that computed it. A name
//! that the context lacks, a null or a NaN where a figure belongs, fails the render.

pub mod assemble;
pub mod compare;
mod configuration;
pub mod context;
pub mod format;
mod seed_figures;
pub mod tables;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior};

use crate::ReportError;
use context::ReportContext;

/// A report that can be rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// As in `--only`, and the file's name without its endings.
    pub name: &'static str,
    template: &'static str,
}

const PARTS: (&str, &str) = (
    "parts.ko.md.j2",
    include_str!("../../templates/parts.ko.md.j2"),
);

/// All reports, in their order.
pub const REPORTS: &[Report] = &[
    Report {
        name: "00-final-performance-report",
        template: include_str!("../../templates/00-final-performance-report.ko.md.j2"),
    },
    Report {
        name: "01-comparison-with-vllm",
        template: include_str!("../../templates/01-comparison-with-vllm.ko.md.j2"),
    },
    Report {
        name: "02-optimization-results",
        template: include_str!("../../templates/02-optimization-results.ko.md.j2"),
    },
    Report {
        name: "03-deployment-guide",
        template: include_str!("../../templates/03-deployment-guide.ko.md.j2"),
    },
    Report {
        name: "04-multi-model",
        template: include_str!("../../templates/04-multi-model.ko.md.j2"),
    },
];

impl Report {
    /// Finds a report by its name or the number in front of it.
    pub fn find(name: &str) -> Result<Self, ReportError> {
        let matches = |r: &&Report| r.name == name || r.name.split('-').next() == Some(name);
        REPORTS
            .iter()
            .find(matches)
            .copied()
            .ok_or_else(|| ReportError::UnknownReport {
                name: name.to_owned(),
                known: REPORTS
                    .iter()
                    .map(|r| r.name)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    pub fn file_name(&self) -> String {
        format!("{}.ko.md", self.name)
    }

    pub fn render(&self, context: &ReportContext) -> Result<String, ReportError> {
        render_text(
            &self.file_name(),
            self.template,
            Value::from(Serde(context)),
        )
    }
}

/// Renders one template with the filters and parts of the reports.
pub fn render_text(name: &str, template: &str, context: Value) -> Result<String, ReportError> {
    let problem = |e: minijinja::Error| ReportError::Template {
        template: name.to_owned(),
        message: format!("{e:#}"),
    };
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    let block_tags_leave_no_line = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    env.set_syntax(block_tags_leave_no_line.map_err(problem)?);
    format::register(&mut env);
    env.add_template(PARTS.0, PARTS.1).map_err(problem)?;
    env.add_template(name, template).map_err(problem)?;
    let text = env
        .get_template(name)
        .and_then(|t| t.render(context))
        .map_err(problem)?;
    Ok(tidied(&text))
}

/// At most one empty line in a row, no blanks at line ends, one newline at the end.
fn tidied(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len());
    let mut empty_before = true;
    for line in text.lines().map(str::trim_end) {
        if !(line.is_empty() && empty_before) {
            tidy.push_str(line);
            tidy.push('\n');
        }
        empty_before = line.is_empty();
    }
    format!("{}\n", tidy.trim_end())
}
