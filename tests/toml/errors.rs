//! What is wrong with a file is said with its line and its name.

use axerrno::AxError;
use axvm::config::toml::{Problem, VmFile};
use proptest::prelude::*;

/// A file that is right; each line can be made wrong.
const RIGHT: &str = r#"[base]
id = 1
name = "vm"
vm_type = 1
cpu_num = 2
phys_cpu_sets = [1, 2]
[kernel]
entry_point = 0x8020_0000
kernel_path = "k"
kernel_load_addr = 0x8020_0000
memory_regions = [
    [0x8000_0000, 0x100_0000, 0x7, 0],
    [0x9000_0000, 0x100_0000,
     0x7, 1],
]
[devices]
emu_devices = [["dummy", 0x1000, 0x1000, 0, 0x0, []]]
passthrough_devices = [
    ["a", 0x1000_0000, 0x1000_0000, 0x1000, 1],
    ["b", 0x1000_1000, 0x1000_1000, 0x1000, 2],
]
passthrough_addresses = [[0x2000_0000, 0x1000]]
interrupt_mode = "emu"
"#;

/// That the file, with this replaced by that, is refused at this line and column with these words.
#[track_caller]
fn refused(this: &str, that: &str, at: (usize, usize), words: &[&str]) {
    assert_eq!(RIGHT.matches(this).count(), 1, "{this:?} is not there once");
    let text = RIGHT.replace(this, that);
    let error = VmFile::parse(&text).expect_err(that);
    let message = error.to_string();
    assert_eq!((error.line, error.column), at, "{message}");
    assert!(message.starts_with(&format!("line {}: ", at.0)), "{message}");
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word}");
    }
}

#[test]
fn the_file_that_is_made_wrong_is_right() {
    assert_eq!(VmFile::parse(RIGHT).map(|file| file.config.cpu_num), Ok(2));
    // A guest without devices says nothing of them.
    let (text, _) = RIGHT.split_once("[devices]").unwrap();
    assert!(VmFile::parse(text).is_ok());
}

#[test]
fn unknown_names_are_refused() {
    let words = ["[kernel] entry_pont: unknown field", "expected one of entry_point, kernel_path"];
    refused("entry_point", "entry_pont", (8, 1), &words);
    refused("name =", "  nome =", (3, 3), &["[base] nome", "id, name, vm_type"]);
    refused("interrupt_mode", "irq_mode", (23, 1), &["[devices] irq_mode", "interrupt_mode"]);
    refused(
        "[devices]",
        "[device]",
        (16, 2),
        &["device: unknown section", "base, kernel, devices"],
    );
    refused("[base]", "top = 1\n[base]", (1, 1), &["top: unknown", "base, kernel, devices"]);
    // The first in the file is named.
    refused("id = 1", "id = 1\nz = 1\na = 1", (3, 1), &["[base] z"]);
}

#[test]
fn missing_fields_are_named_at_their_section() {
    refused("id = 1\n", "", (1, 2), &["[base] id: missing"]);
    refused("vm_type = 1\n", "", (1, 2), &["[base] vm_type: missing"]);
    refused("entry_point = 0x8020_0000\n", "", (7, 2), &["[kernel] entry_point: missing"]);
    refused("kernel_path = \"k\"\n", "", (7, 2), &["[kernel] kernel_path: missing"]);
    let bios = "kernel_path = \"k\"\nbios_path = \"b\"";
    refused("kernel_path = \"k\"", bios, (7, 2), &["[kernel] bios_load_addr: missing"]);
    let error = VmFile::parse("[base]\nid = 1\nname = \"a\"\nvm_type = 1\ncpu_num = 1\n");
    assert_eq!(error.unwrap_err().to_string(), "line 6: [kernel]: missing");
}

#[test]
fn wrong_types_are_named_with_what_they_are() {
    let integer = "expected an integer, found";
    refused("id = 1", "id = \"1\"", (2, 6), &["[base] id: ", integer, "string"]);
    refused("id = 1", "id = 1.0", (2, 6), &["[base] id: ", integer, "float"]);
    refused(
        "name = \"vm\"",
        "name = 3",
        (3, 8),
        &["[base] name: expected a string, found integer"],
    );
    refused("[1, 2]", "1", (6, 17), &["[base] phys_cpu_sets: expected a list, found integer"]);
    refused("[1, 2]", "[1, true]", (6, 21), &["[base] phys_cpu_sets[1]: ", integer, "boolean"]);
    let size = ["[kernel] memory_regions[1].flags: ", integer, "string"];
    refused("     0x7, 1]", "     \"rwx\", 1]", (14, 6), &size);
    refused(
        "\"b\", ",
        "7, ",
        (20, 6),
        &["[devices] passthrough_devices[1].name: expected a string"],
    );
    refused(", []]", ", [1, [2]]]", (17, 54), &["[devices] emu_devices[0].cfg_list: ", integer]);
    refused(RIGHT, "base = 1", (1, 8), &["[base]: expected a section, found integer"]);
}

