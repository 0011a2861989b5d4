# 64-bit mode and compatibility mode: frames, stacks, canonical addresses, system calls, gates, what there is not.
.include "monitor.inc"
.include "long.inc"

.set VECTOR, 0x41
.set GATE, 0x70             # two slots
.set ODD, 0x80              # two slots
.set CONFORMING, 0x90
.set COMPAT_0, CODE32
.set NOWHERE, 0x800000000000

.macro call_gate selector:req, target:req, kind:req, high=0, upper=0
    mov $\target, %eax
    mov %ax, gdt + GATE
    movw $\selector, gdt + GATE + 2
    movw $\kind << 8, gdt + GATE + 4
    shr $16, %eax
    mov %ax, gdt + GATE + 6
    movl $\high, gdt + GATE + 8
    movl $\upper, gdt + GATE + 12
.endm

.macro msr number:req, high:req, low:req
    mov $\number, %ecx
    mov $\low, %eax
    mov $\high, %edx
    wrmsr
.endm

# Writes a code or data descriptor.
.macro segment64 selector:req, low:req, high:req
    movl $\low, gdt + (\selector)
    movl $\high, gdt + (\selector) + 4
.endm

# Returns to the next instruction there with this SS, these flags and this CS.
.macro iret_to stack:req, flags:req, code:req
    catch64 .Lback\@
    pushq $\stack
    pushq $user_stack_top
    pushq $\flags
    pushq $\code
    pushq $.Lthere\@
    iretq
.Lthere\@:
    mov %ss, %eax
    int $0x80
.Lback\@:
.endm

scenes:
    call enter_long
