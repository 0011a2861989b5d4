//! DAA, DAS, AAA, AAS, AAM, AAD, BOUND (SDM Vol. 2), in 32-bit mode.

use crate::world::protected_mode;

rows! { decimal in protected_mode(), ".code32\n";
    "79 + 35 is 114": "daa", al = 0xae, f = 0 => al = 0x14, f = CF | AF | PF;
    "a digit below ten stays": "daa", al = 0x42, f = 0 => al = 0x42, f = PF;
    "AF alone adjusts the lower digit": "daa", al = 0x12, f = AF => al = 0x18, f = AF | PF;
    "CF alone adjusts the upper digit": "daa", al = 0x12, f = CF => al = 0x72, f = CF | PF;
    "DAA crosses the sign": "daa", al = 0x47, f = CF => al = 0xa7, f = CF | SF | OF;
    "DAS crosses it, too": "das", al = 0x83, f = AF => al = 0x7d, f = AF | PF | OF;
    "35 - 47 is 88 with a borrow": "das", al = 0xee, f = CF | AF => al = 0x88, f = CF | AF | SF | PF;
    "the lower digit's own borrow counts": "das", al = 0x05, f = AF => al = 0xff, f = CF | AF | SF | PF;
    "AAA carries into AH": "aaa", ax = 0x010b, f = 0 => ax = 0x0201, f = CF | AF | PF;
    "AAA of a digit clears the upper half of AL": "aaa", ax = 0x0135, f = 0 => ax = 0x0105, f = PF;
    "AAS borrows from AH": "aas", ax = 0x02ff, f = AF => ax = 0x0109, f = CF | AF | PF;
    "AAS finds its sign in AX": "aas", ax = 0, f = AF => ax = 0xfe0a, f = CF | AF | SF | PF;
    "AAM splits": "aam", ax = 63 => ax = 0x0603, f = PF;
    "AAM by zero is #DE": ".byte 0xd4, 0", al = 1 => fault = (0, None);
    "AAD joins": "aad", ax = 0x0603 => ax = 63, f = PF;
    "AAD carries as an addition does": ".byte 0xd5, 0x15", ax = 0xff2a => ax = 0x15, f = CF | AF;
    "SALC spreads the carry": ".byte 0xd6", f = CF => al = 0xff;
}

rows! { bound in protected_mode(), ".code32\n";
    "an index between its bounds is fine": "bound eax, [ebx]", eax = 5, m = 5u64 << 32 | 5 => ;
    "bounds are signed": "bound eax, [ebx]", eax = 0, m = 5u64 << 32 | 0xffff_fffb => ;
    "an index above is #BR": "bound eax, [ebx]", eax = 6, m = 5u64 << 32 | 5 => fault = (5, None);
    "an index below is #BR": "bound ax, [ebx]", ax = 0xffff, m = 5u32 << 16 => fault = (5, None);
}
