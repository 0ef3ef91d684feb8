//! A rendered report as one HTML page that needs no other file: pictures, style and the sorting
//! of tables are inside. Links to other reports lead to their pages.

use std::collections::BTreeMap;

use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use pulldown_cmark::{
    CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, TextMergeStream, html,
};
use serde::Serialize;

use crate::ReportError;
use crate::charts;
use crate::lang::Lang;

const PAGE: &str = include_str!("../../templates/page/page.html.j2");
const STYLE: &str = include_str!("../../templates/page/page.css");
const SCRIPT: &str = include_str!("../../templates/page/page.js");

#[derive(Debug, Serialize)]
struct Entry {
    level: u8,
    id: String,
    text: String,
}

/// `charts`: SVG documents by the path under which the Markdown shows them.
pub fn page(
    markdown: &str,
    charts: &BTreeMap<String, String>,
    lang: Lang,
) -> Result<String, ReportError> {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    let mut contents = Vec::new();
    let parser = TextMergeStream::new(Parser::new_ext(markdown, options));
    let events = converted(parser, charts, &mut contents);
    let mut body = String::new();
    html::push_html(&mut body, events.into_iter());
    let problem = |e: minijinja::Error| ReportError::Template {
        template: "page.html.j2".to_owned(),
        message: format!("{e:#}"),
    };
    let mut env = Environment::new();
    let no_empty_lines = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    env.set_syntax(no_empty_lines.map_err(problem)?);
    env.add_template("page", PAGE).map_err(problem)?;
    let title = contents.first().map_or("", |e: &Entry| &e.text);
    let context = minijinja::context! {
        lang => lang.code(),
        title => title,
        home => format!("index.{}.html", lang.code()),
        home_title => lang.pick("모든 보고서", "All reports"),
        contents_title => lang.pick("차례", "Contents"),
        contents => Value::from(Serde(&contents)),
        style => STYLE.trim_end(),
        script => SCRIPT.trim_end(),
        body => body.trim_end(),
    };
    let page = env
        .get_template("page")
        .and_then(|template| template.render(context));
    page.map(|text| text + "\n").map_err(problem)
}

/// Table cells of so many characters never break.
const SHORT_CELL: usize = 24;
/// Units that stay on one line with their number.
const UNITS: [&str; 9] = [
    "ms", "tok/s", "req/s", "%", "s", "GiB", "MiB", "KiB", "GB/s",
];

/// Puts pictures in place, tables into boxes that scroll, and names to headings; keeps short cells
/// and units on one line.
fn converted<'a>(
    parser: impl Iterator<Item = Event<'a>>,
    charts: &BTreeMap<String, String>,
    contents: &mut Vec<Entry>,
) -> Vec<Event<'a>> {
    let mut out = Vec::new();
    // Text of the heading or picture being read.
    let mut heading: Option<(HeadingLevel, usize, String)> = None;
    let mut in_picture = false;
    // Where the cell being read begins.
    let mut cell = 0;
    for event in parser {
        match event {
            Event::Start(Tag::Image { ref dest_url, .. }) if charts.contains_key(&**dest_url) => {
                let svg = charts.get(&**dest_url).map(|svg| charts::inline(svg));
                let boxed = format!("<span class=\"scroll\">{}</span>", svg.unwrap_or_default());
                out.push(Event::InlineHtml(boxed.into()));
                in_picture = true;
            }
            Event::End(TagEnd::Image) if in_picture => in_picture = false,
            _ if in_picture => {}
            Event::Start(Tag::Heading { level, .. }) => {
                heading = Some((level, out.len(), String::new()));
                out.push(event);
            }
            Event::End(TagEnd::Heading(_)) => {
                if let Some((level, start, text)) = heading.take() {
                    let id = format!("s{}", contents.len() + 1);
                    out[start] = Event::Start(Tag::Heading {
                        level,
                        id: Some(id.clone().into()),
                        classes: Vec::new(),
                        attrs: Vec::new(),
                    });
                    contents.push(Entry {
                        level: level as u8,
                        id,
                        text,
                    });
                }
                out.push(event);
            }
            Event::Start(Tag::Table(_)) => {
                out.push(Event::Html("<div class=\"scroll\">".into()));
                out.push(event);
            }
            Event::End(TagEnd::Table) => {
                out.push(event);
                out.push(Event::Html("</div>\n".into()));
            }
            Event::Start(Tag::TableCell) => {
                out.push(event);
                cell = out.len();
            }
            Event::End(TagEnd::TableCell) => {
                if n_characters(&out[cell..]) <= SHORT_CELL {
                    out.insert(cell, Event::InlineHtml("<span class=\"short\">".into()));
                    out.push(Event::InlineHtml("</span>".into()));
                }
                out.push(event);
            }
            Event::Start(Tag::Link {
                link_type,
                dest_url,
                title,
                id,
            }) => out.push(Event::Start(Tag::Link {
                link_type,
                dest_url: to_page(dest_url),
                title,
                id,
            })),
            event => {
                if let (Some((_, _, text)), Event::Text(piece) | Event::Code(piece)) =
                    (&mut heading, &event)
                {
                    text.push_str(piece);
                }
                out.push(match event {
                    Event::Text(text) => Event::Text(with_units_kept(text)),
                    other => other,
                });
            }
        }
    }
    out
}

