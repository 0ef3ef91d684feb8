//! The bytes of each token id: the only place that converts ids to text.
//!
//! Decoding concatenates the tokens' bytes and reads them as UTF-8, with U+FFFD for invalid ones.
//! For byte-level vocabularies that matches Hugging Face. For byte-fallback ones it differs in one
//! point on purpose: Hugging Face replaces a whole run of byte tokens by U+FFFD if any part of the
//! run is invalid, which a stream could not reproduce.

use super::TextError;

/// Ids above this are refused: an id is an index into tables of this size.
pub const MAX_VOCAB: usize = 1 << 22;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    Text,
    /// Omitted if special tokens are skipped.
    Special,
}

/// Bytes and kind of every id, packed.
#[derive(Debug)]
pub struct TokenTable {
    bytes: Vec<u8>,
    /// `[vocab_size + 1]` offsets into `bytes`.
    offsets: Vec<usize>,
    kinds: Vec<TokenKind>,
}

impl TokenTable {
    /// Ids missing in `tokens` decode to nothing.
    pub fn new(
        tokens: impl IntoIterator<Item = (u32, Vec<u8>, TokenKind)>,
    ) -> Result<Self, TextError> {
        let mut by_id: Vec<Option<(Vec<u8>, TokenKind)>> = Vec::new();
        for (id, bytes, kind) in tokens {
            let idx = id as usize;
            if idx >= MAX_VOCAB {
                return Err(TextError::Unsupported {
                    what: "token id",
                    found: id.to_string(),
                    supported: "ids below 4194304",
                });
            }
            if by_id.len() <= idx {
                by_id.resize(idx + 1, None);
            }
            by_id[idx] = Some((bytes, kind));
        }
        let mut table = Self {
            bytes: Vec::new(),
            offsets: Vec::with_capacity(by_id.len() + 1),
            kinds: Vec::with_capacity(by_id.len()),
        };
        table.offsets.push(0);
        for token in by_id {
            let (bytes, kind) = token.unwrap_or((Vec::new(), TokenKind::Text));
            table.bytes.extend(bytes);
            table.offsets.push(table.bytes.len());
            table.kinds.push(kind);
        }
        Ok(table)
    }

    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Empty for ids outside the vocabulary.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.offsets.get(id), self.offsets.get(id + 1)) {
            (Some(start), Some(end)) => &self.bytes[*start..*end],
            _ => &[],
        }
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&TokenKind::Special)
    }
}

/// The byte that a character of GPT-2's byte alphabet represents: printable Latin-1 bytes are
/// themselves, the other 68 are numbered from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    match character as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Bytes of a token written in the byte alphabet; a token with any other character is its own
/// UTF-8.
pub fn byte_level_bytes(token: &str) -> Vec<u8> {
    token
        .chars()
        .map(byte_of)
        .collect::<Option<Vec<u8>>>()
        .unwrap_or_else(|| token.as_bytes().to_vec())
}

/// The byte of a fallback token such as `<0x0A>`.
pub fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_covers_every_byte_once() {
        let mut seen = [0; 256];
        for code in 0..0x400u32 {
            if let Some(byte) = char::from_u32(code).and_then(byte_of) {
                seen[byte as usize] += 1;
            }
        }
        assert_eq!(seen, [1; 256]);
        assert_eq!(byte_level_bytes("Ġthe"), b" the");
        assert_eq!(byte_level_bytes("Ċ"), b"\n");
        assert_eq!(byte_level_bytes("íķľ"), "한".as_bytes());
        assert_eq!(byte_level_bytes("a b"), b"a b");
    }

    #[test]
    fn fallback_tokens_name_their_byte() {
        assert_eq!(fallback_byte("<0x0A>"), Some(b'\n'));
        assert_eq!(fallback_byte("<0xff>"), Some(0xff));
        assert_eq!(fallback_byte("<0xA>"), None);
        assert_eq!(fallback_byte("<0x+A>"), None);
    }

    #[test]
    fn ids_outside_are_empty_and_huge_ids_refused() {
        let table = TokenTable::new([(2, b"x".to_vec(), TokenKind::Special)]).unwrap();
        assert_eq!(table.len(), 3);
        assert_eq!(table.bytes(2), b"x");
        assert!(table.bytes(0).is_empty() && table.bytes(3).is_empty());
        assert!(table.bytes(u32::MAX).is_empty());
        assert!(table.is_special(2) && !table.is_special(0));
        assert!(TokenTable::new([(u32::MAX, Vec::new(), TokenKind::Text)]).is_err());
    }
}
