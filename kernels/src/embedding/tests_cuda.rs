//! The embedding kernel against plain indexing.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../../tests/common/mod.rs"]
mod common;

use gpu::Buffer;
use kernels::cuda::{Element, ElementBuffer};
use kernels::embedding::cuda::Embedding;

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn rows_of_the_table_come_out_exactly() {
    let (device, stream) = common::open();
    let mut rng = common::rng(1);
    let sizes = [(3, 8), (100, 576), (1000, 5120)];
    for (element, (vocab, hidden)) in Element::ALL
        .into_iter()
        .flat_map(|element| sizes.map(|size| (element, size)))
    {
        let embedding = Embedding::new(&device, element).unwrap();
        let table = common::elements(&mut rng, element, vocab * hidden, 1.0);
        // The last one is outside and gives row 0.
        let ids: Vec<i32> = [0, vocab as i32 - 1, 1, 1, vocab as i32 / 2, vocab as i32].to_vec();
        let table_on_device = ElementBuffer::from_f32(&stream, element, &table).unwrap();
        let ids_on_device = Buffer::from_slice(&stream, &ids).unwrap();
        let h = Buffer::<f32>::zeroed(&stream, (ids.len() + 1) * hidden).unwrap();
        embedding
            .launch(
                &stream,
                ids_on_device.all(),
                table_on_device.all(),
                h.all(),
                ids.len(),
                hidden,
            )
            .unwrap();
        let h = h.download(&stream).unwrap();
        for (row, id) in ids.iter().enumerate() {
            let id = if *id as usize == vocab {
                0
            } else {
                *id as usize
            };
            let expected = table[id * hidden..][..hidden].iter().copied();
            assert!(
                h[row * hidden..][..hidden].iter().copied().eq(expected),
                "{element:?} row {row}"
            );
        }
        assert!(
            h[ids.len() * hidden..].iter().all(|x| *x == 0.0),
            "after the last row"
        );
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn wrong_shapes_are_errors() {
    let (device, stream) = common::open();
    let embedding = Embedding::new(&device, Element::Bf16).unwrap();
    let ids = Buffer::<i32>::zeroed(&stream, 4).unwrap();
    let table = ElementBuffer::zeroed(&stream, Element::Bf16, 10 * 16).unwrap();
    let h = Buffer::<f32>::zeroed(&stream, 4 * 16).unwrap();
    let launch = |n_rows, hidden| {
        embedding
            .launch(&stream, ids.all(), table.all(), h.all(), n_rows, hidden)
            .map_err(|error| error.to_string())
    };
    launch(4, 16).unwrap();
    launch(0, 16).unwrap();
    assert_eq!(
        launch(5, 16).unwrap_err(),
        "embedding: length of ids is 4, must be at least 5"
    );
    assert!(
        launch(4, 12)
            .unwrap_err()
            .contains("hidden is 12, must be a multiple of 8")
    );
    assert!(
        launch(4, 32)
            .unwrap_err()
            .contains("length of h is 64, must be at least 128")
    );
    let f16 = ElementBuffer::zeroed(&stream, Element::F16, 10 * 16).unwrap();
    let text = embedding
        .launch(&stream, ids.all(), f16.all(), h.all(), 4, 16)
        .unwrap_err()
        .to_string();
    assert_eq!(text, "embedding: table is f16, the kernel computes in bf16");
}
