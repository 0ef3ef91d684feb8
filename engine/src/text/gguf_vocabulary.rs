//! Builds encoders from the vocabulary in a GGUF header.
//!
//! Byte-level BPE (`tokenizer.ggml.model` = `gpt2`) becomes the same pipeline of `tokenizers`
//! parts that the family's `tokenizer.json` names: the split patterns below are those files'
//! (and llama.cpp's, for `default`). SentencePiece (`llama`) becomes [`ScoredPieces`].

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, AddedVocabulary, NormalizerWrapper, SplitDelimiterBehavior};

use super::TextError;
use super::gguf_metadata::GgufMetadata;
use super::sentencepiece::ScoredPieces;
use super::token_table::{TokenKind, TokenTable, byte_level_bytes, fallback_byte};

/// The settings of the family named in `tokenizer.ggml.pre`.
struct BpeRecipe {
    pre_tokenizer: PreTokenizerWrapper,
    normalizes_to_nfc: bool,
    /// Whether a whole word that is a token is kept, ignoring the merges.
    ignores_merges: bool,
    adds_bos: bool,
}

/// Names for one rule: a family's own first, then those of models that adopted it. The groups are
/// llama.cpp's, whose converter writes the names.
const GPT2_NAMES: [&str; 12] = [
    "gpt-2",
    "phi-2",
    "gigachat",
    "a.x-4.0",
    "exaone4",
    "mellum",
    "modern-bert",
    "jina-es",
    "jina-de",
    "jina-v2-es",
    "jina-v2-de",
    "gpt2",
];
const QWEN2_NAMES: [&str; 5] = ["qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"];
const LLAMA3_NAMES: [&str; 9] = [
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
];

const SUPPORTED_PRE: &str = "default, gpt-2, smollm, qwen2, llama-bpe, smaug-bpe, tekken, and the \
                             names of models that use one of these (a.x-4.0, exaone4, falcon3, \
                             gigachat, lfm2, megrez, midm-2.0, phi-2, pixtral, …)";

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's tokenizers since Nemo: words end where the case rises, digits are separate.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's patterns for files that name no family, applied one after the other.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

fn recipe(pre: &str) -> Result<BpeRecipe, TextError> {
    let splits = |patterns: &[&str]| -> Result<PreTokenizerWrapper, TextError> {
        let mut parts = Vec::new();
        for pattern in patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(|e| metadata_error("tokenizer.ggml.pre", e.to_string()))?;
            parts.push(split.into());
        }
        parts.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(parts).into())
    };
    let plain = |pre_tokenizer| BpeRecipe {
        pre_tokenizer,
        normalizes_to_nfc: false,
        ignores_merges: false,
        adds_bos: false,
    };
    Ok(match pre {
        "default" => plain(splits(&DEFAULT)?),
        name if GPT2_NAMES.contains(&name) => plain(ByteLevel::new(false, false, true).into()),
        "smollm" => plain(
            Sequence::new(vec![
                Digits::new(true).into(),
                ByteLevel::new(false, false, true).into(),
            ])
            .into(),
        ),
        name if QWEN2_NAMES.contains(&name) => BpeRecipe {
            normalizes_to_nfc: true,
            ..plain(splits(&[QWEN2])?)
        },
        name if LLAMA3_NAMES.contains(&name) => BpeRecipe {
            ignores_merges: true,
            adds_bos: true,
            ..plain(splits(&[LLAMA3])?)
        },
        "smaug-bpe" => plain(splits(&[LLAMA3])?),
        "tekken" => BpeRecipe {
            ignores_merges: true,
            adds_bos: true,
            ..plain(splits(&[TEKKEN])?)
        },
        other => {
            return Err(TextError::Unsupported {
                what: "tokenizer.ggml.pre",
                found: other.to_owned(),
                supported: SUPPORTED_PRE,
            });
        }
    })
}

/// ggml's token types.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// One vocabulary entry.
struct Entry<'a> {
    id: u32,
    text: &'a str,
    kind: i64,
}

fn entries(metadata: &GgufMetadata) -> Result<Vec<Entry<'_>>, TextError> {
    let key = "tokenizer.ggml.tokens";
    let texts = metadata
        .texts(key)?
        .ok_or_else(|| metadata_error(key, "is missing".to_owned()))?;
    if texts.is_empty() {
        return Err(metadata_error(key, "is empty".to_owned()));
    }
    let key = "tokenizer.ggml.token_type";
    let kinds = metadata.integers(key)?;
    if let Some(kinds) = kinds
        && kinds.len() != texts.len()
    {
        return Err(metadata_error(
            key,
            format!("has {} items for {} tokens", kinds.len(), texts.len()),
        ));
    }
    Ok(texts
        .iter()
        .enumerate()
        .map(|(id, text)| Entry {
            id: id as u32,
            text,
            kind: kinds.map_or(NORMAL, |kinds| kinds[id]),
        })
        .collect())
}