.code64
    segment64 CONFORMING, 0x0000ffff, 0x00af9f00

    scene64 "frames"
    try64 "ud2"
    try64 "lea -1(%rsp), %rsp; ud2"
    try64 "sub $15, %rsp; ud2"
    try64 "int3"
    try64 "mov $0xfff8, %eax; mov %eax, %fs"
    try64 "xor %eax, %eax; mov %eax, %ss; ud2"
    try_user64 0x3002, "ud2"
    try_user64 0x3ed7, "lea -1(%rsp), %rsp; int3"
    try_user64 0x3002, "mov %cs, %eax"
    try_compat "ud2"
    try_compat "mov $0x12345678, %esp; int3"
    gate64 VECTOR, CONFORMING, conforming64, 0xee
    try_user64 0x3002, "int $VECTOR"
    try_compat "int $VECTOR"

    scene64 "interrupt stack table"
    movl $ist_stack_top, tss_long + 0x24
    movl $0, tss_long + 0x28
    movl $ist_stack_top - 7, tss_long + 0x2c
    movl $0, tss_long + 0x30
    .irp ist, 1, 2
    gate64 VECTOR, CODE64, ist_target, 0xee, \ist
    try64 "int $VECTOR"
    try_user64 0x3002, "int $VECTOR"
    try_compat "int $VECTOR"
    .endr
    movl $0x8000, tss_long + 0x40
    gate64 VECTOR, CODE64, ist_target, 0xee, 4
    try64 "int $VECTOR"
    movl $0, tss_long + 0x40
    movb $0x89, gdt + TSS_LONG + 5
    movw $0x23, gdt + TSS_LONG          # it ends before the first IST
    mov $TSS_LONG, %eax
    ltr %ax
    gate64 VECTOR, CODE64, ist_target, 0xee, 1
    try64 "int $VECTOR"
    movb $0x89, gdt + TSS_LONG + 5
    movw $0x67, gdt + TSS_LONG
    mov $TSS_LONG, %eax
    ltr %ax

    scene64 "gates that may not be used"
    gate64 VECTOR, CODE64, ist_target, 0x8e
    try_user64 0x3002, "int $VECTOR"
    gate64 VECTOR, CODE64, ist_target, 0x6e
    try64 "int $VECTOR"
    .irp kind, 0xe5, 0xe6, 0xe7, 0xec
    gate64 VECTOR, CODE64, ist_target, \kind
    try64 "int $VECTOR"
    .endr
    .irp selector, 0, CODE32, CODE64_3, DATA32, 0x7f8, GATE
    gate64 VECTOR, \selector, ist_target, 0xee
    try64 "int $VECTOR"
    .endr
    segment64 ODD, 0x0000ffff, 0x00ef9b00
    gate64 VECTOR, ODD, ist_target, 0xee
    try64 "int $VECTOR"
    segment64 ODD, 0x0000ffff, 0x00af1b00
    try64 "int $VECTOR"
    gate64 VECTOR, CODE64, ist_target, 0xee
    movl $0x8000, idt64 + 16*VECTOR + 8
    try64 "int $VECTOR"
    try_user64 0x3002, "int $VECTOR"
    movl $0, idt64 + 16*VECTOR + 8
    movb $1, idt64 + 16*12 + 4
    movl $0x8000, tss_long + 8
    try_user64 0x3002, "lea -8(%rsp), %rsp; int $VECTOR"
    movl $0, tss_long + 8
    movb $0, idt64 + 16*12 + 4

    scene64 "addresses that are not canonical"
    .irp number, 3, 8, 12, 13, 14
    movb $1, idt64 + 16*\number + 4
    .endr
    mov $NOWHERE, %rbx
    .irp insn, "mov (%rbx), %al", "mov -1(%rbx), %ax", "mov %al, (%rbx)", "lock incb (%rbx)", "mov %fs:(%rbx), %al", "prefetcht0 (%rbx)", "lea (%rbx), %rax", "invlpg (%rbx)", "clflush (%rbx)", "jmp *%rbx", "call *%rbx", "push %rbx; ret", "mov %rbx, %rbp; mov (%rbp), %al", "mov %rbx, %rsp; push %rax", "mov %rbx, %rsp; pop %rax", "mov %rbx, %rsp; int3", "mov %rbx, %rsp; ret", "lgdt (%rbx)", "fldl (%rbx)", "movups (%rbx), %xmm0"
    mov $NOWHERE, %rbx
    try64 "\insn"
    .endr
    .irp number, 3, 8, 12, 13, 14
    movb $0, idt64 + 16*\number + 4
    .endr

    scene64 "IRETQ"
    iret_to DATA32, 0x202, CODE64
    iret_to 0, 0x202, CODE64
    iret_to 3, 0x202, CODE64
    iret_to 0, 0x202, CODE64_3
    iret_to 3, 0x202, CODE64_3
    iret_to 0, 0x202, CODE32
    iret_to DATA32, 0x202, 0
    iret_to DATA32, 0x202, DATA32
    iret_to DATA32_3, 0x202, CODE32_3
    iret_to DATA32, 0x202, CODE64_3
    iret_to DATA32_3, 0x20202, CODE64_3
    iret_to CODE32_3, 0x202, CODE64_3
    iret_to 0x7f8, 0x202, CODE64
    iret_to DATA32, 0x202, ODD
    iret_to DATA32, 0x4202, CODE64
    try64 "pushq $0x4002; popfq; iretq"
    pushq $2
    popfq
    mov $NOWHERE, %rbx
    try64 "pushq $DATA32; push %rsp; pushq $2; pushq $CODE64; push %rbx; iretq"
    try64 "pushq $DATA32_3; push %rsp; pushq $2; pushq $CODE64_3; push %rbx; iretq"
    try64 "pushq $DATA32_3; push %rbx; pushq $2; pushq $CODE64_3; pushq $user64_landing; iretq"
    try64 "pushq $DATA32_3; push %rbx; pushq $2; pushq $CODE32_3; pushq $user32_landing; iretq"

    scene64 "SYSCALL and SYSRET"
    msr 0xc0000081, 0x00130008, 0
    movw $0xffff, gdt + CODE64 - 8      # nothing: SYSCALL's segments are the first ones
    msr 0xc0000084, 0, 0x47700
    msr 0xc0000082, 0, syscall_target
    msr 0xc0000083, 0, syscall_compat
    try_user64 0x3ed7, "syscall"
    try_compat "syscall"
    try_user64 0x3002, "sysretq"
    catch64 1f
    mov $user64_landing, %ecx
    mov $0xffed6, %r11d
    mov $user_stack_top, %esp
    sysretq
1:  catch64 1f
    mov $user32_landing, %ecx
    mov $0x3002, %r11d
    mov $user_stack_top, %esp
    sysretl
1:  mov $0xc0000080, %ecx
    rdmsr
    and $~1, %eax
    wrmsr
    try64 "syscall"
    try64 "sysretq"
    mov $0xc0000080, %ecx
    rdmsr
    or $1, %eax
    wrmsr

    scene64 "SWAPGS and the bases of FS and GS"
    msr 0xc0000101, 0x1111, 0x22222222
    msr 0xc0000102, 0x3333, 0x44444444
    try_user64 0x3002, "swapgs"
    swapgs
    mov $0xc0000101, %ecx
    rdmsr
    show64 gs, %rax
    swapgs
    mov $DATA32, %eax
    mov %eax, %gs
    mov $0xc0000101, %ecx
    rdmsr
    show64 gs, %rax
    mov %cr4, %rax
    and $~0x10000, %eax
    mov %rax, %cr4
    try64 "rdfsbase %rax"
    or $0x10000, %eax
    mov %cr4, %rax
    or $0x10000, %eax
    mov %rax, %cr4
    mov $0x123456789a, %rbx
    try64 "wrfsbase %rbx; rdfsbase %rcx"
    show64 fs, %rcx
    try64 "wrfsbase %ebx; rdfsbase %rcx"
    show64 fs, %rcx
    mov $NOWHERE, %rbx
    try64 "wrgsbase %rbx"
    xor %eax, %eax
    wrfsbase %rax
    wrgsbase %rax
    mov %cr4, %rax
    and $~0x10000, %eax
    mov %rax, %cr4

    scene64 "call gates"
    call_gate CODE64, gate_target64, 0xec
    catch64 1f
    mov %rsp, %rbp
    lcall *far64_gate
