//! Finds stop strings in a stream of text, across the borders of its pieces.
//!
//! One Knuth-Morris-Pratt automaton for each stop string reads every byte once. The stop string
//! that is completed first wins (the longest among those completed by the same byte), so the result
//! does not depend on how the text was split. Text is held back exactly while it could be the
//! beginning of a stop string.

use super::TextError;

/// A stop string that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopMatch {
    /// Index of the stop string.
    pub stop_idx: usize,
    /// Index of the push that completed it: with one push per token, the token.
    pub push_idx: usize,
}

/// Finds stop strings; after a match it emits nothing more.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<Automaton>,
    /// The longest prefix of a stop string that the text ends with.
    held: String,
    n_pushes: usize,
    found: Option<StopMatch>,
}

impl StopMatcher {
    /// A matcher of these texts.
    ///
    /// # Errors
    ///
    /// [`TextError::EmptyStop`] if one of them is empty.
    pub fn new(stops: &[String]) -> Result<Self, TextError> {
        if stops.iter().any(String::is_empty) {
            return Err(TextError::EmptyStop);
        }
        let stops = stops.iter().map(|stop| Automaton::new(stop)).collect();
        Ok(Self {
            stops,
            held: String::new(),
            n_pushes: 0,
            found: None,
        })
    }

    /// Returns the text that can be shown now. Push `""` for a token without text, so that pushes
    /// count tokens.
    ///
    /// ```
    /// use engine::text::StopMatcher;
    ///
    /// let mut stops = StopMatcher::new(&["END".to_owned()])?;
    /// assert_eq!(stops.push("the E"), "the "); // "E" may begin a stop string
    /// assert_eq!(stops.push("nd is E"), "End is ");
    /// assert_eq!(stops.push("ND, not shown"), "");
    /// # Ok::<(), engine::text::TextError>(())
    /// ```
    pub fn push(&mut self, text: &str) -> String {
        let push_idx = self.n_pushes;
        self.n_pushes += 1;
        if self.found.is_some() {
            return String::new();
        }
        if self.stops.is_empty() {
            return text.to_owned();
        }
        let mut pending = std::mem::take(&mut self.held);
        let n_held = pending.len();
        pending.push_str(text);
        for (offset, byte) in text.bytes().enumerate() {
            let completed = self
                .stops
                .iter_mut()
                .enumerate()
                .filter_map(|(idx, stop)| stop.step(byte).then_some((stop.pattern.len(), idx)))
                .max_by_key(|(n_bytes, idx)| (*n_bytes, std::cmp::Reverse(*idx)));
            if let Some((n_bytes, stop_idx)) = completed {
                self.found = Some(StopMatch { stop_idx, push_idx });
                pending.truncate(n_held + offset + 1 - n_bytes);
                return pending;
            }
        }
        let n_kept = self
            .stops
            .iter()
            .map(|stop| stop.n_matched)
            .max()
            .unwrap_or(0);
        self.held = pending.split_off(pending.len() - n_kept);
        pending
    }

    /// The text held back; empty after a match.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    pub fn found(&self) -> Option<StopMatch> {
        self.found
    }
}

#[derive(Debug, Clone)]
struct Automaton {
    pattern: Vec<u8>,
    /// `fallback[n]`: the longest proper prefix of the pattern that its first n + 1 bytes end with.
    fallback: Vec<usize>,
    /// Bytes of the pattern that the text so far ends with; less than the pattern's length.
    n_matched: usize,
}

impl Automaton {
    fn new(pattern: &str) -> Self {
        let pattern = pattern.as_bytes().to_vec();
        let mut fallback = vec![0; pattern.len()];
        let mut n = 0;
        for end in 1..pattern.len() {
            while n > 0 && pattern[end] != pattern[n] {
                n = fallback[n - 1];
            }
            if pattern[end] == pattern[n] {
                n += 1;
            }
            fallback[end] = n;
        }
        Self {
            pattern,
            fallback,
            n_matched: 0,
        }
    }

