//! Memory of the start that nobody needs any more.
#![allow(unsafe_code, reason = "madvise(2) of our own program, and malloc_trim(3)")]

use std::ffi::c_void;
use std::fs;

/// Gives back what a part of the start has used: free pages of the heap, and pages of
/// files. It takes a millisecond.
///
/// The kernel maps 64 KB of the program around each page that is used, and a start uses
/// most of it. What is needed again is mapped again from the page cache, for some
/// microseconds each.
pub(crate) fn give_back() {
    // SAFETY: only free memory of the allocator is given back.
    unsafe { libc::malloc_trim(0) };
    for (start, length) in unwritten(&fs::read_to_string("/proc/self/smaps").unwrap_or_default()) {
        // SAFETY: the mapping is ours, cannot be written, and has no page that differs
        // from its file: what is read next is the same.
        unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Start and length of mappings that are as their files are, by `proc_pid_smaps(5)`:
/// code and constants, but not those that the loader has relocated.
fn unwritten(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut fields = line.split_ascii_whitespace();
        match (fields.next(), fields.next()) {
            // A page that was written is anonymous, or swapped out.
            (Some("Anonymous:"), Some(amount)) if amount != "0" => candidate = None,
            (Some("Swap:"), Some(amount)) => {
                found.extend(candidate.take().filter(|_| amount == "0"));
            }
            (Some(range), Some("r-xp" | "r--p")) => {
                // Behind offset, device and inode.
                let is_of_file = fields.nth(3).is_some_and(|path| path.starts_with('/'));
                candidate = extent(range).filter(|_| is_of_file);
            }
            // Another mapping; the amounts' names end in a colon.
            (Some(first), Some(_)) if !first.ends_with(':') => candidate = None,
            _ => {}
        }
    }
    found
}

/// `55d0c0000000-55d0c0001000`, as start and length.
fn extent(range: &str) -> Option<(usize, usize)> {
    let (start, end) = range.split_once('-')?;
    let at = |text| usize::from_str_radix(text, 16).ok();
    Some((at(start)?, at(end)?.checked_sub(at(start)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_its_file_is_given_back() {
        let smaps = "\
55d0c0000000-55d0c0001000 r--p 00000000 fe:00 1234 /usr/bin/flannel-agent
Rss:                   4 kB
Anonymous:             0 kB
Swap:                  0 kB
55d0c0001000-55d0c0801000 r-xp 00001000 fe:00 1234 /usr/bin/flannel-agent (deleted)
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
55d0c0801000-55d0c0901000 r--p 00801000 fe:00 1234 /usr/bin/flannel-agent
Anonymous:           356 kB
Swap:                  0 kB
55d0c0901000-55d0c0902000 r--p 00901000 fe:00 1234 /usr/bin/flannel-agent
Anonymous:             0 kB
Swap:                  4 kB
55d0c0902000-55d0c0903000 rw-p 00902000 fe:00 1234 /usr/bin/flannel-agent
Anonymous:             0 kB
Swap:                  0 kB
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0 [heap]
Anonymous:           130 kB
Swap:                  0 kB
7f0000000000-7f0000001000 rwxp 00000000 fe:00 99 /usr/lib/patched.so
Anonymous:             0 kB
Swap:                  0 kB
7f0000002000-7f0000003000 r-xp 00000000 00:00 0
Anonymous:             0 kB
Swap:                  0 kB
7f0000003000-7f0000004000 r--s 00000000 fe:00 98 /var/shared
Anonymous:             0 kB
Swap:                  0 kB
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
Swap:                  0 kB
";
        let ours = [(0x55d0_c000_0000, 0x1000), (0x55d0_c000_1000, 0x80_0000)];
        assert_eq!(unwritten(smaps), ours);
        assert_eq!(unwritten("what is this"), []);
    }

    #[test]
    fn the_program_goes_on_without_it() {
        let resident = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(unwritten(&text).len() > 1, "{text}");
        let before = resident();
        give_back();
        assert!(resident() < before, "{before} KB before, {} KB after", resident());
    }
}
