//! Merges several models' metrics into one text: Prometheus requires all samples of a family
//! together, under one `HELP` and one `TYPE`. Each sample already carries its model's name as a
//! label.

/// Merges texts in the exposition format, with families in order of first appearance.
pub fn merge(texts: &[String]) -> String {
    // Header lines and samples of a family; there are a few dozen families.
    let mut families: Vec<(&str, Vec<&str>, Vec<&str>)> = Vec::new();
    for text in texts {
        let mut at = None;
        for line in text.lines() {
            let heading = line
                .strip_prefix("# HELP ")
                .or_else(|| line.strip_prefix("# TYPE "));
            if let Some(name) = heading.and_then(|rest| rest.split(' ').next()) {
                let found = families.iter().position(|(known, ..)| *known == name);
                let i = found.unwrap_or_else(|| {
                    families.push((name, Vec::new(), Vec::new()));
                    families.len() - 1
                });
                if !families[i].1.contains(&line) {
                    families[i].1.push(line);
                }
                at = Some(i);
            } else if let Some(i) = at {
                families[i].2.push(line);
            }
        }
    }
    let mut merged = String::with_capacity(texts.iter().map(String::len).sum());
    for (_, headings, samples) in families {
        for line in headings.into_iter().chain(samples) {
            merged.push_str(line);
            merged.push('\n');
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn one_text_stays_as_it_is() {
        let text = Metrics::new("a").render();
        assert_eq!(merge(std::slice::from_ref(&text)), text);
    }

    #[test]
    fn a_family_has_one_heading_and_the_samples_of_all_models() {
        let texts = [Metrics::new("a").render(), Metrics::new("b").render()];
        let merged = merge(&texts);
        let n_lines =
            |text: &str, start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(n_lines(&merged, "# TYPE "), n_lines(&texts[0], "# TYPE "));
        assert_eq!(
            merged.lines().count(),
            2 * texts[0].lines().count() - 2 * n_lines(&merged, "# TYPE ")
        );
        let running: Vec<&str> = merged
            .lines()
            .skip_while(|line| *line != "# TYPE vllm:num_requests_running gauge")
            .take(3)
            .collect();
        assert_eq!(
            running[1..],
            [
                "vllm:num_requests_running{engine=\"0\",model_name=\"a\"} 0",
                "vllm:num_requests_running{engine=\"0\",model_name=\"b\"} 0"
            ]
        );
    }
}
