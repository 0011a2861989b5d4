# Breakpoints on data that far transfers and the delivery of events push and pop. QEMU does not survive them.
.include "monitor.inc"

.macro unwatch
    xor %eax, %eax
    mov %eax, %dr7
.endm

# Watches a doubleword below the stack's top while the last of these instructions raises an event.
.macro pushed offset:req, insns:req
    catch .Lpushed\@
    lea -\offset(%esp), %eax
    mov %eax, %dr0
    mov $0xd0002, %eax
    mov %eax, %dr7
    \insns
.Lpushed\@:
    unwatch
.endm

scenes:
    scene "breakpoints on what far transfers push and pop"
    catch 1f
    lea -8(%esp), %eax
    mov %eax, %dr0
    mov $0xd0002, %eax
    mov %eax, %dr7
    lcall $CODE32, $2f
2:  nop
1:  unwatch
    pushl %cs
    pushl $2f
    mov %esp, %eax
    mov %eax, %dr0
    mov $0xf0002, %eax
    mov %eax, %dr7
    catch 1f
    lret
2:  lea -12(%esp), %esp
    nop
1:  unwatch
    lea 8(%esp), %esp

    scene "breakpoints on what an event pushes"
    # Not the flags: the monitor pushes something there itself.
    .irp insn, "int $0x81", "int3", "ud2"
    .irp offset, 8, 12
    pushed \offset, "\insn"
    .endr
    .endr
    .irp offset, 8, 12, 16
    pushed \offset, "mov $0xffff, %eax; mov %eax, %fs"
    .endr
    mov $trap_stack_top-8, %eax
    mov %eax, %dr0
    mov $0xd0002, %eax
    mov %eax, %dr7
    try_user 2, ud2
    unwatch
    ret
