//! The host's copies to and from guest memory: checked to the byte, never beyond a region.

use axerrno::AxErrorKind::InvalidInput;
use axvm::{
    config::VmMemMappingType::{MapAlloc, MapLazy},
    vcpu::VcpuEvent,
};
use axvm_testkit::MockHal;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::*;

for_each_kind! {
    copies_honour_offsets_and_cross_pages_and_regions,
    copies_beyond_the_end_are_refused,
    copies_populate_lazy_memory_and_no_more,
    objects_cross_pages,
    atomics_are_aligned_or_refused,
    atomics_are_atomic_across_threads_and_guests,
    an_image_loader_may_write_read_only_memory,
    segments_are_exactly_the_range,
    device_memory_is_not_copied,
    unmapping_waits_for_copies_under_way,
}

#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: u32,
    kind: u16,
    flags: [u8; 2],
    size: u64,
}

/// RAM of three kinds in a row, with a host address that jumps at each border.
fn patchwork<H: MockHal, A: Kind>() -> Space<H, A> {
    H::machine().regions().add_device(HPA, 4 * K4);
    let space = space::<H, A>();
    space.map_alloc(gpa(GPA), 2 * K4, RW, true).unwrap();
    space.map_linear(gpa(GPA + 2 * K4), hpa(HPA + 2 * K4), K4, RW).unwrap();
    space.map_linear(gpa(GPA + 3 * K4), hpa(HPA), K4, RW).unwrap();
    space.map_alloc(gpa(GPA + 4 * K4), 3 * K4, RW, false).unwrap();
    space
}

fn copies_honour_offsets_and_cross_pages_and_regions<H: MockHal, A: Kind>() {
    let space = patchwork::<H, A>();
    let mut shadow = vec![0u8; 7 * K4];
    let mut seed = 1usize;
    for round in 0..200 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let from = (seed >> 33) % (7 * K4);
        let len = ((seed >> 12) % if round % 2 == 0 { 24 } else { 3 * K4 }).min(7 * K4 - from);
        let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + round) as u8).collect();
        space.write(gpa(GPA + from), &bytes).unwrap();
        shadow[from..from + len].copy_from_slice(&bytes);
        let mut back = vec![0; len];
        space.read(gpa(GPA + from), &mut back).unwrap();
        assert_eq!(back, bytes, "{len:#x} bytes at offset {from:#x}");
    }
    let mut all = vec![0; 7 * K4];
    space.read(gpa(GPA), &mut all).unwrap();
    assert!(all == shadow, "a copy wrote beside its range");
    // The offset within a linear region is honoured.
    let at = HPA + 2 * K4 + 5;
    let first = H::machine().phys_to_virt(hpa(at)).as_usize() as *const u8;
    // SAFETY: device memory of the machine.
    assert_eq!(unsafe { first.read() }, shadow[2 * K4 + 5]);
}

fn copies_beyond_the_end_are_refused<H: MockHal, A: Kind>() {
    let space = patchwork::<H, A>();
    let end = GPA + 7 * K4;
    let mut big = vec![0; 8 * K4];
    for (at, len) in [(end - 1, 2), (end, 1), (GPA - 1, 2), (GPA - 8, 8), (GPA, 7 * K4 + 1)] {
        assert_eq!(space.read(gpa(at), &mut big[..len]), error(InvalidInput), "{at:#x}");
        assert_eq!(space.write(gpa(at), &big[..len]), error(InvalidInput), "{at:#x}");
        assert_eq!(space.host_segments(gpa(at), len).map(drop), error(InvalidInput));
        assert_eq!(space.translated_byte_buffer(gpa(at), len), None);
    }
    assert_eq!(space.read_obj::<u64>(gpa(end - 4)), error(InvalidInput));
    assert_eq!(space.write_obj(gpa(end - 4), &1u64), error(InvalidInput));
    // (Partly written it may be.)
    assert!(space.read_obj::<u32>(gpa(end - 4)).is_ok());
    // Nothing is no access.
    assert_eq!(space.read(gpa(end), &mut []), Ok(()));
    // A hole in the middle is an end, too, mapped or not.
    space.unmap(gpa(GPA + 5 * K4), K4).unwrap();
    assert_eq!(space.read(gpa(GPA + 4 * K4), &mut big[..K4 + 1]), error(InvalidInput));
    assert_eq!(space.host_segments(gpa(GPA), 7 * K4).map(drop), error(InvalidInput));
}

