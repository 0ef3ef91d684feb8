//! The RMSNorm kernel against f64.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

mod gpu;

use half::f16;
use kernels::cuda::{Activation, Buffer, RowLayout};
use kernels::rms_norm::cuda::RmsNorm;

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn agrees_with_f64_for_all_widths_and_picked_rows() {
    let (device, stream) = gpu::open();
    let rms_norm = RmsNorm::new(&device).unwrap();
    let mut rng = gpu::rng(2);
    let eps = 1e-6;
    for n in [4, 64, 576, 2052, 5120, 16_384] {
        let n_rows = 5;
        let stride = n + 8;
        let h = gpu::normals(&mut rng, 9 * n, 3.0);
        let weight = gpu::halves(&mut rng, n, 1.0);
        let picked = [8, 0, 3, 3, 7];
        let h_on_device = Buffer::from_slice(&stream, &h).unwrap();
        let weight_on_device = Buffer::from_slice(&stream, &weight).unwrap();
        let rows_on_device = Buffer::from_slice(&stream, &picked).unwrap();
        let x = Buffer::<f16>::zeroed(&stream, n_rows * stride).unwrap();
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
            let tiled = Buffer::<f16>::zeroed(&stream, 128 * n.next_multiple_of(64)).unwrap();
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
                    let expected = h[i] * inverse * weight[i].to_f64();
                    let found = found[row * stride + i].to_f64();
                    let tolerance = expected.abs() * 6e-4 + 1e-6;
                    assert!(
                        (found - expected).abs() <= tolerance,
                        "n {n} row {row} column {i}: {found} for {expected}"
                    );
                }
                // The same values in tiles.
                let at = RowLayout::Tiled { rows: 128 };
                assert!((0..n).all(|i| tiles[at.offset(row, i)] == found[row * stride + i]));
                assert!(
                    found[row * stride + n..][..8]
                        .iter()
                        .all(|x| *x == f16::ZERO)
                );
            }
        }
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn wrong_shapes_are_errors() {
    let (device, stream) = gpu::open();
    let rms_norm = RmsNorm::new(&device).unwrap();
    let h = Buffer::<f32>::zeroed(&stream, 4 * 64).unwrap();
    let weight = Buffer::<f16>::zeroed(&stream, 64).unwrap();
    let x = Buffer::<f16>::zeroed(&stream, 4 * 64).unwrap();
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
}
