//! What launches of stream_linear refuse.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../../tests/common/mod.rs"]
mod common;

use gpu::Buffer;
use half::f16;
use kernels::cuda::{Activation, Element, ElementBuffer};
use kernels::stream_linear::{
    Arrangement, AwqPart, Format, LargeM, Layout, Output, StreamLinear, StreamLinearKernels,
};

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn launches_check_their_arguments() {
    let (device, stream) = common::open();
    let large_m = LargeM::best(&device, false);
    let kernels = StreamLinearKernels::load(&stream, Element::F16, large_m).expect("the kernels");
    let layout = Layout::new(Format::AwqG64, Arrangement::Stacked, &[32], 320).expect("fits");
    let mut linear = StreamLinear::new(&kernels, layout.clone()).expect("memory");
    linear.fill_random(&stream, 15).expect("weights");
    let zeroed = |element, len| ElementBuffer::zeroed(&stream, element, len).expect("memory");
    let x = zeroed(Element::F16, 4 * 512);
    let out = zeroed(Element::F16, 4 * 32);
    let launch = |m, x_len, stride, output| {
        let x = x.view(0..x_len).expect("inside");
        linear
            .launch(
                &stream,
                m,
                Activation::plain(x, stride),
                None,
                output,
                false,
            )
            .expect_err("refused")
            .to_string()
    };
    let narrow = Layout::new(Format::AwqG64, Arrangement::Stacked, &[12], 64).expect("fits");
    let mut narrow = StreamLinear::new(&kernels, narrow).expect("memory");
    let words = Buffer::<u32>::zeroed(&stream, 96).expect("memory");
    let scales = Buffer::<f16>::from_slice(&stream, &[f16::ONE; 12]).expect("memory");
    let part = AwqPart {
        qweight: words.all(),
        qzeros: words.view(0..1).expect("inside"),
        scales: scales.all(),
    };
    let refused = narrow.load_awq(&stream, 0, &part).expect_err("refused");
    assert!(refused.to_string().contains("12 columns"), "{refused}");
    let store = Output::Store(out.all());
    assert!(launch(0, 2048, 512, store).contains("rows is 0"));
    let max_rows = kernels.max_rows();
    let too_many = format!("rows is {}", max_rows + 1);
    assert!(launch(max_rows + 1, 2048, 512, store).contains(&too_many));
    if kernels.wants_tiled(17) {
        assert!(launch(17, 2048, 512, store).contains("17 rows of x must be tiled"));
    }
    assert!(launch(1, 2048, 320, store).contains("do not fit a stride of 320"));
    assert!(launch(1, 2048, 513, store).contains("x is 513"));
    assert!(launch(4, 2047, 512, store).contains("x is 2047"));
    assert!(
        launch(
            4,
            2048,
            512,
            Output::Store(out.view(0..127).expect("inside"))
        )
        .contains("output's values is 127")
    );
    assert!(
        launch(
            1,
            2048,
            512,
            Output::SiluMul(Activation::plain(out.all(), 32))
        )
        .contains("SiluMul")
    );
    let odd = x.view(1..513).expect("inside");
    let refused = linear
        .launch(&stream, 1, Activation::plain(odd, 512), None, store, false)
        .expect_err("refused");
    assert!(refused.to_string().contains("divisible by 16"), "{refused}");
    let refused = linear.launch(
        &stream,
        1,
        Activation::plain(x.all(), 512),
        Some(out.view(0..31).expect("inside")),
        store,
        false,
    );
    assert!(
        refused
            .expect_err("refused")
            .to_string()
            .contains("bias's values is 31")
    );

    let bf16 = zeroed(Element::Bf16, 4 * 512);
    let mixed = |x, bias, output| {
        linear
            .launch(&stream, 1, Activation::plain(x, 512), bias, output, false)
            .expect_err("refused")
            .to_string()
    };
    let computes = "is bf16, the kernel computes in f16";
    let bias = Some(bf16.view(0..32).expect("inside"));
    assert_eq!(
        mixed(bf16.all(), None, store),
        format!("stream_linear: x {computes}")
    );
    assert_eq!(
        mixed(x.all(), bias, store),
        format!("stream_linear: the bias {computes}")
    );
    assert_eq!(
        mixed(x.all(), None, Output::Store(bf16.all())),
        format!("stream_linear: the output {computes}")
    );
    let half = Layout::new(Format::Half, Arrangement::Stacked, &[32], 64).expect("fits");
    let refused = StreamLinear::new(&kernels, half)
        .expect("memory")
        .load_half(&stream, 0, bf16.all())
        .expect_err("refused");
    assert_eq!(
        refused.to_string(),
        format!("stream_linear: a weight {computes}")
    );

    let mut other = StreamLinear::new(&kernels, layout).expect("memory");
    let refused = other
        .launch(
            &stream,
            1,
            Activation::plain(x.all(), 512),
            None,
            store,
            false,
        )
        .expect_err("refused");
    assert!(refused.to_string().contains("never loaded"), "{refused}");
    let refused = other
        .load_half(&stream, 0, x.all())
        .expect_err("refused")
        .to_string();
    assert!(
        refused.contains("16-bit weights for a matrix in AwqG64"),
        "{refused}"
    );
    let words = Buffer::<u32>::zeroed(&stream, 320 * 4).expect("memory");
    let scales = Buffer::<f16>::zeroed(&stream, 160).expect("memory");
    let source = AwqPart {
        qweight: words.all(),
        qzeros: words.all(),
        scales: scales.all(),
    };
    assert!(
        other
            .load_awq(&stream, 0, &source)
            .expect_err("refused")
            .to_string()
            .contains("qzeros' words")
    );
    assert!(
        other
            .load_awq(&stream, 1, &source)
            .expect_err("refused")
            .to_string()
            .contains("part is 1")
    );
    device
        .synchronize()
        .expect("nothing was launched that fails");
}
