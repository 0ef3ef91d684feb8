//! The read and the products that kernels are compared with.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../../tests/common/mod.rs"]
mod common;

use gpu::{Buffer, Event};
use kernels::roofline::cuda::{Multiply, ReadMemory};
use rand::Rng;

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn the_read_misses_no_word() {
    let (device, stream) = common::open();
    let read = ReadMemory::new(&device).unwrap();
    let mut rng = common::rng(31);
    for n in [4, 8, 1000, 4 * 512 * 264 * 8, 4 * (512 * 264 * 9 + 77)] {
        let words: Vec<u32> = (0..n).map(|_| rng.random()).collect();
        let data = Buffer::from_slice(&stream, &words).unwrap();
        let out = Buffer::from_slice(&stream, &[5u32]).unwrap();
        read.launch(&stream, data.all().cast().unwrap(), out.all())
            .unwrap();
        let expected = words.iter().fold(5, |sum, word| sum ^ word);
        assert_eq!(out.download(&stream).unwrap(), [expected], "{n} words");
    }
    let data = Buffer::<u8>::zeroed(&stream, 40).unwrap();
    let out = Buffer::<u32>::zeroed(&stream, 1).unwrap();
    let refused = read.launch(&stream, data.all(), out.all()).unwrap_err();
    assert!(
        refused.to_string().contains("bytes to read is 40"),
        "{refused}"
    );
}

/// Twice the rounds take twice the time: no round is left out.
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn the_products_are_all_computed() {
    let (device, stream) = common::open();
    let out = Buffer::<f32>::zeroed(&stream, 1).unwrap();
    let (start, end) = (Event::new(&device).unwrap(), Event::new(&device).unwrap());
    let all = [
        Some(Multiply::mma_sync(&device).unwrap()),
        Some(Multiply::mma_sync_int8(&device).unwrap()),
        Multiply::wgmma(&device).unwrap(),
    ];
    for multiply in all.into_iter().flatten() {
        let tflops = |n_rounds: usize| {
            multiply.launch(&stream, n_rounds, out.all()).unwrap();
            start.record(&stream).unwrap();
            let flops = multiply.launch(&stream, n_rounds, out.all()).unwrap();
            end.record(&stream).unwrap();
            flops / f64::from(end.elapsed_ms(&start).unwrap()) / 1e9
        };
        let (short, long) = (tflops(20_000), tflops(40_000));
        println!("{}: {short:.0}, {long:.0} TFLOP/s", multiply.instruction());
        assert!((0.8..1.25).contains(&(long / short)), "{short} {long}");
        assert!(long > 10.0, "{long} TFLOP/s");
    }
    assert_eq!(out.download(&stream).unwrap(), [0.0]);
}