/// Of the text; a line break inside counts as too many.
fn n_characters(events: &[Event<'_>]) -> usize {
    let length = |event: &Event<'_>| match event {
        Event::Text(text) | Event::Code(text) => text.chars().count(),
        Event::InlineHtml(_) => SHORT_CELL + 1,
        _ => 0,
    };
    events.iter().map(length).sum()
}

/// `85.2 ms [84.9 ms, 87.2 ms]` with spaces that do not break, but for the one before the interval.
fn with_units_kept(text: CowStr<'_>) -> CowStr<'_> {
    const KEPT: char = '\u{a0}';
    let mut out = String::with_capacity(text.len());
    let mut rest = &*text;
    let mut in_brackets = false;
    while let Some(space) = rest.find(' ') {
        let (before, after) = (&rest[..space], &rest[space + 1..]);
        if let Some(bracket) = before.rfind(['[', ']']) {
            in_brackets = before[bracket..].starts_with('[');
        }
        let word = after.split([' ', ',', ']', ')', ';']).next();
        let is_unit = before.ends_with(|c: char| c.is_ascii_digit())
            && UNITS.contains(&word.unwrap_or_default());
        let in_interval = in_brackets && before.ends_with(',');
        out.push_str(before);
        out.push(if is_unit || in_interval { KEPT } else { ' ' });
        rest = after;
    }
    if out.contains(KEPT) {
        out.push_str(rest);
        return out.into();
    }
    text
}

fn to_page(link: CowStr<'_>) -> CowStr<'_> {
    match link.strip_suffix(".md") {
        Some(stem) if !stem.contains("://") => format!("{stem}.html").into(),
        _ => link,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_its_pictures_and_boxes_its_tables() {
        let charts = BTreeMap::from([(
            "charts/a.svg".to_owned(),
            "<svg><title>A</title></svg>\n".to_owned(),
        )]);
        let markdown = "# 제목 `x`\n\n![A](charts/a.svg)\n\n| a | b |\n|---|---|\n| 1 | <2 |\n\n[other](b.ko.md)\n";
        let html = page(markdown, &charts, Lang::Ko).unwrap();
        assert!(html.contains("<title>제목 x</title>"), "{html}");
        assert!(html.contains("<svg><title>A</title></svg>") && !html.contains("<img"));
        assert!(html.contains("<div class=\"scroll\"><table>"));
        assert!(html.contains("&lt;2") && html.contains("href=\"b.ko.html\""));
        assert!(html.contains("<h1 id=\"s1\">"));
    }

    #[test]
    fn short_cells_and_units_stay_on_one_line() {
        let long = "a text of more than twenty-four characters, 5 ms long";
        let interval = "85.2 ms [84.9 ms, 87.2 ms]";
        let markdown =
            format!("| a |\n|---|\n| 03-balanced-v2 |\n| {long} |\n| b<br>c |\n| {interval} |\n");
        let html = page(&markdown, &BTreeMap::new(), Lang::En).unwrap();
        assert!(html.contains("<td><span class=\"short\">03-balanced-v2</span></td>"));
        assert!(
            html.contains("<td>a text of more than twenty-four characters, 5\u{a0}ms long</td>")
        );
        assert!(html.contains("<td>b<br>c</td>"), "{html}");
        assert!(
            html.contains("85.2\u{a0}ms [84.9\u{a0}ms,\u{a0}87.2\u{a0}ms]"),
            "{html}"
        );
        let kept = |text: &'static str| with_units_kept(text.into()).into_string();
        assert_eq!(
            kept("85.2 ms [84.9 ms, 87.2 ms]"),
            "85.2\u{a0}ms [84.9\u{a0}ms,\u{a0}87.2\u{a0}ms]"
        );
        assert_eq!(
            kept("+7.4 % better, n 20 s"),
            "+7.4\u{a0}% better, n 20\u{a0}s"
        );
        assert_eq!(kept("version 2 msg"), "version 2 msg");
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let html = page("# a\n", &BTreeMap::new(), Lang::En).unwrap();
        for outside in ["http://", "https://", "src=", "<link", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
