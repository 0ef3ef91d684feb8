use std::sync::Arc;

use super::card::{Card, DecodePoint, MeasuredModel, PackedAttention, PrefillPoint, Rates, Steps};
use super::*;
use crate::kv::{PageCopy, PageIdx, pages_for};
use crate::request::{RequestId, SamplingParams};
use crate::sampler::SampleSpec;
use crate::step::PlanRow;

const MODEL: MeasuredModel = MeasuredModel {
    layer_bytes: 16_000_000_000,
    head_bytes: 1_000_000_000,
    layer_elements: 31_000_000_000,
    head_elements: 500_000_000,
    kv_bytes_per_token: 262_144,
    n_layers: 64,
    n_q_heads: 64,
    n_kv_heads: 8,
    head_dim: 128,
};

fn rates(bandwidth_gb_per_s: f64, n_sms: u32) -> Rates {
    Rates {
        name: format!("card of {n_sms}"),
        source: "made up".into(),
        memory_bytes: 80 << 30,
        bandwidth_gb_per_s,
        fp16_tflops: 900.0,
        n_sms,
        clock_ghz: 2.0,
        host_link_gb_per_s: 50.0,
    }
}

fn card(rates_here: Rates) -> Card {
    let decode = |rows, ms| DecodePoint {
        rows,
        context_tokens: 200.0,
        ms,
        graph: false,
    };
    let prefill = |tokens, ms| PrefillPoint {
        tokens,
        ms,
        prompts: 1,
        step_alone: false,
    };
    Card {
        rates: rates_here,
        measured_on: rates(3000.0, 100),
        never_run: false,
        steps: Steps {
            source: "made up".into(),
            fitted_on: Vec::new(),
            model: MODEL,
            max_pass_rows: 64,
            packed_attention: PackedAttention {
                block_rows: 64,
                tile_tokens: 64,
                tile_us: 3.0,
                full_tile_us: 2.0,
            },
            read_share: 0.8,
            kv_bandwidth_share: 0.5,
            shared_kv_gb_per_s: 6000.0,
            two_halves_share: 0.9,
            launch_ms: 0.25,
            request_ms: 0.5,
            arrival_spacing_ms: 0.0,
            tokenize_us: 2.0,
            decode: vec![decode(1, 8.0), decode(10, 10.0), decode(20, 14.0)],
            prefill: vec![prefill(40, 23.0), prefill(64, 26.0), prefill(80, 99.0)],
        },
    }
}

fn simulated(card: Card, graph_sizes: &[usize]) -> SimulatedExecutor {
    let options = SimulatedOptions {
        kv_pool_tokens: 1 << 20,
        weight_bytes: 1,
        kv_bytes_per_token: MODEL.kv_bytes_per_token,
        graph_sizes: graph_sizes.to_vec(),
        two_batch_overlap: false,
        host_tier_pages: Some(10),
    };
    SimulatedExecutor::new(CostModel::new(card, MODEL), options)
}

/// `n` rows of `n_tokens` each that sample, at position `start`, each with its own pages.
fn plan(n: u64, n_tokens: usize, start: usize, n_steps: usize) -> StepPlan {
    let rows = (0..n).map(|id| PlanRow {
        n_drafts: 0,
        request: RequestId(id),
        tokens: vec![1; n_tokens],
        start,
        pages: (0..pages_for(start + n_tokens + n_steps) as u32)
            .map(|page| PageIdx(id as u32 * 10_000 + page))
            .collect(),
        sample: Some(SampleSpec {
            params: Arc::new(SamplingParams::default()),
            output_index: 0,
            history: Vec::new(),
            n_prompt: start,
        }),
    });
    StepPlan {
        rows: rows.collect(),
        n_steps,
        ..StepPlan::default()
    }
}

fn ms(executor: &mut SimulatedExecutor, plan: &StepPlan) -> f64 {
    let output = executor.execute(plan).unwrap();
    assert!(
        output
            .rows
            .iter()
            .all(|row| row.tokens.len() == plan.n_steps)
    );
    executor.take_elapsed().as_secs_f64() * 1e3
}

fn close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance * expected
}

