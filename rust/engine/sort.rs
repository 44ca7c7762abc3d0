// SPDX-License-Identifier: GPL-2.0

//! Sorting in place and searching what is sorted, without recursion, allocation or a way to panic.
//!
//! Heapsort: what a hostile VMM lays out takes no longer than anything else. The standard library's
//! functions bring panics that a kernel must not have.

use core::cell::Cell;

/// Sorts `items` by `key`. Equal keys end up in any order.
pub fn by_key<T: Copy, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    let heap = Cell::from_mut(items).as_slice_of_cells();
    for root in (0..heap.len() / 2).rev() {
        sift_down(heap, root, &key);
    }
    let mut rest = heap;
    while let Some((last, fewer)) = rest.split_last() {
        if let Some(first) = fewer.first() {
            exchange(first, last);
        }
        sift_down(fewer, 0, &key);
        rest = fewer;
    }
}

/// Moves the item at `at` down until no child has a greater key.
fn sift_down<T: Copy, K: Ord>(heap: &[Cell<T>], mut at: usize, key: &impl Fn(&T) -> K) {
    let key_at = |at: usize| heap.get(at).map(|cell| key(&cell.get()));
    loop {
        // OVERFLOW: A slice of anything with a size is far shorter than half of all numbers.
        let left = at.wrapping_mul(2).wrapping_add(1);
        let right = left.wrapping_add(1);
        let child = if key_at(right) > key_at(left) {
            right
        } else {
            left
        };
        match (heap.get(at), heap.get(child)) {
            (Some(parent), Some(larger)) if key_at(child) > key_at(at) => exchange(parent, larger),
            _ => return,
        }
        at = child;
    }
}

/// Returns the position of the first of `items` that is not `before`, all those before it being so;
/// their number if there is none.
pub fn first_not<T>(items: &[T], mut before: impl FnMut(&T) -> bool) -> usize {
    let (mut low, mut high) = (0, items.len());
    while low < high {
        // OVERFLOW: Halfway from `low` to `high`.
        let half = low.wrapping_add(high.wrapping_sub(low) / 2);
        if items.get(half).is_some_and(&mut before) {
            low = half.wrapping_add(1);
        } else {
            high = half;
        }
    }
    low
}

fn exchange<T: Copy>(a: &Cell<T>, b: &Cell<T>) {
    let kept = a.get();
    a.set(b.get());
    b.set(kept);
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_sort))]
// Indexes are below the lengths by construction.
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn every_short_sequence_is_sorted() {
        for len in 0..7_u32 {
            for code in 0..4_u32.pow(len) {
                let mut items = [0_u32; 7];
                let items = items.split_at_mut(len as usize).0;
                let mut counts = [0_u32; 4];
                for (place, item) in items.iter_mut().enumerate() {
                    *item = code / 4_u32.pow(place as u32) % 4;
                    counts[*item as usize] += 1;
                }
                by_key(items, |item| *item);
                assert!(items.windows(2).all(|pair| pair[0] <= pair[1]));
                for item in items.iter() {
                    counts[*item as usize] -= 1;
                }
                assert_eq!(counts, [0; 4]);
            }
        }
    }

    #[test]
    fn the_first_of_the_rest_is_found() {
        let items = [1, 3, 3, 5, 8];
        for bound in 0..10 {
            let expected = items.iter().filter(|item| **item < bound).count();
            assert_eq!(first_not(&items, |item| *item < bound), expected);
        }
        assert_eq!(first_not(&[] as &[u8], |_| true), 0);
    }

    #[test]
    fn the_key_decides() {
        let mut items = [(1, 9), (2, 7), (3, 8)];
        by_key(&mut items, |item| item.1);
        assert_eq!(items, [(2, 7), (3, 8), (1, 9)]);
    }
}
