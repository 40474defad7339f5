use super::*;
use crate::vcpu::AccessWidth::*;

const fn load(len: u8, width: AccessWidth, rd: u8, signed: bool) -> Option<MemInsn> {
    Some(MemInsn { len, width, op: MemOp::Load { rd, signed } })
}

const fn store(len: u8, width: AccessWidth, rs2: u8) -> Option<MemInsn> {
    Some(MemInsn { len, width, op: MemOp::Store { rs2 } })
}

/// Encodings as an assembler gives them.
#[test]
fn every_integer_load_and_store_is_decoded() {
    for (raw, want) in [
        (0x0005_8503, load(4, Byte, 10, true)),   // lb a0, 0(a1)
        (0x0005_9503, load(4, Word, 10, true)),   // lh a0, 0(a1)
        (0x0005_a503, load(4, Dword, 10, true)),  // lw a0, 0(a1)
        (0x0005_b503, load(4, Qword, 10, true)),  // ld a0, 0(a1)
        (0x0005_c503, load(4, Byte, 10, false)),  // lbu a0, 0(a1)
        (0x0005_d503, load(4, Word, 10, false)),  // lhu a0, 0(a1)
        (0x0005_e503, load(4, Dword, 10, false)), // lwu a0, 0(a1)
        (0x0005_f503, None),                      // reserved
        (0xffc5_af83, load(4, Dword, 31, true)),  // lw t6, -4(a1)
        (0x00a5_8023, store(4, Byte, 10)),        // sb a0, 0(a1)
        (0x00a5_9023, store(4, Word, 10)),        // sh a0, 0(a1)
        (0x00a5_a023, store(4, Dword, 10)),       // sw a0, 0(a1)
        (0x00a5_b023, store(4, Qword, 10)),       // sd a0, 0(a1)
        (0x00a5_c023, None),                      // reserved
        (0x0000_41c8, load(2, Dword, 10, true)),  // c.lw a0, 4(a1)
        (0x0000_6588, load(2, Qword, 10, true)),  // c.ld a0, 8(a1)
        (0x0000_c1c8, store(2, Dword, 10)),       // c.sw a0, 4(a1)
        (0x0000_e588, store(2, Qword, 10)),       // c.sd a0, 8(a1)
        (0x0000_4502, load(2, Dword, 10, true)),  // c.lwsp a0, 0(sp)
        (0x0000_6502, load(2, Qword, 10, true)),  // c.ldsp a0, 0(sp)
        (0x0000_c02a, store(2, Dword, 10)),       // c.swsp a0, 0(sp)
        (0x0000_e02a, store(2, Qword, 10)),       // c.sdsp a0, 0(sp)
        (0x0000_8188, load(2, Byte, 10, false)),  // c.lbu a0, 0(a1)
        (0x0000_8588, load(2, Word, 10, false)),  // c.lhu a0, 0(a1)
        (0x0000_85c8, load(2, Word, 10, true)),   // c.lh a0, 0(a1)
        (0x0000_8988, store(2, Byte, 10)),        // c.sb a0, 0(a1)
        (0x0000_8d88, store(2, Word, 10)),        // c.sh a0, 0(a1)
        (0x0000_4002, None),                      // c.lwsp x0: reserved
        (0x0000_2188, None),                      // c.fld fa0, 0(a1)
        (0x0000_a188, None),                      // c.fsd fa0, 0(a1)
        (0x0005_a507, None),                      // flw fa0, 0(a1)
        (0x00a5_a027, None),                      // fsw fa0, 0(a1)
        (0x00c5_a52f, None),                      // amoadd.w a0, a2, (a1)
        (0x1005_a52f, None),                      // lr.w a0, (a1)
        (0x18c5_a52f, None),                      // sc.w a0, a2, (a1)
        (0x0000_0000, None),
        (0xffff_ffff, None),
    ] {
        assert_eq!(from_memory(raw), want, "{raw:#x}");
    }
}

