// SPDX-License-Identifier: GPL-2.0

//! Filters: whole, in parts, and made by an enemy.

use proptest::prelude::*;
use rand::{
    rngs::SmallRng,
    Rng,
    SeedableRng, //
};
use twinpage_wire::{
    limits,
    Digest,
    Fault,
    Filter,
    FilterAssembler,
    FilterBuilder,
    FilterKey,
    FilterPart, //
};

const KEY: FilterKey = FilterKey(*b"a key of 16 byte");

/// A digest that differs for each `n`.
pub fn digest(n: u64) -> Digest {
    Digest(SmallRng::seed_from_u64(n).random())
}

/// The filter of `count` digests.
fn build(count: u64) -> Filter {
    let mut builder = FilterBuilder::new(&KEY);
    (0..count).for_each(|n| builder.add(&digest(n)));
    builder.finish().expect("a filter")
}

/// What becomes of `parts`.
fn assemble(parts: &[FilterPart], limit: usize) -> Result<Option<Filter>, Fault> {
    let mut assembler = FilterAssembler::new(&KEY, limit);
    let mut filter = None;
    for part in parts {
        filter = assembler.push(part)?;
    }
    Ok(filter)
}

#[test]
fn all_that_was_added_is_found_and_little_else() {
    for count in [0, 1, 2, 3, 10, 1000, 100_000] {
        let parts = build(count).parts().collect::<Vec<_>>();
        let filter = assemble(&parts, limits::FILTER_TOTAL).expect("a good filter");
        let filter = filter.expect("a whole filter");
        assert_eq!(filter.keys(), count);
        assert!((0..count).all(|n| filter.contains(&digest(n))), "{count}");
        let others = (0..100_000).filter(|n| filter.contains(&digest(n + (1 << 40))));
        // 1.5 are expected.
        assert!(others.count() < 15, "{count}");
    }
}

#[test]
fn a_large_filter_travels_in_full_parts() {
    let filter = build(1_500_000);
    let parts = filter.parts().collect::<Vec<_>>();
    let (last, full) = parts.split_last().expect("parts");
    assert!(full.len() >= 3);
    assert!(full
        .iter()
        .all(|part| part.bytes.len() == limits::FILTER_PART));
    assert_eq!(last.offset + last.bytes.len() as u64, filter.wire_bytes());
    let assembled = assemble(&parts, limits::FILTER_TOTAL).expect("a good filter");
    let assembled = assembled.expect("a whole filter");
    assert!((0..1_500_000)
        .step_by(999)
        .all(|n| assembled.contains(&digest(n))));
    let bits = filter.wire_bytes() * 8 / 1_500_000;
    assert!((17..=19).contains(&bits), "{bits} bits a digest");
}

#[test]
fn equal_digests_count_once() {
    let mut builder = FilterBuilder::new(&KEY);
    (0..1000).for_each(|n| builder.add(&digest(n % 10)));
    assert_eq!(builder.len(), 1000);
    assert_eq!(builder.finish().map(|filter| filter.keys()), Ok(10));
}

#[test]
fn another_key_makes_another_filter() {
    let part = build(1000).parts().next().expect("a part");
    let mut assembler = FilterAssembler::new(&FilterKey([1; 16]), limits::FILTER_TOTAL);
    let filter = assembler
        .push(&part)
        .expect("a good filter")
        .expect("a whole filter");
    assert!((0..1000).filter(|&n| filter.contains(&digest(n))).count() < 5);
}

#[test]
fn parts_are_refused_out_of_order_too_long_or_too_many() {
    let parts = build(1_500_000).parts().collect::<Vec<_>>();
    let total = parts[0].total as usize;
    assert!(assemble(&parts, total).is_ok());
    let too_long = assemble(&parts, total - 1);
    assert!(matches!(too_long, Err(Fault::TooLong { .. })));
    assert!(assemble(&parts[1..], total).is_err());
    assert!(assemble(&[parts[0].clone(), parts[2].clone()], total).is_err());
    assert!(assemble(&[parts[0].clone(), parts[0].clone()], total).is_err());
    let mut short = parts[0].clone();
    short.bytes.truncate(5000);
    assert!(assemble(&[short], total).is_err());
    let mut other = parts[1].clone();
    other.total += 2;
    assert!(assemble(&[parts[0].clone(), other], total).is_err());
    // A second filter may follow the first.
    assert!(assemble(&[parts.clone(), parts].concat(), total).is_ok_and(|all| all.is_some()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_hostile_filter_is_refused_or_harmless(
        keys in prop_oneof![Just(0_u64), Just(1), any::<u64>()],
        seed: u64,
        segment in prop_oneof![(0..20_u32).prop_map(|n| 1 << n), any::<u32>(), 0..9_u32],
        segments in prop_oneof![(0..64_u32, 0..12_u32).prop_map(|(n, k)| n << k), any::<u32>()],
        prints: u16,
        honest in any::<bool>(),
        claim in 0..70_000_u64,
    ) {
        let sum = u64::from(segments) + 2 * u64::from(segment);
        let total = if honest && sum < 40_000 { 24 + 2 * sum } else { claim };
        let mut bytes = Vec::new();
        bytes.extend(keys.to_le_bytes());
        bytes.extend(seed.to_le_bytes());
        bytes.extend(segment.to_le_bytes());
        bytes.extend(segments.to_le_bytes());
        bytes.resize(24.max(total as usize), prints as u8);
        let part = FilterPart { total, offset: 0, bytes };
        let result = assemble(&[part], 1 << 20);
        if let Ok(filter) = &result {
            let filter = filter.as_ref().expect("the only part");
            prop_assert_eq!(total, 24 + 2 * sum);
            for n in 0..200 {
                // The answer is worth nothing, but there is one.
                let _ = filter.contains(&digest(n));
            }
        }
        let good = segment.is_power_of_two() && segment <= 1 << 18 && segments > 0
            && segments % segment == 0 && (1..=limits::FILTER_KEYS as u64).contains(&keys);
        let empty = (keys, seed, segment, segments) == (0, 0, 0, 0);
        if total == 24 + 2 * sum {
            prop_assert_eq!(result.is_ok(), good || empty, "{:?}", result);
        }
    }
}
