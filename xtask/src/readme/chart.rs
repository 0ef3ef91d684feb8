//! The README's chart: decode speed of one sequence by batch size, as grouped bars in SVG. Text and
//! axes take the colour of a light or dark page.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::figures::{Case, Figures};

const BATCHES: [u64; 6] = [1, 8, 16, 20, 32, 64];
const COLOURS: [&str; 3] = ["#0f8b8d", "#e0a030", "#8a93a6"];

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 44.0;
/// Tokens a second between two lines of the grid.
const GRID_STEP: f64 = 40.0;
/// Of a group's width, what its bars take.
const FILLED: f64 = 0.78;

pub fn render(sides: &[(&str, Figures)]) -> Result<String> {
    let per_sequence = |figures: &Figures, name: &str, batch: u64| {
        let all = figures.get(&Case::Decode { batch });
        all.map(|all| all / batch as f64)
            .with_context(|| format!("{name} has no decode of batch {batch}"))
    };
    let mut highest: f64 = 0.0;
    for (name, figures) in sides {
        for batch in BATCHES {
            highest = highest.max(per_sequence(figures, name, batch)?);
        }
    }
    let n_lines = (highest / GRID_STEP).ceil();
    let plot_height = HEIGHT - TOP - BOTTOM;
    let y_of = |value: f64| TOP + plot_height * (1.0 - value / (n_lines * GRID_STEP));

    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Decode speed of one sequence by batch size">
<style>text{{font:12px sans-serif;fill:#3a3f47}}.t{{font-size:14px;font-weight:600}}.n{{font-size:10px}}line{{stroke:#8a93a6;stroke-opacity:.35}}@media(prefers-color-scheme:dark){{text{{fill:#d5d9e0}}}}</style>
<text class="t" x="{LEFT}" y="18">Decode speed of one sequence, tokens per second (higher is better)</text>
"#
    );
    for (index, (name, _)) in sides.iter().enumerate() {
        let x = LEFT + index as f64 * 130.0;
        writeln!(
            svg,
            r#"<rect x="{x:.0}" y="29" width="11" height="11" fill="{}"/><text x="{:.0}" y="39">{name}</text>"#,
            COLOURS[index % COLOURS.len()],
            x + 16.0
        )?;
    }
    for line in 0..=n_lines as u32 {
        let value = f64::from(line) * GRID_STEP;
        let y = y_of(value);
        writeln!(
            svg,
            r#"<line x1="{LEFT}" y1="{y:.1}" x2="{:.0}" y2="{y:.1}"/><text x="{:.0}" y="{:.1}" text-anchor="end">{value:.0}</text>"#,
            WIDTH - RIGHT,
            LEFT - 8.0,
            y + 4.0
        )?;
    }
    let group_width = (WIDTH - LEFT - RIGHT) / BATCHES.len() as f64;
    let bar_width = group_width * FILLED / sides.len() as f64;
    for (group, batch) in BATCHES.into_iter().enumerate() {
        let from = LEFT + group_width * (group as f64 + (1.0 - FILLED) / 2.0);
        for (index, (name, figures)) in sides.iter().enumerate() {
            let value = per_sequence(figures, name, batch)?;
            let (x, y) = (from + bar_width * index as f64, y_of(value));
            writeln!(
                svg,
                r#"<rect x="{x:.1}" y="{y:.1}" width="{:.1}" height="{:.1}" fill="{}"/><text class="n" x="{:.1}" y="{:.1}" text-anchor="middle">{value:.0}</text>"#,
                bar_width - 2.0,
                TOP + plot_height - y,
                COLOURS[index % COLOURS.len()],
                x + bar_width / 2.0 - 1.0,
                y - 4.0
            )?;
        }
        writeln!(
            svg,
            r#"<text x="{:.1}" y="{:.0}" text-anchor="middle">batch {batch}</text>"#,
            from + group_width * FILLED / 2.0,
            HEIGHT - BOTTOM + 20.0
        )?;
    }
    writeln!(
        svg,
        r#"<text class="n" x="{LEFT}" y="{:.0}">One NVIDIA H200, Qwen3-32B-AWQ's shapes with random weights, prompts of 128 tokens, without HTTP</text>"#,
        HEIGHT - 6.0
    )?;
    svg.push_str("</svg>\n");
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_high_as_its_figure_per_sequence() {
        let figures = |per_sequence: f64| -> Figures {
            let all = |batch| (Case::Decode { batch }, per_sequence * batch as f64);
            BATCHES.map(all).into()
        };
        let svg = render(&[("ours", figures(80.0)), ("peer", figures(40.0))]).unwrap();
        // Two lines of the grid, so the plot's 220 are 80 tokens a second.
        assert_eq!(svg.matches(r#"height="220.0""#).count(), BATCHES.len());
        assert_eq!(svg.matches(r#"height="110.0""#).count(), BATCHES.len());
        assert!(svg.len() < 20_000);
    }

    #[test]
    fn a_missing_batch_is_named() {
        let message = render(&[("ours", Figures::new())]).unwrap_err().to_string();
        assert_eq!(message, "ours has no decode of batch 1");
    }
}
