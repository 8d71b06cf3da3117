//! Divergence, exchanges between lanes, and barriers.

use cuda::error::Fault;

use crate::lab::{Run, kernel, words};

/// Where each thread writes its word.
const PLACE: &str = "mul.wide.u32 %x1, %t, 4; add.s64 %x1, %p0, %x1;\n";

fn threads(block: u32, declarations: &str, body: &str) -> Vec<u32> {
    let run = Run { block, ..Run::default() };
    words(&run.on(&kernel(declarations, &format!("{PLACE}{body}")), &[Err(4 * block as usize)]).unwrap()[0])
}

#[test]
fn lanes_that_took_different_branches_meet_again() {
    // Even lanes add 10, odd lanes 20; then all exchange, which needs every lane.
    let body = "and.b32 %r1, %t, 1; setp.eq.u32 %q1, %r1, 0; mov.u32 %r2, %t;\n\
                @%q1 bra EVEN; add.u32 %r2, %r2, 20; bra.uni DONE;\n\
                EVEN: add.u32 %r2, %r2, 10;\n\
                DONE: shfl.sync.bfly.b32 %r3, %r2, 1, 31, 0xffffffff; st.global.u32 [%x1], %r3;";
    for (thread, found) in threads(32, "", body).into_iter().enumerate() {
        let other = thread as u32 ^ 1;
        assert_eq!(found, other + if other.is_multiple_of(2) { 10 } else { 20 }, "thread {thread}");
    }
}

#[test]
fn loops_of_different_length_end_for_each_lane() {
    let body = "mov.u32 %r1, 0; mov.u32 %r2, 0;\n\
                AGAIN: add.u32 %r2, %r2, %r1; add.u32 %r1, %r1, 1; setp.le.u32 %q1, %r1, %t; @%q1 bra AGAIN;\n\
                st.global.u32 [%x1], %r2;";
    for (thread, found) in threads(45, "", body).into_iter().enumerate() {
        assert_eq!(found as usize, thread * (thread + 1) / 2, "thread {thread}");
    }
}

#[test]
fn lanes_that_ended_are_not_waited_for() {
    let body = "setp.ge.u32 %q1, %t, 16; @%q1 bra END; shfl.sync.idx.b32 %r1, %t, 3, 31, 0x0000ffff; st.global.u32 [%x1], %r1;\n\
                bar.sync 0; END:";
    let run = Run { block: 32, ..Run::default() };
    let found = run.on(&kernel("", &format!("{PLACE}{body}")), &[Ok(vec![0; 128])]).unwrap();
    assert_eq!(words(&found[0])[..16], [3; 16]);
}

#[test]
fn shuffles_read_the_lane_that_the_mode_says() {
    for (mode, by, clamp, expected) in [
        ("up", 3, 0, (|lane| if lane >= 3 { lane - 3 } else { lane }) as fn(u32) -> u32),
        ("down", 5, 31, |lane| if lane + 5 < 32 { lane + 5 } else { lane }),
        ("bfly", 6, 31, |lane| lane ^ 6),
        ("idx", 9, 31, |_| 9),
        // Segments of 8 lanes: the second part of the clamp is the mask of the segment.
        ("down", 2, 7 | 24 << 8, |lane| if lane % 8 + 2 < 8 { lane + 2 } else { lane }),
        ("idx", 5, 7 | 24 << 8, |lane| lane / 8 * 8 + 5),
    ] {
        let body = format!(
            "mul.lo.u32 %r1, %t, 3; shfl.sync.{mode}.b32 %r2|%q1, %r1, {by}, {clamp}, -1; st.global.u32 [%x1], %r2;"
        );
        for (lane, found) in threads(32, "", &body).into_iter().enumerate() {
            assert_eq!(found, 3 * expected(lane as u32), "{mode} by {by}, lane {lane}");
        }
    }
}

#[test]
fn votes_and_reductions_see_every_member() {
    let body = "setp.lt.u32 %q1, %t, 5; vote.sync.ballot.b32 %r1, %q1, -1; vote.sync.any.pred %q2, %q1, -1;\n\
                vote.sync.all.pred %q3, %q1, -1; selp.u32 %r2, 256, 0, %q2; selp.u32 %r3, 512, 0, %q3; add.u32 %r1, %r1, %r2;\n\
                add.u32 %r1, %r1, %r3; redux.sync.add.u32 %r4, %t, -1; mad.lo.u32 %r1, %r4, 65536, %r1; st.global.u32 [%x1], %r1;";
    assert_eq!(threads(32, "", body), [31 + 256 + 496 * 65536; 32]);
}

/// PTX ISA, "Parallel Synchronization and Communication Instructions: elect.sync". Which lane is elected is up to the device; here the
/// first of the members.
#[test]
fn one_of_the_members_is_elected() {
    for (first, members) in [(0, "-1"), (5, "0xffffffe0")] {
        let body = format!(
            "mov.u32 %r1, 99; setp.ge.u32 %q1, %t, {first}; @!%q1 bra DONE; elect.sync %r2|%q2, {members};\n\
             selp.u32 %r3, 100, 0, %q2; add.u32 %r1, %r2, %r3; DONE: st.global.u32 [%x1], %r1;"
        );
        let expected: Vec<u32> = (0..32)
            .map(|lane| match lane {
                lane if lane < first => 99,
                lane if lane == first => 100 + first,
                _ => first,
            })
            .collect();
        assert_eq!(threads(32, "", &body), expected, "{members}");
    }
}

