//! Structs and constants that the CUDA sources define as well.
//!
//! The compiler sees only one of the two, so each gets a test that compiles the device's text with
//! the host's C compiler and compares offsets, sizes and values by name (`check`). Text and ABI are
//! the same for nvcc, which lays structs out as the host does; no GPU and no nvcc is needed.

#[cfg(test)]
pub(crate) mod check;

/// Structs that a kernel takes, each with its name in the CUDA source and that source's path below
/// `kernels/src`. Fields have the device's names and no implicit padding. One call a module:
///
/// ```text
/// device_structs! {
///     struct AwqParams as RepackAwqParams in "stream_linear/repack.cu" {
///         qweight: DevicePtr<u32>,
///         n: i32,
///         k: i32,
///     }
/// }
/// ```
macro_rules! device_structs {
    ($(
        $(#[$meta:meta])*
        $vis:vis struct $name:ident as $device_name:ident in $source:literal {
            $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty),* $(,)?
        }
    )*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, ::bytemuck::Pod, ::bytemuck::Zeroable)]
            #[repr(C)]
            $vis struct $name {
                $($(#[$field_meta])* $field_vis $field: $type,)*
            }
        )*

        #[cfg(test)]
        mod device_structs {
            use crate::shared_with_device::check;

            #[test]
            fn lie_as_the_cuda_source_has_them() {
                $(
                    check::assert_same_struct($source, &check::HostStruct {
                        device_name: stringify!($device_name),
                        n_bytes: size_of::<super::$name>(),
                        fields: vec![$(
                            check::HostField {
                                name: stringify!($field),
                                offset: std::mem::offset_of!(super::$name, $field),
                                n_bytes: check::size_of_field(|value: &super::$name| &value.$field),
                            },
                        )*],
                    });
                )*
            }
        }
    };
}

/// Numbers that a CUDA source names as well: `NAME` where both names are the same, else
/// `HOST as DEVICE`. One call a module.
macro_rules! shared_constants {
    ($(in $source:literal { $($host:ident $(as $device:ident)?),* $(,)? })*) => {
        #[cfg(test)]
        mod shared_constants {
            use crate::shared_with_device::check;

            #[test]
            fn are_those_of_the_cuda_source() {
                $(
                    check::assert_same_constants($source, &[$(
                        (
                            [$(stringify!($device),)? stringify!($host)][0],
                            super::$host as i64,
                        ),
                    )*]);
                )*
            }
        }
    };
}

pub(crate) use {device_structs, shared_constants};
