//! The RMSNorm kernel against f64.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../../tests/common/mod.rs"]
mod common;

use gpu::Buffer;
use kernels::cuda::{Activation, Element, ElementBuffer, RowLayout};
use kernels::rms_norm::cuda::RmsNorm;

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn agrees_with_f64_for_all_widths_and_picked_rows() {
    let (device, stream) = common::open();
    let mut rng = common::rng(2);
    let eps = 1e-6;
    let widths = [4, 64, 576, 2052, 5120, 16_384];
    for (element, n) in Element::ALL
        .into_iter()
        .flat_map(|element| widths.map(|n| (element, n)))
    {
        let rms_norm = RmsNorm::new(&device, element).unwrap();
        let n_rows = 5;
        let stride = n + 8;
        let h = common::normals(&mut rng, 9 * n, 3.0);
        let weight = common::elements(&mut rng, element, n, 1.0);
        let picked = [8, 0, 3, 3, 7];
        let h_on_device = Buffer::from_slice(&stream, &h).unwrap();
        let weight_on_device = ElementBuffer::from_f32(&stream, element, &weight).unwrap();
        let rows_on_device = Buffer::from_slice(&stream, &picked).unwrap();
        let x = ElementBuffer::zeroed(&stream, element, n_rows * stride).unwrap();
        for rows in [None, Some(rows_on_device.all())] {
            rms_norm
                .launch(
                    &stream,
                    h_on_device.all(),
                    weight_on_device.all(),
                    rows,
                    Activation::plain(x.all(), stride),
                    n_rows,
                    n,
                    eps,
                )
                .unwrap();
            let n_tiled = 128 * n.next_multiple_of(64);
            let tiled = ElementBuffer::zeroed(&stream, element, n_tiled).unwrap();
            rms_norm
                .launch(
                    &stream,
                    h_on_device.all(),
                    weight_on_device.all(),
                    rows,
                    Activation::tiled(tiled.all(), 128),
                    n_rows,
                    n,
                    eps,
                )
                .unwrap();
            let tiles = tiled.download(&stream).unwrap();
            let found = x.download(&stream).unwrap();
            for row in 0..n_rows {
                let from = if rows.is_some() {
                    picked[row] as usize
                } else {
                    row
                };
                let h: Vec<f64> = h[from * n..][..n].iter().map(|x| f64::from(*x)).collect();
                let mean = h.iter().map(|x| x * x).sum::<f64>() / n as f64;
                let inverse = 1.0 / (mean + f64::from(eps)).sqrt();
                for i in 0..n {
                    let expected = h[i] * inverse * f64::from(weight[i]);
                    let found = f64::from(found[row * stride + i]);
                    let tolerance = expected.abs() * common::tolerance(element, 6e-4) + 1e-6;
                    assert!(
                        (found - expected).abs() <= tolerance,
                        "{element:?} n {n} row {row} column {i}: {found} for {expected}"
                    );
                }
                // The same values in tiles.
                let at = RowLayout::Tiled { rows: 128 };
                assert!((0..n).all(|i| {
                    tiles[at.offset(row, i)].to_bits() == found[row * stride + i].to_bits()
                }));
                assert!(found[row * stride + n..][..8].iter().all(|x| *x == 0.0));
            }
        }
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn wrong_shapes_are_errors() {
    let (device, stream) = common::open();
    let rms_norm = RmsNorm::new(&device, Element::F16).unwrap();
    let h = Buffer::<f32>::zeroed(&stream, 4 * 64).unwrap();
    let weight = ElementBuffer::zeroed(&stream, Element::F16, 64).unwrap();
    let x = ElementBuffer::zeroed(&stream, Element::F16, 4 * 64).unwrap();
    let launch = |stride, n_rows, n, eps| {
        rms_norm
            .launch(
                &stream,
                h.all(),
                weight.all(),
                None,
                Activation::plain(x.all(), stride),
                n_rows,
                n,
                eps,
            )
            .map_err(|error| error.to_string())
    };
    launch(64, 4, 64, 1e-5).unwrap();
    assert!(launch(64, 5, 64, 1e-5).unwrap_err().contains("x is 256"));
    assert!(
        launch(60, 4, 64, 1e-5)
            .unwrap_err()
            .contains("rows of 64 values do not fit a stride of 60")
    );
    assert!(
        launch(64, 4, 32, 1e-5)
            .unwrap_err()
            .contains("length of weight is 64, must be 32")
    );
    assert!(
        launch(64, 4, 20_000, 1e-5)
            .unwrap_err()
            .contains("at most 16384")
    );
    assert!(
        launch(64, 4, 64, f32::NAN)
            .unwrap_err()
            .contains("eps is NaN")
    );
    let bf16 = ElementBuffer::zeroed(&stream, Element::Bf16, 4 * 64).unwrap();
    let mixed = |weight, x| {
        let x = Activation::plain(x, 64);
        rms_norm
            .launch(&stream, h.all(), weight, None, x, 4, 64, 1e-5)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        mixed(bf16.view(0..64).unwrap(), x.all()),
        "rms_norm: weight is bf16, the kernel computes in f16"
    );
    assert_eq!(
        mixed(weight.all(), bf16.all()),
        "rms_norm: x is bf16, the kernel computes in f16"
    );
}
