//! Instructions on registers, beside the processor that the tests run on: every flag, undefined or not.
//!
//! Undefined flags are those of AMD's family 25. On another processor only the defined ones are compared.

use iced_x86::{Decoder, DecoderOptions, RflagsBits};
use reprise_emulator::cpu::flags::{AF, CF, OF, PF, SF, STATUS, ZF};

use crate::world::{Way, World, long_mode};

/// Numbers of RAX, RCX, RDX, RSI, RDI.
const REGISTERS: [u8; 5] = [0, 1, 2, 6, 7];

/// Values at which carries, signs and widths change.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// A sequence that looks random and is the same each time (Marsaglia's xorshift).
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// An edge, a small number, or anything.
    fn value(&mut self) -> u64 {
        let value = self.next();
        match value >> 62 {
            0 => EDGES[value as usize % EDGES.len()],
            1 => value & 0x7f,
            _ => self.next(),
        }
    }
}

fn is_modelled_processor() -> bool {
    let vendor = core::arch::x86_64::__cpuid(0);
    let family = core::arch::x86_64::__cpuid(1).eax >> 8 & 0xf;
    let extended = core::arch::x86_64::__cpuid(1).eax >> 20 & 0xff;
    (vendor.ebx, vendor.edx, vendor.ecx) == (0x6874_7541, 0x6974_6e65, 0x444d_4163) && family + extended == 25
}

fn undefined(code: &[u8]) -> u64 {
    if is_modelled_processor() {
        return 0;
    }
    let bits = Decoder::new(64, code, DecoderOptions::NONE).decode().rflags_undefined();
    let table = [
        (RflagsBits::OF, OF),
        (RflagsBits::SF, SF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::AF, AF),
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
    ];
    table
        .into_iter()
        .filter(|(bit, _)| bits & bit != 0)
        .fold(0, |flags, (_, flag)| flags | flag)
}

/// Runs `count` cases; `limit` bends values into what the instruction takes without a fault.
fn compare(text: &str, code: &[u8], native: fn(&mut [u64; 5], &mut u64), limit: fn(&mut [u64; 5]), count: usize) {
    let mut sequence = Sequence(0x9e37_79b9_7f4a_7c15);
    let mut cpu = long_mode();
    let mut world = World::new(&cpu);
    let undefined = undefined(code);
    for _ in 0..count {
        let mut before: [u64; 5] = core::array::from_fn(|_| sequence.value());
        limit(&mut before);
        let flags = sequence.next() & STATUS;
        for (register, value) in REGISTERS.into_iter().zip(before) {
            cpu.gpr.set(register, value);
        }
        cpu.flags = (flags | 2).into();
        let end = world.run(code, &cpu, Way::Fast, false);
        let (mut after, mut flags_after) = (before, flags | 0x202);
        native(&mut after, &mut flags_after);
        let found = REGISTERS.map(|register| end.cpu.gpr.get(register));
        let context = format!("{text} of {before:x?}, flags {flags:#x}");
        assert_eq!(end.fault, None, "{context}");
        assert_eq!(found, after, "{context}");
        let (found, expected) = (u64::from(end.cpu.flags) & STATUS, flags_after & STATUS);
        assert_eq!(
            found & !undefined,
            expected & !undefined,
            "flags {:?} of {context}",
            end.cpu.flags
        );
    }
}

macro_rules! same_as_the_processor {
    ($($test:ident $(if $feature:tt)*: $limit:expr, $count:literal, $($text:literal)*;)*) => {$(
        #[test]
        fn $test() {
            $(
                if !is_x86_feature_detected!($feature) {
                    return;
                }
            )*
            $(compare($text, code!($text), native!($text), $limit, $count);)*
        }
    )*};
}

/// Keeps a count below 16: beyond, OF of a 16-bit double shift follows no rule that we know.
fn narrow_count(registers: &mut [u64; 5]) {
    registers[1] &= !0x10;
}

/// Makes the upper half of a dividend smaller than its divisor, at every width.
fn divisible(registers: &mut [u64; 5]) {
    let [rax, rcx, rdx, ..] = registers;
    *rcx |= 0x4040_4040_4040_4040;
    *rax &= !0xf000;
    *rdx &= 0x0f0f_0f0f_0f0f_0f0f;
}

