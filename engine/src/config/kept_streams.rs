//! Limits of streams that can be resumed.

use std::time::Duration;

use serde::Serialize;

use super::resolved::ConfigError;
use super::typed::HttpArgs;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KeptStreamLimits {
    /// 0: none is kept.
    pub streams: usize,
    /// Of all events together.
    pub bytes: usize,
    /// How long a stream goes on without a reader, and is kept once it has ended.
    pub period: Duration,
}

impl Default for KeptStreamLimits {
    fn default() -> Self {
        Self {
            streams: 256,
            bytes: 64 << 20,
            period: Duration::from_mins(1),
        }
    }
}

impl HttpArgs {
    pub(super) fn resolve_kept_streams(&self) -> Result<KeptStreamLimits, ConfigError> {
        let default = KeptStreamLimits::default();
        let bytes = self.max_kept_stream_bytes.unwrap_or(default.bytes as u64);
        if !(1024..=1 << 40).contains(&bytes) {
            let limit = "must be between 1KiB and 1TiB";
            return Err(ConfigError::new("--max-kept-stream-bytes", bytes, limit));
        }
        Ok(KeptStreamLimits {
            streams: self.max_kept_streams.unwrap_or(default.streams),
            bytes: bytes as usize,
            period: self
                .kept_stream_s
                .map_or(default.period, Duration::from_secs),
        })
    }
}
