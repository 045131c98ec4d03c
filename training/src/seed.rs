//! Everything that is random follows from the run's seed and from what it is for, so that neither the order of the
//! work nor what else is done changes it.

use sha2::{Digest, Sha256};

/// A number drawn for `purpose`: the same for the same seed and purpose on every machine, and for different ones as
/// good as independent. The parts of a purpose don't run into each other (`["ab", "c"]` is not `["a", "bc"]`).
pub fn draw(seed: u64, purpose: &[&str]) -> u64 {
    let digest = digest(seed, purpose);
    u64::from_le_bytes([
        digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7],
    ])
}

/// The same as a number of [0, 1).
pub fn draw_share(seed: u64, purpose: &[&str]) -> f64 {
    (draw(seed, purpose) >> 11) as f64 / (1u64 << 53) as f64
}

/// A fingerprint of texts with 128 bits, for sets that would not fit in memory as texts.
pub(crate) fn fingerprint(texts: &[&str]) -> u128 {
    let digest = digest(0, texts);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    u128::from_le_bytes(bytes)
}

fn digest(seed: u64, parts: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// The SHA-256 of some bytes, in lower-case hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_and_seeds_are_told_apart() {
        assert_eq!(draw(1, &["a", "b"]), draw(1, &["a", "b"]));
        assert_ne!(draw(1, &["ab", "c"]), draw(1, &["a", "bc"]));
        assert_ne!(draw(1, &["a"]), draw(2, &["a"]));
        assert_ne!(fingerprint(&["a", "b"]), fingerprint(&["ab"]));
    }

    #[test]
    fn shares_are_spread_evenly() {
        let below = (0..10_000).filter(|n| draw_share(7, &["x", &n.to_string()]) < 0.25).count();
        // Three standard deviations of a fair draw are 130.
        assert!((2_370..=2_630).contains(&below), "{below}");
        assert_eq!(hex(&[0, 255, 16]), "00ff10");
    }
}