/// As [`divisible`], with both signs of both.
fn divisible_with_sign(registers: &mut [u64; 5]) {
    let [rax, rcx, rdx, rsi, _] = registers;
    *rcx = *rcx & !0xc0c0_c0c0_c0c0_c0c0
        | if *rsi & 1 == 0 {
            0x4040_4040_4040_4040
        } else {
            0x8080_8080_8080_8080
        };
    *rdx &= 0x0f0f_0f0f_0f0f_0f0f;
    *rax &= !0xf000;
    if *rsi & 2 != 0 {
        *rdx = !*rdx;
        *rax |= 0xf000;
    }
}

same_as_the_processor! {
    additions: |_| (), 100,
        "add al, cl" "add ax, cx" "add eax, ecx" "add rax, rcx" "adc al, cl" "adc ax, cx" "adc eax, ecx" "adc rax, rcx"
        "sub al, cl" "sub ax, cx" "sub eax, ecx" "sub rax, rcx" "sbb al, cl" "sbb ax, cx" "sbb eax, ecx" "sbb rax, rcx"
        "cmp ah, dl" "cmp ax, dx" "cmp esi, edi" "cmp rsi, rdi" "adc ah, 0x7f" "sbb cx, -1" "add edx, -128" "sub rdi, 0x7fffffff"
        "adc rax, -1" "sbb rcx, 0";
    logic: |_| (), 50,
        "and al, cl" "and ax, cx" "and eax, ecx" "and rax, rcx" "or al, cl" "or eax, ecx" "xor dl, ah" "xor rdx, rcx"
        "test al, cl" "test ax, 0x8001" "test rax, rcx" "not rax" "not dx";
    one_operand: |_| (), 50,
        "inc al" "inc ax" "inc eax" "inc rax" "dec ah" "dec cx" "dec edx" "dec rsi" "neg al" "neg ax" "neg eax" "neg rdi";
    exchanges: |_| (), 100,
        "xadd al, cl" "xadd ax, cx" "xadd eax, ecx" "xadd rax, rcx" "xadd rdx, rdx" "xadd cl, ch"
        "cmpxchg cl, dl" "cmpxchg cx, dx" "cmpxchg ecx, edx" "cmpxchg rcx, rdx" "xchg eax, ecx" "xchg al, ah" "xchg rdx, rax";
    shifts: |_| (), 200,
        "shl al, cl" "shl ax, cl" "shl eax, cl" "shl rax, cl" "shr al, cl" "shr ax, cl" "shr eax, cl" "shr rax, cl"
        "sar al, cl" "sar ax, cl" "sar eax, cl" "sar rax, cl" "shl eax, 1" "shr dx, 1" "sar rsi, 1" "shl dl, 7" "shr edx, 31"
        "sar rdx, 63" "shl ah, 3";
    rotates: |_| (), 200,
        "rol al, cl" "rol ax, cl" "rol eax, cl" "rol rax, cl" "ror al, cl" "ror ax, cl" "ror eax, cl" "ror rax, cl"
        "rcl al, cl" "rcl ax, cl" "rcl eax, cl" "rcl rax, cl" "rcr al, cl" "rcr ax, cl" "rcr eax, cl" "rcr rax, cl"
        "rol eax, 1" "ror dl, 1" "rcl rsi, 1" "rcr dx, 1" "rol dl, 5" "ror edx, 17" "rcl dl, 3" "rcr rdx, 63";
    narrow_double_shifts: narrow_count, 200, "shld ax, dx, cl" "shrd ax, dx, cl";
    double_shifts: |_| (), 200,
        "shld eax, edx, cl" "shld rax, rdx, cl" "shrd eax, edx, cl" "shrd rax, rdx, cl"
        "shld ax, si, 1" "shrd edi, esi, 1" "shld rdi, rsi, 63" "shrd ax, dx, 15";
    multiplication: |_| (), 200,
        "mul cl" "mul cx" "mul ecx" "mul rcx" "imul cl" "imul cx" "imul ecx" "imul rcx" "imul ax, cx" "imul eax, ecx"
        "imul rax, rcx" "imul ax, cx, -7" "imul eax, ecx, 0x12345" "imul rax, rcx, -3" "imul rdx, rdx, 0x7fffffff";
    division: divisible, 200,
        "div cl" "div cx" "div ecx" "div rcx";
    signed_division: divisible_with_sign, 200,
        "idiv cl" "idiv cx" "idiv ecx" "idiv rcx";
    bits: |_| (), 100,
        "bt ax, cx" "bt eax, ecx" "bt rax, rcx" "bts ax, cx" "bts eax, ecx" "bts rax, rcx" "btr ax, cx" "btr eax, ecx"
        "btr rax, rcx" "btc ax, cx" "btc eax, ecx" "btc rax, rcx" "bt eax, 31" "bts rax, 63" "btr dx, 3" "btc esi, 0"
        "bsf ax, cx" "bsf eax, ecx" "bsf rax, rcx" "bsr ax, cx" "bsr eax, ecx" "bsr rax, rcx"
        "popcnt ax, cx" "popcnt eax, ecx" "popcnt rax, rcx";
    counts_of_zeros if "bmi1" if "lzcnt": |_| (), 100,
        "tzcnt ax, cx" "tzcnt eax, ecx" "tzcnt rax, rcx" "lzcnt ax, cx" "lzcnt eax, ecx" "lzcnt rax, rcx";
    bit_manipulation if "bmi1": |_| (), 200,
        "andn eax, ecx, edx" "andn rax, rcx, rdx" "bextr eax, ecx, edx" "bextr rax, rcx, rdx" "blsi eax, ecx" "blsi rax, rcx"
        "blsmsk eax, ecx" "blsmsk rax, rcx" "blsr eax, ecx" "blsr rax, rcx" "blsr rcx, rcx" "andn rdi, rdi, rdi";
    more_bit_manipulation if "bmi2": |_| (), 200,
        "bzhi eax, ecx, edx" "bzhi rax, rcx, rdx" "mulx eax, ecx, esi" "mulx rax, rcx, rsi" "mulx rax, rax, rdx"
        "mulx edx, ecx, edx" "pdep eax, ecx, edx" "pdep rax, rcx, rdx" "pext eax, ecx, edx" "pext rax, rcx, rdx"
        "rorx eax, ecx, 7" "rorx rax, rcx, 33" "rorx eax, ecx, 32" "rorx rax, rcx, 255" "sarx eax, ecx, edx"
        "sarx rax, rcx, rdx" "shlx eax, ecx, edx" "shlx rax, rcx, rdx" "shrx eax, ecx, edx" "shrx rax, rcx, rdx"
        "shrx rdx, rdx, rdx";
    carry_chains if "adx": |_| (), 200,
        "adcx eax, ecx" "adcx rax, rcx" "adox eax, ecx" "adox rax, rcx" "adox rdx, rdx";
    conditions: |_| (), 50,
        "seto al" "setno al" "setb al" "setae al" "sete al" "setne al" "setbe al" "seta al" "sets al" "setns al" "setp al"
        "setnp al" "setl al" "setge al" "setle al" "setg al" "cmovo ax, cx" "cmovno eax, ecx" "cmovb rax, rcx" "cmovae ax, cx"
        "cmove eax, ecx" "cmovne rax, rcx" "cmovbe eax, ecx" "cmova eax, ecx" "cmovs rax, rcx" "cmovns eax, ecx"
        "cmovp eax, ecx" "cmovnp eax, ecx" "cmovl eax, ecx" "cmovge eax, ecx" "cmovle eax, ecx" "cmovg rax, rcx";
    moves: |_| (), 50,
        "mov al, ch" "mov ax, cx" "mov eax, ecx" "mov rax, rcx" "mov ah, 7" "mov eax, -1" "mov rax, -1" "movzx eax, cl"
        "movzx ax, ch" "movzx rax, cx" "movsx eax, cl" "movsx ax, ch" "movsx rax, cx" "movsxd rax, ecx" "lea eax, [rcx + rdx * 4 + 5]"
        "lea rax, [rcx + rdx * 8 - 5]" "lea ax, [rcx + rsi]" "bswap eax" "bswap rdx" ".byte 0x66, 0x0f, 0xc9" "cbw" "cwde" "cdqe" "cwd" "cdq" "cqo"
        "lahf" "sahf" "clc" "stc" "cmc";
}
