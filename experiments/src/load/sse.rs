//! Server-sent events, decoded as bytes arrive.
//!
//! Chunks of a TCP stream end anywhere: inside a line, inside a UTF-8 character, between CR
//! and LF. Only whole lines are decoded, only whole events are returned. Fields other than
//! `data` carry nothing that an OpenAI-compatible stream uses and are skipped.

/// No event of a completion stream comes near this; a server that sends more is broken.
const MAX_EVENT_BYTES: usize = 16 << 20;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SseError {
    #[error("an event of the stream is longer than {MAX_EVENT_BYTES} bytes")]
    TooLong,
    #[error("a line of the stream is not UTF-8")]
    NotUtf8,
}

#[derive(Debug, Default)]
pub struct SseDecoder {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    /// A CR ended the last line, so a LF that follows belongs to it.
    after_cr: bool,
}

impl SseDecoder {
    /// Feeds bytes as they arrived; returns the `data` of every event they complete.
    ///
    /// ```
    /// use experiments::load::sse::SseDecoder;
    ///
    /// let mut decoder = SseDecoder::default();
    /// assert!(decoder.push(b"data: {\"a\"")?.is_empty());
    /// assert_eq!(decoder.push(b": 1}\r\n\r\ndata: [DONE]\n\n")?, [r#"{"a": 1}"#, "[DONE]"]);
    /// # Ok::<(), experiments::load::sse::SseError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If a line is not UTF-8, or an event is too long.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, SseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            let ends_cr_lf = byte == b'\n' && self.after_cr;
            self.after_cr = byte == b'\r';
            match byte {
                b'\n' if ends_cr_lf => {}
                b'\n' | b'\r' => events.extend(self.end_line()?),
                _ if self.line.len() + self.data.len() >= MAX_EVENT_BYTES => {
                    return Err(SseError::TooLong);
                }
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    /// Whether the stream may end here without tearing an event apart.
    pub fn is_between_events(&self) -> bool {
        self.line.is_empty() && !self.has_data
    }

    fn end_line(&mut self) -> Result<Option<String>, SseError> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let complete = std::mem::take(&mut self.has_data);
            return Ok(complete.then(|| std::mem::take(&mut self.data)));
        }
        let line = String::from_utf8(line).map_err(|_| SseError::NotUtf8)?;
        if let Some(value) = line.strip_prefix("data:") {
            if std::mem::replace(&mut self.has_data, true) {
                self.data.push('\n');
            }
            self.data.push_str(value.strip_prefix(' ').unwrap_or(value));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": ping\r\ndata: {\"text\":\"안녕 🎉\"}\r\n\r\nevent: x\ndata:one\ndata: two\n\ndata: [DONE]\r\r";

    #[test]
    fn every_way_of_tearing_gives_the_same_events() {
        let expected = ["{\"text\":\"안녕 🎉\"}", "one\ntwo", "[DONE]"];
        for size in 1..=STREAM.len() {
            let mut decoder = SseDecoder::default();
            let mut events = Vec::new();
            for chunk in STREAM.as_bytes().chunks(size) {
                events.extend(decoder.push(chunk).expect("well formed"));
            }
            assert_eq!(events, expected, "chunks of {size}");
            assert!(decoder.is_between_events());
        }
    }

    #[test]
    fn an_unfinished_event_is_noticed() {
        let mut decoder = SseDecoder::default();
        assert_eq!(decoder.push(b"data: {\"a\":"), Ok(vec![]));
        assert!(!decoder.is_between_events());
        assert_eq!(decoder.push(b"1}\n"), Ok(vec![]));
        assert!(!decoder.is_between_events());
        assert_eq!(decoder.push(b"\n"), Ok(vec!["{\"a\":1}".to_string()]));
        assert!(decoder.is_between_events());
    }

    #[test]
    fn refuses_bytes_that_are_no_text_and_endless_lines() {
        assert_eq!(
            SseDecoder::default().push(b"data: \xff\n"),
            Err(SseError::NotUtf8)
        );
        let endless = vec![b'x'; MAX_EVENT_BYTES + 1];
        assert_eq!(SseDecoder::default().push(&endless), Err(SseError::TooLong));
    }
}
