//! The CUDA layer on a GPU: memory, copies, events, and what launches and captures refuse.

#![allow(unsafe_code, reason = "launches that the driver must refuse")]
#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

mod common;

use gpu::{
    Buffer, CardProfile, CudaError, Device, DevicePtr, Event, Graph, HostBuffer, LaunchConfig,
    RowsCopy, Stream, use_kernels_of_environment,
};
use kernels::cuda::Element;
use kernels::stream_linear::{LargeM, StreamLinearKernels};

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn memory_copies_views_and_errors() {
    let (device, stream) = common::open();
    let (device, stream) = (&device, &stream);
    let values: Vec<i32> = (0..1000).collect();
    let buffer = Buffer::from_slice(stream, &values).expect("memory");
    assert_eq!(
        buffer
            .view(10..20)
            .expect("inside")
            .download(stream)
            .expect("download"),
        values[10..20]
    );
    buffer
        .view(0..10)
        .expect("inside")
        .copy_from(stream, buffer.view(990..1000).expect("inside"))
        .expect("copy");
    buffer
        .view(10..12)
        .expect("inside")
        .fill_bytes(stream, 0xff)
        .expect("fill");
    assert_eq!(
        buffer
            .view(8..13)
            .expect("inside")
            .download(stream)
            .expect("download"),
        [998, 999, -1, -1, 12]
    );
    assert_eq!(
        buffer
            .view(9..11)
            .expect("inside")
            .cast::<u8>()
            .expect("bytes")
            .len(),
        8
    );
    assert!(
        buffer.view(9..11).expect("inside").cast::<u64>().is_err(),
        "4 bytes off"
    );
    assert!(matches!(
        buffer.view(5..1001),
        Err(CudaError::Range {
            end: 1001,
            len: 1000,
            ..
        })
    ));
    assert!(matches!(
        buffer.upload(stream, &[1, 2]),
        Err(CudaError::Length {
            found: 2,
            expected: 1000,
            ..
        })
    ));

    let mut host = HostBuffer::<i32>::zeroed(device, 1000).expect("pinned memory");
    host.copy_from(stream, buffer.all()).expect("copy");
    assert_eq!(
        host.as_slice().expect("wait")[8..13],
        [998, 999, -1, -1, 12]
    );
    host.as_mut_slice().expect("wait")[0] = 5;
    host.copy_to(stream, buffer.view(0..1).expect("inside"))
        .expect("copy");
    assert_eq!(
        buffer
            .view(0..2)
            .expect("inside")
            .download(stream)
            .expect("download"),
        [5, 991]
    );
    assert!(host.is_ready().expect("query"));
    let long = Buffer::<i32>::zeroed(stream, 1001).expect("memory");
    assert!(host.copy_to(stream, long.all()).is_err());

    let (_, total) = device.memory_bytes().expect("query");
    match Buffer::<u8>::new(device, total * 2) {
        Err(CudaError::OutOfMemory {
            bytes_asked,
            bytes_free,
        }) => {
            assert!(bytes_asked == total * 2 && bytes_free > 0 && bytes_free <= total);
        }
        other => panic!("{other:?}"),
    }
    // The error before leaves the context usable.
    let (start, end) = (
        Event::new(device).expect("event"),
        Event::new(device).expect("event"),
    );
    start.record(stream).expect("record");
    buffer.all().zero(stream).expect("zero");
    end.record(stream).expect("record");
    assert!(end.elapsed_ms(&start).expect("time") > 0.0);
}

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn rows_are_gathered_on_the_host_and_scattered_on_the_card() {
    let (device, stream) = common::open();
    let (device, stream) = (&device, &stream);
    let values: Vec<i32> = (0..100).collect();
    let buffer = Buffer::from_slice(stream, &values).expect("memory");
    let mut host = HostBuffer::<i32>::zeroed(device, 12).expect("pinned memory");
    let rows = RowsCopy {
        n_rows: 3,
        row_len: 2,
        pitch: 40,
        device_start: 17,
        host_start: 4,
    };
    host.copy_rows_from(stream, buffer.all(), rows)
        .expect("copy");
    let gathered = [0, 0, 0, 0, 17, 18, 57, 58, 97, 98, 0, 0];
    assert_eq!(host.as_slice().expect("wait"), gathered);
    let to = RowsCopy {
        device_start: 5,
        ..rows
    };
    host.copy_rows_to(stream, buffer.all(), to).expect("copy");
    let found = buffer.download(stream).expect("download");
    let mut expected = values;
    for (row, pair) in [[17, 18], [57, 58], [97, 98]].iter().enumerate() {
        expected[5 + 40 * row..][..2].copy_from_slice(pair);
    }
    assert_eq!(found, expected);
    for wrong in [
        RowsCopy {
            device_start: 19,
            ..rows
        },
        RowsCopy {
            host_start: 7,
            ..rows
        },
        RowsCopy { pitch: 1, ..rows },
        RowsCopy {
            n_rows: usize::MAX,
            ..rows
        },
    ] {
        assert!(
            host.copy_rows_to(stream, buffer.all(), wrong).is_err(),
            "{wrong:?}"
        );
        assert!(
            host.copy_rows_from(stream, buffer.all(), wrong).is_err(),
            "{wrong:?}"
        );
    }
}

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn kernels_and_captures_refuse_what_they_cannot_do() {
    let (device, stream) = common::open();
    let (device, stream) = (&device, &stream);
    let refused = device
        .kernel("stream_linear/repack", "repack")
        .expect_err("unknown")
        .to_string();
    assert!(refused.contains("repack_awq, repack_half"), "{refused}");
    let refused = device
        .kernel("nowhere", "x")
        .expect_err("unknown")
        .to_string();
    assert!(refused.contains("stream_linear/stream_linear"), "{refused}");
    let kernel = device
        .kernel("stream_linear/repack", "repack_half")
        .expect("known");
    // SAFETY: each is refused before it reaches the device.
    let launch = |config: LaunchConfig| unsafe { kernel.launch(stream, &config, &[0_u64; 5]) };
    assert!(
        launch(LaunchConfig::new(1, 256))
            .expect_err("refused")
            .to_string()
            .contains("threads a block is 256")
    );
    assert!(launch(LaunchConfig::new(0, 128)).is_err());
    let mut config = LaunchConfig::new(3, 128);
    config.cluster = 2;
    assert!(launch(config).is_err(), "3 blocks in clusters of 2");
    // SAFETY: refused, the parameters have the wrong size.
    let refused =
        unsafe { kernel.launch(stream, &LaunchConfig::new(1, 128), &DevicePtr::<u8>::null()) };
    assert!(matches!(
        refused,
        Err(CudaError::Parameters {
            expected: 40,
            found: 8,
            ..
        })
    ));
    assert!(kernel.set_max_dynamic_shared(1 << 30).is_err());

    let buffer = Buffer::<f32>::zeroed(stream, 4).expect("memory");
    // SAFETY: the capture fails, so there is no graph that could outlive the buffer.
    let captured = Graph::capture(stream, || buffer.upload(stream, &[0.0; 4]));
    assert!(
        matches!(captured, Err(CudaError::Captured(_))),
        "{captured:?}"
    );
    // The stream works again after the failed capture.
    buffer.upload(stream, &[1.0; 4]).expect("upload");
    assert_eq!(buffer.download(stream).expect("download"), [1.0; 4]);
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn a_card_profile_has_the_other_chips_limits_kernels_and_no_wgmma() {
    let profile: CardProfile = "sm_120:60".parse().unwrap();
    use_kernels_of_environment().unwrap();
    let device = Device::open_as(0, Some(profile)).unwrap();
    let properties = device.properties();
    assert_eq!(properties.architecture(), "sm_120");
    assert_eq!(properties.shared_bytes_per_block, 101_376);
    assert_eq!(properties.n_multiprocessors, 60);
    assert!(properties.name.ends_with("(card profile sm_120:60)"));
    let stream = Stream::new(&device).unwrap();
    let best = LargeM::best(&device, true);
    assert_eq!(best, LargeM::Mma);
    for element in Element::ALL {
        // Fails where the source's warps are not those that the planner counts with.
        let kernels = StreamLinearKernels::load(&stream, element, best).unwrap();
        assert_eq!(kernels.limits().compute_major, 12);
        assert!(kernels.limits().max_clusters[1] <= 30);
    }
    let wgmma = LargeM::Wgmma {
        exclusive_device: true,
    };
    let refused = StreamLinearKernels::load(&stream, Element::F16, wgmma).unwrap_err();
    assert!(
        refused.to_string().contains("runs on sm_90 alone"),
        "{refused}"
    );
}
