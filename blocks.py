"""Independent blocks of work, shared among as many threads as torch takes for an operation.

Blocks are so small that they stay in cache, and that torch leaves each operation on them to one thread.
Shared between two threads, operation by operation, which then wait for each other thousands of times, the
scans were slower, and many times so beside other programs.
"""

from concurrent.futures import ThreadPoolExecutor

import torch

SIZE = 2**15  # cells of a block: at most what torch leaves to one thread
_pool = ThreadPoolExecutor(thread_name_prefix="blocks")


def each(work, blocks):
    """`work(*block)` for every block, in any order, several at a time; without gradients."""
    blocks = list(blocks)
    threads = min(torch.get_num_threads(), len(blocks))
    inference = torch.is_inference_mode_enabled()
    waiting = iter(blocks)

    def take():
        with torch.inference_mode(inference), torch.no_grad():
            for block in waiting:
                work(*block)

    others = [_pool.submit(take) for _ in range(threads - 1)]
    take()
    for other in others:
        other.result()


def spans(n):
    """(start, end) of equal blocks of at most SIZE that cover range(n), for every thread as many."""
    threads = torch.get_num_threads()
    count = threads * -(-n // (SIZE * threads))
    size = -(-n // count) if n else 1
    return [(start, min(start + size, n)) for start in range(0, n, size)]
