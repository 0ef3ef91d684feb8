//! stream_linear on a GPU against f64.
//!
//! Ignored where no GPU is expected; `ENGINE_TEST_CUDA=1` at build time, or `--ignored`, runs
//! them, and then a missing GPU, driver or kernel fails.

#[path = "tests_cuda/case.rs"]
mod case;

use gpu::{Buffer, CudaError, Graph};
use kernels::cuda::{Activation, Element, ElementBuffer, RowLayout};
use kernels::stream_linear::{
    Arrangement, Epilogue, Format, LargeM, Output, Plan, Variant, choose_plan,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::case::{Gpu, assert_close, check, gpu, gpu_with, random_case, tiled};

const ROWS: [usize; 19] = [
    1, 2, 3, 7, 8, 9, 15, 16, 17, 20, 24, 31, 32, 33, 50, 63, 64, 65, 300,
];

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn every_format_epilogue_and_number_of_rows_agrees_with_f64() {
    for element in Element::ALL {
        every_format_and_epilogue_agrees(&gpu(element));
    }
}

/// What GPUs without `wgmma` use for rows in tiles.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn the_kernel_for_other_cards_agrees_with_f64() {
    for element in Element::ALL {
        every_format_and_epilogue_agrees(&gpu_with(element, |_| LargeM::Mma));
    }
}

/// Those with kernels for the activations' element.
fn formats_of(gpu: &Gpu) -> impl Iterator<Item = Format> {
    let element = gpu.kernels.element();
    let all = Format::ALL.into_iter();
    all.filter(move |format| format.has_element(element))
}

fn every_format_and_epilogue_agrees(gpu: &Gpu) {
    let mut rng = StdRng::seed_from_u64(11);
    for format in formats_of(gpu) {
        // n a multiple of 8 but not of 16, k a multiple of the group but not of the chunk.
        let k = 3 * format.group().unwrap_or(40) + 512;
        let stacked = random_case(
            gpu,
            &mut rng,
            format,
            Arrangement::Stacked,
            &[160, 32, 40],
            k,
        );
        let paired = random_case(gpu, &mut rng, format, Arrangement::GateUp, &[200, 200], k);
        for m in ROWS.into_iter().filter(|m| *m <= gpu.kernels.max_rows()) {
            for epilogue in Epilogue::ALL {
                let case = if epilogue == Epilogue::SiluMul {
                    &paired
                } else {
                    &stacked
                };
                let with_bias = m % 2 == 0 && epilogue != Epilogue::SiluMul;
                let error = check(gpu, &mut rng, case, epilogue, m, with_bias);
                assert_close(gpu, case, epilogue, m, error);
            }
        }
    }
    gpu.device.synchronize().expect("no late error");
}

/// Small enough for a tool that follows every access to shared memory.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn a_small_launch_of_each_kernel_agrees_with_f64() {
    let mut rng = StdRng::seed_from_u64(21);
    for gpu in [gpu(Element::F16), gpu_with(Element::F16, |_| LargeM::Mma)] {
        for format in [
            Format::AwqG128,
            Format::Half,
            Format::MinG32,
            Format::BytesG16,
        ] {
            let mut case = |arrangement, parts_n| {
                random_case(&gpu, &mut rng, format, arrangement, parts_n, 512)
            };
            let stacked = case(Arrangement::Stacked, &[64]);
            let paired = case(Arrangement::GateUp, &[64, 64]);
            for m in [1, 12, 20, 64] {
                for (case, epilogue) in [
                    (&stacked, Epilogue::AddResidual),
                    (&paired, Epilogue::SiluMul),
                ] {
                    let error = check(&gpu, &mut rng, case, epilogue, m, false);
                    assert_close(&gpu, case, epilogue, m, error);
                }
            }
        }
    }
}

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn ragged_shapes_agree_with_f64() {
    let mut rng = StdRng::seed_from_u64(12);
    for (element, format) in Element::ALL
        .into_iter()
        .flat_map(|element| Format::ALL.map(|format| (element, format)))
        .filter(|(element, format)| format.has_element(*element))
    {
        let gpu = gpu(element);
        let group = format.group().unwrap_or(8);
        for (n, k) in [
            (8, group),
            (24, 2 * group),
            (1000, 5 * group),
            (136, 4096),
            (2056, 1024 + group),
            (5120, 512),
        ] {
            let case = random_case(&gpu, &mut rng, format, Arrangement::Stacked, &[n], k);
            for m in [1, 5, 8, 13, 29, 64] {
                let error = check(&gpu, &mut rng, &case, Epilogue::StoreF32, m, false);
                assert_close(&gpu, &case, Epilogue::StoreF32, m, error);
            }
        }
    }
}

/// Ranks, stages and phases that the planner would not choose here.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn any_plan_gives_the_same_numbers() {
    let gpu = gpu(Element::F16);
    let mut rng = StdRng::seed_from_u64(13);
    // 11 chunks: slices and phases of unequal size, one of them empty in some ranks.
    let mut case = random_case(
        &gpu,
        &mut rng,
        Format::AwqG128,
        Arrangement::GateUp,
        &[264, 264],
        11 * 256 - 128,
    );
    for m in [1, 8, 12] {
        let chosen = choose_plan(&case.layout, m, gpu.kernels.limits()).expect("a plan");
        for n_ranks in [1, 2, 4, 8] {
            let rank_chunks = case.layout.n_chunks.div_ceil(n_ranks);
            for phase_chunks in 1..=rank_chunks {
                for (n_stages, n_clusters) in [(1, 3), (2, 17)] {
                    let n_phases = rank_chunks.div_ceil(phase_chunks);
                    let plan = Plan {
                        n_ranks,
                        n_clusters,
                        n_stages,
                        phase_chunks,
                        n_phases,
                        ..chosen
                    };
                    if case.linear.set_variant(m, Variant::Stream(plan)).is_err() {
                        continue; // does not fit this GPU
                    }
                    let error = check(&gpu, &mut rng, &case, Epilogue::SiluMul, m, false);
                    assert_close(&gpu, &case, Epilogue::SiluMul, m, error);
                }
            }
        }
        case.linear
            .set_variant(m, Variant::Stream(chosen))
            .expect("the planner's own plan");
    }
}

