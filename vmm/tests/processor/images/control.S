# Values that control registers do not take. QEMU takes some of them, and does not live long after.
.include "monitor.inc"
.include "long.inc"

scenes:
    scene "combinations of control registers"
    mov %cr0, %esi
    mov %esi, %ebx
    or $0x20000000, %ebx
    try mov %ebx, %cr0
    mov $0x80000010, %ebx
    try mov %ebx, %cr0
    mov %esi, %ebx
    or $0x6000ffc0, %ebx
    try mov %ebx, %cr0
    mov %cr0, %ebx
    show cr0, %ebx
    mov %esi, %cr0
    mov $0xffffffff, %ebx
    try mov %ebx, %cr4
    mov $0x80000000, %ebx
    try mov %ebx, %cr4
    mov $0x00020000, %ebx
    try mov %ebx, %cr4
    mov $0, %ebx
    try mov %ebx, %cr4

    scene "page-directory-pointer entries that MOV to CR3, CR0 and CR4 load"
    movl $pointed + 1, pointers
    movl $0x87, pointed
    movl $0x200087, pointed + 8
    mov $0x20, %eax
    mov %eax, %cr4
    mov $pointers, %ebx
    mov %ebx, %cr3
    mov %cr0, %esi
    mov %esi, %edi
    or $0x80000000, %edi
    .irp entry, 1, 2, 5, 0x21, 0x41, 0x81, 0x101, 0x201, 0xe01, 0xffe
    movl $\entry, pointers + 24
    mov %esi, %cr0
    try mov %edi, %cr0
    movl $0, pointers + 24
    mov %edi, %cr0
    movl $\entry, pointers + 24
    try mov %ebx, %cr3
    mov $0x30, %eax
    try mov %eax, %cr4
    mov $0x20, %eax
    movl $0, pointers + 24
    mov %eax, %cr4
    .endr
    movl $1, pointers + 24
    movl $0x80000000, pointers + 28
    try mov %ebx, %cr3
    mov %esi, %cr0
    mov $0, %eax
    mov %eax, %cr4

    call enter_long
.code64
    scene64 "registers that do not take every value"
    mov $0x800000000000, %rbx
    .irp register, dr0, dr6, dr7, cr0, cr2, cr3, cr4, cr8
    try64 "mov %rbx, %\register"
    .endr
    try64 "mov %cr2, %rdx"
    show64 cr2, %rdx
    mov $0x800000000000, %rbx
    .irp register, 1, 5, 6, 7, 9, 15
    try64 ".byte 0x0f, 0x20, 0xc0 | (\register << 3) & 0x38"
    .endr
    try64 ".byte 0x44, 0x0f, 0x20, 0xc8"
    try64 ".byte 0x44, 0x0f, 0x21, 0xc8"
    movw $0x7fff, far64_table
    movl $0x8000, far64_table + 6
    try64 "lgdt far64_table"
    try64 "lidt far64_table"
    .irp number, 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102, 0x175, 0x176
    mov $\number, %ecx
    mov $0x8000, %edx
    xor %eax, %eax
    try64 "wrmsr"
    rdmsr
    xor %eax, %eax
    .endr

    scene64 "combinations of control registers in 64-bit mode"
    mov %cr0, %rbx
    btr $31, %rbx
    try64 "mov %rbx, %cr0"
    mov %cr4, %rbx
    btr $5, %rbx
    try64 "mov %rbx, %cr4"
    mov %cr4, %rbx
    bts $12, %rbx
    try64 "mov %rbx, %cr4"
    mov %cr4, %rbx
    bts $17, %rbx
    mov %cr3, %rdx
    mov %rdx, %rcx
    or $8, %rcx
    mov %rcx, %cr3
    try64 "mov %rbx, %cr4"
    mov %rdx, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    btr $8, %eax
    try64 "wrmsr"
    mov $0x12, %ebx
    try64 "mov %rbx, %cr8"
    mov $5, %ebx
    try64 "mov %rbx, %cr8; mov %cr8, %rcx"
    show64 cr8, %rcx
    xor %ebx, %ebx
    mov %rbx, %cr8
    try_user64 0x3002, "mov %cr8, %rax"

    scene64 "limits and types matter in compatibility mode"
    try_compat "mov %cs:pointers, %eax; mov $0, %ecx; mov %ecx, %ds; mov %ds:pointers, %eax"
    try_compat "mov $0xffffffff, %eax; mov %cs:1(%eax), %ecx"
    try_compat "push $0x4002; popf; iret"
    try_compat "ljmp $TSS_LONG, $0"

    scene64 "double fault on a stack of its own"
    movl $ist_stack_top, tss_long + 0x24
    movb $1, idt64 + 16*8 + 4
    movb $0x0e, idt64 + 16*13 + 5
    mov $0x800000000000, %rbx
    try64 "mov (%rbx), %al"
    try64 "mov %rbx, %rsp; push %rax"
    jmp finish64

.section .data
far64_table:
    .word 0
    .quad 0

.section .bss
    .align 4096
pointers:
    .skip 4096
pointed:
    .skip 4096