#[test]
fn warps_exchange_through_shared_memory_behind_a_barrier() {
    let body = "mul.lo.u32 %r1, %t, 4; mov.u32 %r2, tile; add.u32 %r2, %r2, %r1; st.shared.u32 [%r2], %t; bar.sync 0;\n\
                sub.u32 %r3, 127, %t; mul.lo.u32 %r3, %r3, 4; mov.u32 %r4, tile; add.u32 %r4, %r4, %r3; ld.shared.u32 %r5, [%r4];\n\
                st.global.u32 [%x1], %r5;";
    let expected: Vec<u32> = (0..128).rev().collect();
    for seed in 0..5 {
        let run = Run { block: 128, seed, ..Run::default() };
        let ptx = kernel(".shared .align 4 .b8 tile[512];", &format!("{PLACE}{body}"));
        assert_eq!(words(&run.on(&ptx, &[Err(512)]).unwrap()[0]), expected);
    }
}

#[test]
fn special_registers_say_where_a_thread_is() {
    let body = "mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mad.lo.u32 %r3, %r1, %r2, %t; mul.wide.u32 %x1, %r3, 4;\n\
                add.s64 %x1, %p0, %x1; mov.u32 %r4, %laneid; mov.u32 %r5, %warpid; mad.lo.u32 %r6, %r5, 100, %r4;\n\
                mov.u32 %r7, %nctaid.x; mad.lo.u32 %r6, %r7, 10000, %r6; st.global.u32 [%x1], %r6;";
    for threads in [1, 2, 3] {
        let run = Run { grid: 3, block: 40, threads, ..Run::default() };
        let found = words(&run.on(&kernel("", body), &[Err(480)]).unwrap()[0]);
        for (index, found) in found.into_iter().enumerate() {
            let thread = index % 40;
            assert_eq!(found as usize, 30000 + thread / 32 * 100 + thread % 32, "thread {thread}");
        }
    }
}

#[test]
fn memory_of_a_thread_is_its_own() {
    let body = "mov.u64 %x2, own; cvta.local.u64 %x3, %x2; st.local.u32 [own+4], %t; ld.u32 %r1, [%x3+4]; st.global.u32 [%x1], %r1;";
    let expected: Vec<u32> = (0..32).collect();
    assert_eq!(threads(32, ".local .align 8 .b8 own[8];", body), expected);
}

#[test]
fn atomic_updates_of_many_blocks_add_up() {
    let body = "atom.global.add.u32 %r1, [%p0], 1; red.global.max.s32 [%p0+4], %t;";
    for threads in [1, 3] {
        let run = Run { grid: 7, block: 33, threads, ..Run::default() };
        let found = run.on(&kernel("", body), &[Ok(vec![0; 8])]).unwrap();
        assert_eq!(words(&found[0]), [7 * 33, 32]);
    }
}

/// Each block reverses its words in shared memory, round by round, and writes what it finds.
fn blocks_with_barriers(threads: usize, seed: u64, body: &str) -> Result<Vec<u8>, Box<Fault>> {
    let ptx = kernel(
        ".shared .align 4 .b8 tile[320];",
        &format!(
            "mov.u32 %r1, %ctaid.x; mad.lo.u32 %r2, %r1, 80, %t; mul.wide.u32 %x1, %r2, 4; add.s64 %x1, %p0, %x1;\n\
             mov.u32 %r4, tile; mad.lo.u32 %r3, %t, 4, %r4; sub.u32 %r5, 79, %t; mad.lo.u32 %r5, %r5, 4, %r4; mov.u32 %r6, 0;\n\
             AGAIN: mad.lo.u32 %r2, %r2, 7, %r6; st.shared.u32 [%r3], %r2; bar.sync 0; ld.shared.u32 %r2, [%r5]; bar.sync 0;\n\
             add.u32 %r6, %r6, 1; setp.lt.u32 %q1, %r6, 5; @%q1 bra AGAIN;\n\
             {body}\nst.global.u32 [%x1], %r2;"
        ),
    );
    let run = Run { grid: 13, block: 80, threads, seed, ..Run::default() };
    run.on(&ptx, &[Err(4 * 13 * 80)]).map(|found| found[0].clone())
}

#[test]
fn results_do_not_depend_on_the_threads_that_run_blocks() {
    let expected: Vec<u32> = (0..13)
        .flat_map(|block| {
            let mut words: Vec<u32> = (block * 80..block * 80 + 80).collect();
            for round in 0..5 {
                words.iter_mut().for_each(|word| *word = word.wrapping_mul(7).wrapping_add(round));
                words.reverse();
            }
            words
        })
        .collect();
    for threads in [1, 2, 3, 5, 16] {
        for seed in 0..3 {
            let found = blocks_with_barriers(threads, seed, "").unwrap();
            assert_eq!(words(&found), expected, "{threads} threads, seed {seed}");
        }
    }
}

/// Blocks 4, 7, 10 and 12 fail, each in another way. The fault that is reported is that of the first.
#[test]
fn faults_do_not_depend_on_the_threads_that_run_blocks() {
    let body = "setp.eq.u32 %q1, %r1, 12; @%q1 trap; setp.eq.u32 %q1, %r1, 10; @%q1 st.shared.u32 [tile], %t;\n\
                setp.eq.u32 %q1, %r1, 7; @%q1 ld.shared.u32 %r7, [%r4+320];\n\
                setp.eq.u32 %q1, %r1, 4; setp.eq.and.u32 %q2, %t, 41, %q1; @%q2 ld.global.u32 %r7, [%p0+4160];";
    for threads in [1, 2, 3, 5, 16] {
        for seed in 0..8 {
            let fault = blocks_with_barriers(threads, seed, body).unwrap_err();
            let place = (fault.block, fault.warp, fault.lane, fault.statement.as_str());
            let expected = ([4, 0, 0], 1, Some(9), "@%q2 ld.global.u32 %r7, [%p0+4160]");
            assert_eq!(place, expected, "{threads} threads, seed {seed}");
        }
    }
}