#[test]
fn measured_steps_come_out_again() {
    let mut executor = simulated(card(rates(3000.0, 100)), &[]);
    for (rows, expected) in [(1, 8.0), (10, 10.0), (20, 14.0)] {
        let found = ms(&mut executor, &plan(rows, 1, 199, 1));
        assert!(close(found, expected, 0.01), "{rows} rows: {found} ms");
    }
    // The time of a request outside its step is not the executor's, and neither is the tokenizer's.
    for (tokens, expected) in [(40, 22.42), (64, 25.372)] {
        let found = ms(&mut executor, &plan(1, tokens, 0, 1));
        assert!(close(found, expected, 0.01), "{tokens} tokens: {found} ms");
    }
    let found = ms(&mut executor, &plan(15, 1, 199, 1));
    assert!(close(found, 12.0, 0.01), "between two points: {found} ms");
}

#[test]
fn long_steps_are_cut_and_bursts_add_up() {
    let mut executor = simulated(card(rates(3000.0, 100)), &[]);
    let one = ms(&mut executor, &plan(1, 64, 0, 1));
    let two = ms(&mut executor, &plan(2, 64, 0, 1));
    assert!(close(two, 2.0 * one, 1e-6), "{two} ms for twice {one} ms");
    let single: f64 = (0..4)
        .map(|i| ms(&mut executor, &plan(3, 1, 100 + i, 1)))
        .sum();
    let burst = ms(&mut executor, &plan(3, 1, 100, 4));
    assert!(close(burst, single, 1e-6), "{burst} ms for {single} ms");
}

#[test]
fn graphs_save_the_launch_and_context_costs_bandwidth() {
    let mut without = simulated(card(rates(3000.0, 100)), &[]);
    let mut with = simulated(card(rates(3000.0, 100)), &[1, 2, 4]);
    let saved = |n| ms(&mut without, &plan(n, 1, 9, 1)) - ms(&mut with, &plan(n, 1, 9, 1));
    let saved: Vec<f64> = [4, 5].map(saved).into();
    assert!(
        close(saved[0], 0.25, 1e-3) && saved[1].abs() < 1e-6,
        "{saved:?}"
    );
    let longer = ms(&mut with, &plan(1, 1, 10_009, 1)) - ms(&mut with, &plan(1, 1, 9, 1));
    // 10,000 tokens of 262,144 bytes at half of 3 TB/s.
    assert!(close(longer, 1.7476, 1e-3), "{longer} ms");
}

#[test]
fn a_batch_takes_the_time_of_the_graph_that_holds_it() {
    let mut padded = simulated(card(rates(3000.0, 100)), &[20]);
    let mut plain = simulated(card(rates(3000.0, 100)), &[]);
    let kv_ms = |n_rows: f64| n_rows * 200.0 * 262_144.0 / 1.5e9;
    let found = ms(&mut padded, &plan(12, 1, 199, 1));
    // 14 ms is the time of 20 rows without a graph, including their KV and 0.25 ms of launches.
    let expected = 14.0 - 0.25 - kv_ms(20.0) + kv_ms(12.0);
    assert!(close(found, expected, 1e-3), "{found} for {expected} ms");
    assert!(ms(&mut plain, &plan(12, 1, 199, 1)) < found);
}

#[test]
fn what_another_row_has_read_comes_from_the_cache() {
    let mut executor = simulated(card(rates(3000.0, 100)), &[]);
    let own = plan(10, 1, 1_599, 1);
    let mut shared = own.clone();
    for row in &mut shared.rows {
        // All rows share the first 1,440 tokens.
        for page in &mut row.pages[..90] {
            page.0 %= 10_000;
        }
    }
    let saved = ms(&mut executor, &own) - ms(&mut executor, &shared);
    // 9 rows read 1,440 tokens of 262,144 bytes at 6 instead of 1.5 TB/s.
    let bytes = 9.0 * 1_440.0 * 262_144.0;
    assert!(
        close(saved, bytes * (1.0 / 1.5e9 - 1.0 / 6e9), 1e-3),
        "{saved} ms"
    );
}

