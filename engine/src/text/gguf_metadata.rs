//! Reads the tokenizer's part of a GGUF header: `tokenizer.*` keys, nothing else is kept.
//!
//! The file is untrusted. Every length is checked against the bytes that are left before
//! anything is allocated, so memory stays proportional to the file's size, and nesting is
//! bounded. Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! Deliberately absent: tensor infos and model shapes (`weights` reads those).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use super::TextError;

const KEPT_PREFIX: &str = "tokenizer.";
const MAX_ARRAY_DEPTH: usize = 4;
/// Key-value pairs of real files number in the tens.
const MAX_PAIRS: u64 = 65_536;

/// One metadata value, integers widened.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// The `tokenizer.*` keys of one file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufMetadata {
    values: HashMap<String, MetadataValue>,
}

impl GgufMetadata {
    /// Reads the header of the GGUF file at `path`.
    pub fn read(path: &Path) -> Result<Self, TextError> {
        let in_file =
            |message: String| TextError::File { file: path.display().to_string(), message };
        let file = File::open(path).map_err(|e| in_file(e.to_string()))?;
        let n_bytes = file.metadata().map_err(|e| in_file(e.to_string()))?.len();
        Self::parse(BufReader::with_capacity(1 << 16, file), n_bytes).map_err(in_file)
    }

