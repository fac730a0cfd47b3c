/* A guest that tries to get out: by TCP and by UDP, to the machine that it runs on (10.0.2.2 with QEMU's user network)
 * and to an address beyond. It tells on COM1 what became of each, and at last "done".
 *
 * gcc -m32 -Os -ffreestanding -nostdlib -fno-pic -fno-stack-protector -fno-asynchronous-unwind-tables -c escape.c
 * as --32 -o boot.o escape_boot.S
 * ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o escape.img boot.o escape.o
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* Written into the image by the test, in the network's order. */
extern struct { u8 mark[8]; u8 outside[4]; u8 gateway_port[2]; u8 outside_port[2]; u8 tries; } targets;

static const u8 ME[4] = {10, 0, 2, 15}, GATEWAY[4] = {10, 0, 2, 2};
static const u64 PATIENCE = 2000000000; /* ticks of a processor of some GHz */
enum { MOST_TRIES = 255 };

static void out8(u16 port, u8 v) { __asm__ volatile("outb %0,%1" ::"a"(v), "Nd"(port)); }
static void out16(u16 port, u16 v) { __asm__ volatile("outw %0,%1" ::"a"(v), "Nd"(port)); }
static void out32(u16 port, u32 v) { __asm__ volatile("outl %0,%1" ::"a"(v), "Nd"(port)); }
static u8 in8(u16 port) { u8 v; __asm__ volatile("inb %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static u16 in16(u16 port) { u16 v; __asm__ volatile("inw %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static u32 in32(u16 port) { u32 v; __asm__ volatile("inl %1,%0" : "=a"(v) : "Nd"(port)); return v; }
static u64 ticks(void) { u32 l, h; __asm__ volatile("rdtsc" : "=a"(l), "=d"(h)); return ((u64)h << 32) | l; }

static void say(const char *text) { while (*text) out8(0x3f8, *text++); }
static void copy(u8 *to, const u8 *from, int n) { while (n--) *to++ = *from++; }
static int same(const u8 *a, const u8 *b, int n) { while (n--) if (*a++ != *b++) return 0; return 1; }
static void put16(u8 *at, u16 v) { at[0] = v >> 8; at[1] = v; }

/* --- the network card: virtio, the old way, by ports ----------------------------------------------------------- */

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct queue { volatile struct descriptor *descriptors; volatile u16 *available; volatile u8 *used; u16 size, seen; };

enum { HEADER = 10, FRAME = 2048, BUFFERS = 8 };
static u16 card;
static u8 mac[6];
static struct queue *const receiving = (void *)0x200000, *const sending = (void *)0x200100;
static u8 *const buffers = (void *)0x300000, *const frame = (void *)0x380000, *const no_header = (void *)0x390000;

static u32 pci(u32 device, u32 at) { out32(0xcf8, 0x80000000 | device << 11 | at); return in32(0xcfc); }

static int find_card(void)
{
    for (u32 device = 0; device < 32; device++)
        if (pci(device, 0) == 0x10001af4) {
            u32 command = pci(device, 4);
            out32(0xcfc, command | 5); /* answer at ports, read and write memory */
            card = pci(device, 0x10) & ~3;
            return 1;
        }
    return 0;
}

static void make_queue(struct queue *queue, u16 number, u32 at)
{
    out16(card + 14, number);
    queue->size = in16(card + 12);
    queue->seen = 0;
    queue->descriptors = (void *)at;
    queue->available = (void *)(at + 16 * queue->size);
    queue->used = (void *)((at + 16 * queue->size + 6 + 2 * queue->size + 4095) & ~4095u);
    out32(card + 8, at >> 12);
}

/* A header and a frame, as two descriptors from `first` on, are given to the card. */
static void give(struct queue *queue, u16 number, u16 first, u8 *header, u8 *data, u32 length, u16 writable)
{
    volatile struct descriptor *one = queue->descriptors + first, *two = one + 1;
    one->address = (u32)header, one->length = HEADER, one->flags = 1 | writable, one->next = first + 1;
    two->address = (u32)data, two->length = length, two->flags = writable;
    queue->available[2 + queue->available[1] % queue->size] = first;
    __sync_synchronize();
    queue->available[1]++;
    __sync_synchronize();
    out16(card + 16, number);
}

static u8 *buffer(u16 first) { return buffers + first * FRAME; }
static void listen_with(u16 first) { give(receiving, 0, first, buffer(first + 1), buffer(first), FRAME, 2); }

static void send(u32 length)
{
    give(sending, 1, 0, no_header, frame, length < 60 ? 60 : length, 0);
    while (*(volatile u16 *)(sending->used + 2) != sending->available[1]); /* the frame is used again */
}

static void start_card(void)
{
    out8(card + 18, 0);
    out8(card + 18, 1 | 2);
    out32(card + 4, 0);
    make_queue(receiving, 0, 0x210000);
    make_queue(sending, 1, 0x220000);
    out8(card + 18, 1 | 2 | 4);
    for (int i = 0; i < 6; i++) mac[i] = in8(card + 20 + i);
    for (u16 i = 0; i < BUFFERS; i++) listen_with(2 * i);
}

/* The next frame that came, or 0 when the time is over. It is overwritten by what comes after the next call. */
static u8 *next_frame(u64 deadline)
{
    static u16 given_back;
    if (given_back) listen_with(given_back - 1), given_back = 0;
    while (*(volatile u16 *)(receiving->used + 2) == receiving->seen)
        if (ticks() > deadline) return 0;
    u16 first = *(volatile u32 *)(receiving->used + 4 + 8 * (receiving->seen++ % receiving->size));
    given_back = first + 1;
    return buffer(first);
}

/* --- what is sent ---------------------------------------------------------------------------------------------- */

static u32 sum(const u8 *at, int n, u32 so_far)
{
    for (int i = 0; i < n; i += 2) so_far += at[i] << 8 | (i + 1 < n ? at[i + 1] : 0);
    return so_far;
}

static u16 folded(u32 sum) { while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16); return ~sum; }

static void ethernet(u16 kind)
{
    for (int i = 0; i < 64; i++) frame[i] = i < 6 ? 0xff : 0;
    copy(frame + 6, mac, 6);
    put16(frame + 12, kind);
}

static void send_arp(void)
{
    static const u8 request[8] = {0, 1, 8, 0, 6, 4, 0, 1};
    ethernet(0x0806);
    copy(frame + 14, request, 8);
    copy(frame + 22, mac, 6);
    copy(frame + 28, ME, 4);
    copy(frame + 38, GATEWAY, 4);
    send(42);
}

/* TCP SYN or a UDP datagram, from port 4000. */
static void send_ip(u8 protocol, const u8 *to, const u8 *port)
{
    u8 *ip = frame + 14, *body = ip + 20;
    int length = protocol == 6 ? 20 : 12;
    ethernet(0x0800);
    ip[0] = 0x45, ip[8] = 64, ip[9] = protocol;
    put16(ip + 2, 20 + length);
    copy(ip + 12, ME, 4);
    copy(ip + 16, to, 4);
    put16(ip + 10, folded(sum(ip, 20, 0)));
    put16(body, 4000);
    copy(body + 2, port, 2);
    if (protocol == 6) {
        body[7] = 1, body[12] = 0x50, body[13] = 2, body[14] = 0x20;
        put16(body + 16, folded(sum(body, length, sum(ip + 12, 8, 6 + length))));
    } else {
        put16(body + 4, length);
        copy(body + 8, (const u8 *)"out!", 4);
        put16(body + 6, folded(sum(body, length, sum(ip + 12, 8, 17 + length))));
    }
    send(34 + length);
}

/* What came back: 1 an answer, 2 a refusal, 0 nothing. */
static int answered(u8 protocol, const u8 *from, const u8 *port, u64 deadline)
{
    for (u8 *got; (got = next_frame(deadline));) {
        u8 *ip = got + 14, *body = ip + 20;
        if (got[12] != 8 || got[13] != 0 || ip[9] != protocol || !same(ip + 12, from, 4) || !same(body, port, 2)) continue;
        if (protocol == 6 && body[13] & 4) return 2;
        if (protocol != 6 || (body[13] & 0x12) == 0x12) return 1;
    }
    return 0;
}

static void attempt(const char *name, u8 protocol, const u8 *to, const u8 *port)
{
    int result = 0;
    for (int tries = 0; tries < targets.tries && result != 1; tries++) {
        send_ip(protocol, to, port);
        result = answered(protocol, to, port, ticks() + PATIENCE);
    }
    say(name);
    say(result == 1 ? ": reached\r\n" : result == 2 ? ": refused\r\n" : ": no answer\r\n");
}

/* Also tells the network where to send answers. */
static int answers_arp(void)
{
    for (int tries = 0; tries < MOST_TRIES; tries++) {
        u64 deadline = ticks() + PATIENCE;
        send_arp();
        for (u8 *got; (got = next_frame(deadline));)
            if (got[12] == 8 && got[13] == 6) return 1;
    }
    return 0;
}

void escape(void)
{
    if (!find_card()) {
        say("no network card\r\ndone\r\n");
        return;
    }
    start_card();
    say(answers_arp() ? "card: works\r\n" : "card: silent\r\n");
    attempt("gateway tcp", 6, GATEWAY, targets.gateway_port);
    attempt("gateway udp", 17, GATEWAY, targets.gateway_port);
    attempt("outside tcp", 6, targets.outside, targets.outside_port);
    attempt("outside udp", 17, targets.outside, targets.outside_port);
    say("done\r\n");
}
