//! The output of a launch.

use gpu::{BufferView, Device, DevicePtr};

use crate::cuda::{Activation, ElementView};
use crate::stream_linear::Epilogue;

/// Destination of the result: `[m][n]`, contiguous rows; that of SiLU may be tiled if x is.
#[derive(Debug, Clone, Copy)]
pub enum Output<'a> {
    Store(ElementView<'a>),
    AddResidual(BufferView<'a, f32>),
    SiluMul(Activation<'a>),
    StoreF32(BufferView<'a, f32>),
}

impl Output<'_> {
    pub const fn epilogue(&self) -> Epilogue {
        match self {
            Self::Store(_) => Epilogue::Store,
            Self::AddResidual(_) => Epilogue::AddResidual,
            Self::SiluMul(_) => Epilogue::SiluMul,
            Self::StoreF32(_) => Epilogue::StoreF32,
        }
    }

    /// The output, if it has the kernels' element type.
    pub(super) fn elements(&self) -> Option<ElementView<'_>> {
        match self {
            Self::Store(view) => Some(*view),
            Self::SiluMul(to) => Some(to.view),
            Self::AddResidual(_) | Self::StoreF32(_) => None,
        }
    }

    pub(super) fn place(&self) -> (DevicePtr<u8>, usize) {
        match self {
            Self::Store(view) => (view.ptr().cast(), view.len()),
            Self::SiluMul(to) => (to.view.ptr().cast(), to.view.len()),
            Self::AddResidual(view) | Self::StoreF32(view) => (view.ptr().cast(), view.len()),
        }
    }

    pub(super) fn device(&self) -> &Device {
        match self {
            Self::Store(view) => view.device(),
            Self::SiluMul(to) => to.view.device(),
            Self::AddResidual(view) | Self::StoreF32(view) => view.device(),
        }
    }
}
