//! A rendered report as one HTML page that needs no other file: pictures, style and the sorting
//! of tables are inside. Links to other reports lead to their pages.
//!
//! Pages are passed on, and hold text that others wrote. Of HTML in the Markdown only the tags pass
//! that the templates use ([`TEMPLATE_TAGS`], folds); the rest is shown as text. A policy in the page's head
//! lets the browser run and apply nothing but the page's own script and style, by their hashes.

use std::collections::BTreeMap;

use minijinja::Environment;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use pulldown_cmark::{
    CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, TextMergeStream, html,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

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
///
/// # Errors
///
/// [`ReportError::Template`] if the page's template cannot be rendered.
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
    let [style, script] = [STYLE, SCRIPT].map(|text| format!("\n{}\n", text.trim_end()));
    let title = contents.first().map_or("", |e: &Entry| &e.text);
    let context = minijinja::context! {
        lang => lang.code(),
        title => title,
        home => format!("index.{}.html", lang.code()),
        home_title => lang.pick("모든 보고서", "All reports"),
        contents_title => lang.pick("차례", "Contents"),
        contents => Value::from(Serde(&contents)),
        style_hash => policy_hash(&style),
        style => style,
        script_hash => policy_hash(&script),
        script => script,
        body => body.trim_end(),
    };
    let page = env
        .get_template("page")
        .and_then(|template| template.render(context));
    page.map(|text| text + "\n").map_err(problem)
}

