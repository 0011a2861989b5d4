# Gates, interrupts, stack switches, returns: the privileged side of 32-bit protected mode.
.include "monitor.inc"

.set GATE, SCRATCH         # a call gate
.set CODE_NEAR, 0x48       # code based where a gate's 16 bits of offset reach it
.set CODE_1, 0x51          # privilege level 1
.set DATA_1, 0x59
.set CONFORMING, 0x60
.set ODD, 0x68             # whatever a scene breaks
.set VECTOR, 0x41          # an interrupt that user code may raise

# What is on the stack, as dwords.
.macro show_stack count
    .set .Loffset, 0
    .rept \count
    show_dword .Loffset
    .set .Loffset, .Loffset + 4
    .endr
.endm
.macro show_dword offset
    movl %ss:\offset(%esp), %eax
    call put_text
    .asciz " "
    call put_word
.endm

# Where gates lead: shows the stack and the flags, then leaves by `resume`.
.macro gate_target name, count
\name:
    pushf
    pop %ecx
    mov %esp, %edx
    show_stack \count
    show flags, %ecx
    show cs, %cs
    show ss, %ss
    show esp, %edx
    jmp leave_target
.endm

scenes:
    descriptor_at CODE_NEAR, near_target, 0xffff, 0x9b, 0x40
    descriptor_at CODE_1, 0, 0xfffff, 0xbb, 0xc0
    descriptor_at DATA_1, 0, 0xfffff, 0xb3, 0xc0
    descriptor_at CONFORMING, 0, 0xfffff, 0x9f, 0xc0

    scene "call gate, 32 bits, same level"
    gate gdt, GATE/8, CODE32, target_3, 0xec
    catch 1f
    lcall $GATE, $0x12345678
1:
    scene "jump through a call gate"
    catch 1f
    ljmp $GATE, $0x12345678
1:
    scene "call gate, 16 bits, same level"
    gate gdt, GATE/8, CODE_NEAR, 0, 0xe4
    catch 1f
    lcall $GATE, $0x12345678
1:
    scene "call gate, 32 bits, from level 3, no parameters"
    gate gdt, GATE/8, CODE32, target_6, 0xec
    catch 1f
    go_user 2f
2:  lcall $GATE, $0
1:
    scene "call gate, 32 bits, from level 3, two parameters"
    gate gdt, GATE/8, CODE32, target_6, 0xec, 2
    catch 1f
    go_user 2f
2:  push $0x11111111
    push $0x22222222
    lcall $GATE, $0
1:
    scene "call gate, 32 bits, from level 3, 31 parameters"
    gate gdt, GATE/8, CODE32, target_6, 0xec, 31
    catch 1f
    go_user 2f
2:  .rept 31
    push $-'3'
    .endr
    lcall $GATE, $0
1:
    scene "call gate, 16 bits, from level 3, two parameters"
    gate gdt, GATE/8, CODE_NEAR, 0, 0xe4, 2
    catch 1f
    go_user 2f
2:  push $0x11113333
    push $0x22224444
    lcall $GATE, $0
1:
    scene "call gate from level 3 to conforming code"
    gate gdt, GATE/8, CONFORMING, conforming_target, 0xec
    try_user 0x3002, lcall $GATE, $0
    scene "jump through a call gate from level 3"
    gate gdt, GATE/8, CODE32, target_3, 0xec
    try_user 2, ljmp $GATE, $0
    gate gdt, GATE/8, CODE32_3, user_landing, 0xec
    try_user 2, ljmp $GATE, $0
    scene "call gate to level 1"
    movl $stack_1_top, tss_main + 12
    movl $DATA_1, tss_main + 16
    gate gdt, GATE/8, CODE_1, target_in_1, 0xec
    try_user 0x3002, lcall $GATE, $0

    scene "call gate and back with parameters"
    gate gdt, GATE/8, CODE32, target_returns, 0xec, 2
    catch 1f
    go_user 2f
2:  mov %esp, %esi
    push $1
    push $2
    lcall $GATE, $0
    sub %esp, %esi
    mov %ds, %edi
    int $0x80
