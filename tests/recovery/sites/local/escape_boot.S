# The boot sector of the guest in escape.c: loads what follows it, enters protected mode with flat segments, calls it.
.code16
.globl _start
_start:
 cli
 xor %ax,%ax
 mov %ax,%ds
 mov %ax,%es
 mov %ax,%ss
 mov $0x7c00,%sp
 mov $packet,%si
 mov $0x4200,%ax
 int $0x13
 jc failed
 in $0x92,%al
 or $2,%al
 out %al,$0x92
 lgdt table
 mov %cr0,%eax
 or $1,%al
 mov %eax,%cr0
 ljmp $8,$flat
failed:
 hlt
 jmp failed
.code32
flat:
 mov $16,%ax
 mov %ax,%ds
 mov %ax,%es
 mov %ax,%ss
 mov $0x7c00,%esp
 call escape
ended:
 hlt
 jmp ended
.align 8
descriptors: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
table: .word 23
 .long descriptors
packet: .byte 16,0
 .word 63
 .word 0x7e00,0
 .quad 1
.org 510
.word 0xaa55
.globl targets
targets:
 .ascii "TARGETS:"
 .fill 9,1,0