    /// Reads a header of at most `n_bytes` from `reader`.
    pub fn parse(reader: impl Read, n_bytes: u64) -> Result<Self, String> {
        let mut header = Header { reader, n_left: n_bytes };
        if header.bytes::<4>()? != *b"GGUF" {
            return Err("not a GGUF file: it does not start with \"GGUF\"".to_owned());
        }
        let version = header.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("GGUF version {version} is not supported; supported: 2, 3"));
        }
        let _n_tensors = header.u64()?;
        let n_pairs = header.u64()?;
        if n_pairs > MAX_PAIRS {
            return Err(format!("{n_pairs} metadata pairs exceed the limit of {MAX_PAIRS}"));
        }
        let mut values = HashMap::new();
        for _ in 0..n_pairs {
            let key = header.text("key")?;
            let kind = header.u32()?;
            if key.starts_with(KEPT_PREFIX) {
                if let Some(value) = header.value(&key, kind)? {
                    values.insert(key, value);
                }
            } else {
                header.skip_value(&key, kind, 0)?;
            }
        }
        Ok(Self { values })
    }

    pub fn insert(&mut self, key: &str, value: MetadataValue) {
        self.values.insert(key.to_owned(), value);
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, TextError> {
        self.typed(key, "a string", |v| match v {
            MetadataValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, TextError> {
        self.typed(key, "a boolean", |v| match v {
            MetadataValue::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A token id.
    pub fn id(&self, key: &str) -> Result<Option<u32>, TextError> {
        self.typed(key, "a 32-bit unsigned integer", |v| match v {
            MetadataValue::Integer(id) => u32::try_from(*id).ok(),
            _ => None,
        })
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, TextError> {
        self.typed(key, "an array of strings", |v| match v {
            MetadataValue::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, TextError> {
        self.typed(key, "an array of floats", |v| match v {
            MetadataValue::Floats(floats) => Some(floats.as_slice()),
            _ => None,
        })
    }

    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, TextError> {
        self.typed(key, "an array of integers", |v| match v {
            MetadataValue::Integers(integers) => Some(integers.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        pick: impl Fn(&'a MetadataValue) -> Option<T>,
    ) -> Result<Option<T>, TextError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        pick(value).map(Some).ok_or_else(|| TextError::Metadata {
            key: key.to_owned(),
            message: format!("is not {expected}"),
        })
    }
}

struct Header<R> {
    reader: R,
    n_left: u64,
}

impl<R: Read> Header<R> {
    fn claim(&mut self, n: u64, what: &str) -> Result<(), String> {
        self.n_left = self.n_left.checked_sub(n).ok_or_else(|| {
            format!("{what} of {n} bytes runs past the end of the file ({} left)", self.n_left)
        })?;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.claim(N as u64, "a number")?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn text(&mut self, what: &str) -> Result<String, String> {
        let n_bytes = self.u64()?;
        self.claim(n_bytes, what)?;
        let mut bytes = vec![0; n_bytes as usize];
        self.reader.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        String::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))
    }

    fn skip(&mut self, n: u64, what: &str) -> Result<(), String> {
        self.claim(n, what)?;
        let n_copied = std::io::copy(&mut (&mut self.reader).take(n), &mut std::io::sink())
            .map_err(|e| e.to_string())?;
        if n_copied == n { Ok(()) } else { Err(format!("{what}: the file is cut short")) }
    }

    fn integer(&mut self, kind: u32) -> Result<Option<i64>, String> {
        Ok(Some(match kind {
            0 => self.bytes::<1>()?[0].into(),
            1 => i8::from_le_bytes(self.bytes()?).into(),
            2 => u16::from_le_bytes(self.bytes()?).into(),
            3 => i16::from_le_bytes(self.bytes()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.bytes()?).into(),
            10 => i64::try_from(self.u64()?).unwrap_or(i64::MAX),
            11 => i64::from_le_bytes(self.bytes()?),
            _ => return Ok(None),
        }))
    }

    /// `None` for an array of a kind that no tokenizer key has (nested, booleans): skipped.
    fn value(&mut self, key: &str, kind: u32) -> Result<Option<MetadataValue>, String> {
        if let Some(integer) = self.integer(kind)? {
            return Ok(Some(MetadataValue::Integer(integer)));
        }
        Ok(Some(match kind {
            6 => MetadataValue::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => MetadataValue::Bool(self.bytes::<1>()?[0] != 0),
            8 => MetadataValue::Text(self.text(key)?),
            9 => return self.array(key),
            12 => MetadataValue::Float(f64::from_le_bytes(self.bytes()?)),
            _ => return Err(format!("{key} has the unknown value type {kind}")),
        }))
    }

    fn array(&mut self, key: &str) -> Result<Option<MetadataValue>, String> {
        let kind = self.u32()?;
        let n_items = self.u64()?;
        let n_item_bytes = fixed_size(kind).unwrap_or(if kind == 8 { 8 } else { 12 });
        let n_array_bytes = n_items.checked_mul(n_item_bytes).filter(|n| *n <= self.n_left);
        if n_array_bytes.is_none() {
            return Err(format!(
                "{key}: an array of {n_items} items runs past the end of the file ({} bytes left)",
                self.n_left
            ));
        }
        let n_items = n_items as usize;
        Ok(Some(match kind {
            0..=5 | 10 | 11 => {
                let mut integers = Vec::with_capacity(n_items);
                for _ in 0..n_items {
                    integers.extend(self.integer(kind)?);
                }
                MetadataValue::Integers(integers)
            }
            6 => {
                let mut floats = Vec::with_capacity(n_items);
                for _ in 0..n_items {
                    floats.push(f32::from_le_bytes(self.bytes()?));
                }
                MetadataValue::Floats(floats)
            }
            8 => {
                let mut texts = Vec::with_capacity(n_items);
                for _ in 0..n_items {
                    texts.push(self.text(key)?);
                }
                MetadataValue::Texts(texts)
            }
            _ => {
                for _ in 0..n_items {
                    self.skip_value(key, kind, 1)?;
                }
                return Ok(None);
            }
        }))
    }

    fn skip_value(&mut self, key: &str, kind: u32, depth: usize) -> Result<(), String> {
        if let Some(n) = fixed_size(kind) {
            return self.skip(n, key);
        }
        match kind {
            8 => {
                let n = self.u64()?;
                self.skip(n, key)
            }
            9 if depth < MAX_ARRAY_DEPTH => {
                let kind = self.u32()?;
                let n_items = self.u64()?;
                if let Some(n) = fixed_size(kind) {
                    let n = n_items
                        .checked_mul(n)
                        .ok_or_else(|| format!("{key}: {n_items} items are too many"))?;
                    return self.skip(n, key);
                }
                // Each item takes at least eight bytes, so the end of the file ends the loop.
                for _ in 0..n_items {
                    self.skip_value(key, kind, depth + 1)?;
                }
                Ok(())
            }
            9 => Err(format!("{key}: arrays are nested deeper than {MAX_ARRAY_DEPTH}")),
            _ => Err(format!("{key} has the unknown value type {kind}")),
        }
    }
}

/// Bytes of one scalar of this GGUF value type.
fn fixed_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn header(n_pairs: u64) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.extend(n_pairs.to_le_bytes());
        out
    }

    fn sample() -> Vec<u8> {
        let mut out = header(4);
        text(&mut out, "general.name");
        out.extend(8u32.to_le_bytes());
        text(&mut out, "x");
        text(&mut out, "general.nested");
        out.extend(9u32.to_le_bytes());
        out.extend(9u32.to_le_bytes());
        out.extend(1u64.to_le_bytes());
        out.extend(8u32.to_le_bytes());
        out.extend(1u64.to_le_bytes());
        text(&mut out, "inner");
        text(&mut out, "tokenizer.ggml.tokens");
        out.extend(9u32.to_le_bytes());
        out.extend(8u32.to_le_bytes());
        out.extend(2u64.to_le_bytes());
        text(&mut out, "a");
        text(&mut out, "한");
        text(&mut out, "tokenizer.ggml.bos_token_id");
        out.extend(4u32.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out
    }

    fn parse(bytes: &[u8]) -> Result<GgufMetadata, String> {
        GgufMetadata::parse(bytes, bytes.len() as u64)
    }

    #[test]
    fn reads_tokenizer_keys_and_skips_the_rest() {
        let metadata = parse(&sample()).unwrap();
        assert_eq!(metadata.values.len(), 2);
        assert_eq!(metadata.texts("tokenizer.ggml.tokens").unwrap().unwrap(), ["a", "한"]);
        assert_eq!(metadata.id("tokenizer.ggml.bos_token_id").unwrap(), Some(1));
        assert_eq!(metadata.text("tokenizer.ggml.pre").unwrap(), None);
        let wrong_type = metadata.text("tokenizer.ggml.bos_token_id").unwrap_err();
        assert!(wrong_type.to_string().contains("is not a string"), "{wrong_type}");
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = sample();
        for n in 0..whole.len() {
            assert!(parse(&whole[..n]).is_err(), "cut at {n}");
        }
    }

    #[test]
    fn lengths_beyond_the_file_are_refused_before_allocation() {
        for (kind, item_kind) in [(8u32, 0u32), (9, 8), (9, 6), (9, 4), (9, 9)] {
            let mut out = header(1);
            text(&mut out, "tokenizer.ggml.tokens");
            out.extend(kind.to_le_bytes());
            if kind == 9 {
                out.extend(item_kind.to_le_bytes());
            }
            out.extend((u64::MAX / 2).to_le_bytes());
            let message = parse(&out).unwrap_err();
            assert!(message.contains("past the end"), "{message}");
        }
        assert!(parse(&header(u64::MAX)).unwrap_err().contains("limit"));
    }
}
