//! The pool's promises, and what its cache finds.

use super::*;

const SHAPE: KvShape = KvShape { n_layers: 2, n_kv_heads: 3, head_dim: 4 };

#[test]
fn reservations_are_bounded_and_returned() {
    let mut pool = KvPool::new(SHAPE, 4 * KV_CHUNK);
    let a = pool.reserve(KV_CHUNK + 1).expect("two of four blocks");
    let b = pool.reserve(2 * KV_CHUNK).expect("the other two");
    assert!(pool.reserve(1).is_none());
    pool.release(a);
    assert_eq!(pool.blocks_reserved(), 2);
    let c = pool.reserve(2 * KV_CHUNK).expect("released blocks");
    assert!(pool.reserve(1).is_none());
    pool.release(b);
    pool.release(c);
    assert_eq!(pool.blocks_reserved(), 0);
}

#[test]
fn memory_is_allocated_when_written_and_recycled() {
    let mut pool = KvPool::new(SHAPE, 8 * KV_CHUNK);
    let mut seq = pool.reserve(3 * KV_CHUNK).expect("room");
    pool.grow(&mut seq, 1);
    assert_eq!(seq.blocks.len(), 1);
    seq.advance(1);
    pool.grow(&mut seq, KV_CHUNK - 1);
    assert_eq!(seq.blocks.len(), 1);
    seq.advance(KV_CHUNK - 1);
    pool.grow(&mut seq, 1);
    assert_eq!(seq.blocks.len(), 2);
    pool.release(seq);
    assert_eq!(pool.free.len(), 2);
    let mut again = pool.reserve(KV_CHUNK).expect("room");
    pool.grow(&mut again, KV_CHUNK);
    assert_eq!(pool.free.len(), 1);
}

#[test]
fn heads_and_layers_do_not_overlap() {
    let mut pool = KvPool::new(SHAPE, KV_CHUNK);
    let mut seq = pool.reserve(KV_CHUNK).expect("room");
    pool.grow(&mut seq, KV_CHUNK);
    for layer in 0..SHAPE.n_layers {
        let heads = seq.layers_mut(0..1, layer).flat_map(|part| part.chunks_mut(SHAPE.head_len()));
        for (head, share) in heads.enumerate() {
            let (k, v) = share.split_at_mut(KV_CHUNK * SHAPE.head_dim);
            k.fill((10 * layer + head) as u16);
            v.fill((10 * layer + head + 100) as u16);
        }
    }
    seq.advance(KV_CHUNK);
    for layer in 0..SHAPE.n_layers {
        for head in 0..SHAPE.n_kv_heads {
            let mut chunks = Vec::new();
            seq.chunks(layer, head, KV_CHUNK, &mut chunks);
            assert_eq!(chunks.len(), 1);
            assert!(chunks[0].k.iter().all(|x| *x == (10 * layer + head) as u16));
            assert!(chunks[0].v.iter().all(|x| *x == (10 * layer + head + 100) as u16));
            assert_eq!(chunks[0].k.len(), KV_CHUNK * SHAPE.head_dim);
        }
    }
}

#[test]
#[should_panic(expected = "were promised")]
fn growing_past_the_promise_is_a_bug() {
    let mut pool = KvPool::new(SHAPE, 8 * KV_CHUNK);
    let mut seq = pool.reserve(KV_CHUNK).expect("room");
    pool.grow(&mut seq, KV_CHUNK + 1);
}

/// Feeds `n` more tokens of a sequence, marking each position with its token and place.
fn feed(pool: &mut KvPool, seq: &mut KvSeq, tokens: &[u32], n: usize) {
    pool.grow(seq, n);
    for position in seq.len..seq.len + n {
        for layer in 0..SHAPE.n_layers {
            let block = position / KV_CHUNK;
            seq.layers_mut(block..block + 1, layer)
                .for_each(|part| part[position % KV_CHUNK] = tokens[position] as u16);
        }
    }
    seq.advance(n);
    pool.publish(seq, tokens);
    audit(pool);
}

/// What the marks say the sequence was fed.
fn marks(seq: &KvSeq) -> Vec<u32> {
    let slot = |position: usize| u32::from(seq.blocks[position / KV_CHUNK].data()[position % KV_CHUNK]);
    (0..seq.len).map(slot).collect()
}

fn audit(pool: &KvPool) {
    assert!(pool.blocks_reserved() <= pool.blocks_max, "{pool:?}");
    assert!(pool.blocks_allocated() <= pool.blocks_max, "{pool:?}");
}

fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 31 + seed * 977) % 60_000 + 1).collect()
}

const ME: Payer = Payer([0; 20]);

