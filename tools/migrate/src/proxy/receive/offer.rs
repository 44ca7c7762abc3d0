// SPDX-License-Identifier: GPL-2.0

//! The filter of what this host holds.

use twinpage_store::Sources;
use twinpage_wire::{
    Filter,
    FilterBuilder,
    FilterKey, //
};

/// Makes the filter of all pages of `sources`.
///
/// # Errors
///
/// There are more pages than a filter holds.
pub fn filter(sources: &Sources, key: &FilterKey) -> Result<Filter, twinpage_wire::Error> {
    let mut builder = FilterBuilder::new(key);
    sources.digests(&mut |digest| builder.add(&digest));
    builder.finish()
}
