//! Places: all in RAM, none on another, and what is said when that cannot be.

use axerrno::AxError;
use axvm::{
    boot::{Item, Misfit, PlacementError, Plan, REACH, Request},
    mm::GpaRange,
};
use axvm_testkit::gpa_range;
use proptest::prelude::*;

use crate::{
    files::{elf, load, riscv_image},
    kernel,
};

const M: usize = 1 << 20;
const BASE: usize = 0x8000_0000;

/// What went wrong, in words that name all these.
#[track_caller]
fn misfit(request: &Request<'_, '_>, item: Item, why: Misfit, words: &[&str]) {
    let error: PlacementError = Plan::new(request).expect_err("a misfit");
    assert_eq!((error.item, error.why), (item, why), "{error}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word}");
    }
    assert_eq!(AxError::from(error), AxError::InvalidInput);
}

#[test]
fn linux_goes_low_and_what_it_is_given_goes_high() {
    let file = riscv_image(0x1000, 2 * M as u64, 32 * M as u64);
    let initrd = vec![1; 5 * M + 1];
    let ram = [gpa_range(BASE, 512 * M)];
    let request =
        Request { initrd: Some(&initrd), dtb_room: 0x1_0000, ..Request::new(&ram, kernel(&file)) };
    let plan = Plan::new(&request).unwrap();
    assert_eq!(plan.kernel().span(), gpa_range(BASE + 2 * M, 32 * M));
    assert_eq!(plan.entry(), (BASE + 2 * M).into());
    assert_eq!(plan.dtb(), Some(gpa_range(BASE + 510 * M, 0x1_0000)));
    assert_eq!(plan.initrd(), Some(gpa_range(BASE + 505 * M - 0x1000, 5 * M + 1)));
}

#[test]
fn a_device_tree_stays_within_reach_of_the_kernel() {
    let file = riscv_image(0x1000, 2 * M as u64, 32 * M as u64);
    let initrd = [1; 0x2000];
    let ram = [gpa_range(BASE, 4 * REACH)];
    let mut request =
        Request { initrd: Some(&initrd), dtb_room: 0x1_0000, ..Request::new(&ram, kernel(&file)) };
    let plan = Plan::new(&request).unwrap();
    assert_eq!(plan.dtb(), Some(gpa_range(BASE + REACH, 0x1_0000)));
    assert_eq!(plan.initrd().map(GpaRange::end), Some((BASE + REACH + 2 * M).into()));
    // A large initial RAM disk may be further away, in another region too, or across two that touch.
    let ram = [gpa_range(BASE, 64 * M), gpa_range(BASE + 3 * REACH, 8 * M)];
    let large = vec![1; 40 * M];
    request.initrd = Some(&large);
    request.ram = &ram;
    misfit(&request, Item::Initrd, Misfit::NoRoom, &["initial RAM disk", "0x2800000"]);
    let near = BASE + 3 * REACH;
    let ram = [ram[0], gpa_range(near + 8 * M, 33 * M), gpa_range(near, 8 * M)];
    request.ram = &ram;
    let plan = Plan::new(&request).unwrap();
    assert_eq!(plan.initrd(), Some(gpa_range(near + M, 40 * M)));
    assert_eq!(plan.dtb(), Some(gpa_range(BASE + 62 * M, 0x1_0000)));
}

