import dataclasses
import os
import signal
import threading

import pytest

from agent.tracking import bpf
from agent.tracking.btf import KERNEL_BTF, Btf
from agent.tracking.changemap import PAGE_BYTES, Layout
from agent.tracking.program import Offsets, change_program

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF programs needs root"),
    pytest.mark.skipif(not KERNEL_BTF.exists(), reason="this kernel has no BTF"),
]


@pytest.fixture(scope="module")
def offsets() -> Offsets:
    return Offsets.of(Btf.of_kernel())


@pytest.mark.parametrize("size_bytes", [512, 64 << 40])
@pytest.mark.parametrize("discard_segments", [0, 1, 2, 256, 65535])
@pytest.mark.parametrize("by_queue", [True, False], ids=["disk-by-queue", "disk-in-request"])
def test_the_verifier_takes_the_program_in_every_shape(
    offsets: Offsets, size_bytes: int, discard_segments: int, by_queue: bool
) -> None:
    if not by_queue:  # as before 5.17; only loaded here, so that any offset will do
        offsets = dataclasses.replace(offsets, request_disk=offsets.request_bio, queue_disk=None)
    load(offsets, size_bytes, discard_segments)


def load(offsets: Offsets, size_bytes: int, discard_segments: int) -> None:
    inner = bpf.create_array(PAGE_BYTES, 1)
    slot = bpf.create_slot(inner)
    try:
        code = change_program(
            offsets,
            7,
            3,
            Layout(size_bytes),
            discard_segments=discard_segments,
            slot_map=slot,
            counter_map=inner,
            counter_at=128,
        )
        os.close(bpf.load_program(code))
    finally:
        os.close(slot)
        os.close(inner)


def test_signals_while_the_verifier_is_at_work_are_no_refusal(offsets: Offsets) -> None:
    came, over = threading.Semaphore(0), threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda *_: came.release())  # runs when the kernel has given up

    def disturb() -> None:
        for _ in range(5):
            if not over.wait(0.02):  # the verifier takes longer for the largest program
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                came.acquire()

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        load(offsets, 64 << 40, 65535)
    finally:
        over.set()
        disturbing.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_refusal_tells_what_the_verifier_said() -> None:
    reads_an_unset_register = bytes.fromhex("bf10000000000000 bf30000000000000 9500000000000000")
    with pytest.raises(OSError, match="R3 !read_ok"):
        bpf.load_program(reads_an_unset_register)


def test_a_tracepoint_that_is_not_there_is_an_error_that_names_it() -> None:
    returns_nothing = bytes.fromhex("b700000000000000 9500000000000000")
    program = bpf.load_program(returns_nothing)
    try:
        with pytest.raises(OSError, match="no_such_tracepoint"):
            bpf.attach_raw_tracepoint(program, "no_such_tracepoint")
    finally:
        os.close(program)
