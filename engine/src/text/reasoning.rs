//! Separates a model's reasoning from its answer: `<think>…</think>` before the answer, as Qwen3
//! writes it.
//!
//! Line breaks around the tags belong to neither part. A tool call inside reasoning that is never
//! closed ends the reasoning, since Qwen3 sometimes omits the tag; if the reasoning is closed
//! later, the call is part of it. Deliberately absent: reasoning in the middle of an answer.

use super::held::{held_bytes, take_before};
use super::tool_calls::{HERMES_OPEN, ToolCallFormat, ToolCallParser};

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// The state at the beginning of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThoughtStart {
    /// Inside reasoning that the prompt has opened.
    Inside,
    /// Before optional reasoning.
    Before,
    /// After reasoning that the prompt has closed: no more will come.
    After,
}

impl ThoughtStart {
    /// Determined by the end of a rendered prompt.
    pub fn of_prompt(prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        if prompt.ends_with(OPEN) {
            Self::Inside
        } else if prompt.ends_with(CLOSE) {
            Self::After
        } else {
            Self::Before
        }
    }

    /// As [`Self::of_prompt`], for a prompt that ends with the beginning of the answer.
    pub fn of_prefilled(prompt: &str, prefill: &str) -> Self {
        match (prefill.rfind(OPEN), prefill.rfind(CLOSE)) {
            (Some(opened), closed) if closed.is_none_or(|closed| closed < opened) => Self::Inside,
            _ if prefill.trim().is_empty() => Self::of_prompt(prompt),
            // After the beginning of an answer there is no reasoning.
            _ => Self::After,
        }
    }
}

/// The part of a prefilled answer after its reasoning; empty while the reasoning is open.
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
    /// Only white space so far.
    Undecided,
    Thought,
    Content,
}

/// Incremental: the reasoning and contents of all pieces, concatenated, are those of the whole.
#[derive(Debug)]
pub struct ThoughtSplitter {
    place: Place,
    held: String,
    /// Following line breaks surround a tag and are dropped.
    drops_breaks: bool,
    /// A call in this format, which begins with a tag, may end the reasoning. From the tag on, text
    /// is held back until the reasoning's end is known.
    tagged_calls: Option<ToolCallFormat>,
}

impl ThoughtSplitter {
    pub fn new(start: ThoughtStart) -> Self {
        let place = match start {
            ThoughtStart::Inside => Place::Thought,
            ThoughtStart::Before => Place::Undecided,
            ThoughtStart::After => Place::Content,
        };
        Self {
            place,
            held: String::new(),
            drops_breaks: place == Place::Thought,
            tagged_calls: None,
        }
    }