#[test]
fn what_has_an_address_is_there_and_the_rest_keeps_clear() {
    let file = riscv_image(0x1000, 2 * M as u64, 8 * M as u64);
    let initrd = [1; 0x2000];
    let ram = [gpa_range(BASE, 32 * M)];
    let firmware = [gpa_range(BASE, M / 2)];
    let mut request = Request {
        reserved: &firmware,
        initrd: Some(&initrd),
        initrd_at: Some((BASE + 3 * M).into()),
        dtb_room: 0x1000,
        dtb_at: Some((BASE + 30 * M).into()),
        entry: Some(BASE.into()),
        ..Request::new(&ram, kernel(&file))
    };
    let plan = Plan::new(&request).unwrap();
    // After the initial RAM disk, not on it.
    assert_eq!(plan.kernel().span().start(), (BASE + 4 * M).into());
    assert_eq!(plan.initrd(), Some(gpa_range(BASE + 3 * M, 0x2000)));
    assert_eq!(plan.dtb(), Some(gpa_range(BASE + 30 * M, 0x1000)));
    assert_eq!(plan.entry(), BASE.into());
    request.kernel_at = Some((BASE + 16 * M).into());
    request.initrd_at = None;
    let plan = Plan::new(&request).unwrap();
    assert_eq!(plan.kernel().span().start(), (BASE + 16 * M).into());
    assert_eq!(plan.initrd(), Some(gpa_range(BASE + 32 * M - 0x2000, 0x2000)));
}

#[test]
fn an_address_that_the_kernel_cannot_have_is_refused() {
    let ram = [gpa_range(BASE, 32 * M)];
    let file = riscv_image(0x1000, 2 * M as u64, 8 * M as u64);
    let at = |at: usize| Some(at.into());
    let image = Request::new(&ram, kernel(&file));
    let wrong = Misfit::Misaligned { align: 2 * M, offset: 0 };
    let request = Request { kernel_at: at(BASE + 3 * M), ..image };
    misfit(&request, Item::Kernel, wrong, &["kernel", "0x80300000", "0x200000"]);
    let file = elf(BASE as u64, &[load(BASE as u64, 0x10, 0x2000)]);
    let program = Request::new(&ram, kernel(&file));
    let span = gpa_range(BASE, 0x2000);
    let request = Request { kernel_at: at(BASE + M), ..program };
    misfit(
        &request,
        Item::Kernel,
        Misfit::FixedAt(span),
        &["0x80100000", "0x80000000..0x80002000"],
    );
    assert!(Plan::new(&Request { kernel_at: at(BASE), ..program }).is_ok());
    let flat = Request::new(&ram, kernel(&[0; 64]));
    misfit(&flat, Item::Kernel, Misfit::NoAddress, &["kernel", "address"]);
    assert!(Plan::new(&Request { kernel_at: at(BASE + 4), ..flat }).is_ok());
    for entry in [BASE - 1, BASE + 64] {
        let request = Request { kernel_at: at(BASE), entry: at(entry), ..flat };
        misfit(&request, Item::Kernel, Misfit::EntryOutside, &[&format!("{entry:#x}")]);
    }
}

#[test]
fn what_is_not_all_in_ram_is_named() {
    let ram = [gpa_range(BASE, 32 * M)];
    let file = riscv_image(0x1000, 2 * M as u64, 8 * M as u64);
    let initrd = [1; 0x2000];
    let request =
        Request { initrd: Some(&initrd), dtb_room: 8, ..Request::new(&ram, kernel(&file)) };
    let at = |at: usize| Some(at.into());
    for address in [BASE - 0x1000, BASE + 32 * M - 0x1fff, BASE + 32 * M, usize::MAX - 0x1000] {
        let request = Request { initrd_at: at(address), ..request };
        let words = ["initial RAM disk", &format!("{address:#x}"), "0x2000"];
        misfit(&request, Item::Initrd, Misfit::NotInRam, &words);
    }
    let request = Request { dtb_at: at(BASE - 8), ..request };
    misfit(&request, Item::DeviceTree, Misfit::NotInRam, &["device tree", "0x7ffffff8"]);
    let request = Request { kernel_at: at(BASE + 26 * M), ..request };
    misfit(&request, Item::Kernel, Misfit::NotInRam, &["kernel", "0x81a00000"]);
    let huge = riscv_image(0x1000, 2 * M as u64, 31 * M as u64);
    let request = Request::new(&ram, kernel(&huge));
    misfit(&request, Item::Kernel, Misfit::NoRoom, &["kernel", "0x1f00000"]);
    // Of a program, the segment outside; holes between segments need no RAM.
    let base = BASE as u64;
    let file = elf(base, &[load(base, 0x10, 0x1000), load(base + (64 << 20), 0x10, 0x1000)]);
    let request = Request::new(&ram, kernel(&file));
    misfit(&request, Item::Kernel, Misfit::NotInRam, &["0x84000000", "0x1000"]);
    let ram = [ram[0], gpa_range(BASE + 64 * M, M)];
    assert!(Plan::new(&Request { ram: &ram, ..request }).is_ok());
}

