// SPDX-License-Identifier: GPL-2.0

//! The guest's program, as assembled from `guest.S`, and how it is put where a machine starts.

use crate::guest::Guest;

/// The program. Its tables are empty and its addresses are for a load at 0.
#[rustfmt::skip]
const PROGRAM: [u8; 264] = [
    0xfa, 0xfc, 0xe4, 0x92, 0x0c, 0x02, 0x24, 0xfe, 0xe6, 0x92, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0xd8,
    0x00, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x21, 0x00, 0x00, 0x00, 0x08,
    0x00, 0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x70, 0x00, 0x00,
    0xbe, 0x08, 0x01, 0x00, 0x00, 0x8b, 0x3e, 0x8b, 0x4e, 0x04, 0xe3, 0x13, 0x8b, 0x56, 0x08, 0xe8,
    0x65, 0x00, 0x00, 0x00, 0x03, 0x56, 0x0c, 0x49, 0x75, 0xf5, 0x83, 0xc6, 0x10, 0xeb, 0xe6, 0xbe,
    0xf0, 0x00, 0x00, 0x00, 0x31, 0xed, 0xc7, 0x05, 0x00, 0x50, 0x00, 0x00, 0x52, 0x45, 0x44, 0x59,
    0x8b, 0x4e, 0x04, 0xe3, 0x41, 0x45, 0x0f, 0x01, 0x3d, 0x00, 0x50, 0x00, 0x00, 0x89, 0x2d, 0x04,
    0x50, 0x00, 0x00, 0x8b, 0x3e, 0x69, 0xd5, 0x93, 0x01, 0x00, 0x01, 0x03, 0x56, 0x08, 0x0f, 0x01,
    0x3f, 0x83, 0x7e, 0x10, 0x00, 0x75, 0x0a, 0x89, 0x2f, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0xeb,
    0x08, 0xe8, 0x13, 0x00, 0x00, 0x00, 0x03, 0x56, 0x0c, 0x8b, 0x46, 0x14, 0x83, 0xe8, 0x01, 0x79,
    0xfb, 0x49, 0x75, 0xda, 0xeb, 0xba, 0xf4, 0xeb, 0xfd, 0x51, 0x69, 0xc2, 0xb1, 0x79, 0x37, 0x9e,
    0xb9, 0x00, 0x04, 0x00, 0x00, 0x89, 0xc3, 0xc1, 0xe3, 0x0d, 0x31, 0xd8, 0x89, 0xc3, 0xc1, 0xeb,
    0x11, 0x31, 0xd8, 0x89, 0xc3, 0xc1, 0xe3, 0x05, 0x31, 0xd8, 0x89, 0x07, 0x83, 0xc7, 0x04, 0x49,
    0x75, 0xe3, 0x59, 0xc3, 0x8d, 0x74, 0x26, 0x00, 0x17, 0x00, 0xd8, 0x00, 0x00, 0x00, 0x00, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xcf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

/// Where the program has its own table's place, an offset of 16 bits.
const TABLE_PLACE: usize = 0x0f;
/// Where it has addresses of 32 bits: code, regions, writes, table.
const ADDRESSES: [usize; 4] = [0x1b, 0x31, 0x50, 0xda];
/// The guest's writes.
const WRITES: usize = 0xf0;
/// The list of regions, open at its end.
const REGIONS: usize = 0x108;

/// Where a boot sector is loaded.
const SECTOR_ADDRESS: u32 = 0x7c00;
/// Bytes of a boot sector.
const SECTOR_BYTES: usize = 512;
/// Bytes of the disk that it is on: firmware does not start from a tiny one.
const DISK_BYTES: usize = 1 << 20;
/// Where the last 64 KiB of firmware are.
const ROM_ADDRESS: u32 = 0xffff_0000;
/// Bytes of our firmware.
const ROM_BYTES: usize = 0x1_0000;
/// Where a processor starts in it.
const RESET: usize = 0xfff0;

/// The program for `guest`, to be run at `address`, whose table has the offset `segment` more in
/// its segment.
fn program(guest: &Guest, address: u32, segment: u16) -> Vec<u8> {
    let mut bytes = PROGRAM.to_vec();
    let table = u16::from_le_bytes([bytes[TABLE_PLACE], bytes[TABLE_PLACE + 1]]);
    bytes[TABLE_PLACE..][..2].copy_from_slice(&table.wrapping_add(segment).to_le_bytes());
    for place in ADDRESSES {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[place..][..4]);
        let moved = u32::from_le_bytes(word).wrapping_add(address);
        bytes[place..][..4].copy_from_slice(&moved.to_le_bytes());
    }
    let writes: Vec<u8> = guest
        .writes_table()
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    bytes[WRITES..REGIONS].copy_from_slice(&writes);
    for region in guest.regions_table() {
        bytes.extend(region.iter().flat_map(|word| word.to_le_bytes()));
    }
    bytes.extend([0; 16]);
    bytes
}

/// Firmware of 64 KiB that runs `guest` and nothing else.
pub(crate) fn firmware(guest: &Guest) -> Vec<u8> {
    let mut rom = program(guest, ROM_ADDRESS, 0);
    rom.resize(ROM_BYTES, 0);
    // jmp from the reset vector to the first byte, which wraps around in the segment.
    let distance = 0_u16.wrapping_sub(RESET as u16 + 3).to_le_bytes();
    rom[RESET..][..3].copy_from_slice(&[0xe9, distance[0], distance[1]]);
    rom
}

/// A disk of one boot sector that runs `guest`.
///
/// # Panics
///
/// The guest has more regions than fit.
pub(crate) fn sector(guest: &Guest) -> Vec<u8> {
    let mut sector = program(guest, SECTOR_ADDRESS, SECTOR_ADDRESS as u16);
    assert!(
        sector.len() <= SECTOR_BYTES - 2,
        "too many regions for a boot sector"
    );
    sector.resize(SECTOR_BYTES - 2, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(DISK_BYTES, 0);
    sector
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn bytes_are_what_the_assembler_makes() {
        let dir = tempfile::tempdir().unwrap();
        let (object, flat) = (dir.path().join("guest.o"), dir.path().join("guest.bin"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/guest.S");
        let run = |program: &mut Command| assert!(program.status().unwrap().success());
        run(Command::new("as").args(["--32", source, "-o"]).arg(&object));
        run(Command::new("objcopy")
            .args(["-O", "binary"])
            .arg(&object)
            .arg(&flat));
        assert_eq!(fs::read(flat).unwrap(), PROGRAM);
    }

    #[test]
    fn firmware_jumps_to_its_first_byte() {
        let rom = firmware(&Guest::idle(16));
        let distance = u16::from_le_bytes([rom[RESET + 1], rom[RESET + 2]]);
        assert_eq!(0, (RESET as u16 + 3).wrapping_add(distance));
        assert_eq!(rom.len(), 0x1_0000);
    }
}
