//! Figures of other documents as tables, apart from everything measured here.

use serde::Serialize;

use crate::audit::base_and_suffix;
use crate::lang::Lang;
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
pub fn rows_of(figures: &[Figure], source: &str, lang: Lang) -> Vec<SeedRow> {
    let mut seen = std::collections::HashSet::new();
    figures
        .iter()
        .filter(|f| f.source == source && f.kind != "stated" && f.metric != "runs")
        .filter(|f| seen.insert((&f.metric, &f.subject, &f.condition, &f.value, &f.unit)))
        .map(|f| SeedRow {
            section: f.section.clone(),
            metric: metric_label(&f.metric, lang),
            subject: f.subject.clone(),
            condition: if f.condition.is_empty() {
                "–".to_owned()
            } else {
                f.condition.clone()
            },
            value: value_with_unit(f, lang),
            kind: if f.kind == "measured" {
                lang.pick("측정", "measured")
            } else {
                lang.pick("계산", "derived")
            },
        })
        .collect()
}

/// As printed, with its unit.
pub fn value_with_unit(figure: &Figure, lang: Lang) -> String {
    let value = figure
        .value
        .replacen('-', "−", usize::from(figure.number.is_some()));
    let value = if figure.note.starts_with("printed as ~") {
        format!("{} {value}", lang.pick("약", "about"))
    } else {
        value
    };
    match figure.unit.as_str() {
        "percent" => format!("{value} %"),
        "ratio" => format!("{value}{}", lang.pick("배", "×")),
        "count" | "fraction" | "date" | "datetime" | "version" => value,
        "s" => format!("{value}{}", lang.pick("초", " s")),
        unit => format!("{value} {unit}"),
    }
}

/// Name of a metric; one that is not known keeps its own.
pub fn metric_label(metric: &str, lang: Lang) -> String {
    let (base, suffix) = base_and_suffix(metric);
    let base = match base {
        "latency_mean" => lang.pick("평균 지연", "mean latency"),
        "latency_min" => lang.pick("최소 지연", "smallest latency"),
        "latency_max" => lang.pick("최대 지연", "largest latency"),
        "latency_p50" => lang.pick("P50 지연", "P50 latency"),
        "latency_p95" => lang.pick("P95 지연", "P95 latency"),
        "latency_spread" => lang.pick("지연 편차 (최대−최소)", "latency spread (max − min)"),
        "output_throughput" => lang.pick("처리량", "throughput"),
        "output_throughput_mean" => lang.pick("평균 처리량", "mean throughput"),
        "output_throughput_max" => lang.pick("최대 처리량", "largest throughput"),
        "request_throughput" => lang.pick("요청 처리량", "request throughput"),
        "ttft" => "TTFT",
        "gpu_memory" => lang.pick("GPU 메모리", "GPU memory"),
        "gpu_memory_utilization" => lang.pick("GPU 메모리 몫", "share of GPU memory"),
        "gpu_memory_left" => lang.pick("남는 GPU 메모리", "GPU memory left"),
        "model_size" => lang.pick("모델 크기", "model size"),
        "memory_needed" => lang.pick("필요 메모리", "memory needed"),
        "overall" => lang.pick("전체", "overall"),
        "repeated_run" => lang.pick("반복 실행", "repeated runs"),
        "extra" => lang.pick("추가", "further"),
        "n_models_at_once" => lang.pick("동시 모델 수", "models at once"),
        "n_samples" => lang.pick("표본 수", "samples"),
        other => other,
    };
    let suffix = match suffix {
        "improvement" => lang.pick(" 개선율", ", improvement"),
        "reduction" => lang.pick(" 감소", ", reduction"),
        "change" => lang.pick(" 변화율", ", change"),
        "ratio" => lang.pick(" 비율", ", ratio"),
        "gain" => lang.pick(" 증가", ", gain"),
        _ => "",
    };
    format!("{base}{suffix}")
}