fn metadata_error(key: &str, message: String) -> TextError {
    TextError::Metadata {
        key: key.to_owned(),
        message,
    }
}

/// Special tokens by their names in chat templates.
pub fn special_texts(metadata: &GgufMetadata) -> Result<Vec<(String, String)>, TextError> {
    let tokens = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
    let mut texts = Vec::new();
    for (name, key) in [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
    ] {
        if let Some(text) = metadata.id(key)?.and_then(|id| tokens.get(id as usize)) {
            texts.push((name.to_owned(), text.clone()));
        }
    }
    Ok(texts)
}

/// A byte-level BPE pipeline, the tokens' bytes, and whether the family begins texts with BOS.
pub fn byte_level_bpe(
    metadata: &GgufMetadata,
) -> Result<(tokenizers::Tokenizer, TokenTable, bool), TextError> {
    let recipe = recipe(metadata.text("tokenizer.ggml.pre")?.unwrap_or("default"))?;
    let entries = entries(metadata)?;
    let vocabulary: HashMap<&str, u32> = entries
        .iter()
        .filter(|entry| entry.kind != UNUSED && !entry.text.is_empty())
        .map(|entry| (entry.text, entry.id))
        .collect();

    let key = "tokenizer.ggml.merges";
    let lines = metadata
        .texts(key)?
        .ok_or_else(|| metadata_error(key, "is missing".to_owned()))?;
    let mut merges = Vec::with_capacity(lines.len());
    for (rank, line) in lines.iter().enumerate() {
        // Only the first part may begin with a space.
        let pair = line
            .char_indices()
            .skip(1)
            .find(|(_, character)| *character == ' ')
            .map(|(at, _)| (&line[..at], &line[at + 1..]));
        let Some((left, right)) = pair else {
            return Err(metadata_error(
                key,
                format!("item {rank}, {line:?}, is not a pair"),
            ));
        };
        let merged = format!("{left}{right}");
        for part in [left, right, merged.as_str()] {
            if !vocabulary.contains_key(part) {
                return Err(metadata_error(
                    key,
                    format!("item {rank}, {line:?}: {part:?} is not in the vocabulary"),
                ));
            }
        }
        merges.push((left.to_owned(), right.to_owned()));
    }

    let vocabulary: Vocab = vocabulary
        .into_iter()
        .map(|(text, id)| (text.to_owned(), id))
        .collect();
    let model = BPE::builder()
        // Like `Tokenizer::from_folder`.
        .cache_capacity(0)
        .vocab_and_merges(vocabulary, merges)
        .ignore_merges(recipe.ignores_merges)
        .build()
        .map_err(|e| metadata_error(key, e.to_string()))?;
    let mut pipeline = tokenizers::Tokenizer::new(model);
    let normalizer = recipe
        .normalizes_to_nfc
        .then_some(NormalizerWrapper::NFC(NFC));
    pipeline
        .with_normalizer(normalizer)
        .map_err(|e| metadata_error("tokenizer.ggml.pre", e.to_string()))?
        .with_pre_tokenizer(Some(recipe.pre_tokenizer));
    pipeline
        .add_tokens(added_tokens(&entries).into_iter().map(|(_, token)| token))
        .map_err(|e| metadata_error("tokenizer.ggml.tokens", e.to_string()))?;

    let table = TokenTable::new(entries.iter().map(|entry| match entry.kind {
        CONTROL | UNKNOWN => (entry.id, entry.text.as_bytes().to_vec(), TokenKind::Special),
        USER_DEFINED => (entry.id, entry.text.as_bytes().to_vec(), TokenKind::Text),
        _ => (entry.id, byte_level_bytes(entry.text), TokenKind::Text),
    }))?;
    Ok((pipeline, table, recipe.adds_bos))
}

