//! Prometheus text exposition format, version 0.0.4
//! (content type `text/plain; version=0.0.4; charset=utf-8`).

use std::fmt::Write as _;

use super::kinds::Histogram;

/// The page being written; every sample of a model carries the model's name.
pub struct Page<'a> {
    text: String,
    model_name: Option<&'a str>,
}

impl<'a> Page<'a> {
    pub fn new(model_name: Option<&'a str>) -> Self {
        Self {
            text: String::with_capacity(8192),
            model_name,
        }
    }

    pub fn into_text(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {}", escape_help(help));
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, label: &str, label_value: &str, value: f64) {
        let mut labels = Vec::from_iter(engine_label(name));
        if let Some(model_name) = self.model_name {
            labels.push(format!("model_name=\"{}\"", escape_label(model_name)));
        }
        if !label.is_empty() {
            labels.push(format!("{label}=\"{}\"", escape_label(label_value)));
        }
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", labels.join(","))
        };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }

    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, "", &[("", value)]);
    }

    pub fn gauges(&mut self, name: &str, help: &str, label: &str, values: &[(&str, f64)]) {
        self.head(name, help, "gauge");
        for (label_value, value) in values {
            self.sample(name, label, label_value, *value);
        }
    }

    /// A gauge of 1 whose labels carry constants.
    pub fn info(&mut self, name: &str, help: &str, labels: &[(&str, String)]) {
        self.head(name, help, "gauge");
        let model_name = self.model_name.map(|name| ("model_name", name.to_owned()));
        let given = model_name.iter().chain(labels);
        let given = given.map(|(label, value)| format!("{label}=\"{}\"", escape_label(value)));
        let labels: Vec<String> = engine_label(name).into_iter().chain(given).collect();
        let _ = writeln!(self.text, "{name}{{{}}} 1", labels.join(","));
    }

    pub fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, f64)]) {
        self.head(name, help, "counter");
        for (label_value, value) in values {
            self.sample(name, label, label_value, *value);
        }
    }

    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let bucket_name = format!("{name}_bucket");
        let mut n = 0;
        for (bound, cumulative) in histogram.cumulative() {
            let bound = if bound.is_finite() {
                // Whole numbers as `1.0`: dashboards select a bucket by this text.
                format!("{bound:?}")
            } else {
                "+Inf".to_owned()
            };
            self.sample(&bucket_name, "le", &bound, cumulative as f64);
            n = cumulative;
        }
        self.sample(&format!("{name}_sum"), "", "", histogram.sum());
        // From the same snapshot as the buckets, so that it equals the last one.
        self.sample(&format!("{name}_count"), "", "", n as f64);
    }
}

/// vLLM numbers the engines of a server, and its dashboards select by that. A model has one here.
fn engine_label(name: &str) -> Option<String> {
    name.starts_with("vllm:").then(|| "engine=\"0\"".to_owned())
}

fn escape_label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn escape_help(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n")
}
