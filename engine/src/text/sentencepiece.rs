//! SentencePiece BPE as in Llama-2 style GGUF files: pieces with scores and no merge list.
//!
//! Starting from single characters, the neighbouring pair whose concatenation has the highest
//! score is merged (leftmost among equals) until no pair is in the vocabulary; a character that
//! is in no piece becomes its UTF-8 bytes' tokens. O(n log n) through a heap with stale entries.
//! Algorithm: Kudo & Richardson 2018, <https://arxiv.org/abs/1808.06226>.
//!
//! Deliberately absent: Unigram segmentation (T5) and normalisation by precompiled charsmap.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::TextError;

/// U+2581, which stands for a space inside pieces.
pub const SPACE_MARK: char = '\u{2581}';

/// Pieces by text, and the handling of characters that no piece contains.
#[derive(Debug)]
pub struct ScoredPieces {
    pieces: HashMap<String, (u32, f32)>,
    byte_ids: Box<[Option<u32>; 256]>,
    unknown_id: Option<u32>,
}

impl ScoredPieces {
    /// `pieces`: text, id and score of everything that merging may produce.
    pub fn new(
        pieces: HashMap<String, (u32, f32)>,
        byte_ids: Box<[Option<u32>; 256]>,
        unknown_id: Option<u32>,
    ) -> Self {
        Self {
            pieces,
            byte_ids,
            unknown_id,
        }
    }

    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.pieces.get(piece).map(|(id, _)| *id)
    }

    /// Appends the ids of `text`, in which spaces have been replaced by [`SPACE_MARK`].
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TextError> {
        let mut segments = Segments::of_characters(text);
        let mut queue = BinaryHeap::new();
        for left in 0..segments.nodes.len().saturating_sub(1) {
            self.offer(text, &segments, left, &mut queue);
        }
        while let Some(merge) = queue.pop() {
            if !segments.merge(&merge) {
                continue;
            }
            if let Some(before) = segments.nodes[merge.left].previous {
                self.offer(text, &segments, before, &mut queue);
            }
            self.offer(text, &segments, merge.left, &mut queue);
        }
        let mut next = if text.is_empty() { None } else { Some(0) };
        while let Some(idx) = next {
            let node = &segments.nodes[idx];
            self.push_segment(&text[node.start..node.end], ids)?;
            next = node.next;
        }
        Ok(())
    }

    /// Queues the merge of the segment at `left` with its right neighbour, if it is a piece.
    fn offer(&self, text: &str, segments: &Segments, left: usize, queue: &mut BinaryHeap<Merge>) {
        let node = &segments.nodes[left];
        let Some(right) = node.next else { return };
        let end = segments.nodes[right].end;
        if let Some((_, score)) = self.pieces.get(&text[node.start..end]) {
            queue.push(Merge {
                score: *score,
                left,
                right,
                start: node.start,
                end,
            });
        }
    }

    fn push_segment(&self, segment: &str, ids: &mut Vec<u32>) -> Result<(), TextError> {
        if let Some((id, _)) = self.pieces.get(segment) {
            ids.push(*id);
            return Ok(());
        }
        let bytes: Option<Vec<u32>> = segment
            .bytes()
            .map(|byte| self.byte_ids[byte as usize])
            .collect();
        if let Some(bytes) = bytes {
            ids.extend(bytes);
        } else if let Some(unknown) = self.unknown_id {
            ids.push(unknown);
        } else {
            return Err(TextError::Encode {
                message: format!(
                    "{segment:?} is in no token, and the vocabulary has neither byte tokens nor \
                     an unknown token"
                ),
            });
        }
        Ok(())
    }
}

struct Node {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
    merged_away: bool,
}

/// The current segmentation: a linked list over byte ranges of the text.
struct Segments {
    nodes: Vec<Node>,
}

