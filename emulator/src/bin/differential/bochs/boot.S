# A boot sector for Bochs, which takes no kernel: loads the image that follows it on the disk to 2 MiB and enters it as a
# Multiboot loader would. `sectors` is patched by who writes the disk.
.code16
.globl _start
_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7c00, %sp
    in $0x92, %al
    or $2, %al
    out %al, $0x92             # A20
again:
    sti
    mov $packet, %si
    mov $0x42, %ah
    mov $0x80, %dl
    int $0x13
    jc again
    cli
    lgdt gdt_pointer           # BIOS calls spoil unreal mode
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    mov $16, %bx
    mov %bx, %ds
    mov %bx, %es
    and $~1, %al
    mov %eax, %cr0
    mov $0x10000, %esi
    mov target, %edi
    mov $64*512/4, %ecx
    cld
    addr32 rep movsl
    mov %edi, target
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    addl $64, first
    subl $64, sectors
    ja again
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $8, $enter
.code32
enter:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $0x2badb002, %eax
    mov $0x200000 + 12, %ecx
    jmp *%ecx
    .align 8
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word 23
    .long gdt
    .align 4
target:
    .long 0x200000
packet:
    .byte 16, 0
    .word 64, 0, 0x1000
first:
    .long 1, 0
    .org 506                   # where who writes the disk finds it
sectors:
    .long 0
    .word 0xaa55