#[test]
fn what_would_overlap_is_named_on_both_sides() {
    let ram = [gpa_range(BASE, 32 * M)];
    let file = riscv_image(0x1000, 2 * M as u64, 8 * M as u64);
    let initrd = [1; 0x2000];
    let at = |at: usize| Some(at.into());
    let request = Request {
        kernel_at: at(BASE + 2 * M),
        initrd: Some(&initrd),
        initrd_at: at(BASE + 10 * M - 1),
        dtb_room: 0x1000,
        ..Request::new(&ram, kernel(&file))
    };
    let span = gpa_range(BASE + 2 * M, 8 * M);
    let why = Misfit::Overlaps(Item::Kernel, span);
    let words = ["initial RAM disk", "0x809fffff", "kernel", "0x80200000..0x80a00000"];
    misfit(&request, Item::Initrd, why, &words);
    let request =
        Request { initrd_at: at(BASE + 10 * M), dtb_at: at(BASE + 10 * M + 8), ..request };
    let why = Misfit::Overlaps(Item::Initrd, gpa_range(BASE + 10 * M, 0x2000));
    misfit(&request, Item::DeviceTree, why, &["device tree", "0x80a00008", "initial RAM disk"]);
    let firmware = [gpa_range(BASE + 9 * M, 0x1000)];
    let request = Request { reserved: &firmware, ..request };
    let why = Misfit::Overlaps(Item::Reserved, firmware[0]);
    misfit(&request, Item::Kernel, why, &["kernel", "reserved", "0x80900000..0x80901000"]);
    let request = Request { dtb_at: at(BASE + 4), ..request };
    let request = Request { reserved: &[], ..request };
    let why = Misfit::Misaligned { align: 8, offset: 0 };
    misfit(&request, Item::DeviceTree, why, &["device tree", "0x80000004"]);
    let request = Request { initrd: Some(&[]), initrd_at: None, ..request };
    misfit(&request, Item::Initrd, Misfit::Empty, &["initial RAM disk", "empty"]);
}

/// Addresses in and around the regions of the property.
fn address() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => (0..80usize, -2..3isize).prop_map(|(m, by)| (BASE + m * M / 2).wrapping_add_signed(by * 8)),
        1 => any::<usize>(),
    ]
}

