use super::*;
use crate::{device::BaseDeviceOps, irq::IrqHw, vcpu::AccessWidth};
use std::{sync::Mutex, thread, vec, vec::Vec};

const BASE: usize = 0xc00_0000;

/// Remembers who was notified, once for each call.
#[derive(Default)]
struct Notes(Mutex<Vec<usize>>);

impl Notes {
    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl VcpuNotifier for Notes {
    fn notify(&self, vcpu: usize) {
        self.0.lock().unwrap().push(vcpu);
    }
}

#[derive(Default)]
struct Hw {
    external: bool,
    software: usize,
    /// What the next `inject` answers instead.
    fails: Option<AxError>,
}

impl IrqHw for Hw {
    fn inject(&mut self, vector: usize) -> AxResult {
        assert_eq!(vector, SOFTWARE);
        self.fails.take().map_or(Ok(()), Err)?;
        self.software += 1;
        Ok(())
    }
}

impl HartIrqHw for Hw {
    fn set_external(&mut self, high: bool) {
        self.external = high;
    }
}

fn plic(sources: u32, vcpus: usize) -> (VPlic, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    (VPlic::new(BASE.into(), sources, vcpus, notes.clone()).unwrap(), notes)
}

/// The registers as a guest sees them; a hart's are those of its S-mode context.
impl VPlic {
    fn get(&self, offset: usize) -> usize {
        self.handle_read((BASE + offset).into(), AccessWidth::Dword).unwrap()
    }

    fn put(&self, offset: usize, value: usize) {
        self.handle_write((BASE + offset).into(), AccessWidth::Dword, value).unwrap();
    }

    fn put_priority(&self, source: usize, priority: usize) {
        self.put(4 * source, priority);
    }

    fn put_threshold(&self, hart: usize, threshold: usize) {
        self.put(0x20_1000 + 0x2000 * hart, threshold);
    }

    fn enable(&self, hart: usize, source: usize) {
        let offset = 0x2080 + 0x100 * hart + source / 32 * 4;
        self.put(offset, self.get(offset) | 1 << (source % 32));
    }

    fn get_claim(&self, hart: usize) -> usize {
        self.get(0x20_1004 + 0x2000 * hart)
    }

    fn put_complete(&self, hart: usize, source: usize) {
        self.put(0x20_1004 + 0x2000 * hart, source);
    }

    fn is_pending(&self, source: usize) -> bool {
        self.get(0x1000 + source / 32 * 4) >> (source % 32) & 1 != 0
    }

