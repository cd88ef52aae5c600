//! A copied data directory would have the system identifier of its template, and two servers that pretend to be
//! one would hide errors. This writes a new identifier into the control file and the first WAL segment.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Where `XLogLongPageHeaderData` keeps the identifier (after the 24 bytes of the short header).
const IDENTIFIER_IN_WAL: u64 = 24;
const IDENTIFIER_LENGTH: usize = 8;
/// `ControlFileData` of every version ends within its first sector; the rest is padding.
const CONTROL_LENGTH_MAX: usize = 512;

/// Gives the stopped server in `data` a random system identifier.
pub(super) fn renew(data: &Path) -> Result<()> {
    let identifier: u64 = rand::random::<u64>() >> 1;
    let control = data.join("global/pg_control");
    let mut bytes = fs::read(&control)?;
    let checksum_at = find_checksum(&bytes).context("pg_control has no valid checksum")?;
    bytes[..IDENTIFIER_LENGTH].copy_from_slice(&identifier.to_ne_bytes());
    let checksum = crc32c(&bytes[..checksum_at]);
    bytes[checksum_at..checksum_at + 4].copy_from_slice(&checksum.to_ne_bytes());

    let control = OpenOptions::new().write(true).open(&control)?;
    control.write_all_at(&bytes, 0)?;
    for entry in fs::read_dir(data.join("pg_wal"))? {
        let path = entry?.path();
        if path.is_file() {
            let segment = OpenOptions::new().write(true).open(&path)?;
            segment.write_all_at(&identifier.to_ne_bytes(), IDENTIFIER_IN_WAL)?;
        }
    }
    Ok(())
}

/// Offset of the checksum, which closes the control data: its place differs between versions, so it is found
/// by being right.
fn find_checksum(control: &[u8]) -> Option<usize> {
    (IDENTIFIER_LENGTH..CONTROL_LENGTH_MAX.min(control.len().saturating_sub(4)))
        .step_by(4)
        .find(|&at| control[at..at + 4] == crc32c(&control[..at]).to_ne_bytes())
}

/// CRC-32C (Castagnoli), as `PostgreSQL` uses it for its control file.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82F6_3B78;
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn checksum_is_the_standard_one() {
        assert_eq!(super::crc32c(b"123456789"), 0xE306_9283);
    }
}
