//! Selects the files of a repository that form the requested model.

use super::{HubModel, INDEX, SINGLE};
use crate::weights::gguf_names;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selection {
    /// `config.json`, its small files, and weights.
    Folder(WeightFiles),
    /// A GGUF model: one file, or all parts of one in their order.
    Gguf(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WeightFiles {
    /// The shards that the index names.
    Indexed,
    Single,
    /// There are none in a supported format; the message says what there is.
    Absent(String),
}

/// Selects among the names of a repository's files. An error lists what there is.
pub(super) fn select(model: &HubModel, listed: &[String]) -> Result<Selection, String> {
    let has = |name: &str| listed.iter().any(|listed| listed == name);
    let models = gguf_names::models(listed.iter().map(String::as_str));
    if let Some(file) = &model.file {
        let whole = models.iter().find(|parts| parts.contains(file));
        return match whole {
            Some(parts) => Ok(Selection::Gguf(parts.clone())),
            // A file of a kind excluded above, for example a projector.
            None if has(file) && gguf_names::part_of(file).is_none() => {
                Ok(Selection::Gguf(vec![file.clone()]))
            }
            None if has(file) => Err(format!("the repository lacks other parts of {file}")),
            None => Err(format!(
                "the repository has no {file}{}",
                offer(&models, "; it has ")
            )),
        };
    }
    if let Some(quantisation) = &model.quantisation {
        let of_it = |parts: &&Vec<String>| gguf_names::has_quantisation(&parts[0], quantisation);
        let found: Vec<_> = models.iter().filter(of_it).cloned().collect();
        return match found.as_slice() {
            [only] => Ok(Selection::Gguf(only.clone())),
            [] => Err(format!(
                "the repository has no {quantisation}{}",
                offer(&models, "; it has ")
            )),
            several => Err(format!(
                "{quantisation} is in the names of several models; name the file: {}",
                offer(several, "")
            )),
        };
    }
    let weights = if has(INDEX) {
        Some(WeightFiles::Indexed)
    } else {
        has(SINGLE).then_some(WeightFiles::Single)
    };
    match (has("config.json"), weights, models.as_slice()) {
        (true, Some(weights), _) => Ok(Selection::Folder(weights)),
        (_, _, [only]) => Ok(Selection::Gguf(only.clone())),
        (_, _, [_, _, ..]) => Err(format!(
            "the repository has several GGUF models; name one as org/name/FILE or \
             org/name:QUANTISATION: {}",
            offer(&models, "")
        )),
        (true, None, []) => Ok(Selection::Folder(WeightFiles::Absent(format!(
            "the repository has neither {SINGLE} nor {INDEX}{}",
            if listed.iter().any(|name| name.starts_with("pytorch_model")) {
                "; its weights are PyTorch files, which are not read"
            } else {
                ""
            }
        )))),
        (false, _, []) => Err(if has("adapter_config.json") {
            "the repository is a LoRA adapter, not a model; merge it into its base model".into()
        } else {
            "the repository has no config.json and no .gguf file".into()
        }),
    }
}

fn offer(models: &[Vec<String>], introduction: &str) -> String {
    const MOST: usize = 20;
    if models.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = models
        .iter()
        .take(MOST)
        .map(|parts| parts[0].as_str())
        .collect();
    let more = models.len().saturating_sub(MOST);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{introduction}{}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(wanted: &str, names: &[&str]) -> Result<Selection, String> {
        let model = HubModel::parse(wanted).expect(wanted);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        select(&model, &names)
    }

    fn gguf(names: &[&str]) -> Selection {
        Selection::Gguf(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn safetensors_come_before_gguf_files() {
        let names = ["config.json", SINGLE, "a-Q4_K_M.gguf"];
        assert_eq!(
            selected("o/n", &names),
            Ok(Selection::Folder(WeightFiles::Single))
        );
        let names = ["config.json", SINGLE, INDEX];
        assert_eq!(
            selected("o/n", &names),
            Ok(Selection::Folder(WeightFiles::Indexed))
        );
    }

    #[test]
    fn the_only_gguf_model_is_taken_and_of_several_one_has_to_be_named() {
        let one = ["config.json", "README.md", "a-Q4_K_M.gguf", "mmproj-a.gguf"];
        assert_eq!(selected("o/n", &one), Ok(gguf(&["a-Q4_K_M.gguf"])));
        let parts = ["b-00002-of-00002.gguf", "b-00001-of-00002.gguf"];
        let in_order = Ok(gguf(&["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]));
        assert_eq!(selected("o/n", &parts), in_order);
        assert_eq!(selected("o/n/b-00002-of-00002.gguf", &parts), in_order);
        let several = ["a-Q4_K_M.gguf", "a-Q8_0.gguf"];
        let error = selected("o/n", &several).expect_err("two");
        assert!(error.contains("a-Q4_K_M.gguf, a-Q8_0.gguf"), "{error}");
        assert_eq!(selected("o/n:q8_0", &several), Ok(gguf(&["a-Q8_0.gguf"])));
        for (wanted, expected) in [
            ("o/n:Q6_K", "no Q6_K; it has a-Q4_K_M.gguf"),
            ("o/n/b.gguf", "no b.gguf; it has a-Q4_K_M.gguf"),
        ] {
            let error = selected(wanted, &several).expect_err(wanted);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_is_no_model_is_said() {
        for (names, expected) in [
            (&["README.md"][..], "no config.json and no .gguf"),
            (&["adapter_config.json"], "LoRA adapter"),
            (&["x-00001-of-00002.gguf"], "no config.json and no .gguf"),
        ] {
            let error = selected("o/n", names).expect_err("refused");
            assert!(error.contains(expected), "{error}");
        }
        let pytorch = selected("o/n", &["config.json", "pytorch_model.bin"]);
        let Ok(Selection::Folder(WeightFiles::Absent(message))) = pytorch else {
            panic!("{pytorch:?}")
        };
        assert!(message.contains("PyTorch"), "{message}");
    }
}