    /// The external interrupt after an entry.
    fn external(&self, hart: usize) -> bool {
        let mut hw = Hw::default();
        assert_eq!(self.before_entry(hart, &mut hw), Ok(EntryState::default()));
        assert!(!lacks(self, hart), "an entry gives all");
        hw.external
    }
}

fn lacks(plic: &VPlic, vcpu: usize) -> bool {
    InterruptController::<Hw>::pending(plic, vcpu)
}

fn reset(plic: &VPlic) {
    InterruptController::<Hw>::reset(plic);
}

fn inject(plic: &VPlic, vcpu: usize, irq: usize) -> AxResult {
    InterruptController::<Hw>::inject(plic, vcpu, irq)
}

#[test]
fn a_plic_that_cannot_be_is_refused() {
    let notes = Arc::new(Notes::default());
    let new =
        |base: usize, sources, vcpus| VPlic::new(base.into(), sources, vcpus, notes.clone()).err();
    assert_eq!(new(BASE, 1, 1), None);
    assert_eq!(new(BASE, 1023, 64), None);
    let bad = [
        (BASE, 0, 1),
        (BASE, 1024, 1),
        (BASE, 1, 0),
        (BASE, 1, 65),
        (BASE + 2, 1, 1),
        (usize::MAX - 3, 1, 1),
    ];
    for (base, sources, vcpus) in bad {
        assert_eq!(new(base, sources, vcpus), Some(AxError::InvalidInput), "{base:#x} {sources}");
    }
}

#[test]
fn an_interrupt_goes_from_wire_to_claim_to_completion() {
    let (plic, notes) = plic(95, 1);
    plic.put_priority(10, 1);
    plic.enable(0, 10);
    assert!(notes.take().is_empty() && !plic.external(0));
    plic.set_level(10, true).unwrap();
    assert_eq!(notes.take(), [0]);
    assert!(lacks(&plic, 0) && plic.is_pending(10));
    assert!(plic.external(0));
    assert_eq!(plic.get_claim(0), 10);
    assert_eq!(notes.take(), [0], "the level falls");
    assert!(!plic.is_pending(10) && !plic.external(0));
    assert_eq!(plic.get_claim(0), 0, "the gateway is closed");
    plic.set_level(10, false).unwrap();
    plic.put_complete(0, 10);
    assert!(!plic.external(0) && notes.take().is_empty());
}

#[test]
fn a_level_that_is_still_high_at_the_completion_is_pending_again() {
    let (plic, notes) = plic(95, 1);
    plic.put_priority(10, 1);
    plic.enable(0, 10);
    plic.set_level(10, true).unwrap();
    assert_eq!(plic.get_claim(0), 10);
    plic.set_level(10, false).unwrap();
    plic.set_level(10, true).unwrap();
    assert!(!plic.external(0), "in service");
    notes.take();
    plic.put_complete(0, 10);
    assert_eq!(notes.take(), [0]);
    assert!(plic.external(0));
    assert_eq!(plic.get_claim(0), 10);
}

#[test]
fn a_request_cannot_be_taken_back() {
    let (plic, _) = plic(95, 1);
    plic.put_priority(10, 1);
    plic.enable(0, 10);
    plic.set_level(10, true).unwrap();
    plic.set_level(10, false).unwrap();
    assert!(plic.external(0));
    assert_eq!(plic.get_claim(0), 10);
    plic.put_complete(0, 10);
    assert!(!plic.is_pending(10));
}

#[test]
fn edges_merge_while_pending_and_one_is_kept_while_in_service() {
    let (plic, _) = plic(95, 1);
    plic.put_priority(3, 1);
    plic.enable(0, 3);
    plic.pulse(3).unwrap();
    plic.pulse(3).unwrap();
    assert_eq!(plic.get_claim(0), 3);
    plic.pulse(3).unwrap();
    plic.pulse(3).unwrap();
    assert!(!plic.is_pending(3));
    plic.put_complete(0, 3);
    assert_eq!(plic.get_claim(0), 3);
    plic.put_complete(0, 3);
    assert_eq!(plic.get_claim(0), 0);
}

#[test]
fn a_claim_takes_the_highest_priority_and_the_lowest_number_of_equals() {
    let (plic, _) = plic(1023, 1);
    for (source, priority) in [(1, 1), (40, 5), (41, 7), (500, 7), (1023, 6)] {
        plic.put_priority(source, priority);
        plic.enable(0, source);
        plic.set_level(source, true).unwrap();
    }
    let claims: Vec<_> = (0..6).map(|_| plic.get_claim(0)).collect();
    assert_eq!(claims, [41, 500, 1023, 40, 1, 0]);
}

#[test]
fn the_threshold_masks_notifications_and_not_claims() {
    let (plic, notes) = plic(95, 1);
    plic.put_priority(10, 3);
    plic.enable(0, 10);
    plic.put_threshold(0, 3);
    plic.set_level(10, true).unwrap();
    assert!(notes.take().is_empty() && !plic.external(0));
    plic.put_threshold(0, 2);
    assert_eq!(notes.take(), [0]);
    assert!(plic.external(0));
    plic.put_threshold(0, 7);
    assert_eq!(notes.take(), [0]);
    assert!(!plic.external(0));
    assert_eq!(plic.get_claim(0), 10);
}

#[test]
fn priority_0_never_interrupts_and_is_never_claimed() {
    let (plic, notes) = plic(95, 1);
    plic.enable(0, 10);
    plic.set_level(10, true).unwrap();
    assert!(plic.is_pending(10) && !plic.external(0));
    assert_eq!(plic.get_claim(0), 0);
    assert!(notes.take().is_empty());
    plic.put_priority(10, 1);
    assert_eq!(notes.take(), [0]);
    assert_eq!(plic.get_claim(0), 10);
}

#[test]
fn completion_counts_only_for_a_source_that_is_enabled_there_and_in_service() {
    let (plic, _) = plic(95, 2);
    plic.put_priority(10, 1);
    plic.enable(0, 10);
    plic.set_level(10, true).unwrap();
    assert_eq!(plic.get_claim(0), 10);
    for source in [0, 11, 96, 0xffff_ffff] {
        plic.put_complete(0, source);
    }
    plic.put_complete(1, 10);
    assert!(!plic.is_pending(10), "not enabled for hart 1");
    plic.put(0x2080, 0);
    plic.put_complete(0, 10);
    assert!(!plic.is_pending(10), "not enabled for hart 0 any more");
    // The specification does not ask who claimed it.
    plic.enable(1, 10);
    plic.put_complete(1, 10);
    assert!(plic.is_pending(10));
    plic.put_complete(1, 10);
    assert!(plic.is_pending(10), "not in service");
}

#[test]
fn each_hart_has_its_own_enables_and_threshold_and_only_those_concerned_are_notified() {
    let (plic, notes) = plic(95, 4);
    plic.put_priority(10, 2);
    for hart in [0, 1, 2] {
        plic.enable(hart, 10);
    }
    plic.put_threshold(2, 2);
    plic.set_level(10, true).unwrap();
    assert_eq!(notes.take(), [0, 1]);
    let levels: Vec<_> = (0..4).map(|hart| plic.external(hart)).collect();
    assert_eq!(levels, [true, true, false, false]);
    // A second reason for a level that is high already is none to disturb anybody.
    plic.put_priority(70, 1);
    plic.enable(1, 70);
    plic.set_level(70, true).unwrap();
    assert!(notes.take().is_empty());
    assert_eq!(plic.get_claim(0), 10);
    assert_eq!(notes.take(), [0], "hart 1 has another");
    assert!(!plic.external(0) && plic.external(1));
}

#[test]
fn a_level_that_changed_back_before_the_entry_is_nothing_to_deliver() {
    let (plic, _) = plic(95, 1);
    plic.put_priority(10, 1);
    plic.enable(0, 10);
    plic.set_level(10, true).unwrap();
    assert!(lacks(&plic, 0));
    plic.put_threshold(0, 7);
    assert!(!lacks(&plic, 0));
}

#[test]
fn registers_hold_what_exists_and_the_rest_reads_0() {
    let (plic, _) = plic(40, 2);
    for offset in (0..0x4000).step_by(4).chain((0x20_0000..0x20_8000).step_by(4)) {
        plic.put(offset, 0xffff_ffff);
    }
    let values = (0..0x4000).step_by(4).chain((0x20_0000..0x20_8000).step_by(4));
    for (offset, value) in values.map(|offset| (offset, plic.get(offset))) {
        let expected = match offset {
            4..=160 => 7,
            0x2080 | 0x2180 => 0xffff_fffe,
            0x2084 | 0x2184 => 0x1ff,
            0x20_1000 | 0x20_3000 => 7,
            _ => 0,
        };
        assert_eq!(value, expected, "{offset:#x}");
    }
    for offset in [0x1_0000, 0x1f_fffc, 0x27_f004, WINDOW_SIZE - 4] {
        plic.put(offset, 0xffff_ffff);
        assert_eq!(plic.get(offset), 0, "{offset:#x}");
    }
    plic.put(5, 3);
    assert_eq!(plic.get(5), 0, "not aligned");
    assert_eq!(plic.get(4), 7);
}

#[test]
fn it_answers_for_qemu_s_window_with_32_bits() {
    let (plic, _) = plic(95, 1);
    let range = BaseDeviceOps::address_range(&plic);
    assert_eq!((range.start().as_usize(), range.size()), (BASE, 0x60_0000));
    assert_eq!(plic.legal_widths(), AccessWidth::Dword.into());
    assert_eq!(plic.sources(), 95);
}

#[test]
fn pending_bits_show_every_source_whoever_enabled_it() {
    let (plic, _) = plic(1023, 1);
    for source in [1, 15, 16, 31, 32, 1023] {
        plic.set_level(source, true).unwrap();
        assert!(plic.is_pending(source));
    }
    assert_eq!(plic.get(0x1000), 0x8001_8002);
    plic.put(0x1000, 0);
    assert_eq!(plic.get(0x1000), 0x8001_8002);
    assert_eq!(plic.get(0x107c), 0x8000_0000);
}

#[test]
fn a_source_or_a_vcpu_that_is_not_there_is_an_error() {
    let (plic, notes) = plic(40, 2);
    for source in [0, 41, 47, 48, usize::MAX] {
        assert_eq!(plic.set_level(source, true), Err(AxError::InvalidInput));
        assert_eq!(plic.pulse(source), Err(AxError::InvalidInput));
    }
    assert_eq!(inject(&plic, 0, 9), Err(AxError::InvalidInput));
    assert_eq!(inject(&plic, 2, 1), Err(AxError::NotFound));
    assert_eq!(plic.before_entry(2, &mut Hw::default()), Err(AxError::NotFound));
    assert!(!lacks(&plic, 2) && notes.take().is_empty());
}

#[test]
fn a_software_interrupt_is_given_once_and_kept_while_the_hardware_is_busy() {
    let (plic, notes) = plic(1, 2);
    inject(&plic, 1, 1).unwrap();
    inject(&plic, 1, 1).unwrap();
    assert_eq!(notes.take(), [1, 1]);
    assert!(lacks(&plic, 1) && !lacks(&plic, 0));
    let mut hw = Hw { fails: Some(AxError::ResourceBusy), ..Hw::default() };
    let busy = EntryState { in_hardware: false, more: true };
    assert_eq!(plic.before_entry(1, &mut hw), Ok(busy));
    hw.fails = Some(AxError::Io);
    assert_eq!(plic.before_entry(1, &mut hw), Err(AxError::Io));
    assert!(lacks(&plic, 1));
    for _ in 0..2 {
        assert_eq!(plic.before_entry(1, &mut hw), Ok(EntryState::default()));
        assert_eq!(hw.software, 1);
    }
    assert!(!lacks(&plic, 1));
}

#[test]
fn reset_forgets_all_but_the_levels_that_devices_drive() {
    let (plic, _) = plic(95, 1);
    let fresh = plic.state();
    plic.put_priority(10, 1);
    plic.put_threshold(0, 1);
    for source in [10, 11, 12] {
        plic.enable(0, source);
        plic.set_level(source, true).unwrap();
        plic.put_priority(source, 2);
    }
    plic.pulse(13).unwrap();
    inject(&plic, 0, 1).unwrap();
    assert_eq!(plic.get_claim(0), 10);
    plic.set_level(12, false).unwrap();
    assert!(lacks(&plic, 0));
    reset(&plic);
    assert!(!lacks(&plic, 0));
    assert_eq!(plic.get(0x1000), 1 << 10 | 1 << 11, "the levels");
    for source in [10, 11] {
        plic.set_level(source, false).unwrap();
    }
    reset(&plic);
    assert_eq!(plic.state(), fresh);
}

#[test]
fn the_whole_state_can_be_got_and_set() {
    let (plic, _) = plic(95, 2);
    for source in 1..=95 {
        plic.put_priority(source, source % 8);
        plic.enable(source % 2, source);
    }
    plic.put_threshold(1, 3);
    for source in [7, 15, 31] {
        plic.pulse(source).unwrap();
    }
    assert_eq!(plic.get_claim(1), 7);
    assert_eq!(plic.get_claim(1), 15);
    plic.pulse(15).unwrap();
    inject(&plic, 1, 1).unwrap();
    let state = plic.state();
    assert_eq!(
        state.sources[6],
        SourceState { priority: 7, request: Request::InService { edge: false } }
    );
    assert_eq!(state.sources[14].request, Request::InService { edge: true });
    assert_eq!(state.sources[30].request, Request::Pending);

    let (other, notes) = self::plic(95, 2);
    other.set_level(31, true).unwrap();
    other.set_level(15, true).unwrap();
    other.set_state(&state).unwrap();
    assert_eq!(other.state(), state);
    assert_eq!(notes.take(), [1], "source 31, and the software interrupt");
    other.put_complete(1, 15);
    assert_eq!(other.get_claim(1), 15);
    other.set_level(40, true).unwrap();
    let mut with_level = state.clone();
    with_level.sources[39].request = Request::Pending;
    other.set_state(&state).unwrap();
    assert_eq!(other.state(), with_level, "a high wire is pending");
}

#[test]
fn a_state_that_no_plic_of_this_shape_can_have_changes_nothing() {
    let (plic, _) = plic(40, 2);
    plic.put_priority(1, 5);
    let state = plic.state();
    let changes: [fn(&mut PlicState); 7] = [
        |state| state.sources[3].priority = 8,
        |state| state.sources.truncate(39),
        |state| state.harts.truncate(1),
        |state| state.harts[1].threshold = 8,
        |state| state.harts[0].enables.push(0),
        |state| state.harts[0].enables[0] = 1,
        |state| state.harts[0].enables[1] = 1 << 9,
    ];
    for change in changes {
        let mut wrong = state.clone();
        wrong.sources[0].priority = 1;
        change(&mut wrong);
        assert_eq!(plic.set_state(&wrong), Err(AxError::InvalidInput));
        assert_eq!(plic.state(), state);
    }
}

#[test]
fn every_notification_comes_after_the_change() {
    struct Watch(Mutex<Option<Arc<VPlic>>>, AtomicU32);
    impl VcpuNotifier for Watch {
        fn notify(&self, vcpu: usize) {
            self.1.fetch_add(1, Ordering::AcqRel);
            assert!(lacks(self.0.lock().unwrap().as_ref().unwrap(), vcpu));
        }
    }
    let watch = Arc::new(Watch(Mutex::new(None), AtomicU32::new(0)));
    let plic = Arc::new(VPlic::new(BASE.into(), 31, 1, watch.clone()).unwrap());
    *watch.0.lock().unwrap() = Some(plic.clone());
    plic.put_priority(4, 1);
    plic.set_level(4, true).unwrap();
    plic.enable(0, 4);
    assert!(plic.external(0));
    plic.put_threshold(0, 1);
    assert!(!plic.external(0));
    plic.put_priority(4, 2);
    assert!(plic.external(0));
    plic.get_claim(0);
    assert!(!plic.external(0));
    plic.put_complete(0, 4);
    inject(&plic, 0, 1).unwrap();
    assert_eq!(watch.1.load(Ordering::Acquire), 6);
    *watch.0.lock().unwrap() = None;
}

mod model;
mod threads;