#[test]
fn a_block_of_a_prompt_walks_its_whole_prefix() {
    let mut executor = simulated(card(rates(3000.0, 100)), &[]);
    let mut after = |start| ms(&mut executor, &plan(1, 8, start, 1));
    // 8 tokens of 8 heads are one block for each KV head; 960 more tokens are 15 tiles of 3 us in
    // 64 layers.
    let saved = after(1_016) - after(56);
    assert!(close(saved, 15.0 * 3.0e-3 * 64.0, 1e-3), "{saved} ms");
    // 64 blocks on 20 multiprocessors: now all tiles at 2 us each are the limit, not one block. One of 20
    // multiprocessors has five times the peak rate of one of 100, so a tile's products take a fifth.
    let products_ms = f64::from(4 * 64 * 64 * 128) / (900e12 / 100.0) * 1e3;
    let tile_ms = 2.0e-3 - 0.8 * products_ms;
    let mut small = simulated(card(rates(3000.0, 20)), &[]);
    let mut after = |start| ms(&mut small, &plan(8, 8, start, 1));
    let saved = after(1_016) - after(56);
    assert!(
        close(saved, 64.0 * 15.0 / 20.0 * tile_ms * 64.0, 1e-3),
        "{saved} ms"
    );
}

#[test]
fn a_step_begun_ahead_is_waited_for_where_another_plan_comes() {
    let mut executor = simulated(card(rates(3000.0, 100)), &[]);
    let step = |start| {
        let mut step = plan(3, 1, start, 1);
        step.lookahead_steps = 1;
        for row in &mut step.rows {
            row.tokens = vec![MADE_UP_TOKEN];
            row.pages.resize(20, PageIdx(0));
            let sample = row.sample.as_mut();
            sample.unwrap().output_index = start;
        }
        step
    };
    let newcomer = plan(1, 40, 0, 1);
    let alone = ms(&mut executor, &newcomer);
    // A batch's first step begins nothing ahead; from its second on it does.
    let mut decoded = |starts: std::ops::Range<usize>| {
        let steps: Vec<f64> = starts
            .map(|start| ms(&mut executor, &step(start)))
            .collect();
        (steps, ms(&mut executor, &newcomer), executor.counts())
    };
    let (_, after_one, _) = decoded(100..101);
    assert!(close(after_one, alone, 1e-6), "{after_one} ms");
    let (steps, after_three, counts) = decoded(100..103);
    assert!(
        close(after_three, alone + steps[2], 1e-3),
        "{after_three} ms"
    );
    assert_eq!((counts.run_ahead_used, counts.run_ahead_discarded), (1, 1));
}

#[test]
fn two_halves_read_the_layers_twice_and_the_head_once() {
    let mut whole = simulated(card(rates(3000.0, 100)), &[]);
    let mut halves = SimulatedExecutor {
        two_batch_overlap: true,
        ..simulated(card(rates(3000.0, 100)), &[])
    };
    let one = ms(&mut whole, &plan(1, 1, 199, 1));
    assert!(
        close(ms(&mut halves, &plan(1, 1, 199, 1)), one, 1e-6),
        "one row has no halves"
    );
    let two = ms(&mut halves, &plan(2, 1, 199, 1));
    assert!(two > 1.6 * one && two < 1.8 * one, "{two} ms of {one} ms");
    let prompt = ms(&mut whole, &plan(1, 40, 0, 1));
    assert!(
        close(ms(&mut halves, &plan(1, 40, 0, 1)), prompt, 1e-6),
        "prompts are not split"
    );
}

#[test]
fn copies_run_beside_a_step_at_the_links_rate() {
    let mut executor = simulated(card(rates(3000.0, 100)), &[]);
    let step = ms(&mut executor, &plan(1, 1, 199, 1));
    let page = |number| PageCopy {
        device: PageIdx(number),
        host: PageIdx(number),
    };
    let mut copying = plan(1, 1, 199, 1);
    copying.copies.offloads = vec![page(1)];
    // 16 tokens of 262,144 bytes at 50 GB/s take 0.084 ms: hidden by the step.
    assert!(close(ms(&mut executor, &copying), step, 1e-6));
    copying.copies.restores = (0..199).map(page).collect();
    let found = ms(&mut executor, &copying);
    assert!(close(found, 200.0 * 0.083_886, 1e-3), "{found} ms");
    let counts = executor.counts();
    assert_eq!(counts.copied_pages, 201);
    assert!(close(counts.copy_ns as f64, 201.0 * 83_886.0, 1e-3));
}

