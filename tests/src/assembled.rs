//! BPF programs of a few instructions, as what others put on a node.

use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};

/// `r0 = value`.
pub const fn answer(value: i32) -> [u8; 8] {
    let [a, b, c, d] = value.to_le_bytes();
    [0xb7, 0, 0, 0, a, b, c, d]
}

/// `exit`.
pub const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

/// `r0` = the packet's priority (of `__sk_buff`), on entry of a program.
pub const PRIORITY: [u8; 8] = [0x61, 0x10, 32, 0, 0, 0, 0, 0];

/// Jumps over as many instructions if `r0` is this.
pub const fn jump_if(value: u8, over: u8) -> [u8; 8] {
    [0x15, 0, over, 0, value, 0, 0, 0]
}

/// `r0 = bpf_redirect(ifindex, 0)`: out by that device.
pub const fn redirect(ifindex: u32) -> [[u8; 8]; 3] {
    let [a, b, c, d] = ifindex.to_le_bytes();
    [[0xb7, 1, 0, 0, a, b, c, d], [0xb7, 2, 0, 0, 0, 0, 0, 0], [0x85, 0, 0, 0, 23, 0, 0, 0]]
}

/// An object file with one program.
///
/// # Panics
/// It cannot be written.
pub fn object(section: &str, name: &str, code: &[[u8; 8]]) -> Vec<u8> {
    let mut file = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let text = file.add_section(Vec::new(), section.into(), SectionKind::Text);
    let code = code.concat();
    let value = file.append_section_data(text, &code, 8);
    let license = file.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    file.append_section_data(license, b"GPL\0", 1);
    file.add_symbol(Symbol {
        name: name.into(),
        value,
        size: code.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(text),
        flags: SymbolFlags::None,
    });
    file.write().expect("an object file in memory")
}
