//! Norm, rotation and cache write against f64.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../../tests/common/mod.rs"]
mod common;

use gpu::{Buffer, HostCounter};
use kernels::cuda::{Element, ElementBuffer, HeadShape, KvFormat, PAGE_TOKENS};
use kernels::qkv_prepare::cuda::{QkvPrepare, QkvPrepareArgs};
use rand::Rng;
use rand::seq::SliceRandom;

const EPS: f32 = 1e-6;
const N_POSITIONS: usize = 300;

/// `[N_POSITIONS, head_dim]`
fn cos_sin(head_dim: usize) -> Vec<f32> {
    let half = head_dim / 2;
    (0..N_POSITIONS * head_dim)
        .map(|i| {
            let (position, column) = (i / head_dim, i % head_dim);
            let angle = position as f64 * 10_000f64.powf(-((column % half) as f64) / half as f64);
            (if column < half {
                angle.cos()
            } else {
                angle.sin()
            }) as f32
        })
        .collect()
}

fn norm_and_rotate(head: &[f32], norm: Option<&[f32]>, angles: &[f32]) -> Vec<f64> {
    let n = head.len();
    let mut x: Vec<f64> = head.iter().map(|x| f64::from(*x)).collect();
    if let Some(norm) = norm {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / n as f64;
        let inverse = 1.0 / (mean + f64::from(EPS)).sqrt();
        x.iter_mut()
            .zip(norm)
            .for_each(|(x, w)| *x *= inverse * f64::from(*w));
    }
    (0..n)
        .map(|i| {
            let half = n / 2;
            let (cos, sin) = (
                f64::from(angles[i % half]),
                f64::from(angles[half + i % half]),
            );
            if i < half {
                x[i] * cos - x[i + half] * sin
            } else {
                x[i] * cos + x[i - half] * sin
            }
        })
        .collect()
}

