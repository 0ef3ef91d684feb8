//! Tests without a GPU; `kernels/tests/cuda_device.rs` has those that need one and kernels to launch.

use bytemuck::{Pod, Zeroable, bytes_of};

use super::*;

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    from: DevicePtr<f32>,
    to: DevicePtr<u8>,
    n: i32,
    rows: i32,
}

#[test]
fn device_pointers_are_plain_words_in_parameter_structs() {
    assert_eq!(size_of::<Params>(), 24);
    let params = Params {
        from: DevicePtr::null(),
        to: DevicePtr::null(),
        n: 7,
        rows: 9,
    };
    assert!(params.from.is_null() && params.to.cast::<f32>() == params.from);
    assert_eq!(bytes_of(&params)[16..], [7, 0, 0, 0, 9, 0, 0, 0]);
}

#[test]
fn opening_a_device_never_panics_and_says_what_is_missing() {
    match Device::open(1000) {
        Ok(_) => unreachable!("no machine has a thousand GPUs"),
        Err(CudaError::NoDevice { ordinal, n_devices }) => {
            assert_eq!((ordinal, n_devices), (1000, Device::count()));
        }
        Err(CudaError::NoDriver) => assert_eq!(Device::count(), 0),
        // A driver library without a GPU.
        Err(CudaError::Call { call, .. }) => assert_eq!(call, "cuInit"),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn errors_name_values_limits_and_the_recipe() {
    let text = CudaError::NoKernels {
        wanted: "sm_120".into(),
    }
    .to_string();
    assert!(text.contains("no CUDA kernels") && text.contains("cargo xtask build --arch sm_120"));
    let text = CudaError::OutOfMemory {
        bytes_asked: 12,
        bytes_free: 5,
    }
    .to_string();
    assert_eq!(text, "out of device memory: 12 bytes asked, 5 free");
}

#[test]
fn the_embedded_table_is_whole_or_empty() {
    let embedded = embedded_kernels();
    assert_eq!(
        embedded.fatbins.is_empty(),
        embedded.architectures.is_empty()
    );
    assert_eq!(
        embedded.sha256.len(),
        if embedded.fatbins.is_empty() { 0 } else { 64 }
    );
    for (name, bytes) in embedded.fatbins {
        assert!(bytes.len() > 64, "{name}: {} bytes", bytes.len());
    }
}

#[test]
fn a_launch_configuration_starts_plain() {
    let config = LaunchConfig::new(12, Dim3::new(32, 4, 1));
    assert_eq!(config.grid, Dim3::new(12, 1, 1));
    assert_eq!(
        (config.cluster, config.shared_bytes, config.dependent),
        (1, 0, false)
    );
}
