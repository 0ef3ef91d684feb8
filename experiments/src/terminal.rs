//! Text that others wrote, for a terminal: a server's error, a model's name, a record from elsewhere
//! could steer it otherwise (colours, the title, the clipboard).

/// With a picture in place of every control character but the end of a line and the tab, and without
/// characters that change the direction of writing.
pub fn plain(text: &str) -> String {
    text.chars().map(shown).collect()
}

/// An error and its causes in one line. Some errors end with their cause's text already; it is said
/// once.
pub fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}

fn shown(c: char) -> char {
    match c {
        '\n' | '\t' => c,
        // The pictures of control characters stand in their order.
        '\0'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\u{7f}' => '\u{2421}',
        '\u{80}'..='\u{9f}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c => c,
    }
}

/// `println!` of text that others may have written.
macro_rules! say {
    ($($argument:tt)*) => {
        println!("{}", $crate::terminal::plain(&format!($($argument)*)))
    };
}

/// `eprintln!` of text that others may have written.
macro_rules! note {
    ($($argument:tt)*) => {
        eprintln!("{}", $crate::terminal::plain(&format!($($argument)*)))
    };
}

pub(crate) use {note, say};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_a_terminal() {
        assert_eq!(
            plain("\u{1b}]52;c;x\u{7}\u{9b}1m\u{202e}a\r\n\t한\u{7f}"),
            "␛]52;c;x␇\u{fffd}1m\u{fffd}a␍\n\t한␡"
        );
    }

    #[test]
    fn a_cause_that_its_error_repeats_is_said_once() {
        let refused = || std::io::Error::other("Connection refused (os error 111)");
        let repeated = anyhow::Error::new(refused())
            .context(format!("127.0.0.1:1 cannot be reached: {}", refused()))
            .context("the server");
        let line = "the server: 127.0.0.1:1 cannot be reached: Connection refused (os error 111)";
        assert_eq!(in_one_line(&repeated), line);
        let plain = anyhow::Error::new(refused()).context("the server");
        assert_eq!(
            in_one_line(&plain),
            "the server: Connection refused (os error 111)"
        );
    }
}
