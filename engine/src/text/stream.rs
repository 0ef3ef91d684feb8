//! Converts generated tokens to text as they come. Only whole characters are emitted, and emitted
//! text never changes.
//!
//! Each token's bytes are processed once and at most three are held back, so a stream is linear in
//! its length. (Decoding here is concatenation of bytes, so the usual re-decoding of a window of
//! tokens is not needed.)

use std::sync::Arc;

use super::Tokenizer;

/// The context of the streamed tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextOrigin {
    /// They follow a prompt: a leading space is text.
    Continuation,
    /// They are a separate text, as for [`Tokenizer::decode`].
    Start,
}

/// Incremental [`Tokenizer::decode`]: the pushes' texts and the end's, concatenated, are the
/// decoded whole.
#[derive(Debug)]
pub struct TokenStream {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    drops_first_space: bool,
    utf8: Utf8Stream,
}

impl TokenStream {
    pub fn new(tokenizer: Arc<Tokenizer>, origin: TextOrigin, skip_special: bool) -> Self {
        let drops_first_space = origin == TextOrigin::Start && tokenizer.drops_first_space();
        Self {
            tokenizer,
            skip_special,
            drops_first_space,
            utf8: Utf8Stream::default(),
        }
    }

    /// The text that `id` completes; `None` if it completes none.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let mut bytes = self.tokenizer.shown_bytes(id, self.skip_special);
        if self.drops_first_space && !bytes.is_empty() {
            self.drops_first_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.utf8.push(bytes)
    }

    /// U+FFFD for an incomplete character.
    pub fn finish(&mut self) -> Option<String> {
        self.utf8.finish()
    }
}

/// Converts bytes in arbitrary portions to text, like `String::from_utf8_lossy` on the whole.
///
/// ```
/// use engine::text::stream::Utf8Stream;
///
/// let mut stream = Utf8Stream::default();
/// let (first, last) = "é".as_bytes().split_at(1);
/// assert_eq!(stream.push(first), None);
/// assert_eq!(stream.push(last), Some("é".to_owned()));
/// ```
#[derive(Debug, Default)]
pub struct Utf8Stream {
    /// The beginning of one character: at most three bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    pub fn push(&mut self, bytes: &[u8]) -> Option<String> {
        self.held.extend(bytes);
        let mut text = String::new();
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(n_invalid) = error.error_len() else {
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[n_invalid..];
                }
            }
        }
        self.held = rest.to_vec();
        (!text.is_empty()).then_some(text)
    }

    pub fn finish(&mut self) -> Option<String> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| String::from_utf8_lossy(&held).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_portions_give_the_lossy_whole(
            portions in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 0..40),
        ) {
            let mut stream = Utf8Stream::default();
            let mut text = String::new();
            for portion in &portions {
                text.extend(stream.push(portion));
                prop_assert!(stream.held.len() <= 3);
            }
            text.extend(stream.finish());
            let whole = portions.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole));
        }

        #[test]
        fn valid_text_is_never_torn(text in "[가-힣a-z👩🇰é ]{0,30}", n in 1usize..5) {
            let mut stream = Utf8Stream::default();
            let mut shown = String::new();
            for portion in text.as_bytes().chunks(n) {
                shown.extend(stream.push(portion));
                prop_assert!(text.starts_with(&shown));
            }
            prop_assert_eq!(stream.finish(), None);
            prop_assert_eq!(shown, text);
        }
    }

    #[test]
    fn a_character_comes_with_its_last_byte() {
        let mut stream = Utf8Stream::default();
        let bytes = "한👩".as_bytes();
        let shown: Vec<Option<String>> = bytes
            .iter()
            .map(|byte| stream.push(std::slice::from_ref(byte)))
            .collect();
        let completed: Vec<usize> = (0..bytes.len()).filter(|i| shown[*i].is_some()).collect();
        assert_eq!(completed, [2, 6]);
        assert_eq!(shown[6].as_deref(), Some("👩"));
    }
}