    /// Returns true if `byte` completes the pattern.
    fn step(&mut self, byte: u8) -> bool {
        while self.n_matched > 0 && self.pattern[self.n_matched] != byte {
            self.n_matched = self.fallback[self.n_matched - 1];
        }
        if self.pattern[self.n_matched] == byte {
            self.n_matched += 1;
        }
        if self.n_matched < self.pattern.len() {
            return false;
        }
        self.n_matched = self.fallback[self.n_matched - 1];
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        StopMatcher::new(&stops).unwrap()
    }

    #[test]
    fn finds_a_stop_across_pushes_and_names_the_one_that_completed_it() {
        let mut stop = matcher(&["\n\nQ:", "END"]);
        assert_eq!(stop.push("4\n"), "4");
        assert_eq!(stop.push("\n"), "");
        assert_eq!(stop.push(""), "");
        assert_eq!(stop.push("Q: what"), "");
        assert_eq!(
            stop.found(),
            Some(StopMatch {
                stop_idx: 0,
                push_idx: 3
            })
        );
        assert_eq!(stop.push("more"), "");
        assert_eq!(stop.finish(), "");
    }

    #[test]
    fn holds_back_no_more_than_a_possible_beginning() {
        let mut stop = matcher(&["abcd"]);
        assert_eq!(stop.push("xab"), "x");
        assert_eq!(stop.push("cab"), "abc");
        assert_eq!(stop.push("ce"), "abce");
        assert_eq!(stop.push("ab"), "");
        assert_eq!(stop.finish(), "ab");
        assert_eq!(stop.found(), None);
    }

    #[test]
    fn the_first_completed_wins_and_the_longest_of_those() {
        let mut stop = matcher(&["b", "ab"]);
        assert_eq!(stop.push("xab"), "x");
        assert_eq!(stop.found().unwrap().stop_idx, 1);
        let mut stop = matcher(&["abcdef", "cd"]);
        assert_eq!(stop.push("abcdef"), "ab");
        assert_eq!(stop.found().unwrap().stop_idx, 1);
    }

    #[test]
    fn korean_stops_are_cut_at_characters() {
        let mut stop = matcher(&["습니다."]);
        assert_eq!(stop.push("좋습"), "좋");
        assert_eq!(stop.push("관"), "습관");
        assert_eq!(stop.push("있습니"), "있");
        assert_eq!(stop.push("다. 끝"), "");
        assert!(stop.found().is_some());
    }

    #[test]
    fn empty_stops_are_refused_and_no_stops_pass_all() {
        assert!(matches!(
            StopMatcher::new(&[String::new()]),
            Err(TextError::EmptyStop)
        ));
        assert_eq!(matcher(&[]).push("abc"), "abc");
    }

    /// The definition: the smallest end of any occurrence, then the earliest start.
    fn search(text: &str, stops: &[String]) -> Option<(usize, usize)> {
        (1..=text.len()).find_map(|end| {
            let start = stops
                .iter()
                .filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()))
                .map(|stop| end - stop.len())
                .min()?;
            Some((start, end))
        })
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_text(
            text in "[ab한글]{0,24}",
            stops in proptest::collection::vec("[ab한글]{1,4}", 0..4),
            cuts in proptest::collection::vec(any::<bool>(), 24),
        ) {
            let mut matcher = StopMatcher::new(&stops).unwrap();
            let (mut portion, mut shown, mut n_read, mut found_at) = (String::new(), String::new(), 0, None);
            for (character, cut) in text.chars().zip(cuts.iter().cycle()) {
                portion.push(character);
                if *cut {
                    n_read += portion.len();
                    shown.push_str(&matcher.push(&portion));
                    portion.clear();
                    found_at = found_at.or(matcher.found().map(|_| n_read));
                }
            }
            n_read += portion.len();
            shown.push_str(&matcher.push(&portion));
            found_at = found_at.or(matcher.found().map(|_| n_read));
            shown.push_str(&matcher.finish());
            if let Some((start, end)) = search(&text, &stops) {
                prop_assert_eq!(shown.as_str(), &text[..start]);
                // Reported by the push that holds the match's last byte.
                prop_assert!(found_at.is_some_and(|n| n >= end));
            } else {
                prop_assert_eq!(shown, text);
                prop_assert_eq!(matcher.found(), None);
            }
        }
    }
}
