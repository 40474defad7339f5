//! What holds after every access, whatever the guest does.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Read(usize),
    Write(usize, u8),
    Type(Vec<u8>),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..COUNT).prop_map(Op::Read),
        4 => (0..COUNT, any::<u8>()).prop_map(|(register, value)| Op::Write(register, value)),
        2 => Just(Op::Read(DATA)),
        1 => Just(Op::Write(LCR, 3)),
        2 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Op::Type),
    ]
}

proptest! {
    /// The model is the queue of bytes that were typed or looped and not read or cleared.
    #[test]
    fn bytes_stay_in_order_and_the_line_is_as_the_identification(
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let rig = Rig::new();
        let mut queue = VecDeque::new();
        let mut sent = vec![];
        for op in ops {
            let before = rig.uart.state();
            let (open, looped) = (before.lcr & 0x80 != 0, before.mcr & MCR_LOOP != 0);
            let capacity = if before.fcr & 1 != 0 { FIFO_SIZE } else { 1 };
            let held = before.received.as_slice().len();
            match op {
                Op::Read(DATA) if !open => {
                    let expected = if held > 0 { queue.pop_front() } else { None };
                    prop_assert_eq!(rig.get(DATA), expected.unwrap_or(0));
                }
                Op::Read(LSR) => {
                    let value = rig.get(LSR);
                    prop_assert_eq!(value & LSR_DATA_READY != 0, held > 0);
                    prop_assert_eq!(value & LSR_OVERRUN != 0, before.overrun);
                    prop_assert_eq!(value & !3, LSR_SENT);
                }
                Op::Read(register) => {
                    rig.get(register);
                }
                Op::Write(register, value) => {
                    rig.put(register, value);
                    match register {
                        DATA if open => {}
                        DATA if looped && held < capacity => queue.insert(held, value),
                        DATA if looped && capacity == 1 => queue[0] = value,
                        DATA if looped => {}
                        DATA => sent.push(value),
                        IIR_FCR => {
                            let switched = (value ^ before.fcr) & 1 != 0;
                            if switched || value & 3 == 3 {
                                queue.drain(..held);
                            }
                        }
                        _ => {}
                    }
                }
                Op::Type(bytes) => {
                    queue.extend(&bytes);
                    rig.type_in(&bytes);
                }
            }
            let state = rig.uart.state();
            prop_assert!(state.is_possible());
            let held = state.received.as_slice();
            let outside = rig.outside.typed.lock().unwrap().clone();
            prop_assert!(held.iter().chain(&outside).eq(&queue), "{:?} {:?}", held, queue);
            prop_assert_eq!(rig.irq(), state.interrupt() != IIR_NONE);
            let waits = held.is_empty() && !outside.is_empty() && state.mcr & MCR_LOOP == 0;
            prop_assert!(!waits, "input waits outside an empty receiver");
            rig.uart.set_state(&state).unwrap();
            prop_assert_eq!(rig.uart.state(), state);
        }
        prop_assert_eq!(rig.sent(), sent);
    }
}
