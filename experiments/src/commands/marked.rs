//! What a command writes into a text that people write, between two marks.

/// The end of every such block.
pub const END: &str = "<!-- until here -->";

/// `text` with `content` between `begin` and [`END`]; `None` where the marks are missing.
pub fn with_block(text: &str, begin: &str, content: &str) -> Option<String> {
    let (before, rest) = text.split_once(begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!(
        "{before}{begin}\n\n{}\n\n{END}{after}",
        content.trim_end()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let begin = "<!-- written by a test -->";
        let text = format!("before\n{begin}\nold\n{END}\nafter\n{END}\n");
        let new = format!("before\n{begin}\n\nnew\n\n{END}\nafter\n{END}\n");
        assert_eq!(with_block(&text, begin, "new\n"), Some(new.clone()));
        assert_eq!(with_block(&new, begin, "new"), Some(new));
        assert_eq!(with_block("no marks", begin, "new"), None);
        assert_eq!(with_block(&format!("{END}{begin}"), begin, "new"), None);
    }
}
