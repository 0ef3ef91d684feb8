//! Templates and how they are filled: strict and deterministic, one template a report and language.
//!
//! Templates come with the program, so a report always matches the code that computed it. A name
//! that the context lacks, a null or a NaN where a figure belongs, fails the render. Values are text,
//! never markup: [`outside`] escapes every one of them.

pub mod ablation;
pub mod assemble;
pub mod autoscaling;
pub mod card;
mod cautions;
mod comparable;
pub mod compare;
pub mod configuration;
pub mod context;
pub mod energy;
mod engines;
pub mod flag_effects;
pub mod format;
pub mod history;
pub mod last_verdicts;
pub mod load_curve;
mod load_words;
pub mod measured_a_a;
pub mod multi_model;
pub mod outside;
pub mod page;
pub mod reasons;
pub mod recommend;
pub mod seed_figures;
pub mod side_by_side;
pub mod slo;
pub mod sources;
mod states;
pub mod tables;
pub mod trust;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior};

use crate::ReportError;
use crate::lang::Lang;
use context::ReportContext;

/// A report that can be rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// As in `--only`, and the file's name without its endings.
    pub name: &'static str,
    title_ko: &'static str,
    title_en: &'static str,
    ko: &'static str,
    en: &'static str,
}

const PARTS_KO: &str = include_str!("../../templates/parts.ko.md.j2");
const PARTS_EN: &str = include_str!("../../templates/parts.en.md.j2");

macro_rules! report {
    ($name:literal, $title_ko:literal, $title_en:literal) => {
        Report {
            name: $name,
            title_ko: $title_ko,
            title_en: $title_en,
            ko: include_str!(concat!("../../templates/", $name, ".ko.md.j2")),
            en: include_str!(concat!("../../templates/", $name, ".en.md.j2")),
        }
    };
}

/// All reports, in their order.
pub const REPORTS: &[Report] = &[
    report!(
        "00-final-performance-report",
        "최종 성능 보고서",
        "Final performance report"
    ),
    report!(
        "01-comparison-with-vllm",
        "다른 엔진과의 성능 비교",
        "Comparison with other engines"
    ),
    report!(
        "02-optimization-results",
        "최적화 결과 보고서",
        "Optimisation results"
    ),
    report!("03-deployment-guide", "배포 가이드", "Deployment guide"),
    report!(
        "04-multi-model",
        "여러 모델의 성능 비교",
        "Comparison of models"
    ),
    report!(
        "seed-audit",
        "원문 보고서 감사",
        "Audit of the original reports"
    ),
    report!("index", "보고서와 실행 기록", "Reports and runs"),
];

/// Made only when asked for, because it simulates thousands of campaigns.
pub const TRUST: Report = report!(
    "verdict-trust",
    "판정을 얼마나 믿을 수 있는가",
    "How far the verdicts can be trusted"
);

impl Report {
    /// Finds a report by its name or the number in front of it.
    ///
    /// # Errors
    ///
    /// [`ReportError::UnknownReport`] with the names that there are.
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

    pub fn title(&self, lang: Lang) -> &'static str {
        lang.pick(self.title_ko, self.title_en)
    }

    /// Name of the Markdown file.
    pub fn file_name(&self, lang: Lang) -> String {
        format!("{}.{}.md", self.name, lang.code())
    }

    /// Name of the HTML page.
    pub fn page_name(&self, lang: Lang) -> String {
        format!("{}.{}.html", self.name, lang.code())
    }

    /// The report as Markdown.
    ///
    /// # Errors
    ///
    /// [`ReportError::Template`] if the template cannot be parsed or asks for what the context
    /// does not have.
    pub fn render(&self, context: &ReportContext) -> Result<String, ReportError> {
        render_text(
            &self.file_name(context.lang),
            context.lang.pick(self.ko, self.en),
            context.lang,
            Value::from(Serde(context)),
        )
    }
}

/// Renders one template with the filters and parts of the reports.
///
/// ```
/// use minijinja::context;
/// use reports::lang::Lang;
/// use reports::render::render_text;
///
/// let template = "{% for arm in arms %}\n- {{ arm }}\n{% endfor %}\n";
/// let text = render_text("example", template, Lang::En, context! { arms => ["a", "b"] })?;
/// assert_eq!(text, "- a\n- b\n");
/// assert!(render_text("example", "{{ unknown }}", Lang::En, context! {}).is_err());
/// # Ok::<(), reports::ReportError>(())
/// ```
///
/// # Errors
///
/// If the template does not compile, or uses a value that the context does not have.
pub fn render_text(
    name: &str,
    template: &str,
    lang: Lang,
    context: Value,
) -> Result<String, ReportError> {
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
    format::register(&mut env, lang);
    outside::register(&mut env);
    env.add_template("parts", lang.pick(PARTS_KO, PARTS_EN))
        .map_err(problem)?;
    env.add_template(name, template).map_err(problem)?;
    let text = env
        .get_template(name)
        .and_then(|t| t.render(context))
        .map_err(problem)?;
    Ok(tidied(&outside::resolve(&text)))
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
