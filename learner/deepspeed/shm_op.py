"""Compiles DeepSpeed's shared-memory op in advance, so that no run waits for it.

`python -m learner.deepspeed.shm_op` clears a stale build lock, compiles `deepspeed_shm_comm` into
`torch_extensions_dir()` (about a minute, once; a second call only loads it), and prints a
line every few seconds meanwhile. A run on GPUs does not need the op.
"""

import os
import sys
import threading
import time

from learner.deepspeed.build_lock import clear_stale_lock, use_torch_extensions_dir

_REPORT_EVERY_S = 10.0


def build_shm_op() -> float:
    """Compile and load the op. Returns the time that took, in seconds."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    directory = use_torch_extensions_dir()
    for lock in clear_stale_lock(directory):
        print(f"    removed {lock}, left by a killed build", flush=True)

    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    started = time.monotonic()
    done = threading.Event()

    def report() -> None:
        while not done.wait(_REPORT_EVERY_S):
            print(f"    compiling, {time.monotonic() - started:.0f} s so far", flush=True)

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        ShareMemCommBuilder().load(verbose=False)
    finally:
        done.set()
        reporter.join()
    return time.monotonic() - started


def main() -> int:
    try:
        took_s = build_shm_op()
    except Exception as error:
        print(error, file=sys.stderr)
        print(
            "    The op did not compile. It needs a C++ compiler and Python's headers"
            " (Debian: apt-get install g++ python3-dev); then run the same command again.",
            file=sys.stderr,
        )
        return 1
    print(f"    deepspeed_shm_comm is ready in {use_torch_extensions_dir()} ({took_s:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
