//! Kernel files made by hand, from the formats' specifications.

/// Puts bytes into a file, which grows as needed.
pub fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if file.len() < at + bytes.len() {
        file.resize(at + bytes.len(), 0);
    }
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A RISC-V Image of `len` bytes that wants `image_size` bytes of memory.
pub fn riscv_image(len: usize, text_offset: u64, image_size: u64) -> Vec<u8> {
    let mut file: Vec<u8> = (0..len.max(64)).map(|at| at as u8 | 1).collect();
    put(&mut file, 0x8, &text_offset.to_le_bytes());
    put(&mut file, 0x10, &image_size.to_le_bytes());
    put(&mut file, 0x18, &0u64.to_le_bytes());
    put(&mut file, 0x20, &2u32.to_le_bytes());
    put(&mut file, 0x30, b"RISCV\0\0\0");
    put(&mut file, 0x38, b"RSC\x05");
    file
}

/// A program header of an [`elf`].
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub vaddr: u64,
    pub paddr: u64,
    pub filesz: u64,
    pub memsz: u64,
}

/// At one address, virtual and physical.
pub const fn load(addr: u64, filesz: u64, memsz: u64) -> Load {
    Load { vaddr: addr, paddr: addr, filesz, memsz }
}

/// Where program header `index` of an [`elf`] is in the file.
pub const fn phdr(index: usize) -> usize {
    64 + 56 * index
}

/// What byte the file of an [`elf`] holds for segment `index`.
pub const fn filler(index: usize) -> u8 {
    0xa0 + index as u8
}

/// A RISC-V program with these segments, and a note that is not loaded.
pub fn elf(entry: u64, loads: &[Load]) -> Vec<u8> {
    let mut file = Vec::new();
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &2u16.to_le_bytes());
    put(&mut file, 18, &243u16.to_le_bytes());
    put(&mut file, 20, &1u32.to_le_bytes());
    put(&mut file, 24, &entry.to_le_bytes());
    put(&mut file, 32, &64u64.to_le_bytes());
    put(&mut file, 52, &64u16.to_le_bytes());
    put(&mut file, 54, &56u16.to_le_bytes());
    put(&mut file, 56, &(loads.len() as u16 + 1).to_le_bytes());
    put(&mut file, phdr(loads.len()), &4u32.to_le_bytes());
    file.resize(phdr(loads.len() + 1), 0);
    for (index, load) in loads.iter().enumerate() {
        let offset = file.len();
        put(&mut file, phdr(index), &1u32.to_le_bytes());
        for (field, value) in [
            (8, offset as u64),
            (16, load.vaddr),
            (24, load.paddr),
            (32, load.filesz),
            (40, load.memsz),
        ] {
            put(&mut file, phdr(index) + field, &value.to_le_bytes());
        }
        file.resize(offset + load.filesz as usize, filler(index));
    }
    file
}
