//! The team of threads: every chunk once, reuse, panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use assay_num::Team;

#[test]
fn every_chunk_is_visited_once_with_its_part_of_the_slice() {
    for threads in 1..=4 {
        let team = Team::new(threads);
        assert_eq!(team.threads(), threads);
        for (len, chunk_len) in [(0, 1), (0, 0), (1, 1), (1, 5), (10, 3), (12, 3), (1000, 7), (1000, 1000)] {
            let mut out = vec![0usize; len];
            team.for_each_chunk(&mut out, chunk_len, |i, chunk| {
                assert_eq!(chunk.len(), chunk_len.min(len - i * chunk_len));
                for (j, v) in chunk.iter_mut().enumerate() {
                    *v += i * chunk_len + j + 1;
                }
            });
            assert!(out.iter().enumerate().all(|(i, &v)| v == i + 1), "{threads} threads, {len} by {chunk_len}");
        }
    }
}

#[test]
fn scratch_is_never_shared_between_threads() {
    let team = Team::new(3);
    let mut scratch = vec![(false, 0u32); 3];
    let mut out = vec![0u8; 5000];
    team.for_each_chunk_with(&mut scratch, &mut out, 1, |(busy, count), _, chunk| {
        assert!(!*busy);
        *busy = true;
        chunk[0] = 1;
        *count += 1;
        *busy = false;
    });
    assert_eq!(scratch.iter().map(|s| s.1).sum::<u32>(), 5000);
    assert!(out.iter().all(|&v| v == 1));
}

#[test]
fn many_short_jobs_in_a_row() {
    let team = Team::new(3);
    let count = AtomicUsize::new(0);
    for n in 0..3000 {
        team.run(n % 5, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    }
    assert_eq!(count.into_inner(), 3000 / 5 * (1 + 2 + 3 + 4));
}

#[test]
fn a_panic_reaches_the_caller_and_the_team_stays_usable() {
    for threads in 1..=3 {
        let team = Team::new(threads);
        for bad in [0, 57, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| team.run(100, |i| assert_ne!(i, bad, "job {bad} failed"))));
            let payload = result.expect_err("the panic is lost");
            assert!(payload.downcast_ref::<String>().is_some_and(|text| text.contains(&format!("job {bad} failed"))));
            let sum = AtomicUsize::new(0);
            team.run(10, |i| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 45, "after a panic");
        }
    }
}

/// The workers do take part: two calls that wait for each other can only end on two threads.
#[test]
fn jobs_run_on_several_threads_at_once() {
    let team = Team::new(3);
    let rendezvous = std::sync::Barrier::new(3);
    for _ in 0..50 {
        team.run(3, |_| {
            rendezvous.wait();
        });
    }
}

/// A panic in a worker while the caller is busy with another part.
#[test]
fn a_panic_on_another_thread_reaches_the_caller() {
    let team = Team::new(2);
    let caller = std::thread::current().id();
    let rendezvous = std::sync::Barrier::new(2);
    let result = catch_unwind(AssertUnwindSafe(|| {
        team.run(2, |_| {
            rendezvous.wait();
            assert_eq!(std::thread::current().id(), caller, "on the worker");
        });
    }));
    assert!(result.is_err());
    team.run(2, |_| {
        rendezvous.wait();
    });
}

#[test]
fn misuse_is_refused() {
    let team = Team::new(2);
    assert!(catch_unwind(AssertUnwindSafe(|| team.for_each_chunk(&mut [0u8; 3], 0, |_, _| {}))).is_err());
    let too_few =
        catch_unwind(AssertUnwindSafe(|| team.for_each_chunk_with(&mut [0u8; 1], &mut [0u8; 3], 1, |_, _, _| {})));
    assert!(too_few.is_err());
    assert_eq!(Team::new(0).threads(), 1);
}