/// What a policy calls the content of an element by: its SHA-256 in base64.
fn policy_hash(content: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut hash = String::from("sha256-");
    for bytes in Sha256::digest(content).chunks(3) {
        let bits = (0..3).fold(0, |bits, i| {
            bits << 8 | u32::from(bytes.get(i).copied().unwrap_or(0))
        });
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize];
            hash.push(if i <= bytes.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    hash
}

/// The HTML that templates write into the Markdown.
const TEMPLATE_TAGS: [&str; 3] = ["<sub>", "</sub>", "<br>"];

/// A line that opens or closes a fold, as templates write it: `<details>`, `</details>`, or
/// `<summary>` with plain text. None for any other HTML.
fn fold(line: &str) -> Option<String> {
    match line.trim() {
        "<details>" => Some("<details class=\"fold\">\n".to_owned()),
        "</details>" => Some("</details>\n".to_owned()),
        other => {
            let text = other
                .strip_prefix("<summary>")?
                .strip_suffix("</summary>")?;
            (!text.contains('<')).then(|| format!("<summary>{text}</summary>\n"))
        }
    }
}

/// Where links of a report may lead: another report, a place in this one, the web.
fn is_harmless(link: &str) -> bool {
    match link.split_once(':') {
        None => true,
        Some((scheme, _)) => ["http", "https"].contains(&scheme) || scheme.contains(['/', '#']),
    }
}

/// Table cells of at most this many characters never break.
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
            // No page loads a picture from elsewhere: its description stays.
            Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => {}
            Event::Html(html) => match fold(&html) {
                Some(fold) => out.push(Event::Html(fold.into())),
                None => out.push(Event::Text(html)),
            },
            Event::InlineHtml(html) if !TEMPLATE_TAGS.contains(&&*html) => {
                if let Some((_, _, text)) = &mut heading {
                    text.push_str(&html);
                }
                out.push(Event::Text(html));
            }
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
                dest_url: if is_harmless(&dest_url) {
                    to_page(dest_url)
                } else {
                    "#".into()
                },
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
    fn markup_that_no_template_wrote_is_text() {
        let markdown = "# <b>a</b> </title>\n\n<script>alert(1)</script>\n\nx <img src=x onerror=alert(1)><br>y\n\n[z](javascript:alert(1)) ![p](http://h/p.png) [w](b.ko.md) <sub>n</sub>\n";
        let html = page(markdown, &BTreeMap::new(), Lang::En).unwrap();
        let body = html.split("<main>").nth(1).unwrap();
        let body = body.split("</main>").next().unwrap();
        for tag in ["<script", "<img", "<b>", "javascript:"] {
            assert!(!body.contains(tag), "{body}");
        }
        assert!(
            body.contains("&lt;script&gt;alert(1)&lt;/script&gt;"),
            "{body}"
        );
        assert!(
            body.contains("<br>y") && body.contains("<sub>n</sub>"),
            "{body}"
        );
        assert!(
            body.contains("href=\"#\"") && body.contains("href=\"b.ko.html\""),
            "{body}"
        );
        assert!(html.contains("<title>&lt;b&gt;a"), "{html}");
    }

    #[test]
    fn details_fold_and_nothing_else_passes() {
        let markdown = "<details>\n<summary>a &amp; b</summary>\n\n| a |\n|---|\n| 1 |\n\n</details>\n\n<details open>\nx\n</details>\n\n<summary><b>c</b></summary>\n";
        let html = page(markdown, &BTreeMap::new(), Lang::En).unwrap();
        let body = html.split("<main>").nth(1).unwrap();
        assert!(
            body.contains("<details class=\"fold\">\n<summary>a &amp; b</summary>"),
            "{body}"
        );
        assert_eq!(body.matches("<details").count(), 1, "{body}");
        assert!(
            body.contains("&lt;details open&gt;") && !body.contains("<b>"),
            "{body}"
        );
    }

    #[test]
    fn the_policy_names_the_style_and_script_that_the_page_holds() {
        assert_eq!(
            policy_hash("alert('Hello, world.');"),
            "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng="
        );
        let html = page("# a\n", &BTreeMap::new(), Lang::En).unwrap();
        let between = |open: &str, close: &str| {
            let inside = html.split(open).nth(1).unwrap();
            inside.split(close).next().unwrap().to_owned()
        };
        let policy = between("Content-Security-Policy\" content=\"", "\">");
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
        for (open, close) in [("<style>", "</style>"), ("<script>", "</script>")] {
            assert!(
                policy.contains(&policy_hash(&between(open, close))),
                "{policy}"
            );
            assert_eq!(html.matches(open).count(), 1);
        }
        assert!(!html.contains("style=\""), "{html}");
    }

    /// The rules of the style by what they stand in: `""`, or a media query.
    fn rules() -> Vec<(String, String, String)> {
        let (mut rules, mut media, mut rest) = (Vec::new(), String::new(), STYLE);
        while let Some(end) = rest.find(['{', '}']) {
            let head = rest[..end].trim().to_owned();
            if rest[end..].starts_with('}') {
                media.clear();
                rest = &rest[end + 1..];
                continue;
            }
            rest = &rest[end + 1..];
            if head.starts_with("@media") {
                media = head;
                continue;
            }
            let close = rest.find('}').expect("a rule ends");
            rules.push((media.clone(), head, rest[..close].trim().to_owned()));
            rest = &rest[close + 1..];
        }
        rules
    }

    fn declarations(body: &str) -> BTreeMap<&str, &str> {
        body.split(';')
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect()
    }

    #[test]
    fn every_colour_is_a_variable_that_dark_readers_have_too() {
        let rules = rules();
        let root = |media: &str| -> BTreeMap<&str, &str> {
            let rule = rules
                .iter()
                .find(|(m, head, _)| m == media && head == ":root");
            declarations(&rule.expect("a :root").2)
        };
        let light = root("");
        let dark = root("@media (prefers-color-scheme: dark)");
        let variables = |of: &BTreeMap<&str, &str>| -> Vec<String> {
            let names = of.keys().filter(|name| name.starts_with("--"));
            names.map(ToString::to_string).collect()
        };
        assert_eq!(variables(&light), variables(&dark));
        assert!(
            variables(&light)
                .iter()
                .all(|name| light[name.as_str()] != dark[name.as_str()])
        );
        assert_eq!(light["color-scheme"], "light dark");
        for (_, head, body) in rules.iter().filter(|(_, head, _)| head != ":root") {
            assert!(
                !body.contains('#'),
                "{head} has a colour of its own: {body}"
            );
            for used in body.split("var(").skip(1) {
                let name = used.split(')').next().unwrap();
                assert!(light.contains_key(name), "{head} uses {name}");
            }
        }
    }

    /// What is wider than a phone scrolls in a box of its own; nothing else has a width that a phone
    /// does not.
    #[test]
    fn nothing_makes_a_narrow_page_scroll_sideways() {
        let rules = rules();
        let of = |selector: &str| -> BTreeMap<&str, &str> {
            let rule = rules
                .iter()
                .find(|(media, head, _)| media.is_empty() && head == selector);
            declarations(&rule.expect("a rule").2)
        };
        assert_eq!(
            (of(".scroll")["display"], of(".scroll")["overflow-x"]),
            ("block", "auto")
        );
        assert_eq!(of("pre")["overflow-x"], "auto");
        assert_eq!(of("body")["overflow-wrap"], "anywhere");
        assert_eq!(
            (of(".chart")["width"], of(".chart")["height"]),
            ("100%", "auto")
        );
        for (_, head, body) in &rules {
            let declared = declarations(body);
            assert!(
                !declared.contains_key("min-width") || head == "th, td",
                "{head}"
            );
            let width = declared.get("width").copied().unwrap_or("100%");
            assert_eq!(width, "100%", "{head}");
        }
        assert!(PAGE.contains("width=device-width, initial-scale=1"));
        let markdown = "| a |\n|---|\n| b |\n\n![c](c.svg)\n";
        let charts =
            BTreeMap::from([("c.svg".to_owned(), "<svg class=\"chart\"></svg>".to_owned())]);
        let html = page(markdown, &charts, Lang::En).unwrap();
        for wide in ["<table>", "<svg"] {
            let before = html.split(wide).next().unwrap();
            assert!(before.ends_with("class=\"scroll\">"), "{wide}");
            assert_eq!(html.matches(wide).count(), 1);
        }
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let html = page("# a\n", &BTreeMap::new(), Lang::En).unwrap();
        for outside in ["http://", "https://", "src=", "<link", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
