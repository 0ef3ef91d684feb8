//! Samples with times of their own, into Prometheus's remote-write receiver: what a scrape of the
//! replicas at that time would have read, with the labels that the operator's ServiceMonitor gives.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use prost::Message;

use super::fleet::Page;
use crate::http;

/// What Prometheus writes when a target is gone: its series end at once.
const STALE: u64 = 0x7ff0_0000_0000_0002;

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    /// Sorted by name.
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp_ms: i64,
}

type Series = (Vec<Label>, f64);

pub struct Pusher {
    address: String,
    /// What is kept of a page: series whose names begin so.
    kept: Vec<String>,
    /// Series of the last scrape.
    last: BTreeSet<Vec<Label>>,
}

impl Pusher {
    pub fn new(address: &str, kept: &[String]) -> Self {
        Self {
            address: address.to_owned(),
            kept: kept.to_vec(),
            last: BTreeSet::new(),
        }
    }

    /// The pages of all replicas, and the picker's queue.
    pub fn scrape(&mut self, unix_s: f64, pages: &[Page], n_held: u32) -> Result<()> {
        let mut series = vec![picker(n_held)];
        for page in pages {
            series.extend(series_of(page, &self.kept)?);
        }
        let now: BTreeSet<Vec<Label>> = series.iter().map(|(labels, _)| labels.clone()).collect();
        let gone = self.last.difference(&now).cloned();
        series.extend(
            gone.map(|labels| (labels, f64::from_bits(STALE)))
                .collect::<Vec<_>>(),
        );
        self.last = now;
        self.write(series, (unix_s * 1e3).round() as i64)
    }

    fn write(&self, series: Vec<Series>, timestamp_ms: i64) -> Result<()> {
        let timeseries = series.into_iter().map(|(labels, value)| TimeSeries {
            labels,
            samples: vec![Sample {
                value,
                timestamp_ms,
            }],
        });
        let request = WriteRequest {
            timeseries: timeseries.collect(),
        };
        let body = snap::raw::Encoder::new().compress_vec(&request.encode_to_vec())?;
        let headers = [
            ("content-type", "application/x-protobuf"),
            ("content-encoding", "snappy"),
            ("x-prometheus-remote-write-version", "0.1.0"),
        ];
        let answer = http::post_bytes(&self.address, "/api/v1/write", &headers, &body)?;
        if answer.status / 100 != 2 {
            bail!(
                "Prometheus refuses samples: {} {}",
                answer.status,
                answer.body
            );
        }
        Ok(())
    }
}

fn labels(name: &str, more: &[(&str, &str)]) -> Vec<Label> {
    let all = std::iter::once(("__name__", name)).chain(more.iter().copied());
    let mut labels: Vec<Label> = all
        .map(|(name, value)| Label {
            name: name.to_owned(),
            value: value.to_owned(),
        })
        .collect();
    labels.sort();
    labels
}

fn picker(n_held: u32) -> Series {
    let more = [("job", "engine-picker"), ("inference_pool", "engine")];
    let name = "inference_extension_flow_control_queue_size";
    (labels(name, &more), f64::from(n_held))
}

/// The kept samples of a page, whose label values have neither quotes nor commas.
fn series_of(page: &Page, kept: &[String]) -> Result<Vec<Series>> {
    let one = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, own) = series.split_once('{').unwrap_or((series, "}"));
        let mut more = vec![("job", "engine"), ("instance", page.name.as_str())];
        for pair in own
            .strip_suffix('}')?
            .split(',')
            .filter(|pair| !pair.is_empty())
        {
            let (label, value) = pair.split_once('=')?;
            more.push((label, value.trim_matches('"')));
        }
        Some((labels(name, &more), value.parse().ok()?))
    };
    let is_kept = |line: &&str| kept.iter().any(|name| line.starts_with(name));
    let lines = page.page.lines().filter(is_kept);
    lines
        .map(|line| one(line).with_context(|| line.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pages_samples_get_the_labels_of_a_scrape() {
        let page = Page {
            name: "engine-3".to_owned(),
            page: "# TYPE a counter\nvllm:a_bucket{engine=\"0\",le=\"+Inf\"} 7\nb 0.5\nother 1\n"
                .to_owned(),
        };
        let series = series_of(&page, &["vllm:a".to_owned(), "b".to_owned()]).expect("samples");
        let text = |labels: &[Label]| {
            let all = labels.iter().map(|l| format!("{}={}", l.name, l.value));
            all.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(series.len(), 2);
        assert_eq!(
            text(&series[0].0),
            "__name__=vllm:a_bucket engine=0 instance=engine-3 job=engine le=+Inf"
        );
        assert!((series[0].1 - 7.0).abs() < 1e-12 && (series[1].1 - 0.5).abs() < 1e-12);
        let broken = Page {
            name: "x".to_owned(),
            page: "a{b} c".to_owned(),
        };
        assert!(series_of(&broken, &["a".to_owned()]).is_err());
    }

    #[test]
    fn a_request_has_the_bytes_of_the_protocol() {
        let request = WriteRequest {
            timeseries: vec![TimeSeries {
                labels: labels("a", &[]),
                samples: vec![Sample {
                    value: 1.0,
                    timestamp_ms: 3,
                }],
            }],
        };
        let bytes = request.encode_to_vec();
        // Field 1, 28 bytes; of these field 1, 13 bytes: name and value; field 2, 11 bytes.
        assert_eq!(bytes[..4], [10, 28, 10, 13]);
        assert_eq!(bytes[4..17], *b"\x0a\x08__name__\x12\x01a");
        assert_eq!(
            bytes[17..],
            [18, 11, 9, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 16, 3]
        );
    }
}