proptest! {
    /// Whatever is asked for, a plan has everything in RAM and nothing on anything else, and what
    /// has an address is there.
    #[test]
    fn a_plan_is_sound(
        regions in prop::collection::vec((0..20usize, 1..6usize), 1..5),
        reserved in prop::collection::vec((0..40usize, 1..4usize), 0..3),
        kernel_size in 1..6 * M as u64,
        offset in prop_oneof![Just(0), Just(M), Just(2 * M), 0..8 * M],
        (kernel_at, initrd_at, dtb_at) in
            (prop::option::weighted(0.3, address()), prop::option::weighted(0.3, address()), prop::option::weighted(0.3, address())),
        initrd_size in 1..3 * M,
        dtb_room in 0..3 * M,
    ) {
        let mut ram: Vec<GpaRange> = Vec::new();
        for (at, size) in regions {
            let region = gpa_range(BASE + at * 2 * M, size * M);
            if !ram.iter().any(|other| other.overlaps(region)) {
                ram.push(region);
            }
        }
        let reserved: Vec<_> =
            reserved.iter().map(|&(at, size)| gpa_range(BASE + at * M, size * M / 2)).collect();
        let file = riscv_image(64, offset as u64, kernel_size);
        let initrd = vec![0; initrd_size];
        let request = Request {
            ram: &ram,
            reserved: &reserved,
            kernel: kernel(&file),
            kernel_at: kernel_at.map(Into::into),
            entry: None,
            initrd: Some(&initrd),
            initrd_at: initrd_at.map(Into::into),
            dtb_room,
            dtb_at: dtb_at.map(Into::into),
        };
        let in_ram = |range: GpaRange| {
            let parts = ram.iter().filter_map(|region| region.intersection(range));
            parts.map(GpaRange::size).sum::<usize>() == range.size()
        };
        match Plan::new(&request) {
            Ok(plan) => {
                let initrd = plan.initrd().unwrap();
                prop_assert_eq!(plan.dtb().map_or(0, GpaRange::size), dtb_room);
                prop_assert_eq!(initrd.size(), initrd_size);
                let mut places = vec![plan.kernel().span(), initrd];
                places.extend(plan.dtb());
                let given = [kernel_at, initrd_at, dtb_at];
                for (index, &place) in places.iter().enumerate() {
                    prop_assert!(in_ram(place), "{place:?} in {ram:?}");
                    let others = places.iter().take(index).chain(&reserved);
                    prop_assert!(!{ others }.any(|other| other.overlaps(place)), "{plan:?}");
                    prop_assert!(given[index].is_none_or(|at| place.start() == at.into()));
                }
                prop_assert_eq!(plan.kernel().span().start().as_usize() % (2 * M), offset % (2 * M));
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    /// The place that is chosen is the highest of all that are free; none is chosen only when none
    /// is free.
    #[test]
    fn the_highest_free_place_is_found(
        regions in prop::collection::vec((0..40usize, 1..9usize), 1..6),
        reserved in prop::collection::vec((0..90usize, 1..6usize), 0..4),
        kernel in 1..40usize,
        size in 1..0x8000usize,
    ) {
        const HALF: usize = 0x800;
        let mut ram: Vec<GpaRange> = Vec::new();
        for (at, pages) in regions {
            let region = gpa_range(BASE + at * 0x1000, pages * 0x1000);
            if !ram.iter().any(|other| other.overlaps(region)) {
                ram.push(region);
            }
        }
        let reserved: Vec<_> =
            reserved.iter().map(|&(at, n)| gpa_range(BASE + at * HALF, n * HALF)).collect();
        let initrd = vec![0; size];
        let request = Request {
            reserved: &reserved,
            kernel_at: Some((BASE + kernel * 0x1000).into()),
            initrd: Some(&initrd),
            ..Request::new(&ram, crate::kernel(&[0; 0x1000]))
        };
        let in_ram = |range: GpaRange| {
            let parts = ram.iter().filter_map(|region| region.intersection(range));
            parts.map(GpaRange::size).sum::<usize>() == range.size()
        };
        let kernel = gpa_range(BASE + kernel * 0x1000, 0x1000);
        let free = |range: GpaRange| {
            let mut others = reserved.iter().chain([&kernel]);
            in_ram(range) && !others.any(|other| other.overlaps(range))
        };
        let highest = (0..50).rev().map(|n| gpa_range(BASE + n * 0x1000, size)).find(|&at| free(at));
        match Plan::new(&request) {
            Ok(plan) => prop_assert_eq!(plan.initrd(), highest),
            Err(PlacementError { item: Item::Initrd, why, .. }) => {
                prop_assert_eq!((why, highest), (Misfit::NoRoom, None));
            }
            Err(error) => prop_assert!(error.item == Item::Kernel && !free(kernel), "{error}"),
        }
    }
}
