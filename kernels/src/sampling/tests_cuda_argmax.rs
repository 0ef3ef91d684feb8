//! Argmax and the advance of rows.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../../tests/common/mod.rs"]
mod common;

use gpu::Buffer;
use kernels::sampling::cuda::{AdvanceState, ArgmaxAdvance, ArgmaxAdvanceArgs, TokenError};

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn the_lowest_of_the_largest_wins() {
    let (device, stream) = common::open();
    let argmax = ArgmaxAdvance::new(&device).unwrap();
    let mut rng = common::rng(6);
    for vocab in [1, 2, 255, 2049, 32_000, 151_936] {
        let (n_rows, stride) = (6, vocab + 5);
        let mut logits = common::normals(&mut rng, n_rows * stride, 4.0);
        // After a row's end: never read.
        for row in 0..n_rows {
            logits[row * stride + vocab..][..5].fill(f32::INFINITY);
        }
        if vocab > 1000 {
            logits[vocab - 1] = 50.0; // row 0: ties far apart
            logits[vocab / 3] = 50.0;
            logits[vocab / 2] = 50.0;
            logits[stride..][..vocab].fill(3.5); // row 1: all the same
            let row = &mut logits[2 * stride..][..vocab]; // row 2: -0 and 0 are the same
            for x in row.iter_mut() {
                *x = -x.abs() - 1.0;
            }
            (row[700], row[900]) = (-0.0, 0.0);
            logits[3 * stride..][..vocab].fill(f32::NEG_INFINITY); // row 3: one is not masked
            logits[3 * stride + 901] = -1e30;
            logits[4 * stride + vocab - 1] = 1e30; // row 4: the last one
        }
        let on_device = Buffer::from_slice(&stream, &logits).unwrap();
        let next_ids = Buffer::<i32>::zeroed(&stream, n_rows).unwrap();
        let history = Buffer::from_slice(&stream, &vec![-5; 3 * n_rows]).unwrap();
        let step = Buffer::from_slice(&stream, &[2]).unwrap();
        let args = ArgmaxAdvanceArgs {
            logits: on_device.all(),
            vocab,
            stride,
            next_ids: next_ids.all(),
            history: history.all(),
            step: None,
            n_rows,
            advance: None,
        };
        argmax.launch(&stream, &args).unwrap();
        argmax
            .launch(
                &stream,
                &ArgmaxAdvanceArgs {
                    step: Some(step.all()),
                    ..args
                },
            )
            .unwrap();
        let expected: Vec<i32> = (0..n_rows)
            .map(|row| {
                let row = &logits[row * stride..][..vocab];
                let best = (0..vocab).fold(0, |best, i| if row[i] > row[best] { i } else { best });
                best as i32
            })
            .collect();
        assert_eq!(
            next_ids.download(&stream).unwrap(),
            expected,
            "vocab {vocab}"
        );
        let history = history.download(&stream).unwrap();
        assert_eq!(history[..n_rows], expected);
        assert_eq!(history[n_rows..2 * n_rows], [-5; 6]);
        assert_eq!(history[2 * n_rows..], expected);
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn a_row_without_a_likeliest_token_reports_an_error_and_the_others_their_tokens() {
    let (device, stream) = common::open();
    let argmax = ArgmaxAdvance::new(&device).unwrap();
    for vocab in [1, 100, 2049, 151_936] {
        let n_rows = 7;
        let mut logits = common::normals(&mut common::rng(16), n_rows * vocab, 4.0);
        for (row, value) in [(0, f32::NAN), (1, -f32::NAN), (2, f32::INFINITY)] {
            logits[row * vocab + vocab * 2 / 3] = value;
        }
        logits[3 * vocab..][..vocab].fill(f32::NEG_INFINITY);
        logits[4 * vocab..][..vocab].fill(f32::NAN);
        // Rows 5 and 6 have tokens, the largest number among them.
        logits[5 * vocab + vocab / 2] = f32::MAX;
        let on_device = Buffer::from_slice(&stream, &logits).unwrap();
        let ints = |value| Buffer::from_slice(&stream, &vec![value; n_rows]).unwrap();
        let (next_ids, history) = (ints(9), ints(9));
        argmax
            .launch(
                &stream,
                &ArgmaxAdvanceArgs {
                    logits: on_device.all(),
                    vocab,
                    stride: vocab,
                    next_ids: next_ids.all(),
                    history: history.all(),
                    step: None,
                    n_rows,
                    advance: None,
                },
            )
            .unwrap();
        let found: Vec<_> = history
            .download(&stream)
            .unwrap()
            .into_iter()
            .map(TokenError::token)
            .collect();
        let row = &logits[6 * vocab..];
        let best = (0..vocab).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        let expected = [
            Err(TokenError::NotFinite),
            Err(TokenError::NotFinite),
            Err(TokenError::NotFinite),
            Err(TokenError::AllMasked),
            Err(TokenError::NotFinite),
            Ok(vocab as u32 / 2),
            Ok(best as u32),
        ];
        assert_eq!(found, expected, "vocab {vocab}");
        let next_ids = next_ids.download(&stream).unwrap();
        assert_eq!(next_ids[..5], [0; 5], "a token that exists");
        assert_eq!(next_ids[5..], [vocab as i32 / 2, best as i32]);
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn rows_advance_across_page_borders_and_stop_at_the_table_s_end() {
    let (device, stream) = common::open();
    let argmax = ArgmaxAdvance::new(&device).unwrap();
    let max_pages = 3;
    let contexts = [1, 15, 16, 0, 31, 32, 47, 48];
    let n_rows = contexts.len();
    let tables: Vec<i32> = (0..(n_rows * max_pages) as i32)
        .map(|i| 1000 - 7 * i)
        .collect();
    let upload = |values: &[i32]| Buffer::from_slice(&stream, values).unwrap();
    let logits = Buffer::<f32>::zeroed(&stream, n_rows * 100).unwrap();
    let (next_ids, history) = (upload(&vec![9; n_rows]), upload(&vec![9; n_rows]));
    let (positions, context_len) = (upload(&vec![-3; n_rows]), upload(&contexts));
    let (slots, page_table) = (upload(&vec![-3; n_rows]), upload(&tables));
    argmax
        .launch(
            &stream,
            &ArgmaxAdvanceArgs {
                logits: logits.all(),
                vocab: 100,
                stride: 100,
                next_ids: next_ids.all(),
                history: history.all(),
                step: None,
                n_rows,
                advance: Some(AdvanceState {
                    positions: positions.all(),
                    context_len: context_len.all(),
                    slots: slots.all(),
                    page_table: page_table.all(),
                    max_pages,
                }),
            },
        )
        .unwrap();
    let (positions, after, slots) = (
        positions.download(&stream).unwrap(),
        context_len.download(&stream).unwrap(),
        slots.download(&stream).unwrap(),
    );
    for row in 0..n_rows {
        let expected = match contexts[row] {
            0 => (-3, 0, -3),
            48 => (48, 49, -1),
            n => {
                let page = tables[row * max_pages + n as usize / 16];
                (n, n + 1, page * 16 + n % 16)
            }
        };
        assert_eq!(
            (positions[row], after[row], slots[row]),
            expected,
            "row {row}"
        );
    }
    assert_eq!(next_ids.download(&stream).unwrap(), vec![0; n_rows]);
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn wrong_shapes_are_errors() {
    let (device, stream) = common::open();
    let argmax = ArgmaxAdvance::new(&device).unwrap();
    let logits = Buffer::<f32>::zeroed(&stream, 4 * 100).unwrap();
    let ints = Buffer::<i32>::zeroed(&stream, 4).unwrap();
    let good = ArgmaxAdvanceArgs {
        logits: logits.all(),
        vocab: 100,
        stride: 100,
        next_ids: ints.all(),
        history: ints.all(),
        step: None,
        n_rows: 4,
        advance: None,
    };
    let launch = |args: &ArgmaxAdvanceArgs<'_>| {
        argmax
            .launch(&stream, args)
            .map_err(|error| error.to_string())
    };
    launch(&good).unwrap();
    let text = launch(&ArgmaxAdvanceArgs { n_rows: 5, ..good }).unwrap_err();
    assert_eq!(
        text,
        "argmax_advance: length of logits is 400, must be at least 500"
    );
    assert!(launch(&ArgmaxAdvanceArgs { vocab: 101, ..good }).is_err());
    assert!(launch(&ArgmaxAdvanceArgs { vocab: 0, ..good }).is_err());
    let state = AdvanceState {
        positions: ints.all(),
        context_len: ints.all(),
        slots: ints.all(),
        page_table: ints.all(),
        max_pages: 2,
    };
    let text = launch(&ArgmaxAdvanceArgs {
        advance: Some(state),
        ..good
    })
    .unwrap_err();
    assert!(
        text.contains("length of page_table is 4, must be at least 8"),
        "{text}"
    );
}
