//! The firmware's console.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use axerrno::AxError;
use axvm::{
    config::{
        AxVMConfig,
        VmMemMappingType::{MapAlloc, MapLazy},
    },
    device::CharBackend,
    mm::MappingFlags,
    vcpu::{ConsoleCall, VcpuExit},
};
use axvm_testkit::{MockHal, RAM, RAM_SIZE, Step, TestVm, VM, mock_hal, on_pcpu, test_config};

use crate::support::{HALT, ask, start, start_vcpu};

mock_hal!(struct Hal { arena: 4 << 20 });

const NONE: u64 = u64::MAX;
const END: usize = RAM + RAM_SIZE;
/// Two lazy pages, then one that the guest may only read.
const LAZY: usize = 0x1_0000;
const ROM: usize = LAZY + 0x2000;

/// Keeps what is printed, has something typed, and is in use by one at a time.
#[derive(Default)]
struct Terminal {
    printed: Mutex<Vec<u8>>,
    typed: Mutex<VecDeque<u8>>,
    busy: AtomicBool,
}

impl Terminal {
    fn alone<R>(&self, act: impl FnOnce() -> R) -> R {
        assert!(!self.busy.swap(true, SeqCst), "two vCPUs use the console at once");
        std::thread::yield_now();
        let done = act();
        self.busy.store(false, SeqCst);
        done
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.printed.lock().unwrap())
    }

    fn left(&self) -> usize {
        self.typed.lock().unwrap().len()
    }

    /// Has so many bytes typed, and returns them.
    fn types(&self, len: usize) -> Vec<u8> {
        let bytes = pattern(len);
        *self.typed.lock().unwrap() = bytes.iter().copied().collect();
        bytes
    }
}

impl CharBackend for Terminal {
    fn write(&self, bytes: &[u8]) {
        self.alone(|| self.printed.lock().unwrap().extend(bytes));
    }

    fn read(&self, buf: &mut [u8]) -> usize {
        self.alone(|| {
            let mut typed = self.typed.lock().unwrap();
            let len = buf.len().min(typed.len());
            buf.iter_mut().zip(typed.drain(..len)).for_each(|(to, from)| *to = from);
            len
        })
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256) as u8).collect()
}

fn config(cpus: usize) -> AxVMConfig {
    let rw = MappingFlags::READ | MappingFlags::WRITE;
    test_config(cpus).with_memory(LAZY, ROM - LAZY, rw, MapLazy).with_memory(
        ROM,
        0x1000,
        MappingFlags::READ,
        MapAlloc,
    )
}

fn attach(vm: &TestVm<Hal>) -> Arc<Terminal> {
    let terminal = Arc::new(Terminal::default());
    vm.set_firmware_console(terminal.clone()).unwrap();
    terminal
}

#[track_caller]
fn write(vm: &TestVm<Hal>, gpa: usize, len: u64) -> u64 {
    ask(vm, VcpuExit::Console(ConsoleCall::Write { gpa: gpa.into(), len }))
}

#[track_caller]
fn read(vm: &TestVm<Hal>, gpa: usize, len: u64) -> u64 {
    ask(vm, VcpuExit::Console(ConsoleCall::Read { gpa: gpa.into(), len }))
}

fn memory(vm: &TestVm<Hal>, gpa: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    vm.memory().read(gpa.into(), &mut bytes).unwrap();
    bytes
}

#[test]
fn what_the_guest_prints_arrives_in_order_and_whole() {
    let (vm, _turn) = start::<Hal>(config(1));
    let terminal = attach(&vm);
    let text = pattern(RAM_SIZE);
    vm.memory().write(RAM.into(), &text).unwrap();
    for (at, len) in [(0, 1), (0, 4096), (1, 1000), (4090, 300), (255, 2), (257, 4096), (77, 0)] {
        assert_eq!(write(&vm, RAM + at, len as u64), len as u64);
        assert_eq!(terminal.take(), text[at..at + len], "{at} {len}");
    }
    for byte in [b'a', 0, 0xff] {
        assert_eq!(ask(&vm, VcpuExit::Console(ConsoleCall::WriteByte(byte))), 0);
        assert_eq!(terminal.take(), [byte]);
    }
}