#[test]
fn another_card_scales_by_bandwidth_clock_multiprocessors_and_its_peak() {
    let at = |card_rates: Rates, rows| {
        let mut executor = simulated(card(card_rates), &[1, 20, 64]);
        ms(&mut executor, &plan(rows, 1, 0, 1))
    };
    let kv_ms = |n_rows: f64, gb_per_s: f64| n_rows * 262_144.0 / (0.5 * gb_per_s * 1e6);
    let slower = at(rates(1500.0, 100), 1) - at(rates(3000.0, 100), 1);
    // 17 GB at 0.8 of 1.5 instead of 3 TB/s; what borders take stays.
    let expected = 17e9 / (0.8 * 3000e9) * 1e3 + kv_ms(1.0, 3000.0);
    assert!(
        close(slower, expected, 1e-6),
        "half the bandwidth: {slower}"
    );
    let half_clock = Rates {
        clock_ghz: 1.0,
        ..rates(3000.0, 100)
    };
    let borders_ms = |of: Rates| CostModel::new(card(of), MODEL).borders_s() * 1e3;
    assert!(borders_ms(rates(3000.0, 100)) > 0.3);
    let ratio = borders_ms(half_clock) / borders_ms(rates(3000.0, 100));
    assert!(close(ratio, 2.0, 1e-9), "half the clock: {ratio}");
    let rest = |n_sms| at(rates(3000.0, n_sms), 20) - at(rates(3000.0, n_sms), 1);
    let kv_ms = kv_ms(19.0, 3000.0);
    let ratio = (rest(50) - kv_ms) / (rest(100) - kv_ms);
    assert!(close(ratio, 2.0, 1e-3), "half the multiprocessors: {ratio}");
    // 2 · 64 · 31.5e9 operations at 10 and at 5 TFLOP/s: products are all that changes.
    let weak = |fp16_tflops| Rates {
        fp16_tflops,
        ..rates(3000.0, 100)
    };
    let slower = at(weak(5.0), 64) - at(weak(10.0), 64);
    assert!(close(slower, 403.2, 1e-6), "half the peak: {slower} ms");
}

/// A card's attention: the products take longer on a weaker one, the rest does not.
#[test]
fn tiles_of_attention_scale_by_products_and_clock() {
    let after = |of: Rates| {
        let mut executor = simulated(card(of), &[]);
        let mut at = |start| ms(&mut executor, &plan(1, 8, start, 1));
        at(1_016) - at(56)
    };
    let strong = after(rates(3000.0, 100));
    let weak = after(Rates {
        fp16_tflops: 450.0,
        ..rates(3000.0, 100)
    });
    // A tile of 64 · 64 · 128 is 2.1 MFLOP: 0.233 us of a multiprocessor of 9 TFLOP/s, of 3 us.
    let products_ms = 15.0 * 64.0 * 2.097_152e6 / 9e12 * 1e3;
    assert!(close(strong, 15.0 * 3.0e-3 * 64.0, 1e-6), "{strong} ms");
    assert!(close(weak - strong, products_ms, 1e-6), "{weak} ms");
}

fn cards_dir() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/cards")
}

#[test]
fn the_cards_of_the_repository_are_read() {
    let mut n_read = 0;
    for entry in std::fs::read_dir(cards_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "toml") {
            continue;
        }
        let borders_ms = CostModel::new(Card::read(&path).unwrap(), MODEL).borders_s() * 1e3;
        assert!(
            (0.5..4.0).contains(&borders_ms),
            "{}: {borders_ms}",
            path.display()
        );
        n_read += 1;
    }
    assert!(n_read >= 3, "{n_read} cards");
}

/// A GPU without wgmma must not get the times of kernels that use it.
#[test]
fn a_geforce_has_the_steps_of_kernels_that_run_there() {
    let card = Card::read(&cards_dir().join("rtx-5090.toml")).unwrap();
    assert!(card.measured_on.name.contains("card profile sm_120"));
    // By mma.sync, measured on that card; its data sheet's rate is that of wgmma.
    assert!(card.measured_on.fp16_tflops < 700.0);
    let device = device_of(&card);
    assert!(
        device.contains("(projected; no kernel of this engine has run on this card)"),
        "{device}"
    );
}

