//! Speculation with a real model: SmolLM2-135M quotes a document and answers questions, with and
//! without drafts. The texts are equal; what was accepted and how long it took is printed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::executor::Executor;
use engine::executor::cpu::{CpuExecutor, CpuOptions};
use engine::request::{Request, RequestId, SamplingParams, TokenEvent};
use engine::scheduler::{Scheduler, SchedulerConfig};
use engine::source::{DEFAULT_CPU_MODEL, ModelSource, default_cache_dir, resolve};
use engine::speculation::{
    Algorithm, NgramConfig, SpeculationConfig, SpeculationCounts, SuffixConfig,
};
use engine::speculation::{StepTimes, TimesMeter};
use engine::text::{ChatInput, ChatTemplate, Tokenizer};
use engine::weights::ModelFiles;
use engine::weights::{LoadFormat, open};
use serde_json::json;

const OUTPUT_TOKENS: usize = 120;
const POOL_TOKENS: usize = 2048;

const DOCUMENT: &str = "The lighthouse keeper wrote in his book every evening. On the first of \
    March the wind came from the north and broke two windows of the upper room. On the second of \
    March a ship from Bergen passed the island at noon and greeted with its horn. On the third of \
    March he cleaned the lenses, painted the door green and mended the small boat that his father \
    had built forty years before. No one visited him in that week, but he did not feel alone.";

struct Model {
    executor: CpuExecutor,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

fn load() -> Model {
    let cache = default_cache_dir().expect("a cache folder");
    let source = ModelSource::parse(DEFAULT_CPU_MODEL).expect("model source");
    let model = resolve(&source, &cache, &|_| ()).expect("SmolLM2 in the model cache");
    let checkpoint = open(&model.files, LoadFormat::Auto, 0).expect("checkpoint");
    let ModelFiles::Gguf(path) = model.files else {
        panic!("SmolLM2 is one GGUF file");
    };
    let options = CpuOptions {
        n_threads: 2,
        kv_pool_tokens: POOL_TOKENS,
        ..CpuOptions::default()
    };
    Model {
        executor: CpuExecutor::load(&*checkpoint, options).expect("executor"),
        tokenizer: Tokenizer::from_gguf(&path).expect("tokenizer"),
        template: ChatTemplate::from_gguf(&path).expect("chat template"),
    }
}

impl Model {
    fn chat(&self, question: &str, temperature: f32) -> Request {
        let messages = [json!({"role": "user", "content": question})];
        let input = ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            extra: serde_json::Map::new(),
        };
        let text = self.template.render(&input).expect("rendered");
        self.request(&text, temperature)
    }

    fn request(&self, text: &str, temperature: f32) -> Request {
        let prompt = self.tokenizer.encode(text, false).expect("ids");
        Request {
            id: RequestId(1),
            prompt: prompt.into(),
            sampling: Arc::new(SamplingParams {
                temperature,
                top_p: 0.9,
                seed: 3,
                ..SamplingParams::default()
            }),
            max_new_tokens: OUTPUT_TOKENS,
            stop_token_ids: Arc::from([]),
            priority: 0,
            prefix_root: 0,
        }
    }
}

struct Run {
    tokens: Vec<u32>,
    n_steps: usize,
    elapsed: Duration,
    counts: Option<SpeculationCounts>,
    /// How many times as long steps of 2, 4 and 8 rows are as one of 1.
    ratios: [f64; 3],
}

/// `times`: what rows cost; measured while it runs if not given, as the engine does.
fn run(
    model: &mut Model,
    meter: &mut TimesMeter,
    request: &Request,
    speculation: Option<SpeculationConfig>,
    times: Option<StepTimes>,
) -> Run {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_total_tokens: POOL_TOKENS,
        radix_cache: false,
        speculation,
        ..SchedulerConfig::default()
    });
    scheduler
        .add(request.clone(), Duration::ZERO)
        .expect("it fits");
    let (mut tokens, mut n_steps, mut elapsed) = (Vec::new(), 0, Duration::ZERO);
    let mut used = StepTimes::default();
    while !scheduler.is_idle() {
        let begun = Instant::now();
        let plan = scheduler.plan(Duration::ZERO);
        let output = model.executor.execute(&plan).expect("a step");
        let step = begun.elapsed();
        let is_decode = plan.rows[0].is_decode();
        if is_decode {
            n_steps += 1;
            elapsed += step;
            let measured = meter.observe(plan.rows[0].tokens.len(), step.as_secs_f64());
            used = times.clone().unwrap_or(measured);
            scheduler.set_step_times(used.clone());
        }
        for (_, event) in scheduler.commit(&plan, output) {
            match event {
                TokenEvent::Token(token) => tokens.push(token.token),
                TokenEvent::Finished { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        scheduler.reuse(plan);
    }
    Run {
        tokens,
        n_steps,
        elapsed,
        counts: scheduler.speculation_counts().cloned(),
        ratios: [2, 4, 8].map(|n| used.ratio(1, n)),
    }
}

fn ngram() -> SpeculationConfig {
    SpeculationConfig {
        algorithm: Algorithm::Ngram(NgramConfig {
            min_match: 3,
            max_match: 12,
        }),
        n_draft_tokens: 7,
    }
}

#[test]
fn quoting_a_document_takes_few_steps_and_no_text_changes() {
    let mut model = load();
    // After two copies a third one follows word for word.
    let copies = format!("{DOCUMENT}\n\n{DOCUMENT}\n\n");
    let quote = format!("Repeat this text word for word: {DOCUMENT}");
    let questions = include_str!("data/everyday_questions.txt").lines();
    let mut cases = vec![
        ("copy", model.request(&copies, 0.0)),
        ("quote", model.chat(&quote, 0.0)),
        ("sampled", model.chat("Tell me a story about a dog.", 0.8)),
    ];
    cases.extend(questions.take(2).map(|q| ("chat", model.chat(q, 0.0))));
    let free = StepTimes::line(1.0, 0.0);
    let mut meter = TimesMeter::default();
    for (case, request) in cases {
        let mut unused = TimesMeter::default();
        let plain = run(&mut model, &mut unused, &request, None, None);
        let with = run(&mut model, &mut meter, &request, Some(ngram()), None);
        assert_eq!(with.tokens, plain.tokens, "{case}");
        let speed_up = plain.elapsed.as_secs_f64() / with.elapsed.as_secs_f64();
        println!(
            "{case}: {} steps without, {} with, {speed_up:.2} times as fast; {:?}, {:?}",
            plain.n_steps, with.n_steps, with.counts, with.ratios
        );
        let suffix = SpeculationConfig {
            algorithm: Algorithm::Suffix(SuffixConfig::default()),
            ..ngram()
        };
        let other = run(&mut model, &mut meter, &request, Some(suffix), None);
        assert_eq!(other.tokens, plain.tokens, "{case}");
        let speed_up = plain.elapsed.as_secs_f64() / other.elapsed.as_secs_f64();
        println!(
            "{case}: {} steps with SUFFIX, {speed_up:.2} times as fast; {:?}",
            other.n_steps, other.counts
        );
        // Where rows cost nothing every draft is made: the most that can be saved.
        let most = run(
            &mut model,
            &mut unused,
            &request,
            Some(ngram()),
            Some(free.clone()),
        );
        assert_eq!(most.tokens, plain.tokens, "{case}");
        println!("{case}: {} steps with free rows", most.n_steps);
        match case {
            "copy" => assert!(5 * most.n_steps < plain.n_steps, "{} steps", most.n_steps),
            "quote" => assert!(2 * most.n_steps < plain.n_steps, "{} steps", most.n_steps),
            _ => {}
        }
    }
}
