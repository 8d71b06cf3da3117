//! A decoding step copies no history: the bytes that it allocates do not depend on the tokens that the cache holds. A layer of
//! int8 holds its elements and scales.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts the bytes that each thread asks for, and those that it gives back.
struct Counting;

thread_local! {
    static BYTES: Cell<usize> = const { Cell::new(0) };
    static FREED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed to the system's allocator as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size()));
        // SAFETY: the caller's layout, unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let _ = FREED.try_with(|freed| freed.set(freed.get() + layout.size()));
        // SAFETY: the pointer came from `alloc` above, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that this thread allocates while `work` runs.
pub fn allocated(work: impl FnOnce()) -> usize {
    let before = BYTES.get();
    work();
    BYTES.get() - before
}

/// Bytes that this thread allocates while `work` runs and does not free until its result is there.
fn retained<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let (taken, freed) = (BYTES.get(), FREED.get());
    let result = work();
    (result, (BYTES.get() - taken).saturating_sub(FREED.get() - freed))
}

use burn_deepspeed::load::{AttentionNames, Checkpoint, CheckpointWriter, NormNames, QkvLayout, QkvNames, WeightNames};
use burn_deepspeed::weight::{Orientation, QkvWeight};
use burn_deepspeed::{AttentionMask, DataType, DeepSpeedInferenceConfig, DeepSpeedSelfAttention, InferenceBackend};

use crate::attention::llama;
use crate::common::{on_each_cpu_backend, seeded};

fn a_step_copies_no_history<B: InferenceBackend>() {
    let device = Default::default();
    let config = llama().with_max_out_tokens(4096);
    let attention = config.init_self_attention::<B>(0, &device).unwrap();
    let mut cache = config.init_cache::<B>(1, &device).unwrap();
    let row = 2 * 8 * 4; // bytes of one token's keys, and of its values
    let mut step_at = |history: usize| {
        cache.reset();
        // the content does not matter, only that the rows hold so many tokens
        for tokens in [history / 2, history - history / 2] {
            cache.step(tokens).unwrap().commit();
        }
        let input = seeded::<B, 3>([1, 1, 48], 1);
        let bytes = allocated(|| {
            let mut step = cache.step(1).unwrap();
            attention.forward(input, AttentionMask::none(), step.layer(0)).unwrap();
            step.commit();
        });
        assert_eq!(cache.lengths(), [history + 1]);
        bytes
    };
    step_at(4090); // whatever is set up once, and the room that threads keep
    let (short, long) = (step_at(100), step_at(4000));
    assert!(long < short + 8 * row, "{short} bytes behind 100 tokens, {long} behind 4000");
    assert!(long < 4000 * row / 4, "{long} bytes, and the keys alone are {}", 4000 * row);
}

/// Built, loaded dense and loaded as int8, a layer holds its elements, its scales, and hardly anything else.
fn a_layer_of_int8_holds_its_bytes<B: InferenceBackend>() {
    let (device, folder) = (Default::default(), tempfile::tempdir().unwrap());
    let config = |dtype| DeepSpeedInferenceConfig::new(512, 8).with_dtype(dtype);
    let fresh = |dtype| config(dtype).init_self_attention::<B>(0, &device).unwrap();
    let bytes = |attention: &DeepSpeedSelfAttention<B>| {
        let QkvWeight::Fused(qkv) = attention.qkv() else { panic!() };
        qkv.int8().unwrap().bytes() + attention.output().int8().unwrap().bytes()
    };
    let check = |what: &str, (attention, retained): (DeepSpeedSelfAttention<B>, usize)| {
        let bytes = bytes(&attention);
        assert!(10 * retained <= 11 * bytes, "{what} holds {retained} bytes, and its int8 are {bytes}");
    };
    check("a layer that was never read", retained(|| fresh(DataType::Int8)));
    check(
        "a fresh layer",
        retained(|| {
            let attention = fresh(DataType::Int8);
            attention.forward_uncached(seeded([1, 1, 512], 1), AttentionMask::none(), None).unwrap();
            attention
        }),
    );
    for (dtype, orientation) in [
        (DataType::Fp32, Orientation::OutputInput),
        (DataType::Int8, Orientation::OutputInput),
        (DataType::Int8, Orientation::InputOutput),
    ] {
        let names = AttentionNames {
            norm: Some(NormNames::of("norm")),
            qkv: QkvNames::fused("qkv", QkvLayout::PerHead),
            output: WeightNames::of("out"),
            orientation,
        };
        let path = folder.path().join("layer.safetensors");
        let mut writer = CheckpointWriter::default();
        fresh(dtype).write(&mut writer, &names).unwrap();
        writer.save(&path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let loaded = retained(|| fresh(DataType::Int8).load(&checkpoint, &names).unwrap());
        assert!(loaded.1 >= bytes(&loaded.0), "what is held was not counted");
        check(&format!("a layer of {dtype}"), loaded);
    }
}

on_each_cpu_backend!(a_step_copies_no_history, a_layer_of_int8_holds_its_bytes);
