//! Speculation with a real model: SmolLM2-135M quotes a document and answers questions, with and
//! without drafts. The texts are equal; what was accepted and how long it took is printed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::executor::Executor;
use engine::executor::cpu::{CpuExecutor, CpuOptions};
use engine::request::{Request, RequestId, SamplingParams, TokenEvent};
use engine::scheduler::{Scheduler, SchedulerConfig};
use engine::source::{DEFAULT_CPU_MODEL, ModelSource, default_cache_dir, resolve};
use engine::speculation::{Algorithm, NgramConfig, SpeculationConfig, SpeculationCounts};
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
    let path: PathBuf = path;
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
    fn request(&self, question: &str, temperature: f32) -> Request {
        let messages = [json!({"role": "user", "content": question})];
        let input = ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            extra: serde_json::Map::new(),
        };
        let text = self.template.render(&input).expect("rendered");
        let prompt = self.tokenizer.encode(&text, false).expect("ids");
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
            scheduler.set_step_times(times.unwrap_or(measured));
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
    let quote = format!("Repeat this text word for word: {DOCUMENT}");
    let questions = include_str!("data/everyday_questions.txt").lines();
    let cases: Vec<(&str, String, f32)> = std::iter::once(("quote", quote, 0.0))
        .chain(questions.take(4).map(|q| ("chat", q.to_owned(), 0.0)))
        .chain([("sampled", "Tell me a story about a dog.".to_owned(), 0.8)])
        .collect();
    let free = StepTimes {
        base_s: 1.0,
        row_s: 0.0,
    };
    let mut meter = TimesMeter::default();
    for (case, question, temperature) in cases {
        let request = model.request(&question, temperature);
        let mut ratios = Vec::new();
        // In turn, so that the machine's other work meets both.
        for round in 0..3 {
            let mut idle = TimesMeter::default();
            let plain = run(&mut model, &mut idle, &request, None, None);
            let with = run(&mut model, &mut meter, &request, Some(ngram()), None);
            assert_eq!(with.tokens, plain.tokens, "{case}");
            ratios.push(plain.elapsed.as_secs_f64() / with.elapsed.as_secs_f64());
            if round == 2 {
                println!(
                    "{case}: {} steps without, {} with; {:?}; speed-up {ratios:.2?}",
                    plain.n_steps, with.n_steps, with.counts
                );
            }
        }
        // Where rows cost nothing every draft is made: the most that can be saved.
        let plain = run(&mut model, &mut TimesMeter::default(), &request, None, None);
        let most = run(
            &mut model,
            &mut TimesMeter::default(),
            &request,
            Some(ngram()),
            Some(free),
        );
        assert_eq!(most.tokens, plain.tokens, "{case}");
        println!("{case}: {} steps with free rows", most.n_steps);
        if case == "quote" {
            assert!(2 * most.n_steps < plain.n_steps, "{} steps", most.n_steps);
        }
    }
}