    /// Tool calls are expected in this format. Calls without a tag cannot be distinguished from
    /// reasoning.
    #[must_use]
    pub fn with_calls(self, format: Option<ToolCallFormat>) -> Self {
        let has_tag = |format: &ToolCallFormat| *format != ToolCallFormat::Llama3Json;
        let tagged_calls = format.filter(has_tag);
        Self {
            tagged_calls,
            ..self
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

    /// The text held back, at the end of the output.
    pub fn finish(&mut self) -> Split {
        let held = std::mem::take(&mut self.held);
        match self.place {
            Place::Thought => {
                let (thought, content) = held.split_at(self.call_in(&held).unwrap_or(held.len()));
                Split {
                    thought: thought.trim_end_matches('\n').to_owned(),
                    content: content.to_owned(),
                }
            }
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

    /// Offset of a call in the rest of the reasoning.
    fn call_in(&self, held: &str) -> Option<usize> {
        let format = self.tagged_calls?;
        let mut places = held.match_indices(HERMES_OPEN).map(|(at, _)| at);
        places.find(|at| ToolCallParser::begins_with_call(format, &held[*at..]))
    }

    /// Emits what is certainly reasoning; returns true if it ended.
    fn take_thought(&mut self, split: &mut Split) -> bool {
        let waiting = if self.tagged_calls.is_some() && !self.held.contains(CLOSE) {
            let n_shown = self.held.len() - held_bytes(&self.held, HERMES_OPEN);
            let at = self.held.find(HERMES_OPEN).unwrap_or(n_shown);
            self.held.split_off(at)
        } else {
            String::new()
        };
        let (mut thought, is_closed) = take_before(&mut self.held, CLOSE);
        self.held.push_str(&waiting);
        let n_kept = thought.trim_end_matches('\n').len();
        if is_closed {
            thought.truncate(n_kept);
        } else {
            // Line breaks are held back until the following text is known.
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
        split_by(ThoughtSplitter::new(start), pieces)
    }

    fn split_by(mut splitter: ThoughtSplitter, pieces: &[String]) -> (String, String) {
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
        use ThoughtStart::{After, Before, Inside};
        for (start, text, thought, content) in [
            (Before, "<think>\na < b\n</think>\n\n예", "a < b", "예"),
            (Before, "\n<think>a</think>b", "a", "b"),
            (Before, "no thought", "", "no thought"),
            (Before, "<thin", "", "<thin"),
            (Before, "<think>cut off\n", "cut off", ""),
            (Inside, "\na\n\nb\n</think>\n\nc\n", "a\n\nb", "c\n"),
            (Inside, "cut </thi", "cut </thi", ""),
            (After, "<think>literal", "", "<think>literal"),
        ] {
            let expected = (thought.to_owned(), content.to_owned());
            assert_eq!(in_one(start, text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_call_ends_a_thought_that_nothing_else_ends() {
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
        let cut_off = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a";
        for (text, thought, content) in [
            (format!("<think>\nplan\n{call}"), "plan", call.to_owned()),
            (
                format!("<think>{call}\n{call}"),
                "",
                format!("{call}\n{call}"),
            ),
            (
                format!("<think>a <tool_call> b {cut_off}"),
                "a <tool_call> b ",
                cut_off.to_owned(),
            ),
            // Quoted inside reasoning that is closed.
            (
                format!("<think>a {call} b</think>c"),
                &format!("a {call} b"),
                "c".to_owned(),
            ),
            (
                "<think>a <tool_call> b\n".to_owned(),
                "a <tool_call> b",
                String::new(),
            ),
            ("<think>a <tool_ca".to_owned(), "a <tool_ca", String::new()),
        ] {
            for pieces in [vec![text.clone()], text.chars().map(String::from).collect()] {
                let splitter = ThoughtSplitter::new(ThoughtStart::Before);
                let split = split_by(splitter.with_calls(Some(ToolCallFormat::Hermes)), &pieces);
                assert_eq!(split, (thought.to_owned(), content.clone()), "{text}");
            }
            // Without tools it is all reasoning.
            if !text.contains("</think>") {
                assert_eq!(in_one(ThoughtStart::Before, &text).1, "", "{text}");
            }
        }
        // Until a call may begin, reasoning is emitted as it is written.
        let splitter = ThoughtSplitter::new(ThoughtStart::Inside);
        let mut splitter = splitter.with_calls(Some(ToolCallFormat::Hermes));
        assert_eq!(splitter.push("hm <").thought, "hm ");
        assert_eq!(splitter.push("b> x").thought, "<b> x");
    }

    #[test]
    fn a_prompts_end_says_where_the_output_begins() {
        for (prompt, start) in [
            ("<|im_start|>assistant\n", ThoughtStart::Before),
            ("<|im_start|>assistant\n<think>\n", ThoughtStart::Inside),
            (
                "<|im_start|>assistant\n<think>\n\n</think>\n\n",
                ThoughtStart::After,
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
                    Just("a"), Just("한"), Just("ink>"), Just("<tool_call>"),
                    Just("{\"name\": \"f\"}"), Just("tool_call>"),
                ],
                0..14,
            ),
            start in prop_oneof![
                Just(ThoughtStart::Inside), Just(ThoughtStart::Before), Just(ThoughtStart::After),
            ],
        ) {
            let whole: String = parts.concat();
            let words: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            let letters: Vec<String> = whole.chars().map(String::from).collect();
            for format in [None, Some(ToolCallFormat::Hermes)] {
                let split = |pieces: &[String]| {
                    split_by(ThoughtSplitter::new(start).with_calls(format), pieces)
                };
                let expected = split(std::slice::from_ref(&whole));
                prop_assert_eq!(split(&words), expected.clone());
                prop_assert_eq!(split(&letters), expected);
            }
        }
    }

    #[test]
    fn a_prefilled_answer_is_past_its_thought_or_in_it() {
        for (prefill, start, content) in [
            ("Sure, ", ThoughtStart::After, "Sure, "),
            ("", ThoughtStart::Before, ""),
            ("<think>\nI should", ThoughtStart::Inside, ""),
            ("<think>\nok\n</think>\n\nSure", ThoughtStart::After, "Sure"),
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