fn copies_populate_lazy_memory_and_no_more<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(AxVMConfig::new(1, "lazy").with_memory(GPA, 4 * M2, RW, MapLazy));
    let before = H::machine().arena().allocated() - vm.memory().table_frames();
    let frames = || H::machine().arena().allocated() - vm.memory().table_frames() - before;
    vm.write_to_guest_of(gpa(GPA + K4 - 4), &0x1122_3344_5566_7788u64).unwrap();
    assert_eq!(frames(), 2);
    assert_eq!(vm.read_from_guest_of::<u64>(gpa(GPA + M2)), Ok(0));
    assert_eq!(vm.memory().load::<u8>(gpa(GPA + M2 + K4)), Ok(0));
    assert_eq!(vm.get_image_load_region(gpa(GPA + M2 + K4), K4).map(|s| s.len()), Ok(1));
    assert_eq!(frames(), 4);
    // The guest has them as they are, without a fault.
    let populated = vm.events(VcpuEvent::PagePopulated);
    assert_eq!(guest_load(&vm, 0, GPA + K4), 0x1122_3344);
    assert_eq!(vm.events(VcpuEvent::PagePopulated), populated);
    assert_eq!(frames(), 4);
}

fn objects_cross_pages<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(
        AxVMConfig::new(1, "objects")
            .with_memory(GPA, K4, RW, MapAlloc)
            .with_memory(GPA + K4, K4, RW, MapLazy)
            .with_memory(GPA + 2 * K4, K4, R, MapAlloc),
    );
    let header = Header { magic: 0x4158_564d, kind: 3, flags: [1, 2], size: u64::MAX - 5 };
    for at in (GPA + K4 - 20)..(GPA + K4 + 4) {
        vm.write_to_guest_of(gpa(at), &header).unwrap();
        assert_eq!(vm.read_from_guest_of::<Header>(gpa(at)), Ok(header), "{at:#x}");
    }
    let border = gpa(GPA + 2 * K4 - 8);
    assert_eq!(vm.write_to_guest_of(border, &header), error(InvalidInput));
    assert_eq!(vm.read_from_guest_of::<Header>(border).map(|h| h.size), Ok(0));
    assert_eq!(vm.read_from_guest_of::<Header>(gpa(usize::MAX - 3)), error(InvalidInput));
    // What the guest wrote is what is read.
    guest_store(&vm, 0, GPA + K4 + 8, 0x0807_0605_0403_0201);
    assert_eq!(vm.read_from_guest_of(gpa(GPA + K4 + 9)), Ok([2u8, 3, 4, 5]));
}

fn atomics_are_aligned_or_refused<H: MockHal, A: Kind>() {
    let space = patchwork::<H, A>();
    for at in [GPA + 8, GPA + 4 * K4 + 16, GPA + 3 * K4 - 8] {
        assert_eq!(space.store(gpa(at), 0x0102_0304_0506_0708u64), Ok(()));
        assert_eq!(space.load::<u64>(gpa(at)), Ok(0x0102_0304_0506_0708));
        assert_eq!(space.load::<u32>(gpa(at + 4)), Ok(0x0102_0304));
        assert_eq!(space.load::<u16>(gpa(at + 2)), Ok(0x0506));
        assert_eq!(space.load::<u8>(gpa(at + 7)), Ok(1));
        assert_eq!(space.compare_exchange(gpa(at), 1u64, 2), Ok(Err(0x0102_0304_0506_0708)));
        assert_eq!(space.compare_exchange(gpa(at + 7), 1u8, 9), Ok(Ok(1)));
        assert_eq!(space.load::<u64>(gpa(at)), Ok(0x0902_0304_0506_0708));
        for off in 1..8 {
            assert_eq!(space.load::<u64>(gpa(at + off)), error(InvalidInput));
            assert_eq!(space.store::<u64>(gpa(at + off), 0), error(InvalidInput));
            let exchanged = space.compare_exchange::<u64>(gpa(at + off), 0, 1);
            assert_eq!(exchanged, error(InvalidInput));
        }
        assert_eq!(space.load::<u32>(gpa(at + 2)), error(InvalidInput));
        assert_eq!(space.load::<u16>(gpa(at + 1)), error(InvalidInput));
    }
    assert_eq!(space.load::<u64>(gpa(GPA + 7 * K4)), error(InvalidInput));
}

fn atomics_are_atomic_across_threads_and_guests<H: MockHal, A: Kind>() {
    const EACH: u64 = 2000;
    let vm = boot::<H, A>(AxVMConfig::new(1, "atomics").with_memory(GPA, K4, RW, MapLazy));
    std::thread::scope(|scope| {
        for id in 0..3 {
            let vm = &vm;
            spawn(scope, id, move || {
                for _ in 0..EACH {
                    let mut seen = vm.memory().load::<u64>(gpa(GPA + 8)).unwrap();
                    while let Err(now) =
                        vm.memory().compare_exchange(gpa(GPA + 8), seen, seen + 1).unwrap()
                    {
                        seen = now;
                    }
                    // Words of a copy are whole, too.
                    let word = u64::from_le_bytes([seen as u8; 8]);
                    vm.write_to_guest_of(gpa(GPA + 64), &word).unwrap();
                    let word: u64 = vm.read_from_guest_of(gpa(GPA + 64)).unwrap();
                    assert_eq!(word, u64::from_le_bytes([word as u8; 8]), "a torn word");
                }
            });
        }
    });
    assert_eq!(guest_load(&vm, 0, GPA + 8), 3 * EACH);
}