#[test]
fn entries_of_a_wrong_length_say_what_they_should_have() {
    let words = ["[kernel] memory_regions[0]", "[gpa, size, flags, map_type]", "3 elements"];
    refused("0x7, 0]", "0x7]", (12, 5), &words);
    let words = ["[devices] passthrough_devices[1]", "base_hpa", "6 elements"];
    refused("0x1000, 2]", "0x1000, 2, 3]", (20, 5), &words);
    refused(", []]", "]", (17, 16), &["[devices] emu_devices[0]", "cfg_list", "5 elements"]);
    let words = ["[devices] passthrough_addresses[0]", "[base_gpa, length]", "1 elements"];
    refused("[[0x2000_0000, 0x1000]]", "[[0x2000_0000]]", (22, 26), &words);
}

#[test]
fn values_that_there_are_not_are_named() {
    refused("vm_type = 1", "vm_type = 3", (4, 11), &["[base] vm_type: 3", "0 (host)"]);
    refused(
        "0x7, 0]",
        "0x7, 5]",
        (12, 36),
        &["[kernel] memory_regions[0].map_type: 5", "1 (identical)"],
    );
    refused("\"emu\"", "\"none\"", (23, 18), &["[devices] interrupt_mode: \"none\"", "\"no_irq\""]);
    let path = "kernel_path = \"k\"";
    let location = "kernel_path = \"k\"\nimage_location = \"net\"";
    refused(path, location, (10, 18), &["[kernel] image_location: \"net\"", "\"fs\""]);
    refused("id = 1", "id = -1", (2, 6), &["[base] id: -1", "negative"]);
    for big in ["0x8000_0000_0000_0000", "9_223_372_036_854_775_808", "0xffff_ffff_ffff_ffff_f"] {
        refused(
            "id = 1",
            &format!("id = {big}"),
            (2, 6),
            &["[base] id: ", big, "0x7fff_ffff_ffff_ffff"],
        );
    }
    let largest = RIGHT.replace("id = 1", "id = 0x7fff_ffff_ffff_ffff");
    assert_eq!(VmFile::parse(&largest).map(|file| file.config.id), Ok(usize::MAX >> 1));
}

#[test]
fn what_the_configuration_refuses_has_its_line() {
    // (Upstream panics here.)
    refused("[1, 2]", "[1, 2, 4]", (6, 17), &["[base] phys_cpu_sets: 3: ", "cpu_num"]);
    refused("[1, 2]", "[1, 0]", (6, 21), &["[base] phys_cpu_sets[1]: 0x0: "]);
    refused("cpu_num = 2", "cpu_num = 65", (5, 11), &["[base] cpu_num: 65: ", "64"]);
    refused(
        "[0x9000_0000, 0x100_0000,",
        "[0x9000_0000, 0x100_0800,",
        (13, 19),
        &["[kernel] memory_regions[1].size: 0x1000800", "4 KiB"],
    );
    refused("     0x7, 1]", "     0x2, 1]", (14, 6), &["[kernel] memory_regions[1].flags: 0x2: "]);
    refused(
        "[0x9000_0000",
        "[0x8000_1000",
        (13, 5),
        &["[kernel] memory_regions[1]: GPA:0x80001000..0x81001000", "overlaps"],
    );
    refused(
        "0x1000_1000, 0x1000_1000",
        "0x1000_1000, 0x1000_1004",
        (20, 24),
        &["[devices] passthrough_devices[1].base_hpa: 0x10001004"],
    );
    refused("0, 0x0, []", "0, 0x77, []", (17, 45), &["[devices] emu_devices[0].emu_type: 0x77"]);
    let words = ["[devices] passthrough_addresses[0].base_gpa: 0x7ffffffff000"];
    refused("[[0x2000_0000,", "[[0x7fff_ffff_f000,", (22, 27), &words);
    let text = RIGHT.replace("[0x9000_0000", "[0x8000_1000");
    let error = VmFile::parse(&text).unwrap_err();
    assert!(matches!(error.problem, Problem::Config(_)));
    assert_eq!(AxError::from(error), AxError::AlreadyExists);
    assert_eq!(AxError::from(VmFile::parse("=").unwrap_err()), AxError::InvalidInput);
}

#[test]
fn what_is_not_toml_has_its_line() {
    refused("vm_type = 1", "vm_type =", (4, 10), &[]);
    refused("id = 1", "id = 1\nid = 2", (3, 1), &["duplicate"]);
    // It may be noticed later.
    refused("0x7, 0]", "0x7, 0", (16, 1), &["comma"]);
    refused("0x8020_0000\nkernel_path", "0xzz\nkernel_path", (8, 17), &["hexadecimal"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever the text, reading ends without a panic, and an error is at a line of it.
    #[test]
    fn no_text_is_too_strange(
        cuts in prop::collection::vec((0..RIGHT.len(), 0..40usize, "[\\[\\]{}=,\"'.0-9a-z_#\n é-]{0,6}"), 1..4),
    ) {
        let mut text = RIGHT.to_owned();
        for (at, len, with) in cuts {
            let place = |at: usize| (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
            let (start, end) = (place(at).unwrap(), place(at + len).unwrap());
            text.replace_range(start..end, &with);
        }
        match VmFile::parse(&text) {
            Ok(file) => prop_assert_eq!(file.config.validate(), Ok(())),
            Err(error) => {
                let line = text.split('\n').nth(error.line - 1);
                prop_assert!(line.is_some_and(|line| error.column <= line.chars().count() + 1), "{error}");
            }
        }
    }
}