impl Segments {
    fn of_characters(text: &str) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        for (idx, (start, character)) in text.char_indices().enumerate() {
            if let Some(last) = nodes.last_mut() {
                last.next = Some(idx);
            }
            nodes.push(Node {
                start,
                end: start + character.len_utf8(),
                previous: idx.checked_sub(1),
                next: None,
                merged_away: false,
            });
        }
        Self { nodes }
    }

    /// Returns false if the pair has changed since it was queued.
    fn merge(&mut self, merge: &Merge) -> bool {
        let (left, right) = (&self.nodes[merge.left], &self.nodes[merge.right]);
        let is_current = !left.merged_away
            && !right.merged_away
            && left.start == merge.start
            && left.next == Some(merge.right)
            && right.end == merge.end;
        if !is_current {
            return false;
        }
        let after = right.next;
        self.nodes[merge.right].merged_away = true;
        if let Some(after) = after {
            self.nodes[after].previous = Some(merge.left);
        }
        let left = &mut self.nodes[merge.left];
        left.end = merge.end;
        left.next = after;
        true
    }
}

struct Merge {
    score: f32,
    left: usize,
    right: usize,
    start: usize,
    end: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(list: &[(&str, f32)], with_bytes: bool) -> ScoredPieces {
        let pieces = list
            .iter()
            .enumerate()
            .map(|(id, (text, score))| ((*text).to_owned(), (id as u32, *score)))
            .collect();
        let byte_ids = Box::new(std::array::from_fn(|byte| {
            with_bytes.then_some(1000 + byte as u32)
        }));
        ScoredPieces::new(pieces, byte_ids, None)
    }

    fn encode(pieces: &ScoredPieces, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        pieces.encode(text, &mut ids).unwrap();
        ids
    }

    #[test]
    fn the_highest_score_merges_first() {
        // "abc": bc (-1) wins over ab (-2); a+bc is not a piece, so a, bc.
        let vocabulary = pieces(
            &[
                ("a", -9.0),
                ("b", -9.0),
                ("c", -9.0),
                ("ab", -2.0),
                ("bc", -1.0),
            ],
            true,
        );
        assert_eq!(encode(&vocabulary, "abc"), [0, 4]);
        // With the scores exchanged: ab, c.
        let vocabulary = pieces(
            &[
                ("a", -9.0),
                ("b", -9.0),
                ("c", -9.0),
                ("ab", -1.0),
                ("bc", -2.0),
            ],
            true,
        );
        assert_eq!(encode(&vocabulary, "abc"), [3, 2]);
    }

    #[test]
    fn equal_scores_merge_from_the_left() {
        // aaaa: a.a at 0 first, then a.a at 2, then aa+aa is not a piece. aaa: aa, a.
        let vocabulary = pieces(&[("a", -9.0), ("aa", -1.0)], true);
        assert_eq!(encode(&vocabulary, "aaaa"), [1, 1]);
        assert_eq!(encode(&vocabulary, "aaa"), [1, 0]);
    }

    #[test]
    fn merges_chain_through_intermediate_pieces() {
        // ▁hello: he(-1), ll(-2), then ▁+he (-3), he+ll is not a piece, ▁he+ll (-4), ▁hell+o (-5).
        let vocabulary = pieces(
            &[
                ("▁", -20.0),
                ("h", -20.0),
                ("e", -20.0),
                ("l", -20.0),
                ("o", -20.0),
                ("he", -1.0),
                ("ll", -2.0),
                ("▁he", -3.0),
                ("▁hell", -4.0),
                ("▁hello", -5.0),
            ],
            true,
        );
        assert_eq!(encode(&vocabulary, "▁hello"), [9]);
        assert_eq!(encode(&vocabulary, "hello"), [5, 6, 4]);
        assert_eq!(encode(&vocabulary, "▁helo"), [7, 3, 4]);
    }

    #[test]
    fn unknown_characters_become_bytes_or_an_error() {
        let vocabulary = pieces(&[("a", -1.0)], true);
        assert_eq!(
            encode(&vocabulary, "a한"),
            [0, 1000 + 0xed, 1000 + 0x95, 1000 + 0x9c]
        );
        assert_eq!(encode(&vocabulary, ""), [0u32; 0]);
        let without_bytes = pieces(&[("a", -1.0)], false);
        let error = without_bytes.encode("한", &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("한"), "{error}");
    }

    #[test]
    fn a_long_text_is_no_problem() {
        let vocabulary = pieces(&[("a", -9.0), ("aa", -1.0), ("aaaa", -2.0)], true);
        let ids = encode(&vocabulary, &"a".repeat(1 << 18));
        assert_eq!(ids.len(), 1 << 16);
    }
}
