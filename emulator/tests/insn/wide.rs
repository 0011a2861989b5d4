//! ADCX, ADOX, CRC32, MOVBE (SDM Vol. 2).

rows! { chains;
    "ADCX carries in CF": "adcx eax, [rbx]", eax = 1, m = u32::MAX, f = CF => rax = 1, f = CF;
    "ADOX carries in OF": "adox rax, [rbx]", rax = 1, m = u64::MAX, f = OF => rax = 1, f = OF;
    "ADCX leaves no carry behind": "adcx rax, rcx", rax = 1, rcx = 2, f = CF => rax = 4, f = 0;
}

rows! { reversals;
    "MOVBE loads": "movbe eax, [rbx]", m = 0x1234_5678u32 => rax = 0x7856_3412;
    "MOVBE leaves the upper part of a 16-bit destination": "movbe ax, [rbx]", rax = u64::MAX, m = 0x1234u16 => rax = 0xffff_ffff_ffff_3412;
    "MOVBE stores": "movbe [rbx], rcx", rcx = 0x0102_0304_0506_0708 => m = 0x0807_0605_0403_0201u64;
    "MOVBE stores a word": "movbe [rbx], cx", rcx = 0x0102 => m = 0x0201u16;
}
