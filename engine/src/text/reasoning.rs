//! Splits what a model thinks from what it says: `<think>…</think>` before the answer, as Qwen3
//! writes it.
//!
//! Line breaks around the tags belong to neither side. Deliberately absent: thoughts in the middle
//! of an answer.

use super::held::take_before;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Where the output of a prompt begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThoughtStart {
    /// In a thought that the prompt has opened.
    Inside,
    /// Before a thought, if there is to be one.
    Before,
    /// Behind one that the prompt has closed: there is none to come.
    Behind,
}

impl ThoughtStart {
    /// By the end of a rendered prompt.
    pub fn of_prompt(prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        if prompt.ends_with(OPEN) {
            Self::Inside
        } else if prompt.ends_with(CLOSE) {
            Self::Behind
        } else {
            Self::Before
        }
    }

    /// As [`Self::of_prompt`], where the prompt ends with the beginning of the answer.
    pub fn of_prefilled(prompt: &str, prefill: &str) -> Self {
        match (prefill.rfind(OPEN), prefill.rfind(CLOSE)) {
            (Some(opened), closed) if closed.is_none_or(|closed| closed < opened) => Self::Inside,
            _ if prefill.trim().is_empty() => Self::of_prompt(prompt),
            // An answer that has begun is no place for a thought.
            _ => Self::Behind,
        }
    }
}

/// What a prefilled answer has after its thought; nothing while the thought is open.
pub fn content_of_prefill(prefill: &str) -> &str {
    match (prefill.rfind(OPEN), prefill.rfind(CLOSE)) {
        (Some(opened), closed) if closed.is_none_or(|closed| closed < opened) => "",
        (_, Some(closed)) => prefill[closed + CLOSE.len()..].trim_start_matches('\n'),
        _ => prefill,
    }
}

/// A piece of output, split.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    pub thought: String,
    pub content: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing but white space came.
    Undecided,
    Thought,
    Content,
}

/// Incremental: the pieces' thoughts and contents, concatenated, are those of the whole.
#[derive(Debug)]
pub struct ThoughtSplitter {
    place: Place,
    held: String,
    /// Line breaks that come now stand around a tag.
    drops_breaks: bool,
}

impl ThoughtSplitter {
    pub fn new(start: ThoughtStart) -> Self {
        let place = match start {
            ThoughtStart::Inside => Place::Thought,
            ThoughtStart::Before => Place::Undecided,
            ThoughtStart::Behind => Place::Content,
        };
        Self {
            place,
            held: String::new(),
            drops_breaks: place == Place::Thought,
        }
    }

    pub fn push(&mut self, text: &str) -> Split {
        self.held.push_str(text);
        let mut split = Split::default();
        if self.place == Place::Undecided {
            self.decide();
        }
        if self.place == Place::Thought {
            self.drop_breaks();
            let is_closed = self.take_thought(&mut split);
            if is_closed {
                self.place = Place::Content;
                self.drops_breaks = true;
            }
        }
        if self.place == Place::Content {
            self.drop_breaks();
            split.content = std::mem::take(&mut self.held);
        }
        split
    }