/// A transformed instruction has no base register and no offset; a compressed one has been
/// expanded, and bit 1 cleared (§18.6.3).
#[test]
fn a_transformed_instruction_is_decoded_like_the_one_it_came_from() {
    assert_eq!(from_htinst(0x0000_2503), load(4, Dword, 10, true));
    assert_eq!(from_htinst(0x0000_2501), load(2, Dword, 10, true));
    assert_eq!(from_htinst(0x00a0_3023), store(4, Qword, 10));
    assert_eq!(from_htinst(0x00a0_3021), store(2, Qword, 10));
    assert_eq!(from_htinst(0x00c0_252f), None, "an atomic");
    assert_eq!(from_htinst(0), None);
    assert_eq!(from_htinst(0x3000), None, "a walk");
    assert_eq!(from_htinst(0x0000_2503 | 2 << 15), None, "the second page of a misaligned load");
    assert_eq!(from_htinst(0x1_0000_2503), None, "no instruction is that long");
}

/// Encodings as an assembler gives them.
#[test]
fn the_address_of_every_form_is_known() {
    for (raw, want) in [
        (0xffc5_af83, (11, -4)),   // lw t6, -4(a1)
        (0x7ff5_8503, (11, 2047)), // lb a0, 2047(a1)
        (0xfea5_bc23, (11, -8)),   // sd a0, -8(a1)
        (0x7ea5_8fa3, (11, 2047)), // sb a0, 2047(a1)
        (0x0000_41c8, (11, 4)),    // c.lw a0, 4(a1)
        (0x0000_5de8, (11, 124)),  // c.lw a0, 124(a1)
        (0x0000_6588, (11, 8)),    // c.ld a0, 8(a1)
        (0x0000_7de8, (11, 248)),  // c.ld a0, 248(a1)
        (0x0000_dde8, (11, 124)),  // c.sw a0, 124(a1)
        (0x0000_fde8, (11, 248)),  // c.sd a0, 248(a1)
        (0x0000_557e, (2, 252)),   // c.lwsp a0, 252(sp)
        (0x0000_757e, (2, 504)),   // c.ldsp a0, 504(sp)
        (0x0000_dfaa, (2, 252)),   // c.swsp a0, 252(sp)
        (0x0000_ffaa, (2, 504)),   // c.sdsp a0, 504(sp)
        (0x0000_81e8, (11, 3)),    // c.lbu a0, 3(a1)
        (0x0000_85a8, (11, 2)),    // c.lhu a0, 2(a1)
        (0x0000_89e8, (11, 3)),    // c.sb a0, 3(a1)
        (0x0000_8da8, (11, 2)),    // c.sh a0, 2(a1)
    ] {
        assert!(from_memory(raw).is_some(), "{raw:#x}");
        assert_eq!(address(raw), want, "{raw:#x}");
    }
}

#[test]
fn a_walk_is_told_by_its_pseudoinstruction() {
    assert_eq!([0x2000, 0x3000].map(walk), [Some(false); 2]);
    assert_eq!([0x2020, 0x3020].map(walk), [Some(true); 2]);
    assert_eq!([0, 0x2503, 0x3001, 0x1_0000_3000].map(walk), [None; 4]);
}

mod any {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever stands in memory, and its transformed form, decode without a panic and to the
        /// same access.
        #[test]
        fn both_forms_agree(raw: u32) {
            let _ = from_memory(raw);
            let raw = raw | 3;
            let direct = from_memory(raw);
            let offset = if raw & 0x7f == STORE { 0xfe00_0f80 } else { 0xfff0_0000 };
            let transformed = u64::from(raw & !offset & !(0x1f << 15));
            prop_assert_eq!(from_htinst(transformed), direct);
        }
    }
}

#[test]
fn what_writes_is_told_from_what_reads() {
    // sb, sd, fsw, fsd, amoadd.w, sc.d; c.fsd, c.sw, c.sd, c.sb, c.sh, c.fsdsp, c.swsp, c.sdsp
    for raw in [
        0xa48023, 0xa4b023, 0x84a027, 0x84b027, 0xa4a5af, 0x1ea4b5af, 0xa080, 0xc080, 0xe080,
        0x8880, 0x8c80, 0xa022, 0xc022, 0xe022,
    ] {
        assert!(stores(raw), "{raw:#x}");
    }
    // lb, ld, flw, fld, lr.d, addi, jal; c.fld, c.lw, c.ld, c.lbu, c.lh, c.fldsp, c.lwsp, c.ldsp, c.j
    for raw in [
        0x48503, 0x4b503, 0x4a407, 0x4b407, 0x1004b52f, 0x150513, 0x6f, 0x2080, 0x4080, 0x6080,
        0x8080, 0x84c0, 0x2402, 0x4502, 0x6502, 0xa001,
    ] {
        assert!(!stores(raw), "{raw:#x}");
    }
}