fn an_image_loader_may_write_read_only_memory<H: MockHal, A: Kind>() {
    let vm = boot::<H, A>(
        AxVMConfig::new(1, "image").with_memory(GPA, 2 * K4, RX, MapAlloc).with_memory(
            GPA + 2 * K4,
            2 * K4,
            R,
            MapLazy,
        ),
    );
    let image: Vec<u8> = (0..3 * K4).map(|at| (at / 13) as u8).collect();
    let mut rest = &image[..];
    for segment in vm.get_image_load_region(gpa(GPA + 0x123), image.len()).unwrap() {
        let (part, left) = rest.split_at(segment.len);
        let to = segment.addr.as_usize() as *mut u8;
        // SAFETY: the segment is memory of the guest's, of that length; no guest runs.
        unsafe { to.copy_from_nonoverlapping(part.as_ptr(), part.len()) };
        rest = left;
    }
    assert!(rest.is_empty());
    let mut back = vec![0; image.len()];
    vm.memory().read(gpa(GPA + 0x123), &mut back).unwrap();
    assert!(back == image);
    assert_eq!(vm.memory().write(gpa(GPA + 0x123), &[0]), error(InvalidInput));
    assert_eq!(guest_load(&vm, 0, GPA + 0x128) as u8, image[5]);
    let beyond = vm.get_image_load_region(gpa(GPA + 0x123), 4 * K4);
    assert_eq!(beyond.map(drop), error(InvalidInput));
    assert_eq!(vm.get_image_load_region(gpa(0), 1).map(drop), error(InvalidInput));
}

fn segments_are_exactly_the_range<H: MockHal, A: Kind>() {
    let space = patchwork::<H, A>();
    for (from, len) in [(0, 7 * K4), (5, 1), (K4 - 1, 2), (2 * K4 - 3, K4 + 6), (6 * K4, K4)] {
        let segments = space.host_segments(gpa(GPA + from), len).unwrap();
        let mut at = GPA + from;
        for segment in &segments {
            assert!(segment.len > 0);
            for offset in [0, segment.len - 1] {
                let va = segment.addr.as_usize() + offset;
                let pa = H::machine().virt_to_phys(va.into());
                assert_eq!(space.translate(gpa(at + offset)), Some(pa), "{at:#x}+{offset:#x}");
            }
            at += segment.len;
        }
        assert_eq!(at, GPA + from + len);
    }
    // The host address jumps at each border of the linear pages.
    assert!(space.host_segments(gpa(GPA + 2 * K4), 2 * K4).unwrap().len() == 2);
}

fn device_memory_is_not_copied<H: MockHal, A: Kind>() {
    H::machine().regions().add_device(HPA, 2 * K4);
    let space = space::<H, A>();
    space.map_alloc(gpa(GPA - K4), K4, RW, true).unwrap();
    space.map_linear(gpa(GPA), hpa(HPA), 2 * K4, RW | DEVICE).unwrap();
    assert_eq!(space.read(gpa(GPA), &mut [0; 4]), error(InvalidInput));
    assert_eq!(space.write(gpa(GPA - 2), &[0; 4]), error(InvalidInput));
    assert_eq!(space.load::<u32>(gpa(GPA)), error(InvalidInput));
    assert_eq!(space.store::<u32>(gpa(GPA + K4), 0), error(InvalidInput));
    assert_eq!(space.host_segments(gpa(GPA), 8).map(drop), error(InvalidInput));
    assert_eq!(space.host_segments(gpa(GPA - 8), 16).map(drop), error(InvalidInput));
}

/// A frame is never freed below a copy: the arena's poison would show.
fn unmapping_waits_for_copies_under_way<H: MockHal, A: Kind>() {
    let space = space::<H, A>();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for id in 1..3 {
            let (space, done) = (&space, &done);
            spawn(scope, id, move || {
                let mut page = [0; K4];
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    // Either it is there, whole, or it is not.
                    if space.write(gpa(GPA), &[id as u8; K4]).is_ok()
                        && space.read(gpa(GPA), &mut page).is_ok()
                    {
                        assert!(page.iter().all(|&byte| byte < 3), "{:#x}", page[0]);
                    }
                }
            });
        }
        for round in 0..400 {
            space.map_alloc(gpa(GPA), 2 * K4, RW, round % 2 == 0).unwrap();
            std::thread::yield_now();
            space.unmap(gpa(GPA), K4).unwrap();
            space.clear().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    drop(space);
    H::machine().assert_balanced();
}