    /// What was held back: there is no more to come.
    pub fn finish(&mut self) -> Split {
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Thought => Split {
                thought: held.trim_end_matches('\n').to_owned(),
                content: String::new(),
            },
            Place::Undecided | Place::Content => Split {
                thought: String::new(),
                content: held,
            },
        }
    }

    fn decide(&mut self) {
        let begun = self.held.trim_start();
        if let Some(rest) = begun.strip_prefix(OPEN) {
            self.held = rest.to_owned();
            self.place = Place::Thought;
            self.drops_breaks = true;
        } else if !OPEN.starts_with(begun) {
            self.place = Place::Content;
        }
    }

    /// Moves what is surely thought; true if it ended.
    fn take_thought(&mut self, split: &mut Split) -> bool {
        let (mut thought, is_closed) = take_before(&mut self.held, CLOSE);
        let n_kept = thought.trim_end_matches('\n').len();
        if is_closed {
            thought.truncate(n_kept);
        } else {
            // Line breaks wait for what comes behind them.
            self.held.insert_str(0, &thought.split_off(n_kept));
        }
        split.thought = thought;
        is_closed
    }

    fn drop_breaks(&mut self) {
        if self.drops_breaks {
            let n_breaks = self.held.len() - self.held.trim_start_matches('\n').len();
            self.held.drain(..n_breaks);
            self.drops_breaks = self.held.is_empty();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(start: ThoughtStart, pieces: &[String]) -> (String, String) {
        let mut splitter = ThoughtSplitter::new(start);
        let mut whole = Split::default();
        let mut take = |part: Split| {
            whole.thought.push_str(&part.thought);
            whole.content.push_str(&part.content);
        };
        for piece in pieces {
            take(splitter.push(piece));
        }
        take(splitter.finish());
        (whole.thought, whole.content)
    }

    fn in_one(start: ThoughtStart, text: &str) -> (String, String) {
        split(start, &[text.to_owned()])
    }

    #[test]
    fn thoughts_are_split_from_answers() {
        use ThoughtStart::{Before, Behind, Inside};
        for (start, text, thought, content) in [
            (Before, "<think>\na < b\n</think>\n\n예", "a < b", "예"),
            (Before, "\n<think>a</think>b", "a", "b"),
            (Before, "no thought", "", "no thought"),
            (Before, "<thin", "", "<thin"),
            (Before, "<think>cut off\n", "cut off", ""),
            (Inside, "\na\n\nb\n</think>\n\nc\n", "a\n\nb", "c\n"),
            (Inside, "cut </thi", "cut </thi", ""),
            (Behind, "<think>literal", "", "<think>literal"),
        ] {
            let expected = (thought.to_owned(), content.to_owned());
            assert_eq!(in_one(start, text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_prompts_end_says_where_the_output_begins() {
        for (prompt, start) in [
            ("<|im_start|>assistant\n", ThoughtStart::Before),
            ("<|im_start|>assistant\n<think>\n", ThoughtStart::Inside),
            (
                "<|im_start|>assistant\n<think>\n\n</think>\n\n",
                ThoughtStart::Behind,
            ),
        ] {
            assert_eq!(ThoughtStart::of_prompt(prompt), start, "{prompt:?}");
        }
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_split_of_the_whole(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("<think>"), Just("</think>"), Just("<"), Just("/th"), Just("\n"),
                    Just("a"), Just("한"), Just("ink>"),
                ],
                0..14,
            ),
            start in prop_oneof![
                Just(ThoughtStart::Inside), Just(ThoughtStart::Before), Just(ThoughtStart::Behind),
            ],
        ) {
            let whole: String = parts.concat();
            let expected = in_one(start, &whole);
            let words: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            prop_assert_eq!(split(start, &words), expected.clone());
            let letters: Vec<String> = whole.chars().map(String::from).collect();
            prop_assert_eq!(split(start, &letters), expected);
        }
    }

    #[test]
    fn a_prefilled_answer_is_past_its_thought_or_in_it() {
        for (prefill, start, content) in [
            ("Sure, ", ThoughtStart::Behind, "Sure, "),
            ("", ThoughtStart::Before, ""),
            ("<think>\nI should", ThoughtStart::Inside, ""),
            (
                "<think>\nok\n</think>\n\nSure",
                ThoughtStart::Behind,
                "Sure",
            ),
            ("</think> <think>", ThoughtStart::Inside, ""),
        ] {
            assert_eq!(
                ThoughtStart::of_prefilled("<a>", prefill),
                start,
                "{prefill}"
            );
            assert_eq!(content_of_prefill(prefill), content, "{prefill}");
        }
        assert_eq!(
            ThoughtStart::of_prefilled("<a><think>", " "),
            ThoughtStart::Inside
        );
    }
}