/// Medians of the record's cases: (batch, prompt tokens) → (decode step, prefill) in ms.
fn medians(
    record: &str,
    is_of: impl Fn(&serde_json::Value) -> bool,
) -> Vec<([usize; 3], [f64; 2])> {
    let path = cards_dir()
        .join("../bench")
        .join(record)
        .join("engine_bench.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let median = |samples: &serde_json::Value| {
        let samples = samples.as_array().unwrap().iter();
        let mut samples: Vec<f64> = samples.map(|sample| sample.as_f64().unwrap()).collect();
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    };
    let cases = lines
        .filter(|line| is_of(line))
        .map(|line: serde_json::Value| {
            let count = |key: &str| line[key].as_u64().unwrap() as usize;
            let n_steps = count("output_tokens") - 1;
            let decode_ms = median(&line["decode_ms"]) / n_steps as f64;
            (
                [count("batch"), count("prompt_tokens"), n_steps],
                [decode_ms, median(&line["prefill_ms"])],
            )
        });
    cases.collect()
}

/// No figure of these cards was typed: a projection is only as good as its record.
#[test]
fn points_of_cards_measured_offline_are_the_medians_of_their_records() {
    let of_profile = medians("20261130T1501_h200", |line| {
        let arguments = line["arguments"].as_str().unwrap();
        line["set"] == "6592145"
            && line["card_profile_asked"] == "sm_120"
            && !arguments.contains("int8")
    });
    let of_h100 = medians("20261126T0215_h100", |line| {
        let arguments = line["arguments"].as_str().unwrap();
        arguments.ends_with(&format!("--output-tokens {}", line["output_tokens"]))
    });
    for (name, cases) in [("h200-as-sm-120", of_profile), ("h100-offline", of_h100)] {
        assert_eq!(cases.len(), 7, "{name}");
        let steps = Card::read(&cards_dir().join(format!("{name}.toml")))
            .unwrap()
            .steps;
        let same = |found: f64, expected: f64| (found - expected).abs() < 1e-3;
        for ([batch, prompt_tokens, n_steps], [decode_ms, prefill_ms]) in &cases {
            let has_decode = steps.decode.iter().any(|point| {
                let context = *prompt_tokens as f64 + (n_steps + 1) as f64 / 2.0;
                point.rows == *batch
                    && same(point.context_tokens, context)
                    && same(point.ms, *decode_ms)
            });
            assert_eq!(
                has_decode,
                *prompt_tokens == 128,
                "{name}: decode of {batch} rows"
            );
            let tokens = batch * prompt_tokens;
            let has_prefill = steps.prefill.iter().any(|point| {
                point.tokens == tokens && point.prompts == *batch && same(point.ms, *prefill_ms)
            });
            assert_eq!(
                has_prefill,
                tokens <= 1024,
                "{name}: {batch} prompts of {prompt_tokens}"
            );
        }
        assert_eq!(
            steps.decode.len() + steps.prefill.len(),
            9,
            "{name}: other points"
        );
    }
}

#[test]
fn a_wrong_card_is_refused_with_the_field_and_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/cards/h100.toml");
    let text = std::fs::read_to_string(shipped).unwrap();
    let message = |text: String| {
        let path = dir.path().join("card.toml");
        std::fs::write(&path, text).unwrap();
        Card::read(&path).map(|_| ()).unwrap_err().to_string()
    };
    let wrong = message(text.replace("clock_ghz = 1.98", "clock_ghz = 0.0"));
    assert!(
        wrong.contains("clock_ghz is 0; it must be a number above 0"),
        "{wrong}"
    );
    let wrong = message(text.replace("rows = 1,", "rows = 3,"));
    assert!(wrong.contains("a point of 1 row"), "{wrong}");
    let wrong = message(text.replace("n_sms", "n_shaders"));
    assert!(wrong.contains("n_shaders"), "{wrong}");
    let wrong = message(text.split("[steps]").next().unwrap_or_default().to_owned());
    assert!(wrong.contains("steps_of"), "{wrong}");
}
