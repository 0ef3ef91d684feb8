//! Text from outside, fit for a terminal: a file's or a server's text must not move the cursor, change
//! colours or write a terminal's title.

/// `text` with control characters and those that change the direction of writing as escapes, except
/// newlines and tabs.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmless(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_unicode());
        }
    }
    shown
}

fn is_harmless(character: char) -> bool {
    let changes_direction = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    matches!(character, '\n' | '\t') || !(character.is_control() || changes_direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_shown_and_not_sent() {
        assert_eq!(printable("a\u{1b}[31mred\u{7}"), "a\\u{1b}[31mred\\u{7}");
        assert_eq!(
            printable("\u{9b}2J\r\u{202e}x"),
            "\\u{9b}2J\\u{d}\\u{202e}x"
        );
        let plain = "한글, tabs\tand\nlines 🎉";
        assert_eq!(printable(plain), plain);
    }
}