1:  catch64 1f
    go_user64 2f
2:  lcall *far64_gate
1:  try_compat "lcall $GATE, $0"
    call_gate CONFORMING, conforming64, 0xec
    try_user64 0x3002, "lcall *far64_gate"
    try64 "ljmp *far64_gate"
    call_gate CODE64, gate_target64, 0x8c
    try_user64 0x3002, "lcall *far64_gate"
    try_user64 0x3002, "ljmp *far64_gate"
    call_gate CODE64, gate_target64, 0xec
    try_user64 0x3002, "ljmp *far64_gate"
    .irp kind, 0x6c, 0xe4, 0xe5, 0xe9, 0xee
    call_gate CODE64, gate_target64, \kind
    try64 "lcall *far64_gate"
    .endr
    call_gate CODE64, gate_target64, 0xec, 0, 0x0100
    try64 "lcall *far64_gate"
    call_gate CODE64, gate_target64, 0xec, 0x8000
    try64 "lcall *far64_gate"
    .irp selector, 0, CODE32, CODE64_3, DATA32, 0x7f8
    call_gate \selector, gate_target64, 0xec
    try64 "lcall *far64_gate"
    .endr
    movb $1, idt64 + 16*12 + 4
    movl $0x8000, tss_long + 8
    call_gate CODE64, gate_target64, 0xec
    try_user64 0x3002, "lcall *far64_gate"
    movl $0, tss_long + 8

    scene64 "far transfers"
    mov $3, %ecx
    try64 "ljmp *far64_compat"
    try64 "ljmp *far64_task"
    try64 "lcall *far64_task"
    try64 "pushq $CODE64_3; pushq $user64_landing; lretq"
    try64 "pushq $DATA32_3; pushq $user_stack_top; pushq $CODE64_3; pushq $user64_landing; lretq"
    try64 "pushq $DATA32_3; pushq $user_stack_top; pushq $CODE32_3; pushq $user32_landing; lretq"
    try64 "pushq $0; pushq $user_stack_top; pushq $CODE64_3; pushq $user64_landing; lretq"
    segment64 ODD, 0x0000ffff, 0x00ef9b00
    try64 "pushq $ODD; pushq $user64_landing; lretq"
    try64 "ljmp *far64_odd"

    scene64 "extended control registers"
    xor %ecx, %ecx
    try64 "xgetbv"
    mov $7, %eax
    xor %edx, %edx
    try64 "xsetbv"
    mov %cr4, %rbx
    bts $18, %rbx              # OSXSAVE
    mov %rbx, %cr4
    .irp value, 1, 3, 7, 0, 2, 5, 6, 0x27, 0x67
    mov $\value, %eax
    xor %edx, %edx
    try64 "xsetbv"
    xgetbv
    mov %rax, %rbx
    show64 xcr0, %rbx
    xor %ecx, %ecx
    .endr
    mov $1, %ecx
    mov $7, %eax
    try64 "xsetbv"
    mov $1, %edx
    xor %ecx, %ecx
    try64 "xsetbv"
    mov $7, %eax
    xor %edx, %edx
    xsetbv
    mov $2, %ecx
    try64 "xgetbv"
    # What is in use; that something is not, no processor need say.
    vpcmpeqb %ymm1, %ymm1, %ymm1
    mov $1, %ecx
    xgetbv
    and $6, %eax
    mov %rax, %rbx
    show64 in_use, %rbx
    xor %ecx, %ecx
    try_user64 0x3002, "xgetbv"
    mov $7, %eax
    xor %edx, %edx
    try_user64 0x3002, "xsetbv"
    mov $1, %eax
    xor %ecx, %ecx
    xsetbv
    mov %cr4, %rbx
    btr $18, %rbx
    mov %rbx, %cr4
    try_user64 0x3002, "xgetbv"

    scene64 "descriptors of 16 bytes"
    movl $0x0000000f, gdt + ODD
    movl $0x00008200, gdt + ODD + 4
    movl $0, gdt + ODD + 12
    mov $ODD, %ebx
    .irp high, 0, 0x8000, 0xffff8000
    movl $\high, gdt + ODD + 8
    try64 "lldt %bx"
    .endr
    movl $0, gdt + ODD + 8
    movl $0x1f00, gdt + ODD + 12
    try64 "lldt %bx"
    movl $0, gdt + ODD + 12
    mov $gdt_end - gdt - 8, %ebx
    movl $0x00008200, gdt_end - 4
    try64 "lldt %bx"
    xor %ebx, %ebx
    try64 "lldt %bx"
    try64 "ltr %bx"
    mov $TSS_LONG, %ebx
    try64 "ltr %bx"
    .irp kind, 0x81, 0x8b, 0x09
    movb $\kind, gdt + ODD + 5
    mov $ODD, %ebx
    try64 "ltr %bx"
    .endr
    .irp kind, 0x81, 0x82, 0x84, 0x85, 0x89, 0x8c, 0x8e
    movb $\kind, gdt + ODD + 5
    xor %eax, %eax
    lar %ebx, %eax
    show64 lar, %rax
    xor %eax, %eax
    lsl %ebx, %eax
    show64 lsl, %rax
    .endr

    scene64 "what there is not in 64-bit code"
    .irp code, 0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0xce, 0xd6
    try64 ".byte \code"
    .endr
    try64 ".byte 0x82, 0xc0, 0"
    try64 ".byte 0x9a, 0, 0, 0, 0, 0, 0"
    try64 ".byte 0xea, 0, 0, 0, 0, 0, 0"
    try64 ".byte 0xc4, 0x00"
    try64 ".byte 0xc5, 0x00"
    try64 ".byte 0x62, 0x00"
    try64 ".byte 0xd4, 10"
    try64 ".byte 0xd5, 10"
    try64 ".byte 0xf0, 0x48, 0x89, 0x03"

    scene64 "limits and types do not matter in 64-bit code"
    segment64 ODD, 0x00000fff, 0x00409100
    mov $ODD, %eax
    mov %eax, %ds
    mov %eax, %fs
    try64 "movl $1, %ds:scratch64"
    try64 "movl $1, %fs:scratch64"
    xor %eax, %eax
    mov %eax, %ds
    try64 "movl $1, %ds:scratch64"
    segment64 ODD, 0x10000fff, 0x00409300
    mov $ODD, %eax
    mov %eax, %fs
    mov %eax, %ds
    try64 "mov %fs:scratch64 - 0x1000, %eax"
    show64 loaded, %rax
    try64 "mov %ds:scratch64, %eax"
    mov $DATA32, %eax
    mov %eax, %ds

    jmp finish64

