//! Figures of other documents as tables, apart from everything measured here.

use serde::Serialize;

use crate::load::imported::Figure;

#[derive(Debug, Clone, Serialize)]
pub struct SeedRow {
    pub section: String,
    pub metric: String,
    pub subject: String,
    pub condition: String,
    pub value: String,
    pub kind: &'static str,
}

/// Measured and derived figures of one document, each once: later sections repeat earlier tables.
pub fn rows_of(figures: &[Figure], source: &str) -> Vec<SeedRow> {
    let mut seen = std::collections::HashSet::new();
    figures
        .iter()
        .filter(|f| f.source == source && f.kind != "stated" && f.metric != "runs")
        .filter(|f| seen.insert((&f.metric, &f.subject, &f.condition, &f.value, &f.unit)))
        .map(|f| SeedRow {
            section: f.section.clone(),
            metric: metric_label(&f.metric),
            subject: f.subject.clone(),
            condition: if f.condition.is_empty() {
                "–".to_owned()
            } else {
                f.condition.clone()
            },
            value: value_with_unit(f),
            kind: if f.kind == "measured" {
                "측정"
            } else {
                "계산"
            },
        })
        .collect()
}

fn value_with_unit(figure: &Figure) -> String {
    let value = figure
        .value
        .replacen('-', "−", usize::from(figure.number.is_some()));
    let value = if figure.note.starts_with("printed as ~") {
        format!("약 {value}")
    } else {
        value
    };
    match figure.unit.as_str() {
        "percent" => format!("{value} %"),
        "ratio" => format!("{value}배"),
        "count" | "fraction" | "date" | "datetime" | "version" => value,
        "s" => format!("{value}초"),
        unit => format!("{value} {unit}"),
    }
}

/// Korean name of a metric; a metric that is not known keeps its own.
fn metric_label(metric: &str) -> String {
    let (base, suffix) = ["improvement", "reduction", "change", "ratio", "gain"]
        .into_iter()
        .find_map(|s| {
            metric
                .strip_suffix(s)
                .and_then(|m| m.strip_suffix('_'))
                .map(|m| (m, s))
        })
        .unwrap_or((metric, ""));
    let base = match base {
        "latency_mean" => "평균 지연",
        "latency_min" => "최소 지연",
        "latency_max" => "최대 지연",
        "latency_p50" => "P50 지연",
        "latency_p95" => "P95 지연",
        "latency_spread" => "지연 편차 (최대−최소)",
        "output_throughput" => "처리량",
        "output_throughput_mean" => "평균 처리량",
        "output_throughput_max" => "최대 처리량",
        "request_throughput" => "요청 처리량",
        "ttft" => "TTFT",
        "gpu_memory" => "GPU 메모리",
        "model_size" => "모델 크기",
        "memory_needed" => "필요 메모리",
        "overall" => "전체",
        "repeated_run" => "반복 실행",
        "extra" => "추가",
        "n_models_at_once" => "동시 모델 수",
        other => return other.to_owned(),
    };
    let suffix = match suffix {
        "improvement" => " 개선율",
        "reduction" => " 감소",
        "change" => " 변화율",
        "ratio" => " 비율",
        "gain" => " 증가",
        _ => "",
    };
    format!("{base}{suffix}")
}
