# Breakpoints, single steps, and what their flags do: DR6, DR7, TF, RF, general detect, INT1.
.include "monitor.inc"

# Sets a breakpoint register and DR7.
.macro breakpoint number:req, address:req, control:req
    mov $\address, %eax
    mov %eax, %dr\number
    mov $\control, %eax
    mov %eax, %dr7
.endm

# All steps of what follows are shown, from the next instruction but one to `steps_end`.
.macro steps count:req
    movb $1, stepping
    movb $\count, step_off
.endm
.macro steps_end
    xor %eax, %eax
    mov %eax, %dr7
    movb $0, stepping
    movb $0, step_off
    movb $0, resume_flag
.endm

# Runs the instructions with TF set before the first of them.
.macro stepped count:req, insns:req
    steps \count
    pushl $0x102
    popfl
    \insns
    nop
    nop
    pushl $2
    popfl
    steps_end
.endm

scenes:
    scene "registers"
    xor %eax, %eax
    mov %eax, %dr6
    mov %dr6, %ebx
    show dr6, %ebx
    mov $-1, %eax
    mov %eax, %dr6
    mov %dr6, %ebx
    show dr6, %ebx
    xor %eax, %eax
    mov %eax, %dr6
    mov %eax, %dr7
    mov %dr7, %ebx
    show dr7, %ebx
    mov $0x0000dc00, %eax
    mov %eax, %dr7
    mov %dr7, %ebx
    show dr7, %ebx
    .byte 0x0f, 0x21, 0xe3      # DR4 is DR6
    show dr4, %ebx
    .byte 0x0f, 0x21, 0xeb      # and DR5 DR7
    show dr5, %ebx
    mov $8, %eax
    mov %eax, %cr4
    try .byte 0x0f, 0x21, 0xe3
    try .byte 0x0f, 0x23, 0xeb
    xor %eax, %eax
    mov %eax, %cr4
    try_user 2, mov %dr0, %eax
    try_user 2, mov %eax, %dr6
    mov %eax, %dr7

    scene "single steps"
    stepped 12, "nop; mov $1, %eax; inc %eax; jmp 1f; nop; 1: call 2f; jmp 3f; 2: ret; 3: cld"
    scene "single steps of string instructions"
    mov $source, %esi
    mov $target, %edi
    mov $3, %ecx
    stepped 8, "rep movsb"
    mov $0, %ecx
    stepped 8, "rep movsb"
    mov $5, %ecx
    mov $source, %edi
    mov $3, %al
    stepped 8, "repne scasb"
    scene "single steps and what holds them up"
    stepped 12, "mov %ss, %eax; mov %eax, %ss; nop; push %ss; pop %ss; inc %eax; nop"
    stepped 12, "pushf; popf; nop"
    stepped 12, "sti; nop; cli; nop"
    scene "single steps and interrupts"
    catch 1f
    pushl $0x102
    popfl
    int $0x81
1:  catch 1f
    pushl $0x102
    popfl
    ud2
1:  catch 1f
    pushl $0x102
    popfl
    int3
1:  try_user 0x102, nop
    try_user 0x102, int $0x80
    try_user 0x102, popf

    scene "INT1"
    try .byte 0xf1
    try_user 2, .byte 0xf1
    try_user 2, int $1
    mov $0xffff0ff0, %eax
    mov %eax, %dr6

    scene "breakpoints on instructions"
    breakpoint 0, 1f, 0x2
    tries "nop; 1: nop"
    steps_end
    movb $1, resume_flag
    steps 0
    breakpoint 1, 1f, 0x8
    mov $3, %ecx
1:  loop 1b
    steps_end
    # On the second byte of an instruction there is none.
    breakpoint 2, 1f+1, 0x20
    tries "1: mov $1, %eax"
    steps_end
    # A fault of the instruction comes after its breakpoint.
    breakpoint 3, 1f, 0x80
    tries "1: ud2"
    steps_end
    # What is not enabled is not told: some processors say it, ours does not.
    breakpoint 0, 1f, 0
    mov $1f, %eax
    mov %eax, %dr1
    mov $0x8, %eax
    mov %eax, %dr7
    tries "1: nop"
    steps_end
    # RF lets one instruction by.
    breakpoint 0, 1f, 0x2
    push $0x10002
    push %cs
    push $1f
    iret
