//! Holds back the end of a growing text that may be the beginning of a tag.

/// Number of bytes at the end of `text` that may begin `tag`.
pub(super) fn held_bytes(text: &str, tag: &str) -> usize {
    (1..tag.len().min(text.len() + 1))
        .rev()
        .find(|n| tag.is_char_boundary(*n) && text.ends_with(&tag[..*n]))
        .unwrap_or(0)
}

/// Removes and returns the text before the tag (`true`: the tag was found and removed), or the text
/// that cannot be part of it.
pub(super) fn take_before(text: &mut String, tag: &str) -> (String, bool) {
    if let Some(at) = text.find(tag) {
        let before = text[..at].to_owned();
        text.drain(..at + tag.len());
        (before, true)
    } else {
        let n_shown = text.len() - held_bytes(text, tag);
        (text.drain(..n_shown).collect(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_possible_beginning_is_held() {
        for (text, n_held) in [
            ("", 0),
            ("a", 0),
            ("a<", 1),
            ("a<th", 3),
            ("<think", 6),
            ("<<", 1),
            ("<tho", 0),
        ] {
            assert_eq!(held_bytes(text, "<think>"), n_held, "{text:?}");
        }
        let mut text = "a<think>b".to_owned();
        assert_eq!(take_before(&mut text, "<think>"), ("a".to_owned(), true));
        assert_eq!(text, "b");
        let mut text = "한<th".to_owned();
        assert_eq!(take_before(&mut text, "<think>"), ("한".to_owned(), false));
        assert_eq!(text, "<th");
    }
}
