//! The engine's only tokenizer type: text to ids and ids to bytes, for every vocabulary format.
//!
//! Encoding uses the `tokenizers` crate for `tokenizer.json` and byte-level GGUF vocabularies and
//! our own code for SentencePiece; decoding uses the same table for all ([`super::token_table`]).

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::{NormalizerWrapper, OffsetReferential, OffsetType};

use super::TextError;
use super::gguf_metadata::GgufMetadata;
use super::gguf_vocabulary::{self, SentencePiece};
use super::length_bound::LengthBound;
use super::sentencepiece::SPACE_MARK;
use super::token_table::{TokenKind, TokenTable, byte_level_bytes, fallback_byte};

#[derive(Debug)]
enum Encoder {
    Pipeline(Box<tokenizers::Tokenizer>),
    SentencePiece(Box<SentencePiece>),
}

/// The ids that surround a text encoded with its special tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Surround {
    /// As defined by the pipeline's post-processor.
    PostProcessor,
    Ids {
        before: Vec<u32>,
        after: Vec<u32>,
    },
}

/// A model's vocabulary and its encoder.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: Encoder,
    table: TokenTable,
    surround: Surround,
    length_bound: Option<LengthBound>,
    /// The first space of a decoded text was added by the encoder.
    drops_first_space: bool,
    bos_id: Option<u32>,
    eos_ids: Vec<u32>,
    /// `bos_token`, `eos_token`, … by their names in chat templates.
    special_texts: Vec<(String, String)>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json`, `generation_config.json` and
    /// `config.json` if they exist.
    ///
    /// # Errors
    ///
    /// [`TextError::File`] if `tokenizer.json` is missing (the error says what is there
    /// instead), or one of the files cannot be read or is malformed; [`TextError::Unsupported`]
    /// if its decoder is none that is known.
    pub fn from_folder(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let in_file = |message: String| TextError::File {
            file: path.display().to_string(),
            message,
        };
        let bytes = std::fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => in_file(what_is_instead(dir)),
            _ => in_file(e.to_string()),
        })?;
        let bytes = without_mark(&bytes);
        // The crate indexes by lengths from the file, so a malformed file can panic.
        let mut pipeline = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|_| in_file("the vocabulary is malformed".to_owned()))?
            .map_err(|e| in_file(e.to_string()))?;
        forget_words(&mut pipeline);
        pipeline.with_padding(None);
        pipeline
            .with_truncation(None)
            .map_err(|e| in_file(e.to_string()))?;

        let config = read_json(&dir.join("tokenizer_config.json"))?;
        let decoding = Decoding::of(&pipeline)?;
        let added = pipeline.get_added_tokens_decoder();
        let mut tokens: HashMap<u32, (String, TokenKind)> = pipeline
            .get_vocab(false)
            .into_iter()
            .map(|(text, id)| (id, (text, TokenKind::Text)))
            .collect();
        for (id, token) in added {
            let kind = if token.special {
                TokenKind::Special
            } else {
                TokenKind::Text
            };
            tokens.insert(id, (token.content, kind));
        }
        let table = TokenTable::new(
            tokens
                .into_iter()
                .map(|(id, (text, kind))| (id, decoding.bytes(&text), kind)),
        )?;

        let special_texts = special_texts(&config);
        let named = |name: &str| {
            let text = &special_texts.iter().find(|(key, _)| key == name)?.1;
            pipeline.token_to_id(text)
        };
        let bos_id = named("bos_token");
        let mut eos_ids: Vec<u32> = named("eos_token").into_iter().collect();
        for file in ["generation_config.json", "config.json"] {
            push_ids(&read_json(&dir.join(file))?["eos_token_id"], &mut eos_ids);
        }
        eos_ids.retain(|id| (*id as usize) < table.len());
        let surround = surround_of_config(&config, bos_id, eos_ids.first().copied());
        Ok(Self {
            length_bound: LengthBound::of_pipeline(&pipeline, &table),
            encoder: Encoder::Pipeline(Box::new(pipeline)),
            table,
            surround,
            drops_first_space: decoding.drops_first_space,
            bos_id,
            eos_ids,
            special_texts,
        })
    }

    /// One token for each byte, then special tokens.
    #[cfg(test)]
    pub fn of_bytes(special: &[&str]) -> Self {
        let bytes = (0..=255u8).map(|byte| (u32::from(byte), vec![byte], TokenKind::Text));
        let special = special.iter().zip(256..).map(|(text, id)| {
            let bytes = text.as_bytes().to_vec();
            (id, bytes, TokenKind::Special)
        });
        let model = tokenizers::models::bpe::BPE::default();
        Self {
            encoder: Encoder::Pipeline(Box::new(tokenizers::Tokenizer::new(model))),
            table: TokenTable::new(bytes.chain(special)).expect("few tokens"),
            surround: Surround::PostProcessor,
            length_bound: None,
            drops_first_space: false,
            bos_id: None,
            eos_ids: Vec::new(),
            special_texts: Vec::new(),
        }
    }

    /// Reads the vocabulary in the header of a GGUF file.
    ///
    /// # Errors
    ///
    /// [`TextError::File`] if the file cannot be read or is no GGUF file, and as
    /// [`Self::from_metadata`].
    pub fn from_gguf(path: &Path) -> Result<Self, TextError> {
        Self::from_metadata(&GgufMetadata::read(path)?)
    }

    /// Builds from parsed GGUF metadata.
    ///
    /// # Errors
    ///
    /// [`TextError::Metadata`] if the vocabulary is missing, incomplete or of the wrong type,
    /// [`TextError::Unsupported`] if it is of another kind than `gpt2` or `llama`.
    pub fn from_metadata(metadata: &GgufMetadata) -> Result<Self, TextError> {
        let key = "tokenizer.ggml.model";
        let (encoder, table, adds_bos, drops_first_space) = match metadata.text(key)? {
            Some("gpt2") => {
                let (pipeline, table, adds_bos) = gguf_vocabulary::byte_level_bpe(metadata)?;
                (
                    Encoder::Pipeline(Box::new(pipeline)),
                    table,
                    adds_bos,
                    false,
                )
            }
            Some("llama") => {
                let (pieces, table) = gguf_vocabulary::sentencepiece(metadata)?;
                let drops_first_space = pieces.adds_space_prefix;
                (
                    Encoder::SentencePiece(Box::new(pieces)),
                    table,
                    true,
                    drops_first_space,
                )
            }
            Some(other) => {
                return Err(TextError::Unsupported {
                    what: key,
                    found: other.to_owned(),
                    supported: "gpt2 (byte-level BPE), llama (SentencePiece BPE)",
                });
            }
            None => {
                let message = "is missing: the file has no tokenizer".to_owned();
                return Err(TextError::Metadata {
                    key: key.to_owned(),
                    message,
                });
            }
        };
        let id_of = |name: &str| -> Result<Option<u32>, TextError> {
            let key = format!("tokenizer.ggml.{name}");
            let Some(id) = metadata.id(&key)? else {
                return Ok(None);
            };
            if id as usize >= table.len() {
                let message = format!("{id} is outside the vocabulary of {} tokens", table.len());
                return Err(TextError::Metadata { key, message });
            }
            Ok(Some(id))
        };
        let bos_id = id_of("bos_token_id")?;
        let mut eos_ids = Vec::new();
        for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            eos_ids.extend(id_of(name)?.filter(|id| !eos_ids.contains(id)));
        }
        // Files from before these two keys identify the end of a turn only by its text.
        for id in 0..table.len() as u32 {
            let is_end =
                table.is_special(id) && TURN_ENDS.iter().any(|e| e.as_bytes() == table.bytes(id));
            if is_end && !eos_ids.contains(&id) {
                eos_ids.push(id);
            }
        }
        let special_texts = gguf_vocabulary::special_texts(metadata)?;
        let adds = |name: &str| metadata.bool(&format!("tokenizer.ggml.{name}"));
        let adds_bos = adds("add_bos_token")?.unwrap_or(adds_bos);
        let adds_eos = adds("add_eos_token")?.unwrap_or(false);
        let surround = Surround::Ids {
            before: bos_id.filter(|_| adds_bos).into_iter().collect(),
            after: eos_ids
                .first()
                .copied()
                .filter(|_| adds_eos)
                .into_iter()
                .collect(),
        };
        let length_bound = match &encoder {
            Encoder::Pipeline(pipeline) => LengthBound::of_pipeline(pipeline, &table),
            Encoder::SentencePiece(pieces) => pieces.length_bound(&table),
        };
        Ok(Self {
            encoder,
            table,
            surround,
            length_bound,
            drops_first_space,
            bos_id,
            eos_ids,
            special_texts,
        })
    }

    /// Ids of `text`. Special tokens written out in it become their ids; `add_special` also adds
    /// those that the model was trained with around a text (for example BOS). Rendered chats need
    /// false: their template writes its own.
    ///
    /// # Errors
    ///
    /// [`TextError::Encode`] if the vocabulary has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        if let (true, Surround::Ids { before, .. }) = (add_special, &self.surround) {
            ids.extend(before);
        }
        match &self.encoder {
            Encoder::Pipeline(pipeline) => {
                let post_process = add_special && self.surround == Surround::PostProcessor;
                let encoding =
                    pipeline
                        .encode_fast(text, post_process)
                        .map_err(|e| TextError::Encode {
                            message: e.to_string(),
                        })?;
                ids.extend(encoding.get_ids());
            }
            Encoder::SentencePiece(encoder) => encoder.encode(text, &mut ids)?,
        }
        if let (true, Surround::Ids { after, .. }) = (add_special, &self.surround) {
            ids.extend(after);
        }
        Ok(ids)
    }

    /// A lower bound on the number of tokens of `text`; 0 if none is known. Linear in its length,
    /// without allocation.
    pub fn least_tokens(&self, text: &str) -> usize {
        self.length_bound
            .map_or(0, |bound| bound.least_tokens(text))
    }

    /// Text of `ids` as a separate text: a space that the encoder added before the first word is
    /// removed. Never fails: invalid UTF-8 becomes U+FFFD, and ids outside the vocabulary are
    /// skipped.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut bytes = Vec::new();
        for id in ids {
            bytes.extend(self.shown_bytes(*id, skip_special));
        }
        let start = usize::from(self.drops_first_space && bytes.first() == Some(&b' '));
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// Ids are below this (some may be unused).
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    pub fn id_of(&self, token: &str) -> Option<u32> {
        match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.token_to_id(token),
            Encoder::SentencePiece(encoder) => encoder.id_of(token),
        }
    }

    /// The token's exact bytes, possibly part of a character; empty outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.table.bytes(id).to_vec()
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.table.is_special(id)
    }

    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// Ids that end a sequence, with the vocabulary's own end-of-sequence first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Special tokens by their names in chat templates: `bos_token`, `eos_token`, ….
    pub fn special_texts(&self) -> &[(String, String)] {
        &self.special_texts
    }

    pub(super) fn shown_bytes(&self, id: u32, skip_special: bool) -> &[u8] {
        if skip_special && self.table.is_special(id) {
            &[]
        } else {
            self.table.bytes(id)
        }
    }

    pub(super) fn drops_first_space(&self) -> bool {
        self.drops_first_space
    }
}

impl SentencePiece {
    fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TextError> {
        let parts = self
            .added
            .extract_and_normalize(None::<&NormalizerWrapper>, text);
        for (part, _, tokens) in parts.get_splits(OffsetReferential::Original, OffsetType::None) {
            if let Some(tokens) = tokens {
                ids.extend(
                    tokens
                        .iter()
                        .filter_map(|t| self.added_ids.get(t.id as usize)),
                );
                continue;
            }
            if part.is_empty() {
                continue;
            }
            let mut escaped = String::with_capacity(part.len() + 3);
            if self.adds_space_prefix {
                escaped.push(SPACE_MARK);
            }
            escaped.extend(part.chars().map(|c| if c == ' ' { SPACE_MARK } else { c }));
            self.pieces.encode(&escaped, ids)?;
        }
        Ok(())
    }

    /// Every character is a piece, or becomes one or several tokens.
    fn length_bound(&self, table: &TokenTable) -> Option<LengthBound> {
        let added = self.added.get_added_tokens_decoder();
        let strips = added.values().any(|token| token.lstrip || token.rstrip);
        (!strips).then(|| LengthBound::of_table(table, 0))
    }

    fn id_of(&self, token: &str) -> Option<u32> {
        let added = self.added.get_vocab().get(token);
        added
            .and_then(|idx| self.added_ids.get(*idx as usize).copied())
            .or_else(|| self.pieces.id_of(token))
    }
}

/// Special tokens that end a turn in the chat formats of the families served here.
const TURN_ENDS: [&str; 7] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<end_of_turn>",
];

/// How a `tokenizer.json` converts tokens to bytes.
struct Decoding {
    is_byte_level: bool,
    has_byte_fallback: bool,
    replacements: Vec<(String, String)>,
    drops_first_space: bool,
}

impl Decoding {
    fn of(pipeline: &tokenizers::Tokenizer) -> Result<Self, TextError> {
        let mut decoding = Self {
            is_byte_level: false,
            has_byte_fallback: false,
            replacements: Vec::new(),
            drops_first_space: false,
        };
        let decoder = serde_json::to_value(pipeline.get_decoder()).unwrap_or(Value::Null);
        decoding.read(&decoder)?;
        Ok(decoding)
    }

    fn read(&mut self, decoder: &Value) -> Result<(), TextError> {
        let kind = decoder["type"].as_str().unwrap_or("none");
        let text = |key: &str| decoder[key].as_str().map(str::to_owned);
        match kind {
            "ByteLevel" => self.is_byte_level = true,
            "ByteFallback" => self.has_byte_fallback = true,
            "Fuse" => {}
            "Replace" => match (decoder["pattern"]["String"].as_str(), text("content")) {
                (Some(from), Some(to)) => self.replacements.push((from.to_owned(), to)),
                _ => return unsupported_decoder("Replace with a pattern that is no string"),
            },
            "Strip" if text("content").as_deref() == Some(" ") && decoder["stop"] == 0 => {
                match decoder["start"].as_u64() {
                    Some(0) => {}
                    Some(1) => self.drops_first_space = true,
                    _ => return unsupported_decoder("Strip of more than one space"),
                }
            }
            "Metaspace" => {
                let mark = text("replacement").unwrap_or_else(|| SPACE_MARK.to_string());
                self.replacements.push((mark, " ".to_owned()));
                self.drops_first_space = text("prepend_scheme").as_deref() != Some("never");
            }
            "Sequence" => {
                for part in decoder["decoders"].as_array().into_iter().flatten() {
                    self.read(part)?;
                }
            }
            other => return unsupported_decoder(other),
        }
        Ok(())
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        if self.is_byte_level {
            return byte_level_bytes(token);
        }
        if self.has_byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            return vec![byte];
        }
        let mut text = token.to_owned();
        for (from, to) in &self.replacements {
            text = text.replace(from, to);
        }
        text.into_bytes()
    }
}

fn unsupported_decoder<T>(found: &str) -> Result<T, TextError> {
    Err(TextError::Unsupported {
        what: "tokenizer.json decoder",
        found: found.to_owned(),
        supported: "ByteLevel, Metaspace, and sequences of Replace, ByteFallback, Fuse, Strip",
    })
}

/// Disables the crate's word cache: every encoding thread keeps one for every vocabulary ever
/// loaded, and those of an unloaded model could not be freed.
fn forget_words(pipeline: &mut tokenizers::Tokenizer) {
    let mut model = pipeline.get_model().clone();
    model.resize_cache(0);
    pipeline.with_model(model);
}

/// The bytes of a file without a byte order mark, which some editors add.
fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes)
}

/// What a folder without `tokenizer.json` contains, and how to create one from it.
fn what_is_instead(dir: &Path) -> String {
    let has = |name: &str| dir.join(name).exists();
    let other = if has("vocab.json") && has("merges.txt") {
        "vocab.json and merges.txt"
    } else if has("tokenizer.model") {
        "tokenizer.model"
    } else if has("tekken.json") {
        "tekken.json"
    } else {
        return "is not there".into();
    };
    format!(
        "is not there; the folder has {other}, which is not read. Make one with transformers: \
         AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )
}

pub(super) fn read_json(path: &Path) -> Result<Value, TextError> {
    let in_file = |message: String| TextError::File {
        file: path.display().to_string(),
        message,
    };
    match std::fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(without_mark(&bytes)).map_err(|e| in_file(e.to_string()))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(in_file(e.to_string())),
    }
}

/// A special token is written as its text or as an object that contains it.
pub(super) fn special_texts(config: &Value) -> Vec<(String, String)> {
    [
        "bos_token",
        "eos_token",
        "unk_token",
        "pad_token",
        "sep_token",
        "cls_token",
        "mask_token",
    ]
    .into_iter()
    .filter_map(|name| {
        let token = &config[name];
        let text = token.as_str().or_else(|| token["content"].as_str())?;
        Some((name.to_owned(), text.to_owned()))
    })
    .collect()
}

fn push_ids(value: &Value, ids: &mut Vec<u32>) {
    let one = std::slice::from_ref(value);
    for id in value.as_array().map_or(one, Vec::as_slice) {
        if let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok())
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
}

/// Transformers' Llama tokenizer class ignores the file's post-processor and uses the two flags of
/// its configuration.
fn surround_of_config(config: &Value, bos_id: Option<u32>, eos_id: Option<u32>) -> Surround {
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    if !matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast") {
        return Surround::PostProcessor;
    }
    let adds_bos = config["add_bos_token"].as_bool().unwrap_or(true);
    let adds_eos = config["add_eos_token"].as_bool().unwrap_or(false);
    Surround::Ids {
        before: bos_id.filter(|_| adds_bos).into_iter().collect(),
        after: eos_id.filter(|_| adds_eos).into_iter().collect(),
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