1:  show esp_moved, %esi
    show ds, %edi

    scene "gates that may not be used"
    gate gdt, GATE/8, CODE32, target_3, 0x8c
    try_user 2, lcall $GATE, $0
    gate gdt, GATE/8, CODE32, target_3, 0xcc
    try_user 2, lcall $GATE+3, $0
    try lcall $GATE+3, $0
    gate gdt, GATE/8, CODE32, target_3, 0x6c
    try lcall $GATE, $0
    gate gdt, GATE/8, 0, target_3, 0xec
    try lcall $GATE, $0
    gate gdt, GATE/8, 3, target_3, 0xec
    try lcall $GATE, $0
    gate gdt, GATE/8, 0x7f8, target_3, 0xec
    try lcall $GATE, $0
    gate gdt, GATE/8, DATA32, target_3, 0xec
    try lcall $GATE, $0
    gate gdt, GATE/8, CODE32_3, target_3, 0xec
    try lcall $GATE, $0
    descriptor_at ODD, 0, 0xfffff, 0x1b, 0xc0
    gate gdt, GATE/8, ODD, target_3, 0xec
    try lcall $GATE, $0
    descriptor_at ODD, 0, 0x10, 0x9b, 0x40
    try lcall $GATE, $0

    scene "stacks that a call gate cannot switch to"
    gate gdt, GATE/8, CODE_1, target_in_1, 0xec
    movl $0, tss_main + 16
    try_user 2, lcall $GATE, $0
    movl $1, tss_main + 16
    try_user 2, lcall $GATE, $0
    movl $DATA32, tss_main + 16
    try_user 2, lcall $GATE, $0
    movl $DATA_1 & ~3, tss_main + 16
    try_user 2, lcall $GATE, $0
    movl $CODE_1, tss_main + 16
    try_user 2, lcall $GATE, $0
    movl $0x7f9, tss_main + 16
    try_user 2, lcall $GATE, $0
    descriptor_at ODD, 0, 0xfffff, 0x33, 0xc0
    movl $ODD+1, tss_main + 16
    try_user 2, lcall $GATE, $0
    descriptor_at ODD, 0, 0xfffff, 0xb1, 0xc0
    try_user 2, lcall $GATE, $0
    movl $DATA_1, tss_main + 16

    scene "interrupt gate"
    gate idt, VECTOR, CODE32, target_3, 0xee
    catch 1f
    push $0x4fd7
    popf
    int $VECTOR
1:
    scene "trap gate"
    gate idt, VECTOR, CODE32, target_3, 0xef
    catch 1f
    push $0x4ed7
    popf
    int $VECTOR
1:
    scene "interrupt gate, 16 bits"
    gate idt, VECTOR, CODE_NEAR, 0, 0xe6
    catch 1f
    int $VECTOR
1:
    scene "trap gate, 16 bits, from level 3"
    gate idt, VECTOR, CODE_NEAR, 0, 0xe7
    catch 1f
    go_user 2f
2:  int $VECTOR
1:
    scene "interrupt gate from level 3"
    gate idt, VECTOR, CODE32, target_6, 0xee
    catch 1f
    go_user 2f, 0x3002
2:  int $VECTOR
1:
    scene "interrupt gate from level 3 to conforming code"
    gate idt, VECTOR, CONFORMING, conforming_target, 0xee
    try_user 0x3002, int $VECTOR
    scene "interrupt gate to level 1"
    gate idt, VECTOR, CODE_1, target_in_1, 0xee
    try_user 0x3002, int $VECTOR
    try int $VECTOR

    scene "an error code through a 16-bit gate"
    movl idt + 13*8, %esi
    movl idt + 13*8 + 4, %edi
    gate idt, 13, CODE_NEAR, 0, 0x86
    catch 1f
    mov $0xfff8, %eax
    mov %eax, %fs