#[test]
fn a_second_sequence_finds_what_the_first_computed() {
    let mut pool = KvPool::new(SHAPE, 16 * KV_CHUNK);
    let long = tokens(700, 1);
    let mut first = pool.reserve_cached(ME, &long, 800).expect("room");
    assert_eq!(first.len(), 0);
    feed(&mut pool, &mut first, &long, 300);
    // Full blocks are shared while the first still runs; its last block is not.
    let mut second = pool.reserve_cached(ME, &long, 800).expect("room");
    assert_eq!((second.len(), pool.blocks_held()), (256, 2));
    feed(&mut pool, &mut first, &long, 400);
    assert_eq!(pool.attach(&mut second, &long), 256);
    assert_eq!(pool.attach(&mut second, &long), 0);
    feed(&mut pool, &mut second, &long, 100);
    assert_eq!(marks(&second), &long[..612]);
    pool.retire(first, &long);
    let other = pool.reserve_cached(Payer([1; 20]), &long, 800).expect("room");
    assert_eq!(other.len(), 0, "another payer's prompt tells nothing");
    pool.release(other);
    // The end of the first is copied as far as it agrees, and never all of a prompt.
    let mut turn = long[..650].to_vec();
    turn.extend(tokens(100, 2));
    for (prompt, expect) in [(&turn[..], 650), (&long[..], 699), (&long[..512], 511), (&long[..520], 512)] {
        let seq = pool.reserve_cached(ME, prompt, 800).expect("room");
        assert_eq!(seq.len(), expect, "of {}", prompt.len());
        assert_eq!(marks(&seq), &prompt[..expect]);
        pool.release(seq);
    }
    pool.release(second);
    audit(&pool);
    assert_eq!((pool.blocks_reserved(), pool.blocks_idle()), (0, 3));
}

#[test]
fn equal_blocks_are_kept_once() {
    let mut pool = KvPool::new(SHAPE, 8 * KV_CHUNK);
    let long = tokens(520, 1);
    let mut both = [(); 2].map(|()| pool.reserve_cached(ME, &long, 520).expect("room"));
    both.iter_mut().for_each(|seq| feed(&mut pool, seq, &long, 520));
    assert_eq!(pool.blocks_held(), 4, "two full blocks and two ends");
    assert!(both.iter().all(|seq| marks(seq) == long));
    both.into_iter().for_each(|seq| pool.retire(seq, &long));
    assert_eq!((pool.blocks_reserved(), pool.blocks_idle(), pool.free.len()), (0, 2, 4), "8 tokens are not kept");
}

#[test]
fn the_only_block_there_is_becomes_the_copy() {
    let mut pool = KvPool::new(SHAPE, KV_CHUNK);
    let first = tokens(100, 1);
    let mut seq = pool.reserve_cached(ME, &first, 200).expect("room");
    feed(&mut pool, &mut seq, &first, 100);
    pool.retire(seq, &first);
    let seq = pool.reserve_cached(ME, &first[..60], 200).expect("an idle block is no obstacle");
    assert_eq!(marks(&seq), &first[..59]);
    assert_eq!((pool.blocks_held(), pool.blocks_idle()), (1, 0));
    pool.release(seq);
    audit(&pool);
}

#[test]
fn any_sequence_of_operations_keeps_the_bound_and_the_content() {
    for seed in 0..300 {
        let mut random: u64 = seed * 7919 + 1;
        let mut below = |n: u64| {
            random = (random ^ (random >> 12)).wrapping_mul(0x2545_f491_4f6c_dd1d) ^ (random << 25);
            (random >> 33) % n
        };
        let blocks_max = 1 + below(9) as usize;
        let mut pool = KvPool::new(SHAPE, blocks_max * KV_CHUNK);
        let mut running: Vec<(KvSeq, Vec<u32>)> = Vec::new();
        for _ in 0..80 {
            match below(4) {
                0 => {
                    // Few stems and few lengths of them, so that beginnings agree.
                    let stem = [0, 100, 256, 400, 512, 700][below(6) as usize];
                    let mut prompt = tokens(stem, below(2) as u32);
                    prompt.extend(tokens(1 + below(300) as usize, 10 + below(3) as u32));
                    let n_positions = prompt.len() + below(300) as usize;
                    if let Some(seq) = pool.reserve_cached(Payer([below(2) as u8; 20]), &prompt, n_positions) {
                        assert!(seq.len() < prompt.len());
                        assert_eq!(marks(&seq), &prompt[..seq.len()], "seed {seed}");
                        running.push((seq, prompt));
                    }
                }
                1 if !running.is_empty() => {
                    let (seq, prompt) = running.swap_remove(below(running.len() as u64) as usize);
                    if below(2) == 0 { pool.retire(seq, &prompt) } else { pool.release(seq) }
                }
                _ if !running.is_empty() => {
                    let at = below(running.len() as u64) as usize;
                    let (seq, prompt) = &mut running[at];
                    pool.attach(seq, prompt);
                    let left = prompt.len() - seq.len();
                    let n = left.min(1 + below(300) as usize);
                    if pool.extend(seq, seq.len() + n) {
                        feed(&mut pool, seq, prompt, n);
                    }
                }
                _ => {}
            }
            audit(&pool);
            for (seq, prompt) in &running {
                assert_eq!(marks(seq), &prompt[..seq.len()], "seed {seed}");
            }
        }
        running.into_iter().for_each(|(seq, _)| pool.release(seq));
        assert_eq!((pool.blocks_reserved(), pool.blocks_held()), (0, 0), "seed {seed}");
        let all = pool.reserve(blocks_max * KV_CHUNK).expect("every block can be had again");
        pool.release(all);
    }
}
