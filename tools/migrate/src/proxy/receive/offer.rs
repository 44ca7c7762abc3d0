// SPDX-License-Identifier: GPL-2.0

//! The filter of what this host holds.

use twinpage_store::Sources;
use twinpage_wire::{
    Filter,
    FilterBuilder,
    FilterKey, //
};

/// Makes the filter of all pages of `sources`, calling `meanwhile` now and then.
///
/// # Errors
///
/// There are more pages than a filter holds.
pub fn filter(
    sources: &Sources,
    key: &FilterKey,
    mut meanwhile: impl FnMut(),
) -> Result<Filter, twinpage_wire::Error> {
    let mut builder = FilterBuilder::new(key);
    let mut count = 0u64;
    sources.digests(&mut |digest| {
        builder.add(&digest);
        count += 1;
        if count % (1 << 16) == 0 {
            meanwhile();
        }
    });
    builder.finish()
}
