//! Names of GGUF files: parts of one model, and quantisations.

use std::collections::BTreeMap;

/// `name-00002-of-00005.gguf`, as `llama-gguf-split` writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    /// The name before the numbers.
    stem: String,
    /// Starts at 1.
    pub number: u32,
    pub count: u32,
}

impl PartName {
    /// The name of another part.
    pub fn name(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }
}

/// Parses the name of a part of a model; `None` for any other name. Folders before the name stay
/// part of it.
pub fn part_of(name: &str) -> Option<PartName> {
    let rest = name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let numbered = |text: &str| {
        let is_number = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (number, count) = (numbered(number)?, numbered(count)?);
    (1..=count).contains(&number).then(|| PartName {
        stem: stem.to_owned(),
        number,
        count,
    })
}

/// The models among these names: each a file, or all parts of one in their order. Files without a
/// language model (vision projectors, importance matrices) and incomplete models are left out.
pub fn models<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in names {
        let base = name.rsplit('/').next().unwrap_or(name);
        let is_gguf = base.to_ascii_lowercase().ends_with(".gguf");
        if !is_gguf || base.starts_with("mmproj") || base.contains("imatrix") {
            continue;
        }
        let first = part_of(name).map_or_else(|| name.to_owned(), |part| part.name(1));
        found.entry(first).or_default().push(name.to_owned());
    }
    let mut models: Vec<Vec<String>> = found.into_values().collect();
    for parts in &mut models {
        parts.sort();
    }
    models.retain(|parts| part_of(&parts[0]).is_none_or(|part| part.count as usize == parts.len()));
    models
}

/// Whether the name contains this quantisation between separators, such as `Q4_K_M`.
pub fn has_quantisation(name: &str, quantisation: &str) -> bool {
    let (name, wanted) = (name.to_ascii_lowercase(), quantisation.to_ascii_lowercase());
    let ends = |byte: Option<&u8>| byte.is_none_or(|b| matches!(b, b'-' | b'.' | b'/'));
    let begins = |byte: Option<&u8>| ends(byte) || byte == Some(&b'_');
    let bytes = name.as_bytes();
    !wanted.is_empty()
        && name.match_indices(&wanted).any(|(at, _)| {
            let before = at.checked_sub(1).and_then(|at| bytes.get(at));
            begins(before) && ends(bytes.get(at + wanted.len()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_from_other_names() {
        let part = part_of("dir/Qwen2.5-32B-Q4_K_M-00002-of-00003.gguf").expect("a part");
        assert_eq!((part.number, part.count), (2, 3));
        assert_eq!(part.name(1), "dir/Qwen2.5-32B-Q4_K_M-00001-of-00003.gguf");
        for name in [
            "x.gguf",
            "x-1-of-2.gguf",
            "x-00000-of-00002.gguf",
            "x-00003-of-00002.gguf",
            "x-00001-of-00002.safetensors",
            "x-0000a-of-00002.gguf",
        ] {
            assert_eq!(part_of(name), None, "{name}");
        }
    }

    #[test]
    fn files_of_one_model_belong_together() {
        let names = [
            "b-00002-of-00002.gguf",
            "b-00001-of-00002.gguf",
            "a.gguf",
            "cut-00001-of-00002.gguf",
            "mmproj-a.gguf",
            "a.imatrix.gguf",
            "README.md",
        ];
        assert_eq!(
            models(names),
            [
                vec!["a.gguf"],
                vec!["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]
            ]
        );
    }

    #[test]
    fn quantisations_are_found_between_separators() {
        assert!(has_quantisation("Qwen3-8B-Q4_K_M.gguf", "q4_k_m"));
        assert!(has_quantisation("model.Q8_0.gguf", "Q8_0"));
        assert!(has_quantisation("Q4_K_M/x-00001-of-00002.gguf", "Q4_K_M"));
        assert!(!has_quantisation("Qwen3-8B-IQ4_XS.gguf", "Q4_XS"));
        assert!(!has_quantisation("Qwen3-8B-Q4_K_M.gguf", "Q4_K"));
        assert!(!has_quantisation("Qwen3-8B-Q4_K_M.gguf", ""));
    }
}
