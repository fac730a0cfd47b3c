# A guest in one sector, for tests. On COM1 it writes a colour sequence and "login:", then writes its own first sector
# to sector 128 of its disk and tells "written"; from then on it waits for the power button (ACPI on q35) and switches
# itself off. Assemble: as -o g.o guest.S && ld -Ttext 0x7c00 --oformat binary -o g.img g.o
.code16
.globl _start
_start:
 xor %ax,%ax
 mov %ax,%ds
 mov %ax,%es
 mov %ax,%ss
 mov $0x7c00,%sp
 mov %dl,drive
 mov $hello,%si
 call print
 mov $0x4300,%ax
 mov drive,%dl
 mov $packet,%si
 int $0x13
 jc failed
 mov $written,%si
 call print
 mov $0x602,%dx
 mov $0x100,%ax
 out %ax,%dx
wait:
 sti
 hlt
 mov $0x600,%dx
 in %dx,%ax
 test $0x100,%ax
 jz wait
 mov $0x604,%dx
 mov $0x2000,%ax
 out %ax,%dx
failed:
 hlt
 jmp failed
print:
 lodsb
 test %al,%al
 jz done
 mov $0x3f8,%dx
 out %al,%dx
 jmp print
done: ret
hello: .asciz "\033[1mlogin:\033[0m\r\n"
written: .asciz "written\r\n"
drive: .byte 0
.align 4
packet: .byte 16,0
 .word 1
 .word 0x7c00,0
 .quad 128
.org 510
.word 0xaa55
