//! Counts reasoning tokens: `usage.completion_tokens_details.reasoning_tokens`.
//!
//! A token counts if it begins inside the reasoning; tokens that only write its tags do not.

use crate::text::ThoughtStart;

const OPEN: &[u8] = b"<think>";
const CLOSE: &[u8] = b"</think>";

/// Counts one choice's tokens as they come.
#[derive(Debug)]
pub struct ThoughtTokens {
    place: Place,
    /// Output up to the end of the reasoning.
    bytes: Vec<u8>,
    /// Offset in `bytes` of each reasoning token.
    starts: Vec<usize>,
    /// Texts that end reasoning besides its tag.
    other_ends: &'static [&'static [u8]],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    /// Inside reasoning whose text begins at this byte.
    Inside(usize),
    After,
}

impl ThoughtTokens {
    /// `other_ends`: texts that end reasoning that its tag has not ended.
    pub fn new(start: ThoughtStart, other_ends: &'static [&'static [u8]]) -> Self {
        Self {
            place: match start {
                ThoughtStart::Inside => Place::Inside(0),
                ThoughtStart::Before => Place::Before,
                ThoughtStart::After => Place::After,
            },
            bytes: Vec::new(),
            starts: Vec::new(),
            other_ends,
        }
    }

    /// The next token's bytes.
    pub fn push(&mut self, token: &[u8]) {
        if self.place == Place::After {
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(token);
        if self.place == Place::Before {
            self.place = self.decide();
        }
        if let Place::Inside(begin) = self.place {
            if start >= begin {
                self.starts.push(start);
            }
            self.end_if_closed(begin.max(start.saturating_sub(CLOSE.len() * 2)));
        }
    }

    pub fn count(&self) -> usize {
        self.starts.len()
    }

    fn decide(&self) -> Place {
        let n_blank = self
            .bytes
            .iter()
            .take_while(|byte| byte.is_ascii_whitespace())
            .count();
        let begun = &self.bytes[n_blank..];
        if begun.starts_with(OPEN) {
            Place::Inside(n_blank + OPEN.len())
        } else if OPEN.starts_with(begun) {
            Place::Before
        } else {
            Place::After
        }
    }

    /// Looks for an end tag from byte `from` on.
    fn end_if_closed(&mut self, from: usize) {
        let ends = [CLOSE].into_iter().chain(self.other_ends.iter().copied());
        let found = ends.filter_map(|end| {
            let rest = self.bytes.get(from..)?;
            let at = rest.windows(end.len()).position(|window| window == end)?;
            Some(from + at)
        });
        if let Some(end) = found.min() {
            self.starts.retain(|start| *start < end);
            self.place = Place::After;
            self.bytes = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(start: ThoughtStart, tokens: &[&str]) -> usize {
        let mut counted = ThoughtTokens::new(start, &[b"<tool_call>"]);
        for token in tokens {
            counted.push(token.as_bytes());
        }
        counted.count()
    }

    #[test]
    fn tokens_within_the_tags_count() {
        for (start, tokens, expected) in [
            (
                ThoughtStart::Before,
                vec!["<think>", "\n", "a b", " c", "</think>", "d", "e"],
                3,
            ),
            (
                ThoughtStart::Before,
                vec!["\n", "<think>", "a", "</think>"],
                1,
            ),
            (
                ThoughtStart::Before,
                vec!["<th", "ink>", "a", "</", "think", ">", "b"],
                1,
            ),
            (ThoughtStart::Inside, vec!["a", "b", "</think>", "c"], 2),
            (ThoughtStart::Inside, vec!["a", "b"], 2),
            (ThoughtStart::Inside, vec!["a", "b</think>c", "d"], 2),
            (
                ThoughtStart::Before,
                vec!["a", "<think>", "b", "</think>"],
                0,
            ),
            (ThoughtStart::Before, vec!["<thunk>", "b"], 0),
            (ThoughtStart::After, vec!["<think>", "a", "</think>"], 0),
            (ThoughtStart::Inside, vec!["a", "<tool_call>", "b"], 1),
        ] {
            assert_eq!(count(start, &tokens), expected, "{tokens:?}");
        }
    }

    #[test]
    fn bytes_count_as_tokens_where_they_are_tokens() {
        let text = "<think>한</think>x";
        let mut counted = ThoughtTokens::new(ThoughtStart::Before, &[]);
        text.bytes().for_each(|byte| counted.push(&[byte]));
        assert_eq!(counted.count(), "한".len());
    }
}