#[test]
fn what_is_typed_arrives_in_order_and_whole() {
    let (vm, _turn) = start::<Hal>(config(1));
    let terminal = attach(&vm);
    for (at, len, room) in [(0, 5, 100), (0, 5, 5), (4090, 300, 4096), (255, 3000, 3001)] {
        let text = terminal.types(len);
        assert_eq!(read(&vm, RAM + at, room), len as u64);
        assert_eq!((memory(&vm, RAM + at, len), terminal.left()), (text, 0));
    }
    // What there is no room for waits.
    let text = terminal.types(600);
    assert_eq!(read(&vm, RAM, 400), 400);
    assert_eq!(read(&vm, RAM + 400, 400), 200);
    assert_eq!(memory(&vm, RAM, 600), text);
    assert_eq!((read(&vm, RAM, 400), read(&vm, RAM, 0)), (0, 0));
    terminal.types(2);
    let byte = || ask(&vm, VcpuExit::Console(ConsoleCall::ReadByte));
    assert_eq!((byte(), byte(), byte()), (0, 7, NONE));
}

#[test]
fn one_call_moves_a_page_at_most_whatever_the_guest_says() {
    let (vm, _turn) = start::<Hal>(config(1));
    let terminal = attach(&vm);
    for len in [4097, 1 << 32, u64::MAX] {
        assert_eq!(write(&vm, RAM + 1, len), 4096);
        assert_eq!(terminal.take().len(), 4096);
        terminal.types(10_000);
        assert_eq!(read(&vm, RAM + 1, len), 4096);
        assert_eq!(terminal.left(), 10_000 - 4096);
    }
}

#[test]
fn memory_that_is_not_there_ends_a_call_and_nothing_is_taken_for_it() {
    let (vm, _turn) = start::<Hal>(config(1));
    let terminal = attach(&vm);
    let typed = terminal.types(1000);
    for gpa in [0, RAM - 1, END, usize::MAX, usize::MAX - 99, 1 << 47] {
        assert_eq!((write(&vm, gpa, 100), terminal.take()), (NONE, vec![]), "{gpa:#x}");
        assert_eq!((read(&vm, gpa, 100), terminal.left()), (NONE, 1000), "{gpa:#x}");
    }
    // It ends in the middle.
    let text = pattern(10);
    vm.memory().write((END - 10).into(), &text).unwrap();
    assert_eq!((write(&vm, END - 10, 100), terminal.take()), (10, text));
    assert_eq!((read(&vm, END - 300, 500), terminal.left()), (300, 700));
    assert_eq!(memory(&vm, END - 300, 300), typed[..300]);
}

#[test]
fn what_cannot_be_delivered_stays_where_it_is() {
    let (vm, _turn) = start::<Hal>(config(1));
    Hal::machine().regions().add_device(0x8_0000_0000, 0x1000);
    let rw = MappingFlags::READ | MappingFlags::WRITE;
    let flags = rw | MappingFlags::DEVICE;
    vm.map_region(0x8_0000.into(), 0x8_0000_0000.into(), 0x1000, flags).unwrap();
    let terminal = attach(&vm);
    let typed = terminal.types(1000);
    // Read-only memory, and a device that the guest has.
    for gpa in [ROM, ROM + 0xfff, 0x8_0000] {
        assert_eq!((read(&vm, gpa, 100), terminal.left()), (NONE, 1000), "{gpa:#x}");
    }
    assert_eq!((write(&vm, 0x8_0000, 100), terminal.take()), (NONE, vec![]));
    assert_eq!((read(&vm, ROM - 100, 500), terminal.left()), (100, 900));
    assert_eq!(memory(&vm, ROM - 100, 100), typed[..100]);
    // To be read from, read-only memory will do.
    assert_eq!((write(&vm, ROM, 4096), terminal.take()), (4096, vec![0; 4096]));
}