/// Tokens that are recognised in plain text before the vocabulary is applied.
fn added_tokens(entries: &[Entry<'_>]) -> Vec<(u32, AddedToken)> {
    let mut seen = HashSet::new();
    entries
        .iter()
        .filter(|entry| matches!(entry.kind, CONTROL | UNKNOWN | USER_DEFINED))
        .filter(|entry| !entry.text.is_empty() && seen.insert(entry.text))
        .map(|entry| {
            let is_special = entry.kind != USER_DEFINED;
            (
                entry.id,
                AddedToken::from(entry.text, is_special).normalized(false),
            )
        })
        .collect()
}

/// A SentencePiece encoder with the tokens that are searched for first in plain text.
#[derive(Debug)]
pub struct SentencePiece {
    pub pieces: ScoredPieces,
    /// Its ids count from zero; `added_ids` has the real ones.
    pub added: AddedVocabulary,
    pub added_ids: Vec<u32>,
    /// Whether a space is prepended to every stretch of plain text.
    pub adds_space_prefix: bool,
}

pub fn sentencepiece(metadata: &GgufMetadata) -> Result<(SentencePiece, TokenTable), TextError> {
    let entries = entries(metadata)?;
    let key = "tokenizer.ggml.scores";
    let scores = metadata
        .floats(key)?
        .ok_or_else(|| metadata_error(key, "is missing".to_owned()))?;
    if scores.len() != entries.len() {
        let message = format!("has {} items for {} tokens", scores.len(), entries.len());
        return Err(metadata_error(key, message));
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(metadata_error(key, format!("item {id} is not a number")));
    }

    let mut pieces = HashMap::new();
    let mut byte_ids = Box::new([None; 256]);
    let mut unknown_id = metadata.id("tokenizer.ggml.unknown_token_id")?;
    for entry in &entries {
        match entry.kind {
            NORMAL | USER_DEFINED => {
                pieces.insert(entry.text.to_owned(), (entry.id, scores[entry.id as usize]));
            }
            UNKNOWN => unknown_id = unknown_id.or(Some(entry.id)),
            BYTE => {
                let byte = fallback_byte(entry.text).ok_or_else(|| {
                    let message =
                        format!("byte token {} is {:?}, not <0xHH>", entry.id, entry.text);
                    metadata_error("tokenizer.ggml.tokens", message)
                })?;
                byte_ids[byte as usize] = Some(entry.id);
            }
            _ => {}
        }
    }

    let (added_ids, tokens): (Vec<u32>, Vec<AddedToken>) =
        added_tokens(&entries).into_iter().unzip();
    let mut added = AddedVocabulary::new();
    // The crate numbers tokens that its model does not know from the model's size on: with an empty
    // model, in the given order.
    added
        .add_tokens(tokens, &BPE::default(), None::<&NormalizerWrapper>)
        .map_err(|e| metadata_error("tokenizer.ggml.tokens", e.to_string()))?;

    let table = TokenTable::new(entries.iter().map(|entry| match entry.kind {
        CONTROL | UNKNOWN => (entry.id, entry.text.as_bytes().to_vec(), TokenKind::Special),
        BYTE => (
            entry.id,
            fallback_byte(entry.text).into_iter().collect(),
            TokenKind::Text,
        ),
        USER_DEFINED => (entry.id, entry.text.as_bytes().to_vec(), TokenKind::Text),
        _ => (entry.id, unescape(entry.text), TokenKind::Text),
    }))?;
    let encoder = SentencePiece {
        pieces: ScoredPieces::new(pieces, byte_ids, unknown_id),
        added,
        added_ids,
        adds_space_prefix: metadata
            .bool("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true),
    };
    Ok((encoder, table))
}

fn unescape(piece: &str) -> Vec<u8> {
    piece
        .replace(super::sentencepiece::SPACE_MARK, " ")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

    use super::*;

    /// Splits a text by the rule of this name, before any merge.
    fn cut(pre: &str, text: &str) -> Vec<String> {
        let recipe = recipe(pre).expect(pre);
        let mut cut = PreTokenizedString::from(text);
        recipe.pre_tokenizer.pre_tokenize(&mut cut).expect("cuts");
        cut.get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(_, (start, end), _)| text[start..end].to_owned())
            .collect()
    }

    /// Expected values derived by hand from the published pattern.
    #[test]
    fn tekken_cuts_where_the_case_rises_and_at_every_digit() {
        let cuts = cut("tekken", "HelloWorld 2024/\n안녕 세계");
        assert_eq!(
            cuts,
            [
                "Hello", "World", " ", "2", "0", "2", "4", "/\n", "안녕", " 세계"
            ]
        );
        let recipe = recipe("tekken").expect("known");
        assert!(recipe.ignores_merges && recipe.adds_bos && !recipe.normalizes_to_nfc);
    }

    #[test]
    fn names_of_one_rule_cut_alike() {
        let text = "I'VE 12345 tokens,\r\n  안녕하세요 세계! naïve";
        for names in [&GPT2_NAMES[..], &QWEN2_NAMES, &LLAMA3_NAMES] {
            let first = recipe(names[0]).expect(names[0]);
            for name in names {
                let other = recipe(name).expect(name);
                assert_eq!(cut(name, text), cut(names[0], text), "{name}");
                assert_eq!(
                    (
                        other.ignores_merges,
                        other.adds_bos,
                        other.normalizes_to_nfc
                    ),
                    (
                        first.ignores_merges,
                        first.adds_bos,
                        first.normalizes_to_nfc
                    ),
                    "{name}"
                );
            }
        }
        let llama3 = cut("midm-2.0", text);
        assert_eq!(llama3[..5], ["I", "'VE", " ", "123", "45"]);
        let gpt2 = cut("a.x-4.0", text);
        assert_eq!(gpt2[..5], ["I", "'", "VE", " 12345", " tokens"]);
        assert_eq!(cut("smaug-bpe", text), llama3);
        let error = recipe("deepseek-llm").err().expect("unknown").to_string();
        assert!(
            error.contains("deepseek-llm") && error.contains("tekken"),
            "{error}"
        );
    }
}
