//! Asynchronous copies and mbarriers.

use cuda::error::Misuse;

use crate::lab::{Run, bytes, kernel, words};

const TILE: &str = ".shared .align 16 .b8 tile[1024]; .shared .align 8 .b64 done;";
/// Where each thread copies 16 bytes to, in `%r1`, and from, in `%x1`.
const PLACES: &str = "mul.lo.u32 %r2, %t, 16; mov.u32 %r1, tile; add.u32 %r1, %r1, %r2; cvt.u64.u32 %x2, %r2; add.s64 %x1, %p0, %x2;\n\
                      add.s64 %x3, %p1, %x2;\n";
const STORE: &str = "ld.shared.v4.u32 {%r3, %r4, %r5, %r6}, [%r1]; st.global.v4.u32 [%x3], {%r3, %r4, %r5, %r6};";

fn numbers() -> Vec<u32> {
    (0..128).map(|at| at * at + 1).collect()
}

fn copied(body: &str) -> Result<Vec<u32>, Misuse> {
    let ptx = kernel(TILE, &format!("{PLACES}{body}"));
    let buffers = [Ok(bytes(&numbers(), u32::to_le_bytes)), Err(512)];
    Run::default().on(&ptx, &buffers).map(|found| words(&found[1])).map_err(|fault| fault.misuse)
}

#[test]
fn a_copy_is_there_after_its_thread_waited() {
    let body =
        format!("cp.async.cg.shared.global [%r1], [%x1], 16; cp.async.commit_group; cp.async.wait_group 0;\n{STORE}");
    assert_eq!(copied(&body).unwrap(), numbers());
    let body = format!("cp.async.ca.shared.global [%r1], [%x1], 16; cp.async.wait_all;\n{STORE}");
    assert_eq!(copied(&body).unwrap(), numbers());
}

#[test]
fn bytes_that_are_not_read_are_zeros() {
    let body = format!("cp.async.cg.shared.global [%r1], [%x1], 16, 8; cp.async.wait_all;\n{STORE}");
    let expected: Vec<u32> =
        numbers().iter().enumerate().map(|(at, word)| if at % 4 < 2 { *word } else { 0 }).collect();
    assert_eq!(copied(&body).unwrap(), expected);
}

#[test]
fn a_copy_that_is_not_waited_for_is_a_race() {
    let body = format!("cp.async.cg.shared.global [%r1], [%x1], 16; cp.async.commit_group;\n{STORE}");
    let Err(Misuse::Race { other, .. }) = copied(&body) else { panic!("no race was found") };
    assert_eq!(other, "a copy that may not have landed");
}

/// The second group may still be under way after `wait_group 1`, and then it is.
#[test]
fn waiting_for_all_but_one_group_leaves_the_last() {
    let two = "add.u32 %r7, %r1, 512; cp.async.cg.shared.global [%r1], [%x1], 16; cp.async.commit_group;\n\
               cp.async.cg.shared.global [%r7], [%x1], 16; cp.async.commit_group; cp.async.wait_group 1;\n";
    assert_eq!(copied(&format!("{two}{STORE}")).unwrap(), numbers());
    assert!(matches!(copied(&format!("{two}mov.u32 %r1, %r7;{STORE}")), Err(Misuse::Race { .. })));
}

/// Thread 0 initialises an mbarrier for every thread; each arrives once its copy has landed, and then all wait for the phase.
#[test]
fn copies_arrive_at_an_mbarrier() {
    let body = |wait: &str| {
        format!(
            "mov.u32 %r8, done; setp.eq.u32 %q1, %t, 0; @%q1 mbarrier.init.shared.b64 [%r8], 32; bar.sync 0;\n\
             cp.async.cg.shared.global [%r1], [%x1], 16; cp.async.mbarrier.arrive.noinc.shared.b64 [%r8];\n{wait}\n{STORE}"
        )
    };
    let wait = "AGAIN: mbarrier.try_wait.parity.shared.b64 %q2, [%r8], 0; @!%q2 bra AGAIN;";
    assert_eq!(copied(&body(wait)).unwrap(), numbers());
    assert!(matches!(copied(&body("")), Err(Misuse::Race { .. })), "without waiting");
    let wrong_phase = "AGAIN: mbarrier.try_wait.parity.shared.b64 %q2, [%r8], 1; @!%q2 bra AGAIN;";
    assert!(matches!(copied(&body(wrong_phase)), Err(Misuse::Race { .. })), "the phase before is complete at once");
}

#[test]
fn an_mbarrier_that_nobody_completes_is_a_deadlock() {
    let body = "mov.u32 %r8, done; setp.eq.u32 %q1, %t, 0; @%q1 mbarrier.init.shared.b64 [%r8], 33; bar.sync 0;\n\
                mbarrier.arrive.shared.b64 %x5, [%r8];\n\
                AGAIN: mbarrier.try_wait.parity.shared.b64 %q2, [%r8], 0; @!%q2 bra AGAIN;";
    assert!(matches!(copied(body), Err(Misuse::Deadlock { .. })));
}

#[test]
fn more_arrivals_than_an_mbarrier_counts_are_an_error() {
    let body = "mov.u32 %r8, done; setp.eq.u32 %q1, %t, 0; @%q1 mbarrier.init.shared.b64 [%r8], 5; bar.sync 0;\n\
                mbarrier.arrive.shared.b64 %x5, [%r8], 7;";
    let Err(Misuse::Invalid(fact)) = copied(body) else { panic!("it was accepted") };
    assert!(fact.contains("7 arrivals") && fact.contains("5 of 5"), "{fact}");
}