ist_target:
    mov %rsp, %rax
    show64 rsp, %rax
    mov (%rsp), %rax
    show64 rip, %rax
    mov 8(%rsp), %rax
    show64 cs, %rax
    mov 24(%rsp), %rax
    show64 was, %rax
    mov 32(%rsp), %rax
    show64 ss_was, %rax
    mov %ss, %eax
    show64 ss, %rax
    iretq

gate_target64:
    mov %rsp, %rax
    show64 rsp, %rax
    mov (%rsp), %rax
    show64 rip, %rax
    mov 8(%rsp), %rax
    show64 cs, %rax
    mov 16(%rsp), %rax
    show64 was, %rax
    mov 24(%rsp), %rax
    show64 ss_was, %rax
    mov %ss, %eax
    show64 ss, %rax
    mov resume_rsp, %rsp
    mov $DATA32, %eax
    mov %eax, %ss
    mov %eax, %ds
    mov resume, %eax
    jmp *%rax

conforming64:
    mov %cs, %ebx
    int $0x80

user64_landing:
    mov %ss, %eax
    int $0x80
.code32
user32_landing:
    mov %ss, %eax
    int $0x80
.code64

syscall_target:
    pushfq
    pop %rax
    mov $user_stack_top, %esp
    mov %rax, scratch64
    show64 flags, scratch64
    show64 rcx, %rcx
    show64 r11, %r11
    mov %cs, %eax
    show64 cs, %rax
    mov %ss, %eax
    show64 ss, %rax
    int $0x80
syscall_compat:
    pushfq
    pop %rax
    mov $user_stack_top, %esp
    call put_text64
    .asciz " compat"
    jmp syscall_target

.section .data
    .align 8
far64_gate:
    .long 0
    .word GATE
far64_task:
    .long 0
    .word TSS_LONG
far64_odd:
    .long user64_landing
    .word ODD
far64_compat:
    .long compat_landing
    .word CODE32
scratch64:
    .quad 0x5555555566666666

.section .text
.code32
compat_landing:
    int $0x80
