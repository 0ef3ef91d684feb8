//! From what plotters writes to a file: shorter, and in the reader's colours.
//!
//! Lines and letters are drawn in one marked colour that becomes `currentColor`, and series in colours
//! that become CSS variables, `--c0` and on. As a file the picture follows the reader's light or dark
//! setting by itself; in a page it takes the page's.

use std::fmt::Write as _;
use std::sync::LazyLock;

use plotters::style::RGBColor;

use crate::render::outside::one_line;

/// Stands for the colour of text until the file is finished.
pub const INK: RGBColor = RGBColor(1, 2, 3);

/// A series' colour on white and on black.
#[derive(Debug, Clone, Copy)]
pub struct Colour {
    pub light: RGBColor,
    pub dark: RGBColor,
}

const fn colour(light: RGBColor, dark: RGBColor) -> Colour {
    Colour { light, dark }
}

/// Okabe and Ito's colours, told apart by readers with any colour vision; on black the darker ones are
/// lighter.
pub const PALETTE: [Colour; 7] = [
    colour(RGBColor(0, 114, 178), RGBColor(75, 163, 224)),
    colour(RGBColor(230, 159, 0), RGBColor(240, 176, 48)),
    colour(RGBColor(0, 158, 115), RGBColor(38, 190, 146)),
    colour(RGBColor(204, 121, 167), RGBColor(224, 148, 190)),
    colour(RGBColor(86, 180, 233), RGBColor(140, 206, 245)),
    colour(RGBColor(213, 94, 0), RGBColor(240, 125, 45)),
    colour(RGBColor(150, 150, 150), RGBColor(175, 175, 175)),
];

fn hex(RGBColor(r, g, b): RGBColor) -> String {
    format!("#{r:02X}{g:02X}{b:02X}")
}

/// `--c0:#0072B2;--c1:…`, as [`STYLE`] and `page.css` have them.
fn variables(of: fn(&Colour) -> RGBColor) -> String {
    let mut text = String::new();
    for (i, colour) in PALETTE.iter().enumerate() {
        // Writing into a String cannot fail.
        let _ = write!(text, "--c{i}:{};", hex(of(colour)));
    }
    text
}

/// Only a picture by itself uses it: a page brings its own (see `page.css`).
static STYLE: LazyLock<String> = LazyLock::new(|| {
    let (light, dark) = (variables(|c| c.light), variables(|c| c.dark));
    format!(
        "<style>.chart{{color:#1f2328;background:#fff;{light}}}\
         @media (prefers-color-scheme:dark){{.chart{{color:#d8dee6;background:#14181d;{dark}}}}}</style>"
    )
});

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
    for (i, colour) in PALETTE.iter().enumerate() {
        let from = format!("\"{}\"", hex(colour.light));
        out = out.replace(&from, &format!("\"var(--c{i})\""));
    }
    let head =
        format!("<svg class=\"chart\" role=\"img\" fill=\"currentColor\" font-family=\"{FONT}\" ");
    let out = out.replacen("<svg ", &head, 1);
    let title = format!("<title>{}</title>", escaped(&one_line(alt)));
    match out.find('>') {
        Some(end) => format!("{}{title}{}{}\n", &out[..=end], *STYLE, &out[end + 1..]),
        None => out,
    }
}

/// The picture as part of a page that has its own style for `.chart`.
pub fn inline(svg: &str) -> String {
    svg.replacen(STYLE.as_str(), "", 1).trim_end().to_owned()
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

    #[test]
    fn series_have_the_readers_colours() {
        let raw = "<svg width=\"6\">\n<circle fill=\"#0072B2\" stroke=\"#D55E00\"/>\n</svg>";
        let svg = finish(raw, "a");
        assert!(
            svg.contains("<circle fill=\"var(--c0)\" stroke=\"var(--c5)\"/>"),
            "{svg}"
        );
        assert!(svg.contains("--c0:#0072B2;") && svg.contains("--c0:#4BA3E0;"));
    }

    /// A page has the colours of the pictures in it, on white and on black.
    #[test]
    fn the_pages_style_has_the_same_colours() {
        let style = include_str!("../../templates/page/page.css");
        let packed: String = style.split_whitespace().collect();
        let (light, dark) = packed.split_once("prefers-color-scheme:dark").unwrap();
        assert!(light.contains(&variables(|c| c.light)), "{light}");
        assert!(dark.contains(&variables(|c| c.dark)), "{dark}");
    }
}
