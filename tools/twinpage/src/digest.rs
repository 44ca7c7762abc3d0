// SPDX-License-Identifier: GPL-2.0

//! The digest of a page's content: SHA-256, written as 64 hexadecimal digits, in JSON too.

use serde::Serializer;

pub use twinpage_wire::{
    Digest,
    DigestError, //
};

/// Writes a digest as text: serde's `serialize_with`.
///
/// # Errors
///
/// What the serializer says.
pub fn as_text<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(digest)
}

/// Writes a digest that may be missing as text or null: serde's `serialize_with`.
///
/// # Errors
///
/// What the serializer says.
pub fn as_text_or_null<S: Serializer>(
    digest: &Option<Digest>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match digest {
        Some(digest) => serializer.collect_str(digest),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    /// Both forms.
    #[derive(Serialize)]
    struct Line {
        /// A digest.
        #[serde(serialize_with = "as_text")]
        a: Digest,
        /// Perhaps a digest.
        #[serde(serialize_with = "as_text_or_null")]
        b: Option<Digest>,
    }

    #[test]
    fn digests_are_text_in_json() {
        let a = Digest([0xab; 32]);
        let digits = "ab".repeat(32);
        let table = [
            (
                Some(a),
                format!("{{\"a\":\"{digits}\",\"b\":\"{digits}\"}}"),
            ),
            (None, format!("{{\"a\":\"{digits}\",\"b\":null}}")),
        ];
        for (b, text) in table {
            assert_eq!(serde_json::to_string(&Line { a, b }).unwrap(), text);
        }
    }
}
