//! SiLU * up against f64.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../../tests/common/mod.rs"]
mod common;

use kernels::cuda::{Element, ElementBuffer};
use kernels::silu_mul::cuda::SiluMul;

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn agrees_with_f64_on_two_halves_of_a_matrix() {
    let (device, stream) = common::open();
    let mut rng = common::rng(8);
    let sizes = [(1, 8), (3, 1536), (5, 2048), (2, 25_608)];
    for (element, (n_rows, n)) in Element::ALL
        .into_iter()
        .flat_map(|element| sizes.map(|size| (element, size)))
    {
        let silu_mul = SiluMul::new(&device, element).unwrap();
        let (stride, out_stride) = (2 * n, n + 8);
        let mut gate_up = common::elements(&mut rng, element, n_rows * stride, 4.0);
        gate_up[0] = element.round(-60_000.0);
        gate_up[1] = element.round(300.0);
        let on_device = ElementBuffer::from_f32(&stream, element, &gate_up).unwrap();
        let out = ElementBuffer::zeroed(&stream, element, n_rows * out_stride).unwrap();
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
            let gate = f64::from(gate_up[row * stride + column]);
            let up = f64::from(gate_up[row * stride + n + column]);
            let expected = gate / (1.0 + (-gate).exp()) * up;
            let found = f64::from(out[row * out_stride + column]);
            let tolerance = expected.abs() * common::tolerance(element, 6e-4) + 1e-6;
            assert!(
                (found - expected).abs() <= tolerance,
                "{element:?} row {row} column {column}: {found} for {expected}"
            );
        }
        assert!(out[n..out_stride].iter().all(|x| *x == 0.0));
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn wrong_shapes_are_errors() {
    let (device, stream) = common::open();
    let silu_mul = SiluMul::new(&device, Element::F16).unwrap();
    let x = ElementBuffer::zeroed(&stream, Element::F16, 4 * 64).unwrap();
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
    let bf16 = ElementBuffer::zeroed(&stream, Element::Bf16, 4 * 64).unwrap();
    let (f16, bf16) = (x.all(), bf16.all());
    for (what, [gate, up, out]) in [
        ("gate", [bf16, f16, f16]),
        ("up", [f16, bf16, f16]),
        ("out", [f16, f16, bf16]),
    ] {
        let text = silu_mul
            .launch(&stream, gate, up, 64, out, 64, 4, 64)
            .unwrap_err()
            .to_string();
        let expected = format!("silu_mul: {what} is bf16, the kernel computes in f16");
        assert_eq!(text, expected);
    }
}
