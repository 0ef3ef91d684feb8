//! A lower bound on the number of tokens of a text, from its bytes alone.
//!
//! No token is longer in bytes than the longest one of the vocabulary, so a text has at least its
//! bytes divided by that. This holds only if every byte of the text is represented by some token: a
//! pipeline that drops characters, or merges several unknown ones into one token, has no bound, and
//! neither has one whose special tokens absorb the white space around them.
//!
//! NFC makes texts shorter. Characters that it leaves alone are counted in full, all others as if
//! they shrank as far as any text can: a decomposed character has at most three times the bytes of
//! the composed one, and its parts at most three times again.

use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer as Pipeline};

use super::token_table::TokenTable;

/// Maximum factor by which NFC shrinks the characters that it changes.
const NFC_SHRINKS_BY: usize = 9;
/// The longest character; an unknown one is at least one token.
const MAX_CHARACTER_BYTES: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LengthBound {
    longest_token_bytes: usize,
    normalizes_to_nfc: bool,
}

impl LengthBound {
    /// `None` if this pipeline has no bound.
    pub fn of_pipeline(pipeline: &Pipeline, table: &TokenTable) -> Option<Self> {
        let ModelWrapper::BPE(model) = pipeline.get_model() else {
            return None;
        };
        // Qwen's files have both, and both are empty.
        let is_written = |affix: &Option<String>| affix.as_ref().is_some_and(|a| !a.is_empty());
        let changes_words =
            is_written(&model.continuing_subword_prefix) || is_written(&model.end_of_word_suffix);
        let strips = |token: &tokenizers::AddedToken| token.lstrip || token.rstrip;
        let added = pipeline.get_added_tokens_decoder();
        if changes_words || added.values().any(strips) {
            return None;
        }
        let normalizers = match pipeline.get_normalizer() {
            Some(normalizer) => steps_of(json(normalizer)?)?,
            None => Vec::new(),
        };
        let pre_tokenizers = match pipeline.get_pre_tokenizer() {
            Some(pre_tokenizer) => steps_of(json(pre_tokenizer)?)?,
            None => Vec::new(),
        };
        if !pre_tokenizers.iter().all(keeps_every_character) {
            return None;
        }
        let is = |step: &Value, kind: &str| step["type"] == kind;
        let normalizes_to_nfc = normalizers.iter().any(|step| is(step, "NFC"));
        let keeps_bytes = |step: &&Value| !is(step, "NFC");
        if !normalizers.iter().filter(keeps_bytes).all(never_shrinks) {
            return None;
        }
        let is_in_vocabulary = |token: &str| pipeline.token_to_id(token).is_some();
        let is_byte_level = pre_tokenizers.iter().any(|step| is(step, "ByteLevel"));
        let knows_every_byte = if is_byte_level {
            let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
            let mut text = [0; MAX_CHARACTER_BYTES];
            alphabet
                .into_iter()
                .all(|c| is_in_vocabulary(c.encode_utf8(&mut text)))
        } else {
            let falls_back = |byte: u8| is_in_vocabulary(&format!("<0x{byte:02X}>"));
            let has_bytes = model.byte_fallback && (0..=255).all(falls_back);
            has_bytes || (model.unk_token.is_some() && !model.fuse_unk)
        };
        if !knows_every_byte {
            return None;
        }
        // If tokens are not written in bytes, they represent the normalised text.
        let written = if is_byte_level {
            0
        } else {
            let vocabulary = pipeline.get_vocab(true);
            vocabulary.keys().map(String::len).max().unwrap_or(0)
        };
        Some(Self {
            normalizes_to_nfc,
            ..Self::of_table(table, written)
        })
    }

    /// For a vocabulary that is known to represent every character.
    pub fn of_table(table: &TokenTable, longest_written: usize) -> Self {
        let ids = 0..table.len() as u32;
        let longest = ids.map(|id| table.bytes(id).len()).max().unwrap_or(0);
        Self {
            longest_token_bytes: longest.max(longest_written).max(MAX_CHARACTER_BYTES),
            normalizes_to_nfc: false,
        }
    }

    /// A lower bound for `text`, without the special tokens around it.
    pub fn least_tokens(self, text: &str) -> usize {
        let n_bytes = if self.normalizes_to_nfc {
            least_nfc_bytes(text)
        } else {
            text.len()
        };
        n_bytes.div_ceil(self.longest_token_bytes)
    }
}

fn json(step: &impl serde::Serialize) -> Option<Value> {
    serde_json::to_value(step).ok()
}

/// The individual steps of a normaliser or pre-tokenizer. `None`: an unknown form.
fn steps_of(step: Value) -> Option<Vec<Value>> {
    if step["type"] != "Sequence" {
        return Some(vec![step]);
    }
    let list = ["normalizers", "pretokenizers"]
        .iter()
        .find_map(|key| step[*key].as_array())?;
    let nested: Option<Vec<Vec<Value>>> = list.iter().cloned().map(steps_of).collect();
    Some(nested?.concat())
}

fn keeps_every_character(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer["type"].as_str() {
        Some("ByteLevel" | "Digits" | "Metaspace") => true,
        Some("Split" | "Punctuation") => pre_tokenizer["behavior"] != "Removed",
        _ => false,
    }
}

fn never_shrinks(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        Some("Prepend") => true,
        Some("Replace") => {
            let from = normalizer["pattern"]["String"].as_str();
            let to = normalizer["content"].as_str();
            from.zip(to)
                .is_some_and(|(from, to)| from.len() <= to.len())
        }
        _ => false,
    }
}