#[test]
fn lazy_memory_is_populated_and_a_host_without_frames_loses_nothing() {
    let (vm, turn) = start::<Hal>(config(1));
    let terminal = attach(&vm);
    let arena = Hal::machine().arena();
    let typed = terminal.types(1000);
    let call = ConsoleCall::Read { gpa: (LAZY + 0xff0).into(), len: 500 };
    Hal::machine().program(VM, 0).push(Step::Exit(VcpuExit::Console(call)));
    arena.fail_after(1);
    assert_eq!(vm.run_vcpu(0), Err(AxError::NoMemory));
    arena.fail_never();
    assert_eq!(terminal.left(), 1000);
    assert_eq!(vm.run_vcpu(0), HALT);
    assert_eq!(terminal.left(), 500);
    assert_eq!(memory(&vm, LAZY + 0xff0, 500), typed[..500]);
    // The second page fails: the guest is told how far it went.
    drop((vm, turn));
    let (vm, _turn) = start::<Hal>(config(1));
    let terminal = attach(&vm);
    vm.memory().write(LAZY.into(), &[1]).unwrap();
    terminal.types(1000);
    arena.fail_after(1);
    assert_eq!((write(&vm, LAZY + 0xf00, 500), terminal.take().len()), (0x100, 0x100));
    assert_eq!((read(&vm, LAZY + 0xf00, 500), terminal.left()), (0x100, 1000 - 0x100));
    arena.fail_never();
    assert_eq!((write(&vm, LAZY + 0x1000, 500), terminal.take()), (500, vec![0; 500]));
}

#[test]
fn without_a_backend_prints_are_lost_and_nothing_is_typed() {
    let (vm, _turn) = start::<Hal>(config(1));
    assert_eq!((write(&vm, RAM, 5000), write(&vm, 0, 1)), (4096, NONE));
    assert_eq!((read(&vm, RAM, 100), read(&vm, ROM, 100)), (0, NONE));
    assert_eq!(ask(&vm, VcpuExit::Console(ConsoleCall::WriteByte(1))), 0);
    assert_eq!(ask(&vm, VcpuExit::Console(ConsoleCall::ReadByte)), NONE);
}

#[test]
fn a_console_has_one_backend_and_keeps_it() {
    let (vm, _turn) = start::<Hal>(config(1));
    let first = attach(&vm);
    let second = Arc::new(Terminal::default());
    assert_eq!(vm.set_firmware_console(second.clone()), Err(AxError::AlreadyExists));
    assert_eq!(write(&vm, RAM, 3), 3);
    assert_eq!((first.take().len(), second.take().len()), (3, 0));
}

#[test]
fn vcpus_that_print_at_once_take_turns() {
    let (vm, _turn) = start::<Hal>(config(2));
    let terminal = attach(&vm);
    start_vcpu(&vm, 1, 1);
    for (vcpu, byte) in [(0, b'a'), (1, b'b')] {
        vm.memory().write((RAM + vcpu * 0x1000).into(), &[byte; 4096]).unwrap();
        let call = ConsoleCall::Write { gpa: (RAM + vcpu * 0x1000).into(), len: 4096 };
        let program = Hal::machine().program(VM, vcpu);
        program.extend((0..20).map(|_| Step::Exit(VcpuExit::Console(call))));
    }
    std::thread::scope(|scope| {
        for vcpu in 0..2 {
            let vm = &vm;
            scope.spawn(move || on_pcpu(vcpu, || assert_eq!(vm.run_vcpu(vcpu), HALT)));
        }
    });
    let printed = terminal.take();
    assert_eq!(printed.len(), 2 * 20 * 4096);
    for call in printed.chunks(4096) {
        assert!(call.iter().all(|byte| byte == &call[0]), "a call in another's middle");
    }
}
