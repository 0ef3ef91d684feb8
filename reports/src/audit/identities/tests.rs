use super::super::quantity::tests::figure;
use super::*;

fn found(lines: &[&str]) -> Vec<(&'static str, &'static str, String)> {
    let figures: Vec<Figure> = lines.iter().map(|line| figure(line)).collect();
    let names = Names::of(&figures);
    let rows = rows(&figures, &names, Lang::En).into_iter();
    rows.map(|row| (row.rule, row.verdict, row.arithmetic))
        .collect()
}

/// 10 / 1.29 = 7.75, 50 / 5.94 = 8.42, 100 / 11.80 = 8.47: mean 8.21.
const LADDER: [&str; 3] = [
    "latency_mean|vLLM|10 tokens|1.29|s|measured",
    "latency_mean|vLLM|50 tokens|5.94|s|measured",
    "latency_mean|vLLM|100 tokens|11.80|s|measured",
];

#[test]
fn a_mean_lies_within_its_table() {
    let with = |speed: &'static str| found(&[&LADDER[..], &[speed]].concat());
    let got = with("output_throughput|vLLM|mean|6.69|tok/s|measured");
    assert_eq!(got[0].1, "fails");
    assert_eq!(
        got[0].2,
        "vLLM: mean(7.75, 8.42, 8.47) = 8.21 tok/s, printed 6.69 tok/s"
    );
    let got = with("output_throughput|vLLM|mean|8.21|tok/s|measured");
    assert_eq!(got[0].1, "holds");
    // Neither the mean nor impossible: nothing is said.
    assert_eq!(with("output_throughput|vLLM|mean|8.4|tok/s|measured"), []);
}

/// 1.0541 s × 10.16 = 10.71 tokens, 0.9757 s × 10.27 = 10.02.
#[test]
fn rows_of_one_table_are_of_one_number_of_tokens() {
    let lines = [
        "latency_mean|A||1054.1|ms|measured",
        "output_throughput|A||10.16|tok/s|measured",
        "latency_mean|B||975.7|ms|measured",
        "output_throughput|B||10.27|tok/s|measured",
    ];
    let got = found(&lines);
    assert_eq!(got.len(), 1);
    assert_eq!((got[0].0, got[0].1), ("latency × speed = tokens", "fails"));
    assert!(
        got[0].2.contains("= 10.71") && got[0].2.contains("= 10.02"),
        "{}",
        got[0].2
    );
    let same = [
        lines[0],
        lines[1],
        "latency_mean|B||1042.0|ms|measured",
        lines[3],
    ];
    assert_eq!(found(&same), []);
}

/// Slope (11.80 − 1.29) / 90 = 116.8 ms: the first token came after 1290 − 9 × 116.8 = 239 ms.
#[test]
fn a_first_token_fits_its_latency() {
    let with = |ttft: &'static str| found(&[&LADDER[..], &[ttft]].concat());
    assert_eq!(with("ttft|vLLM||240|ms|measured"), []);
    let got = with("ttft|vLLM||283|ms|measured");
    assert_eq!(got[0].1, "fails");
    assert!(
        got[0].2.contains("1,290 ms − 9 × 116.8 ms = 239 ms"),
        "{}",
        got[0].2
    );
}

#[test]
fn a_closed_loop_obeys_little() {
    let with = |latency: &'static str| {
        found(&["request_throughput|A|10 users|1.15|req/s|measured", latency])
    };
    assert_eq!(
        with("latency_mean|A|10 users|8.66|s|measured")[0].1,
        "holds"
    );
    assert_eq!(
        with("latency_mean|A|10 users|4.33|s|measured")[0].1,
        "fails"
    );
    let figures = [
        figure("request_throughput_improvement|B vs A|5 users|53.6|percent|derived"),
        figure("latency_mean_change|B vs A|5 users|-34.3|percent|derived"),
    ];
    // 1.536 × 0.657 = 1.009.
    let (arithmetic, holds) = little_of_changes(&figures[0], &figures).unwrap();
    assert_eq!(
        (arithmetic.as_str(), holds),
        ("1.536 × 0.657 = 1.009", true)
    );
    let wrong = figure("latency_mean_change|B vs A|5 users|-44.3|percent|derived");
    let (_, holds) = little_of_changes(&figures[0], &[figures[0].clone(), wrong]).unwrap();
    assert!(!holds);
}

#[test]
fn what_cannot_well_be_is_doubtful() {
    let users = found(&[
        "latency_mean|A|10 users|4.76|s|measured",
        "latency_mean|A|20 users|4.75|s|measured",
    ]);
    assert_eq!(
        (users[0].0, users[0].1),
        ("more users wait longer", "doubtful")
    );
    // 9 ms at 381.2 tok/s are 3.4 tokens; 90 ms are 34.
    let rate = "output_throughput_max|A||381.2|tok/s|measured";
    let median = |p50: &'static str| found(&[rate, p50]);
    assert!(
        median("latency_p50|A||0.009|s|measured")[0]
            .2
            .ends_with("= 3.4")
    );
    assert_eq!(median("latency_p50|A||0.090|s|measured"), []);
    let versions = found(&[
        "cuda_version|all||12.8|version|stated",
        "cuda_version|driver||12.9|version|stated",
    ]);
    assert_eq!(versions[0].2, "CUDA: 12.8 / 12.9");
}

/// 32 billion weights of 4 bits are 16 GB; 10.28 of them a second are 164 GB/s of 1,792.
#[test]
fn a_tenth_of_the_card_is_said() {
    let with = |speed: &'static str| {
        found(&[
            "gpu_memory_capacity|RTX 5090||32|GB|stated",
            "weight_bits|Qwen3-32B-AWQ||4|count|stated",
            speed,
        ])
    };
    let got = with("output_throughput|A||10.28|tok/s|measured");
    assert_eq!(got[0].1, "doubtful");
    assert_eq!(
        got[0].2,
        "10.28 tok/s × 16 GB = 164 GB/s, RTX 5090 1,792 GB/s"
    );
    assert_eq!(with("output_throughput|A||80|tok/s|measured"), []);
    assert_eq!(
        with("output_throughput|A||120|tok/s|measured")[0].1,
        "fails"
    );
    assert_eq!(billions_of_parameters("TinyLlama 1.1B"), Some(1.1));
    assert_eq!(billions_of_parameters("no size"), None);
}
