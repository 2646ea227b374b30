//! Memory of the start that nobody needs any more.
#![allow(unsafe_code, reason = "madvise(2) of our own code, and malloc_trim(3)")]

use std::ffi::c_void;
use std::fs;

/// Gives back what the start has used: free pages of the heap, and pages of code.
///
/// The kernel maps 64 KB of code around each page that runs, and a start runs through
/// most of the program. What is needed again is mapped again from the page cache, a
/// dozen microseconds each.
pub(crate) fn give_back() {
    // SAFETY: only free memory of the allocator is given back.
    unsafe { libc::malloc_trim(0) };
    for (start, length) in code(&fs::read_to_string("/proc/self/maps").unwrap_or_default()) {
        // SAFETY: the mapping is ours, private, and of a file; nobody writes into code, so
        // that the file has all of it.
        unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of mappings that are code of files, as `proc_pid_maps(5)` shows them.
fn code(maps: &str) -> Vec<(usize, usize)> {
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_code = fields.next()? == "r-xp";
        // Behind offset, device and inode.
        let is_of_file = fields.nth(3)?.starts_with('/');
        let at = |text| usize::from_str_radix(text, 16).ok();
        (is_code && is_of_file).then_some(())?;
        Some((at(start)?, at(end)?.checked_sub(at(start)?)?))
    };
    maps.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_given_back() {
        let maps = "\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 1234 /usr/bin/flannel-agent
55d0c0001000-55d0c0801000 r-xp 00001000 fe:00 1234 /usr/bin/flannel-agent (deleted)
55d0c0801000-55d0c0901000 rw-p 00801000 fe:00 1234 /usr/bin/flannel-agent
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000001000 rwxp 00000000 fe:00 99 /usr/lib/patched.so
7f0000002000-7f0000003000 r-xp 00000000 00:00 0
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]
";
        assert_eq!(code(maps), [(0x55d0_c000_1000, 0x80_0000)]);
        assert_eq!(code("what is this"), []);
    }

    #[test]
    fn the_program_goes_on_without_it() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let text = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(code(&text).len() > 1, "{text}");
        let before = resident();
        give_back();
        assert!(resident() < before, "{before} KB before, {} KB after", resident());
    }
}
