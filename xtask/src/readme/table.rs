//! The README's table: a row a case, and the engine's speed over that of the faster peer.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::figures::{Case, Figures};

const CASES: [Case; 11] = [
    Case::Decode { batch: 1 },
    Case::Decode { batch: 8 },
    Case::Decode { batch: 16 },
    Case::Decode { batch: 20 },
    Case::Decode { batch: 32 },
    Case::Decode { batch: 64 },
    first_token(1, 128),
    first_token(1, 1024),
    first_token(8, 128),
    first_token(20, 128),
    first_token(64, 128),
];

const fn first_token(batch: u64, prompt_tokens: u64) -> Case {
    Case::FirstToken {
        batch,
        prompt_tokens,
    }
}

pub fn render(sides: &[(&str, Figures)]) -> Result<String> {
    let mut text = String::from("| |");
    for (name, _) in sides {
        write!(text, " {name} |")?;
    }
    text.push_str(" speed against the faster peer |\n|---|");
    text.push_str(&"---:|".repeat(sides.len() + 1));
    text.push('\n');
    for case in CASES {
        let values = sides
            .iter()
            .map(|(name, figures)| {
                let value = figures.get(&case).copied();
                value.with_context(|| format!("{name} has no {}", label(case)))
            })
            .collect::<Result<Vec<f64>>>()?;
        write!(text, "| {} |", label(case))?;
        for value in &values {
            write!(text, " {} |", number(case, *value))?;
        }
        let (ours, peers) = values.split_first().context("no side to show")?;
        writeln!(text, " {:.2}× |", speed_ratio(case, *ours, peers))?;
    }
    Ok(text)
}

/// Above 1 the engine is faster, in either unit.
fn speed_ratio(case: Case, ours: f64, peers: &[f64]) -> f64 {
    match case {
        Case::Decode { .. } => ours / peers.iter().copied().fold(f64::MIN, f64::max),
        Case::FirstToken { .. } => peers.iter().copied().fold(f64::MAX, f64::min) / ours,
    }
}

fn label(case: Case) -> String {
    match case {
        Case::Decode { batch } => format!("decode, batch {batch}, tokens/s"),
        Case::FirstToken {
            batch,
            prompt_tokens,
        } => format!(
            "first token, {batch} × {} tokens, ms",
            thousands(prompt_tokens)
        ),
    }
}

fn number(case: Case, value: f64) -> String {
    match case {
        Case::FirstToken { .. } if value < 100.0 => format!("{value:.1}"),
        Case::Decode { .. } | Case::FirstToken { .. } => thousands(value.round() as u64),
    }
}

/// `1,234`; no figure here has a million.
fn thousands(value: u64) -> String {
    match (value / 1000, value % 1000) {
        (0, rest) => rest.to_string(),
        (thousands, rest) => format!("{thousands},{rest:03}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(value: f64) -> Figures {
        CASES.iter().map(|case| (*case, value)).collect()
    }

    #[test]
    fn a_row_has_every_side_and_the_ratio_to_the_faster_peer() {
        let sides = [("ours", side(50.0)), ("a", side(25.0)), ("b", side(1040.4))];
        let text = render(&sides).unwrap();
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 2 + CASES.len());
        assert_eq!(
            rows[0],
            "| | ours | a | b | speed against the faster peer |"
        );
        assert_eq!(
            rows[2],
            "| decode, batch 1, tokens/s | 50 | 25 | 1,040 | 0.05× |"
        );
        assert_eq!(
            rows[9],
            "| first token, 1 × 1,024 tokens, ms | 50.0 | 25.0 | 1,040 | 0.50× |"
        );
    }

    #[test]
    fn a_missing_case_is_named() {
        let mut short = side(1.0);
        short.remove(&Case::Decode { batch: 16 });
        let message = render(&[("ours", side(1.0)), ("a", short)]).unwrap_err();
        assert_eq!(message.to_string(), "a has no decode, batch 16, tokens/s");
    }
}
