# 57-bit linear addresses with five levels, and protection keys.
.include "monitor.inc"
.include "long.inc"

.set PKE, 1 << 22
.set PAGE, 0x3fe00000       # in the last large page of the first gigabyte
.set KEY, 5

# Lays the page's table: one page in it, with these rights and key 5.
.macro page_rights rights:req, high=KEY << 27
    movl $(frame + \rights), level1
    movl $\high, level1 + 4
    invlpg PAGE
.endm

.macro keys rights:req
    xor %ecx, %ecx
    xor %edx, %edx
    mov $((\rights) << (2*KEY)), %eax
    wrpkru
.endm

scenes:
    movl $0x1000, with_levels
    call enter_long
.code64
    mov %cr0, %rax
    and $~0x10000, %eax
    mov %rax, %cr0

    scene64 "five levels"
    mov %cr4, %rax
    show64 cr4, %rax
    mov %cr4, %rbx
    btr $12, %rbx
    try64 "mov %rbx, %cr4"
    .irp address, 0x0000800000000000, 0x00ffffffffffffff, 0x0100000000000000, 0x8000000000000000, 0xfeffffffffffffff, 0xff00000000000000, 0xffff7fffffffffff
    mov $\address, %rbx
    try64 "mov (%rbx), %al"
    try64 "mov %rbx, %rbp; mov (%rbp), %al"
    try64 "wrfsbase %rbx"
    try64 "jmp *%rbx"
    mov $0xc0000082, %ecx
    mov %ebx, %eax
    mov %rbx, %rdx
    shr $32, %rdx
    try64 "wrmsr"
    .endr
    movl $level4 + 7, level5 + 8
    mov %cr3, %rax
    mov %rax, %cr3
    mov $seen, %ebx
    bts $48, %rbx
    movl $0x12345678, seen
    try64 "mov (%rbx), %eax"
    show64 there, %rax
    mov level5 + 8, %rax
    show64 entry, %rax
    movl $level4 + 3, level5 + 8
    invlpg (%rbx)
    try_user64 0x3002, "mov (%rbx), %eax"
    movl $level4 + 0x87, level5 + 8
    invlpg (%rbx)
    mov $seen, %ebx
    bts $48, %rbx
    try64 "mov (%rbx), %eax"
    movl $level4 + 7, level5 + 8
    movl $0x40000000, level5 + 12
    invlpg (%rbx)
    try64 "mov (%rbx), %eax"
    movl $0, level5 + 8
    movl $0, level5 + 12
    invlpg (%rbx)
    try64 "mov (%rbx), %eax"

    scene64 "protection keys: registers"
    try64 "xor %ecx, %ecx; rdpkru"
    try64 "xor %ecx, %ecx; xor %edx, %edx; wrpkru"
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    and $0x18, %ecx
    show64 cpuid, %rcx
    mov %cr4, %rax
    or $PKE, %eax
    mov %rax, %cr4
    mov $7, %eax
    xor %ecx, %ecx
    cpuid
    and $0x18, %ecx
    show64 cpuid, %rcx
    try64 "mov $1, %ecx; rdpkru"
    try64 "mov $1, %ecx; wrpkru"
    try64 "xor %ecx, %ecx; mov $1, %edx; wrpkru"
    keys 3
    mov $-1, %rdx
    mov $-1, %rax
    rdpkru
    show64 pkru, %rax
    show64 rdx, %rdx
    try_user64 0x3002, "xor %ecx, %ecx; rdpkru"
    keys 0

    scene64 "protection keys: accesses"
    movl $level1 + 7, level2 + (PAGE >> 21)*8
    page_rights 7
    movb $0xc3, PAGE
    .irp write_protect, 0, 0x10000
    mov %cr0, %rax
    and $~0x10000, %eax
    or $\write_protect, %eax
    mov %rax, %cr0
    .irp rights, 0, 1, 2, 3
    page_rights 7
    keys \rights
    try64 "mov PAGE, %al"
    try64 "mov %al, PAGE + 8"
    try64 "lock incb PAGE + 8"
    try64 "call call_page"
    try_user64 0x3002, "mov PAGE, %al"
    try_user64 0x3002, "mov %al, PAGE + 8"
    try_user64 0x3002, "call call_page"
    page_rights 5
    try_user64 0x3002, "mov %al, PAGE + 8"
    page_rights 3
    try64 "mov PAGE, %al"
    try64 "mov %al, PAGE + 8"
    try_user64 0x3002, "mov PAGE, %al"
    page_rights 6
    try64 "mov PAGE, %al"
    .endr
    .endr
    page_rights 7, (KEY << 27) + 0x40000000
    keys 3
    try64 "mov PAGE, %al"
    page_rights 7, (KEY << 27)
    mov %cr4, %rax
    and $~PKE, %eax
    mov %rax, %cr4
    try64 "mov PAGE, %al"
    jmp finish64

call_page:
    mov $PAGE, %eax
    jmp *%rax

.section .data
    .align 8
seen:
    .quad 0

.section .bss
    .align 4096
level1:
    .skip 4096
frame:
    .skip 4096
