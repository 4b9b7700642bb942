"""Training in several processes, as `accelerate launch` or torchrun start them: one for each GPU, or on CPUs.

The main process checks, measures, merges and writes; the others join it for training alone, and then end. So errors
before training are reported once, by the main process, and the launcher ends the others.
"""

import logging
import os

from tuneserve.errors import UserError


def count() -> int:
    """Returns how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def meet() -> None:
    """Waits until every process has called it. Processes other than the main one log only warnings from here on."""
    if count() == 1:
        return
    import torch
    from accelerate import PartialState

    if not is_main():
        logging.disable(logging.INFO)
    PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


def part() -> None:
    """Ends the process group: from here on no process waits for another."""
    if count() > 1:
        from accelerate import PartialState
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        PartialState().destroy_process_group()
        # With DeepSpeed's stage 3, models would still be loaded as shards.
        unset_hf_deepspeed_config()


def share(batch_size: int) -> int:
    """Returns how many rows of a batch each process gets.

    Raises UserError for a batch size that the number of processes does not divide.
    """
    if batch_size % count():
        raise UserError(
            f"batch_size is {batch_size}, for {count()} processes",
            f"it is the total of all processes: give a multiple of {count()}",
        )
    return batch_size // count()