/// What a caller may put in the place of the default, on this GPU and on those without `wgmma`.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn every_candidate_gives_the_same_numbers() {
    let on_other_cards = |element| gpu_with(element, |_| LargeM::Mma);
    let elements = Element::ALL.into_iter();
    for gpu in elements.flat_map(|element| [gpu(element), on_other_cards(element)]) {
        let mut rng = StdRng::seed_from_u64(19);
        for format in formats_of(&gpu) {
            let k = 3 * format.group().unwrap_or(40) + 1024;
            let stacked = random_case(
                &gpu,
                &mut rng,
                format,
                Arrangement::Stacked,
                &[320, 32, 40],
                k,
            );
            let paired = random_case(&gpu, &mut rng, format, Arrangement::GateUp, &[264, 264], k);
            for (mut case, epilogue) in [
                (stacked, Epilogue::AddResidual),
                (paired, Epilogue::SiluMul),
            ] {
                for m in [1, 8, 9, 12, 16, 20, 33, 64] {
                    let candidates = case.linear.candidates(m).expect("candidates");
                    assert!(!candidates.is_empty());
                    for variant in candidates {
                        case.linear.set_variant(m, variant).expect("it can run");
                        assert_eq!(case.linear.variant(m).expect("set"), variant);
                        let error = check(&gpu, &mut rng, &case, epilogue, m, false);
                        assert_close(&gpu, &case, epilogue, m, error);
                    }
                }
            }
        }
        gpu.device.synchronize().expect("no late error");
    }
}

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn dependent_launches_and_graphs_give_the_same_bits() {
    for element in Element::ALL {
        dependent_launches_and_graphs_agree(element);
    }
}

fn dependent_launches_and_graphs_agree(element: Element) {
    let gpu = gpu(element);
    let mut rng = StdRng::seed_from_u64(14);
    // Two layers: gate and up into a row of elements, down from it into the residual.
    let mut gate_up = random_case(
        &gpu,
        &mut rng,
        Format::AwqG128,
        Arrangement::GateUp,
        &[768, 768],
        512,
    );
    let mut down = random_case(
        &gpu,
        &mut rng,
        Format::AwqG128,
        Arrangement::Stacked,
        &[512],
        768,
    );
    let mut unchained: Vec<Vec<f32>> = Vec::new();
    for (is_chained, m) in [false, true]
        .into_iter()
        .flat_map(|c| [1, 8, 20, 64].map(|m| (c, m)))
    {
        if is_chained {
            gate_up.linear.set_next(&down.linear);
            down.linear.set_next(&gate_up.linear);
        }
        rng = StdRng::seed_from_u64(15 + m as u64);
        let x: Vec<f32> = (0..m * 512).map(|_| rng.random_range(-1.0..1.0)).collect();
        let is_tiled = gpu.kernels.wants_tiled(m);
        let x = if is_tiled {
            tiled(&x, m, 512, 512, 128)
        } else {
            x
        };
        let x = ElementBuffer::from_f32(&gpu.stream, element, &x).expect("memory");
        let hidden = ElementBuffer::zeroed(&gpu.stream, element, 128 * 768).expect("memory");
        let residual = Buffer::<f32>::zeroed(&gpu.stream, m * 512).expect("memory");
        let place = |stride| {
            let (plain, tiled) = (RowLayout::Plain { stride }, RowLayout::Tiled { rows: 128 });
            if is_tiled { tiled } else { plain }
        };
        let x_at = Activation {
            view: x.all(),
            layout: place(512),
        };
        let hidden_at = Activation {
            view: hidden.all(),
            layout: place(768),
        };
        let step = |dependent: bool| -> Result<(), CudaError> {
            residual.all().zero(&gpu.stream)?;
            for i in 0..8 {
                let dependent = dependent && i > 0; // the zeroing is no kernel to overlap with
                gate_up.linear.launch(
                    &gpu.stream,
                    m,
                    x_at,
                    None,
                    Output::SiluMul(hidden_at),
                    dependent,
                )?;
                down.linear.launch(
                    &gpu.stream,
                    m,
                    hidden_at,
                    None,
                    Output::AddResidual(residual.all()),
                    dependent,
                )?;
            }
            Ok(())
        };
        step(false).expect("launches");
        let plain = residual.download(&gpu.stream).expect("download");
        assert!(plain.iter().any(|v| *v != 0.0));
        // What is called into the cache for the next launch changes nothing.
        match unchained
            .iter()
            .find(|other| is_chained && other.len() == plain.len())
        {
            Some(other) => assert_eq!(other, &plain, "m={m}: with the next matrix known"),
            None => unchained.push(plain.clone()),
        }
        step(true).expect("launches");
        assert_eq!(
            residual.download(&gpu.stream).expect("download"),
            plain,
            "m={m}: dependent"
        );
        let graph = Graph::capture(&gpu.stream, || step(true)).expect("a graph");
        assert_eq!(graph.n_nodes().expect("nodes"), 17);
        graph.upload(&gpu.stream).expect("upload");
        for _ in 0..3 {
            graph.launch(&gpu.stream).expect("launch");
            assert_eq!(
                residual.download(&gpu.stream).expect("download"),
                plain,
                "m={m}: graph"
            );
        }
    }
}