/// A lower bound of the text's bytes in NFC.
fn least_nfc_bytes(text: &str) -> usize {
    // Neither composes with following characters of their own kind, nor is composed of anything
    // else.
    let is_inert =
        |c: char| matches!(c, '\0'..='\u{7f}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}');
    let (mut n_kept, mut n_other) = (0, 0);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_kept = is_inert(character) && characters.peek().copied().is_none_or(is_inert);
        *(if is_kept { &mut n_kept } else { &mut n_other }) += character.len_utf8();
    }
    n_kept + n_other / NFC_SHRINKS_BY
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::token_table::TokenKind;
    use super::*;

    /// A pipeline of single bytes and a few longer tokens.
    fn pipeline(normalizer: Value, pre_tokenizer: Value, model: Value, added: Value) -> Pipeline {
        let mut vocab: serde_json::Map<String, Value> = serde_json::Map::new();
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut alphabet: Vec<char> = alphabet.into_iter().collect();
        alphabet.sort_unstable();
        for (id, c) in alphabet.iter().enumerate() {
            vocab.insert(c.to_string(), json!(id));
        }
        for (i, text) in ["aa", "aaaa", "ĠĠ"].iter().enumerate() {
            vocab.insert((*text).to_owned(), json!(256 + i));
        }
        let mut bpe = json!({"type": "BPE", "vocab": vocab,
            "merges": [["a", "a"], ["aa", "aa"], ["Ġ", "Ġ"]]});
        let fields = model.as_object().expect("fields").clone();
        bpe.as_object_mut().expect("an object").extend(fields);
        let file = json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": null, "decoder": byte_level(), "model": bpe});
        file.to_string().parse().expect("a pipeline")
    }

    fn byte_level() -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
    }

    fn bound(pipeline: &Pipeline) -> Option<LengthBound> {
        let tokens = (0..256).map(|id| (id, vec![0], TokenKind::Text));
        let longer = [
            (256, vec![0; 2], TokenKind::Text),
            (257, vec![0; 4], TokenKind::Text),
        ];
        let table = TokenTable::new(tokens.chain(longer)).expect("a table");
        LengthBound::of_pipeline(pipeline, &table)
    }

    #[test]
    fn pipelines_that_lose_characters_have_no_bound() {
        let of = |normalizer, pre_tokenizer, model, added| {
            bound(&pipeline(normalizer, pre_tokenizer, model, added))
        };
        let none = || json!([]);
        let plain = of(json!(null), byte_level(), json!({}), none()).expect("a bound");
        assert_eq!(plain.least_tokens(&"a".repeat(4001)), 1001);
        let nfc = of(json!({"type": "NFC"}), byte_level(), json!({}), none()).expect("a bound");
        assert_eq!(nfc.least_tokens(&"a".repeat(4001)), 1001);
        let removing = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false},
            byte_level()]});
        let stripping = json!([{"id": 300, "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": true, "normalized": false, "special": true}]);
        for (what, found) in [
            (
                "lower case",
                of(
                    json!({"type": "Lowercase"}),
                    byte_level(),
                    json!({}),
                    none(),
                ),
            ),
            (
                "strip",
                of(
                    json!({"type": "Strip", "strip_left": true, "strip_right": true}),
                    byte_level(),
                    json!({}),
                    none(),
                ),
            ),
            ("removed", of(json!(null), removing, json!({}), none())),
            (
                "rstrip",
                of(json!(null), byte_level(), json!({}), stripping),
            ),
            (
                "unknown characters are dropped",
                of(json!(null), json!(null), json!({}), none()),
            ),
            (
                "unknown characters are fused",
                of(
                    json!(null),
                    json!(null),
                    json!({"unk_token": "aa", "fuse_unk": true}),
                    none(),
                ),
            ),
        ] {
            assert_eq!(found, None, "{what}");
        }
        // Without merges, whose tokens would have to be written with the prefix.
        let affixes = |prefix: &str, suffix: &str| json!({"continuing_subword_prefix": prefix, "end_of_word_suffix": suffix, "merges": []});
        for (prefix, suffix, has_bound) in [("", "", true), ("#", "", false), ("", "#", false)] {
            let found = of(
                json!({"type": "NFC"}),
                byte_level(),
                affixes(prefix, suffix),
                none(),
            );
            assert_eq!(found.is_some(), has_bound, "{prefix:?} {suffix:?}");
        }
        let unknown = json!({"unk_token": "aa", "fuse_unk": false});
        assert!(of(json!(null), json!(null), unknown, none()).is_some());
    }

    proptest! {
        /// Never above the actual number: no text that fits is refused.
        #[test]
        fn no_text_has_fewer_tokens(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("aaaa".to_owned()), Just("    ".to_owned()), Just("K\u{327}".to_owned()),
                    Just("\u{1112}\u{1161}\u{11ab}".to_owned()), Just("한글".to_owned()),
                    Just("\u{212a}\u{327}".to_owned()), Just("\u{1fef}".to_owned()),
                    Just("\u{3b1}\u{313}\u{300}\u{345}".to_owned()), Just("\u{0390}".to_owned()),
                    Just("\u{2126}\u{301}".to_owned()), Just("가\u{11a8}".to_owned()), "\\PC{0,4}",
                ],
                0..20,
            ),
            is_nfc: bool,
        ) {
            let text = parts.concat();
            let normalizer = if is_nfc { json!({"type": "NFC"}) } else { json!(null) };
            let pipeline = pipeline(normalizer, byte_level(), json!({}), json!([]));
            let least = bound(&pipeline).expect("a bound").least_tokens(&text);
            let n_tokens = pipeline.encode_fast(text.as_str(), false).expect("encoded").len();
            prop_assert!(least <= n_tokens, "{least} > {n_tokens}: {text:?}");
        }
    }
}
