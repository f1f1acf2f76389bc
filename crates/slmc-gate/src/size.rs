//! Sizes in bytes as gate files write them.

use serde::{Deserialize, Deserializer, de::Error};

/// `92MB` is 92·10^6 bytes, `88MiB` is 88·2^20; a number alone is bytes. Parts of a byte are dropped: a size is an upper limit.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "GiB" => 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("`{other}` is no unit: use kB, MB, GB, KiB, MiB or GiB")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is no size: write 92MB or 88MiB"))?;
    Ok((number * factor) as u64)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Bytes(u64),
    Text(String),
}

/// For `#[serde(deserialize_with)]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match Written::deserialize(from)
        .map_err(|_| D::Error::custom("a size is `\"92MB\"` or a number of bytes"))?
    {
        Written::Bytes(bytes) => Ok(bytes),
        Written::Text(text) => parse_size(&text).map_err(D::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(parse_size("92MB"), Ok(92_000_000));
        assert_eq!(parse_size("1.5 MiB"), Ok(1_572_864));
        assert_eq!(parse_size("17"), Ok(17));
        assert!(parse_size("92 mb").is_err() && parse_size("MB").is_err() && parse_size("-1MB").is_err());
    }
}