1:  movl %esi, idt + 13*8
    movl %edi, idt + 13*8 + 4

    scene "interrupts whose gate may not be used"
    gate idt, VECTOR, CODE32, target_3, 0x8e
    try_user 2, int $VECTOR
    gate idt, VECTOR, CODE32, target_3, 0x6e
    try int $VECTOR
    gate idt, VECTOR, 0, target_3, 0xee
    try int $VECTOR
    gate idt, VECTOR, DATA32, target_3, 0xee
    try int $VECTOR
    gate idt, VECTOR, CODE32_3, target_3, 0xee
    try int $VECTOR
    gate idt, VECTOR, 0x7f8, target_3, 0xee
    try int $VECTOR
    gate idt, VECTOR, CODE32, target_3, 0xec
    try int $VECTOR
    gate idt, VECTOR, CODE32, target_3, 0xe9
    try int $VECTOR
    descriptor_at ODD, 0, 0xfffff, 0x1b, 0xc0
    gate idt, VECTOR, ODD, target_3, 0xee
    try int $VECTOR
    descriptor_at ODD, 0, 0x10, 0x9b, 0x40
    try int $VECTOR
    lidt short_idt_pointer
    try int $VECTOR
    lidt idt_pointer

    scene "exceptions whose gate may not be used"
    movl idt + 6*8, %esi
    movl idt + 6*8 + 4, %edi
    gate idt, 6, CODE32, target_3, 0x0e
    try ud2
    gate idt, 6, 0, target_3, 0x8e
    try ud2
    gate idt, 6, ODD, target_3, 0x8e
    try ud2
    descriptor_at ODD, 0, 0xfffff, 0x1b, 0xc0
    try ud2
    movl %esi, idt + 6*8
    movl %edi, idt + 6*8 + 4

    scene "double faults"
    movl idt + 13*8, %esi
    movl idt + 13*8 + 4, %edi
    gate idt, 13, CODE32, target_3, 0x0e
    mov $0xfff8, %ebx
    try mov %ebx, %fs
    gate idt, 13, 0, target_3, 0x8e
    try mov %ebx, %fs
    movl %esi, idt + 13*8
    movl %edi, idt + 13*8 + 4
    movl idt, %esi
    movl idt + 4, %edi
    gate idt, 0, CODE32, target_3, 0x0e
    xor %ebx, %ebx
    try div %bl
    gate idt, 0, 0xfff8, target_3, 0x8e
    try div %bl
    movl %esi, idt
    movl %edi, idt + 4

    scene "INT3, INTO, INT1, BOUND at level 3"
    try_user 2, int3
    try_user 2, .byte 0xcd, 3
    try_user 2, into
    try_user 0x802, into
    try_user 2, .byte 0xf1
    try_user 2, .byte 0xcd, 1
    andb $~0x60, idt + 8*3 + 5
    andb $~0x60, idt + 8*4 + 5
    try_user 2, int3
    try_user 2, into
    try int3
    orb $0x60, idt + 8*3 + 5
    orb $0x60, idt + 8*4 + 5
    mov $5, %ebx
    try bound %ebx, bounds
    mov $10, %ebx
    try bound %ebx, bounds
    mov $-11, %ebx
    try bound %ebx, bounds
    try bound %bx, bounds_16

    scene "exceptions of instructions"
    xor %ebx, %ebx
    try div %ebx
    try idiv %bl
    try aam $0
    try ud2
    try .byte 0x0f, 0x0b
    try .byte 0x0f, 0xff, 0xc0
    try .byte 0x0f, 0xb9, 0xc0
    try .byte 0xf0, 0x90
    try .byte 0x8e, 0xc8
    try .byte 0x0f, 0x22, 0xc8
    try .byte 0x0f, 0x22, 0xe8
    try .byte 0x0f, 0x01, 0xc0
    try .byte 0x8d, 0xc0
    try .byte 0xff, 0xf8
    try .byte 0xfe, 0xd0
    mov $0x80000000, %eax
    mov $-1, %ebx
    tries "mov $0x80000000, %eax; cltd; idiv %ebx"

    scene "the device that is not available"
    mov %cr0, %eax
    or $8, %eax
    mov %eax, %cr0
    try fnop
    try fwait
    try movd %eax, %mm0
    mov %cr0, %eax
    or $2, %eax
    mov %eax, %cr0
    try fwait
    mov %cr0, %eax
    and $~8, %eax
    or $4, %eax
    mov %eax, %cr0
    try fnop
    try fwait
    try movd %eax, %mm0
    mov %cr0, %eax
    and $~14, %eax
    mov %eax, %cr0

    scene "flags that level 3 may change"
    tries_user 0x0002, "push $0xffffffff; popf"
    tries_user 0x0202, "push $0; popf"
    tries_user 0x1202, "push $0; popf"
    tries_user 0x3202, "push $0; popf"
    tries_user 0x3002, "push $0x40ed7; popf"
    tries_user 0x3002, "push $0x245ed7; popf"
    tries_user 0x0002, "pushw $0xfed7; popfw"
    tries_user 0x0002, "push $0x247ed7; push %cs; push $1f; iret; 1:"

    scene "flags that level 0 may change"
    mov $flag_words, %edi
1:  mov (%edi), %eax
    push %eax
    popf
    pushf
    pop %edx
    push $2
    popf
    show popf, %edx
    push %eax
    push %cs
    push $2f
    iret