fn check(shape: HeadShape, element: Element, format: KvFormat, with_norms: bool) {
    let (device, stream) = common::open();
    let mut rng = common::rng(3);
    let HeadShape {
        n_q,
        n_kv,
        head_dim,
    } = shape;
    let (n_rows, n_pages) = (37, 9);
    let stride = (n_q + 2 * n_kv) * head_dim + 8;
    let qkv = common::elements(&mut rng, element, n_rows * stride, 2.0);
    let norms = [
        common::elements(&mut rng, element, head_dim, 1.0),
        common::elements(&mut rng, element, head_dim, 1.0),
    ];
    let table = cos_sin(head_dim);
    let positions: Vec<i32> = (0..n_rows)
        .map(|_| rng.random_range(0..N_POSITIONS as i32))
        .collect();
    let mut slots: Vec<i32> = (0..(n_pages * PAGE_TOKENS) as i32).collect();
    slots.shuffle(&mut rng);
    slots.truncate(n_rows);
    slots[4] = -1;
    slots[36] = -1;
    slots[20] = (n_pages * PAGE_TOKENS) as i32; // outside the pool: skipped

    let mut pool = common::KvPool::random(&stream, &mut rng, shape, format, n_pages);
    if format == KvFormat::Fp8E4m3 {
        // Small enough that some values saturate.
        (pool.k_scale, pool.v_scale) = (0.01, 0.02);
    }
    let before = pool.download(&stream);
    let on_device = ElementBuffer::from_f32(&stream, element, &qkv).unwrap();
    let norms_on_device = norms
        .each_ref()
        .map(|norm| ElementBuffer::from_f32(&stream, element, norm).unwrap());
    let table_on_device = Buffer::from_slice(&stream, &table).unwrap();
    let positions_on_device = Buffer::from_slice(&stream, &positions).unwrap();
    let slots_on_device = Buffer::from_slice(&stream, &slots).unwrap();
    let prepare = QkvPrepare::new(&device, element, shape, format).unwrap();
    let norm_view = |i: usize| with_norms.then(|| norms_on_device[i].all());
    prepare
        .launch(
            &stream,
            &QkvPrepareArgs {
                qkv: on_device.all(),
                row_stride: stride,
                q_norm: norm_view(0),
                k_norm: norm_view(1),
                cos_sin: table_on_device.all(),
                n_positions: N_POSITIONS,
                positions: positions_on_device.all(),
                slots: slots_on_device.all(),
                kv: pool.view(),
                saturated: None,
                eps: EPS,
                n_rows,
            },
        )
        .unwrap();
    let found_qkv = on_device.download(&stream).unwrap();
    let after = pool.download(&stream);

    // Stored as 16 bits, or as 8 bits that step by a sixteenth, and by a 512th of the scale.
    let close = |found: f64, expected: f64, scale: f32| {
        let (expected, tolerance) = match format {
            KvFormat::F16 | KvFormat::Bf16 => {
                let relative = common::tolerance(element, 6e-4);
                (expected, expected.abs() * relative + 1e-5)
            }
            KvFormat::Fp8E4m3 => {
                let limit = 448.0 * f64::from(scale);
                let expected = expected.clamp(-limit, limit);
                (expected, expected.abs() * 0.063 + f64::from(scale) * 0.001)
            }
        };
        (found - expected).abs() <= tolerance
    };
    let mut written = vec![false; n_pages * PAGE_TOKENS];
    for row in 0..n_rows {
        let at = |head: usize| row * stride + head * head_dim;
        let is_skipped = slots[row] < 0 || slots[row] as usize >= n_pages * PAGE_TOKENS;
        let angles = &table[positions[row] as usize * head_dim..][..head_dim];
        for head in 0..n_q {
            let (input, found) = (
                &qkv[at(head)..][..head_dim],
                &found_qkv[at(head)..][..head_dim],
            );
            if is_skipped {
                assert_eq!(input, found, "row {row} is padding");
                continue;
            }
            let expected = norm_and_rotate(input, with_norms.then_some(&norms[0]), angles);
            for (dim, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = (f64::from(*found) - expected).abs();
                assert!(
                    error <= expected.abs() * common::tolerance(element, 6e-4) + 1e-5,
                    "q row {row} head {head} dim {dim}"
                );
            }
        }
        if is_skipped {
            continue;
        }
        let (page, token) = (
            slots[row] as usize / PAGE_TOKENS,
            slots[row] as usize % PAGE_TOKENS,
        );
        written[slots[row] as usize] = true;
        for head in 0..n_kv {
            let k = &qkv[at(n_q + head)..][..head_dim];
            let k = norm_and_rotate(k, with_norms.then_some(&norms[1]), angles);
            let v = &qkv[at(n_q + n_kv + head)..][..head_dim];
            for dim in 0..head_dim {
                let found = after.k(page, head, token, dim);
                assert!(
                    close(found, k[dim], pool.k_scale),
                    "k row {row} head {head} dim {dim}: {found} for {}",
                    k[dim]
                );
                let found = after.v(page, head, token, dim);
                assert!(
                    close(found, f64::from(v[dim]), pool.v_scale),
                    "v row {row} head {head} dim {dim}: {found} for {}",
                    v[dim]
                );
            }
        }
    }
    for slot in (0..written.len()).filter(|slot| !written[*slot]) {
        let (page, token) = (slot / PAGE_TOKENS, slot % PAGE_TOKENS);
        for (head, dim) in (0..n_kv).flat_map(|head| (0..head_dim).map(move |dim| (head, dim))) {
            let [was, is] = [&before, &after].map(|kv| kv.k(page, head, token, dim).to_bits());
            assert_eq!(was, is, "slot {slot}");
            let [was, is] = [&before, &after].map(|kv| kv.v(page, head, token, dim).to_bits());
            assert_eq!(was, is, "slot {slot}");
        }
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn agrees_with_f64_in_every_format() {
    for (element, format) in Element::ALL
        .into_iter()
        .flat_map(|element| common::kv_formats(element).map(|format| (element, format)))
    {
        for with_norms in [false, true] {
            check(
                HeadShape {
                    n_q: 9,
                    n_kv: 3,
                    head_dim: 64,
                },
                element,
                format,
                with_norms,
            );
            check(
                HeadShape {
                    n_q: 8,
                    n_kv: 1,
                    head_dim: 128,
                },
                element,
                format,
                with_norms,
            );
            check(
                HeadShape {
                    n_q: 64,
                    n_kv: 8,
                    head_dim: 128,
                },
                element,
                format,
                with_norms,
            );
        }
    }
}

/// Numbers that a page must not have in it, and one that is too large for e4m3 alone.
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn what_a_format_cannot_hold_is_stored_as_its_largest_or_zero_and_counted() {
    let (device, stream) = common::open();
    let shape = HeadShape {
        n_q: 2,
        n_kv: 2,
        head_dim: 64,
    };
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 5000.0, -3.0];
    for (element, format) in Element::ALL
        .into_iter()
        .flat_map(|element| common::kv_formats(element).map(|format| (element, format)))
    {
        let largest = match format {
            KvFormat::F16 => 65504.0,
            KvFormat::Bf16 => f64::from(f32::from_bits(0x7f7f_0000)),
            KvFormat::Fp8E4m3 => 448.0,
        };
        let is_fp8 = format == KvFormat::Fp8E4m3;
        let expected = [
            0.0,
            largest,
            -largest,
            if is_fp8 { largest } else { 4992.0 },
            -3.0,
        ];
        let (n_rows, stride) = (3, 6 * 64);
        let mut qkv = vec![1.0; n_rows * stride];
        // Row 1: keys of head 1, values of head 0. Position 0 turns nothing.
        for (i, value) in values.into_iter().enumerate() {
            qkv[stride + 3 * 64 + 7 * i] = value;
            qkv[stride + 4 * 64 + 7 * i] = value;
        }
        let on_device = ElementBuffer::from_f32(&stream, element, &qkv).unwrap();
        let mut pool = common::KvPool::random(&stream, &mut common::rng(3), shape, format, 2);
        (pool.k_scale, pool.v_scale) = (1.0, 1.0);
        let cos_sin = Buffer::from_slice(&stream, &cos_sin(64)[..64]).unwrap();
        let positions = Buffer::from_slice(&stream, &[0; 3]).unwrap();
        let slots = Buffer::from_slice(&stream, &[3, 20, 21]).unwrap();
        let saturated = HostCounter::new(&device).unwrap();
        let args = QkvPrepareArgs {
            qkv: on_device.all(),
            row_stride: stride,
            q_norm: None,
            k_norm: None,
            cos_sin: cos_sin.all(),
            n_positions: 1,
            positions: positions.all(),
            slots: slots.all(),
            kv: pool.view(),
            saturated: Some(&saturated),
            eps: EPS,
            n_rows,
        };
        let prepare = QkvPrepare::new(&device, element, shape, format).unwrap();
        prepare.launch(&stream, &args).unwrap();
        let after = pool.download(&stream);
        let case = format!("{element:?} {format:?}");
        // NaN and infinities of keys reach the other half through the rotation's zero.
        let n_keys = (0..64)
            .filter(|dim| !after.k(1, 1, 4, *dim).is_finite())
            .count();
        assert_eq!(n_keys, 0, "{case}: a key that is not finite");
        for (i, expected) in expected.into_iter().enumerate() {
            let found = after.v(1, 0, 4, 7 * i);
            let close = expected.abs() / 256.0;
            assert!(
                (found - expected).abs() <= close,
                "{case} {i}: {found} for {expected}"
            );
        }
        for (page, token) in [(0, 3), (1, 5)] {
            assert!(
                (0..64).all(|dim| (after.v(page, 0, token, dim) - 1.0).abs() < 1e-9),
                "{case}"
            );
            assert!(
                (0..64).all(|dim| (after.k(page, 1, token, dim) - 1.0).abs() < 1e-9),
                "{case}"
            );
        }
        // Of values 3, of keys the 3 and, times the sine of 0, NaN in the other half of the head; a
        // large number more where it does not fit.
        stream.synchronize().unwrap();
        assert_eq!(saturated.value(), if is_fp8 { 11 } else { 9 }, "{case}");
        prepare
            .launch(
                &stream,
                &QkvPrepareArgs {
                    saturated: None,
                    ..args
                },
            )
            .unwrap();
        stream.synchronize().unwrap();
        assert_eq!(
            saturated.value(),
            if is_fp8 { 11 } else { 9 },
            "{case}: not asked"
        );
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn wrong_shapes_are_errors() {
    let (device, stream) = common::open();
    let shape = HeadShape {
        n_q: 4,
        n_kv: 2,
        head_dim: 64,
    };
    let odd = HeadShape {
        head_dim: 80,
        ..shape
    };
    let text = QkvPrepare::new(&device, Element::F16, odd, KvFormat::F16)
        .unwrap_err()
        .to_string();
    assert!(text.contains("head_dim") && text.contains("80"), "{text}");
    let odd = HeadShape { n_q: 5, ..shape };
    assert!(QkvPrepare::new(&device, Element::F16, odd, KvFormat::F16).is_err());

    let text = QkvPrepare::new(&device, Element::Bf16, shape, KvFormat::F16)
        .unwrap_err()
        .to_string();
    assert_eq!(text, "qkv_prepare: KV pages of F16 beside bf16 activations");

    let prepare = QkvPrepare::new(&device, Element::F16, shape, KvFormat::F16).unwrap();
    let pool = common::KvPool::random(&stream, &mut common::rng(1), shape, KvFormat::F16, 2);
    let qkv = ElementBuffer::zeroed(&stream, Element::F16, 3 * 512).unwrap();
    let bf16 = ElementBuffer::zeroed(&stream, Element::Bf16, 3 * 512).unwrap();
    let cos_sin = Buffer::<f32>::zeroed(&stream, 10 * 64).unwrap();
    let ints = Buffer::<i32>::zeroed(&stream, 3).unwrap();
    let good = QkvPrepareArgs {
        qkv: qkv.all(),
        row_stride: 512,
        q_norm: None,
        k_norm: None,
        cos_sin: cos_sin.all(),
        n_positions: 10,
        positions: ints.all(),
        slots: ints.view(0..1).unwrap(),
        kv: pool.view(),
        saturated: None,
        eps: EPS,
        n_rows: 1,
    };
    let launch = |args: &QkvPrepareArgs<'_>| {
        prepare
            .launch(&stream, args)
            .map_err(|error| error.to_string())
    };
    launch(&good).unwrap();
    let text = launch(&QkvPrepareArgs { n_rows: 3, ..good }).unwrap_err();
    assert_eq!(
        text,
        "qkv_prepare: length of slots is 1, must be at least 3"
    );
    let text = launch(&QkvPrepareArgs {
        n_positions: 11,
        ..good
    })
    .unwrap_err();
    assert!(text.contains("length of cos_sin"), "{text}");
    let text = launch(&QkvPrepareArgs {
        row_stride: 500,
        ..good
    })
    .unwrap_err();
    assert!(
        text.contains("rows of 512 values do not fit a stride of 500"),
        "{text}"
    );
    let text = launch(&QkvPrepareArgs {
        qkv: bf16.all(),
        ..good
    })
    .unwrap_err();
    assert_eq!(text, "qkv_prepare: qkv is bf16, the kernel computes in f16");
    let k_norm = Some(bf16.view(0..64).unwrap());
    let text = launch(&QkvPrepareArgs { k_norm, ..good }).unwrap_err();
    assert!(text.contains("k_norm is bf16"), "{text}");
    let k_norm = Some(qkv.view(0..63).unwrap());
    let text = launch(&QkvPrepareArgs { k_norm, ..good }).unwrap_err();
    assert!(text.contains("k_norm is 63, must be 64"), "{text}");
    let mut kv = pool.view();
    kv.n_pages = 3;
    assert!(
        launch(&QkvPrepareArgs { kv, ..good })
            .unwrap_err()
            .contains("bytes of k")
    );
    let mut kv = pool.view();
    kv.k_scale = 0.5;
    assert!(
        launch(&QkvPrepareArgs { kv, ..good })
            .unwrap_err()
            .contains("must be 1")
    );
}