1:  nop
    call put_text
    .asciz " by"
    steps_end
    # And POPF does not set it.
    breakpoint 0, 1f, 0x2
    tries "push $0x10002; popf; 1: nop"
    steps_end
    xor %eax, %eax
    mov %eax, %dr1

    scene "breakpoints on data"
    .irp kind, 0x10000, 0x30000, 0x50000, 0x70000, 0xd0000, 0xf0000
    breakpoint 0, watched, \kind+2
    .irp insn, "mov watched, %al", "mov %al, watched", "mov watched-1, %ax", "mov %eax, watched+1", "mov %eax, watched+3", "mov %eax, watched-3", "mov %eax, watched+4", "incb watched", "push watched; pop %edx", "cmp %al, watched", "lea watched, %eax", "prefetcht0 watched"
    tries "\insn"
    .endr
    steps_end
    .endr
    breakpoint 0, watched+1, 0xd0002
    tries "mov %al, watched"
    tries "mov %al, watched+3"
    tries "mov %al, watched+4"
    steps_end
    # Two at once, and with a single step.
    mov $watched, %eax
    mov %eax, %dr1
    breakpoint 0, watched, 0xd1000a
    tries "mov %al, watched"
    catch 1f
    pushl $0x102
    popfl
    mov %al, watched
1:  steps_end
    xor %eax, %eax
    mov %eax, %dr1
    # A repeated one stops behind the iteration.
    breakpoint 0, watched, 0xd0002
    mov $watched-2, %edi
    mov $6, %ecx
    tries "rep stosb"
    show ecx, %ecx
    steps_end
    scene "breakpoints on ports"
    mov $8, %eax
    mov %eax, %cr4
    breakpoint 0, 0x80, 0x20002
    try in $0x80, %al
    try out %al, $0x80
    try out %al, $0x81
    try in $0x7f, %ax
    steps_end
    xor %eax, %eax
    mov %eax, %cr4

    scene "general detect"
    mov $0x2000, %eax
    mov %eax, %dr7
    try mov %dr0, %eax
    mov %dr7, %eax
    show dr7, %eax
    mov $0x2000, %eax
    mov %eax, %dr7
    try mov %eax, %dr7
    mov $0x2000, %eax
    mov %eax, %dr7
    try_user 2, mov %dr0, %eax
    xor %eax, %eax
    catch 1f
    mov %eax, %dr7
1:  mov %eax, %dr7

    scene "debug registers that there are not, at level 3"
    mov $8, %eax
    mov %eax, %cr4
    try_user 2, .byte 0x0f, 0x21, 0xe3
    try_user 2, mov %dr6, %ebx
    mov $0x2000, %eax
    mov %eax, %dr7
    try .byte 0x0f, 0x21, 0xe3
    xor %eax, %eax
    catch 1f
    mov %eax, %dr7
1:  mov %eax, %dr7
    mov %eax, %cr4

    scene "breakpoints on what SS is loaded from"
    mov %ss, %eax
    mov %eax, stack_selector
    # The trap comes behind the next instruction, and a single step does not come at all.
    .irp insn, "mov stack_selector, %ss; nop; nop", "mov stack_selector, %ss; mov %ss, %eax; nop; nop", "mov stack_selector, %ss; incb watched; nop", "lss stack_pointer, %eax; nop; nop"
    breakpoint 0, stack_selector, 0x70002
    tries "\insn"
    steps_end
    .endr
    pushl %ss
    mov %esp, %eax
    mov %eax, %dr0
    mov $0xf0002, %eax
    mov %eax, %dr7
    tries "pop %ss; lea -12(%esp), %esp; nop"
    steps_end
    pop %eax
    breakpoint 0, stack_selector, 0x70002
    catch 1f
    pushl $0x102
    popfl
    mov stack_selector, %ss
    nop
    nop
1:  steps_end
    # An exception of the next instruction comes in its place.
    breakpoint 0, stack_selector, 0x70002
    tries "mov stack_selector, %ss; ud2"
    steps_end
    scene "breakpoints on what SS is loaded from, and an interrupt behind it"
    breakpoint 0, stack_selector, 0x70002
    tries "mov stack_selector, %ss; int $0x81"
    steps_end
    ret

.section .data
    .align 16
stack_pointer:
    .long 0
stack_selector:
    .long 0
    .align 16
source:
    .byte 1, 2, 3, 4, 5
    .align 16
    .long 0
watched:
    .long 0x10, 0, 0
target:
    .skip 8
    .align 8
