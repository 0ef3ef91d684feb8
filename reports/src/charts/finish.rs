//! From what plotters writes to a file: shorter, and in the reader's colours.
//!
//! Lines and letters are drawn in one marked colour that becomes `currentColor`. As a file the
//! picture follows the reader's light or dark setting by itself; in a page it takes the page's.

use plotters::style::RGBColor;

use crate::render::outside::one_line;

/// Stands for the colour of text until the file is finished.
pub const INK: RGBColor = RGBColor(1, 2, 3);

/// Only a picture by itself uses it: a page brings its own (see `page.css`).
const STYLE: &str = "<style>.chart{color:#1f2328;background:#fff}\
@media (prefers-color-scheme:dark){.chart{color:#d8dee6;background:#14181d}}</style>";

const FONT: &str = "system-ui,'Noto Sans KR','Apple SD Gothic Neo','Malgun Gothic',sans-serif";

/// `alt` becomes the picture's title.
pub fn finish(svg: &str, alt: &str) -> String {
    let mut out = String::with_capacity(svg.len());
    for line in svg.lines() {
        out.push_str(&one_line(line.trim()));
    }
    for (from, to) in [
        ("\"#010203\"", "\"currentColor\""),
        (" font-family=\"sans-serif\"", ""),
        (" opacity=\"1\"", ""),
        (" stroke-width=\"1\"", ""),
        (" fill=\"currentColor\"", ""),
    ] {
        out = out.replace(from, to);
    }
    let head =
        format!("<svg class=\"chart\" role=\"img\" fill=\"currentColor\" font-family=\"{FONT}\" ");
    let out = out.replacen("<svg ", &head, 1);
    let title = format!("<title>{}</title>", escaped(&one_line(alt)));
    match out.find('>') {
        Some(end) => format!("{}{title}{STYLE}{}\n", &out[..=end], &out[end + 1..]),
        None => out,
    }
}

/// The picture as part of a page that has its own style for `.chart`.
pub fn inline(svg: &str) -> String {
    svg.replacen(STYLE, "", 1).trim_end().to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_picture_has_a_title_and_no_fixed_ink() {
        let raw = "<svg width=\"6\" xmlns=\"x\">\n<text font-family=\"sans-serif\" opacity=\"1\" fill=\"#010203\">\n10\n</text>\n</svg>";
        let svg = finish(raw, "a < b");
        assert!(svg.starts_with("<svg class=\"chart\""), "{svg}");
        assert!(
            svg.contains("<title>a &lt; b</title>") && svg.contains("<text>10</text>"),
            "{svg}"
        );
        assert!(!inline(&svg).contains("<style>"));
    }
}
