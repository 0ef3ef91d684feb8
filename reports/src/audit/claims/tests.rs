use super::super::quantity::tests::figure;
use super::*;

fn verdict_of(claim: &str, others: &[&str]) -> Outcome {
    let mut all: Vec<Figure> = others.iter().map(|l| figure(l)).collect();
    all.push(figure(claim));
    let names = Names::of(&all);
    recompute(&all[all.len() - 1], &all, &names, Lang::En)
}

#[test]
fn per_cents_differences_and_ratios_are_recomputed() {
    let latency = [
        "latency_mean|A||1054.1|ms|measured",
        "latency_mean|B||975.7|ms|measured",
    ];
    let got = verdict_of(
        "latency_mean_improvement|B vs A||7.4|percent|derived",
        &latency,
    );
    assert_eq!(got.verdict, "follows");
    assert_eq!(got.arithmetic, "(1054.1 − 975.7) ÷ 1054.1 = 7.44 %");
    let got = verdict_of("latency_mean_change|B vs A||-7.4|percent|derived", &latency);
    assert_eq!(got.verdict, "follows");
    let got = verdict_of("latency_mean_reduction|B vs A||78.4|ms|derived", &latency);
    assert_eq!(
        (got.verdict, got.arithmetic.as_str()),
        ("follows", "1054.1 − 975.7 = 78.40 ms")
    );
    let got = verdict_of(
        "latency_mean_improvement|B vs A||9|percent|derived",
        &latency,
    );
    assert_eq!(got.verdict, "fails");
    let rates = [
        "output_throughput|A||77.0|tok/s|measured",
        "output_throughput|B||177.5|tok/s|measured",
    ];
    let got = verdict_of("output_throughput_ratio|B vs A||2.3|ratio|derived", &rates);
    assert_eq!(
        (got.verdict, got.arithmetic.as_str()),
        ("follows", "177.5 ÷ 77.0 = 2.31")
    );
    let spread = [
        "latency_max|A||1059.0|ms|measured",
        "latency_min|A||980.7|ms|measured",
    ];
    assert_eq!(
        verdict_of("latency_spread|A||78.3|ms|derived", &spread).verdict,
        "follows"
    );
}

/// 6.69 and 10.27 give 53.5; unrounded they may have been as far apart as 53.7.
#[test]
fn what_rounding_leaves_open_is_not_decided() {
    let rates = [
        "output_throughput|A||6.69|tok/s|measured",
        "output_throughput|B||10.27|tok/s|measured",
    ];
    let claim = |v: &str| format!("output_throughput_improvement|B vs A||{v}|percent|derived");
    assert_eq!(verdict_of(&claim("53.5"), &rates).verdict, "follows");
    assert_eq!(verdict_of(&claim("53.7"), &rates).verdict, "unknown");
    assert_eq!(verdict_of(&claim("54.0"), &rates).verdict, "fails");
}

#[test]
fn arithmetic_on_another_subjects_figure_does_not_follow() {
    let elsewhere = |line: &str| Figure {
        source: "e".into(),
        document: "e.md".into(),
        ..figure(line)
    };
    let mut all = vec![
        figure("latency_mean|vLLM||1054|ms|measured"),
        figure("latency_mean|SGLang||976|ms|measured"),
        figure("latency_mean_change|SGLang vs vLLM||-7.4|percent|derived"),
    ];
    let verdict = |all: &[Figure]| {
        let names = Names::of(all);
        let got = recompute(&all[2], all, &names, Lang::En);
        (got.verdict, got.reason)
    };
    assert_eq!(verdict(&all).0, "follows");
    all.push(elsewhere("latency_mean|Baseline||1054.1|ms|measured"));
    let (word, reason) = verdict(&all);
    assert_eq!(word, "fails");
    assert_eq!(reason, "1054 ms is not vLLM's but Baseline's (e.md)");
    // A second document that prints it of the same subject bears it out.
    all.push(elsewhere("latency_mean|vLLM||1054|ms|measured"));
    assert_eq!(verdict(&all).0, "follows");
}

/// 10/1.25, 50/6.25, 100/12.5 are 8 tok/s each, 10/1, 50/5, 100/10 are 10: 25 % more, and 6.69
/// is below every row.
#[test]
fn arithmetic_on_a_mean_outside_of_its_table_does_not_follow() {
    let lines = [
        "output_throughput|A|mean|6.69|tok/s|measured",
        "output_throughput|B|mean|10.00|tok/s|measured",
        "latency_mean|A|10 tokens|1.25|s|measured",
        "latency_mean|A|50 tokens|6.25|s|measured",
        "latency_mean|A|100 tokens|12.50|s|measured",
        "latency_mean|B|10 tokens|1.00|s|measured",
        "latency_mean|B|50 tokens|5.00|s|measured",
        "latency_mean|B|100 tokens|10.00|s|measured",
    ];
    let claim = "output_throughput_improvement|B vs A|mean|49.5|percent|derived";
    let got = verdict_of(claim, &lines);
    assert_eq!(got.verdict, "fails");
    assert!(
        got.reason.ends_with("8.00 and 10.00 tok/s, 25.0 %"),
        "{}",
        got.reason
    );
    assert_eq!(verdict_of(claim, &lines[..2]).verdict, "follows");
}

#[test]
fn without_operands_nothing_is_known() {
    let got = verdict_of(
        "request_throughput_improvement|B vs A|5 users|53.6|percent|derived",
        &[],
    );
    assert_eq!(got.verdict, "unknown");
    let got = verdict_of(
        "ttft_improvement|two steps||31|percent|derived",
        &["ttft_improvement|B vs A||31|percent|derived"],
    );
    assert_eq!(got.verdict, "unknown");
    assert!(
        got.reason.contains("whole configuration (B vs A)"),
        "{}",
        got.reason
    );
}
