//! SiLU * up against f64.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

mod gpu;

use half::f16;
use kernels::cuda::Buffer;
use kernels::silu_mul::cuda::SiluMul;

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn agrees_with_f64_on_two_halves_of_a_matrix() {
    let (device, stream) = gpu::open();
    let silu_mul = SiluMul::new(&device).unwrap();
    let mut rng = gpu::rng(8);
    for (n_rows, n) in [(1, 8), (3, 1536), (5, 2048), (2, 25_608)] {
        let (stride, out_stride) = (2 * n, n + 8);
        let mut gate_up = gpu::halves(&mut rng, n_rows * stride, 4.0);
        gate_up[0] = f16::from_f32(-60_000.0);
        gate_up[1] = f16::from_f32(300.0);
        let on_device = Buffer::from_slice(&stream, &gate_up).unwrap();
        let out = Buffer::<f16>::zeroed(&stream, n_rows * out_stride).unwrap();
        let up = on_device.view(n..n_rows * stride).unwrap();
        silu_mul
            .launch(
                &stream,
                on_device.all(),
                up,
                stride,
                out.all(),
                out_stride,
                n_rows,
                n,
            )
            .unwrap();
        let out = out.download(&stream).unwrap();
        for (row, column) in (0..n_rows).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let gate = gate_up[row * stride + column].to_f64();
            let expected =
                gate / (1.0 + (-gate).exp()) * gate_up[row * stride + n + column].to_f64();
            let found = out[row * out_stride + column].to_f64();
            assert!(
                (found - expected).abs() <= expected.abs() * 6e-4 + 1e-6,
                "row {row} column {column}: {found} for {expected}"
            );
        }
        assert!(out[n..out_stride].iter().all(|x| *x == f16::ZERO));
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn wrong_shapes_are_errors() {
    let (device, stream) = gpu::open();
    let silu_mul = SiluMul::new(&device).unwrap();
    let x = Buffer::<f16>::zeroed(&stream, 4 * 64).unwrap();
    let launch = |stride, n_rows, n| {
        silu_mul
            .launch(&stream, x.all(), x.all(), stride, x.all(), 64, n_rows, n)
            .map_err(|error| error.to_string())
    };
    launch(64, 4, 64).unwrap();
    assert!(
        launch(64, 5, 64)
            .unwrap_err()
            .contains("length of gate is 256")
    );
    assert!(
        launch(64, 4, 60)
            .unwrap_err()
            .contains("n is 60, must be a multiple of 8")
    );
    assert!(
        launch(56, 4, 64)
            .unwrap_err()
            .contains("do not fit a stride of 56")
    );
}