2:  pushf
    pop %edx
    push $2
    popf
    show iret, %edx
    add $4, %edi
    cmp $flag_words_end, %edi
    jne 1b

    scene "IRET that may not return"
    tries "push $2; push $0; push $user_landing; iret"
    tries "push $2; push $DATA32; push $user_landing; iret"
    tries "push $2; push $0x7f8; push $user_landing; iret"
    tries "push $2; push $CODE32+1; push $user_landing; iret"
    tries_user 2, "push $2; push $CODE32; push $user_landing; iret"
    tries "push $0x4002; popf; iret"
    tries "push $DATA32; push $user_stack_top; push $2; push $CODE32_3; push $user_landing; iret"
    tries "push $0; push $user_stack_top; push $2; push $CODE32_3; push $user_landing; iret"
    tries "push $3; push $user_stack_top; push $2; push $CODE32_3; push $user_landing; iret"
    tries "push $CODE32_3; push $user_stack_top; push $2; push $CODE32_3; push $user_landing; iret"
    scene "returning outwards clears segments of inner levels"
    mov $DATA32, %eax
    mov %eax, %fs
    mov $DATA_1, %eax
    mov %eax, %gs
    catch 1f
    go_user 2f
2:  mov %fs, %esi
    mov %gs, %edi
    mov %ds, %ebx
    int $0x80
1:  show fs, %esi
    show gs, %edi
    show ds, %ebx

    scene "SYSENTER and SYSEXIT"
    mov $0x174, %ecx
    xor %edx, %edx
    xor %eax, %eax
    wrmsr
    try_user 2, sysenter
    mov $0x174, %ecx
    mov $CODE32, %eax
    wrmsr
    inc %ecx
    mov $trap_stack_top, %eax
    wrmsr
    inc %ecx
    mov $sysenter_target, %eax
    wrmsr
    catch 1f
    go_user 2f, 0x3ed6
2:  sysenter
1:  try_user 2, sysexit

    scene "ports of level 3"
    movw $0x68, tss_main + 0x66
    movl $0xfffffffe, tss_main + 0x68
    movl $0xfffffff7, tss_main + 0x68 + 4
    movl $0x7fffffff, tss_main + 0x68 + 8
    movb $0xff, tss_main + 0x68 + 12
    mov $ports, %edi
1:  mov (%edi), %edx
    call space
    call space
    show port, %edx
    try_user 2, in %dx, %al
    try_user 2, in %dx, %ax
    try_user 2, in %dx, %eax
    add $4, %edi
    cmp $ports_end, %edi
    jne 1b
    show above_limit, $0
    mov $0x2ff, %edx
    try_user 2, in %dx, %al
    mov $0xffff, %edx
    try_user 2, out %al, %dx
    try_user 0x3002, in %dx, %al
    try_user 0x2002, in %dx, %al
    movw $0xffff, tss_main + 0x66
    mov $0, %edx
    try_user 2, in %dx, %al

    scene "model-specific registers"
    mov $0xc0000080, %ecx
    rdmsr
    mov %eax, %ebx
    or $0x400, %ebx
    mov %ebx, %eax
    try wrmsr
    rdmsr
    show efer_lma, %eax
    mov $0x2, %eax
    try wrmsr
    xor %eax, %eax
    try wrmsr
    mov $0x12345678, %ecx
    try rdmsr
    try wrmsr
    mov $0x1b, %ecx
    rdmsr
    mov $0xffffffff, %edx
    try wrmsr
    mov $0x277, %ecx
    mov $0x00070406, %eax
    mov $0x00070402, %edx
    try wrmsr
    mov $0x00070406, %edx
    try wrmsr
    ret

gate_target target_3, 3
gate_target target_6, 6

# In code with a base of its own.
near_target:
    ljmp $CODE32, $target_6

leave_target:
    mov $DATA32, %eax
    mov %eax, %ds
    mov %eax, %es
    lss resume_esp, %esp
    push $2
    popf
    jmp *resume

# At the caller's level.
conforming_target:
    mov %cs, %ebx
    int $0x80
user_landing:
    mov %cs, %ebx
    int $0x80
target_in_1:
    mov %ss, %ebx
    int $0x80
target_returns:
    lret $8
sysenter_target:
    pushf
    pop %ecx
    show flags, %ecx
    show cs, %cs
    show ss, %ss
    show esp, %esp
    mov $user_landing, %edx
    mov $user_stack_top, %ecx
    sysexit

.section .data
    .align 8
bounds:
    .long -10, 9
bounds_16:
    .word -20, 4
short_idt_pointer:
    .word 8*VECTOR + 6
    .long idt
flag_words:
    .long 0, 0xcd7, 0x3202, 0x7202, 0x44000, 0x240000, 0x10000, 0xffe08002
flag_words_end:
ports:
    .long 0, 1, 35, 34, 33, 32, 31, 95, 94, 93, 92
ports_end:

.section .bss
    .skip 4096
stack_1_top:
