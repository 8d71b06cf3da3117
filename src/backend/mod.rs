//! The backends that the modules run on: one impl block each, and nothing else.
//!
//! Each backend sits behind its Cargo feature. On `Autodiff` every operation is the reference, so modules train.

#[cfg(feature = "autodiff")]
mod autodiff {
    use crate::ops::InferenceBackend;
    use burn_autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy};

    impl<B: InferenceBackend, C: CheckpointStrategy> InferenceBackend for Autodiff<B, C> {}
}

#[cfg(feature = "flex")]
mod flex {
    use crate::ops::InferenceBackend;

    impl InferenceBackend for burn_flex::Flex {}
}

#[cfg(feature = "ndarray")]
mod ndarray {
    use crate::ops::InferenceBackend;
    use burn_ndarray::{FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray};

    impl<E: FloatNdArrayElement, I: IntNdArrayElement, Q: QuantElement> InferenceBackend for NdArray<E, I, Q>
    where
        NdArrayTensor: From<SharedArray<E>>,
        NdArrayTensor: From<SharedArray<I>>,
    {
    }
}
